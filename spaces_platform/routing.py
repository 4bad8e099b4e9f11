"""The route table that gateways follow: a projection of the Space and Deployment rows, ordered by version.

A gateway asks for everything after the version it has. `RouteFeed` wakes waiting streams; losing a wake-up costs one
heartbeat's time, since every stream re-reads by version.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from sqlalchemy import bindparam
from sqlalchemy.orm import defer
from sqlmodel import Session as Read
from sqlmodel import col, select

from spaces_platform.models import Build, Deployment, Host, Space
from spaces_platform.settings import Settings
from spaces_platform.store import Store

PAGE = 500

WAKEABLE = frozenset({"SLEEPING", "BUILDING", "APP_STARTING", "RUNNING", "RUNNING_BUILDING", "RUNNING_APP_STARTING"})
"""Stages in which a visitor is worth holding: an app is there, on its way, or can be started."""
# Made once, and without the plans, which may be long: every change of any Space reads them for every gateway.
_SPACES = select(Space).options(defer(Space.plan))  # type: ignore[arg-type]
_HOSTS = select(Host).where(col(Host.space_id).in_(bindparam("spaces", expanding=True)))
_ENDPOINTS = select(Deployment.id, Deployment.endpoint).where(
    col(Deployment.id).in_(bindparam("deployments", expanding=True))
)
_BUILDS = (
    select(Build)
    .where(col(Build.space_id).in_(bindparam("spaces", expanding=True)), col(Build.status).in_(("QUEUED", "RUNNING")))
    .options(defer(Build.plan))  # type: ignore[arg-type]
)


class Changes(Protocol):
    """Who wants to know that a Space's routes or progress changed. A lost word costs latency, never correctness."""

    def changed(self, space_id: int) -> None: ...


class Told:
    """Changes, told to a function."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self._tell = tell

    def changed(self, space_id: int) -> None:
        self._tell(space_id)


class RouteFeed:
    """Wakes the streams of this process when routes or progress changed. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiters: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self._touched: dict[tuple[asyncio.AbstractEventLoop, asyncio.Event], set[int]] = {}

    def changed(self, space_id: int) -> None:
        with self._lock:
            for waiter in self._waiters:
                self._touched.setdefault(waiter, set()).add(space_id)
                loop, event = waiter
                if not loop.is_closed():
                    loop.call_soon_threadsafe(event.set)

    async def watch(self, timeout: float, waiter: Watch) -> set[int]:
        """Spaces that changed since the last call; empty after `timeout` seconds."""
        key = waiter.key
        try:
            await asyncio.wait_for(key[1].wait(), timeout)
        except TimeoutError:
            return set()
        with self._lock:
            key[1].clear()
            return self._touched.pop(key, set())

    def subscribe(self) -> Watch:
        key = (asyncio.get_running_loop(), asyncio.Event())
        with self._lock:
            self._waiters.add(key)
        return Watch(self, key)

    def unsubscribe(self, watch: Watch) -> None:
        with self._lock:
            self._waiters.discard(watch.key)
            self._touched.pop(watch.key, None)


class Watch:
    """One subscription; use as a context manager."""

    def __init__(self, feed: RouteFeed, key: tuple[asyncio.AbstractEventLoop, asyncio.Event]) -> None:
        self.feed, self.key = feed, key

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.feed.unsubscribe(self)

    async def next(self, timeout: float) -> set[int]:
        return await self.feed.watch(timeout, self)


class Routes:
    """Reads the route table."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.store, self.settings = store, settings

    def after(self, version: int, limit: int = PAGE) -> list[dict[str, Any]]:
        """Entries newer than `version`, oldest first: about `limit`, and all that share the last one's version.

        Several Spaces may have one version (all that a shutdown puts to sleep), and the next page begins after it.
        """
        with self.store.read() as db:
            where = [col(Space.route_version) > version]
            if version == 0:
                where.append(col(Space.purged_at).is_(None))
            spaces = list(db.exec(_SPACES.where(*where).order_by(col(Space.route_version)).limit(limit)))
            if len(spaces) == limit:
                known = {s.id for s in spaces}
                same = db.exec(_SPACES.where(*where, Space.route_version == spaces[-1].route_version))
                spaces += [s for s in same if s.id not in known]
            return self._entries(db, spaces)

    def of(self, ids: Iterable[int]) -> list[dict[str, Any]]:
        """Entries of these Spaces as they are now."""
        with self.store.read() as db:
            spaces = db.exec(_SPACES.where(col(Space.id).in_(list(ids)))).all()
            return self._entries(db, spaces)

    def _entries(self, db: Read, spaces: Sequence[Space]) -> list[dict[str, Any]]:
        if not spaces:
            return []
        ids = [s.id for s in spaces]
        hosts: dict[int, list[Host]] = {}
        for host in db.execute(_HOSTS, {"spaces": ids}).scalars():
            hosts.setdefault(host.space_id, []).append(host)
        routed = [s.routed for s in spaces if s.routed is not None]
        endpoints: dict[int | None, str | None] = {}
        if routed:
            endpoints = {row.id: row.endpoint for row in db.execute(_ENDPOINTS, {"deployments": routed})}
        builds = {b.space_id: b for b in db.execute(_BUILDS, {"spaces": ids}).scalars()}
        return [
            route_entry(s, hosts.get(s.id or 0, []), endpoints.get(s.routed), builds.get(s.id or 0), self.settings)
            for s in spaces
        ]


def route_entry(
    space: Space, hosts: Sequence[Host], endpoint: str | None, build: Build | None, settings: Settings
) -> dict[str, Any]:
    """One entry as gateways read it. Pure."""
    card = space.card or {}
    order = {"primary": 0, "loopback": 1, "custom": 2}
    names = sorted((h for h in hosts if h.kind in order), key=lambda h: order[h.kind])
    return {
        "space": space.id,
        "version": space.route_version,
        "name": f"{space.owner}/{space.name}",
        "title": space.title or space.name,
        "emoji": space.emoji,
        "hosts": [h.host for h in names],
        "redirects": [h.host for h in hosts if h.kind == "redirect"],
        "stage": space.stage,
        "message": space.message,
        "progress": progress_of(space, build),
        "deployment": space.routed,
        "endpoint": endpoint,
        "wakeable": space.stage in WAKEABLE,
        "public": space.visibility == "public",
        "embed": not card.get("disable_embedding", False),
        "headers": dict(card.get("custom_headers") or {}),
        "page": f"{settings.url}/spaces/{space.owner}/{space.name}",
        "retry_after": 0,
        "gone": space.purged_at is not None or space.desired == "DELETED",
    }


def progress_of(space: Space, build: Build | None) -> dict[str, Any] | None:
    """The named step that a waiting visitor or owner sees, with the time it began."""
    if build is not None:
        text = f"{build.phase} {build.phase_text}".strip()
        return {"phase": build.phase, "text": text, "since": build.phase_at}
    if space.stage in ("APP_STARTING", "RUNNING_APP_STARTING"):
        if space.start_queued_at is not None:
            return {
                "phase": "queued",
                "text": space.message or "waiting for a free place to start",
                "since": space.start_queued_at,
            }
        return {"phase": "starting", "text": "starting", "since": space.last_active_at}
    return None
