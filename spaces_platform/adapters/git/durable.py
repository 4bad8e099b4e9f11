"""Makes directory entries of a repository durable.

git syncs the files it writes (`core.fsync=all`) and not the directories it renames them into. Invariant: after
`sync_push` returns, the packs and the given refs survive a loss of power, as far as the disk keeps its word.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """fsync one directory. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_tree(root: Path) -> None:
    """fsync every file and directory below `root`, and `root`."""
    for folder, _, files in os.walk(root, topdown=False):
        for name in files:
            fd = os.open(Path(folder, name), os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        sync_folder(Path(folder))


def sync_push(repository: Path, refs: Iterable[str]) -> None:
    """fsync where the packs and these refs lie, up to the repository's root, each directory once."""
    folders = {repository / "objects" / "pack": None, repository: None}
    for ref in refs:
        folder = (repository / ref).parent
        while folder != repository:
            folders[folder] = None
            folder = folder.parent
    for folder in folders:
        with suppress(FileNotFoundError):  # a deleted ref takes its empty folders with it
            sync_folder(folder)
