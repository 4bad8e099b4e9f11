"""The router of all pages, and the pages of the front: home, a new Space, the Space itself."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Response

from spaces_platform.errors import PlatformError
from spaces_platform.spaces import SDKS, VISIBILITIES, NewSpace
from spaces_platform.web import words
from spaces_platform.web.files import FilePages
from spaces_platform.web.history import HistoryPages
from spaces_platform.web.lookup import Lookup
from spaces_platform.web.settings_pages import SettingsPages
from spaces_platform.web.sign_in import SignInPages
from spaces_platform.web.site import Call, Site, redirect, render_error, static_file, wants_html
from spaces_platform.web.views import STAGE_CHOICES, Views

if TYPE_CHECKING:
    from spaces_platform.platform import Platform

__all__ = ["make_router", "render_error", "wants_html"]


def make_router(platform: Platform) -> APIRouter:
    """All pages of the platform, and the static files they refer to."""
    site, views = Site(platform), Views(platform)
    lookup = Lookup(platform, views)
    FrontPages(site, views, lookup).add()
    FilePages(site, lookup).add()
    HistoryPages(site, lookup).add()
    SettingsPages(site, lookup).add()
    SignInPages(site).add()
    site.get("/static/{name}", static_file)
    return site.router


class FrontPages:
    def __init__(self, site: Site, views: Views, lookup: Lookup) -> None:
        self.site, self.views, self.lookup, self.platform = site, views, lookup, site.platform

    def add(self) -> None:
        self.site.get("/", self.home)
        self.site.get("/new", self.new)
        self.site.post("/new", self.create)
        self.site.get("/spaces/{owner}/{name}", self.space)
        self.site.get("/spaces/{owner}/{name}/live", self.live)
        self.site.post("/spaces/{owner}/{name}/wake", self.wake)

    def home(self, call: Call) -> Response:
        chosen = {
            "q": words.clean(call.query("q"), 100),
            "owner": call.query("owner")[:100],
            "sdk": call.query("sdk") if call.query("sdk") in SDKS else "",
            "stage": call.query("stage") if call.query("stage") in STAGE_CHOICES else "",
        }
        number = min(max(1, call.number("page", 1)), 10_000)
        spaces, more = self.views.list(
            call.actor, search=chosen["q"], owner=chosen["owner"], sdk=chosen["sdk"], stage=chosen["stage"], page=number
        )
        kept = {key: value for key, value in chosen.items() if value}

        def link(page: int) -> str:
            return "/?" + urlencode({**kept, "page": page})

        return self.site.page(
            call, "home.html", spaces=spaces, more=more, page=number, link=link, chosen=chosen, filtered=bool(kept),
            sdks=SDKS, stages=STAGE_CHOICES, now=self.views.now(), owner=call.actor.name or "you",
        )  # fmt: skip

    # --- a new Space -------------------------------------------------------------------------------------------------
    def new(self, call: Call) -> Response:
        if call.actor.is_anonymous:
            return redirect("/login?next=/new")
        given = {"owner": call.query("owner") or call.actor.name, "name": "", "sdk": "gradio", "visibility": "public"}
        return self._new_form(call, given)

    def create(self, call: Call) -> Response:
        given = {key: call.form.get(key, "").strip() for key in ("owner", "name", "sdk", "visibility")}
        try:
            space = self.platform.spaces.create(
                call.actor,
                NewSpace(given["owner"], given["name"], sdk=given["sdk"] or None, visibility=given["visibility"]),
            )
        except PlatformError as exc:
            return self._new_form(call, given, error=exc.message, status=exc.http_status)
        return redirect(f"/spaces/{quote(space.owner)}/{quote(space.name)}?done=created")

    def _new_form(self, call: Call, given: dict[str, str], *, error: str = "", status: int = 200) -> Response:
        owners = [call.actor.name]
        if call.actor.id is not None:
            orgs = self.platform.accounts.orgs_of(call.actor.id)
            owners += [org.name for org, role in orgs if role in ("contributor", "write", "admin")]
        return self.site.page(
            call,
            "new.html",
            status=status,
            given=given,
            owners=owners,
            sdks=SDKS,
            visibilities=VISIBILITIES,
            error=error,
        )

    # --- the Space itself --------------------------------------------------------------------------------------------
    def space(self, call: Call) -> Response:
        found = self.lookup.space(call)
        if isinstance(found, Response):
            return found
        private = found.row.visibility == "private"
        query = "&".join(p for p in call.request.url.query.split("&") if p and not p.startswith("done="))
        inside = f"{found.frame_path}{'?' if query else ''}{query}"
        door = f"/auth/app?space={quote(found.id)}&next={quote('/' + inside, safe='')}"
        frame = door if private else found.app_url + inside
        return self.site.page(call, "space.html", space=found, tab="app", frame=frame)

    def live(self, call: Call) -> Response:
        """The parts of the Space's page that change by themselves, for its script."""
        found = self.lookup.space(call)
        if isinstance(found, Response):
            return found
        return self.site.page(call, "live.html", space=found, frame="")

    def wake(self, call: Call) -> Response:
        """As a visit of the app does: whoever may read it may wake it."""
        found = self.lookup.space(call)
        if isinstance(found, Response):
            return found
        self.platform.spaces.wake(found.row.id or 0, actor=call.actor)
        return redirect(f"{found.path}?done=woken")
