"""What the command line says, and how: plain lines, colour on a terminal, JSON for scripts.

Owns: output, the exit codes, and turning an error into one red line. Does not own: what there is to say. Invariant:
with `--json`, stdout holds JSON only, one value per line; everything for people goes to stderr.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

FAILED, USAGE, NOT_SIGNED_IN, NOT_FOUND, INTERRUPTED = 1, 2, 3, 4, 130
"""Exit codes. 2 is also what a wrong command line gives."""

_STYLES = {"red": "31;1", "green": "32;1", "yellow": "33", "dim": "2", "bold": "1", "cyan": "36"}


class Failure(Exception):
    """A command failed: what failed, and what to do about it."""

    def __init__(self, message: str, fix: str = "", *, code: int = FAILED, **data: Any) -> None:
        super().__init__(message)
        self.message, self.fix, self.code, self.data = message, fix, code, data

    def as_json(self) -> dict[str, Any]:
        return {"error": self.message, "fix": self.fix, "exit": self.code, **self.data}


def is_live() -> bool:
    """Whether there is a person's terminal to draw on."""
    return sys.stderr.isatty() and sys.stdout.isatty()


def paint(text: str, style: str, stream: Any = None) -> str:
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if (stream or sys.stdout).isatty() else text


def say(text: str = "", *, style: str = "") -> None:
    """A line of the result."""
    print(paint(text, style) if style else text, flush=True)


def note(text: str, *, style: str = "dim") -> None:
    """A line beside the result."""
    print(paint(text, style, sys.stderr), file=sys.stderr, flush=True)


def emit(value: Any) -> None:
    """A JSON value, on one line."""
    print(json.dumps(value, ensure_ascii=False, default=str), flush=True)


def result(value: Any, as_json: bool, text: str, *, style: str = "") -> None:
    """The one result of a command: `value` for scripts, `text` for people."""
    if as_json:
        emit(value)
    else:
        say(text, style=style)


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """Rows in aligned columns, `columns` being key -> title."""
    cells = [list(columns.values())]
    cells += [[str("" if row.get(key) is None else row[key]) for key in columns] for row in rows]
    widths = [max(len(row[n]) for row in cells) for n in range(len(columns))]
    for n, row in enumerate(cells):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        say(line, style="dim" if n == 0 else "")


def report(failure: Failure, as_json: bool) -> None:
    """The failure as one red line and its fix, on stderr; as JSON on stdout where JSON was asked for."""
    if as_json:
        emit(failure.as_json())
        return
    note(f"Error: {failure.message}", style="red")
    if failure.fix:
        print(f"  {failure.fix}", file=sys.stderr, flush=True)


def confirm(question: str, yes: bool) -> None:
    """Ask before something that cannot be undone. Raises Failure where nobody can be asked."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise Failure(f"{question} Nobody is here to answer.", "Say --yes.", code=USAGE)
    if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise Failure("Nothing was done.", code=INTERRUPTED)


class ConsoleLog:
    """A build log for people."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def line(self, text: str) -> None:
        note(f"    {text}")

    def phase(self, phase: str, text: str = "") -> None:
        say(f"[{time.monotonic() - self._began:6.1f} s] {phase} {text}".rstrip())
