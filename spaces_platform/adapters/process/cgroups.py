"""Control groups for apps: which are writable here, and what is written to hold one app to its limits.

Owns paths and values; the shim makes, fills and removes the groups. Version 2 is used where memory and pids are
delegated to this user, version 1 per controller. Groups are made below the platform's own, so that limits around the
platform hold for its apps too. Sources: Documentation/admin-guide/cgroup-v1/*, cgroup-v2.rst;
https://systemd.io/CGROUP_DELEGATION.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from spaces_platform.adapters.process.shim import groups
from spaces_platform.ports import Resources

log = logging.getLogger(__name__)

Group = tuple[str, tuple[tuple[str, str], ...]]
"""(directory, ((file, value), …))"""

PERIOD = 100_000
"""Microseconds of one CPU quota period."""
LEAF = "platform"
"""Where the platform's own processes go in a group that is delegated to it: one with members cannot have limited ones
below."""
LEAVE_TRIES = 100
"""How often a group is looked at for members that were forked while it was emptied."""


@dataclass(frozen=True, slots=True)
class Cgroups:
    """The groups that can be used here; empty strings where there is none."""

    unified: str = ""
    memory: str = ""
    pids: str = ""
    cpu: str = ""

    @property
    def holds(self) -> tuple[str, ...]:
        """The limits that are enforced by cgroups: of `memory`, `processes`, `cpu`."""
        if self.unified:
            return ("memory", "processes", *(("cpu",) if self.cpu else ()))
        return tuple(n for n, path in (("memory", self.memory), ("processes", self.pids), ("cpu", self.cpu)) if path)

    def groups(self, name: str, resources: Resources) -> tuple[Group, ...]:
        """The groups of one app."""
        quota = max(int(resources.cpus * PERIOD), 1000)
        if self.unified:
            values = [
                ("memory.max", str(resources.memory)),
                ("memory.oom.group", "1"),
                ("pids.max", str(resources.processes)),
            ]
            if self.cpu:
                values.append(("cpu.max", f"{quota} {PERIOD}"))
            return ((f"{self.unified}/{name}", tuple(values)),)
        found: list[Group] = []
        if self.memory:
            found.append((f"{self.memory}/{name}", (("memory.limit_in_bytes", str(resources.memory)),)))
        if self.pids:
            found.append((f"{self.pids}/{name}", (("pids.max", str(resources.processes)),)))
        if self.cpu:
            values = [("cpu.cfs_period_us", str(PERIOD)), ("cpu.cfs_quota_us", str(quota))]
            found.append((f"{self.cpu}/{name}", tuple(values)))
        return tuple(found)

    def oom_events(self, name: str) -> tuple[str, str]:
        """(file, key) that counts the kernel's out-of-memory kills of one app."""
        if self.unified:
            return f"{self.unified}/{name}/memory.events", "oom_kill"
        return (f"{self.memory}/{name}/memory.oom_control", "oom_kill") if self.memory else ("", "")

    def leftovers(self, prefix: str) -> list[Path]:
        """Groups of this platform that exist now."""
        parents = {p for p in (self.unified, self.memory, self.pids, self.cpu) if p}
        return [path for parent in parents for path in Path(parent).glob(f"{prefix}*") if path.is_dir()]


def detect(prefix: str, *, settle: bool = True) -> Cgroups:
    """What can be used here, found out by making a group and removing it again.

    `settle`: in a group that systemd has delegated, move this process and those beside it into one of their own below.
    """
    own = _own_groups()
    mounts = list(_mounts())
    for root in (point for kind, _, point in mounts if kind == "cgroup2"):
        if settle:
            settle_in(Path(root + own.get("", "/")))
            own = _own_groups()
        found = _usable_v2(root, own.get("", "/"), prefix)
        if found is not None:
            return found
    usable = {}
    for kind, options, point in mounts:
        for controller in ("memory", "pids", "cpu"):
            if kind == "cgroup" and controller in options.split(",") and controller not in usable:
                parent = (point + own.get(controller, "/")).rstrip("/")
                if _works(parent, prefix):
                    usable[controller] = parent
    return Cgroups(memory=usable.get("memory", ""), pids=usable.get("pids", ""), cpu=usable.get("cpu", ""))


def _usable_v2(root: str, own: str, prefix: str) -> Cgroups | None:
    """The nearest group at or above the platform's own whose children get memory and pids and take processes.

    A group that holds processes cannot pass controllers on (the root excepted), so it is often one above.
    """
    place = Path(root + own)
    for parent in (place, *place.parents)[:4]:
        if not parent.is_relative_to(root):
            break
        try:
            passed = (parent / "cgroup.subtree_control").read_text().split()
            writable = os.access(parent / "cgroup.procs", os.W_OK)
        except OSError:
            continue
        if {"memory", "pids"} <= set(passed) and writable and _works(str(parent), prefix):
            return Cgroups(unified=str(parent), cpu=str(parent) if "cpu" in passed else "")
    return None


def settle_in(place: Path) -> None:
    """Make a delegated group of version 2, this process's own or the one above, pass its controllers on.

    Delegate=yes of systemd gives a service its group with the service's processes in it, and no controller is passed
    on. No group that is not delegated is touched. To fail is no error: limits are then watched.
    """
    group = next((one for one in (place, place.parent) if is_delegated(one)), None)
    if group is None:
        return
    try:
        if group == place and not _leave(group):
            return
        there = (group / "cgroup.controllers").read_text().split()
        for controller in ("memory", "pids", "cpu"):
            if controller in there:
                (group / "cgroup.subtree_control").write_text(f"+{controller}")
    except OSError as error:
        log.info("the control group %s cannot be used for apps: %s", group, error)


def is_unified() -> bool:
    """Whether memory is a matter of version 2 here: a hybrid machine has that version for nothing but names."""
    mounts = list(_mounts())
    in_version_1 = any(kind == "cgroup" and "memory" in options.split(",") for kind, options, _ in mounts)
    return not in_version_1 and any(kind == "cgroup2" for kind, _, _ in mounts)


def is_given() -> bool:
    """Whether this process runs in a group of version 2 that is delegated, or directly below one."""
    own = _own_groups().get("", "/")
    places = [Path(point + own) for kind, _, point in _mounts() if kind == "cgroup2"]
    return any(is_delegated(one) for place in places for one in (place, place.parent))


def is_delegated(group: Path) -> bool:
    """Whether systemd has left a group to whom it runs there."""
    for name in ("user.delegate", "trusted.delegate"):  # the latter alone by older ones, and seen by root only
        with suppress(OSError):
            if os.getxattr(group, name) == b"1":
                return True
    return False


def _leave(group: Path) -> bool:
    """Move all members of a group into one below; whether it is empty then."""
    leaf = group / LEAF
    leaf.mkdir(exist_ok=True)
    for _ in range(LEAVE_TRIES):
        members = groups.members(str(group))
        if not members:
            return True
        for pid in members:
            with suppress(ProcessLookupError):
                (leaf / "cgroup.procs").write_text(str(pid))
    return False


def _works(parent: str, prefix: str) -> bool:
    """Whether a process can be moved into a new group there."""
    trial = Path(parent) / f"{prefix}trial-{os.getpid()}"
    try:
        trial.mkdir()
    except OSError:
        return False
    child = os.posix_spawn("/bin/sh", ["sh", "-c", "exec sleep 10"], {})
    try:
        (trial / "cgroup.procs").write_text(str(child))
        moved = True
    except OSError:
        moved = False
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return groups.remove(str(trial)) and moved


def _own_groups() -> dict[str, str]:
    """Controller -> path of this process's group; version 2 under the empty name."""
    found = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            found[controller] = path
    return found


def _mounts() -> Iterable[tuple[str, str, str]]:
    """(type, options, mount point) of the cgroup file systems, from the point of view of this process."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, options, *_ = line.split()
        if kind in ("cgroup", "cgroup2"):
            yield kind, options, point
