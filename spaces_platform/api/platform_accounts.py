"""The platform's own API of people: tokens, users, organisations, signing in."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote, urlsplit

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, RedirectResponse
from sqlmodel import col, select
from starlette.responses import Response

from spaces_platform.accounts import SESSION_SECONDS, Actor
from spaces_platform.api.deps import (
    ActorDep,
    AdminDep,
    BaseDep,
    Number,
    PlatformDep,
    UserDep,
    is_same_origin,
)
from spaces_platform.api.schemas import (
    AccountOut,
    Done,
    LinkIn,
    MemberOut,
    OrgIn,
    PasswordIn,
    PlatformInfo,
    RoleIn,
    Rotated,
    SessionIn,
    TokenIn,
    TokenMade,
    TokenOut,
    UrlOut,
    UserIn,
)
from spaces_platform.api.session_cookie import read_cookie, set_cookie
from spaces_platform.errors import Forbidden, Invalid, NotFound
from spaces_platform.models import Account, Membership, Token
from spaces_platform.secrets import rotate

router = APIRouter(tags=["platform"])


@router.get("/api/platform/info", response_model=PlatformInfo, summary="This platform")
def info(platform: PlatformDep) -> dict[str, Any]:
    from spaces_platform import __version__

    settings = platform.settings
    return {
        "version": __version__,
        "url": settings.url,
        "appsDomain": settings.domain,
        "isolation": {"level": platform.isolation.level, "words": platform.isolation.words},
        "loopbackAddresses": settings.has_loopback_addresses,
        "maxPushBytes": settings.push_mb << 20,
    }


# --- tokens -------------------------------------------------------------------------------------------------
def _may_manage(user: Actor) -> None:
    """A weak token must not make itself a strong one."""
    if user.via == "token" and user.token_role != "write":
        raise Forbidden("This needs a write token, or a browser session.")


@router.post("/api/platform/tokens", response_model=TokenMade, summary="Make a token; it is shown once")
def create_token(body: TokenIn, user: UserDep, platform: PlatformDep) -> dict[str, Any]:
    _may_manage(user)
    until = platform.clock.now().timestamp() + body.expiresIn if body.expiresIn is not None else None
    token = platform.accounts.create_token(
        user.id, body.name, role=body.role, scopes=body.scopes, expires_at=until, by=user
    )
    return {"token": token, "id": max(t.id for t in platform.accounts.tokens(user.id) if t.last4 == token[-4:])}


@router.get("/api/platform/tokens", response_model=list[TokenOut], summary="One's own tokens")
def tokens(user: UserDep, platform: PlatformDep) -> list[dict[str, Any]]:
    _may_manage(user)
    return [_token(t) for t in platform.accounts.tokens(user.id)]


def _token(t: Token) -> dict[str, Any]:
    return {
        "id": t.id, "name": t.name, "role": t.role, "last4": t.last4, "scopes": t.scopes,
        "createdAt": t.created_at, "expiresAt": t.expires_at,
    }  # fmt: skip


@router.delete("/api/platform/tokens/{id}", response_model=Done, summary="Revoke a token")
def revoke_token(id: Number, user: UserDep, platform: PlatformDep) -> dict[str, Any]:
    _may_manage(user)
    platform.accounts.revoke_token(user.id, id, by=user)
    return {}


# --- users and organisations --------------------------------------------------------------------------------
@router.post("/api/platform/users", response_model=AccountOut, summary="Make a user")
def create_user(body: UserIn, _admin: AdminDep, platform: PlatformDep) -> dict[str, Any]:
    user = platform.accounts.create_user(
        body.name, password=body.password, email=body.email, fullname=body.fullname or "", is_admin=body.admin
    )
    return {"name": user.name, "type": user.kind}


@router.put("/api/platform/users/me/password", response_model=Done, summary="Change one's password")
def change_password(body: PasswordIn, user: UserDep, platform: PlatformDep) -> dict[str, Any]:
    _may_manage(user)
    if user.via == "session":
        with platform.store.read() as db:
            has_one = db.exec(select(Account.password_hash).where(Account.id == user.id)).first()
        if has_one:
            platform.accounts.sign_in(user.name, body.current or "")
    platform.accounts.set_password(user.id, body.password)
    return {}


@router.post("/api/platform/orgs", response_model=AccountOut, summary="Make an organisation")
def create_org(body: OrgIn, user: UserDep, platform: PlatformDep) -> dict[str, Any]:
    _may_manage(user)
    org = platform.accounts.create_org(body.name, by=user, fullname=body.fullname or "")
    return {"name": org.name, "type": org.kind}


@router.get("/api/platform/orgs/{org}/members", response_model=list[MemberOut], summary="Members and their roles")
def members(org: str, user: UserDep, platform: PlatformDep) -> list[dict[str, Any]]:
    found = platform.accounts.find(org)
    if found.kind != "org":
        raise NotFound(f"There is no organisation {org[:100]}.")
    if not user.is_admin and user.role_in(found.id) is None:
        raise Forbidden(f"Only members of {found.name} may see its members.")
    with platform.store.read() as db:
        rows = db.exec(
            select(Account.name, Membership.role)
            .join(Membership, col(Membership.user_id) == Account.id)
            .where(Membership.org_id == found.id)
            .order_by(Account.key)
        ).all()
    return [{"name": name, "role": role} for name, role in rows]


@router.put("/api/platform/orgs/{org}/members/{user}", response_model=Done, summary="Give or take a role")
def set_role(org: str, user: str, body: RoleIn, actor: UserDep, platform: PlatformDep) -> dict[str, Any]:
    _may_manage(actor)
    platform.accounts.set_role(org, user, body.role, by=actor)
    return {}


@router.post("/api/platform/keys/rotate", response_model=Rotated, summary="Seal every secret with a fresh key")
def rotate_keys(_admin: AdminDep, platform: PlatformDep) -> dict[str, Any]:
    return {"resealed": rotate(platform.store, platform.vault)}


# --- signing in ---------------------------------------------------------------------------------------------
@router.post("/api/platform/session", response_model=AccountOut, summary="Sign a browser in: sets a cookie")
def sign_in(body: SessionIn, request: Request, platform: PlatformDep, base: BaseDep) -> Response:
    # No actor is needed, but a form of another site must not sign its visitor in as somebody else.
    if (request.headers.get("origin") or request.headers.get("sec-fetch-site")) and not is_same_origin(request, base):
        raise Forbidden("This request came from another site; sign in on the platform's own page.")
    if body.token is not None:
        actor = platform.accounts.actor_of_token(body.token)
        _may_manage(actor)
    elif body.name and body.password is not None:
        actor = platform.accounts.sign_in(body.name, body.password)
    else:
        raise Invalid("Give a name and a password, or a token.")
    answer = JSONResponse({"name": actor.name, "type": "user"})
    set_cookie(answer, base, platform.accounts.open_session(actor), SESSION_SECONDS)
    return answer


@router.delete("/api/platform/session", response_model=Done, summary="Sign out")
def sign_out(request: Request, actor: ActorDep, platform: PlatformDep, base: BaseDep) -> Response:
    value = read_cookie(request, base)
    if value:
        platform.accounts.end_session(value)
    answer = JSONResponse({})
    set_cookie(answer, base, "", 0)
    return answer


@router.post("/api/platform/sign-in-link", response_model=UrlOut, summary="A one-time link that signs a browser in")
def sign_in_link(body: LinkIn, user: UserDep, platform: PlatformDep, base: BaseDep) -> dict[str, Any]:
    _may_manage(user)
    code = platform.accounts.open_session(user, kind="code")
    return {"url": f"{base}/login/link?code={quote(code, safe='')}&next={quote(local_path(body.next), safe='')}"}


@router.get("/login/link", response_class=RedirectResponse, status_code=303, summary="Follow a one-time link")
def follow_link(
    platform: PlatformDep,
    base: BaseDep,
    code: Annotated[str, Query(max_length=200)],
    next: Annotated[str, Query(max_length=2000)] = "/",
) -> Response:
    session = platform.accounts.exchange_code(code, space_id=None)
    answer = RedirectResponse(local_path(next), 303, {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})
    set_cookie(answer, base, session, SESSION_SECONDS)
    return answer


def local_path(target: str) -> str:
    """`target` if it is a path on this host, else `/`."""
    parts = urlsplit(target)
    plain = target.isprintable() and target.isascii() and "\\" not in target
    is_path = not parts.scheme and not parts.netloc and target.startswith("/") and not target.startswith("//")
    return target if plain and is_path else "/"
