"""What the gateways report: requests in flight and when an app was last active. In memory; a hint with an age.

A deployment may be stopped only when every gateway that is alive has applied the route change that took it out, has no
request left on it, and has told each of its WebSockets to come again. While no gateway reports, nothing is known:
nothing is put to sleep on a guess.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

STALE_SECONDS = 15.0
"""A gateway that has not reported for so long is taken for gone (it reports at least every 5 s)."""
SAVE_SECONDS = 10.0
"""By how much the last activity in the database may be older than the one known here. It says when an app sleeps, and
is read from there only after a start of the control plane."""
COUNTERS = 20_000
"""Deployments per gateway whose request counters are remembered."""


@dataclass(frozen=True, slots=True)
class SpaceTraffic:
    """One line of a gateway's report."""

    space: int
    deployment: int | None
    in_flight: int
    attached: int = 0
    sockets: int = 0
    """Of the attached: open WebSockets. The gateway itself closes those of a replaced deployment, within seconds."""
    last_active: float = 0.0
    requests: int = 0
    """Since this gateway first routed to the deployment; falls when the gateway starts anew."""
    errors: int = 0


@dataclass(slots=True)
class _Gateway:
    applied: int = 0
    seen: float = 0.0
    reported: bool = False
    rows: dict[tuple[int, int | None], SpaceTraffic] = field(default_factory=dict)
    counted: OrderedDict[tuple[int, int | None], int] = field(default_factory=OrderedDict)


class Traffic:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._gateways: dict[str, _Gateway] = {}
        self._active: dict[int, float] = {}
        self._unsaved: dict[int, float] = {}
        self._saved: dict[int, float] = {}
        self._draining: dict[tuple[int, int], int] = {}
        self.requests_total = 0

    def report(
        self, gateway: str, applied: int, rows: Sequence[SpaceTraffic], now: float, *, full: bool = False
    ) -> set[int]:
        """Take in a report. Returns the Spaces of which a draining deployment has become drained by it.

        `full`: it names everything that is in flight, so what an earlier process of this gateway said is void.
        """
        with self._lock:
            g = self._gateways.setdefault(gateway, _Gateway())
            g.applied, g.seen, g.reported = max(g.applied, applied), now, True
            if full:
                g.rows.clear()
            for row in rows:
                key = (row.space, row.deployment)
                if row.in_flight or row.attached:
                    g.rows[key] = row
                else:
                    g.rows.pop(key, None)
                self.requests_total += self._new_requests(g, key, row.requests)
                # A gateway's clock may differ: activity is never in our future.
                active = now if row.in_flight else min(row.last_active, now)
                if active > self._active.get(row.space, 0.0):
                    self._active[row.space] = active
                    if active - self._saved.get(row.space, 0.0) >= SAVE_SECONDS:
                        self._unsaved[row.space] = active
            drained = [key for key, version in self._draining.items() if self._is_drained(*key, version, now)]
            for key in drained:
                del self._draining[key]
            return {space for space, _ in drained}

    def _new_requests(self, g: _Gateway, key: tuple[int, int | None], count: int) -> int:
        before = g.counted.pop(key, 0)
        g.counted[key] = count
        if len(g.counted) > COUNTERS:
            g.counted.popitem(last=False)
        return count - before if count >= before else count

    def seen(self, gateway: str, now: float) -> None:
        """The gateway's route stream is open: it is alive, whatever it has to report."""
        with self._lock:
            self._gateways.setdefault(gateway, _Gateway()).seen = now

    def is_known(self, now: float) -> bool:
        """Whether some live gateway has said what is in flight: being connected says nothing about that yet."""
        with self._lock:
            return any(g.reported and now - g.seen < STALE_SECONDS for g in self._gateways.values())

    def is_anybody_there(self, now: float) -> bool:
        """Whether some gateway is alive, whatever it has said."""
        with self._lock:
            return any(now - g.seen < STALE_SECONDS for g in self._gateways.values())

    def is_applied(self, version: int, now: float) -> bool:
        """Whether there is a live gateway, and every one of them routes as of route version `version` or later."""
        with self._lock:
            alive = [g for g in self._gateways.values() if now - g.seen < STALE_SECONDS]
            return bool(alive) and all(g.applied >= version for g in alive)

    def in_flight(self, space: int) -> int:
        with self._lock:
            return sum(r.in_flight for g in self._gateways.values() for r in g.rows.values() if r.space == space)

    def attached(self, space: int) -> int:
        with self._lock:
            return sum(r.attached for g in self._gateways.values() for r in g.rows.values() if r.space == space)

    def last_active(self, space: int) -> float:
        with self._lock:
            return self._active.get(space, 0.0)

    def is_drained(self, space: int, deployment: int, version: int, now: float) -> bool:
        """Whether every live gateway applied route version `version` and has no request and no WebSocket left on it.

        While not, the next report that makes it so says it (`report`), so that a drain ends promptly.
        """
        with self._lock:
            drained = self._is_drained(space, deployment, version, now)
            if drained:
                self._draining.pop((space, deployment), None)
            else:
                self._draining[space, deployment] = version
            return drained

    def forget(self, space: int, deployment: int) -> None:
        """The deployment is stopped: nobody waits for its drain."""
        with self._lock:
            self._draining.pop((space, deployment), None)

    def _is_drained(self, space: int, deployment: int, version: int, now: float) -> bool:
        alive = [g for g in self._gateways.values() if now - g.seen < STALE_SECONDS]
        for g in alive:
            row = g.rows.get((space, deployment))
            if g.applied < version or (row is not None and (row.in_flight or row.sockets)):
                return False
        return bool(alive)

    def take_unsaved(self) -> Mapping[int, float]:
        """Last activity by Space that is due to be written to the database."""
        with self._lock:
            unsaved, self._unsaved = self._unsaved, {}
            return unsaved

    def saved(self, activity: Mapping[int, float]) -> None:
        """It has been written. What could not be is due again with the next report."""
        with self._lock:
            self._saved |= activity
