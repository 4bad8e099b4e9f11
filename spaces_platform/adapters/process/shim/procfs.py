"""Facts about processes from /proc. Owns no state; a process that ends while it is looked at is simply absent."""

from __future__ import annotations

import os

PAGE = os.sysconf("SC_PAGE_SIZE")


def _fields(pid: int) -> list[bytes]:
    """Fields of /proc/PID/stat from the third (state) on; empty for a process that is gone. See proc(5)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text[text.rindex(b")") + 2 :].split()


def start_time(pid: int) -> int | None:
    """Start of a live process in clock ticks since boot; with the pid it names one process for ever.

    None for one that is gone or a zombie.
    """
    fields = _fields(pid)
    if not fields or fields[0] in (b"Z", b"X"):
        return None
    return int(fields[19])


def descendants(root: int) -> list[int]:
    """All processes below `root`, parents first, `root` itself left out; zombies are left out too."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        fields = _fields(int(name))
        if fields and fields[0] not in (b"Z", b"X"):
            children.setdefault(int(fields[1]), []).append(int(name))
    found: list[int] = []
    queue = [root]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def children(pid: int) -> list[int]:
    """Direct children, zombies left out."""
    return [p for p in descendants(pid) if (f := _fields(p)) and int(f[1]) == pid]


def memory(pids: list[int], limit: int) -> int:
    """Bytes the processes use together: an upper bound while that is below `limit`, else the exact share (PSS).

    The resident sizes are cheap to read but count shared pages once per process; the exact figure costs a walk of
    the page tables, so it is read only where it decides something.
    """
    resident = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/statm", "rb") as file:
                resident += int(file.read().split()[1]) * PAGE
        except (FileNotFoundError, ProcessLookupError):
            continue
    if resident <= limit:
        return resident
    exact = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
                exact += sum(int(line.split()[1]) << 10 for line in file if line.startswith(b"Pss:"))
        except (FileNotFoundError, ProcessLookupError):
            continue
        except PermissionError:
            return resident
    return exact


def threads(pids: list[int]) -> int:
    """Threads of all the processes together, as the pids controller counts them."""
    return sum(int(fields[17]) for pid in pids if (fields := _fields(pid)))
