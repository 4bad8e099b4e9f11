"""A control group, in the hierarchies of version 1 or in the one of version 2.

Owns: the names of files, what is written to them and read from them. Does not own: which group is whose, and what the
limits are (`limits`, `processor`). Invariant: a group that is gone is no error; the kernel's refusal is an OSError.

https://docs.kernel.org/admin-guide/cgroup-v1/index.html, https://docs.kernel.org/admin-guide/cgroup-v2.html
"""

from __future__ import annotations

import errno
import os
import re
import signal
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

CONTROLLERS = ("memory", "pids", "cpu", "cpuacct")
"""Of version 1, those that are used here; each may be a hierarchy of its own. In version 2 cpu has what cpuacct has."""
_PERIOD = 100_000
_WITH_SWAP = "memory.memsw.limit_in_bytes"
_SWAP = "memory.swap.max"
_GONE = (errno.ENOENT, errno.ENODEV)
_ROUNDS = 20
"""How often processes are looked for that were forked while others were moved."""


@dataclass(frozen=True, slots=True)
class Groups:
    """One control group in all hierarchies, of version 1 or 2."""

    root: Path
    path: str
    unified: bool

    def folder(self, controller: str) -> Path:
        return self.root / self.path if self.unified else self.root / controller / self.path

    @property
    def exists(self) -> bool:
        return self.folder("pids").is_dir()

    def is_below(self, other: Groups) -> bool:
        return Path(other.path) in Path(self.path).parents

    def child(self, name: str) -> Groups:
        return replace(self, path=f"{self.path}/{name}")

    def below(self) -> list[Groups]:
        """Those right below it, by the processes' controller."""
        try:
            return [self.child(entry.name) for entry in os.scandir(self.folder("pids")) if entry.is_dir()]
        except FileNotFoundError:
            return []

    def make(self) -> None:
        """Make it and those above it, all with their controllers; idempotent. Raises OSError."""
        for controller in CONTROLLERS:
            if self.unified or (self.root / controller).is_dir():
                self.folder(controller).mkdir(parents=True, exist_ok=True)
        if self.unified:  # controllers are handed down level by level
            for parent in reversed(Path(self.path).parents):
                (self.root / parent / "cgroup.subtree_control").write_text("+memory +pids +cpu")

    def remove(self) -> None:
        """Remove it where it is empty."""
        for controller in CONTROLLERS:
            with suppress(OSError):
                self.folder(controller).rmdir()

    def take(self, other: Groups) -> bool:
        """Move all processes of another group here. True once that one has none. Raises OSError.

        Memory that they have stays counted where they were.
        """
        emptied = [self._take(other, controller) for controller in CONTROLLERS]
        return all(emptied)

    def _take(self, other: Groups, controller: str) -> bool:
        source, target = other.folder(controller) / "cgroup.procs", self.folder(controller) / "cgroup.procs"
        for _ in range(_ROUNDS):
            try:
                pids = source.read_text().split()
            except OSError as error:
                if error.errno in _GONE:
                    return True
                raise
            if not pids:
                return True
            for pid in pids:
                try:
                    target.write_text(pid)
                except ProcessLookupError:
                    continue
                except FileNotFoundError:
                    return False
        return False

    def limit(self, *, memory: int = 0, processes: int = 0, cpus: float = 0.0) -> bool:
        """Set what is given. False where the group is gone. Raises OSError where the kernel refuses."""
        try:
            for controller, file, value in self.settings(memory, processes, cpus):
                (self.folder(controller) / file).write_text(value)
        except FileNotFoundError:
            return False
        return True

    def settings(self, memory: int, processes: int, cpus: float) -> list[tuple[str, str, str]]:
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
        return rows

    def _memory_v1(self, memory: int) -> list[tuple[str, str, str]]:
        """Memory, and memory with swap, which the kernel never lets be the smaller of the two."""
        alone = ("memory", "memory.limit_in_bytes", str(memory))
        both = ("memory", _WITH_SWAP, str(memory))
        if not (self.folder("memory") / _WITH_SWAP).exists():  # a kernel without accounting of swap
            return [alone]
        return [both, alone] if memory > self._number("memory", _WITH_SWAP) else [alone, both]

    def stand_back(self, idle: bool, shares: int) -> None:
        """Run only when nobody else wants the processor, or with a weight of `shares` against the usual 1024.

        Kernels before 5.15 know the weight alone. Raises OSError.
        """
        file = self.folder("cpu") / "cpu.idle"
        if file.exists():
            file.write_text(str(int(idle)))
        if not (idle and file.exists()):  # an idle group's weight cannot be set
            name, value = ("cpu.weight", max(1, shares * 100 // 1024)) if self.unified else ("cpu.shares", shares)
            (self.folder("cpu") / name).write_text(str(value))

    def processor_seconds(self) -> float:
        """What it and all below it have had of the processors; 0.0 where the kernel does not say."""
        if self.unified:
            return self._field("cpu", "cpu.stat", "usage_usec") / 1e6
        return self._number("cpuacct", "cpuacct.usage") / 1e9

    def is_runnable(self) -> bool:
        """Whether a process in it runs, or waits for a processor."""
        for pid in self._pids():
            with suppress(OSError):
                if Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1] == "R":
                    return True
        return False

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
        pids = self._pids()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not pids

    def _pids(self) -> list[int]:
        try:
            return [int(word) for word in (self.folder("pids") / "cgroup.procs").read_text().split()]
        except OSError:
            return []

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
