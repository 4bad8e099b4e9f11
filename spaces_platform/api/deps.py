"""What routes depend on: the platform, who asks, and the Space a path names.

Owns how credentials of a request become an Actor, and how a path becomes a Space. Invariants: a Bearer token wins over
a cookie; a cookie alone never changes anything for another site; no route sees a Space that its caller may not read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, Path, Query, Request
from fastapi.security import APIKeyCookie, HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import HTTPConnection

from spaces_platform.accounts import ANONYMOUS, Access, Actor
from spaces_platform.api.failures import Moved
from spaces_platform.api.session_cookie import NAME, read_cookie
from spaces_platform.api.urls import base_url, moved_path
from spaces_platform.errors import Forbidden, Unauthenticated
from spaces_platform.models import Space

if TYPE_CHECKING:
    from spaces_platform.platform import Platform

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})

bearer = HTTPBearer(auto_error=False, description="An access token (`hf_…`).")


class SessionCookie(APIKeyCookie):
    """The session of the request's browser."""

    async def __call__(self, request: HTTPConnection) -> str | None:
        return read_cookie(request, base_url(request, request.app.state.platform.settings))


cookie = SessionCookie(
    name=NAME,
    auto_error=False,
    description="A browser's session; over https, `__Host-` stands before its name.",
)


async def get_platform(request: Request) -> Any:  # not a function, for which a thread would be asked
    return request.app.state.platform


def get_actor(
    request: Request,
    given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
    session: Annotated[str | None, Depends(cookie)],
) -> Actor:
    """Who asks. Raises Unauthenticated for a bad token, Forbidden for a forged request."""
    request.state.anonymous = True
    actor = _actor(request, given, session)
    request.state.anonymous = actor.is_anonymous
    return actor


def _actor(request: Request, given: HTTPAuthorizationCredentials | None, session: str | None) -> Actor:
    platform: Platform = request.app.state.platform
    if given is not None:
        return platform.accounts.actor_of_token(given.credentials)
    if request.headers.get("authorization"):
        raise Unauthenticated()
    if session is None:
        return ANONYMOUS
    try:
        actor = platform.accounts.actor_of_session(session)
    except Unauthenticated:
        # A session that has ended must not keep anybody from public pages.
        return ANONYMOUS
    if request.method not in _SAFE and not is_same_origin(request, base_url(request, platform.settings)):
        raise Forbidden("This request came from another site; do it on the platform's own pages.")
    return actor


def is_same_origin(request: Request, own: str) -> bool:
    """Whether a browser made the request on a page of the platform.

    `Sec-Fetch-Site` cannot be set by scripts (Fetch Metadata, W3C); browsers leave it out for plain http on other hosts
    than localhost, where `Origin` says the same.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin = request.headers.get("origin")
    if not origin or origin == "null":
        return False
    a, b = urlsplit(origin), urlsplit(own)
    return (a.scheme, a.netloc.lower()) == (b.scheme, b.netloc.lower())


def get_user(actor: Annotated[Actor, Depends(get_actor)]) -> Actor:
    """Somebody who is signed in. Raises Unauthenticated."""
    if actor.id is None:
        raise Unauthenticated("Invalid username or password.")
    return actor


def get_admin(actor: Annotated[Actor, Depends(get_user)]) -> Actor:
    """Raises Unauthenticated, Forbidden."""
    if not actor.is_admin:
        raise Forbidden("Only an admin of the platform may do this.")
    return actor


def get_base(request: Request) -> str:
    """The platform's address as this client knows it."""
    return base_url(request, request.app.state.platform.settings)


def _space(needed: Access) -> Callable[..., Space]:
    def find(
        request: Request,
        actor: Annotated[Actor, Depends(get_actor)],
        owner: Annotated[str, Path(max_length=100, description="User or organisation.")],
        name: Annotated[str, Path(max_length=100, description="Name of the Space.")],
    ) -> Space:
        platform: Platform = request.app.state.platform
        space = platform.directory.find(owner, name, actor, needed)
        if (space.owner.lower(), space.name.lower()) != (owner.lower(), name.lower()):
            raw = request.scope.get("raw_path") or request.scope["path"].encode()
            query = request.scope.get("query_string", b"").decode("latin-1")
            raise Moved(moved_path(raw, space.owner, space.name) + (f"?{query}" if query else ""))
        return space

    return find


PlatformDep = Annotated[Any, Depends(get_platform)]
"""A `spaces_platform.platform.Platform`."""
ActorDep = Annotated[Actor, Depends(get_actor)]
UserDep = Annotated[Actor, Depends(get_user)]
AdminDep = Annotated[Actor, Depends(get_admin)]
BaseDep = Annotated[str, Depends(get_base)]
ReadableSpace = Annotated[Space, Depends(_space(Access.READ))]
WritableSpace = Annotated[Space, Depends(_space(Access.WRITE))]
OwnSpace = Annotated[Space, Depends(_space(Access.ADMIN))]

MAX_INT = 2**53
Number = Annotated[int, Path(ge=0, le=MAX_INT)]
After = Annotated[int, Query(ge=0, le=MAX_INT, description="Only lines with a greater number.")]
