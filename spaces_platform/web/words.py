"""The words of the pages: stages, times, sizes, confirmations, and how hostile text is made safe to show. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from markupsafe import Markup, escape

COLORS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
"""Values of `colorFrom` and `colorTo`."""

DONE = {
    "created": "The Space is there. Push your app to start it.",
    "woken": "Waking up.",
    "paused": "Paused. Nobody can reach the app until you restart it.",
    "restarted": "Restarting.",
    "rebuild": "Building anew, without anything cached.",
    "asleep": "Going to sleep. The next visit wakes it.",
    "variable": "Variable saved; the app restarts with it.",
    "secret": "Secret saved; the app restarts with it.",
    "removed": "Removed; the app restarts without it.",
    "sleep": "Sleep time saved.",
    "visibility": "Visibility saved.",
    "renamed": "Renamed. The old address leads here from now on.",
    "deleted": "The Space is being deleted.",
    "revoked": "The token is revoked.",
    "signed-out": "You are signed out.",
    "password": "Password changed.",
}
"""Confirmations by the code that a redirect carries: a link can choose among these, never bring its own text."""

ERRORS = {
    400: "That request was not understood",
    401: "Sign in first",
    403: "You may not do that",
    404: "There is nothing here",
    409: "That is taken",
    413: "Too large",
    429: "Too many at once",
    500: "The platform made a mistake",
    503: "Not available right now",
    507: "The disk is full",
}


@dataclass(frozen=True, slots=True)
class StageWords:
    label: str
    tone: str
    """`good` | `busy` | `quiet` | `bad`: how the badge looks."""


STAGES = {
    "NO_APP_FILE": StageWords("No app yet", "quiet"),
    "CONFIG_ERROR": StageWords("Configuration error", "bad"),
    "BUILDING": StageWords("Building", "busy"),
    "BUILD_ERROR": StageWords("Build error", "bad"),
    "APP_STARTING": StageWords("Starting", "busy"),
    "RUNNING": StageWords("Running", "good"),
    "RUNNING_BUILDING": StageWords("Running, building", "good"),
    "RUNNING_APP_STARTING": StageWords("Running, updating", "good"),
    "RUNTIME_ERROR": StageWords("Runtime error", "bad"),
    "SLEEPING": StageWords("Sleeping", "quiet"),
    "PAUSED": StageWords("Paused", "quiet"),
    "DELETING": StageWords("Deleting", "quiet"),
}


def stage_words(stage: str) -> StageWords:
    return STAGES.get(stage) or StageWords(stage.replace("_", " ").capitalize(), "quiet")


BIDI = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Characters that change the direction of text, and so can make a text read as another."""
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")


def clean(text: str, limit: int = 200) -> str:
    """One line of a stranger's text: no control or direction-changing characters, at most `limit` long."""
    text = _CONTROLS.sub(" ", BIDI.sub("", text[: limit * 4])).replace("\n", " ").replace("\t", " ").strip()
    return text if len(text) <= limit else text[: limit - 1] + "…"


def log_text(text: str) -> str:
    """A log line without terminal codes; of an overwritten line (progress bars) what was seen last."""
    text = _ANSI.sub("", text[:4000])
    text = text.rstrip("\r").rpartition("\r")[2]
    return _CONTROLS.sub("", BIDI.sub("", text))


def code_text(text: str) -> str:
    """Source text with direction-changing characters made visible, since they can hide what code does."""
    text = BIDI.sub(lambda m: f"⟦U+{ord(m.group()):04X}⟧", text.replace("\r\n", "\n"))
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


def tile(card: dict[str, object] | None) -> str:
    """Classes of a Space's colours."""
    card = card or {}
    first, second = card.get("colorFrom"), card.get("colorTo")
    return f"from-{first if first in COLORS else 'gray'} to-{second if second in COLORS else 'blue'}"


def split_message(message: str) -> tuple[str, str]:
    """Cause and fix of a diagnosis, which are kept as one text: the first sentence, and the rest."""
    parts = re.split(r"\n+|(?<=[.!?])\s+(?=[A-Z`'\"])", message.strip(), maxsplit=1)
    return parts[0], parts[1] if len(parts) > 1 else ""


def ago(seconds: float) -> str:
    """How long ago, coarsely: `now`, `5 min`, `3 h`, `2 days`."""
    for limit, unit, name in ((60, 0, "just now"), (3600, 60, "min"), (86400, 3600, "h")):
        if seconds < limit:
            return f"{int(seconds // unit)} {name} ago" if unit else name
    days = int(seconds // 86400)
    if days < 60:
        return "yesterday" if days == 1 else f"{days} days ago"
    return f"{days // 30} months ago" if days < 730 else f"{days // 365} years ago"


def duration(seconds: float) -> str:
    """How long something took: `0.3 s`, `42 s`, `3 min 05 s`, `2 h`."""
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    hours = seconds / 3600
    return f"{hours:.1f} h".replace(".0 h", " h") if hours < 48 else f"{hours / 24:.0f} days"


def span(seconds: float) -> str:
    """A time that somebody chose: `30 min`, `6 h`, `1 day`."""
    for unit, name in ((86400, "day"), (3600, "h"), (60, "min")):
        if seconds >= unit and seconds % unit == 0:
            number = int(seconds // unit)
            return f"{number} {name}{'s' if name == 'day' and number > 1 else ''}"
    return f"{seconds:.0f} s"


def inline(text: str) -> Markup:
    """A message with its `code` set as code; everything is escaped."""
    text = clean(text, 2000)
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return escape(text)
    return Markup("").join(Markup("<code>{}</code>").format(p) if n % 2 else escape(p) for n, p in enumerate(parts))


def size(count: int) -> str:
    """Bytes for people: `812 B`, `1.2 kB`."""
    number = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            break
        number /= 1000
    return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"


def day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%d %b %Y %H:%M UTC")


def iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
