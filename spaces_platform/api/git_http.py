"""Git's smart HTTP under `/spaces/OWNER/NAME[.git]`: parse, authorise, stream.

It owns HTTP: paths, credentials, content types, compressed bodies, error answers, and the life of a connection. Who may
do what, and what a push means, is the backend's; git itself is the RepoStore's. Invariant: bodies are streamed both
ways and never held whole; when the client goes, git ends. Protocol: `git help http-protocol`.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, RedirectResponse
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from builders.types import SourceTree
from spaces_platform.errors import Invalid, PlatformError, TooLarge, Unauthenticated
from spaces_platform.ports import RefUpdate, Repo, RepoStore

log = logging.getLogger(__name__)

_SERVICES = ("git-upload-pack", "git-receive-pack")
_FRESH = {"Cache-Control": "no-cache, max-age=0, must-revalidate", "Pragma": "no-cache", "Expires": "0"}
_REALM = 'Basic realm="Spaces: use an access token as the password", charset="UTF-8"'
_INFLATED_FREE = 1 << 20
_INFLATED_RATIO = 100
_INFLATED_MOST = 64 << 20
_PIECE = 65536


@dataclass(frozen=True, slots=True)
class GitAccess:
    """What a backend grants for one request."""

    repo: Repo
    actor: Any = None
    """The backend's own: who asks, and which Space."""
    moved_to: str | None = None
    """`owner/name` where the Space was renamed: the client is redirected there."""
    data: Mapping[str, Any] = field(default_factory=dict)


class GitBackend(Protocol):
    """What the platform decides for git over HTTP."""

    async def authorize(
        self, username: str | None, password: str | None, owner: str, name: str, *, write: bool
    ) -> GitAccess:
        """Grant access or raise. Both None: anonymous; a token may come as the password, or as the user name with
        an empty password. Raises NotFound (404), Unauthenticated (401), Forbidden (403).

        With `write` on a name that does not exist it may create the Space.
        """

    async def pushed(self, access: GitAccess, updates: Sequence[RefUpdate]) -> Sequence[str]:
        """Record a push, durably. Returns lines for the client. Raising makes the client's push fail."""

    def advise(self, access: GitAccess, tree: SourceTree) -> Sequence[str]:
        """Lines of advice on the tree that is pushed to main. Called in a worker thread, before the push is stored."""


def make_git_router(backend: GitBackend, store: RepoStore) -> APIRouter:
    """Routes for git clients, to be included at the root of the public address."""
    router = APIRouter(include_in_schema=False)

    async def advertisement(request: Request, owner: str, name: str) -> Response:
        service = request.query_params.get("service", "")
        if service not in _SERVICES:
            return await dumb()

        def answer(access: GitAccess) -> Response:
            protocol = request.headers.get("git-protocol", "")
            content_type = f"application/x-{service}-advertisement"
            return GitResponse(content_type, lambda _: store.advertise(access.repo, service, protocol))

        return await _authorized(backend, request, owner, name, service, answer)

    def exchange(service: str) -> Callable[[Request, str, str], Awaitable[Response]]:
        async def endpoint(request: Request, owner: str, name: str) -> Response:
            if request.headers.get("content-type") != f"application/x-{service}-request":
                return _text(415, f"The content type must be application/x-{service}-request.")
            if request.headers.get("content-encoding", "identity") not in {"identity", "gzip", "x-gzip"}:
                return _text(415, "The content encoding must be gzip, or none.")

            def answer(access: GitAccess) -> Response:
                return GitResponse(
                    f"application/x-{service}-result",
                    lambda body: _serve(backend, store, access, service, request, body),
                )

            return await _authorized(backend, request, owner, name, service, answer)

        return endpoint

    async def dumb() -> Response:
        return _text(403, "This server speaks git's smart HTTP protocol only; use git 1.6.6 or later.")

    base = "/spaces/{owner}/{name}"
    router.add_api_route(f"{base}/info/refs", advertisement, methods=["GET"])
    for service in _SERVICES:
        router.add_api_route(f"{base}/{service}", exchange(service), methods=["POST"])
    for path in ("HEAD", "objects/{rest:path}"):
        router.add_api_route(f"{base}/{path}", dumb, methods=["GET"])
    return router


def _serve(
    backend: GitBackend, store: RepoStore, access: GitAccess, service: str, request: Request, body: AsyncIterator[bytes]
) -> AsyncIterator[bytes]:
    async def on_pushed(updates: Sequence[RefUpdate]) -> Sequence[str]:
        return await backend.pushed(access, updates)

    if request.headers.get("content-encoding", "identity") != "identity":
        body = inflated(body)
    protocol = request.headers.get("git-protocol", "")
    return store.serve(
        access.repo, service, protocol, body, on_pushed=on_pushed, advise=lambda tree: backend.advise(access, tree)
    )


async def _authorized(
    backend: GitBackend,
    request: Request,
    owner: str,
    name: str,
    service: str,
    answer: Callable[[GitAccess], Response],
) -> Response:
    """The answer for a client that may, a redirect for a Space that moved, or the refusal."""
    name = name.removesuffix(".git")
    try:
        user, password = credentials(request.headers.get("authorization"))
        access = await backend.authorize(user, password, owner, name, write=service == "git-receive-pack")
    except PlatformError as error:
        return refusal(error)
    if access.moved_to is not None:
        rest = "info/refs" if request.method == "GET" else service
        query = f"?{request.url.query}" if request.url.query else ""
        return RedirectResponse(f"/spaces/{access.moved_to}/{rest}{query}", 307)
    return answer(access)


def credentials(header: str | None) -> tuple[str | None, str | None]:
    """User name and password of a Basic header; a Bearer token counts as a password. Raises Unauthenticated."""
    if not header:
        return None, None
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return "", value.strip()
    try:
        if scheme.lower() != "basic":
            raise ValueError(scheme)
        user, colon, password = base64.b64decode(value.strip(), validate=True).decode("utf-8").partition(":")
    except (ValueError, binascii.Error):
        raise Unauthenticated() from None
    return (user, password) if colon else (user, "")


def refusal(error: PlatformError) -> Response:
    """git shows a plain text body behind `remote:`."""
    headers = {"X-Error-Message": error.message.encode("ascii", "replace").decode().replace("\n", " ")}
    if error.hub_code:
        headers["X-Error-Code"] = error.hub_code
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = _REALM
    if error.retryable:
        headers["Retry-After"] = "10"
    return _text(error.http_status, error.message, headers)


def _text(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    return PlainTextResponse(f"{text}\n", status, {**_FRESH, **(headers or {})})


async def inflated(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """A gzip body in the clear, in bounded pieces.

    Raises Invalid where it is damaged or cut, TooLarge past a ratio or a size that no git client reaches.
    """
    inflater = zlib.decompressobj(31)
    taken = given = 0
    async for chunk in body:
        taken += len(chunk)
        while chunk:
            try:
                piece = inflater.decompress(chunk, _PIECE)
            except zlib.error as error:
                raise Invalid(f"The body is not gzip: {error}") from error
            given += len(piece)
            if given > _INFLATED_MOST or (given > _INFLATED_FREE and given > _INFLATED_RATIO * taken):
                raise TooLarge(
                    "The compressed body grows beyond what a git request needs; send it without compression."
                )
            if piece:
                yield piece
            chunk = inflater.unconsumed_tail
    if not inflater.eof:
        raise Invalid("The compressed body ends too early.")


class ClientGone(Exception):
    """The client closed the connection."""


class _Body:
    """The request's body, and afterwards the watch on its connection: the one reader of `receive`."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._done = receive, asyncio.Event()

    async def chunks(self) -> AsyncIterator[bytes]:
        """Raises ClientGone where the connection ends within the body."""
        more = not self._done.is_set()
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            more = message.get("more_body", False)
            if not more:
                self._done.set()
            if message.get("body"):
                yield message["body"]

    async def gone(self) -> None:
        """Returns when the client has gone after its whole body was read."""
        await self._done.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass


class GitResponse(Response):
    """Streams an answer while the request's body is still being read.

    Starlette's StreamingResponse reads `receive` itself to notice a disconnect, and would take body pieces away.
    The status is sent with the first piece, so that a refusal before it becomes an HTTP error; a failure after it
    closes the connection without an end, so that no client takes the answer for whole.
    """

    def __init__(self, content_type: str, answer: Callable[[AsyncIterator[bytes]], AsyncIterator[bytes]]) -> None:
        super().__init__(status_code=200, headers={**_FRESH, "Content-Type": content_type})
        del self.headers["content-length"]
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = _Body(receive)
        answer = asyncio.create_task(self._send(scope, body, send))
        watch = asyncio.create_task(body.gone())
        try:
            await asyncio.wait({answer, watch}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (watch, answer):
                task.cancel()
            await asyncio.gather(watch, answer, return_exceptions=True)
        if not answer.cancelled():
            answer.result()

    async def _send(self, scope: Scope, body: _Body, send: Send) -> None:
        started = False
        parts = cast(AsyncGenerator[bytes, None], self._answer(body.chunks()))
        try:
            async with aclosing(parts):
                async for chunk in parts:
                    if not started:
                        await self._start(send)
                    started = True
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except ClientGone:
            log.info("git client left", extra={"path": scope["path"]})
            return
        except PlatformError as error:
            log.info("git request failed: %s", error.message, extra={"path": scope["path"]})
            if not started:
                await refusal(error)(scope, _nothing_more, send)
            return
        except Exception:
            log.exception("git request failed", extra={"path": scope["path"]})
            if not started:
                await _text(500, "The platform failed; try again, or tell its operator.")(scope, _nothing_more, send)
            return
        if not started:
            await self._start(send)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _start(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})


async def _nothing_more() -> Message:
    return {"type": "http.disconnect"}
