"""The platform's own API of a Space's domains, for those who administer the Space."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path
from sqlmodel import select

from spaces_platform.api.deps import ActorDep, OwnSpace, PlatformDep
from spaces_platform.api.schemas import DomainIn, DomainOut, Done
from spaces_platform.domains import challenge
from spaces_platform.models import Domain, Host, Space
from spaces_platform.names import shown_domain

router = APIRouter(prefix="/api/platform/spaces/{owner}/{name}/domains", tags=["platform"])
Name = Annotated[str, Path(max_length=260, description="The domain, as it was added or in ASCII.")]


def _out(platform: Any, space: Space, rows: list[Domain]) -> list[dict[str, Any]]:
    with platform.store.read() as db:
        primary = db.exec(select(Host.host).where(Host.space_id == space.id, Host.kind == "primary")).first()
    return [
        {
            "domain": row.name,
            "shown": shown_domain(row.name),
            "status": "active" if row.verified_at is not None else "pending",
            "url": platform.settings.app_url(row.name),
            "proof": {"type": "TXT", "name": challenge(row.name), "value": row.token},
            "pointsTo": primary,
            "problem": row.problem,
            "createdAt": row.created_at,
            "verifiedAt": row.verified_at,
            "checkedAt": row.checked_at,
        }
        for row in rows
    ]


@router.get("", response_model=list[DomainOut], summary="Domains that lead, or are to lead, to the Space")
def domains(space: OwnSpace, actor: ActorDep, platform: PlatformDep) -> list[dict[str, Any]]:
    return _out(platform, space, list(platform.domains.of(space, actor)))


@router.post("", response_model=DomainOut, summary="Add one; the answer says which record proves that it is yours")
def add(body: DomainIn, space: OwnSpace, actor: ActorDep, platform: PlatformDep) -> dict[str, Any]:
    return _out(platform, space, [platform.domains.add(space, actor, body.domain)])[0]


@router.post("/{domain}/verify", response_model=DomainOut, summary="Look at its DNS now")
def verify(domain: Name, space: OwnSpace, actor: ActorDep, platform: PlatformDep) -> dict[str, Any]:
    return _out(platform, space, [platform.domains.verify(space, actor, domain)])[0]


@router.delete("/{domain}", response_model=Done, summary="Remove one; it ends at once")
def remove(domain: Name, space: OwnSpace, actor: ActorDep, platform: PlatformDep) -> dict[str, Any]:
    platform.domains.remove(space, actor, domain)
    return {"success": True}
