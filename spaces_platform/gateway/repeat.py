"""What a kept-alive visitor asks again: heads that differ in nothing but their target are judged once.

Owns: recognising such a head, and the bytes that are sent on for it. Does not own: judging (grammar.py, dispatch.py)
and rewriting (hygiene.py), which are done for the first of them.
Invariants: what is recognised here would be read, judged and rewritten to the very same bytes by the whole way; a
recognised head goes to an entry only while that very entry is in the route table.

A browser or a client library repeats all its fields with every request of a connection, so nearly all of the work on a
head would be done again for nothing.
"""

from __future__ import annotations

import re

from spaces_platform.gateway.backend import Backend
from spaces_platform.gateway.grammar import IDEMPOTENT, Request
from spaces_platform.gateway.routes import RouteEntry

_TARGET = re.compile(rb"/(?!\.spaces/|(?:gradio_api/)?heartbeat/)[\x21\x22\x24-\x7e]*+")
"""A path, as grammar.py accepts one, outside of what the gateway answers itself, and that counts as use."""
REPEAT_MAX_BYTES = 2_048
"""Longer heads take the whole way each time: this is kept for every open connection."""


class Repeat:
    """The last proxied request of one connection, as a pattern for the next."""

    __slots__ = (
        "_after", "_before", "_came", "_onward", "_room", "_sent", "answers", "backend", "entry", "host", "request",
        "sure",
    )  # fmt: skip

    def __init__(
        self,
        request: Request,
        host: bytes,
        sent: bytes,
        limits: tuple[int, int, int],
        entry: RouteEntry,
        backend: Backend,
    ) -> None:
        """`sent`: the head as it went on; `host`: its normalised Host; `limits`: as for `parse_request`."""
        self.request = request
        self.host = host
        self.entry = entry
        self.backend = backend
        self.sure = request.method not in IDEMPOTENT
        """Whether the request may go only to a connection that is surely open."""
        self.answers = backend.answers_for(entry) if Repeat.shares_answers(request) else None
        self._before = request.method + b" "
        self._after = request.after_target
        self._onward = sent[len(self._before) + len(request.target) :]
        self._came = self._sent = b""
        """The last recognised head, and what was sent on for it."""
        self._room = min(limits[0] - len(self._before) - len(self._after), limits[2])

    @staticmethod
    def shares_answers(request: Request) -> bool:
        """Whether the head of its answer depends on nothing but the app's own and the entry."""
        return request.one_dot_one and request.keep_alive and request.method != b"HEAD"

    @staticmethod
    def is_worth_it(request: Request, entry: RouteEntry) -> bool:
        """Whether a request may be judged once: nothing about it depends on more than its bytes and its entry."""
        return entry.public and request.length == 0 and not request.websocket

    def onward(self, data: bytes) -> bytes | None:
        """The head to send on where `data` is one request like the last; None: it must go the whole way."""
        if data == self._came:  # request.target is still the one of then
            return self._sent
        before, after = self._before, self._after
        if not (data.endswith(after) and data.startswith(before)):
            return None
        start, end = len(before), len(data) - len(after)
        if end - start > self._room or _TARGET.fullmatch(data, start, end) is None:
            return None
        self.request.target = data[start:end]
        self._came, self._sent = data, data[:end] + self._onward
        return self._sent
