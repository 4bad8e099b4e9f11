"""How one front-matter value is read: one small reader per type, each returning a typed value or Refused.

Owns: coercion (quoted or not), bounds and the wording of what is allowed. Does not own: which key has which type
(`config.KEYS`). Invariant: a reader sees only the raw text of bounded YAML and never guesses silently: whatever it puts
right is told through `warn`.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from builders import preload
from builders.front_matter import Fields, Items, Scalar, Value

if TYPE_CHECKING:
    from builders.config import Key

Warn = Callable[[str], None]

_VERSION = re.compile(r"\d+(\.\d+){0,3}((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?")
_PYTHON = re.compile(r"3\.\d{1,2}(\.\d{1,2})?")
_DURATION = re.compile(r"(?:(\d{1,2})d)?(?:(\d{1,4})h)?(?:(\d{1,5})m)?(?:(\d{1,6})s)?")
_BASE = (
    "[\U0001f000-\U0001f1e5\U0001f200-\U0001f3fa\U0001f400-\U0001faff"
    "\u00a9\u00ae\u203c\u2049\u2122\u2139\u2190-\u21ff\u2300-\u23ff\u24c2\u25a0-\u27bf\u2900-\u297f\u2b00-\u2bff"
    "\u3030\u303d\u3297\u3299]"
)
_ELEMENT = f"{_BASE}\ufe0f?[\U0001f3fb-\U0001f3ff]?[\U000e0020-\U000e007f]*"
_EMOJI = re.compile(
    f"(?:[\U0001f1e6-\U0001f1ff]{{2}}|[0-9#*]\ufe0f?\u20e3|{_ELEMENT}(?:\u200d{_ELEMENT})*)"
)  # flag, keycap, or emoji joined by zero-width joiners: Unicode TR51, ED-14c to ED-16
_TRUE, _FALSE = {"true", "yes", "on"}, {"false", "no", "off"}
MAX_START = 24 * 3600
MAX_PRELOADS = 100
CUSTOM_HEADERS: Mapping[str, tuple[str, ...]] = {
    "cross-origin-embedder-policy": ("unsafe-none", "require-corp", "credentialless"),
    "cross-origin-opener-policy": ("same-origin", "same-origin-allow-popups", "unsafe-none"),
    "cross-origin-resource-policy": ("same-site", "same-origin", "cross-origin"),
}


class Refused(Exception):
    """A value is not allowed. `line` 0 stands for the value's own place."""

    def __init__(self, message: str, fix: str, found: str, allowed: str, line: int = 0, column: int = 0) -> None:
        super().__init__(message)
        self.message, self.fix, self.found, self.allowed = message, fix, found, allowed
        self.line, self.column = line, column


def read(key: Key, value: Value, warn: Warn) -> Any:
    """The typed value of a key. Raises Refused."""
    return READERS[key.type](key, value, warn)


def as_text(value: Value) -> str:
    """Any value as text, for keys that are only kept."""
    if isinstance(value, Scalar):
        return value.text
    if isinstance(value, Items):
        return ", ".join(as_text(item) for item in value.items)
    return ", ".join(f"{name.text}: {as_text(item)}" for name, item in value.fields)


def _refuse(key: Key, value: Value, why: str, fix: str = "", allowed: str = "") -> Refused:
    allowed = allowed or (", ".join(key.choices) if key.choices else key.allowed)
    found = as_text(value)[:200]
    return Refused(
        f"`{key.name}: {found}` {why}.", fix or f"Allowed: {allowed}.", found, allowed, value.line, value.column
    )


def _scalar(key: Key, value: Value) -> Scalar:
    if isinstance(value, Scalar):
        return value
    kind = "a list" if isinstance(value, Items) else "a map"
    raise _refuse(key, value, f"is {kind}, one value is expected")


def _plain(value: Scalar) -> str:
    """Text without what could disguise it: control characters and bidirectional overrides."""
    return "".join(
        c for c in value.text if c in "\t\n" or unicodedata.category(c) not in ("Cc", "Cf") or c == "\u200d"
    ).strip()


def _text(key: Key, value: Value, warn: Warn) -> str:
    scalar = _scalar(key, value)
    text = _plain(scalar)
    if not scalar.quoted and scalar.kind in ("int", "float", "bool", "timestamp"):
        warn(f'README.md line {scalar.line}: read `{key.name}` as the text "{text}"; put it in quotes to be sure.')
    if key.limits and len(text) > key.limits[1]:
        raise _refuse(key, value, f"has {len(text)} characters", f"Shorten it to {key.limits[1]} characters.")
    return text


def _choice(key: Key, value: Value, warn: Warn) -> str:
    text = _scalar(key, value).text.strip()
    if text in key.choices:
        return text
    if key.soft:
        warn(f"README.md line {value.line}: `{key.name}: {text[:100]}` is not known here; it has no effect.")
        return text
    close = difflib.get_close_matches(text.lower(), key.choices, n=1, cutoff=0.6)
    hint = f"Did you mean `{close[0]}`? " if close else ""
    raise _refuse(key, value, "is not known", f"{hint}Allowed: {', '.join(key.choices)}.")


def _emoji(key: Key, value: Value, _warn: Warn) -> str:
    text = _scalar(key, value).text.strip()
    if not text or _EMOJI.fullmatch(text):
        return text
    raise _refuse(key, value, "is not exactly one emoji", "Use one emoji, for example 🚀.")


def _version(key: Key, value: Value, warn: Warn) -> str:
    scalar = _scalar(key, value)
    text = scalar.text.strip().removeprefix("v")
    if not _VERSION.fullmatch(text):
        raise _refuse(key, value, "is not one exact release", f"Write {key.allowed}, without `>=`, `~=` or `x`.")
    _warn_unquoted(key, scalar, text, warn)
    return text


def _python(key: Key, value: Value, warn: Warn) -> str:
    scalar = _scalar(key, value)
    text = scalar.text.strip()
    if text == "3.1" and not scalar.quoted:
        text = "3.10"
    if not _PYTHON.fullmatch(text) or int(text.split(".")[1]) < 7:
        raise _refuse(key, value, "is not a Python 3 release", f"Write {key.allowed}, with the quotes.")
    _warn_unquoted(key, scalar, text, warn)
    return text


def _warn_unquoted(key: Key, scalar: Scalar, text: str, warn: Warn) -> None:
    """A bare `3.10` is the number 3.1 to every YAML reader; only the raw text keeps what was meant."""
    if not scalar.quoted and scalar.kind in ("float", "int"):
        number = f" (YAML makes the number {float(scalar.text):g} of it)" if scalar.kind == "float" else ""
        warn(f'README.md line {scalar.line}: read `{key.name}` as "{text}"{number}; write {key.name}: "{text}".')


def _path(key: Key, value: Value, _warn: Warn) -> str:
    text = _scalar(key, value).text.strip()
    path = text
    while path.startswith("./"):
        path = path[2:]
    parts = path.split("/")
    if len(path) > 255 or any(ord(c) < 32 or c in "\\\x7f" for c in path):
        raise _refuse(key, value, "is not a path", "Use `/` between folders and ordinary characters.")
    if path and (
        path.startswith(("/", "-")) or any(part in ("", ".", "..") or part.lower() == ".git" for part in parts)
    ):
        raise _refuse(
            key, value, "does not stay inside the repository", "Write the path from the root, like src/app.py."
        )
    return path


def _url_path(key: Key, value: Value, _warn: Warn) -> str:
    text = _scalar(key, value).text.strip()
    bad = not text.startswith("/") or text.startswith("//") or len(text) > 500 or "\\" in text
    if bad or any(ord(c) <= 32 or ord(c) == 127 for c in text) or ".." in text.partition("?")[0].split("/"):
        raise _refuse(key, value, "is not a path on the app's own host", "Write a path like /docs.")
    return text


def _url(key: Key, value: Value, _warn: Warn) -> str:
    text = _plain(_scalar(key, value))
    if text and not re.fullmatch(r"https?://[^\s<>\"'`]{1,1000}", text):
        raise _refuse(key, value, "is not an http or https address")
    return text


def _int(key: Key, value: Value, warn: Warn) -> int:
    scalar = _scalar(key, value)
    if not re.fullmatch(r"[+-]?[0-9]{1,9}", scalar.text.strip()):
        raise _refuse(key, value, "is not a whole number")
    number = int(scalar.text)
    if scalar.quoted:
        warn(f"README.md line {scalar.line}: `{key.name}` is a number; leave the quotes out.")
    if key.limits and not key.limits[0] <= number <= key.limits[1]:
        raise _refuse(key, value, f"is not between {key.limits[0]} and {key.limits[1]}")
    return number


def _bool(key: Key, value: Value, warn: Warn) -> bool:
    scalar = _scalar(key, value)
    word = scalar.text.strip().lower()
    if word not in _TRUE | _FALSE:
        raise _refuse(key, value, "is neither true nor false")
    if scalar.quoted:
        warn(f"README.md line {scalar.line}: read `{key.name}` as {str(word in _TRUE).lower()}; leave the quotes out.")
    return word in _TRUE


def _list(key: Key, value: Value, warn: Warn) -> tuple[str, ...]:
    if isinstance(value, Scalar):
        warn(f"README.md line {value.line}: `{key.name}` should be a list; read as a list of one.")
    return _text_or_list(key, value, warn)


def _text_or_list(key: Key, value: Value, _warn: Warn) -> tuple[str, ...]:
    items = value.items if isinstance(value, Items) else (value,)
    texts = []
    for item in items:
        if not isinstance(item, Scalar):
            raise _refuse(key, item, "is not plain text")
        if item.kind != "null" or item.quoted:
            texts.append(_plain(item))
    return tuple(text for text in texts if text)


def _choices(key: Key, value: Value, warn: Warn) -> tuple[str, ...]:
    items = value.items if isinstance(value, Items) else (value,)
    return tuple(dict.fromkeys(_choice(key, item, warn) for item in items))


def _duration(key: Key, value: Value, _warn: Warn) -> int:
    text = _scalar(key, value).text.strip().lower().replace(" ", "")
    match = _DURATION.fullmatch(text)
    if not match or not any(match.groups()):
        raise _refuse(key, value, "is not a length of time", "Write a number with its unit: 90s, 30m, 1h or 1h30m.")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if not 1 <= total <= MAX_START:
        raise _refuse(key, value, "is not between 1s and 24h")
    return total


def _headers(key: Key, value: Value, _warn: Warn) -> dict[str, str]:
    if not isinstance(value, Fields):
        raise _refuse(key, value, "is not a map", "Write each header on its own indented line.")
    headers: dict[str, str] = {}
    for name, item in value.fields:
        allowed = CUSTOM_HEADERS.get(name.text)
        if allowed is None:
            names = ", ".join(CUSTOM_HEADERS)
            raise _refuse(key, name, "is not a header that can be set", f"Allowed, in lower case: {names}.", names)
        text = _scalar(key, item).text.strip()
        if text not in allowed:
            words = ", ".join(allowed)
            raise _refuse(key, item, f"is not allowed for {name.text}", f"Allowed: {words}.", words)
        headers[name.text] = text
    return headers


def _preload(key: Key, value: Value, warn: Warn) -> tuple[str, ...]:
    texts = _list(key, value, warn)
    for text, item in zip(texts, value.items if isinstance(value, Items) else (value,), strict=False):
        try:
            preload.parse(text)
        except ValueError as error:
            raise _refuse(key, item, str(error)) from error
    if len(texts) > MAX_PRELOADS:
        raise _refuse(key, value, f"has {len(texts)} entries, and {MAX_PRELOADS} are possible")
    return texts


READERS: dict[str, Callable[[Key, Value, Warn], Any]] = {
    "text": _text,
    "choice": _choice,
    "emoji": _emoji,
    "version": _version,
    "python": _python,
    "path": _path,
    "url_path": _url_path,
    "url": _url,
    "int": _int,
    "bool": _bool,
    "list": _list,
    "text_or_list": _text_or_list,
    "choices": _choices,
    "duration": _duration,
    "headers": _headers,
    "preload": _preload,
}
