"""The Settings tab of a Space: variables, secrets, sleep, visibility, lifecycle, rename and delete."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

from fastapi import Response

from spaces_platform.accounts import Access
from spaces_platform.errors import Invalid, PlatformError, Unauthenticated
from spaces_platform.models import Secret, Variable
from spaces_platform.space_settings import NEVER, Setting
from spaces_platform.spaces import VISIBILITIES
from spaces_platform.web.lookup import Lookup
from spaces_platform.web.site import Call, Site, redirect
from spaces_platform.web.views import SpaceView

SLEEP_CHOICES = (300, 900, 1800, 3600, 21600, 86400, NEVER)

Act = Callable[[Call, SpaceView], str]
"""Does one change and returns where to go then. Raises PlatformError."""


class SettingsPages:
    def __init__(self, site: Site, lookup: Lookup) -> None:
        self.site, self.lookup = site, lookup
        self.spaces, self.space_settings = site.platform.spaces, site.platform.space_settings

    def add(self) -> None:
        base = "/spaces/{owner}/{name}"
        self.site.get(f"{base}/settings", self.show)
        acts: dict[str, Act] = {
            "pause": self.pause,
            "restart": self.restart,
            "rebuild": self.rebuild,
            "sleep": self.sleep,
            "settings/variable": self.set_variable,
            "settings/secret": self.set_secret,
            "settings/variable/delete": self.delete_variable,
            "settings/secret/delete": self.delete_secret,
            "settings/sleep-after": self.sleep_after,
            "settings/visibility": self.visibility,
            "settings/rename": self.rename,
            "settings/delete": self.delete,
        }
        for path, act in acts.items():
            self.site.post(f"{base}/{path}", self._form(act))

    def show(self, call: Call) -> Response:
        found = self.lookup.space(call, Access.WRITE)
        return found if isinstance(found, Response) else self._page(call, found)

    def _form(self, act: Act) -> Callable[[Call], Response]:
        def handler(call: Call) -> Response:
            found = self.lookup.space(call, Access.WRITE)
            if isinstance(found, Response):
                return found
            try:
                return redirect(act(call, found))
            except Unauthenticated:
                raise
            except PlatformError as exc:
                return self._page(call, found, error=exc.message, status=exc.http_status)

        return handler

    def _page(self, call: Call, found: SpaceView, *, error: str = "", status: int = 200) -> Response:
        return self.site.page(
            call, "settings.html", status=status, space=found, tab="settings", error=error,
            variables=self.space_settings.variables(found.row),
            secrets=self.space_settings.secrets(found.row, call.actor),
            sleep_choices=SLEEP_CHOICES, visibilities=VISIBILITIES,
            default_sleep=self.site.platform.settings.sleep_after,
        )  # fmt: skip

    # --- lifecycle ---------------------------------------------------------------------------------------------------
    def pause(self, call: Call, found: SpaceView) -> str:
        self.spaces.pause(found.row, call.actor)
        return f"{found.path}?done=paused"

    def restart(self, call: Call, found: SpaceView) -> str:
        self.spaces.restart(found.row, call.actor)
        return f"{found.path}?done=restarted"

    def rebuild(self, call: Call, found: SpaceView) -> str:
        self.spaces.restart(found.row, call.actor, factory=True)
        return f"{found.path}?done=rebuild"

    def sleep(self, call: Call, found: SpaceView) -> str:
        self.spaces.sleep(found.row, call.actor)
        return f"{found.path}?done=asleep"

    # --- settings ----------------------------------------------------------------------------------------------------
    def set_variable(self, call: Call, found: SpaceView) -> str:
        self.space_settings.set_variables(found.row, call.actor, [_setting(call)])
        return f"{found.path}/settings?done=variable"

    def set_secret(self, call: Call, found: SpaceView) -> str:
        self.space_settings.set_secrets(found.row, call.actor, [_setting(call)])
        return f"{found.path}/settings?done=secret"

    def delete_variable(self, call: Call, found: SpaceView) -> str:
        self.space_settings.delete_setting(found.row, call.actor, Variable, call.form.get("key", ""))
        return f"{found.path}/settings?done=removed"

    def delete_secret(self, call: Call, found: SpaceView) -> str:
        self.space_settings.delete_setting(found.row, call.actor, Secret, call.form.get("key", ""))
        return f"{found.path}/settings?done=removed"

    def sleep_after(self, call: Call, found: SpaceView) -> str:
        text = call.form.get("seconds", "")
        if text not in {str(choice) for choice in (*SLEEP_CHOICES, found.row.sleep_after)}:
            raise Invalid("Choose one of the listed times.")
        self.space_settings.set_sleep_after(found.row, call.actor, int(text))
        return f"{found.path}/settings?done=sleep"

    def visibility(self, call: Call, found: SpaceView) -> str:
        self.spaces.set_visibility(found.row, call.actor, call.form.get("visibility", ""))
        return f"{found.path}/settings?done=visibility"

    # --- what cannot be undone ---------------------------------------------------------------------------------------
    def rename(self, call: Call, found: SpaceView) -> str:
        owner, slash, name = call.form.get("to", "").strip().partition("/")
        if not slash:
            raise Invalid("Give the new address as owner/name.")
        row = self.spaces.rename(found.row, call.actor, owner, name)
        return f"/spaces/{quote(row.owner)}/{quote(row.name)}?done=renamed"

    def delete(self, call: Call, found: SpaceView) -> str:
        if call.form.get("confirm", "").strip() != found.id:
            raise Invalid(f"To delete it, type its full name: {found.id}")
        self.spaces.delete(found.row, call.actor)
        return "/?done=deleted"


def _setting(call: Call) -> Setting:
    """A browser sends line ends as CR LF; an environment variable has what was typed: LF."""
    value = call.form.get("value", "").replace("\r\n", "\n")
    return Setting(call.form.get("key", "").strip(), value, call.form.get("description", "").strip()[:500])
