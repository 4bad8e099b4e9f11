"""One open WebSocket: the bytes of its two directions, spliced, and its end.

Owns: following the frames of both directions, what counts as use, the close frames that are the gateway's own, the end
of its count. Does not own: the visitor's connection and deadlines (downstream.py), frame boundaries (websocket.py).
Invariants: a close frame of ours stands at a frame boundary; after it, nothing of the app reaches the visitor; it is
counted as open until one of the sides, or the gateway, has ended it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from spaces_platform.gateway.websocket import CLOSE_POLICY, CLOSE_RESTART, FrameTracker, close_frame

if TYPE_CHECKING:
    from spaces_platform.gateway.downstream import Client
    from spaces_platform.gateway.upstream import Upstream


class Tunnel:
    """Splices `up` and the visitor `client`."""

    __slots__ = ("_app", "_backend", "_code", "_is_open", "_second", "_up", "_visitor", "client")

    def __init__(self, client: Client, up: Upstream) -> None:
        """It is counted by Backend.opened, which is told of it."""
        self.client = client
        self._up = up
        self._backend = up.backend
        self._is_open = True
        self._app = FrameTracker()
        self._visitor = FrameTracker(limited=True)
        self._second = 0
        self._code = 0
        """The close code that waits for a frame boundary."""
        up.switch(self)

    def from_app(self, data: bytes) -> None:
        self.client.pace.moved += 1
        if self._app.feed(data):
            self._backend.used()
        self.client.transport.write(data)
        if self._code and (self._app.at_boundary or self._app.broken):
            self._end()

    def from_visitor(self, data: bytes) -> None:
        visitor = self._visitor
        second = int(time.monotonic())
        if second != self._second:
            self._second = second
            visitor.new_second()
        if visitor.feed(data):
            self._backend.used()
        if visitor.flooded:
            # Not at the app's next frame boundary: what floods is not waited for.
            self._code = CLOSE_POLICY
            self._end()
            return
        self._up.transport.write(data)

    def close(self, code: int) -> None:
        """End it with a close frame to both sides, at the app's next frame boundary; nothing where it has ended."""
        if self._is_open and not self._code:
            self._code = code
            if self._app.at_boundary or self._app.broken:
                self._end()

    def _end(self) -> None:
        up, app, visitor = self._up, self._app, self._visitor
        up.tunnel = None
        if visitor.at_boundary and not visitor.closed and not up.transport.is_closing():
            up.transport.write(close_frame(self._code, masked=True))
        up.transport.close()
        if app.at_boundary and not app.closed:
            self.client.transport.write(close_frame(self._code))
        self._closed()
        self.client.linger()

    def app_left(self) -> None:
        """The app has closed its connection. A visitor of a replaced version is told to come to the next one."""
        if self._backend.retired and self._app.at_boundary and not self._app.closed:
            self.client.transport.write(close_frame(CLOSE_RESTART))
        self._closed()
        self.client.hang_up()

    def visitor_left(self) -> None:
        """The visitor's connection is gone."""
        if self._is_open:
            self._up.tunnel = None
            self._up.transport.close()
            self._closed()

    def is_answered(self, data: bytes) -> bool:
        """After our close frame: whether the visitor's own has come by now (RFC 6455 7.1.1: then we hang up)."""
        self._visitor.feed(data)
        return self._visitor.closed

    def _closed(self) -> None:
        self._is_open = False
        self.client.up = None
        self._backend.closed(self)
