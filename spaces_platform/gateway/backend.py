"""One endpoint of one deployment: its kept-alive connections, and its traffic.

Owns: connecting, pooling, counting. Does not own: what passes on a connection (upstream.py), which endpoint is right
(dispatch.py), nor telling the control plane (activity.py, link.py).
Invariant: a connection belongs to one Backend for its whole life, and is in its pool only between two exchanges.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from spaces_platform.gateway.config import split_address
from spaces_platform.gateway.upstream import IDLE, Answers, Upstream

if TYPE_CHECKING:
    from spaces_platform.gateway.activity import Activity
    from spaces_platform.gateway.config import GatewayConfig
    from spaces_platform.gateway.relay import Relay
    from spaces_platform.gateway.routes import RouteEntry
    from spaces_platform.gateway.tunnel import Tunnel

_SURE_SECONDS = 1.0
"""A pooled connection this fresh has not met its server's keep-alive limit (uvicorn's is 5 s, Node's too)."""


class Backend:
    """One endpoint of one deployment (`space` 0: the control plane), with its connections and its traffic."""

    __slots__ = (
        "_activity",
        "_address",
        "_answers",
        "_answers_entry",
        "_connect_seconds",
        "_idle_max",
        "_loop",
        "_tasks",
        "active",
        "answer_head_max",
        "attached",
        "connections",
        "deployment",
        "endpoint",
        "errors",
        "idle",
        "last_active",
        "quiet",
        "requests",
        "retired",
        "sockets",
        "sockets_max",
        "space",
    )

    def __init__(
        self,
        space: int,
        deployment: int | None,
        endpoint: str,
        config: GatewayConfig,
        activity: Activity,
    ) -> None:
        self.space = space
        self.deployment = deployment
        self.endpoint = endpoint
        self.idle: list[Upstream] = []
        self.connections = 0
        self.active = 0
        """Exchanges that count as use."""
        self.attached = 0
        """Open heartbeats and WebSockets."""
        self.sockets_max = config.websockets_per_space
        self.sockets: set[Tunnel] = set()
        """Its open WebSockets."""
        self.answer_head_max = config.max_head_bytes * 2
        """Bytes that the head of an answer may have."""
        self.last_active = 0.0
        self.requests = 0
        self.errors = 0
        self.retired = False
        """True once no route leads here: running exchanges end, new ones never come."""
        self.quiet: Callable[[Backend], None] | None = None
        """Called when the last active exchange of a retired one has ended."""
        self._activity = activity
        self._answers: Answers = {}
        self._answers_entry: RouteEntry | None = None
        self._address = split_address(endpoint)
        self._connect_seconds = config.connect_seconds
        self._idle_max = config.upstream_idle_max
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    def answers_for(self, entry: RouteEntry) -> Answers:
        """The heads of answers that were rewritten for visitors of this entry."""
        if self._answers_entry is not entry:
            self._answers, self._answers_entry = {}, entry
        return self._answers

    @property
    def is_full(self) -> bool:
        """Whether it has all the WebSockets that it may have."""
        return len(self.sockets) >= self.sockets_max

    # --- traffic
    def began(self, attached: bool) -> None:
        """An exchange with it begins. `attached`: a heartbeat, which is no use of the app."""
        if self.space:
            if attached:
                self.attached += 1
            else:
                self.active += 1
            self.requests += 1
            self._activity.touched.add(self)

    def ended(self, attached: bool) -> None:
        """The end of what `began`, however it came."""
        if self.space:
            if attached:
                self.attached -= 1
            else:
                self.active -= 1
                self.last_active = time.time()
            self._activity.touched.add(self)
            if self.retired and not self.active and self.quiet is not None:
                self.quiet(self)

    def opened(self, tunnel: Tunnel, *, attached: bool) -> None:
        """An exchange that `began` has become a WebSocket."""
        if self.space:
            self.attached += 1
            self.sockets.add(tunnel)
        self.ended(attached)

    def closed(self, tunnel: Tunnel) -> None:
        """The end of what was `opened`."""
        self.sockets.discard(tunnel)
        self.ended(True)

    def used(self) -> None:
        """Bytes passed that count as use."""
        if self.space:
            self.last_active = time.time()
            self._activity.touched.add(self)

    # --- connections
    def take(self, sure: bool) -> Upstream | None:
        """A kept-alive connection. `sure`: only one that cannot have been closed meanwhile."""
        idle = self.idle
        while idle:
            up = idle.pop()
            if not up.transport.is_closing() and up.state == IDLE:
                if sure and self._loop.time() - up.idle_since > _SURE_SECONDS:
                    idle.append(up)
                    return None
                return up
        return None

    def connect(self, relay: Relay) -> None:
        """Open a connection and give it to `relay`, or tell it why not; into the pool if its exchange is over then."""
        task = self._loop.create_task(self._connect(relay, relay.client.exchange))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, relay: Relay, exchange: int) -> None:
        kind, host, port = self._address
        try:
            async with asyncio.timeout(self._connect_seconds):
                if kind == "unix":
                    _, up = await self._loop.create_unix_connection(lambda: Upstream(self), host)
                else:
                    _, up = await self._loop.create_connection(lambda: Upstream(self), host, port)
        except (OSError, TimeoutError) as error:
            if relay.client.exchange == exchange:
                relay.connect_failed(error)
            return
        if relay.client.exchange == exchange:
            relay.connected(up)
        else:
            self.give_back(up)

    def give_back(self, up: Upstream) -> None:
        if self.retired or len(self.idle) >= self._idle_max or up.transport.is_closing():
            up.close()
        else:
            up.idle_since = self._loop.time()
            self.idle.append(up)

    def retire(self) -> None:
        """No route leads here any longer."""
        self.retired = True
        for up in self.idle:
            up.close()
        self.idle.clear()

    def expire(self, before: float) -> None:
        """Close connections that have been idle since `before`."""
        if self.idle and self.idle[0].idle_since < before:
            keep = [up for up in self.idle if up.idle_since >= before]
            for up in self.idle:
                if up.idle_since < before:
                    up.close()
            self.idle = keep
