"""A bounded log on disk: numbered, timestamped lines in a few files. Owns the format, its writer and its reader.

A log is a directory of segments `<number of the first line, 12 digits>.log`; a line is `<unix milliseconds> text\\n`.
The oldest segment is dropped when all together would exceed the bound, so numbers stay true and memory is never needed
to know them. One writer at a time; any number of readers in any process. Invariant: a line that has a number keeps it.
Standard library only: the shim imports this.
"""

from __future__ import annotations

import os
import time

SEGMENTS = 4
MAX_LINE = 16 << 10
"""Bytes; longer lines are cut into several."""


def names(directory: str) -> list[tuple[int, str]]:
    """(number of the first line, path) of each segment, oldest first; nothing where there is no log."""
    try:
        found = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted((int(n[:-4]), f"{directory}/{n}") for n in found if n.endswith(".log") and n[:-4].isdigit())


class Writer:
    """Appends lines to one log. Resumes after a crash: a torn last line is cut off."""

    def __init__(self, directory: str, limit: int, mode: int = 0o600) -> None:
        self.directory, self.segment_limit, self.mode = directory, max(limit // SEGMENTS, MAX_LINE), mode
        existing = names(directory)
        if not existing:
            self._open(1)
            return
        first, path = existing[-1]
        self.fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        lines, whole = _whole_lines(self.fd)
        os.ftruncate(self.fd, whole)
        self.next, self.size = first + lines, whole

    def _open(self, first: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self.fd = os.open(f"{self.directory}/{first:012d}.log", flags, self.mode)
        self.next, self.size = first, 0

    def append(self, lines: list[bytes], at: float | None = None) -> None:
        """Append lines (without newlines), all with one time. Raises OSError, with whole lines left in place."""
        stamp = b"%013d " % int((time.time() if at is None else at) * 1000)
        batch: list[bytes] = []
        pending = 0
        for line in lines:
            for start in range(0, len(line) or 1, MAX_LINE):
                text = stamp + line[start : start + MAX_LINE].replace(b"\n", b" ") + b"\n"
                if self.size + pending + len(text) > self.segment_limit and self.size + pending:
                    self._write(batch)
                    self._rotate()
                    batch, pending = [], 0
                batch.append(text)
                pending += len(text)
        self._write(batch)

    def _write(self, batch: list[bytes]) -> None:
        data = b"".join(batch)
        done = 0
        try:
            while done < len(data):
                done += os.write(self.fd, data[done:])
        except OSError:
            os.ftruncate(self.fd, self.size)
            raise
        self.size += len(data)
        self.next += len(batch)

    def _rotate(self) -> None:
        os.close(self.fd)
        self._open(self.next)
        for _, path in names(self.directory)[:-SEGMENTS]:
            os.unlink(path)

    def is_last(self) -> bool:
        """Whether nobody else has written since this writer did: its segment has its size, and none follows."""
        found = os.fstat(self.fd)
        if found.st_size != self.size or not found.st_nlink:
            return False
        # Another writer's next segment begins with the next number, or later where it wrote here before.
        return self.size == 0 or not os.path.exists(f"{self.directory}/{self.next:012d}.log")

    def close(self) -> None:
        os.close(self.fd)


def _whole_lines(fd: int) -> tuple[int, int]:
    """(number of whole lines, bytes they take) of an open segment."""
    lines = position = whole = 0
    while chunk := os.pread(fd, 1 << 16, position):
        lines += chunk.count(b"\n")
        if (cut := chunk.rfind(b"\n")) >= 0:
            whole = position + cut + 1
        position += len(chunk)
    return lines, whole


class Reader:
    """Reads one log from any line on; remembers where it stopped, so that following costs only what is new."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._place: tuple[int, int, int] = (0, 0, 0)
        """(last line given, first line of its segment, offset after it)."""

    def read(self, after: int, mark: str) -> list[tuple[int, float, str]]:
        """(number, unix seconds, text) of the whole lines after `after`.

        Where lines in between were dropped, the first one given is `mark`, with the number of the last dropped line.
        """
        segments = names(self.directory)
        found: list[tuple[int, float, str]] = []
        for index, (first, path) in enumerate(segments):
            if index + 1 < len(segments) and segments[index + 1][0] <= after + 1:
                continue
            known = self._place[0] == after and self._place[1] == first
            try:
                with open(path, "rb") as file:
                    file.seek(self._place[2] if known else 0)
                    data = file.read()
            except FileNotFoundError:
                continue  # dropped by the writer after it was listed; the mark tells
            offset = (self._place[2] if known else 0) + data.rfind(b"\n") + 1
            rows = data[: data.rfind(b"\n") + 1].split(b"\n")[:-1]
            number = after + 1 if known else first
            for n, row in enumerate(rows, number):
                if n > after:
                    found.append((n, _seconds(row[:13]), row[14:].decode("utf-8", "replace")))
            if number + len(rows) > after:
                self._place = (number + len(rows) - 1, first, offset)
        if found and found[0][0] > after + 1:
            found.insert(0, (found[0][0] - 1, found[0][1], mark))
        return found


def _seconds(stamp: bytes) -> float:
    """Unix seconds; 0 for a line that a power cut turned to zeros."""
    return int(stamp) / 1000 if stamp.isdigit() else 0.0
