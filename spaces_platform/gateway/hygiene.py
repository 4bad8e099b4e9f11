"""What crosses the border between visitors and apps: the heads that are written on either side.

Owns: which fields are passed, dropped, replaced or added. Does not own: reading them (grammar.py).
Invariant: an app never sees the platform's cookies or tokens, nor a forwarding field that it did not get from this
gateway; a visitor never gets a cookie for more than the app's own host.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from spaces_platform.gateway.grammar import CHUNKED, UNTIL_CLOSE, Request, Response, without_fields
from spaces_platform.gateway.routes import RouteEntry

SESSION_COOKIE = b"spaces-app-session"
"""Names a visitor of a private Space; host-only, set by the gateway."""
_OWN_PREFIXES = (b"spaces-", b"__host-spaces", b"__secure-spaces")
_DOMAIN = re.compile(rb";[ \t]*domain[ \t]*(?:=[^;]*)?(?=;|$)", re.IGNORECASE)


def is_own_cookie(name: bytes) -> bool:
    """Cookies of these names belong to the platform. (A nameless one can be sent back under any name.)"""
    return not name or name.lower().startswith(_OWN_PREFIXES)


def cookie_value(request: Request, name: bytes) -> bytes | None:
    """The first cookie of that name."""
    for header in request.cookies:
        for pair in header.split(b";"):
            key, _, value = pair.partition(b"=")
            if key.strip(b" \t") == name:
                return value.strip(b" \t")
    return None


def app_cookies(cookies: Sequence[bytes]) -> bytes:
    """The Cookie field for an app, without the platform's own; empty when nothing is left."""
    kept = []
    for header in cookies:
        if b"spaces" not in header.lower() and b"=" in header:
            kept.append(header)
            continue
        pairs = [pair.strip(b" \t") for pair in header.split(b";")]
        kept += [pair for pair in pairs if pair and not is_own_cookie(pair.partition(b"=")[0].strip(b" \t"))]
    return b"Cookie: " + b"; ".join(kept) + b"\r\n" if kept else b""


def hub_token(value: bytes | None) -> bytes | None:
    """The Hub token in an authorisation field, or None where it is something else."""
    if value is None or value[:7].lower() != b"bearer ":
        return None
    token = value[7:].strip(b" \t")
    return token if token.startswith(b"hf_") else None


def request_head(request: Request, forwarded: bytes, *, control: bool) -> bytes:
    """The head sent upstream. `forwarded` holds the X-Forwarded-* lines; `control`: to the control plane."""
    parts = [b"%b %b HTTP/1.1\r\nHost: %b\r\n" % (request.method, request.target, request.host), request.plain]
    if request.cookies:
        parts.append(b"Cookie: " + b"; ".join(request.cookies) + b"\r\n" if control else app_cookies(request.cookies))
    if request.authorization is not None and (control or hub_token(request.authorization) is None):
        parts.append(b"Authorization: %b\r\n" % request.authorization)
    if control and request.hub_authorization is not None:
        parts.append(b"X-HF-Authorization: %b\r\n" % request.hub_authorization)
    if request.length > 0:
        parts.append(b"Content-Length: %d\r\n" % request.length)
    elif request.length == CHUNKED:
        parts.append(b"Transfer-Encoding: chunked\r\n")
    elif request.method in (b"POST", b"PUT", b"PATCH"):
        parts.append(b"Content-Length: 0\r\n")
    if request.expect and request.length:
        parts.append(b"Expect: 100-continue\r\n")
    if request.websocket:
        parts.append(b"Connection: Upgrade\r\nUpgrade: websocket\r\n")
    parts.append(forwarded)
    return b"".join(parts)


def forwarded_lines(client: bytes, host: bytes, scheme: bytes) -> bytes:
    """The X-Forwarded-* lines and the end of the head."""
    return b"X-Forwarded-For: %b\r\nX-Forwarded-Host: %b\r\nX-Forwarded-Proto: %b\r\n\r\n" % (client, host, scheme)


def response_head(
    response: Response,
    entry: RouteEntry | None,
    *,
    length: int,
    one_dot_one: bool,
    keep: bool,
    frame_ancestors: bytes = b"",
) -> bytes:
    """The head sent to the visitor.

    `length` is how the body will be framed on this side: bytes, CHUNKED or UNTIL_CLOSE. `entry` is None for the control
    plane, whose answers pass with all their fields.
    """
    parts = [b"HTTP/1.1 %d%b\r\n" % (response.status, response.reason)]
    if entry is None:
        parts.append(response.plain)
        parts += [b"Set-Cookie: %b\r\n" % cookie for cookie in response.cookies]
        if response.frame_options:
            parts.append(b"X-Frame-Options: %b\r\n" % response.frame_options)
    else:
        names = entry.header_names
        parts.append(without_fields(response.plain, names) if names else response.plain)
        if response.cookies:
            parts += app_set_cookies(response.cookies)
        if not entry.embed:
            parts.append(frame_ancestors)
        if names:
            parts.append(entry.header_lines)
    if length == CHUNKED:
        parts.append(b"Transfer-Encoding: chunked\r\n")
    if response.status == 101:
        parts.append(b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    elif not keep or length == UNTIL_CLOSE:
        parts.append(b"Connection: close\r\n\r\n")
    elif not one_dot_one:
        parts.append(b"Connection: keep-alive\r\n\r\n")
    else:
        parts.append(b"\r\n")
    return b"".join(parts)


def app_set_cookies(cookies: Sequence[bytes]) -> list[bytes]:
    """Set-Cookie lines of an app: host-only, and none in the platform's name."""
    lines = []
    for cookie in cookies:
        if not is_own_cookie(cookie.partition(b";")[0].partition(b"=")[0].strip(b" \t")):
            lines.append(b"Set-Cookie: %b\r\n" % _DOMAIN.sub(b"", cookie))
    return lines
