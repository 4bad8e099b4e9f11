"""One exchange of a visitor with an app: the request on its way there, the answer on its way back.

Owns: sending the request's head and body on, asking again where that is safe, the answer's head, the end of the
exchange. Does not own: the visitor's connection (downstream.py), reading the answer (upstream.py), which backend is
right (dispatch.py).
Invariants: one exchange at a time; every exchange that began is ended in its backend's counts exactly once; a request
is repeated only where no app can have acted on it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from spaces_platform.gateway.grammar import CHUNKED, IDEMPOTENT, UNTIL_CLOSE, Refused, Response
from spaces_platform.gateway.hygiene import forwarded_lines, request_head, response_head
from spaces_platform.gateway.phases import ANSWER, BODY, CLOSED, WAIT
from spaces_platform.gateway.repeat import REPEAT_MAX_BYTES, Repeat
from spaces_platform.gateway.tunnel import Tunnel
from spaces_platform.gateway.upload import Upload
from spaces_platform.gateway.websocket import CLOSE_RESTART

if TYPE_CHECKING:
    from spaces_platform.gateway.backend import Backend
    from spaces_platform.gateway.downstream import Client
    from spaces_platform.gateway.routes import RouteEntry
    from spaces_platform.gateway.server import Gateway
    from spaces_platform.gateway.upstream import Answers, Upstream


class Relay:
    """The exchanges of one visitor's connection, one after the other."""

    __slots__ = (
        "_attached", "_backend", "_fields", "_gateway", "_head", "_repeat", "_retried", "_upload", "answering",
        "chunk_answer", "client",
    )  # fmt: skip

    def __init__(self, gateway: Gateway, client: Client) -> None:
        self._gateway = gateway
        self.client = client
        self.answering = False
        """True once a byte of the current answer has been written."""
        self.chunk_answer = False
        """True when the current answer goes out in chunks."""
        self._backend: Backend | None = None
        """Where the current exchange is counted."""
        self._attached = False
        self._head = b""
        self._retried = False
        self._upload: Upload | None = None
        self._fields = b""
        """The field lines of the last request that may be repeated."""
        self._repeat: Repeat | None = None

    @property
    def method(self) -> bytes:
        """Of the current request."""
        request = self.client.request
        if request is None:
            raise RuntimeError("an answer without a request")
        return request.method

    def is_leaving(self) -> bool:
        """True where the visitor must be told that the connection ends with this answer."""
        return self.client.phase == BODY or self._gateway.draining

    # --- the request
    def proxy(self, backend: Backend, entry: RouteEntry | None, host: bytes = b"", *, attached: bool) -> None:
        """Send the current request to a backend (`entry` None: the control plane).

        `host`: the normalised Host, where it and the entry alone decided that; the next request may go the same way.
        """
        client, gateway = self.client, self._gateway
        request = client.request
        if request is None:
            return
        client.entry = entry
        peer = client.peer
        origin, scheme = gateway.origin_of(peer, request) if gateway.has_proxies else (peer, gateway.scheme)
        self._head = request_head(request, forwarded_lines(origin, request.host, scheme), control=entry is None)
        self._repeat = None
        if host and entry is not None and request.size <= REPEAT_MAX_BYTES:
            last, self._fields = self._fields, request.block
            if last == request.block and Repeat.is_worth_it(request, entry):
                self._repeat = Repeat(request, host, self._head, gateway.head_limits, entry, backend)
        self._attached = attached
        answers = backend.answers_for(entry) if entry is not None and Repeat.shares_answers(request) else None
        self._send(backend, answers, request.method not in IDEMPOTENT or request.length != 0)

    def proxy_again(self, data: bytes) -> bool:
        """Send on a request like the last; False where it must be looked at."""
        repeat = self._repeat
        if repeat is None or self._gateway.table.find(repeat.host) is not repeat.entry:
            return False
        head = repeat.onward(data)
        if head is None:
            return False
        client = self.client
        client.begin(repeat.request)
        client.entry = repeat.entry
        self._head = head
        self._attached = False
        self._send(repeat.backend, repeat.answers, repeat.sure)
        return True

    def _send(self, backend: Backend, answers: Answers | None, sure: bool) -> None:
        """Send the current request, counted from here on, as soon as there is a connection. `sure`: Backend.take."""
        self._backend = backend
        self.answering = self._retried = False
        backend.began(self._attached)
        up = backend.take(sure)
        if up is not None:
            self.connected(up, answers)
        else:
            self.client.phase = WAIT
            backend.connect(self)

    def connected(self, up: Upstream, answers: Answers | None = None) -> None:
        """A connection to the app is there: send the request. `answers`: see Upstream.start."""
        client = self.client
        request = client.request
        if request is None:
            up.backend.give_back(up)
            return
        client.up = up
        up.start(self, self._head, answers)
        if client.slow:
            up.transport.pause_reading()
        client.pace.until = 0.0
        if request.length == 0:
            client.phase = ANSWER
        else:
            self._begin_upload(request.length)

    def connect_failed(self, error: Exception) -> None:
        """No connection to the app could be had."""
        backend = self._backend
        if backend is not None:
            backend.errors += 1
        self._ended()
        self._gateway.dispatch.unreachable(self.client, backend, error)

    def _begin_upload(self, length: int) -> None:
        client = self.client
        client.phase = BODY
        client.pace.moved = client.pace.mark = 0
        self._head = b""
        self._upload = Upload(length)
        data, client.buffer = client.buffer, b""
        if data:
            self.upload(data)
        client.turn_has_come()

    def upload(self, data: bytes) -> None:
        """More of the request's body, and perhaps of what follows it."""
        client = self.client
        up, body = client.up, self._upload
        if up is None or body is None:
            client.buffer += data
            return
        try:
            content, client.buffer = body.feed(data)
        except Refused as error:
            self.break_off(error)
            return
        if body.done:
            self._upload = None
            client.phase = ANSWER
        if content:
            up.transport.write(content)

    # --- the answer
    def interim(self, response: Response) -> None:
        """Pass 100 Continue on to a visitor that asked for it; other interim answers are dropped."""
        request = self.client.request
        if response.status == 100 and request is not None and request.expect and request.one_dot_one:
            self.client.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def answer_head(self, response: Response) -> bytes:
        """The head for the visitor, and how its body goes on."""
        client = self.client
        request = client.request
        if request is None:
            raise RuntimeError("an answer without a request")
        modern, length = request.one_dot_one, response.length
        if length < 0:
            self.chunk_answer = modern
            length = CHUNKED if modern else UNTIL_CLOSE
            client.keep = client.keep and modern
        if self.is_leaving():
            client.keep = False
        self.answering = True
        ancestors = self._gateway.frame_ancestors
        return response_head(
            response, client.entry, length=length, one_dot_one=modern, keep=client.keep, frame_ancestors=ancestors
        )

    def body(self, data: bytes) -> None:
        """Bytes of the answer, framed for the visitor."""
        client = self.client
        client.pace.moved += 1
        client.transport.write(data)

    def whole_answer(self, up: Upstream, data: bytes) -> None:
        """An answer that came in one piece, framed for the visitor."""
        self.client.transport.write(data)
        self.answer_done(up, up.keep)

    def answer_done(self, up: Upstream, keep: bool) -> None:
        """The app's answer is complete. `keep`: its connection may be used again."""
        client = self.client
        client.up = None
        if keep and client.phase == ANSWER:
            if client.slow:
                up.transport.resume_reading()
            up.backend.give_back(up)
        else:
            up.close()
        if client.not_reading:
            client.app_has_room()
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.ended(self._attached)
        client.next()

    def switch(self, up: Upstream, response: Response, rest: bytes) -> None:
        """The app agreed to a WebSocket: splice from now on."""
        client, backend = self.client, up.backend
        request = client.request
        if request is None or not request.websocket or response.upgrade != b"websocket":
            up.close()
            self.bad_answer("The app switches to a protocol that was not asked for.")
            return
        if backend.is_full:  # others were faster since this one was let through
            up.close()
            self.bad_answer("This app has too many open WebSockets.", 429)
            return
        tunnel = Tunnel(client, up)
        self._backend = None
        self.answering = True
        backend.opened(tunnel, attached=self._attached)
        client.transport.write(response_head(response, client.entry, length=0, one_dot_one=True, keep=True))
        client.splice(tunnel, rest)
        if backend.space and backend.retired:  # replaced while the upgrade was under way: nobody else tells this socket
            asyncio.get_running_loop().call_soon(tunnel.close, CLOSE_RESTART)

    # --- ends before their time
    def break_off(self, error: Refused) -> None:
        """The request turned out to be malformed, or too slow, while the app was already reading it."""
        self.give_up()
        if self.answering:
            self.client.transport.abort()
        else:
            self.client.refuse(error.status, error.reason)

    def overdue(self) -> None:
        """The app has been silent for too long."""
        client = self.client
        if self.answering:
            client.transport.abort()
        else:
            client.keep = False
            self.give_up()
            client.answer(504, [], b"The app did not answer in time.\n")

    def app_broke(self, up: Upstream, answering: bool) -> None:
        """The connection to the app ended in the middle of an exchange."""
        client, backend = self.client, self._backend
        client.up = None
        request = client.request
        if self.answering or answering:
            if backend is not None:
                backend.errors += 1
            self._ended()
            client.phase = CLOSED
            client.transport.abort()  # the visitor must see that the answer is not whole
            return
        may_repeat = request is not None and request.length == 0 and request.method in IDEMPOTENT
        if backend is not None and may_repeat and not (up.fresh or up.answered or self._retried):
            self._retried = True
            client.phase = WAIT
            backend.connect(self)
            return
        if backend is not None:
            backend.errors += 1
        self._ended()
        self._gateway.dispatch.unreachable(client, backend, None)

    def bad_answer(self, reason: str, status: int = 502) -> None:
        """The app answered with something that is not HTTP, or that cannot be passed on."""
        self.client.up = None
        if self._backend is not None and status == 502:
            self._backend.errors += 1
        self._ended()
        self.client.keep = False
        self.client.answer(status, [], reason.encode() + b"\n")

    def give_up(self) -> None:
        """End the exchange, if there is one; neither side is told."""
        up, self.client.up = self.client.up, None
        if up is not None:
            up.close()
        self._upload = None
        self._ended()

    def forget(self) -> None:
        """The visitor has left: keep nothing of its requests."""
        self.give_up()
        self._repeat = None

    def _ended(self) -> None:
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.ended(self._attached)
