"""What a running command uses: its processes, their memory, the disk below its folders. Read from /proc, Linux only.

Owns: finding all processes that a command started, also those that left its process group, and adding them up. Does
not own: limits (`confined`). Invariant: reads only; a process that ends while it is looked at counts as nothing.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MARK = "SPACES_BUILD_MARK"
"""Environment variable that marks every process of a build."""

KILL_WAIT = 5.0

_PAGE = os.sysconf("SC_PAGE_SIZE")
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Usage:
    processes: frozenset[int]
    memory: int
    """Resident bytes, all processes together."""


@dataclass(frozen=True, slots=True)
class _Process:
    parent: int
    group: int
    memory: int


def processes_of(root: int, mark: str) -> Usage:
    """The command `root`, its descendants, its process group, and marked processes that were orphaned."""
    table = _table()
    members = {pid for pid, process in table.items() if pid == root or process.group == root}
    grew = True
    while grew:
        more = {pid for pid, process in table.items() if process.parent in members} - members
        members |= more
        grew = bool(more)
    # Only orphans can be hidden from the two rules above: their parent is init, or whoever adopts orphans.
    adopters = {1, os.getpid()}
    members |= {pid for pid, p in table.items() if p.parent in adopters and pid not in members and _marked(pid, mark)}
    return Usage(frozenset(members), sum(table[pid].memory for pid in members if pid in table))


def kill(root: int, mark: str) -> None:
    """End a command with everything it started, also what is forked meanwhile; returns when it is gone.

    A process the kernel cannot end (waiting for a device) is given up after KILL_WAIT seconds.
    """
    deadline = time.monotonic() + KILL_WAIT
    while True:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(root, signal.SIGKILL)
        left = processes_of(root, mark).processes - {root}
        for pid in left:
            _kill(pid)
        if not left or time.monotonic() > deadline:
            return
        time.sleep(0.005)


def kill_leftovers(mark_prefix: str) -> int:
    """End marked processes whose builder is gone (`<prefix>:<pid>:<start>:…`); how many there were."""
    count = 0
    for pid in _table():
        mark = _mark(pid)
        if mark is None or not mark.startswith(mark_prefix + ":"):
            continue
        builder, start = mark[len(mark_prefix) + 1 :].split(":")[:2]
        if builder.isdigit() and started(int(builder)) != start:
            _kill(pid)
            count += 1
    return count


def started(pid: int) -> str:
    """When a process started, in clock ticks: tells it from a later one with the same id. Empty where there is none."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def disk(folders: Iterable[Path]) -> int:
    """Bytes that files below the folders occupy; links are not followed."""
    total = 0
    waiting = [str(folder) for folder in folders]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
        except OSError:  # removed while it was looked at
            continue
    return total


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _table() -> dict[int, _Process]:
    table = {}
    try:
        names = [name for name in os.listdir(_PROC) if name.isdigit()]
    except OSError:
        return {}
    for name in names:
        try:
            fields = (_PROC / name / "stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue
        if fields[0] != b"Z":
            table[int(name)] = _Process(int(fields[1]), int(fields[2]), int(fields[21]) * _PAGE)
    return table


def _mark(pid: int) -> str | None:
    try:
        environ = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return None
    key = MARK.encode() + b"="
    return next(
        (part[len(key) :].decode("ascii", "replace") for part in environ.split(b"\0") if part.startswith(key)), None
    )


def _marked(pid: int, mark: str) -> bool:
    return _mark(pid) == mark
