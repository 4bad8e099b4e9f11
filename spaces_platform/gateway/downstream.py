"""A visitor's connection: reads requests one after the other, has each dispatched, and ends in order.

Owns: whose turn it is (phases.py), what is read and when, answers of the gateway's own, back-pressure, what happens at
a deadline (pace.py), the end of the connection. Does not own: what a request means (dispatch.py), its exchange with an
app (relay.py), an open WebSocket (tunnel.py).
Invariants: one exchange at a time; what arrives meanwhile is kept up to a limit and then not read; nothing is written
to a visitor that belongs to another exchange (`exchange` changes with every one).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from spaces_platform.gateway.answers import own_answer
from spaces_platform.gateway.grammar import Refused, Request, parse_request
from spaces_platform.gateway.pace import Pace
from spaces_platform.gateway.phases import ANSWER, BODY, CLOSED, LINGER, READ, STREAM, TUNNEL, WAIT
from spaces_platform.gateway.relay import Relay

if TYPE_CHECKING:
    from spaces_platform.gateway.routes import RouteEntry
    from spaces_platform.gateway.server import Gateway
    from spaces_platform.gateway.tunnel import Tunnel
    from spaces_platform.gateway.upstream import Upstream

_BUFFER_MAX = 65_536
"""Bytes kept of a visitor whose turn has not come (pipelined requests, the start of a held request's body)."""
FORGET_COOKIES = (b"Clear-Site-Data", b'"cookies"')
"""A page can set so many cookies for all names of its site that no request fits any more, not even to the platform, and
none is left that could remove them. Browsers do, told by this (W3C, Clear Site Data; over https and for localhost)."""
_AGAIN = b"If cookies were the cause, your browser was told to remove them: load the page again.\n"
_LINGER_SECONDS = 3.0
_LINGER_BYTES = 64 << 20
_BUFFER_FULL, _APP_SLOW = 1, 2
_FULL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Client(asyncio.Protocol):
    """One visitor's connection."""

    __slots__ = (
        "_gateway", "_left", "_partial", "_pumping", "buffer", "entry", "exchange", "keep", "not_reading", "pace",
        "peer", "phase", "relay", "request", "slow", "transport", "tunnel", "up",
    )  # fmt: skip

    transport: asyncio.Transport

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.peer = b""
        self.phase = READ
        self.buffer = b""
        self.exchange = 0
        self.request: Request | None = None
        self.entry: RouteEntry | None = None
        self.up: Upstream | None = None
        """The connection whose bytes come to this visitor now."""
        self.relay = Relay(gateway, self)
        self.tunnel: Tunnel | None = None
        self.keep = True
        """Whether the connection may stay after the current answer."""
        self.slow = False
        """True while the visitor takes less than is written."""
        self.not_reading = 0
        """Why nothing is read from the visitor."""
        self.pace = Pace()
        self._left = 0
        self._partial = False
        self._pumping = False

    # --- transport callbacks
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        name = transport.get_extra_info("peername")
        self.peer = str(name[0]).encode("ascii") if isinstance(name, tuple) else b"127.0.0.1"
        self.pace.until = self._gateway.now() + self._gateway.config.idle_seconds
        if not self._gateway.admit(self):
            self.phase = CLOSED
            self.transport.write(_FULL)
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        phase = self.phase
        if phase == READ:
            if self.buffer:
                self._read(self.buffer + data)
            elif not self.relay.proxy_again(data):
                self._read(data)
        elif phase == BODY:
            self.pace.moved += len(data)
            self.relay.upload(data)
        elif phase == TUNNEL and self.tunnel is not None:
            self.pace.moved += 1
            self.tunnel.from_visitor(data)
        elif phase == LINGER:
            self._left -= len(data)
            if self._left < 0:
                self.transport.abort()
            elif self.tunnel is not None and self.tunnel.is_answered(data):
                self.transport.close()
        elif phase != CLOSED:
            self.buffer += data
            if len(self.buffer) > _BUFFER_MAX:
                self._stop_reading(_BUFFER_FULL)

    def eof_received(self) -> bool:
        """A visitor that cannot ask again may close its half early and still gets its answer; others have left."""
        return self.phase in (WAIT, ANSWER) and self.request is not None and not self.request.keep_alive

    def connection_lost(self, error: Exception | None) -> None:
        self.phase = CLOSED
        self.exchange += 1
        self.buffer = b""
        self._gateway.leave(self)
        tunnel, self.tunnel = self.tunnel, None
        if tunnel is not None:
            tunnel.visitor_left()
        self.relay.forget()

    def pause_writing(self) -> None:
        self.slow = True
        self.pace.until = self._gateway.now() + self._gateway.config.write_stall_seconds
        self.pace.mark = self.transport.get_write_buffer_size()
        if self.up is not None and not self.up.transport.is_closing():
            self.up.transport.pause_reading()

    def resume_writing(self) -> None:
        self.slow = False
        if self.up is not None and not self.up.transport.is_closing():
            self.up.transport.resume_reading()
        elif self.phase == READ:
            self.pace.until = 0.0
            self._pump()

    def _stop_reading(self, why: int) -> None:
        if not self.not_reading and not self.transport.is_closing():
            self.transport.pause_reading()
        self.not_reading |= why

    def _go_on_reading(self, why: int) -> None:
        if self.not_reading & why:
            self.not_reading &= ~why
            if not self.not_reading and not self.transport.is_closing():
                self.transport.resume_reading()

    def app_is_slow(self, slow: bool) -> None:
        """The app takes less of the request's body (or of a WebSocket) than comes; or it has caught up."""
        if slow:
            self._stop_reading(_APP_SLOW)
        else:
            self._go_on_reading(_APP_SLOW)
            self.pace.mark = self.pace.moved
            self.pace.until = 0.0

    def app_has_room(self) -> None:
        """The app takes nothing of this visitor any longer: it keeps nobody from reading on."""
        self._go_on_reading(_APP_SLOW)

    def turn_has_come(self) -> None:
        """What was kept has been used."""
        self._go_on_reading(_BUFFER_FULL)

    # --- requests
    def _read(self, data: bytes) -> None:
        """Take requests off `data` as long as each is answered at once."""
        gateway = self._gateway
        config = gateway.config
        self._pumping = True
        try:
            while True:
                try:
                    request = parse_request(data, gateway.head_limits)
                except Refused as error:
                    self.buffer = b""
                    self.refuse(error.status, error.reason)
                    return
                if request is None:
                    self.buffer = data
                    if not self._partial:
                        self._partial = True
                        self.pace.until = gateway.now() + config.head_seconds
                    return
                self._partial = False
                self.buffer = data = data[request.size :] if len(data) > request.size else b""
                self.begin(request)
                gateway.dispatch.handle(self, request)
                if self.phase != READ or self.slow:
                    return
                data = self.buffer
                if not data:
                    return
        finally:
            self._pumping = False

    def begin(self, request: Request) -> None:
        """The turn of this request has come."""
        self.exchange += 1
        self.phase = WAIT
        self.request = request
        self.keep = request.keep_alive

    def _pump(self) -> None:
        """Go on with requests that arrived during the last exchange."""
        if self._pumping or self.slow:
            return
        self._go_on_reading(_BUFFER_FULL)
        if self.buffer:
            data, self.buffer = self.buffer, b""
            self._read(data)

    def next(self) -> None:
        """The exchange is over: close, or turn to the next request."""
        self.request = None
        if not self.keep or self._gateway.draining:
            self.finish()
            return
        self.phase = READ
        self.exchange += 1
        self.pace.until = 0.0
        if self.buffer or self.not_reading:
            self._pump()

    def finish(self) -> None:
        """Close once everything is written; first let a visitor that is still sending see the answer (RFC 9112 9.6)."""
        if self.phase == CLOSED or self.transport.is_closing():
            return
        if self.phase != BODY and not self.buffer:
            self.hang_up()
            return
        self.exchange += 1
        self.buffer = b""
        self.linger()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def linger(self) -> None:
        """Our side is over: read on for a moment, and keep nothing."""
        self.phase = LINGER
        self._left = _LINGER_BYTES
        self.pace.until = self._gateway.now() + _LINGER_SECONDS
        self._go_on_reading(_BUFFER_FULL | _APP_SLOW)

    def hang_up(self) -> None:
        """Close once everything is written."""
        self.phase = CLOSED
        self.transport.close()

    def refuse(self, status: int, reason: str) -> None:
        """Answer what is not well-formed, and close."""
        self._gateway.refused += 1
        self.keep = False
        self.request = None
        if status == 431:
            self.answer(status, [FORGET_COOKIES], reason.encode() + b"\n" + _AGAIN)
        else:
            self.answer(status, [], reason.encode() + b"\n")

    def answer(
        self, status: int, fields: list[tuple[bytes, bytes]], body: bytes, kind: bytes = b"text/plain; charset=utf-8"
    ) -> None:
        """A whole answer of the gateway's own; ends the exchange."""
        request = self.request
        if request is None or request.length:
            self.keep = False
        keep, modern = self.keep and not self._gateway.draining, request is None or request.one_dot_one
        bare = request is not None and request.method == b"HEAD"
        self.transport.write(own_answer(status, fields, body, kind, keep=keep, one_dot_one=modern, head_only=bare))
        if request is None or request.length:
            self.phase = BODY  # unread input may follow
        self.next()

    def stream(self, head: bytes) -> None:
        """Begin an endless answer of the gateway's own; `push` adds to it."""
        self.phase = STREAM
        self.keep = False
        self.transport.write(head)

    def push(self, data: bytes) -> None:
        if self.phase == STREAM and not self.slow:
            self.transport.write(data)

    def splice(self, tunnel: Tunnel, rest: bytes) -> None:
        """The exchange has become a WebSocket; `rest` of the app's bytes came with its agreement."""
        self.phase = TUNNEL
        self.tunnel = tunnel
        self.request = None
        if rest:
            tunnel.from_app(rest)
        data, self.buffer = self.buffer, b""
        if data:
            tunnel.from_visitor(data)
        self._go_on_reading(_BUFFER_FULL)

    # --- deadlines
    def check(self, now: float) -> None:
        """Called every second: cut what takes too long."""
        phase, pace, config = self.phase, self.pace, self._gateway.config
        if phase in (READ, LINGER):
            if pace.passed(now, config.idle_seconds):
                self._idle_for_too_long()
        elif self.slow:
            if pace.is_stalled(now, self.transport.get_write_buffer_size(), config.write_stall_seconds):
                self.transport.abort()
        elif phase == BODY and not self.not_reading:
            if pace.is_too_slow(now, config.body_min_rate, config.body_window):
                self.relay.break_off(Refused(408, "The request's body comes too slowly."))
        elif phase in (ANSWER, TUNNEL, BODY) and pace.is_silent(now, config.response_seconds):
            self.relay.overdue()

    def _idle_for_too_long(self) -> None:
        if self._partial and self.phase == READ:
            self.buffer = b""
            self.refuse(408, "The request's headers took too long.")
        elif self.phase == LINGER:
            self.transport.abort()
        else:
            self.transport.close()
