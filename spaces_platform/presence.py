"""Who runs on a data directory: process identities, the supervisor's lock, and the state it leaves for others to read.

Owns: `DIR/run/supervisor.lock`, `DIR/run/supervisor.json` and the `DIR/run/<name>.pid` files. Does not own: starting or
stopping anything. Invariant: a pid alone is never trusted, since the kernel gives numbers out again; a process is known
by its pid and the time it started.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Mark:
    """One process, for good: its number and when it started (a text that only equality is asked of)."""

    pid: int
    start: str

    @classmethod
    def of(cls, pid: int) -> Mark:
        return cls(pid, start_time(pid) or "")

    def is_alive(self) -> bool:
        """Whether this very process still runs. A zombie does not."""
        return bool(self.start) and start_time(self.pid) == self.start


def start_time(pid: int) -> str | None:
    """When a process started, as its system tells it; None for a process that has ended."""
    if sys.platform != "linux":
        shown = subprocess.run(
            ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
        )
        state, _, started = shown.stdout.strip().partition(" ")
        return None if shown.returncode or state.startswith("Z") else started.strip()
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # proc(5): the name in brackets may hold anything; state is field 3, starttime field 22.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


class DataLock:
    """Held by the one supervisor of a data directory for as long as it lives; the kernel lets go of a killed one's."""

    def __init__(self, data: Path) -> None:
        self._path = data / "run" / "supervisor.lock"
        self._fd: int | None = None

    def acquire(self) -> bool:
        """Take it, unless somebody holds it. Never waits."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self._fd = fd
        return True

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def is_supervised(data: Path) -> bool:
    """Whether a supervisor holds this data directory now."""
    if not (data / "run" / "supervisor.lock").exists():
        return False
    lock = DataLock(data)
    if lock.acquire():
        lock.release()
        return False
    return True


def write_json(path: Path, value: Any) -> None:
    """Replace a file that only its owner may read, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(value, file, indent=1)
    temporary.replace(path)


def read_state(data: Path) -> dict[str, Any] | None:
    """What the supervisor of this directory last wrote about itself; None where there is nothing readable."""
    return _read(data / "run" / "supervisor.json")


def write_mark(data: Path, name: str, mark: Mark) -> None:
    write_json(data / "run" / f"{name}.pid", {"pid": mark.pid, "start": mark.start})


def read_mark(data: Path, name: str) -> Mark | None:
    """The process last started under this name, whether it lives or not."""
    value = _read(data / "run" / f"{name}.pid")
    if value is None or not isinstance(value.get("pid"), int) or not isinstance(value.get("start"), str):
        return None
    return Mark(value["pid"], value["start"])


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def listener_of(port: int) -> str:
    """Who listens on a TCP port of this machine, in words: `nginx (pid 812)`; empty where that cannot be seen."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            columns = row.split()
            # proc(5): local address is `hex ip:hex port`; state 0A is LISTEN.
            if columns[3] == "0A" and int(columns[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{columns[9]}]")
    for process in Path("/proc").glob("[0-9]*") if inodes else ():
        try:
            held = {os.readlink(fd) for fd in (process / "fd").iterdir()}
            if held & inodes:
                return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
        except OSError:
            continue
    return ""
