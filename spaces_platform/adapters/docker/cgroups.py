"""What the kernel counts of one container, and its freezer; version 1 and 2, wherever the engine has put the group.

Freezing is one write here; by the engine it takes four processes, a good part of what a wake costs. The engine need not
know: to it the container runs.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from spaces_platform.errors import Unavailable

ROOT = Path("/sys/fs/cgroup")
FREEZE_SECONDS = 2.0
"""A process stops where it next enters or leaves the kernel: one that waits for a slow disk takes long."""
KILL_SECONDS = 5.0
_CONTAINER = re.compile(r"(?:docker-)?([0-9a-f]{64})(?:\.scope)?\Z")


def set_frozen(pid: int, container: str, frozen: bool) -> bool:
    """Hold all processes of a container, or let them go; True once that is so. Idempotent.

    `pid` is one of them. False where the group is not there, or not ours to write. Raises Unavailable where the kernel
    does not get it done within FREEZE_SECONDS; they run then. Sources: Documentation/admin-guide/cgroup-v2.rst
    (cgroup.freeze), cgroup-v1/freezer-subsystem.rst.
    """
    place = _freezer(pid, container)
    if place is None:
        return False
    file, words = ("cgroup.freeze", "01") if (place / "cgroup.freeze").exists() else ("freezer.state", _V1)
    deadline = time.monotonic() + FREEZE_SECONDS
    try:
        while True:
            _write(place / file, words[frozen])  # again and again: version 1 misses what was just forked
            if _state(place) == _V1[frozen]:
                return True
            if time.monotonic() > deadline:
                break
            time.sleep(0.001)
        _write(place / file, words[False])
    except OSError:
        return False
    raise Unavailable(f"container {container[:12]} could not be {'frozen' if frozen else 'thawed'}; try again")


def is_frozen(pid: int, container: str) -> bool | None:
    """Whether all processes of a container are held, by whomever; None where that cannot be seen."""
    place = _freezer(pid, container)
    try:
        return None if place is None else _state(place) == "FROZEN"
    except OSError:
        return None


_V1 = ("THAWED", "FROZEN")


def _state(place: Path) -> str:
    """THAWED, FREEZING or FROZEN."""
    if (place / "cgroup.freeze").exists():
        return _V1["frozen 1" in (place / "cgroup.events").read_text().splitlines()]
    return (place / "freezer.state").read_text().strip()


def _write(path: Path, word: str) -> None:
    with path.open("r+") as file:  # never made anew
        file.write(word)


def _freezer(pid: int, container: str) -> Path | None:
    """The directory of the group that holds a container, or None."""
    try:
        return freezer_of(Path(f"/proc/{pid}/cgroup").read_text(), container)
    except OSError:
        return None


def freezer_of(text: str, container: str) -> Path | None:
    """The same, from the text of /proc/PID/cgroup."""
    groups = group_paths(text)
    place = ROOT / "freezer" / groups["freezer"].lstrip("/") if "freezer" in groups else _unified(groups)
    # A pid is given again to others: theirs must not be touched.
    return place if container and container in place.name else None


def running_below(parent: str) -> Mapping[str, Path]:
    """Container -> its group, of those that run below a parent; `parent` as spec.cgroup_parent names it."""
    place = ROOT / "freezer" if (ROOT / "freezer").is_dir() else ROOT
    if parent.endswith(".slice"):
        place /= f"{parent.partition('-')[0]}.slice"  # systemd puts a-b.slice into a.slice
    place /= parent.lstrip("/")
    names = os.listdir(place) if place.is_dir() else ()
    found = {match[1]: place / name for name in names if (match := _CONTAINER.match(name))}
    return {container: group for container, group in found.items() if _members(group)}


def end(group: Path) -> bool:
    """Kill all processes of a group, held or not; whether none is left within KILL_SECONDS."""
    deadline = time.monotonic() + KILL_SECONDS
    while pids := _members(group):
        if time.monotonic() > deadline:
            return False
        for pid in pids:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        with suppress(OSError):
            _write(group / "freezer.state", _V1[False])
        time.sleep(0.01)
    return True


def end_leftovers(parent: str, container: str) -> bool:
    """End what still runs of a container below a parent, and remove its groups; whether none of it runs."""
    group = running_below(parent).get(container)
    ended = group is None or end(group)
    remove_empty(f"{parent}/{container}")
    return ended


def remove_empty(group: str) -> None:
    """Remove a group from every hierarchy, unless something is in it. systemd removes its own."""
    name = group.lstrip("/")
    for place in (ROOT / name, *ROOT.glob(f"*/{name}")):
        with suppress(OSError):
            place.rmdir()


def _members(group: Path) -> list[int]:
    try:
        return [int(word) for word in (group / "cgroup.procs").read_text().split()]
    except OSError:
        return []  # gone


def _unified(groups: dict[str, str]) -> Path:
    return ROOT / groups.get("", "/").lstrip("/")


def memory_in_use(pid: int) -> int:
    """Bytes that the group of a process holds, without clean file pages; 0 where that cannot be seen."""
    try:
        groups = group_paths(Path(f"/proc/{pid}/cgroup").read_text())
        if "memory" in groups:
            place = ROOT / "memory" / groups["memory"].lstrip("/")
            used = int((place / "memory.usage_in_bytes").read_text())
            inactive = _stat(place, "total_inactive_file")
        else:
            place = _unified(groups)
            used = int((place / "memory.current").read_text())
            inactive = _stat(place, "inactive_file")
    except (OSError, ValueError):
        return 0
    return max(used - inactive, 0)


def group_paths(text: str) -> dict[str, str]:
    """Controller -> path, version 2 under the empty name, from the text of /proc/PID/cgroup. See cgroups(7)."""
    found = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        found.update(dict.fromkeys(controllers.split(","), path))
    return found


def _stat(place: Path, key: str) -> int:
    for line in (place / "memory.stat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0
