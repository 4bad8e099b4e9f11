"""Connections to apps and to the control plane, and the pool of kept-alive ones.

Owns: connecting, pooling, reading answers and handing them on. Does not own: the visitor's side (downstream.py), nor
which endpoint is right (dispatch.py).
Invariants: a connection belongs to one Backend, that is, to one endpoint of one deployment, for its whole life; it is
used again only after a whole request and a whole answer, with not one byte out of turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from spaces_platform.gateway.config import split_address
from spaces_platform.gateway.grammar import (
    CHUNKED,
    UNTIL_CLOSE,
    ChunkedBody,
    Refused,
    Response,
    encode_chunk,
    parse_response,
)

if TYPE_CHECKING:
    from spaces_platform.gateway.downstream import Client
    from spaces_platform.gateway.routes import RouteEntry

IDLE, HEAD, LENGTH, CHUNKS, EOF, TUNNEL, CLOSED = range(7)
_SURE_SECONDS = 1.0
"""A pooled connection this fresh has not met its server's keep-alive limit (uvicorn's is 5 s, Node's too)."""
_INTERIM_MAX = 16
_KNOWN_ANSWERS = 16
_KNOWN_BYTES = 1_024

Answers = dict[bytes, tuple[int, bool, bytes]]
"""An answer's head, byte for byte -> its body's length, whether the connection is kept, and the head for a visitor of
HTTP/1.1 that is kept alive. An app repeats its heads (until the Date changes), so each is read once."""


class Backend:
    """One endpoint of one deployment (`space` 0: the control plane), with its connections and its traffic."""

    __slots__ = (
        "_address",
        "_answers",
        "_answers_entry",
        "_connect_seconds",
        "_idle_max",
        "_loop",
        "_tasks",
        "active",
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
        *,
        connect_seconds: float,
        idle_max: int,
        sockets_max: int,
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
        self.sockets_max = sockets_max
        self.sockets: set[Client] = set()
        """Visitors with an open WebSocket."""
        self.last_active = 0.0
        self.requests = 0
        self.errors = 0
        self.retired = False
        """True once no route leads here: running exchanges end, new ones never come."""
        self.quiet: Callable[[Backend], None] | None = None
        """Called when the last active exchange of a retired one has ended."""
        self._answers: Answers = {}
        self._answers_entry: RouteEntry | None = None
        self._address = split_address(endpoint)
        self._connect_seconds = connect_seconds
        self._idle_max = idle_max
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

    def take(self, *, sure: bool) -> Upstream | None:
        """A kept-alive connection. `sure`: only one that cannot have been closed meanwhile."""
        idle = self.idle
        while idle:
            up = idle.pop()
            if up.state == IDLE and not up.transport.is_closing():
                if sure and self._loop.time() - up.idle_since > _SURE_SECONDS:
                    idle.append(up)
                    return None
                return up
        return None

    def connect(self, client: Client) -> None:
        """Open a connection and give it to `client`, or tell it why not; into the pool if it is gone by then."""
        task = self._loop.create_task(self._connect(client, client.exchange))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, client: Client, exchange: int) -> None:
        kind, host, port = self._address
        try:
            async with asyncio.timeout(self._connect_seconds):
                if kind == "unix":
                    _, up = await self._loop.create_unix_connection(lambda: Upstream(self), host)
                else:
                    _, up = await self._loop.create_connection(lambda: Upstream(self), host, port)
        except (OSError, TimeoutError) as error:
            if client.exchange == exchange:
                client.connect_failed(error)
            return
        if client.exchange == exchange:
            client.connected(up)
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


class Upstream(asyncio.Protocol):
    """One connection to an app."""

    __slots__ = (
        "_answers",
        "_body",
        "_buffer",
        "_interim",
        "_left",
        "answered",
        "backend",
        "client",
        "fresh",
        "idle_since",
        "keep",
        "state",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.client: Client | None = None
        self.state = IDLE
        self.fresh = True
        """True until its first exchange has ended."""
        self.answered = False
        """True once a byte of the current answer has come."""
        self.keep = False
        self.idle_since = 0.0
        self._buffer = b""
        self._left = 0
        self._interim = 0
        self._body: ChunkedBody | None = None
        self._answers: Answers | None = None

    # --- transport callbacks
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.backend.connections += 1

    def data_received(self, data: bytes) -> None:
        state = self.state
        client = self.client
        if client is None:
            self.close()  # bytes that nobody asked for
            return
        if state == LENGTH:
            self._length(client, data)
        elif state == HEAD:
            self.answered = True
            if self._buffer:
                data = self._buffer + data
            end = data.find(b"\r\n\r\n") + 4
            known = self._answers.get(data[:end]) if self._answers is not None else None
            if known is None or client.leaving:
                self._head(client, data)
            else:
                length, self.keep, head = known
                client.answering = client.chunk_answer = True
                self._begin_body(client, length, head, data[end:])
        elif state == TUNNEL:
            client.from_app(data)
        elif state == CHUNKS:
            self._chunks(client, data)
        elif state == EOF:
            client.body(encode_chunk(data) if client.chunk_answer else data)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        state, client = self.state, self.client
        self.state = CLOSED
        self.backend.connections -= 1
        if client is None:
            return
        self.client = None
        if state == EOF and error is None:
            if client.chunk_answer:
                client.body(b"0\r\n\r\n")
            client.answer_done(self, False)
        elif state == TUNNEL:
            client.app_left()
        else:
            client.app_broke(self, state != HEAD)

    def pause_writing(self) -> None:
        if self.client is not None:
            self.client.app_is_slow(True)

    def resume_writing(self) -> None:
        if self.client is not None:
            self.client.app_is_slow(False)

    # --- one exchange
    def start(self, client: Client, head: bytes, answers: Answers | None) -> None:
        """Send a request's head for `client`. `answers`: known heads that may be used for this visitor."""
        self.client = client
        self.state = HEAD
        self.answered = False
        self._interim = 0
        self._answers = answers
        self.transport.write(head)

    def close(self) -> None:
        """Forget the exchange and close; nothing more is told to the client."""
        self.client = None
        self.state = CLOSED
        self.transport.abort()

    def tunnel(self) -> None:
        """Bytes pass as they are from now on."""
        self.state = TUNNEL

    def _head(self, client: Client, data: bytes) -> None:
        while True:
            try:
                response = parse_response(data, client.method, client.max_head_bytes)
            except Refused as error:
                self._refuse(client, error)
                return
            if response is None:
                self._buffer = data
                return
            rest = data[response.size :] if len(data) > response.size else b""
            self._buffer = b""
            if response.status >= 200:
                self._answer(client, response, data[: response.size], rest)
                return
            self._interim += 1
            if self._interim > _INTERIM_MAX:
                self._refuse(client, Refused(502, "The app sends interim answers without end."))
                return
            if response.status == 101:
                client.switch(self, response, rest)
                return
            client.interim(response)
            if not rest:
                return
            data = rest

    def _answer(self, client: Client, response: Response, raw: bytes, rest: bytes) -> None:
        length = response.length
        self.keep = response.keep_alive and length != UNTIL_CLOSE
        leaving = client.leaving
        head = client.answer_head(response)
        answers = self._answers
        if answers is not None and not leaving and length != UNTIL_CLOSE and len(raw) <= _KNOWN_BYTES:
            if len(answers) >= _KNOWN_ANSWERS:
                answers.clear()
            answers[raw] = length, self.keep, head
        self._begin_body(client, length, head, rest)

    def _begin_body(self, client: Client, length: int, head: bytes, rest: bytes) -> None:
        if length >= 0:
            size = len(rest)
            if size < length:
                self._left = length - size
                self.state = LENGTH
                client.body(head + rest)
                return
            if size > length:
                rest = rest[:length]
                self.keep = False
            client.body(head + rest)
            self._done(client)
            return
        if length == CHUNKED:
            self.state = CHUNKS
            self._body = ChunkedBody()
            self._chunks(client, rest, head)
        else:
            self.state = EOF
            if rest:
                head += encode_chunk(rest) if client.chunk_answer else rest
            client.body(head)

    def _length(self, client: Client, data: bytes) -> None:
        size = len(data)
        left = self._left
        if size < left:
            self._left = left - size
            client.body(data)
            return
        if size > left:
            data = data[:left]
            self.keep = False
        client.body(data)
        self._done(client)

    def _chunks(self, client: Client, data: bytes, head: bytes = b"") -> None:
        body = self._body
        if body is None:
            raise RuntimeError("an answer in chunks without a reader")
        try:
            content, rest = body.feed(data)
        except Refused:
            if head:
                client.body(head)
            client.app_broke(self, True)
            self.close()
            return
        if client.chunk_answer:
            parts = [encode_chunk(piece) for piece in content]
            if body.done:
                parts.append(b"0\r\n\r\n")
        else:
            parts = content
        if head:
            parts.insert(0, head)
        if parts:
            client.body(b"".join(parts) if len(parts) > 1 else parts[0])
        if body.done:
            self._body = None
            if rest:
                self.keep = False
            self._done(client)

    def _done(self, client: Client) -> None:
        self.client = None
        self.state = IDLE
        self.fresh = False
        client.answer_done(self, self.keep)

    def _refuse(self, client: Client, error: Refused) -> None:
        self.close()
        client.bad_answer(error.reason)
