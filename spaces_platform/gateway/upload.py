"""A request's body on its way to the app.

Owns: where the body ends, and its framing towards the app. Does not own: reading, writing and deadlines.
Invariant: what lies behind the body's end never reaches the app.
"""

from __future__ import annotations

from spaces_platform.gateway.grammar import CHUNKED, ChunkedBody, encode_chunk


class Upload:
    """One body of `length` bytes, or CHUNKED."""

    __slots__ = ("_chunks", "_left", "done")

    def __init__(self, length: int) -> None:
        self._chunks = ChunkedBody() if length == CHUNKED else None
        self._left = length
        self.done = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """What of `data` is sent on, and what lies behind the body's end. Raises Refused."""
        if self._chunks is not None:
            content, rest = self._chunks.feed(data)
            parts = [encode_chunk(piece) for piece in content]
            if self._chunks.done:
                parts.append(b"0\r\n\r\n")
                self.done = True
            return b"".join(parts), rest
        left = self._left
        if len(data) < left:
            self._left = left - len(data)
            return data, b""
        self.done = True
        return (data, b"") if len(data) == left else (data[:left], data[left:])
