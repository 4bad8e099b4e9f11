"""The HTTP app: routes, bounds, documentation. Wires; decides nothing.

Invariant: every route is bounded (`_limit`), every refusal is JSON, and the OpenAPI document names what routes answer.
"""

from __future__ import annotations

import asyncio
import importlib.util
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, PlainTextResponse
from sqlalchemy import text
from starlette.responses import Response

from spaces_platform import __version__
from spaces_platform.api import (
    failures,
    hub_accounts,
    hub_content,
    hub_repos,
    hub_runtime,
    internal,
    platform_accounts,
    platform_domains,
    platform_quotas,
    platform_spaces,
    platform_volumes,
    resolve,
    streams,
)
from spaces_platform.api.git_backend import PlatformGit
from spaces_platform.api.git_http import make_git_router
from spaces_platform.api.metrics import CONTENT_TYPE, Metrics
from spaces_platform.api.middleware import DEFAULT_LIMIT, Envelope
from spaces_platform.api.schemas import Failure
from spaces_platform.errors import PlatformError
from spaces_platform.settings import Settings

if TYPE_CHECKING:
    from spaces_platform.platform import Platform

COMMITS_AT_ONCE = 4
"""Commits over the API that are read at once; each may hold hub_content.COMMIT_BYTES in memory."""
DESCRIPTION = "Self-hosted Spaces. The routes of the Hub answer its own clients with `HF_ENDPOINT` set to this address."
COMMON = {400: "The request is not valid.", 401: "Not signed in, or not found for the anonymous.", 403: "Not allowed.",
          404: "Not found.", 409: "It exists, or changed meanwhile.", 413: "Too large.", 429: "Too many requests.",
          503: "A part of the platform is not available now.", 507: "The disk is full."}  # fmt: skip


def create_app(platform: Platform) -> FastAPI:
    """The app over a wired platform. Starts nothing."""
    app = FastAPI(title="Spaces", version=__version__, description=DESCRIPTION, redoc_url=None)
    state = app.state
    state.platform, state.streams, state.waking = platform, streams.Streams(platform.log_feed), set()
    state.metrics = Metrics(platform)
    state.link_token = internal.link_token(_run_folder(platform))
    state.commit_turns = asyncio.Semaphore(COMMITS_AT_ONCE)
    failures.install(app)
    hub = (hub_accounts, hub_runtime, hub_repos, hub_content, streams, resolve)
    for module in (
        internal,  # first: the gateways call it most, and routes are gone through in turn
        *hub,
        platform_spaces,
        platform_volumes,
        platform_domains,
        platform_accounts,
        platform_quotas,
    ):
        app.include_router(module.router)
    app.include_router(make_git_router(PlatformGit(platform), platform.repos))
    _add_health(app, platform)
    _add_pages(app, platform)
    # Last, so that everything above is inside.
    app.add_middleware(Envelope, limit=lambda path: _limit(path, platform.settings))
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _run_folder(platform: Platform) -> Any:
    folder = platform.settings.data / "run"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _limit(path: str, settings: Settings) -> int | None:
    """Most bytes of a request's body."""
    if path.endswith(("/git-receive-pack", "/git-upload-pack")):
        return None  # bounded by git's own limits
    if "/commit/" in path and path.startswith("/api/spaces/"):
        return min(settings.push_mb << 20, hub_content.COMMIT_BYTES) * 4 // 3 + (64 << 20)
    if path == "/internal/gateway/activity":
        return 8 << 20
    if "/preupload/" in path or path in ("/api/repos/create", "/api/validate-yaml"):
        return 16 << 20
    return DEFAULT_LIMIT


def _add_pages(app: FastAPI, platform: Platform) -> None:
    # The pages come with their own templates and are left out of an installation that has none.
    if importlib.util.find_spec("spaces_platform.web.pages") is not None:
        from spaces_platform.web.pages import make_router

        app.include_router(make_router(platform))


def _add_health(app: FastAPI, platform: Platform) -> None:
    @app.get("/healthz", tags=["health"], summary="The process answers", response_class=PlainTextResponse)
    async def healthz() -> str:
        return "ok\n"

    @app.get("/readyz", tags=["health"], summary="Database and disk are there", response_class=JSONResponse)
    def readyz() -> Response:
        problems: list[str] = []
        try:
            with platform.store.read() as db:
                db.execute(text("SELECT 1 FROM counter"))
        except PlatformError as error:
            problems.append(f"database: {error.message}")
        if not platform.is_disk_free():
            problems.append(
                f"disk: less than {platform.settings.disk_floor_mb} MB are free below {platform.settings.data}"
            )
        body = {"ready": not problems, "problems": problems}
        return JSONResponse(body, 503 if problems else 200)

    @app.get("/metrics", tags=["health"], summary="Prometheus metrics", response_class=PlainTextResponse)
    def metrics(request: Request) -> Response:
        return Response(request.app.state.metrics.render(), media_type=CONTENT_TYPE)


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document with our refusals in place of its 422."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes,
        )  # fmt: skip
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas["Failure"] = Failure.model_json_schema()
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        ref = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Failure"}}}}
        for path in document["paths"].values():
            for operation in path.values():
                answers = operation["responses"]
                answers.pop("422", None)
                for status, words in COMMON.items():
                    answers.setdefault(str(status), {"description": words, **ref})
        app.openapi_schema = document
    return app.openapi_schema
