"""The YAML block at the top of a README, read within bounds.

Owns: finding the fences, and turning the YAML between them into plain values that remember their line, column and raw
text. Does not own: what any key means (`builders.config`). Invariant: hostile input costs at most one linear pass over
16 KiB; no alias, anchor, tag, merge key or duplicate key gets through, so a value can never be larger than its text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import yaml

MAX_BYTES = 16 * 1024
"""Most that is read between the fences."""
MAX_DEPTH = 5
"""Nesting of lists and maps, the block itself counted."""

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PREFIX = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True)
class Scalar:
    """One written value. `text` is what stands in the file, before YAML guesses at its type."""

    text: str
    kind: str
    """What YAML takes it for: `str`, `int`, `float`, `bool`, `null`, `timestamp`."""
    quoted: bool
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    items: tuple[Value, ...]
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Fields:
    """A map; keys are distinct."""

    fields: tuple[tuple[Scalar, Value], ...]
    line: int
    column: int


Value = Scalar | Items | Fields


class FrontMatterError(Exception):
    """The block is missing or is not YAML this platform reads. Lines and columns count from 1 in README.md."""

    def __init__(self, line: int, column: int, message: str, fix: str, found: str = "") -> None:
        super().__init__(message)
        self.line, self.column, self.message, self.fix, self.found = line, column, message, fix, found


class Missing(FrontMatterError):
    """There is no block at all."""


def parse(readme: str) -> Fields:
    """The fields of the block that opens a README.

    Raises Missing where there is none, FrontMatterError where it is not closed, too large or not plain YAML.
    """
    text, first = _between_fences(readme)
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise FrontMatterError(
            first,
            1,
            f"The front matter is larger than {MAX_BYTES // 1024} KiB.",
            "Move long text below the second `---`.",
        )
    try:
        _check_events(text, first)
        node = yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        if mark and error.context_mark and mark.line >= text.count("\n"):
            mark = error.context_mark  # something was opened and never closed: say where it was opened
        line, column = (first + mark.line, mark.column + 1) if mark else (first, 1)
        raise FrontMatterError(
            line, column, f"Not valid YAML: {error.problem or error.context}.", _yaml_fix(text, line - first)
        ) from error
    except yaml.YAMLError as error:
        raise FrontMatterError(
            first, 1, f"Not valid YAML: {error}.", "Remove control characters from the block."
        ) from error
    if node is None:
        return Fields((), first, 1)
    value = _value(node, first)
    if not isinstance(value, Fields):
        raise FrontMatterError(
            value.line, value.column, "The front matter must be `key: value` lines.", "Write for example `sdk: gradio`."
        )
    return value


def _between_fences(readme: str) -> tuple[str, int]:
    """The block's text and the README line its first line has."""
    lines = readme.removeprefix("\ufeff").split("\n")
    at = next((n for n, line in enumerate(lines) if line.strip()), None)
    if at is None or lines[at].rstrip() != "---":
        raise Missing(1, 1, "Missing configuration in README", "")
    size = 0
    for n in range(at + 1, len(lines)):
        if lines[n].rstrip() == "---":
            return "\n".join(line.rstrip("\r") for line in lines[at + 1 : n]) + "\n", at + 2
        size += len(lines[n]) + 1
        if size > MAX_BYTES:
            break
    raise FrontMatterError(
        at + 1,
        1,
        f"The front matter that opens here is not closed by a `---` line within {MAX_BYTES // 1024} KiB.",
        "Add a line with nothing but `---` after the last setting.",
    )


def _check_events(text: str, first: int) -> None:
    """Refuse what makes YAML dangerous or ambiguous, before anything recursive looks at it."""
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        mark = event.start_mark
        line, column = (first + mark.line, mark.column + 1) if mark else (first, 1)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise FrontMatterError(
                line,
                column,
                "YAML anchors and aliases (`&name`, `*name`) are not read here.",
                "Write the value out, or quote it.",
            )
        if isinstance(event, yaml.NodeEvent) and getattr(event, "tag", None):
            raise FrontMatterError(
                line, column, "YAML tags (`!name`) are not read here.", "Remove the tag, or quote the value."
            )
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise FrontMatterError(
                    line, column, f"Lists and maps are nested deeper than {MAX_DEPTH}.", "Flatten the value."
                )
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _value(node: yaml.Node, first: int) -> Value:
    line, column = first + node.start_mark.line, node.start_mark.column + 1
    if isinstance(node, yaml.ScalarNode):
        kind = node.tag.removeprefix(_PREFIX)
        return Scalar(node.value, kind, node.style in ("'", '"'), line, column)
    if isinstance(node, yaml.SequenceNode):
        return Items(tuple(_value(item, first) for item in node.value), line, column)
    return Fields(tuple(_fields(node, first)), line, column)


def _fields(node: yaml.Node, first: int) -> Iterator[tuple[Scalar, Value]]:
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        key = _value(key_node, first)
        if not isinstance(key, Scalar):
            raise FrontMatterError(key.line, key.column, "A key must be plain text.", "Write `key: value`.")
        if key.kind == "merge":
            raise FrontMatterError(
                key.line, key.column, "YAML merge keys (`<<`) are not read here.", "Write the keys out."
            )
        if key.text in seen:
            raise FrontMatterError(
                key.line,
                key.column,
                f"`{key.text}` is written twice, first in line {seen[key.text]}.",
                "Keep one of the two.",
                key.text,
            )
        seen[key.text] = key.line
        yield key, _value(value_node, first)


def _yaml_fix(text: str, index: int) -> str:
    lines = text.split("\n")
    line = lines[index] if 0 <= index < len(lines) else ""
    if "\t" in line:
        return "Use spaces instead of tabs."
    if line.count(":") > 1 or ": " in line.partition(":")[2]:
        return 'Put the value in quotes: `title: "My app: the demo"`.'
    return "Write one `key: value` per line; put values with special characters in quotes."
