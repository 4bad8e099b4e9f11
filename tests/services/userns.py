"""An engine that remaps users (`--userns-remap`), in mounts and networks of its own: the machine's /etc/subuid is not
touched. Needs root.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.services.apart import apart
from tests.services.engine import Engine, own_engine

USER = "daemon"
"""Whose the ids are: of every Debian, and in use nowhere. The name root would switch it off."""
UIDS, GIDS = 300_000, 400_000
"""Where the ids of the containers' users and groups begin on the host: different, as an admin may have set them."""


@contextmanager
def remapping_engine(place: Path) -> Iterator[Engine]:
    """Meanwhile this thread is apart, too."""
    instead = {}
    for name, first in (("subuid", UIDS), ("subgid", GIDS)):
        if not (theirs := Path("/etc", name)).exists():
            pytest.skip(f"there is no {theirs}, in whose place another could be shown to the engine")
        instead[theirs] = place / name
        instead[theirs].write_text(f"{USER}:{first}:65536\n")
    with apart(instead), own_engine(place, "--live-restore", f"--userns-remap={USER}") as engine:
        yield engine


def ids(pid: int) -> tuple[set[int], set[int]]:
    """User and group ids of a process, as the host numbers them."""
    rows = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return set(map(int, rows["Uid"].split())), set(map(int, rows["Gid"].split()))
