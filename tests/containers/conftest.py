from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.harness import Place, place_on

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever lies here needs an engine."""
    for item in items:
        if HERE in Path(item.path).parents:
            item.add_marker(pytest.mark.containers)


@pytest.fixture
def place(engine_url: str) -> Iterator[Place]:
    """A data directory in which orchestrators come and go; all that runs in it is removed afterwards."""
    with place_on(engine_url) as made:
        yield made
