from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services import databases
from tests.web.world import World, prepare


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("prepared")
    prepare(data)
    return data


@pytest.fixture
def world(prepared: Path, tmp_path: Path) -> Iterator[World]:
    databases.copy(prepared, tmp_path)
    world = World(tmp_path)
    yield world
    world.store.close()
