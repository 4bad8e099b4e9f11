"""Whether a connection takes too long: one deadline, and what has moved since it was set. Pure; times are the caller's.

Owns: the arithmetic of every limit in time. Does not own: which limit holds now and what happens then (downstream.py),
nor the clock.
"""

from __future__ import annotations


class Pace:
    """Of one connection. All seconds are of the same monotonic clock."""

    __slots__ = ("mark", "moved", "until")

    def __init__(self) -> None:
        self.until = 0.0
        """The deadline; 0 sets it anew at the next look."""
        self.moved = 0
        """Bytes, or pieces, that have passed so far."""
        self.mark = 0
        """What `moved` (or the unsent rest) was when the deadline was set."""

    def passed(self, now: float, seconds: float) -> bool:
        """Nothing was to take longer than `seconds`."""
        if not self.until:
            self.until = now + seconds
        return now > self.until

    def is_stalled(self, now: float, unsent: int, seconds: float) -> bool:
        """The unsent rest has not become smaller for `seconds`."""
        if unsent < self.mark:
            self.mark = unsent
            self.until = now + seconds
        return now > self.until

    def is_silent(self, now: float, seconds: float) -> bool:
        """Nothing has passed for `seconds`."""
        if self.moved != self.mark or not self.until:
            self.mark = self.moved
            self.until = now + seconds
        return now > self.until

    def is_too_slow(self, now: float, rate: int, window: float) -> bool:
        """Fewer than `rate` bytes per second have passed in the last whole `window` of seconds."""
        if not self.until:
            self.until = now + window
        if now <= self.until:
            return False
        slow = self.moved - self.mark < rate * window
        self.mark = self.moved
        self.until = now + window
        return slow
