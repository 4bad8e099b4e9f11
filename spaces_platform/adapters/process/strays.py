"""Ends what outlived its shim: processes that carry a deployment's mark or sit in its group, and the groups themselves.

Where a pid namespace holds the app, the kernel has ended it with the shim already and this finds only empty groups.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable

from .cgroups import Cgroups
from .launch import RUN_VARIABLE
from .shim import groups

log = logging.getLogger(__name__)
PATIENCE = 3.0
"""Seconds to wait for killed processes to be gone."""


def end_strays(prefix: str, found: Cgroups, alive: Callable[[int], bool], only: int | None = None) -> int:
    """End everything of deployments that are not `alive` (or of `only`); how many deployments had something."""

    def meant(name: str) -> bool:
        number = name.removeprefix(prefix)
        return number.isdigit() and only in (None, int(number)) and not alive(int(number))

    ended: set[str] = set()
    victims: list[tuple[str, int]] = []
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        victims = [(name, pid) for name, pid in _marked(prefix) if meant(name)]
        for path in found.leftovers(prefix):
            if meant(path.name):
                victims += [(path.name, pid) for pid in groups.members(str(path))]
        if not victims:
            break
        for name, pid in victims:
            ended.add(name)
            groups.kill(pid)
        time.sleep(0.01)
    else:
        log.warning("killed processes are not gone after %.0f seconds: %s", PATIENCE, sorted(set(victims)))
    for path in found.leftovers(prefix):
        if meant(path.name):
            ended.add(path.name)
            groups.remove(str(path))
    return len(ended)


def _marked(prefix: str) -> Iterable[tuple[str, int]]:
    """(deployment's name, pid) of every live process whose environment carries a mark of this platform."""
    mark = f"{RUN_VARIABLE}={prefix}".encode()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    environ = file.read()
            except (OSError, ProcessLookupError):
                continue  # gone, or of another user and so never one of ours
            for entry in environ.split(b"\0"):
                if entry.startswith(mark):
                    yield entry[len(RUN_VARIABLE) + 1 :].decode("ascii", "replace"), int(name)
