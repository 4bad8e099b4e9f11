"""Spaces as clients see them: the Hub's runtime and info objects, and the platform's own SpaceStatus.

Owns every JSON shape of a Space and what each degree of access sees of it. Does not own the rows. Invariants: a list
costs a fixed number of queries; people without write access never see an error stage, message or log of a Space that
still serves; times end in `Z` with milliseconds (the Hub's clients refuse `+00:00`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlmodel import col, select

from spaces_platform.accounts import Access, Actor, access
from spaces_platform.models import Build, Deployment, Host, Space
from spaces_platform.names import public_id
from spaces_platform.routing import progress_of
from spaces_platform.settings import Settings

if TYPE_CHECKING:
    from spaces_platform.platform import Platform

ERROR_STAGES = frozenset({"NO_APP_FILE", "CONFIG_ERROR", "BUILD_ERROR", "RUNTIME_ERROR"})
"""Stages in which clients refuse to talk to the app (gradio_client raises ValueError)."""
RUNNING_STAGES = frozenset({"RUNNING", "RUNNING_BUILDING", "RUNNING_APP_STARTING"})


@dataclass(frozen=True, slots=True)
class View:
    """A Space with the rows around it that its shapes need."""

    space: Space
    hosts: Mapping[str, str] = field(default_factory=dict)
    """Host name by kind."""
    routed: Deployment | None = None
    build: Build | None = None
    """The newest one."""


def stamp(seconds: float | None) -> str | None:
    """Unix seconds as the Hub writes times."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def instant(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def load(platform: Platform, spaces: Sequence[Space], *, builds: bool = False) -> list[View]:
    """Views of these Spaces, in their order."""
    ids = [s.id for s in spaces]
    if not ids:
        return []
    hosts: dict[int, dict[str, str]] = {}
    newest: dict[int, Build] = {}
    with platform.store.read() as db:
        for host in db.exec(select(Host).where(col(Host.space_id).in_(ids), Host.kind != "redirect")):
            hosts.setdefault(host.space_id, {})[host.kind] = host.host
        routed = [s.routed for s in spaces if s.routed is not None]
        live = {d.id: d for d in db.exec(select(Deployment).where(col(Deployment.id).in_(routed)))} if routed else {}
        if builds:
            for space_id in ids:
                query = select(Build).where(Build.space_id == space_id).order_by(col(Build.id).desc()).limit(1)
                build = db.exec(query).first()
                if build is not None:
                    newest[build.space_id] = build
    return [View(s, hosts.get(s.id or 0, {}), live.get(s.routed), newest.get(s.id or 0)) for s in spaces]


def load_one(platform: Platform, space: Space, *, builds: bool = False) -> View:
    return load(platform, [space], builds=builds)[0]


def fresh(platform: Platform, space_id: int) -> Space | None:
    """The row as it is now; None once the Space is gone."""
    with platform.store.read() as db:
        space = db.get(Space, space_id)
    return None if space is None or space.purged_at is not None else space


def shown_stage(space: Space, mine: Access) -> str:
    """The stage as somebody with this access sees it."""
    if mine < Access.WRITE and space.stage in ERROR_STAGES and space.routed is not None:
        return "RUNNING"
    return space.stage


def urls(view: View, settings: Settings) -> dict[str, str | None]:
    """`browser`: by host name; `direct`: by loopback address, for clients whose resolver lacks `*.localhost`."""
    primary, loopback = view.hosts.get("primary"), view.hosts.get("loopback")
    return {
        "browser": settings.app_url(primary) if primary else settings.url + "/",
        "direct": settings.app_url(loopback) if loopback and settings.has_loopback_addresses else None,
    }


def host_url(view: View, settings: Settings) -> str:
    """What API clients use to reach the app; ends in `/`, since clients join paths to it."""
    both = urls(view, settings)
    return both["direct"] or both["browser"] or ""


def subdomain(view: View, settings: Settings) -> str:
    return view.hosts.get("primary", "").removesuffix(f".{settings.domain}")


def runtime(view: View, mine: Access, settings: Settings) -> dict[str, Any]:
    """SpaceRuntime (hub-api 4.1)."""
    space = view.space
    stage = shown_stage(space, mine)
    up = view.routed is not None
    sleep = space.sleep_after if space.sleep_after is not None else settings.sleep_after
    hidden = mine < Access.WRITE and stage != space.stage
    return {
        "stage": stage,
        "hardware": {"current": view.routed.hardware if view.routed else None, "requested": space.hardware},
        "storage": space.storage,
        "gcTimeout": sleep,
        "replicas": {"current": 1 if up else 0, "requested": 1},
        "devMode": False,
        "domains": [
            {"domain": name, "stage": "READY"} for kind, name in sorted(view.hosts.items()) if kind == "primary"
        ],
        "sha": view.routed.commit if view.routed is not None else None,
        "errorMessage": space.message if stage in ERROR_STAGES and not hidden and space.message else None,
        "volumes": [],
    }


INFO_FIELDS = (
    "author", "cardData", "createdAt", "datasets", "disabled", "gated", "host", "lastModified", "likes", "models",
    "private", "resourceGroup",
    "runtime", "sdk", "sha", "siblings", "subdomain", "tags", "trendingScore", "usedStorage",
)  # fmt: skip
"""What `expand` may name."""
LIST_FIELDS = (
    "author",
    "createdAt",
    "lastModified",
    "likes",
    "private",
    "sdk",
    "tags",
    "sha",
    "runtime",
    "subdomain",
    "host",
)


def info(view: View, mine: Access, settings: Settings, fields: Sequence[str] = LIST_FIELDS) -> dict[str, Any]:
    """SpaceInfo (hub-api 2.5) with `fields`, siblings aside, which need the repository."""
    space = view.space
    card = dict(space.card or {})
    everything: dict[str, Any] = {
        "author": space.owner,
        "cardData": card,
        "createdAt": stamp(space.created_at),
        "datasets": card.get("datasets") or [],
        "disabled": False,
        "gated": False,
        "host": host_url(view, settings),
        "lastModified": stamp(space.modified_at),
        "likes": 0,
        "models": card.get("models") or [],
        "private": space.visibility == "private",
        "resourceGroup": None,
        "runtime": runtime(view, mine, settings),
        "sdk": space.sdk,
        "sha": space.head,
        "siblings": [],
        "subdomain": subdomain(view, settings),
        "tags": [t for t in (space.sdk, *(card.get("tags") or [])) if t],
        "trendingScore": 0,
        "usedStorage": 0,
    }
    chosen = {name: everything[name] for name in fields if name in everything}
    return {"_id": public_id(space.id or 0), "id": f"{space.owner}/{space.name}", **chosen}


# --- the platform's own -------------------------------------------------------------------------------------
def status(platform: Platform, space: Space, actor: Actor, base: str | None = None) -> dict[str, Any]:
    """SpaceStatus: everything that a page or a command line shows of one Space."""
    view = load_one(platform, space, builds=True)
    mine = access(actor, space)
    settings = platform.settings
    writer = mine >= Access.WRITE
    stage = shown_stage(space, mine)
    hidden = stage != space.stage
    live = view.build if view.build is not None and view.build.status in ("QUEUED", "RUNNING") else None
    shown = view.routed or _newest_deployment(platform, space)
    base = base or settings.url
    name = f"{space.owner}/{space.name}"
    return {
        "id": space.id,
        "name": name,
        "stage": stage,
        "reason": "" if hidden else space.reason,
        "message": "" if hidden else space.message,
        "evidence": list(space.evidence) if writer else [],
        "sdk": space.sdk,
        "title": space.title or space.name,
        "emoji": space.emoji,
        "visibility": space.visibility,
        "head": space.head,
        "servingCommit": view.routed.commit if view.routed is not None else None,
        "reachable": space.routed is not None
        and platform.traffic.is_applied(space.route_version, platform.clock.now().timestamp()),
        "urls": urls(view, settings),
        "page": f"{base}/spaces/{name}",
        "gitUrl": f"{base}/spaces/{name}",
        "hardware": space.hardware,
        "storage": space.storage,
        "sleepAfter": space.sleep_after if space.sleep_after is not None else settings.sleep_after,
        "progress": progress_of(space, live),
        "build": build(platform, view.build) if view.build is not None and writer else None,
        "deployment": deployment(shown, mine) if shown is not None and writer else None,
        "traffic": {
            "inFlight": platform.traffic.in_flight(space.id or 0),
            "attached": platform.traffic.attached(space.id or 0),
            "lastActiveAt": max(space.last_active_at, platform.traffic.last_active(space.id or 0)) or None,
        },
        "access": mine.name.lower(),
    }


def _newest_deployment(platform: Platform, space: Space) -> Deployment | None:
    with platform.store.read() as db:
        query = select(Deployment).where(Deployment.space_id == space.id).order_by(col(Deployment.id).desc()).limit(1)
        return db.exec(query).first()


def build(platform: Platform, row: Build) -> dict[str, Any]:
    return {
        "id": row.id,
        "commit": row.commit,
        "status": row.status,
        "phase": row.phase,
        "phaseText": row.phase_text,
        "phaseAt": row.phase_at,
        "position": platform.builds.position(row) if row.status == "QUEUED" else None,
        "createdAt": row.created_at,
        "startedAt": row.started_at,
        "endedAt": row.ended_at,
        "reason": row.reason,
        "message": row.message,
        "evidence": list(row.evidence),
    }


def deployment(row: Deployment, mine: Access) -> dict[str, Any]:
    return {
        "id": row.id,
        "commit": row.commit,
        "status": row.status,
        "live": row.live,
        # Where it listens is of no use to anybody but who runs the machine.
        "endpoint": row.endpoint if mine >= Access.ADMIN else None,
        "isolation": row.isolation,
        "reason": row.reason,
        "message": row.message,
        "exitCode": row.exit_code,
        "createdAt": row.created_at,
        "readyAt": row.ready_at,
        "routedAt": row.routed_at,
        "endedAt": row.ended_at,
    }
