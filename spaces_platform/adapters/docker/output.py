"""An app's output: fetched from the engine when somebody looks and when the app ends, kept as numbered lines.

The engine holds the last `log_bytes` of each container in files of its own; this module copies what is new into a log
of the same size (adapters/process/shim/segments.py), where lines get numbers that they keep. Nothing is fetched while
nobody looks, so an app's chatter costs the platform nothing. Owns the place up to which was copied; invariant: a line
is copied once, also by a control plane that was killed in between.
"""

from __future__ import annotations

import itertools
import json
import logging
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from spaces_platform.adapters.process.shim import files, output, segments
from spaces_platform.errors import NotFound, Unavailable
from spaces_platform.ports import LogLine

from .engine import Engine

log = logging.getLogger(__name__)
DROPPED = "[spaces] older output was dropped"
LOST = b"[spaces] output came too fast: some lines between these two were dropped"
PAUSE = 0.2
"""Least seconds between two fetches of one app's output, however many readers it has."""
SHARE = 10
"""And this many times what the last fetch took: a flood costs at most a tenth of a thread."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line as the engine kept it."""

    at: str
    """RFC 3339 in UTC with nanoseconds; sorts like the time it says."""
    text: bytes


@dataclass(frozen=True, slots=True)
class Place:
    """Up to where output was copied."""

    at: str = ""
    """Time of the last line."""
    same: int = 0
    """How many lines with that very time were copied."""
    lines: int = 0
    """Lines in the log when this was written: what is above them was copied afterwards."""


def rows(messages: Iterable[bytes]) -> Iterator[Row]:
    """Lines as a terminal would show them, from the engine's messages: a long line comes in several of these, each
    with a time of its own. What is too long for one line of the log is cut here."""
    at, parts = "", []
    for message in messages:
        stamp, _, text = message.partition(b" ")
        at = at or _sortable(stamp.decode("ascii", "replace"))
        parts.append(text.rstrip(b"\n"))
        if text.endswith(b"\n"):
            yield from _cut(at, b"".join(parts))
            at, parts = "", []
    if parts:
        yield from _cut(at, b"".join(parts))


def _cut(at: str, text: bytes) -> Iterator[Row]:
    text = output.shown(text)
    for start in range(0, len(text) or 1, segments.MAX_LINE):
        yield Row(at, text[start : start + segments.MAX_LINE])


def fresh(found: Iterable[Row], place: Place) -> tuple[list[Row], bool]:
    """(rows behind a place, whether rows in between are gone). Pure."""
    same, new, met = 0, [], not place.at
    for row in found:
        if row.at < place.at:
            continue
        if row.at == place.at:
            met = True
            same += 1
            if same <= place.same:
                continue
        new.append(row)
    return new, not met


def moved(place: Place, new: list[Row], lines: int) -> Place:
    """The place behind new rows. Pure."""
    if not new:
        return place
    at = new[-1].at
    same = sum(1 for row in new if row.at == at) + (place.same if at == place.at else 0)
    return Place(at, same, lines)


class Output:
    """The output of one deployment. Safe to call from any thread."""

    def __init__(self, directory: Path, limit: int) -> None:
        self._directory, self._limit = directory, limit
        self._lock = threading.Lock()
        self._writer: segments.Writer | None = None
        self._reader = segments.Reader(str(directory))
        self._place: Place | None = None
        self._next_fetch = 0.0

    def fetch(self, engine: Engine, container: str, *, last: bool = False) -> None:
        """Copy what is new, unless that was done just now. `last`: the app has ended; do it in any case.

        An engine that is away, or a container that is gone, adds nothing. Raises OSError on a full disk.
        """
        with self._lock:
            began = time.monotonic()
            if began < self._next_fetch and not last:
                return
            try:
                self._copy(engine, container)
            except (NotFound, Unavailable) as error:
                log.debug("output of container %s is not to be had: %s", container[:12], error)
            took = time.monotonic() - began
            self._next_fetch = time.monotonic() + max(PAUSE, SHARE * took)
            if last:
                self._close()

    def note(self, text: str) -> None:
        """Add a line of the platform's own."""
        with self._lock:
            self._opened().append([f"[spaces] {text}".encode()])
            place = self._placed()
            self._save(Place(place.at, place.same, self._opened().next - 1))

    def read(self, after: int) -> list[LogLine]:
        with self._lock:
            found = self._reader.read(after, DROPPED)
        return [LogLine(n, datetime.fromtimestamp(at, UTC), text) for n, at, text in found]

    def close(self) -> None:
        with self._lock:
            self._close()

    def _close(self) -> None:
        writer, self._writer, self._place = self._writer, None, None
        if writer is not None:
            writer.close()

    def _opened(self) -> segments.Writer:
        if self._writer is None:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._writer = segments.Writer(str(self._directory), self._limit)
        return self._writer

    def _copy(self, engine: Engine, container: str) -> None:
        writer, place = self._opened(), self._placed()
        # Floats hold microseconds here: a little earlier, and what was copied is left out by `fresh`.
        new, gap = fresh(rows(engine.output(container, max(_seconds(place.at) - 1e-3, 0.0))), place)
        copied = writer.next - 1 - place.lines
        if copied > 0:  # killed between a line and its place: these are the lines that were copied then
            place = moved(place, new[:copied], writer.next - 1)
            new = new[copied:]
            self._save(place)
        if not new:
            return
        if gap:
            writer.append([LOST], _seconds(new[0].at))
            self._save(Place(place.at, place.same, writer.next - 1))
        for moment, group in itertools.groupby(new, lambda row: row.at[:23]):  # a log line's time is in milliseconds
            writer.append([row.text for row in group], _seconds(moment))
        self._save(moved(place, new, writer.next - 1))

    def _placed(self) -> Place:
        if self._place is None:
            try:
                known = json.loads((self._directory / "place.json").read_text())
                self._place = Place(str(known["at"]), int(known["same"]), int(known["lines"]))
            except (FileNotFoundError, ValueError, KeyError, TypeError):
                self._place = Place()
        return self._place

    def _save(self, place: Place) -> None:
        text = json.dumps({"at": place.at, "same": place.same, "lines": place.lines})
        files.replace(str(self._directory / "place.json"), text)
        self._place = place


def _sortable(stamp: str) -> str:
    """`2026-01-02T03:04:05.123456789Z`: the engine leaves out zeros at the end of the fraction."""
    whole, _, fraction = stamp.removesuffix("Z").partition(".")
    return f"{whole}.{fraction:0<9}Z"


def _seconds(stamp: str) -> float:
    """Unix seconds, to the microsecond."""
    if not stamp:
        return 0.0
    return datetime.fromisoformat(stamp[:26]).replace(tzinfo=UTC).timestamp()
