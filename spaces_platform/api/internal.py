"""The link to the gateways: the route stream, wakes, activity, and who may see a private Space.

Owns `/internal/gateway/*`. All of it needs the link token (DIR/run/link.token); the gateway never forwards `/internal/`
from outside. Invariants: the route stream holds no database connection while it waits; a crowd that wakes one Space is
one write.

- `GET routes?after=V&gateway=ID`: NDJSON. First everything newer than V (V 0, or newer than ours: the full table, then
  `{"version": N, "complete": true}`), then changes as they come, each batch followed by `{"version": N}`, which is also
  the heartbeat, at least every HEARTBEAT_SECONDS. Each other line is one entry (`spaces_platform.routing.route_entry`).
- `POST wake {"spaces": [12]}` -> 202.
- `POST activity {"gateway", "applied", "full", "spaces": [{"space", "deployment", "in_flight", "attached",
  "sockets", "last_active", "requests", "errors"}]}` -> `{"ok": true}`. `requests` and `errors` count from when the
  gateway first routed there; `sockets` are the open WebSockets among the attached.
  `full`: what is not named has no request in flight; the first report after the route stream was opened is one.
- `POST authorize {"space", "token" | "session" | "sign"}` -> `{"allow": bool}`.
- `POST exchange {"space", "code" | "sign"}` -> `{"session", "max_age"}`, or 401.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import secrets
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from sqlmodel import select
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from spaces_platform.accounts import SESSION_SECONDS, Access, Actor, access
from spaces_platform.api.deps import MAX_INT, PlatformDep
from spaces_platform.api.signing import signed_user
from spaces_platform.errors import Forbidden, PlatformError, RepoNotFound, Unauthenticated, Unavailable
from spaces_platform.models import Counter
from spaces_platform.ports import Task
from spaces_platform.routing import PAGE
from spaces_platform.traffic import SpaceTraffic

HEARTBEAT_SECONDS = 4.0
MAX_STREAMS = 64
"""Gateways at once; more are a fault of somebody's."""

Id = Annotated[int, Field(ge=0, le=MAX_INT)]
Secret = Annotated[str, Field(max_length=4096)]


class WakeIn(BaseModel):
    spaces: Annotated[list[Id], Field(min_length=1, max_length=1000)]


class TrafficRow(BaseModel):
    space: Id
    deployment: Id | None = None
    in_flight: Id = 0
    attached: Id = 0
    sockets: Id = 0
    last_active: float = Field(default=0.0, ge=0.0, le=1e12, allow_inf_nan=False)
    requests: Id = 0
    errors: Id = 0


class ActivityIn(BaseModel):
    gateway: Annotated[str, Field(max_length=200)]
    applied: Id
    full: bool = False
    spaces: Annotated[list[TrafficRow], Field(max_length=20_000)] = []


class CredentialIn(BaseModel):
    space: Id
    token: Secret | None = None
    session: Secret | None = None
    sign: Secret | None = None
    code: Secret | None = None


def link_token(run: Path) -> str:
    """The token of DIR/run/link.token, made where there is none. Raises OSError."""
    path = run / "link.token"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    with os.fdopen(descriptor, "w") as file:
        file.write(token := secrets.token_urlsafe(32))
    return token


async def check_link(request: Request) -> None:
    given = request.headers.get("authorization", "")
    if not hmac.compare_digest(given.encode(), f"Bearer {request.app.state.link_token}".encode()):
        raise Forbidden("The link token is wrong.")


router = APIRouter(prefix="/internal/gateway", include_in_schema=False, dependencies=[Depends(check_link)])


@router.get("/routes")
async def routes(
    request: Request,
    platform: PlatformDep,
    after: Annotated[int, Query(ge=0, le=MAX_INT)] = 0,
    gateway: Annotated[str, Query(max_length=200)] = "",
) -> Response:
    streams = request.app.state.streams
    body = _follow(platform, after, gateway, streams.stopping)
    return StreamingResponse(
        streams.counted("gateway", MAX_STREAMS, body),
        media_type="application/x-ndjson",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _follow(platform: Any, after: int, gateway: str, stopping: asyncio.Event) -> AsyncIterator[bytes]:
    with platform.feed.subscribe() as watch:
        version, full = after, after == 0
        if after and after > await run_in_threadpool(_newest, platform):
            # The gateway knows another database: it starts over.
            version, full = 0, True
        while True:
            version, lines, more = await run_in_threadpool(_page, platform, version)
            if lines:
                yield lines
            if not more:
                break
        yield _line({"version": version, "complete": True} if full else {"version": version})
        touched: set[int] = set()
        while not stopping.is_set():
            platform.traffic.seen(gateway, platform.clock.now().timestamp())
            touched |= await watch.next(HEARTBEAT_SECONDS)
            try:
                version, lines = await run_in_threadpool(_changes, platform, version, touched)
            except Unavailable:
                # While the database is away nothing changes: the gateway keeps what it has.
                lines = _line({"version": version})
            else:
                touched = set()
            yield lines


def _page(platform: Any, version: int) -> tuple[int, bytes, bool]:
    """The next page after `version`: the version it ends at, its lines, and whether there may be more."""
    entries = platform.routes.after(version, PAGE)
    return (entries[-1]["version"] if entries else version), _lines(entries), len(entries) >= PAGE


def _newest(platform: Any) -> int:
    with platform.store.read() as db:
        return int(db.exec(select(Counter.value).where(Counter.name == "route")).first() or 0)


def _changes(platform: Any, version: int, touched: Iterable[int]) -> tuple[int, bytes]:
    """Everything newer than `version`, after the progress of those touched Spaces that it does not have."""
    newer: list[dict[str, Any]] = []
    while page := platform.routes.after(version, PAGE):
        newer += page
        version = page[-1]["version"]
        if len(page) < PAGE:
            break
    left = set(touched) - {e["space"] for e in newer}
    current = platform.routes.of(left) if left else []
    return version, _lines([*current, *newer]) + _line({"version": version})


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _lines(values: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(_line(v) for v in values)


@router.post("/wake", status_code=202)
async def wake(body: WakeIn, request: Request, platform: PlatformDep) -> dict[str, Any]:
    waking: set[int] = request.app.state.waking
    # Of those that are being woken already, another call asks for the same thing.
    if spaces := set(body.spaces) - waking:
        waking |= spaces
        try:
            await run_in_threadpool(platform.spaces.wake, *spaces)
        finally:
            waking -= spaces
    return {"ok": True}


@router.post("/activity")
async def activity(body: ActivityIn, platform: PlatformDep) -> dict[str, Any]:
    rows = [SpaceTraffic(**row.model_dump()) for row in body.spaces]
    drained = platform.traffic.report(
        body.gateway, body.applied, rows, platform.clock.now().timestamp(), full=body.full
    )
    for space_id in drained:
        platform.queue.send(Task.RECONCILE, space_id)
    return {"ok": True}


@router.post("/authorize")
def authorize(body: CredentialIn, platform: PlatformDep) -> dict[str, Any]:
    try:
        actor = _actor(platform, body)
        return {"allow": access(actor, platform.directory.by_id(body.space)) >= Access.READ}
    except Unavailable:
        raise
    except PlatformError:
        return {"allow": False}


@router.post("/exchange")
def exchange(body: CredentialIn, platform: PlatformDep) -> dict[str, Any]:
    space = platform.directory.by_id(body.space)
    if body.code is not None:
        session = platform.accounts.exchange_code(body.code, space_id=body.space)
        actor = platform.accounts.actor_of_session(session, space_id=body.space)
    else:
        actor = _actor(platform, body)
        session = platform.accounts.open_session(actor, space_id=body.space)
    if access(actor, space) < Access.READ:
        raise RepoNotFound()
    return {"session": session, "max_age": SESSION_SECONDS}


def _actor(platform: Any, body: CredentialIn) -> Actor:
    """Raises Unauthenticated."""
    accounts = platform.accounts
    if body.token is not None:
        found = accounts.actor_of_token(body.token)
    elif body.session is not None:
        found = accounts.actor_of_session(body.session, space_id=body.space)
    elif body.sign is not None:
        now = platform.clock.now().timestamp()
        found = accounts.actor_of_user(signed_user(platform.vault, body.sign, body.space, now))
    else:
        raise Unauthenticated("No credential was given.")
    if not isinstance(found, Actor):
        raise Unauthenticated()
    return found
