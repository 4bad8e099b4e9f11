"""What RUN steps may use, in an engine whose BuildKit knows no limits of its own.

Owns: the limits of the control group that all build steps run below, finding the steps of one build while they run,
limiting, measuring and killing them. Does not own: the time limit and the words of an error (`builder`, `diagnosis`).
Invariant: a step is touched only if the random mark of this build is in its environment (`client.MARK`).

A step is a folder `buildkit/executor/<id>` of the engine with an OCI `config.json`, and a control group
`<Engine.parent>/<id>`. A step runs for up to POLL seconds below the shared limits only, then below its own as well.
Needs root on the engine's own machine; `Engine.words` says what holds otherwise.

https://docs.kernel.org/admin-guide/cgroup-v1/memory.html, https://docs.kernel.org/admin-guide/cgroup-v2.html
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from builders import usage
from builders.confined import LimitHit
from builders.types import BuildLimits

log = logging.getLogger(__name__)
OWN_PARENT = "/spaces-builds"
"""What builds are told as their --cgroup-parent where the engine's own choice has no group above all steps."""
SHARES = 128
"""Weight of builds against an app's 1024: an app that wants the processor gets it."""
DISK_POLL = 1.0
KILL_SECONDS = 5.0
FOUND_SECONDS = 5.0
"""How long a step may be without a group that is found; it is told then."""
_PERIOD = 100_000
_WITH_SWAP = "memory.memsw.limit_in_bytes"
_SWAP = "memory.swap.max"
_ID = re.compile(r"[a-z0-9]{20,64}")
_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Engine:
    """The machine that an engine runs on, as far as this process may touch it."""

    root: Path
    """The engine's data folder (`docker info`: Docker Root Dir)."""
    driver: str = "cgroupfs"
    """What the engine manages control groups by (`docker info`: Cgroup Driver): `cgroupfs` or `systemd`."""
    cgroups: Path = _CGROUPS
    mounts: Path = Path("/proc/self/mounts")

    @property
    def is_ours(self) -> bool:
        """Whether steps can be seen and limited: root, on the same machine."""
        return os.geteuid() == 0 and (self.root / "buildkit").is_dir()

    @property
    def executor(self) -> Path:
        return self.root / "buildkit" / "executor"

    @property
    def words(self) -> str:
        if self.is_ours:
            return "memory, processes, CPU and disk of build steps are limited"
        return "build steps are limited in time only: the platform is not root on the engine's machine"

    @property
    def cgroup_parent(self) -> str:
        """What a build names as its --cgroup-parent; empty: the engine's own choice.

        With the systemd driver that choice is `system.slice:docker:<id>` below the daemon's slice, since BuildKit runs
        steps without systemd: there no group holds all steps and nothing else. Engines before 23 do not obey.
        """
        return OWN_PARENT if self.driver == "systemd" else ""

    @property
    def parent(self) -> str:
        """The group that all steps run below."""
        return f"{(self.cgroup_parent or 'docker').strip('/')}/buildkit"

    @property
    def unified(self) -> bool:
        """Whether control groups are those of version 2."""
        return (self.cgroups / "cgroup.controllers").exists()

    def groups(self, path: str) -> Groups:
        """The group of a step, by the `cgroupsPath` of its config."""
        return Groups(self.cgroups, path.strip("/") if path.startswith("/") else self._nested(path), self.unified)

    def _nested(self, path: str) -> str:
        """A path that is not absolute is below a group of the daemon's; as it is while it is nowhere."""
        base = self.cgroups if self.unified else self.cgroups / "pids"
        for pattern in (path, f"*/{path}", f"*/*/{path}"):
            for found in base.glob(pattern):
                return str(found.relative_to(base))
        return path


@dataclass(frozen=True, slots=True)
class Groups:
    """One control group in all hierarchies, of version 1 or 2."""

    root: Path
    path: str
    unified: bool

    def folder(self, controller: str) -> Path:
        return self.root / self.path if self.unified else self.root / controller / self.path

    def limit(self, *, memory: int = 0, processes: int = 0, cpus: float = 0.0, shares: int = 0) -> bool:
        """Set what is given. False where the group is gone. Raises OSError where the kernel refuses."""
        try:
            for controller, file, value in self.settings(memory, processes, cpus, shares):
                (self.folder(controller) / file).write_text(value)
        except FileNotFoundError:
            return False
        return True

    def settings(self, memory: int, processes: int, cpus: float, shares: int) -> list[tuple[str, str, str]]:
        """(controller, file, text) in the order they must be written. Pure."""
        rows: list[tuple[str, str, str]] = []
        if memory and self.unified:
            rows.append(("memory", "memory.max", str(memory)))
            if (self.folder("memory") / _SWAP).exists():  # else the kernel does not account for swap
                rows.append(("memory", _SWAP, "0"))
        elif memory:
            rows += self._memory_v1(memory)
        if processes:
            rows.append(("pids", "pids.max", str(processes)))
        if cpus and self.unified:
            rows.append(("cpu", "cpu.max", f"{int(cpus * _PERIOD)} {_PERIOD}"))
        elif cpus:
            rows += [("cpu", "cpu.cfs_period_us", str(_PERIOD)), ("cpu", "cpu.cfs_quota_us", str(int(cpus * _PERIOD)))]
        if shares and self.unified:
            rows.append(("cpu", "cpu.weight", str(max(1, shares * 100 // 1024))))
        elif shares:
            rows.append(("cpu", "cpu.shares", str(shares)))
        return rows

    def _memory_v1(self, memory: int) -> list[tuple[str, str, str]]:
        """Memory, and memory with swap, which the kernel never lets be the smaller of the two."""
        alone = ("memory", "memory.limit_in_bytes", str(memory))
        both = ("memory", _WITH_SWAP, str(memory))
        if not (self.folder("memory") / _WITH_SWAP).exists():  # a kernel without accounting of swap
            return [alone]
        return [both, alone] if memory > self._number("memory", _WITH_SWAP) else [alone, both]

    def memory(self) -> int:
        """Bytes in use, without what the kernel would take back at once."""
        if self.unified:
            return self._number("memory", "memory.current") - self._field("memory", "memory.stat", "inactive_file")
        used = self._number("memory", "memory.usage_in_bytes")
        return used - self._field("memory", "memory.stat", "total_inactive_file")

    def killed_for_memory(self) -> int:
        file = "memory.events" if self.unified else "memory.oom_control"
        return self._field("memory", file, "oom_kill")

    def refused_processes(self) -> int:
        return self._field("pids", "pids.events", "max")

    def kill(self) -> bool:
        """SIGKILL to everything in it. True once nothing is left."""
        with suppress(OSError):
            (self.folder("pids") / "cgroup.kill").write_text("1")
        try:
            pids = [int(word) for word in (self.folder("pids") / "cgroup.procs").read_text().split()]
        except OSError:
            return True
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not pids

    def _number(self, controller: str, file: str) -> int:
        try:
            return int((self.folder(controller) / file).read_text())
        except (OSError, ValueError):
            return 0

    def _field(self, controller: str, file: str, name: str) -> int:
        try:
            text = (self.folder(controller) / file).read_text()
        except OSError:
            return 0
        match = re.search(rf"^{name} (\d+)$", text, re.M)
        return int(match[1]) if match else 0


def limit_all(engine: Engine, *, memory: int, processes: int, cpus: float) -> None:
    """Bound all build steps of an engine together. Idempotent; at each build, since a reboot forgets it.

    Raises OSError where the kernel refuses.
    """
    groups = engine.groups(f"/{engine.parent}")
    for controller in ("memory", "pids", "cpu"):
        groups.folder(controller).mkdir(parents=True, exist_ok=True)
    if groups.unified:
        # Controllers are handed down level by level.
        for folder in (engine.cgroups, engine.cgroups / engine.parent.partition("/")[0], groups.folder("")):
            (folder / "cgroup.subtree_control").write_text("+memory +pids +cpu")
    groups.limit(memory=memory, processes=processes, cpus=cpus, shares=SHARES)


@dataclass(slots=True)
class _Step:
    path: str
    groups: Groups
    upper: Path | None
    """What the step has written, as a layer."""
    caches: dict[Path, int] = field(default_factory=dict)
    """Its cache mounts -> their size when it began."""
    limited: bool = False
    seen: float = field(default_factory=time.monotonic)
    told: bool = False
    disk: int = 0


@dataclass(slots=True)
class Steps:
    """The RUN steps of one build."""

    engine: Engine
    mark: str
    limits: BuildLimits
    reserve: int
    """Bytes that must stay free on the engine's disk."""
    running: dict[str, _Step] = field(default_factory=dict)
    ended_disk: int = 0
    _foreign: set[str] = field(default_factory=set)
    _next_disk: float = 0.0

    def check(self) -> None:
        """Find, limit and measure. Raises LimitHit."""
        self._look()
        for step in self.running.values():
            if not step.limited:
                self._limit(step)
            if step.groups.killed_for_memory():
                raise LimitHit("memory", self.limits.memory, self.limits.memory)
            if step.groups.refused_processes():
                raise LimitHit("processes", self.limits.processes, self.limits.processes)
        if len(self.running) > 1:
            together = sum(step.groups.memory() for step in self.running.values())
            if together > self.limits.memory:
                raise LimitHit("memory", together, self.limits.memory)
        if time.monotonic() >= self._next_disk:
            began = time.monotonic()
            self.check_disk()
            self._next_disk = time.monotonic() + max(DISK_POLL, 10 * (time.monotonic() - began))

    def _limit(self, step: _Step) -> None:
        """Its group is made after its config is written."""
        step.groups = self.engine.groups(step.path)
        step.limited = step.groups.limit(memory=self.limits.memory, processes=self.limits.processes)
        if not (step.limited or step.told) and time.monotonic() - step.seen > FOUND_SECONDS:
            log.warning("a build step has no limits of its own: there is no control group %s", step.path)
            step.told = True

    def check_disk(self) -> None:
        """Raises LimitHit for what the steps have written, or for what is left on the disk."""
        for step in self.running.values():
            written = usage.disk([step.upper]) if step.upper is not None else 0
            step.disk = written + sum(max(0, usage.disk([path]) - before) for path, before in step.caches.items())
        used = self.ended_disk + sum(step.disk for step in self.running.values())
        if used > self.limits.disk:
            raise LimitHit("disk", used, self.limits.disk)
        free = shutil.disk_usage(self.engine.root).free
        if free < self.reserve:
            raise LimitHit("free_disk", free, self.reserve)

    def packages(self) -> int:
        """How many Python packages the running steps have put in place."""
        patterns = ((step.upper, "opt/env/lib/python3.*/site-packages/*.dist-info") for step in self.running.values())
        return sum(sum(1 for _ in upper.glob(pattern)) for upper, pattern in patterns if upper is not None)

    def kill(self) -> None:
        """End every step of this build. Returns when they are gone, or after KILL_SECONDS."""
        deadline = time.monotonic() + KILL_SECONDS
        while True:
            self._look()
            left = [id for id, step in self.running.items() if not self.engine.groups(step.path).kill()]
            if not left or time.monotonic() > deadline:
                return
            time.sleep(0.01)

    def _look(self) -> None:
        if not self.engine.is_ours:
            return
        try:
            ids = {name for name in os.listdir(self.engine.executor) if _ID.fullmatch(name)}
        except FileNotFoundError:
            ids = set()
        for gone in set(self.running) - ids:
            self.ended_disk += self.running.pop(gone).disk
        self._foreign &= ids
        for id in ids - self._foreign - set(self.running):
            step = self._read(id)
            if step is not None:
                self.running[id] = step

    def _read(self, id: str) -> _Step | None:
        """A step of this build; None for one of another build, or one that is not written down yet."""
        folder = self.engine.executor / id
        try:
            config = json.loads((folder / "config.json").read_text())
            environment = config["process"]["env"]
            path = config["linux"]["cgroupsPath"]
            binds = [(row["source"], row.get("options", ())) for row in config["mounts"] if row["type"] == "bind"]
        except (OSError, ValueError, KeyError):
            return None
        if not any(self.mark in row for row in environment):
            self._foreign.add(id)
            return None
        layers = self.engine.root / "overlay2"
        caches = [
            Path(source) for source, options in binds if "ro" not in options and Path(source).is_relative_to(layers)
        ]
        upper = upper_dir(self.engine.mounts, folder / "rootfs")
        return _Step(path, self.engine.groups(path), upper, {path: usage.disk([path]) for path in caches})


def upper_dir(mounts: Path, target: Path) -> Path | None:
    """The writable layer of an overlay that is mounted at `target`."""
    try:
        lines: Iterable[str] = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    for line in lines:
        words = line.split(" ")
        if len(words) > 3 and words[1] == str(target) and words[2] == "overlay":
            match = re.search(r"(?:^|,)upperdir=([^,]+)", words[3])
            return Path(match[1]) if match else None
    return None
