"""Who am I, and what the Hub's clients ask unasked."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from spaces_platform.accounts import Actor
from spaces_platform.api.deps import ActorDep, PlatformDep, UserDep
from spaces_platform.api.schemas import Open
from spaces_platform.api.views import stamp
from spaces_platform.models import Account
from spaces_platform.names import public_id

router = APIRouter(tags=["accounts"])

AVATAR = "/static/avatar.svg"


class Whoami(Open):
    """hub-api 1.1."""

    type: str
    id: str
    name: str
    orgs: list[dict[str, Any]]
    auth: dict[str, Any]


@router.get("/api/whoami-v2", response_model=Whoami, summary="The user behind the credentials")
def whoami(user: UserDep, platform: PlatformDep) -> dict[str, Any]:
    account = platform.accounts.find(user.name)
    return {
        **_person(account),
        "email": account.email,
        "emailVerified": account.email is not None,
        "canPay": False,
        "isPro": False,
        "isAdmin": user.is_admin,
        "periodEnd": None,
        "billingMode": "postpaid",
        "orgs": [
            {**_person(org), "email": None, "canPay": False, "isEnterprise": False, "roleInOrg": role}
            for org, role in platform.accounts.orgs_of(user.id)
        ],
        "auth": {"type": "access_token", "accessToken": _token(platform, user)},
    }


def _person(account: Account) -> dict[str, Any]:
    return {
        "type": account.kind,
        "id": public_id(account.id or 0),
        "name": account.name,
        "fullname": account.fullname or account.name,
        "avatarUrl": AVATAR,
    }


def _token(platform: Any, user: Actor) -> dict[str, Any]:
    """`gradio deploy` indexes `role` and wants the word `write` of every token that may deploy."""
    writes = any("repo.write" in scope.get("permissions", ()) for scope in user.scopes)
    role = "write" if user.via == "session" or writes else user.token_role
    made = next((t.created_at for t in platform.accounts.tokens(user.id) if t.id == user.token_id), None)
    return {"displayName": user.token_name or "browser", "role": role, "createdAt": stamp(made or 0.0)}


@router.get("/api/users/{username}/overview", response_model=Open, summary="A user's public page data")
def overview(username: str, actor: ActorDep, platform: PlatformDep) -> dict[str, Any]:
    account = platform.accounts.find(username)
    spaces = platform.directory.list(actor, author=account.name, limit=1000)
    return {
        **_person(account),
        "user": account.name,
        "isPro": False,
        "numModels": 0,
        "numDatasets": 0,
        "numSpaces": len(spaces),
        "numDiscussions": 0,
        "numUpvotes": 0,
        "numLikes": 0,
        "createdAt": stamp(account.created_at),
        "orgs": [_person(org) for org, _ in platform.accounts.orgs_of(account.id)] if account.kind == "user" else [],
    }


@router.get(
    "/api/organizations/{organization}/overview", response_model=Open, summary="An organisation's public page data"
)
def organization_overview(organization: str, actor: ActorDep, platform: PlatformDep) -> dict[str, Any]:
    return overview(organization, actor, platform)


@router.get("/api/agent-harnesses", response_model=Open, summary="What the `hf` command asks once a day")
async def agent_harnesses() -> dict[str, Any]:
    return {"standardEnvVars": [], "harnesses": {}}


@router.head("/api/telemetry/{topic:path}", status_code=204, summary="Usage reports of clients; dropped")
async def telemetry(topic: str) -> Response:
    return Response(status_code=204)


@router.get("/api/models", response_model=list[Open], summary="No models live here")
@router.get("/api/datasets", response_model=list[Open], summary="No datasets live here")
async def nothing() -> list[Any]:
    return []
