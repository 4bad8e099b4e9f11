"""Requests and pages that wait for an app, and the wakes they cause.

Owns: the bounded hold queues, the open live-progress streams, one wake per Space however many wait. Does not own: the
order in which the control plane starts apps.
Invariants: no more than `hold_per_space` requests of a Space and `hold_total` in all are held; between two wakes of
one Space lie `wake_repeat_seconds`; who waits is answered at the latest after `hold_seconds`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from spaces_platform.gateway.config import GatewayConfig
from spaces_platform.gateway.routes import RouteEntry

if TYPE_CHECKING:
    from spaces_platform.gateway.downstream import Client

_COMMENT_SECONDS = 15.0
_EVENT_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\nX-Accel-Buffering: no\r\n"
    b"Connection: close\r\n\r\nretry: 2000\n\n"
)


def retry_after(seconds: int = 0) -> int:
    """Seconds for a Retry-After field: spread, so that the refused do not all return at once."""
    return max(1, seconds) + random.randint(0, 4 + seconds // 2)


class Waiting:
    """All who wait."""

    def __init__(self, config: GatewayConfig, now: Callable[[], float], send_wake: Callable[[int], None]) -> None:
        self._config = config
        self._now = now
        self._send_wake = send_wake
        self._held: dict[int, dict[Client, float]] = {}
        self._watching: dict[int, dict[Client, None]] = {}
        self._woken: dict[int, float] = {}
        self._commented = 0.0
        self.held = 0
        self.watching = 0
        self.wakes = 0
        self.turned_away = 0

    def wake(self, entry: RouteEntry) -> None:
        """Ask for a Space to be woken, unless that was asked a moment ago."""
        if not entry.wakeable or entry.endpoint is not None:
            return
        now = self._now()
        if now - self._woken.get(entry.space, -1e9) >= self._config.wake_repeat_seconds:
            self._woken[entry.space] = now
            self.wakes += 1
            self._send_wake(entry.space)

    def hold(self, client: Client, entry: RouteEntry) -> bool:
        """Keep a request until the app answers; False when the queue is full."""
        queue = self._held.setdefault(entry.space, {})
        if len(queue) >= self._config.hold_per_space or self.held >= self._config.hold_total:
            self.turned_away += 1
            return False
        queue[client] = self._now() + self._config.hold_seconds
        self.held += 1
        self.wake(entry)
        return True

    def watch(self, client: Client, entry: RouteEntry) -> bool:
        """Open a live-progress stream; False when there are too many."""
        if self.watching >= self._config.events_total:
            return False
        self._watching.setdefault(entry.space, {})[client] = None
        self.watching += 1
        client.stream(_EVENT_HEAD + event(entry))
        return True

    def leave(self, client: Client, space: int) -> None:
        """A visitor has gone."""
        if self._held.get(space, {}).pop(client, None) is not None:
            self.held -= 1
        watching = self._watching.get(space, {})
        if client in watching:
            del watching[client]
            self.watching -= 1
        for queues in (self._held, self._watching):
            if space in queues and not queues[space]:
                del queues[space]

    def changed(self, space: int, entry: RouteEntry | None) -> list[Client]:
        """Tell the watching; who was held and must now be looked at again."""
        if entry is None or entry.endpoint is not None:
            self._woken.pop(space, None)
        for client in list(self._watching.get(space, ())):
            if entry is None:
                client.finish()
            else:
                client.push(event(entry))
        if entry is not None and entry.endpoint is None and entry.may_answer:
            return []
        queue = self._held.pop(space, {})
        self.held -= len(queue)
        return list(queue)

    def release_all(self) -> list[Client]:
        """The gateway is going: everybody who was held; streams are closed."""
        for watching in self._watching.values():
            for client in list(watching):
                client.finish()
        clients = [client for queue in self._held.values() for client in queue]
        self._held.clear()
        self.held = 0
        return clients

    def tick(self, find: Callable[[int], RouteEntry | None]) -> list[Client]:
        """Every second: wake again where visitors still wait; who has waited for too long."""
        now = self._now()
        late: list[Client] = []
        for space in list(self._held):
            queue = self._held[space]
            gone = [client for client, deadline in queue.items() if deadline <= now]
            for client in gone:
                del queue[client]
            self.held -= len(gone)
            late += gone
            if not queue:
                del self._held[space]
        for space in {*self._held, *self._watching}:
            entry = find(space)
            if entry is not None:
                self.wake(entry)
        for space in [s for s, at in self._woken.items() if now - at > 60.0]:
            del self._woken[space]
        if now - self._commented > _COMMENT_SECONDS:
            self._commented = now
            for clients in self._watching.values():
                for client in clients:
                    client.push(b": still here\n\n")
        return late


def event(entry: RouteEntry) -> bytes:
    """One entry as a server-sent event; `ready` once it can be asked."""
    progress = entry.progress
    data = {
        "stage": entry.stage,
        "message": entry.message,
        "progress": {"phase": progress.phase, "text": progress.text, "since": progress.since} if progress else None,
    }
    name = b"ready" if entry.endpoint is not None else b"stage"
    return b"event: %b\ndata: %b\n\n" % (name, json.dumps(data).encode())
