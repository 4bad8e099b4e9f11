"""Requirement files as text: what they ask for, made ready for one resolution.

Owns: reading `requirements.txt` with the files it includes, normalising them so that comments do not change an id, and
settling who decides the SDK's version. Does not own: resolving (uv does). Invariant: pure; every included file stays
inside the tree, and at most MAX_FILES of MAX_SIZE bytes are read.
"""

from __future__ import annotations

import posixpath
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

MAX_FILES = 20
MAX_SIZE = 256 * 1024

_INCLUDE = re.compile(r"^(-r|--requirement|-c|--constraint)(?:\s+|=|(?=\S))(\S+)\s*$")
_EDITABLE = re.compile(r"^(-e|--editable)(?:\s+|=)")
_LOCAL = re.compile(r"^(\.{1,2}(/|$)|file:|[\w.-]+/)")

Read = Callable[[str], str | None]
"""Text of a file of the tree, or None where it does not exist."""


@dataclass(slots=True)
class Files:
    """Requirement files, normalised, in the order they were met."""

    texts: dict[str, str] = field(default_factory=dict)
    needs_tree: bool = False
    """Whether a line installs a folder of the app itself."""
    warnings: list[str] = field(default_factory=list)

    def pins(self, name: str) -> list[tuple[str, Requirement]]:
        """Every line of any file that asks for the package, with the file it stands in."""
        found = []
        for path, text in self.texts.items():
            for line in text.splitlines():
                requirement = _requirement(line)
                if requirement is not None and canonicalize_name(requirement.name) == canonicalize_name(name):
                    found.append((path, requirement))
        return found

    def release(self, name: str) -> None:
        """Take the version away from every line that asks for the package, keeping its extras."""
        for path, text in self.texts.items():
            self.texts[path] = "".join(_unpinned(line, name) + "\n" for line in text.splitlines())


def collect(name: str, read: Read) -> Files:
    """A requirement file with all it includes; empty where it does not exist."""
    files = Files()
    waiting = [name]
    while waiting:
        path = waiting.pop(0)
        if path in files.texts:
            continue
        if len(files.texts) == MAX_FILES:
            files.warnings.append(f"{name} includes more than {MAX_FILES} files; the rest is not read.")
            break
        text = read(path)
        if text is None:
            continue
        files.texts[path] = _normalised(path, text, files, waiting)
    return files


def _normalised(path: str, text: str, files: Files, waiting: list[str]) -> str:
    """Lines that matter, without comments and blank lines."""
    lines = []
    for raw in text.removeprefix("\ufeff").replace("\\\r\n", " ").replace("\\\n", " ").splitlines():
        line = re.sub(r"(^|\s)#.*$", "", raw).strip()
        if not line:
            continue
        include = _INCLUDE.match(line)
        if include and "://" not in include[2]:
            target = posixpath.normpath(posixpath.join(posixpath.dirname(path), include[2]))
            if target.startswith(("..", "/")):
                files.warnings.append(f"{path}: `{line}` leaves the repository; ignored.")
                continue
            waiting.append(target)
        line = _EDITABLE.sub("", line)
        if _LOCAL.match(line) and "://" not in line:
            files.needs_tree = True
        lines.append(line)
    return "".join(line + "\n" for line in lines)


def _requirement(line: str) -> Requirement | None:
    """The requirement on a line, or None where it is an option, an address or a path."""
    if line.startswith("-"):
        return None
    try:
        return Requirement(re.split(r"\s--", line, maxsplit=1)[0].strip())
    except InvalidRequirement:
        return None


def _unpinned(line: str, name: str) -> str:
    requirement = _requirement(line)
    if requirement is None or canonicalize_name(requirement.name) != canonicalize_name(name):
        return line
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    marker = f" ; {requirement.marker}" if requirement.marker else ""
    return f"{requirement.name}{extras}{marker}"


def agrees(requirement: Requirement, version: str) -> bool:
    """Whether a version satisfies a requirement."""
    try:
        return requirement.url is None and requirement.specifier.contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False


def project_dependencies(pyproject: str) -> tuple[tuple[str, ...], str]:
    """`[project] dependencies` and `requires-python` of a pyproject.toml. Raises ValueError on one that is no TOML."""
    data = tomllib.loads(pyproject)
    project = data.get("project")
    if not isinstance(project, Mapping):
        return (), ""
    dependencies = project.get("dependencies", [])
    if not isinstance(dependencies, list) or not all(isinstance(line, str) for line in dependencies):
        raise ValueError("[project] dependencies is not a list of strings")
    return tuple(dependencies), str(project.get("requires-python", ""))
