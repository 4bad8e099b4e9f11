"""One connection to an app or to the control plane: reads answers and hands them on.

Owns: where an answer's head and body end, and its body's framing towards the visitor. Does not own: connecting and
pooling (backend.py), the exchange (relay.py), the visitor's side (downstream.py).
Invariant: it is used again only after a whole request and a whole answer, with not one byte out of turn.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, cast

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
    from spaces_platform.gateway.backend import Backend
    from spaces_platform.gateway.relay import Relay
    from spaces_platform.gateway.tunnel import Tunnel

IDLE, HEAD, LENGTH, CHUNKS, EOF, CLOSED = range(6)
_INTERIM_MAX = 16
_KNOWN_ANSWERS = 16
_KNOWN_BYTES = 1_024
_SEGMENT = 1_448
"""Bytes of a full segment on Ethernet: less than that may have been held back."""
_QUICKACK: int = getattr(socket, "TCP_QUICKACK", 0)

Answers = dict[bytes, tuple[int, bool, bytes]]
"""An answer's head, byte for byte -> its body's length, whether the connection is kept, and the head for a visitor of
HTTP/1.1 that is kept alive. An app repeats its heads (until the Date changes), so each is read once."""


class Upstream(asyncio.Protocol):
    """One connection to an app."""

    __slots__ = (
        "_answers",
        "_body",
        "_buffer",
        "_interim",
        "_left",
        "_tcp",
        "answered",
        "backend",
        "fresh",
        "idle_since",
        "keep",
        "relay",
        "state",
        "transport",
        "tunnel",
    )

    transport: asyncio.Transport

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.relay: Relay | None = None
        """The exchange that it serves now."""
        self.tunnel: Tunnel | None = None
        """The WebSocket that it has become."""
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
        self._tcp: socket.socket | None = None
        """Where acknowledgements can be asked for: not on a Unix socket."""

    # --- transport callbacks
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.backend.connections += 1
        found = transport.get_extra_info("socket")
        if _QUICKACK and found.family in (socket.AF_INET, socket.AF_INET6):
            self._tcp = found

    def data_received(self, data: bytes) -> None:
        state, relay = self.state, self.relay
        if relay is None:
            if self.tunnel is not None:
                self.tunnel.from_app(data)
            else:
                self.close()  # bytes that nobody asked for
        elif state == HEAD:
            self.answered = True
            if self._buffer:
                data, self._buffer = self._buffer + data, b""
            end = data.find(b"\r\n\r\n") + 4
            known = self._answers.get(data[:end]) if self._answers is not None else None
            if known is None or relay.is_leaving():
                self._head(relay, data)
            else:
                length, self.keep, head = known
                if len(data) - end == length:
                    self.relay = None
                    self.state = IDLE
                    self.fresh = False
                    relay.whole_answer(self, head + data[end:])
                else:
                    relay.answering = relay.chunk_answer = True
                    self._begin_body(relay, length, head, data[end:])
        elif state == LENGTH:
            self._length(relay, data)
        elif state == CHUNKS:
            self._chunks(relay, data)
        elif state == EOF:
            relay.body(encode_chunk(data) if relay.chunk_answer else data)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        state, self.state = self.state, CLOSED
        relay, self.relay = self.relay, None
        tunnel, self.tunnel = self.tunnel, None
        self.backend.connections -= 1
        if tunnel is not None:
            tunnel.app_left()
        elif relay is not None and state == EOF and error is None:
            if relay.chunk_answer:
                relay.body(b"0\r\n\r\n")
            relay.answer_done(self, False)
        elif relay is not None:
            relay.app_broke(self, state != HEAD)

    def pause_writing(self) -> None:
        self._slow(True)

    def resume_writing(self) -> None:
        self._slow(False)

    def _slow(self, slow: bool) -> None:
        user = self.relay or self.tunnel
        if user is not None:
            user.client.app_is_slow(slow)

    # --- one exchange
    def start(self, relay: Relay, head: bytes, answers: Answers | None) -> None:
        """Send a request's head for `relay`. `answers`: known heads that may be used for this visitor."""
        self.relay = relay
        self.state = HEAD
        self.answered = False
        self._interim = 0
        self._answers = answers
        self.transport.write(head)

    def close(self) -> None:
        """Forget the exchange and close; nothing more is told to the visitor."""
        self.relay = self.tunnel = None
        self.state = CLOSED
        self.transport.abort()

    def switch(self, tunnel: Tunnel) -> None:
        """Bytes pass as they are from now on."""
        self.relay, self.tunnel = None, tunnel

    def _head(self, relay: Relay, data: bytes) -> None:
        while True:
            try:
                response = parse_response(data, relay.method, self.backend.answer_head_max)
            except Refused as error:
                self._refuse(relay, error)
                return
            if response is None:
                self._buffer = data
                self._acknowledge()
                return
            rest = data[response.size :] if len(data) > response.size else b""
            self._buffer = b""
            if response.status >= 200:
                self._answer(relay, response, data[: response.size], rest)
                return
            self._interim += 1
            if self._interim > _INTERIM_MAX:
                self._refuse(relay, Refused(502, "The app sends interim answers without end."))
                return
            if response.status == 101:
                relay.switch(self, response, rest)
                return
            relay.interim(response)
            if not rest:
                return
            data = rest

    def _answer(self, relay: Relay, response: Response, raw: bytes, rest: bytes) -> None:
        length = response.length
        self.keep = response.keep_alive and length != UNTIL_CLOSE
        leaving = relay.is_leaving()
        head = relay.answer_head(response)
        answers = self._answers
        if answers is not None and not leaving and length != UNTIL_CLOSE and len(raw) <= _KNOWN_BYTES:
            if len(answers) >= _KNOWN_ANSWERS:
                answers.clear()
            answers[raw] = length, self.keep, head
        self._begin_body(relay, length, head, rest)

    def _begin_body(self, relay: Relay, length: int, head: bytes, rest: bytes) -> None:
        if length >= 0:
            size = len(rest)
            if size < length:
                self._left = length - size
                self.state = LENGTH
                relay.body(head + rest)
                self._acknowledge()
                return
            if size > length:
                rest = rest[:length]
                self.keep = False
            relay.body(head + rest)
            self._done(relay)
            return
        if length == CHUNKED:
            self.state = CHUNKS
            self._body = ChunkedBody()
            self._chunks(relay, rest, head)
        else:
            self.state = EOF
            if rest:
                head += encode_chunk(rest) if relay.chunk_answer else rest
            relay.body(head)

    def _length(self, relay: Relay, data: bytes) -> None:
        size = len(data)
        left = self._left
        if size < left:
            self._left = left - size
            relay.body(data)
            return
        if size > left:
            data = data[:left]
            self.keep = False
        relay.body(data)
        self._done(relay)

    def _chunks(self, relay: Relay, data: bytes, head: bytes = b"") -> None:
        body = self._body
        if body is None:
            raise RuntimeError("an answer in chunks without a reader")
        try:
            content, rest = body.feed(data)
        except Refused:
            if head:
                relay.body(head)
            relay.app_broke(self, True)
            self.close()
            return
        if relay.chunk_answer:
            parts = [encode_chunk(piece) for piece in content]
            if body.done:
                parts.append(b"0\r\n\r\n")
        else:
            parts = content
        if head:
            parts.insert(0, head)
        if parts:
            relay.body(b"".join(parts) if len(parts) > 1 else parts[0])
        if not body.done:
            if len(data) < _SEGMENT:
                self._acknowledge()
        else:
            self._body = None
            if rest:
                self.keep = False
            self._done(relay)

    def _acknowledge(self) -> None:
        """Acknowledge at once what has come so far: more of this answer is to follow.

        Many small servers write an answer's head and body apart and leave Nagle's algorithm on (Python's http.server is
        one), so the second part waits for this; the kernel would wait 40 ms for something to send it along with.
        Linux only, and forgotten by the kernel after some segments: see TCP_QUICKACK in tcp(7).
        """
        if self._tcp is not None and not self.transport.is_closing():
            self._tcp.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)

    def _done(self, relay: Relay) -> None:
        self.relay = None
        self.state = IDLE
        self.fresh = False
        relay.answer_done(self, self.keep)

    def _refuse(self, relay: Relay, error: Refused) -> None:
        self.close()
        relay.bad_answer(error.reason)
