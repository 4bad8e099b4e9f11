"""What RUN steps may use, in an engine whose BuildKit knows no limits of its own.

Owns: the limits of the control group that all build steps run below, finding the steps of one build while they run,
limiting, measuring and killing them. Does not own: the files of a control group (`groups`), how builds share the
processor with apps (`processor`), the time limit and the words of an error (`builder`, `diagnosis`).
Invariant: a step is touched only if the random mark of this build is in its environment (`client.MARK`).

A step is a folder `buildkit/executor/<id>` of the engine with an OCI `config.json`, and a control group below PARENT.
An engine that does not obey (those before Docker 23 do not) chooses another place for the group: such a step is moved
to one of ours when it is found, which is up to `client.POLL` seconds after it began, or `client.QUIET_POLL` in a build
that has been silent. Needs root on the engine's own machine; `Engine.words` says what holds otherwise.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from builders import usage
from builders.confined import LimitHit
from builders.containers import processor
from builders.containers.groups import Groups
from builders.types import BuildLimits

log = logging.getLogger(__name__)
PARENT = "/spaces-builds"
"""What builds are told as their --cgroup-parent: a group that is beside those of apps and services, and holds nothing
but builds. The engine's own choice is either among its containers, or where systemd manages groups among services."""
DISK_POLL = 1.0
KILL_SECONDS = 5.0
FOUND_SECONDS = 5.0
"""How long a step may be without a group that is found; it is told then."""
SETTLED_SECONDS = 2.0
"""After a step has begun: what joins its group late has done so, and it is looked at less often. The kernel holds the
limits meanwhile; what is found later is that a step which goes on has hit one."""
SETTLED_POLL = 0.5
_ID = re.compile(r"[a-z0-9]{20,64}")
_LAYER = re.compile(r"/overlay2/[^/]+/diff$|/io\.containerd\.snapshotter\.v1\.\w+/snapshots/\d+/fs$")
"""Where an engine keeps what is written: in Docker's own image store, and in containerd's."""
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
    images: Path | None = None
    """The folder that has its images, where that is not `root`."""

    @property
    def store(self) -> Path:
        return self.images or self.root

    @property
    def in_containerd(self) -> bool:
        """Whether it keeps images in containerd's store, not in its own."""
        return self.store != self.root

    @property
    def free(self) -> int | None:
        """Bytes free where it writes; None where that is not seen here."""
        seen = [place for place in (self.root, self.store) if place.is_dir()]
        return min((shutil.disk_usage(place).free for place in seen), default=None)

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
    def all_builds(self) -> Groups:
        """What all steps are below."""
        return Groups(self.cgroups, PARENT.strip("/"), self.unified)

    @property
    def moved(self) -> Groups:
        """What the groups are in of steps that the engine began elsewhere; the others are in one of BuildKit's."""
        return self.all_builds.child("moved")

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


def limit_all(engine: Engine, *, memory: int, processes: int, cpus: float) -> None:
    """Bound all build steps of an engine together. Idempotent; at each build, since a reboot forgets it.

    Raises OSError where the kernel refuses.
    """
    engine.moved.make()
    engine.all_builds.limit(memory=memory, processes=processes, cpus=cpus)
    engine.all_builds.stand_back(True, processor.SHARES)
    for left in engine.moved.below():
        left.remove()
    if engine.driver == "cgroupfs":  # where steps begin if the engine does not obey
        theirs = Groups(engine.cgroups, "docker/buildkit", engine.unified)
        theirs.make()
        theirs.limit(memory=memory, processes=processes, cpus=cpus)


@dataclass(slots=True)
class _Step:
    id: str
    path: str
    """Its group, as the engine wrote it down."""
    given: Groups
    """That one; nowhere as long as it is not found."""
    upper: Path | None
    """What the step has written, as a layer."""
    caches: dict[Path, int] = field(default_factory=dict)
    """Its cache mounts -> their size when it began."""
    moved: Groups | None = None
    """Where it is instead, if the engine began it elsewhere than below PARENT."""
    limited: bool = False
    seen: float = field(default_factory=time.monotonic)
    checked: float = 0.0
    told: bool = False
    disk: int = 0

    @property
    def groups(self) -> list[Groups]:
        return [self.given] if self.moved is None else [self.given, self.moved]

    def is_due(self, now: float) -> bool:
        return not self.limited or now - self.seen < SETTLED_SECONDS or now - self.checked >= SETTLED_POLL

    def tell(self, words: str) -> None:
        """Once."""
        if not self.told:
            log.warning("%s", words)
        self.told = True


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
    turns: processor.Turns = field(init=False)
    _may_look: bool = field(init=False)
    _executor: str = field(init=False)

    def __post_init__(self) -> None:
        self._may_look = os.geteuid() == 0
        self._executor = str(self.engine.executor)
        self.turns = processor.Turns(self.engine.all_builds)

    def check(self) -> None:
        """Find, limit and measure. Raises LimitHit, and OSError where the kernel refuses."""
        self._look()
        now = time.monotonic()
        due = [step for step in self.running.values() if step.is_due(now)]
        for step in due:
            step.checked = now
            self._limit(step)
            if any(groups.killed_for_memory() for groups in step.groups):
                raise LimitHit("memory", self.limits.memory, self.limits.memory)
            if any(groups.refused_processes() for groups in step.groups):
                raise LimitHit("processes", self.limits.processes, self.limits.processes)
        if due and len(self.running) > 1:
            together = sum(groups.memory() for step in self.running.values() for groups in step.groups)
            if together > self.limits.memory:
                raise LimitHit("memory", together, self.limits.memory)
        if self.running:
            self.turns.check(groups for step in self.running.values() for groups in step.groups)
        if now >= self._next_disk:
            self.check_disk()
            self._next_disk = time.monotonic() + max(DISK_POLL, 10 * (time.monotonic() - now))

    def _limit(self, step: _Step) -> None:
        """Its group is made after its config is written, and its processes come into it after that."""
        step.limited = step.limited or (step.given.exists and self._bound(step.given))
        if step.limited and not step.given.is_below(self.engine.all_builds):
            self._move(step)
        elif not step.limited and time.monotonic() - step.seen > FOUND_SECONDS:
            step.tell(f"a build step has no limits of its own: there is no control group {step.path}")

    def _bound(self, groups: Groups) -> bool:
        return groups.limit(memory=self.limits.memory, processes=self.limits.processes)

    def _move(self, step: _Step) -> None:
        """To a group of ours; at each look again, since a runtime joins one hierarchy of version 1 after the other."""
        step.moved = step.moved or self.engine.moved.child(step.id)
        try:
            if not step.moved.exists:
                step.moved.make()
                self._bound(step.moved)
            step.moved.take(step.given)
        except OSError as error:
            step.tell(f"a build step stays in {step.path}, beside what is no build: {error}")

    def check_disk(self) -> None:
        """Raises LimitHit for what the steps have written, or for what is left on the disk."""
        for step in self.running.values():
            written = usage.disk([step.upper]) if step.upper is not None else 0
            step.disk = written + sum(max(0, usage.disk([path]) - before) for path, before in step.caches.items())
        used = self.ended_disk + sum(step.disk for step in self.running.values())
        if used > self.limits.disk:
            raise LimitHit("disk", used, self.limits.disk)
        free = self.engine.free
        if free is not None and free < self.reserve:
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
            ended = [groups.kill() for step in self.running.values() for groups in step.groups]
            if all(ended) or time.monotonic() > deadline:
                return
            time.sleep(0.01)

    def _look(self) -> None:
        if not self._may_look:
            return
        try:
            ids = {name for name in os.listdir(self._executor) if _ID.fullmatch(name)}
        except FileNotFoundError:
            ids = set()
        for gone in set(self.running) - ids:
            step = self.running.pop(gone)
            self.ended_disk += step.disk
            if step.moved is not None:
                step.moved.remove()
        self._foreign &= ids
        for id in ids - self._foreign - set(self.running):
            found = self._read(id)
            if found is not None:
                self.running[id] = found
        for step in self.running.values():
            if not step.limited and not step.given.exists:
                step.given = self.engine.groups(step.path)

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
        caches = [Path(source) for source, options in binds if "ro" not in options and _LAYER.search(source)]
        upper = upper_dir(self.engine.mounts, folder / "rootfs")
        return _Step(id, path, self.engine.groups(path), upper, {path: usage.disk([path]) for path in caches})


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
