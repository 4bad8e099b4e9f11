"""What a check answers."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    level: str
    """`ok`, `warn` (works, but less well) or `fail` (does not work)."""
    found: str
    fix: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def ok(name: str, found: str) -> Check:
    return Check(name, "ok", found)


def warn(name: str, found: str, fix: str) -> Check:
    return Check(name, "warn", found, fix)


def fail(name: str, found: str, fix: str) -> Check:
    return Check(name, "fail", found, fix)


Version = tuple[int, int, int]


def version_of(text: str) -> Version | None:
    """The first `1.2.3` or `1.2` of a text. A release candidate counts as the version before it. Pure."""
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?(-?rc)?", text)
    if found is None:
        return None
    major, minor, patch = int(found[1]), int(found[2]), int(found[3] or 0)
    return (major, minor, patch - 1) if found[4] else (major, minor, patch)


def has_fix(version: Version, fixed_in: tuple[Version, ...]) -> bool:
    """Whether a version has what was fixed in these releases, one for each line that got the fix. Pure."""
    same_line = any(fix[:2] == version[:2] and version >= fix for fix in fixed_in)
    return same_line or version >= max(fixed_in)
