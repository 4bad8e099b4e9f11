"""A server per test, and git as a client of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.git.client import Client, new_client
from tests.git.server import Server, serving


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "repos") as running:
        yield running


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return new_client(tmp_path / "work")
