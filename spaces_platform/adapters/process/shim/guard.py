"""Limits that no cgroup enforces, watched by looking. Owns what is measured and how often; never kills.

Invariant: a look costs little next to the time until the next one, whatever the app does.
"""

from __future__ import annotations

import os
import time

from . import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

INTERVAL = 0.5
DISK_INTERVAL = 2.0
MAX_FILES = 500_000


class Guard:
    """Checks one app against its limits: {"memory", "processes", "disk"}, 0 for those enforced elsewhere."""

    def __init__(self, limits: dict[str, int], directories: list[str], tree: Callable[[], list[int]]) -> None:
        self.memory, self.processes, self.disk = limits["memory"], limits["processes"], limits["disk"]
        self.directories, self.tree = directories, tree
        self.interval = INTERVAL if self.memory or self.processes else DISK_INTERVAL
        self.next = time.monotonic() + self.interval
        self.next_disk = time.monotonic() + DISK_INTERVAL

    def exceeded(self, now: float) -> tuple[str, str] | None:
        """(kind, words) of the limit that is broken; looks only when it is time to."""
        if now < self.next:
            return None
        found = self._look(now)
        self.next = time.monotonic() + max(self.interval, 20 * (time.monotonic() - now))
        return found

    def _look(self, now: float) -> tuple[str, str] | None:
        if self.memory or self.processes:
            pids = self.tree()
            if self.memory and (used := procfs.memory(pids, self.memory)) > self.memory:
                return "memory", f"out of memory: {used >> 20} MiB used, {self.memory >> 20} MiB allowed"
            if self.processes and (count := procfs.threads(pids)) > self.processes:
                return "processes", f"too many processes: {count}, {self.processes} allowed"
        if self.disk and now >= self.next_disk:
            written, files = _written(self.directories, self.disk)
            self.next_disk = time.monotonic() + max(DISK_INTERVAL, 50 * (time.monotonic() - now))
            if written > self.disk:
                return "disk", f"disk limit: {written >> 20} MiB written, {self.disk >> 20} MiB allowed"
            if files > MAX_FILES:
                return "disk", f"disk limit: more than {MAX_FILES} files written"
        return None


def _written(directories: list[str], enough: int) -> tuple[int, int]:
    """(bytes on disk, files) below the directories, never through a link; stops once either is too many."""
    total = files = 0
    stack = list(directories)
    while stack and total <= enough and files <= MAX_FILES:
        try:
            with os.scandir(stack.pop()) as entries:
                for entry in entries:
                    files += 1
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if files > MAX_FILES:
                        break
        except OSError:
            continue  # the app removes, locks or nests its own files meanwhile
    return total, files
