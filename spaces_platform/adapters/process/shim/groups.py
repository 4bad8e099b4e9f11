"""Effects on control groups and processes that both the shim and the orchestrator need. Absent ones are success."""

from __future__ import annotations

import os
import time

SIGKILL = 9


def members(path: str) -> list[int]:
    """Processes in one group; none of a group that is gone."""
    try:
        with open(f"{path}/cgroup.procs") as file:
            return [int(line) for line in file]
    except OSError:  # gone before the open (ENOENT) or between it and the read (ENODEV)
        return []


def kill(pid: int) -> None:
    """SIGKILL."""
    try:
        os.kill(pid, SIGKILL)
    except ProcessLookupError:
        return


def remove(path: str, seconds: float = 0.5) -> bool:
    """Remove an empty group; whether it is gone. The kernel needs a moment after the group's last process."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            os.rmdir(path)
            return True
        except FileNotFoundError:
            return True
        except OSError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.002)
