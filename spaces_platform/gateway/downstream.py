"""A visitor's connection: reads requests, sends each one where dispatch.py says, writes the answers back in order.

Owns: one connection's phases, back-pressure between the two sides, deadlines, the end of a connection. Does not own:
what a request means (dispatch.py), how an app's answer is read (upstream.py).
Invariants: one exchange at a time; what arrives meanwhile is kept up to a limit and then not read; nothing is written
to a visitor that belongs to another exchange (`exchange` changes with every one).
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, cast

from spaces_platform.gateway.answers import own_answer
from spaces_platform.gateway.grammar import (
    CHUNKED,
    UNTIL_CLOSE,
    ChunkedBody,
    Refused,
    Request,
    Response,
    encode_chunk,
    parse_request,
)
from spaces_platform.gateway.hygiene import forwarded_lines, request_head, response_head
from spaces_platform.gateway.repeat import REPEAT_MAX_BYTES, Repeat
from spaces_platform.gateway.tunnel import Tunnel
from spaces_platform.gateway.visitors import is_heartbeat
from spaces_platform.gateway.websocket import CLOSE_RESTART

if TYPE_CHECKING:
    from spaces_platform.gateway.routes import RouteEntry
    from spaces_platform.gateway.server import Gateway
    from spaces_platform.gateway.upstream import Answers, Backend, Upstream

READ, WAIT, BODY, ANSWER, TUNNEL, STREAM, LINGER, CLOSED = range(8)
_BUFFER_MAX = 65_536
"""Bytes kept of a visitor whose turn has not come (pipelined requests, the start of a held request's body)."""
_LINGER_SECONDS = 3.0
_LINGER_BYTES = 64 << 20
_REPEATABLE = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"})
_BUFFER_FULL, _APP_SLOW = 1, 2
_FULL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Client(asyncio.Protocol):
    """One visitor's connection."""

    __slots__ = (
        "_attached", "_body", "_deadline", "_fields", "_gateway", "_head", "_keep", "_left", "_mark", "_moved",
        "_not_reading", "_partial", "_pumping", "_repeat", "_retried", "_slow", "_tunnel", "answering",
        "backend", "buffer", "chunk_answer", "entry", "exchange", "max_head_bytes", "method", "peer", "phase",
        "request", "transport", "up",
    )  # fmt: skip

    transport: asyncio.Transport

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.peer = b""
        self.phase = READ
        self.buffer = b""
        self.exchange = 0
        self.method = b""
        self.max_head_bytes = gateway.config.max_head_bytes * 2
        self.request: Request | None = None
        self.entry: RouteEntry | None = None
        self.backend: Backend | None = None
        self.up: Upstream | None = None
        self.answering = False
        """True once a byte of the current answer has been written."""
        self.chunk_answer = False
        """True when the current answer goes out in chunks."""
        self._head = b""
        self._keep = True
        self._left = 0
        self._body: ChunkedBody | None = None
        self._attached = False
        self._retried = False
        self._slow = False
        self._not_reading = 0
        self._partial = False
        self._pumping = False
        self._deadline = 0.0
        self._moved = 0
        self._mark = 0
        self._fields = b""
        """The field lines of the last request that may be repeated."""
        self._repeat: Repeat | None = None
        self._tunnel: Tunnel | None = None

    # --- transport callbacks
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        name = transport.get_extra_info("peername")
        self.peer = str(name[0]).encode("ascii") if isinstance(name, tuple) else b"127.0.0.1"
        self._deadline = self._gateway.now() + self._gateway.config.idle_seconds
        if not self._gateway.admit(self):
            self.phase = CLOSED
            self.transport.write(_FULL)
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        phase = self.phase
        if phase == READ:
            if self.buffer:
                self._read(self.buffer + data)
            elif self._repeat is None or not self._send_again(self._repeat, data):
                self._read(data)
        elif phase == BODY:
            self._moved += len(data)
            self._upload(data)
        elif phase == TUNNEL and self._tunnel is not None:
            self._moved += 1
            self._tunnel.from_visitor(data)
        elif phase == LINGER:
            self._left -= len(data)
            if self._left < 0:
                self.transport.abort()
            elif self._tunnel is not None and self._tunnel.is_answered(data):
                self.transport.close()
        elif phase != CLOSED:
            self.buffer += data
            if len(self.buffer) > _BUFFER_MAX:
                self._stop_reading(_BUFFER_FULL)

    def eof_received(self) -> bool:
        """A visitor that cannot ask again may close its half early and still gets its answer; others have left."""
        return self.phase in (WAIT, ANSWER) and self.request is not None and not self.request.keep_alive

    def connection_lost(self, error: Exception | None) -> None:
        phase, self.phase = self.phase, CLOSED
        self.exchange += 1
        self.buffer = b""
        self._gateway.leave(self)
        up, self.up = self.up, None
        self._tunnel = self._repeat = None
        if up is not None:
            if phase == TUNNEL:
                up.client = None
                up.transport.close()
            else:
                up.close()
        self._uncount()

    def pause_writing(self) -> None:
        self._slow = True
        self._deadline = self._gateway.now() + self._gateway.config.write_stall_seconds
        self._mark = self.transport.get_write_buffer_size()
        if self.up is not None and not self.up.transport.is_closing():
            self.up.transport.pause_reading()

    def resume_writing(self) -> None:
        self._slow = False
        if self.up is not None and not self.up.transport.is_closing():
            self.up.transport.resume_reading()
        elif self.phase == READ:
            self._deadline = 0.0
            self._pump()

    def _stop_reading(self, why: int) -> None:
        if not self._not_reading and not self.transport.is_closing():
            self.transport.pause_reading()
        self._not_reading |= why

    def _go_on_reading(self, why: int) -> None:
        if self._not_reading & why:
            self._not_reading &= ~why
            if not self._not_reading and not self.transport.is_closing():
                self.transport.resume_reading()

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
                        self._deadline = gateway.now() + config.head_seconds
                    return
                self._partial = False
                self.buffer = data = data[request.size :] if len(data) > request.size else b""
                self._begin(request)
                gateway.dispatch.handle(self, request)
                if self.phase != READ or self._slow:
                    return
                data = self.buffer
                if not data:
                    return
        finally:
            self._pumping = False

    def _begin(self, request: Request) -> None:
        self.exchange += 1
        self.phase = WAIT
        self.request = request
        self.method = request.method
        self._keep = request.keep_alive
        self.answering = self._retried = False

    def _send_again(self, repeat: Repeat, data: bytes) -> bool:
        """Send on a request like the last; False where it must be looked at."""
        entry = repeat.entry
        if self._gateway.table.find(repeat.host) is not entry:
            return False
        head = repeat.onward(data)
        if head is None:
            return False
        self._begin(repeat.request)
        self.backend = repeat.backend
        self.entry = entry
        self._attached = is_heartbeat(repeat.request.target)
        self._head = head
        self._send(repeat.backend, repeat.answers)
        return True

    def _pump(self) -> None:
        """Go on with requests that arrived during the last exchange."""
        if self._pumping or self._slow:
            return
        self._go_on_reading(_BUFFER_FULL)
        if self.buffer:
            data, self.buffer = self.buffer, b""
            self._read(data)

    def _next(self) -> None:
        """The exchange is over: close, or turn to the next request."""
        self.request = None
        if not self._keep or self._gateway.draining:
            self.finish()
            return
        self.phase = READ
        self.exchange += 1
        self._deadline = 0.0
        if self.buffer or self._not_reading:
            self._pump()

    def finish(self) -> None:
        """Close once everything is written; first let a visitor that is still sending see the answer (RFC 9112 9.6)."""
        if self.phase == CLOSED or self.transport.is_closing():
            return
        if self.phase != BODY and not self.buffer:
            self.phase = CLOSED
            self.transport.close()
            return
        self.phase = LINGER
        self.exchange += 1
        self.buffer = b""
        self._left = _LINGER_BYTES
        self._deadline = self._gateway.now() + _LINGER_SECONDS
        self._go_on_reading(_BUFFER_FULL | _APP_SLOW)
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def refuse(self, status: int, reason: str) -> None:
        """Answer what is not well-formed, and close."""
        self._gateway.refused += 1
        self._keep = False
        self.request = None
        self.answer(status, [], reason.encode() + b"\n")

    def answer(
        self, status: int, fields: list[tuple[bytes, bytes]], body: bytes, kind: bytes = b"text/plain; charset=utf-8"
    ) -> None:
        """A whole answer of the gateway's own; ends the exchange."""
        request = self.request
        if request is None or request.length:
            self._keep = False
        keep, modern = self._keep and not self._gateway.draining, request is None or request.one_dot_one
        bare = request is not None and request.method == b"HEAD"
        self.transport.write(own_answer(status, fields, body, kind, keep=keep, one_dot_one=modern, head_only=bare))
        if request is None or request.length:
            self.phase = BODY  # unread input may follow
        self._next()

    def stream(self, head: bytes) -> None:
        """Begin an endless answer of the gateway's own; `push` adds to it."""
        self.phase = STREAM
        self._keep = False
        self.transport.write(head)

    def push(self, data: bytes) -> None:
        if self.phase == STREAM and not self._slow:
            self.transport.write(data)

    # --- exchanges with an app
    @property
    def leaving(self) -> bool:
        """True where the visitor must be told that the connection ends with this answer."""
        return self.phase == BODY or self._gateway.draining

    def proxy(self, backend: Backend, entry: RouteEntry | None, host: bytes = b"", *, attached: bool) -> None:
        """Send the current request to a backend (`entry` None: the control plane).

        `host`: the normalised Host, where it and the entry alone decided that; the next request may go the same way.
        """
        request = self.request
        if request is None:
            return
        self.backend = backend
        self.entry = entry
        self._attached = attached
        gateway = self._gateway
        peer, scheme = gateway.origin_of(self.peer, request) if gateway.has_proxies else (self.peer, gateway.scheme)
        self._head = request_head(request, forwarded_lines(peer, request.host, scheme), control=entry is None)
        self._repeat = None
        if host and entry is not None and request.size <= REPEAT_MAX_BYTES:
            last, self._fields = self._fields, request.block
            if last == request.block and Repeat.is_worth_it(request, entry):
                self._repeat = Repeat(request, host, self._head, gateway.head_limits, entry, backend)
        self._send(backend, None)

    def _send(self, backend: Backend, answers: Answers | None) -> None:
        """Send the current request, counted from here on, as soon as there is a connection."""
        self._count()
        self.phase = WAIT
        up = backend.take(
            sure=self.method not in _REPEATABLE or (self.request is not None and self.request.length != 0)
        )
        if up is not None:
            self.connected(up, answers)
        else:
            backend.connect(self)

    def connected(self, up: Upstream, answers: Answers | None = None) -> None:
        """A connection to the app is there: send the request. `answers`: see Upstream.start."""
        request = self.request
        if request is None:
            up.backend.give_back(up)
            return
        self.up = up
        up.start(self, self._head, answers)
        if self._slow:
            up.transport.pause_reading()
        self._deadline = 0.0
        if request.length == 0:
            self.phase = ANSWER
            return
        self.phase = BODY
        self._head = b""
        self._body = ChunkedBody() if request.length == CHUNKED else None
        self._left = request.length
        self._moved = self._mark = 0
        data, self.buffer = self.buffer, b""
        if data:
            self._upload(data)
        self._go_on_reading(_BUFFER_FULL)

    def connect_failed(self, error: Exception) -> None:
        """No connection to the app could be had."""
        backend = self.backend
        if backend is not None:
            backend.errors += 1
        self._uncount()
        self._gateway.dispatch.unreachable(self, backend, error)

    def _upload(self, data: bytes) -> None:
        up = self.up
        if up is None:
            self.buffer += data
            return
        if self._body is None:
            size = len(data)
            if size <= self._left:
                up.transport.write(data)
                self._left -= size
            else:
                up.transport.write(data[: self._left])
                self.buffer = data[self._left :]
                self._left = 0
            if not self._left:
                self.phase = ANSWER
            return
        try:
            content, self.buffer = self._body.feed(data)
        except Refused as error:
            self._break_off(error)
            return
        parts = [encode_chunk(piece) for piece in content]
        if self._body.done:
            parts.append(b"0\r\n\r\n")
            self._body = None
            self.phase = ANSWER
        up.transport.write(b"".join(parts))

    def _break_off(self, error: Refused) -> None:
        """The request turned out to be malformed while the app was already reading it."""
        up, self.up = self.up, None
        if up is not None:
            up.close()
        self._uncount()
        if self.answering:
            self.transport.abort()
        else:
            self.refuse(error.status, error.reason)

    def app_is_slow(self, slow: bool) -> None:
        if slow:
            self._stop_reading(_APP_SLOW)
        else:
            self._go_on_reading(_APP_SLOW)
            self._mark = self._moved
            self._deadline = 0.0

    def interim(self, response: Response) -> None:
        """Pass 100 Continue on to a visitor that asked for it; other interim answers are dropped."""
        if response.status == 100 and self.request is not None and self.request.expect and self.request.one_dot_one:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def answer_head(self, response: Response) -> bytes:
        """The head for the visitor, and how its body goes on."""
        request = self.request
        if request is None:
            raise RuntimeError("an answer without a request")
        length = response.length
        if length < 0:
            self.chunk_answer = request.one_dot_one
            length = CHUNKED if request.one_dot_one else UNTIL_CLOSE
            self._keep = self._keep and request.one_dot_one
        if self.leaving:
            self._keep = False
        self.answering = True
        modern, ancestors = request.one_dot_one, self._gateway.frame_ancestors
        return response_head(
            response, self.entry, length=length, one_dot_one=modern, keep=self._keep, frame_ancestors=ancestors
        )

    def body(self, data: bytes) -> None:
        self._moved += 1
        self.transport.write(data)

    def answer_done(self, up: Upstream, keep: bool) -> None:
        """The app's answer is complete."""
        self.up = None
        if keep and self.phase == ANSWER:
            if self._slow:
                up.transport.resume_reading()
            up.backend.give_back(up)
        else:
            up.close()
        if self._not_reading:
            self._go_on_reading(_APP_SLOW)
        self._uncount()
        self._next()

    def app_broke(self, up: Upstream, answering: bool) -> None:
        """The connection to the app ended in the middle of an exchange."""
        self.up = None
        request, backend = self.request, self.backend
        if self.answering or answering:
            if backend is not None:
                backend.errors += 1
            self._uncount()
            self.phase = CLOSED
            self.transport.abort()  # the visitor must see that the answer is not whole
            return
        may_repeat = request is not None and request.length == 0 and request.method in _REPEATABLE
        if backend is not None and may_repeat and not (up.fresh or up.answered or self._retried):
            self._retried = True
            self.phase = WAIT
            backend.connect(self)
            return
        if backend is not None:
            backend.errors += 1
        self._uncount()
        self._gateway.dispatch.unreachable(self, backend, None)

    def bad_answer(self, reason: str, status: int = 502) -> None:
        """The app answered with something that is not HTTP, or that cannot be passed on."""
        self.up = None
        if self.backend is not None and status == 502:
            self.backend.errors += 1
        self._uncount()
        self._keep = False
        self.answer(status, [], reason.encode() + b"\n")

    # --- WebSockets
    def switch(self, up: Upstream, response: Response, rest: bytes) -> None:
        """The app agreed to a WebSocket: splice from now on."""
        request = self.request
        if request is None or not request.websocket or response.upgrade != b"websocket":
            up.close()
            self.bad_answer("The app switches to a protocol that was not asked for.")
            return
        if up.backend.is_full:  # others were faster since this one was let through
            up.close()
            self.bad_answer("This app has too many open WebSockets.", 429)
            return
        self._uncount()
        self._attached = True
        self._count()
        up.tunnel()
        self.phase = TUNNEL
        self._tunnel = Tunnel(self, up, self._gateway.activity)
        self.answering = True
        self.transport.write(response_head(response, self.entry, length=0, one_dot_one=True, keep=True))
        self.request = None
        if up.backend.space:
            up.backend.sockets.add(self)
            if up.backend.retired:  # replaced while the upgrade was under way: nobody else will tell this socket
                asyncio.get_running_loop().call_soon(self.close_socket, CLOSE_RESTART)
        if rest:
            self.from_app(rest)
        data, self.buffer = self.buffer, b""
        if data:
            self._tunnel.from_visitor(data)
        self._go_on_reading(_BUFFER_FULL)

    def from_app(self, data: bytes) -> None:
        self._moved += 1
        if self._tunnel is not None:
            self._tunnel.from_app(data)

    def close_socket(self, code: int) -> None:
        """End a WebSocket with a close frame; nothing where there is none."""
        if self.phase == TUNNEL and self._tunnel is not None:
            self._tunnel.close(code)

    def tunnel_ended(self) -> None:
        """Our close frame is written: the visitor has a moment to answer it."""
        self.up = None
        self._uncount()
        self.phase = LINGER
        self._left = _LINGER_BYTES
        self._deadline = self._gateway.now() + _LINGER_SECONDS
        self._go_on_reading(_APP_SLOW)

    def app_left(self) -> None:
        """The app closed a WebSocket's connection."""
        self.up = None
        if self._tunnel is not None:
            self._tunnel.app_left()
        self._uncount()
        self.phase = CLOSED
        self.transport.close()

    # --- counting and deadlines
    def _count(self) -> None:
        backend = self.backend
        if backend is None or not backend.space:
            return
        if self._attached:
            backend.attached += 1
        else:
            backend.active += 1
        if self.phase != TUNNEL:
            backend.requests += 1
        self._gateway.activity.touched.add(backend)

    def _uncount(self) -> None:
        backend, self.backend = self.backend, None if self.up is None else self.backend
        if backend is None or not backend.space:
            return
        if self._attached:
            backend.attached -= 1
            backend.sockets.discard(self)
        else:
            backend.active -= 1
            backend.last_active = time.time()
        self._gateway.activity.touched.add(backend)
        if backend.retired and not backend.active and backend.quiet is not None:
            backend.quiet(backend)

    def check(self, now: float) -> None:
        """Called every second: cut what takes too long."""
        phase, config = self.phase, self._gateway.config
        if phase in (READ, LINGER):
            if not self._deadline:
                self._deadline = now + config.idle_seconds
            elif now > self._deadline:
                if self._partial and phase == READ:
                    self.buffer = b""
                    self.refuse(408, "The request's headers took too long.")
                elif phase == LINGER:
                    self.transport.abort()
                else:
                    self.transport.close()
            return
        if self._slow:
            size = self.transport.get_write_buffer_size()
            if size < self._mark:
                self._mark = size
                self._deadline = now + config.write_stall_seconds
            elif now > self._deadline:
                self.transport.abort()
            return
        if phase == BODY and not self._not_reading:
            self._check_rate(now)
        elif phase in (ANSWER, TUNNEL, BODY):
            if self._moved != self._mark or not self._deadline:
                self._mark = self._moved
                self._deadline = now + config.response_seconds
            elif now > self._deadline:
                self._overdue()

    def _check_rate(self, now: float) -> None:
        config = self._gateway.config
        if not self._deadline:
            self._deadline = now + config.body_window
        elif now > self._deadline:
            if self._moved - self._mark < config.body_min_rate * config.body_window:
                self._break_off(Refused(408, "The request's body comes too slowly."))
                return
            self._mark = self._moved
            self._deadline = now + config.body_window

    def _overdue(self) -> None:
        if self.phase == TUNNEL or self.answering:
            self.transport.abort()
        else:
            self._keep = False
            up, self.up = self.up, None
            if up is not None:
                up.close()
            self._uncount()
            self.answer(504, [], b"The app did not answer in time.\n")
