"""WebSocket frame boundaries and close frames (RFC 6455 5.2, 5.5, 7.4).

Owns: following the frames of one direction of a spliced WebSocket. Does not own: the bytes, which pass unchanged.
Invariants: a FrameTracker holds at most one frame header and 32 payload bytes, whatever passes; with `limits` it looks
at no more frames than they allow.
"""

from __future__ import annotations

import os

CLOSE_RESTART = 1012
"""Service restart; clients reconnect (IANA WebSocket close codes)."""
CLOSE_AWAY = 1001
CLOSE_POLICY = 1008
FRAMES_PER_SECOND, CONTROLS_PER_SECOND = 10_000, 100
"""What a visitor may send: frames of all kinds, and pings, pongs and closes. Every frame costs the gateway the same
however short it is (measured: 1 to 2 us), so that one read of 256 KiB full of pings would take the time of 1 000
requests. Browsers send none by themselves but answers to pings, and a page a few hundred messages a second at most."""

_KEEPALIVES = frozenset(
    {b"2", b"3", b"ping", b"pong", b'{"type":"ping"}', b'{"type":"pong"}', b'{"type": "ping"}', b'{"type": "pong"}'}
)
"""Payloads by which frameworks keep a quiet socket open: engine.io packets, JSON pings of subscription protocols."""
_PEEK = 32


class FrameTracker:
    """Follows one direction of a WebSocket."""

    __slots__ = (
        "_control", "_controls", "_frames", "_head", "_left", "_limited", "_mask", "_peek", "_peeking", "broken",
        "closed", "flooded",
    )  # fmt: skip

    def __init__(self, *, limited: bool = False) -> None:
        """`limited`: too many frames between two calls of `new_second` are a flood."""
        self._limited = limited
        self._frames = self._controls = 0
        self.flooded = False
        """True once there were too many frames; then `broken`, too: the rest is not looked at."""
        self._head = b""
        self._left = 0
        self._control = False
        self._peeking = False
        self._peek = b""
        self._mask = b""
        self.broken = False
        """True once the bytes are no WebSocket frames; they still pass, but boundaries are unknown."""
        self.closed = False
        """True once a close frame has passed."""

    @property
    def at_boundary(self) -> bool:
        return not (self._left or self._head or self.broken)

    def new_second(self) -> None:
        """Count frames from none."""
        self._frames = self._controls = 0

    def feed(self, data: bytes) -> bool:
        """Follow `data`; True when it holds (part of) a frame that carries the application's data."""
        if self.broken:
            return True
        active = False
        position, size = 0, len(data)
        while position < size:
            if self._left:
                step = min(self._left, size - position)
                if self._peeking:
                    self._peek += data[position : position + step]
                self._left -= step
                position += step
                if self._peeking and not self._left:
                    active = self._end_of_short() or active
                elif not self._peeking and not self._control:
                    active = True
                continue
            take = _header_size(self._head + data[position : position + 2])
            need = take - len(self._head)
            self._head += data[position : position + need]
            position += need
            if len(self._head) < 2 or len(self._head) < _header_size(self._head):
                continue
            active = self._begin_frame() or active
            if self.broken:
                return True
        return active

    def _begin_frame(self) -> bool:
        head, self._head = self._head, b""
        opcode = head[0] & 15
        length = head[1] & 127
        if length == 126:
            length = int.from_bytes(head[2:4], "big")
        elif length == 127:
            length = int.from_bytes(head[2:10], "big")
        masked = bool(head[1] & 128)
        if head[0] & 0x30 or 3 <= opcode <= 7 or opcode > 10 or (opcode >= 8 and length > 125) or length >> 63:
            self.broken = True
            return True
        self._frames += 1
        self._controls += opcode >= 8
        if self._limited and (self._frames > FRAMES_PER_SECOND or self._controls > CONTROLS_PER_SECOND):
            self.flooded = self.broken = True
            return True
        self._mask = head[-4:] if masked else b""
        self._left = length
        self.closed = self.closed or opcode == 8
        self._control = opcode >= 8
        # A short, whole, uncompressed message may be a keep-alive; it is looked at before it counts.
        self._peeking = not self._control and head[0] in (0x81, 0x82) and length <= _PEEK
        self._peek = b""
        if self._control:
            return False
        return self._end_of_short() if self._peeking and not length else not self._peeking

    def _end_of_short(self) -> bool:
        payload, self._peek = self._peek, b""
        self._peeking = False
        if self._mask:
            payload = bytes(byte ^ self._mask[i & 3] for i, byte in enumerate(payload))
        return payload not in _KEEPALIVES


def _header_size(start: bytes) -> int:
    """Length of a frame header, as far as its first bytes tell."""
    if len(start) < 2:
        return 2
    return 2 + {126: 2, 127: 8}.get(start[1] & 127, 0) + (4 if start[1] & 128 else 0)


def close_frame(code: int, *, masked: bool = False) -> bytes:
    """A close frame; those towards an app are masked, as a client's are."""
    payload = code.to_bytes(2, "big")
    if not masked:
        return bytes((0x88, 2)) + payload
    mask = os.urandom(4)
    return bytes((0x88, 0x82)) + mask + bytes(byte ^ mask[i] for i, byte in enumerate(payload))
