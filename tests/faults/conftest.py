"""A platform per module of fault tests: starting one takes seconds, and every test leaves it whole, or fails."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.system import System, running


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Short, since sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as name:
        path = Path(name)
        path.chmod(0o711)
        yield path


@pytest.fixture(scope="module")
def system(folder: Path) -> Iterator[System]:
    with running(folder) as made:
        yield made
