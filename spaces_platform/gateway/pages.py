"""The pages a visitor sees instead of an app.

Owns: their words and their look (`pages/`). Does not own: when they are shown.
Invariant: render() is a function of its arguments; everything that comes from a Space is escaped by the template
engine; a page loads nothing from anywhere and works without scripts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from spaces_platform.gateway.routes import RouteEntry


@dataclass(frozen=True, slots=True)
class Words:
    """What one stage says."""

    title: str
    text: str
    busy: bool = False
    """True while the page may turn into the app by itself."""


_WORDS = {
    "SLEEPING": Words("Waking up", "This Space was asleep. Your visit is waking it.", True),
    "BUILDING": Words("Building", "This Space is being built.", True),
    "APP_STARTING": Words("Starting", "The app is starting.", True),
    "RUNNING": Words("Starting", "The app is starting.", True),
    "RUNNING_BUILDING": Words("Starting", "The app is starting.", True),
    "RUNNING_APP_STARTING": Words("Starting", "The app is starting.", True),
    "PAUSED": Words("Paused", "The owner has paused this Space. Only the owner can restart it."),
    "RUNTIME_ERROR": Words("The app has stopped", "The app ended with an error. Its owner can see why."),
    "BUILD_ERROR": Words("Build failed", "This Space could not be built. Its owner can see why."),
    "CONFIG_ERROR": Words("Configuration error", "The README of this Space has a wrong or missing setting."),
    "NO_APP_FILE": Words("No app yet", "This Space has no app file yet. Push one and it will appear here."),
    "DELETING": Words("Being deleted", "This Space is being deleted."),
}
_ASLEEP = Words("Asleep", "This Space cannot be woken by a visit right now.")


def words(entry: RouteEntry) -> Words:
    """What the page of a Space says. Every stage has words."""
    if entry.stage == "SLEEPING" and not entry.wakeable:
        return _ASLEEP
    found = _WORDS.get(entry.stage, Words("Not available", "This Space is not available now."))
    if entry.wakeable and not found.busy:
        return Words("Starting again", "The app had stopped. Your visit is starting it again.", True)
    return found


def space_page(entry: RouteEntry, *, retry_seconds: int = 5) -> bytes:
    """The waiting, paused or failed page of a Space."""
    said = words(entry)
    return _render(
        title=entry.title,
        emoji=entry.emoji,
        name=entry.name,
        heading=said.title,
        text=entry.message or said.text,
        busy=said.busy,
        stage=entry.stage,
        progress=entry.progress.text if entry.progress else "",
        since=entry.progress.since if entry.progress else 0,
        page=entry.page,
        refresh=max(2, retry_seconds) if said.busy else 0,
    )


def unreachable_page(entry: RouteEntry) -> bytes:
    """Shown when an app that should answer does not."""
    return _render(
        title=entry.title,
        emoji=entry.emoji,
        name=entry.name,
        heading="The app does not answer",
        text="The app is not taking connections right now. This page tries again by itself.",
        busy=True,
        stage=entry.stage,
        page=entry.page,
        refresh=3,
    )


def not_found_page(sign_in: str = "") -> bytes:
    """The page of what does not exist, or must not be known to exist."""
    return _render(
        title="Not found", heading="Nothing here", sign_in=sign_in,
        text="There is no Space at this address, or you may not see it.",
    )  # fmt: skip


def plain_page(heading: str, text: str, *, refresh: int = 0) -> bytes:
    return _render(title=heading, heading=heading, text=text, refresh=refresh)


def sign_in_address(platform_origin: str, host: str, path: str) -> str:
    """The platform's door to the app of a host name; it alone knows whether there is one."""
    return f"{platform_origin}/auth/app?host={quote(host, safe='')}&next={quote(path, safe='')}"


def card(entry: RouteEntry) -> bytes:
    """A small page about a Space for robots and link previews."""
    said = words(entry)
    status = "Asleep; a visit wakes it." if entry.stage == "SLEEPING" else said.text
    return _environment().get_template("card.html").render(entry=entry, status=status).encode()


def _render(
    *, title: str, heading: str, text: str, emoji: str = "", name: str = "", busy: bool = False, stage: str = "",
    progress: str = "", since: float = 0, page: str = "", refresh: int = 0, sign_in: str = "",
) -> bytes:  # fmt: skip
    template = _environment().get_template("page.html")
    return template.render(
        title=title, heading=heading, text=text, emoji=emoji, name=name, busy=busy, stage=stage, progress=progress,
        since=since, page=page, refresh=refresh, sign_in=sign_in,
    ).encode()  # fmt: skip


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("spaces_platform.gateway", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
