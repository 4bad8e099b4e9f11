"""How builds share the processor with apps: they have what nobody else wants, but are not starved.

Owns: when builds stand back. Does not own: the files of a control group (`groups`), how much builds have at most
(`limits`). Invariant: builds that want the processor and get next to nothing are given a weight within two INTERVALs.

A group that is idle gives way at once to everything else that wakes: with a weight alone, however small, an app or the
gateway waits for the end of a build's slice of time first. In return it may get nothing at all while apps keep all
processors busy. https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.idle)
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from builders.containers.groups import Groups

INTERVAL = 1.0
PAUSE = 5 * INTERVAL
"""Seconds since the last look after which it says nothing of now: no step of this build ran meanwhile."""
STARVED = 0.25
"""Processors that all builds together had in the last INTERVAL, below which they were starved if they wanted more."""
SHARES = 128
"""Weight of starved builds against the 1024 of all apps of a platform, and of each of its processes."""


def are_starved(processors: float, wanted: bool) -> bool:
    """Pure."""
    return wanted and processors < STARVED


@dataclass(slots=True)
class Turns:
    """Of all builds of an engine, as one of them sees them. Several may look at once: they see the same."""

    all_builds: Groups
    _began: float = field(default_factory=time.monotonic)
    _seconds: float | None = None

    def check(self, steps: Iterable[Groups]) -> None:
        """Look, and act where it changes something. `steps`: the groups of one build. Raises OSError."""
        passed = time.monotonic() - self._began
        if self._seconds is not None and passed < INTERVAL:
            return
        seconds = self.all_builds.processor_seconds()
        if self._seconds is not None and passed < PAUSE:
            wanted = any(step.is_runnable() for step in steps)
            self.all_builds.stand_back(not are_starved((seconds - self._seconds) / passed, wanted), SHARES)
        self._began, self._seconds = time.monotonic(), seconds
