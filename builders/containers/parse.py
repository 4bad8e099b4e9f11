"""A Dockerfile as instructions.

Owns: lines, continuations, comments, directives, flags, and replacing build arguments, as BuildKit's own parser does.
Does not own: what is allowed (`rules`). Invariant: pure, in linear time and within bounds; what BuildKit could read in
another way than this parser does is refused, never guessed.

Format: https://docs.docker.com/reference/dockerfile/
BuildKit's parser: frontend/dockerfile/parser in https://github.com/moby/buildkit (v0.8, which Docker 20.10 ships)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

MAX_BYTES = 256 * 1024
MAX_INSTRUCTIONS = 500
MAX_LINE = 60_000
"""Bytes of one instruction. BuildKit reads lines up to 64 KiB, and the kernel arguments up to 128 KiB."""
_NAMES = (
    "ADD ARG CMD COPY ENTRYPOINT ENV EXPOSE FROM HEALTHCHECK LABEL MAINTAINER ONBUILD RUN SHELL STOPSIGNAL USER VOLUME "
    "WORKDIR"
)
INSTRUCTIONS = frozenset(_NAMES.split())

_DIRECTIVE = re.compile(r"#\s*(?P<name>[a-zA-Z][a-zA-Z0-9]*)\s*=\s*(?P<value>.+?)\s*")
_HEREDOC = re.compile(r"<<-?\s*['\"]?[A-Za-z_]")
_FLAG = re.compile(r"--[a-z][a-z-]*(?:=\S*)?(?=\s|$)")
_VARIABLE = re.compile(
    r"\$(?:(?P<plain>[A-Za-z_]\w*)|\{(?P<name>[A-Za-z_]\w*)(?:(?P<how>:-|:\+|-|\+)(?P<word>[^${}\\\"']*))?\})"
)


class Unreadable(Exception):
    """It is not a Dockerfile that can be read with certainty. `line` counts from 1; 0: the file as a whole."""

    def __init__(self, line: int, message: str, fix: str) -> None:
        super().__init__(message)
        self.line, self.message, self.fix = line, message, fix


@dataclass(frozen=True, slots=True)
class Instruction:
    name: str
    """In upper case."""
    flags: tuple[str, ...]
    """`--mount=type=bind,…`, as written, in order."""
    text: str
    """What follows the flags, on one line."""
    line: int
    """Line of the file it begins at, from 1."""

    def words(self) -> list[str]:
        """The arguments of COPY, ADD, FROM: a JSON list, or words. Raises Unreadable."""
        if self.text.lstrip().startswith("["):
            try:
                listed = json.loads(self.text)
            except ValueError:
                listed = None  # BuildKit then takes it as words, too
            if isinstance(listed, list) and all(isinstance(word, str) for word in listed):
                return listed
        return self.text.split()


@dataclass(frozen=True, slots=True)
class Dockerfile:
    instructions: tuple[Instruction, ...]
    directives: Mapping[str, str]
    """In lower case: `syntax`, `escape`, `check`."""

    @property
    def escape(self) -> str:
        return self.directives.get("escape", "\\")


def parse(text: str) -> Dockerfile:
    """Raises Unreadable."""
    if len(text.encode("utf-8", "surrogateescape")) > MAX_BYTES:
        raise Unreadable(0, f"The Dockerfile is larger than {MAX_BYTES >> 10} KiB.", "Put long commands into a script.")
    lines = text.removeprefix("\ufeff").split("\n")
    directives, at = _directives(lines)
    escape = directives.get("escape", "\\")
    if escape not in ("\\", "`"):
        raise Unreadable(1, f"The escape character {escape!r} is neither `\\` nor a backtick.", "Remove the directive.")
    instructions: list[Instruction] = []
    while at < len(lines):
        first = at
        logical, at = _logical(lines, at, escape)
        if logical:
            instructions.append(_instruction(logical, first + 1))
        if len(instructions) > MAX_INSTRUCTIONS:
            raise Unreadable(
                first + 1, f"The Dockerfile has more than {MAX_INSTRUCTIONS} instructions.", "Join RUN steps with `&&`."
            )
    return Dockerfile(tuple(instructions), directives)


def _directives(lines: list[str]) -> tuple[dict[str, str], int]:
    """`# key=value` lines at the very top, and the number of the first line after them."""
    found: dict[str, str] = {}
    for at, line in enumerate(lines):
        match = _DIRECTIVE.fullmatch(line.strip())
        if match is None or match["name"].lower() not in ("syntax", "escape", "check"):
            return found, at
        name = match["name"].lower()
        if name in found:
            raise Unreadable(at + 1, f"The directive `{name}` stands there twice.", "Keep one of them.")
        found[name] = match["value"]
    return found, len(lines)


def _logical(lines: list[str], at: int, escape: str) -> tuple[str, int]:
    """The instruction that begins at a line, with its continuations joined; empty for a blank line or a comment."""
    line = lines[at].rstrip("\r").lstrip()
    at += 1
    if line.startswith("#"):
        return "", at
    joined, goes_on = _continued(line, escape, at)
    size = len(joined)
    while goes_on and at < len(lines):
        line = lines[at].rstrip("\r")
        at += 1
        if line.lstrip().startswith("#") or not line.strip():
            continue  # comments and blank lines within an instruction are dropped
        part, goes_on = _continued(line, escape, at)
        size += len(part)
        if size > MAX_LINE:
            raise Unreadable(at, f"One instruction is longer than {MAX_LINE} bytes.", "Put it into a script.")
        joined += part
    if size > MAX_LINE:
        raise Unreadable(at, f"One instruction is longer than {MAX_LINE} bytes.", "Put it into a script.")
    return joined.strip(), at


def _continued(line: str, escape: str, number: int) -> tuple[str, bool]:
    bare = line.rstrip(" \t")
    if not bare.endswith(escape):
        return line, False
    if bare.endswith(escape * 2):
        raise Unreadable(
            number, f"The line ends with `{escape * 2}`, which builders read differently.", "End it with one, or none."
        )
    return bare[:-1], True


def _instruction(logical: str, line: int) -> Instruction:
    if any((ord(c) < 32 and c != "\t") or ord(c) == 127 for c in logical):
        raise Unreadable(line, "There is a control character in the line.", "Remove it.")
    name, rest = [*re.split(r"[ \t]+", logical, maxsplit=1), ""][:2]
    name = name.upper()
    if name not in INSTRUCTIONS:
        raise Unreadable(line, f"`{name[:40]}` is not an instruction of Dockerfiles.", "Check its spelling.")
    if not rest:
        raise Unreadable(line, f"{name} has nothing after it.", "Complete or remove the line.")
    if name in ("RUN", "COPY", "ADD") and _HEREDOC.search(rest):
        raise Unreadable(
            line, "Here-documents (`<<EOF`) are not possible with this engine.", "Put the text into a file and COPY it."
        )
    flags: list[str] = []
    while name in ("RUN", "COPY", "ADD", "FROM", "HEALTHCHECK") and rest.startswith("--"):
        match = _FLAG.match(rest)
        if match is None or any(c in match[0] for c in "\"'\\`"):
            raise Unreadable(line, f"The option `{rest[:60]}` cannot be read.", "Write it without quotes and spaces.")
        flags.append(match[0])
        rest = rest[match.end() :].strip()
    return Instruction(name, tuple(flags), rest, line)


def replaced(text: str, values: Mapping[str, str], line: int) -> str:
    """Text with its build arguments replaced, as BuildKit does it in FROM. Raises Unreadable for what is not plain."""

    def value(match: re.Match[str]) -> str:
        name = match["plain"] or match["name"]
        given, word = values.get(name, ""), match["word"] or ""
        match match["how"]:
            case ":-":
                return given or word
            case "-":
                return given if name in values else word
            case ":+":
                return word if given else ""
            case "+":
                return word if name in values else ""
        return given

    done = _VARIABLE.sub(value, text)
    rest = _VARIABLE.sub("", text)
    if "$" in rest or any(c in text for c in "\\\"'`"):
        raise Unreadable(line, f"`{text[:80]}` is too complicated to be sure of.", "Use plain ${NAME} and no quotes.")
    return done
