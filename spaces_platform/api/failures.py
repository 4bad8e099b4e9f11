"""Errors as answers: one JSON object, with the headers by which the Hub's clients decide.

Owns the shape of every refusal of the API. Invariant: a body is always a JSON object with a readable `error` (the
clients crash on arrays and strings), and what must not be known to exist answers 401 to the anonymous, 404 to others.
"""

from __future__ import annotations

import errno
import logging
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response

from spaces_platform.errors import DiskFull, PlatformError, RepoNotFound, Unauthenticated
from spaces_platform.web.pages import render_error, wants_html

log = logging.getLogger(__name__)

RETRY_SECONDS = 5


class Moved(Exception):
    """The Space has another name now; the client is sent there."""

    def __init__(self, location: str) -> None:
        super().__init__(location)
        self.location = location


def install(app: FastAPI) -> None:
    """Register the handlers on the app."""
    app.add_exception_handler(PlatformError, _platform_error)
    app.add_exception_handler(OSError, _system_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Moved, _moved)


def refusal(
    status: int,
    message: str,
    *,
    request: Request | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
    **data: Any,
) -> Response:
    """The answer for a refusal: a page where `request` is a browser's navigation, else JSON."""
    if request is not None and wants_html(request):
        page = render_error(request, status, message)
        page.headers.update(headers or {})
        return page
    all_headers = {"X-Error-Message": header_text(message), **(headers or {})}
    if code is not None:
        all_headers["X-Error-Code"] = code
    return JSONResponse({"error": message, **data}, status, all_headers)


def header_text(message: str) -> str:
    """A message as a header can carry it: one line, latin-1."""
    line = " ".join(message.split())[:1000]
    return line.encode("latin-1", "replace").decode("latin-1")


def _system_error(request: Request, error: Exception) -> Response:
    """A full disk, wherever it was met, is an answer; any other error of the system is a fault of ours."""
    if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
        raise error
    return _platform_error(request, DiskFull("The platform's disk is full; ask its admin to free some space."))


def _platform_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, PlatformError):
        raise error
    status = error.http_status
    headers: dict[str, str] = {}
    if isinstance(error, RepoNotFound) and getattr(request.state, "anonymous", True):
        status = 401
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if error.retryable:
        headers["Retry-After"] = str(error.data.get("retry_after", RETRY_SECONDS))
    if status >= 500 and not error.retryable:
        log.error("request failed: %s", error.message, extra={"path": request.url.path})
    data = {key: error.data[key] for key in ("url",) if key in error.data}
    return refusal(status, error.message, request=request, code=error.hub_code, headers=headers, **data)


def _validation_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    return refusal(400, "; ".join(_readable(item) for item in error.errors()[:5]))


def _readable(item: Any) -> str:
    place = ".".join(str(part) for part in item["loc"][1:]) if item.get("loc") else ""
    where = (
        {"query": "query parameter ", "path": "path part ", "body": ""}.get(str(item["loc"][0]), "") if place else ""
    )
    text = str(item.get("msg", "not valid"))
    # What was sent may hold anything, lone surrogates included, that JSON or a header cannot.
    return f"{where}{place}: {text}".removeprefix(": ").encode("utf-8", "replace").decode()


def _http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    detail = error.detail
    if error.status_code == 404 and detail == "Not Found":
        detail = f"There is nothing at {request.url.path[:200]}.".encode("utf-8", "replace").decode()
    elif error.status_code == 405:
        detail = f"{request.method} is not possible here."
    return refusal(error.status_code, str(detail), request=request, headers=dict(error.headers or {}))


def _moved(_request: Request, error: Exception) -> Response:
    if not isinstance(error, Moved):
        raise error
    return RedirectResponse(quote(error.location, safe=":/%#?=@[]!$&'()*+,;"), 307)
