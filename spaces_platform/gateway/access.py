"""Who may see a private Space.

Owns: reading a visitor's credentials, the short memory of verdicts, the cookie of the app's host. Does not own: the
verdict, which is the control plane's (link.py asks).
Invariants: without a verdict nobody gets in; a verdict is used for a second, or for a minute while the control plane
cannot be asked; `next` never leads to another host.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from spaces_platform.errors import Unavailable
from spaces_platform.gateway.grammar import Request
from spaces_platform.gateway.hygiene import SESSION_COOKIE, cookie_value, hub_token

_FRESH_SECONDS = 1.0
_STALE_SECONDS = 60.0
_MEMORY = 20_000
_VALUE = re.compile(r"[A-Za-z0-9._~+/=-]{1,4096}")
_LOCAL_PATH = re.compile(r"/(?![/\\])[\x21-\x5b\x5d-\x7e]*")

Ask = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Credential:
    kind: str
    """`token`, `session` or `sign`: the key under which the control plane is asked."""
    value: str


def credential(request: Request, *, https: bool = False) -> Credential | None:
    """The strongest credential a request carries; None for a stranger."""
    for header in (request.hub_authorization, request.authorization):
        token = hub_token(header)
        if token is not None:
            return _checked("token", token)
    sign = (
        dict(parse_qsl(request.query.decode("latin-1"), max_num_fields=200)).get("__sign")
        if b"__sign=" in request.query
        else None
    )
    if sign:
        return _checked("sign", sign.encode("latin-1", "replace"))
    cookie = cookie_value(request, session_name(https))
    return _checked("session", cookie) if cookie else None


def _checked(kind: str, value: bytes) -> Credential | None:
    text = value.decode("latin-1")
    return Credential(kind, text) if _VALUE.fullmatch(text) else None


def without_sign(target: bytes) -> bytes:
    """The request's address without `__sign`, which an app must not see (every other byte stays)."""
    path, mark, query = target.partition(b"?")
    kept = b"&".join(part for part in query.split(b"&") if not part.startswith(b"__sign="))
    return path + (mark + kept if kept else b"")


def local_path(value: str) -> str:
    """`value` if it is a path on the same host, else `/`."""
    return value if _LOCAL_PATH.fullmatch(value) else "/"


def session_name(https: bool) -> bytes:
    """Of the cookie. Over https it begins so that browsers take it from this host only (RFC 6265bis, 4.1.3.2)."""
    return b"__Host-" + SESSION_COOKIE if https else SESSION_COOKIE


def session_cookie(session: str, max_age: int, *, secure: bool, https: bool = False) -> bytes:
    """Set-Cookie value; host-only. Raises Unavailable for what cannot be a cookie's value."""
    if not _VALUE.fullmatch(session):
        raise Unavailable("The control plane named a session that cannot be kept in a cookie.")
    # A private Space is shown in a frame on the platform's page, which is another site; browsers take `Secure` from
    # `*.localhost` over plain http as well.
    tail = "; SameSite=None; Secure; Partitioned" if secure else "; SameSite=Lax"
    return f"{session_name(https).decode()}={session}; Path=/; Max-Age={int(max_age)}; HttpOnly{tail}".encode()


class Access:
    """Remembers verdicts for a short while."""

    def __init__(self, ask: Ask, now: Callable[[], float]) -> None:
        self._ask = ask
        self._now = now
        self._verdicts: OrderedDict[bytes, tuple[float, bool]] = OrderedDict()

    def known(self, space: int, who: Credential) -> bool | None:
        """A verdict that is still fresh."""
        found = self._verdicts.get(_key(space, who))
        return found[1] if found is not None and self._now() - found[0] <= _FRESH_SECONDS else None

    async def allowed(self, space: int, who: Credential) -> bool:
        """The control plane's verdict. Raises Unavailable when it cannot be had and none is remembered."""
        key = _key(space, who)
        try:
            answer = await self._ask("authorize", {"space": space, who.kind: who.value})
        except Unavailable:
            found = self._verdicts.get(key)
            if found is not None and self._now() - found[0] <= _STALE_SECONDS:
                return found[1]
            raise
        verdict = answer.get("allow") is True
        self._verdicts[key] = (self._now(), verdict)
        self._verdicts.move_to_end(key)
        if len(self._verdicts) > _MEMORY:
            self._verdicts.popitem(last=False)
        return verdict

    async def exchange(self, space: int, who: Credential) -> tuple[str, int] | None:
        """A session for a one-time code (kind `code`) or a signed link (kind `sign`). Raises Unavailable."""
        answer = await self._ask("exchange", {"space": space, who.kind: who.value})
        session = answer.get("session")
        return (session, int(answer.get("max_age") or 86_400)) if isinstance(session, str) and session else None


def _key(space: int, who: Credential) -> bytes:
    """Verdicts are kept under a digest: no token stays in memory."""
    return hashlib.blake2b(f"{space}\0{who.kind}\0{who.value}".encode(), digest_size=16).digest()
