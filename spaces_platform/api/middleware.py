"""What happens to every request before and after its route: request id, body limit, path segments, the last resort.

Owns the bounds that hold for all routes. Invariants: no body is read past its route's limit; every answer has an
X-Request-Id; a fault of ours becomes a JSON 500 with that id and a log line with the traceback.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spaces_platform.api.failures import refusal
from spaces_platform.api.urls import marked_path
from spaces_platform.errors import PlatformError

log = logging.getLogger(__name__)
access_log = logging.getLogger("spaces_platform.access")

_TRACE = re.compile(r"[0-9A-Za-z=;:._-]{8,100}\Z")
DEFAULT_LIMIT = 1 << 20
"""Bytes of a request body where its route says nothing else."""

Limit = Callable[[str], int | None]
"""From a path to the most bytes its body may have; None: the route bounds it itself."""


class Envelope:
    """Pure ASGI, so that streams pass through it untouched."""

    def __init__(self, app: ASGIApp, limit: Limit) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        began = time.monotonic()
        started: list[int] = []

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                started.append(message["status"])
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode("latin-1"))]
            await send(message)

        try:
            limit = self.limit(scope["path"])
            # A path of an OPTIONS request may be `*`.
            scope["path"] = marked_path(scope.get("raw_path") or scope["path"].encode("utf-8", "replace"))
            declared = _declared_length(scope)
            if limit is not None and declared is not None and declared > limit:
                await too_large(limit)(scope, receive, answer)
                return
            await self.app(scope, receive if limit is None else _bounded(receive, limit), answer)
        except Exception as exc:
            if started and _passes(exc):
                # Left without its end, the answer is cut, which its reader notices; there is nothing of ours to mend.
                log.warning("an answer was cut: %s", exc.__cause__ or exc, extra={"path": scope["path"]})
                return
            log.exception("request failed", extra={"request_id": request_id, "path": scope["path"]})
            if started:
                raise
            text = "The platform failed to answer; try again, and tell its admin if it happens again."
            await refusal(500, text)(scope, receive, answer)
        finally:
            seconds = round(time.monotonic() - began, 4)
            extra = {"method": scope["method"], "path": scope["path"], "status": started[0] if started else 0}
            access_log.debug("request", extra={**extra, "seconds": seconds, "request_id": request_id})


def _passes(error: BaseException) -> bool:
    """Whether it is one that passes by itself; the framework wraps what is raised once an answer has begun."""
    return any(isinstance(e, PlatformError) and e.retryable for e in (error, error.__cause__))


def too_large(limit: int) -> ASGIApp:
    return refusal(413, f"The body is larger than {limit} bytes, the most this address takes.")


def _bounded(receive: Receive, limit: int) -> Receive:
    taken = 0

    async def read() -> MutableMapping[str, Any]:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > limit:
            raise HTTPException(413, f"The body is larger than {limit} bytes, the most this address takes.")
        return message

    return read


def _declared_length(scope: Scope) -> int | None:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() and len(value) < 19 else 1 << 62
    return None


def _request_id(scope: Scope) -> str:
    """Ours; with the client's trace id in it, which its error messages show."""
    own = uuid.uuid4().hex[:12]
    for name, value in scope["headers"]:
        if name == b"x-amzn-trace-id":
            trace = value.decode("latin-1")
            return f"{own}-{trace}" if _TRACE.match(trace) else own
    return own
