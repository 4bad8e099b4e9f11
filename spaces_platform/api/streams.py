"""Server-sent events: build and run logs for the Hub's clients, and what happens to a Space.

Owns how a stream is fed, bounded and ended. Invariants: the event loop never waits for a file or the database; a stream
ends at once when the platform stops; there are never more than MAX_STREAMS of them.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from sqlmodel import col, select
from starlette.responses import Response

from spaces_platform.accounts import Access, Actor, access
from spaces_platform.api import views
from spaces_platform.api.deps import ActorDep, BaseDep, PlatformDep, ReadableSpace, WritableSpace
from spaces_platform.api.log_hub import LogHub, Page, Read
from spaces_platform.errors import TooMany
from spaces_platform.logs import LogFeed
from spaces_platform.models import Build, Deployment, Space
from spaces_platform.ports import LogLine

router = APIRouter(tags=["streams"])
T = TypeVar("T")

MAX_STREAMS = 500
MAX_LOG_STREAMS = 4000
"""Viewers of logs: they share what is read (`log_hub`), so there may be more of them."""
KEEP_ALIVE_SECONDS = 15.0
"""Clients that do not follow take 5 s of silence for the end of the log, those that do reconnect after 120 s."""
STATUS_POLL_SECONDS = 5.0
SPACING_SECONDS = 0.1
"""Least time between two status events of one stream: a build that prints fast must not flood its watchers."""
_KEEP_ALIVE = b": keep-alive\n\n"
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class Streams:
    """All open streams of this process."""

    def __init__(self, log_feed: LogFeed) -> None:
        self.stopping = asyncio.Event()
        self.logs = LogHub(self.thread, log_feed, _log_event)
        self.open: Counter[str] = Counter()
        self._threads: CapacityLimiter | None = None

    def stop(self) -> None:
        """End every stream. Call it on the event loop."""
        self.stopping.set()

    async def thread(self, work: Callable[[], T]) -> T:
        """Run blocking `work` in a thread of the streams' own, so that they never keep requests waiting."""
        if self._threads is None:
            self._threads = CapacityLimiter(8)
        return await to_thread.run_sync(work, limiter=self._threads)

    async def pause(self, seconds: float) -> bool:
        """Wait; False once the platform stops."""
        try:
            await asyncio.wait_for(self.stopping.wait(), seconds)
        except TimeoutError:
            return True
        return False

    def counted(self, kind: str, most: int, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The stream, counted while it runs and ended when the platform stops. Raises TooMany."""
        if self.open[kind] >= most:
            raise TooMany(f"There are {most} open streams, the most there may be; close one, or try again later.")
        return self._counted(kind, body)

    async def _counted(self, kind: str, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        self.open[kind] += 1
        stop = asyncio.ensure_future(self.stopping.wait())
        piece: asyncio.Future[bytes] | None = None
        try:
            while True:
                piece = asyncio.ensure_future(anext(body))
                await asyncio.wait({piece, stop}, return_when=asyncio.FIRST_COMPLETED)
                if not piece.done():
                    return
                try:
                    yield piece.result()
                except StopAsyncIteration:
                    return
        finally:
            self.open[kind] -= 1
            for task in (stop, piece):
                if task is not None and not task.done():
                    task.cancel()
            if piece is not None:
                await asyncio.wait({piece}, timeout=5)
            await body.aclose()  # type: ignore[attr-defined]


def sse(streams: Streams, body: AsyncIterator[bytes]) -> Response:
    return StreamingResponse(
        streams.counted("sse", MAX_STREAMS, body), media_type="text/event-stream", headers=_HEADERS
    )


def data(value: Any) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


# --- logs ---------------------------------------------------------------------------------------------------
Tail = Annotated[
    int | None, Query(ge=0, le=100_000, description="Only so many of the lines there are, then what comes.")
]
AT = "/api/spaces/{owner}/{name}"
_SSE: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}


@router.get(AT + "/logs/build", response_class=Response, responses=_SSE, summary="Log of the newest build, followed")
def build_log(request: Request, space: WritableSpace, platform: PlatformDep, tail: Tail = None) -> Response:
    build_id = newest_id(platform, Build, space)
    return _log(request, f"build/{build_id}", lambda after: read_build(platform, build_id, after), tail)


@router.get(AT + "/logs/run", response_class=Response, responses=_SSE, summary="Output of the app, followed")
def run_log(request: Request, space: WritableSpace, platform: PlatformDep, tail: Tail = None) -> Response:
    deployment_id = newest_id(platform, Deployment, space)
    return _log(request, f"run/{deployment_id}", lambda after: read_run(platform, deployment_id, after), tail)


def _log(request: Request, stream: str, read: Read, tail: int | None) -> Response:
    """Replays from the start of the stream, then follows: a client that reconnects skips what it has seen."""
    streams: Streams = request.app.state.streams
    lines = streams.logs.follow(stream, read, tail=tail, idle=KEEP_ALIVE_SECONDS, idle_word=_KEEP_ALIVE)
    body = streams.counted("logs", MAX_LOG_STREAMS, lines)
    return StreamingResponse(body, media_type="text/event-stream", headers=_HEADERS)


def newest_id(platform: Any, table: type[Build] | type[Deployment], space: Space) -> int | None:
    with platform.store.read() as db:
        query = select(table.id).where(table.space_id == space.id).order_by(col(table.id).desc()).limit(1)
        found = db.exec(query).first()
    return found if isinstance(found, int) else None


def read_build(platform: Any, build_id: int | None, after: int) -> Page:
    """Lines of a build. The row is read before the lines, so that an ended build's last line is never missed."""
    if build_id is None:
        return (), True
    with platform.store.read() as db:
        row = db.get(Build, build_id)
    done = row is None or row.status not in ("QUEUED", "RUNNING")
    return platform.logs.read(f"build/{build_id}", after), done


def read_run(platform: Any, deployment_id: int | None, after: int) -> Page:
    if deployment_id is None:
        return (), True
    with platform.store.read() as db:
        row = db.get(Deployment, deployment_id)
    done = row is None or row.status in ("GONE", "FAILED")
    return platform.deployments.logs(deployment_id, after), done


def _log_event(line: LogLine) -> bytes:
    return data({"data": line.text + "\n", "timestamp": views.instant(line.at)})


# --- what happens to a Space --------------------------------------------------------------------------------
@router.get(AT + "/events", response_class=Response, responses=_SSE, summary="Runtime of a Space whenever it changes")
async def hub_events(request: Request, space: ReadableSpace, actor: ActorDep, platform: PlatformDep) -> Response:
    def look() -> dict[str, Any] | None:
        row = views.fresh(platform, space.id or 0)
        if row is None:
            return None
        return views.info(views.load_one(platform, row), access(actor, row), platform.settings)

    return sse(request.app.state.streams, changes(request.app.state.streams, platform, space.id or 0, look))


@router.get(
    "/api/platform/spaces/{owner}/{name}/events",
    response_class=Response,
    responses=_SSE,
    summary="SpaceStatus, now and whenever it changes",
)
async def platform_events(
    request: Request, space: ReadableSpace, actor: ActorDep, platform: PlatformDep, base: BaseDep
) -> Response:
    look = _status_reader(platform, space.id or 0, actor, base)
    return sse(request.app.state.streams, changes(request.app.state.streams, platform, space.id or 0, look))


def _status_reader(platform: Any, space_id: int, actor: Actor, base: str) -> Callable[[], dict[str, Any] | None]:
    def look() -> dict[str, Any] | None:
        row = views.fresh(platform, space_id)
        # Somebody may have taken the right to see it since the stream began.
        if row is None or access(actor, row) < Access.READ:
            return None
        return views.status(platform, row, actor, base)

    return look


async def changes(
    streams: Streams, platform: Any, space_id: int, look: Callable[[], dict[str, Any] | None]
) -> AsyncIterator[bytes]:
    """Each new value of `look`, until it is None. Looks when the Space changed, and every few seconds."""
    last, quiet = None, 0.0
    loop = asyncio.get_running_loop()
    with platform.feed.subscribe() as watch:
        while True:
            value = await streams.thread(look)
            if value is None:
                return
            if value != last:
                last, quiet = value, 0.0
                yield data(value)
            elif quiet >= KEEP_ALIVE_SECONDS:
                quiet = 0.0
                yield _KEEP_ALIVE
            if not await streams.pause(SPACING_SECONDS):
                return
            began, touched = loop.time(), set[int]()
            while space_id not in touched and loop.time() - began < STATUS_POLL_SECONDS:
                touched = await watch.next(STATUS_POLL_SECONDS - (loop.time() - began))
            quiet += loop.time() - began + SPACING_SECONDS
