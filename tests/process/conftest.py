from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.process.harness import Machine, machine


@pytest.fixture
def place() -> Iterator[Machine]:
    """A data directory in which orchestrators come and go; all that runs in it is ended afterwards."""
    with machine() as made:
        yield made
