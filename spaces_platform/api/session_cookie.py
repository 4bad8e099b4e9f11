"""The cookie that signs a browser in. Owns its name and attributes; not what its value means (accounts.py).

Apps have names beside or below the platform's, so a page of one can set cookies for all of them (`Domain=`), and would
sign a visitor in as somebody else. Over https the name begins with `__Host-`: such a cookie browsers take from the
host itself only (RFC 6265bis, 4.1.3.2), and no other is read there. Over plain http nothing of the kind exists.
"""

from __future__ import annotations

from starlette.requests import HTTPConnection
from starlette.responses import Response

NAME = "spaces-session"


def cookie_name(base: str) -> str:
    """Of the cookie, where the platform is reached under the URL `base`. Pure."""
    return f"__Host-{NAME}" if base.startswith("https:") else NAME


def read_cookie(request: HTTPConnection, base: str) -> str | None:
    return request.cookies.get(cookie_name(base))


def set_cookie(response: Response, base: str, value: str, seconds: int) -> None:
    """Sign in for so long; 0 signs out."""
    response.set_cookie(
        cookie_name(base), value, max_age=seconds, path="/", httponly=True, samesite="lax",
        secure=base.startswith("https:"),
    )  # fmt: skip
