"""The platform's own API of Spaces: status, sleep and wake, builds, deployments, history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from sqlmodel import col, select

from spaces_platform.accounts import Actor, access
from spaces_platform.api import views
from spaces_platform.api.deps import ActorDep, After, BaseDep, Number, PlatformDep, ReadableSpace, WritableSpace
from spaces_platform.api.schemas import BuildOut, DeploymentOut, EventOut, LogPage, SpaceStatus
from spaces_platform.api.streams import read_build, read_run
from spaces_platform.build_files import BuildFile
from spaces_platform.errors import NotFound
from spaces_platform.models import Build, Deployment, Space
from spaces_platform.ports import LogLine

router = APIRouter(prefix="/api/platform/spaces/{owner}/{name}", tags=["platform"])

PAGE_LINES = 5000
LIST = 50


def _status(platform: Any, space: Space, actor: Actor, base: str) -> dict[str, Any]:
    row = views.fresh(platform, space.id or 0) or space
    return views.status(platform, row, actor, base)


@router.get("", response_model=SpaceStatus, summary="Everything about a Space's state")
def status(space: ReadableSpace, actor: ActorDep, platform: PlatformDep, base: BaseDep) -> dict[str, Any]:
    return _status(platform, space, actor, base)


@router.post("/sleep", response_model=SpaceStatus, summary="Put it to sleep now")
def sleep(space: WritableSpace, actor: ActorDep, platform: PlatformDep, base: BaseDep) -> dict[str, Any]:
    platform.spaces.sleep(space, actor)
    return _status(platform, space, actor, base)


@router.post("/wake", response_model=SpaceStatus, summary="Wake it, as a visit does")
def wake(space: ReadableSpace, actor: ActorDep, platform: PlatformDep, base: BaseDep) -> dict[str, Any]:
    platform.spaces.wake(space.id or 0, actor=actor)
    return _status(platform, space, actor, base)


@router.get("/builds", response_model=list[BuildOut], summary="Newest builds first")
def builds(space: WritableSpace, platform: PlatformDep) -> list[dict[str, Any]]:
    with platform.store.read() as db:
        query = select(Build).where(Build.space_id == space.id).order_by(col(Build.id).desc()).limit(LIST)
        rows = db.exec(query).all()
    return [views.build(platform, row) for row in rows]


def _build(platform: Any, space: Space, id: int) -> Build:
    with platform.store.read() as db:
        row = db.get(Build, id)
    if not isinstance(row, Build) or row.space_id != space.id:
        raise NotFound(f"There is no build {id} of {space.owner}/{space.name}.")
    return row


@router.get("/builds/{id}/logs", response_model=LogPage, summary="Log of a build")
def build_logs(id: Number, space: WritableSpace, platform: PlatformDep, after: After = 0) -> dict[str, Any]:
    _build(platform, space, id)
    return _page(*read_build(platform, id, after))


@router.get("/builds/{id}/lock", response_class=PlainTextResponse, summary="What a build installed, exactly")
def build_lock(id: Number, space: WritableSpace, platform: PlatformDep) -> str:
    return _build(platform, space, id).lock


@router.get("/builds/{id}/sbom", summary="Bill of materials of a build's image: CycloneDX JSON")
def build_sbom(id: Number, space: WritableSpace, platform: PlatformDep) -> Response:
    return Response(_file(platform, space, id, BuildFile.SBOM), media_type="application/vnd.cyclonedx+json")


@router.get(
    "/builds/{id}/dockerfile", response_class=PlainTextResponse, summary="What was built: builds the same elsewhere"
)
def build_dockerfile(id: Number, space: WritableSpace, platform: PlatformDep) -> str:
    return _file(platform, space, id, BuildFile.DOCKERFILE)


def _file(platform: Any, space: Space, id: int, file: BuildFile) -> str:
    _build(platform, space, id)
    text = platform.builds.files.read(id, file)
    if text is None:
        raise NotFound(f"Build {id} has no {file}: only container builds that succeeded have one.")
    return str(text)


@router.get("/deployments", response_model=list[DeploymentOut], summary="Newest deployments first")
def deployments(space: WritableSpace, actor: ActorDep, platform: PlatformDep) -> list[dict[str, Any]]:
    rows = platform.deployments.of(space.id, LIST)
    return [views.deployment(row, access(actor, space)) for row in rows]


@router.get("/deployments/{id}/logs", response_model=LogPage, summary="Output of a deployment")
def deployment_logs(id: Number, space: WritableSpace, platform: PlatformDep, after: After = 0) -> dict[str, Any]:
    with platform.store.read() as db:
        row = db.get(Deployment, id)
    if row is None or row.space_id != space.id:
        raise NotFound(f"There is no deployment {id} of {space.owner}/{space.name}.")
    return _page(*read_run(platform, id, after))


def _page(lines: Sequence[LogLine], done: bool) -> dict[str, Any]:
    shown = lines[:PAGE_LINES]
    return {
        "lines": [{"n": line.n, "at": views.instant(line.at), "text": line.text} for line in shown],
        "done": done and len(shown) == len(lines),
    }


@router.get("/history", response_model=list[EventOut], summary="What happened, newest first")
def history(space: WritableSpace, platform: PlatformDep) -> list[dict[str, Any]]:
    return [
        {"id": e.id, "at": e.at, "kind": e.kind, "actor": e.actor, "data": e.data}
        for e in platform.directory.events(space, 200)
    ]
