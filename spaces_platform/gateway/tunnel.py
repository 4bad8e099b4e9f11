"""One open WebSocket: the bytes of its two directions, spliced, and its end.

Owns: following the frames of both directions, what counts as use, the close frames that are the gateway's own. Does not
own: the connection's phases and deadlines (downstream.py), frame boundaries (websocket.py).
Invariants: a close frame of ours stands at a frame boundary; after it, nothing of the app reaches the visitor.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from spaces_platform.gateway.websocket import CLOSE_POLICY, CLOSE_RESTART, FrameTracker, close_frame

if TYPE_CHECKING:
    from spaces_platform.gateway.activity import Activity
    from spaces_platform.gateway.downstream import Client
    from spaces_platform.gateway.upstream import Backend, Upstream


class Tunnel:
    """Splices `up` and the visitor `client`."""

    __slots__ = ("_activity", "_app", "_backend", "_client", "_code", "_second", "_up", "_visitor")

    def __init__(self, client: Client, up: Upstream, activity: Activity) -> None:
        self._client = client
        self._up = up
        self._backend: Backend = up.backend
        self._activity = activity
        self._app = FrameTracker()
        self._visitor = FrameTracker(limited=True)
        self._second = 0
        self._code = 0
        """The close code that waits for a frame boundary."""

    def from_app(self, data: bytes) -> None:
        if self._app.feed(data):
            self._used()
        self._client.transport.write(data)
        if self._code and (self._app.at_boundary or self._app.broken):
            self._end()

    def from_visitor(self, data: bytes) -> None:
        visitor = self._visitor
        second = int(time.monotonic())
        if second != self._second:
            self._second = second
            visitor.new_second()
        if visitor.feed(data):
            self._used()
        if visitor.flooded:
            # Not at the app's next frame boundary: what floods is not waited for.
            self._code = CLOSE_POLICY
            self._end()
            return
        self._up.transport.write(data)

    def _used(self) -> None:
        self._backend.last_active = time.time()
        self._activity.touched.add(self._backend)

    def close(self, code: int) -> None:
        """End it with a close frame to both sides, at the app's next frame boundary."""
        if not self._code:
            self._code = code
            if self._app.at_boundary or self._app.broken:
                self._end()

    def _end(self) -> None:
        up, app, visitor = self._up, self._app, self._visitor
        up.client = None
        if visitor.at_boundary and not visitor.closed and not up.transport.is_closing():
            up.transport.write(close_frame(self._code, masked=True))
        up.transport.close()
        if app.at_boundary and not app.closed:
            self._client.transport.write(close_frame(self._code))
        self._client.tunnel_ended()

    def app_left(self) -> None:
        """The app has closed its connection. A visitor of a replaced version is told to come to the next one."""
        if self._backend.retired and self._app.at_boundary and not self._app.closed:
            self._client.transport.write(close_frame(CLOSE_RESTART))

    def is_answered(self, data: bytes) -> bool:
        """After our close frame: whether the visitor's own has come by now (RFC 6455 7.1.1: then we hang up)."""
        self._visitor.feed(data)
        return self._visitor.closed
