"""What every page shares: who is visiting, the form guard, templates, security headers and error pages.

A handler takes a `Call` and returns a response. `Site.get` and `Site.post` are the only ways to register one, so that
no page can be without the headers, and no change of state without the checks against cross-site requests. Owns no page
and decides no permission.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, urlsplit

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from spaces_platform import __version__
from spaces_platform.accounts import ANONYMOUS, Actor
from spaces_platform.api.session_cookie import read_cookie, set_cookie
from spaces_platform.api.urls import base_url
from spaces_platform.errors import Forbidden, Invalid, PlatformError, TooLarge, Unauthenticated
from spaces_platform.web import words

if TYPE_CHECKING:
    from spaces_platform.platform import Platform

log = logging.getLogger(__name__)

FORM_BYTES = 512 * 1024
"""Largest form: one setting of 64 KiB, URL-encoded, takes at most three times its size."""
FORM_FIELDS = 50
HERE = Path(__file__).parent
STATIC_TYPES = {
    "site.css": "text/css; charset=utf-8",
    "site.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who looks at the page. `session`: the cookie's value, empty for the anonymous."""

    actor: Actor = ANONYMOUS
    session: str = field(default="", repr=False)

    @property
    def csrf(self) -> str:
        """What a form must send back. Bound to the session, which it does not tell."""
        if not self.session:
            return ""
        return hmac.new(self.session.encode(), b"form", hashlib.sha256).hexdigest()


@dataclass(frozen=True, slots=True)
class Call:
    """One request as a handler sees it."""

    request: Request
    visitor: Visitor
    form: Mapping[str, str] = field(default_factory=dict)

    @property
    def actor(self) -> Actor:
        return self.visitor.actor

    def path(self, name: str) -> str:
        return str(self.request.path_params[name])

    def query(self, name: str) -> str:
        return self.request.query_params.get(name, "")

    def number(self, name: str, default: int = 0) -> int:
        """A non-negative integer of the query. Raises Invalid."""
        text = self.query(name)
        if not text:
            return default
        if not text.isascii() or not text.isdigit() or len(text) > 9:
            raise Invalid(f"{name}={text[:40]!r} is not a whole number.")
        return int(text)


Handler = Callable[[Call], Response]


class Site:
    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.router = APIRouter()
        self.apps_source = platform.settings.app_url(f"*.{platform.settings.domain}").rstrip("/")
        self._policy = _policy(self.apps_source)

    # --- registering -------------------------------------------------------------------------------------------------
    def get(self, path: str, handler: Handler) -> None:
        async def endpoint(request: Request) -> Response:
            return await run_in_threadpool(self._answer, request, handler, {})

        self.router.add_route(path, endpoint, methods=["GET", "HEAD"], include_in_schema=False)

    def post(self, path: str, handler: Handler) -> None:
        """`handler` runs only for a form that was sent by one of our own pages."""

        async def endpoint(request: Request) -> Response:
            try:
                form = await _read_form(request)
            except PlatformError as exc:
                return self._failed(request, Visitor(), exc)
            return await run_in_threadpool(self._answer, request, handler, form)

        self.router.add_route(path, endpoint, methods=["POST"], include_in_schema=False)

    def _answer(self, request: Request, handler: Handler, form: Mapping[str, str]) -> Response:
        visitor = Visitor()
        try:
            visitor = self.visitor(request)
            if request.method == "POST":
                self._check_form(request, visitor, form)
            return handler(Call(request, visitor, form))
        except PlatformError as exc:
            return self._failed(request, visitor, exc)

    def _failed(self, request: Request, visitor: Visitor, exc: PlatformError) -> Response:
        if isinstance(exc, Unauthenticated) and request.method in ("GET", "HEAD"):
            here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
            return redirect("/login?next=" + quote(here, safe=""))
        message = exc.message
        if exc.http_status == 404 and visitor.actor.is_anonymous:
            message += ". If it is private, sign in to see it."
        return render_error(request, exc.http_status, message, visitor=visitor)

    # --- who ---------------------------------------------------------------------------------------------------------
    def visitor(self, request: Request) -> Visitor:
        session = read_cookie(request, base_url(request, self.platform.settings))
        if not session:
            return Visitor()
        try:
            return Visitor(self.platform.accounts.actor_of_session(session), session)
        except Unauthenticated:
            return Visitor()

    def _check_form(self, request: Request, visitor: Visitor, form: Mapping[str, str]) -> None:
        """Refuse what another site, an app of ours included, made the browser send. Raises Forbidden.

        Fetch metadata cannot be set by scripts; where it is absent (plain http off this machine) the Origin decides. A
        form of somebody signed in carries the session's token besides.
        """
        if not is_same_origin(request.headers, self.platform.settings.platform_hosts):
            raise Forbidden("This form was not sent by one of the platform's own pages. Open the page again and retry.")
        if visitor.session and not hmac.compare_digest(form.get("csrf", "").encode(), visitor.csrf.encode()):
            raise Forbidden("The form has expired. Go back, reload the page and send it again.")

    # --- answering ---------------------------------------------------------------------------------------------------
    def page(self, call: Call, template: str, *, status: int = 200, **context: Any) -> Response:
        settings = self.platform.settings
        return _render(
            template, status=status, policy=self._policy, request=call.request, visitor=call.visitor,
            settings=settings, done=words.DONE.get(call.query("done"), ""), **context,
        )  # fmt: skip

    def cookie(self, request: Request, response: Response, session: str, seconds: int) -> None:
        """Set (or with seconds 0 end) the session's cookie."""
        set_cookie(response, base_url(request, self.platform.settings), session, seconds)


def is_same_origin(headers: Mapping[str, str], hosts: tuple[str, ...]) -> bool:
    """Whether a browser says that the request comes from a page of ours. Pure.

    `hosts`: the platform's own names, so that a name that somebody else points at this machine is not taken for ours.
    """
    host = headers.get("host", "")
    name = urlsplit(f"//{host}").hostname or ""
    if name not in {h.strip("[]").lower() for h in hosts}:
        return False
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin = urlsplit(headers.get("origin", ""))
    return origin.scheme in ("http", "https") and origin.netloc.lower() == host.lower()


async def _read_form(request: Request) -> Mapping[str, str]:
    """The fields of a URL-encoded form. Raises Invalid, TooLarge."""
    body = bytearray()
    stream: AsyncIterator[bytes] = request.stream()
    async for chunk in stream:
        body += chunk
        if len(body) > FORM_BYTES:
            raise TooLarge(f"The form is larger than {FORM_BYTES // 1024} KiB.")
    if not body:
        return {}
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise Invalid("A form is sent as application/x-www-form-urlencoded.")
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=FORM_FIELDS, errors="strict")
    except ValueError as exc:
        raise Invalid("The form is not valid UTF-8, or has too many fields.") from exc
    return dict(pairs)


def redirect(path: str) -> Response:
    """See Other; `path` begins with `/` or is an app's address that we made."""
    return RedirectResponse(path, status_code=303, headers={"Cache-Control": "no-store"})


def local_path(text: str) -> str:
    """`text` where it is a path on this host, else `/`: a sign-in never sends anybody elsewhere. Pure.

    Browsers read a backslash as a slash and skip tabs and newlines, so none of them may be in it.
    """
    if not text.startswith("/") or text.startswith("//") or len(text) > 2000:
        return "/"
    if "\\" in text or any(ord(c) < 33 or ord(c) == 127 for c in text):
        return "/"
    parts = urlsplit(text)
    return "/" if parts.scheme or parts.netloc else text


def render_error(request: Request, status: int, message: str, *, visitor: Visitor | None = None) -> Response:
    """An error as a page, for browsers. `message` is plain text; what is unexpected is not told to visitors."""
    heading = words.ERRORS.get(status, "Something went wrong" if status >= 500 else "That did not work")
    return _render(
        "error.html", status=status, policy=_policy(""), request=request, visitor=visitor or Visitor(), done="",
        heading=heading, message=message, code=status,
    )  # fmt: skip


def wants_html(request: Request) -> bool:
    """Whether an error is better answered with a page: a browser's navigation, outside the API."""
    return "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/api/")


def _render(template: str, *, status: int, policy: str, **context: Any) -> Response:
    html = ENVIRONMENT.get_template(template).render(**context)
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cache-Control": "private, no-cache",
        "Vary": "Cookie",
    }
    return HTMLResponse(html, status_code=status, headers=headers)


def _policy(apps: str) -> str:
    return (
        (
            "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
            f"frame-src 'self' {apps}; object-src 'none'; base-uri 'none'; frame-ancestors 'none'; "
            # Signing in on the way to a private app ends, after redirects, on that app's host.
            f"form-action 'self' {apps}"
        )
        .replace("  ", " ")
        .replace(" ;", ";")
        .strip()
    )


@dataclass(frozen=True, slots=True)
class StaticFile:
    content: bytes
    kind: str
    version: str


def _load_static() -> dict[str, StaticFile]:
    files = {}
    for name, kind in STATIC_TYPES.items():
        content = (HERE / "static" / name).read_bytes()
        files[name] = StaticFile(content, kind, hashlib.sha256(content).hexdigest()[:12])
    return files


STATIC = _load_static()


def static_file(call: Call) -> Response:
    """One of the few files that pages refer to, for ever under its versioned address."""
    name = call.path("name")
    file = STATIC.get(name)
    if file is None:
        return render_error(call.request, 404, f"There is no file {name[:100]}.")
    lasting = call.query("v") == file.version
    return Response(
        file.content,
        media_type=file.kind,
        headers={
            "Cache-Control": "public, max-age=31536000, immutable" if lasting else "no-cache",
            "X-Content-Type-Options": "nosniff",
        },
    )


def _make_environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(
        ago=words.ago,
        clean=words.clean,
        duration=words.duration,
        span=words.span,
        size=words.size,
        day=words.day,
        iso=words.iso,
        inline=words.inline,
    )
    environment.globals.update(
        asset=lambda name: f"/static/{name}?v={STATIC[name].version}",
        stage_words=words.stage_words,
        version=__version__,
        tile=words.tile,
    )  # fmt: skip
    return environment


ENVIRONMENT = _make_environment()
