"""Log streams in files: the LogStore of one machine. Owns stream names and open writers; the format is segments.py's.

Invariant: a line's number never changes and is never given twice, across restarts and truncation. Any thread of any
process on the machine may write and read: a kernel lock on the stream's directory is held for each append, and whoever
finds that another process has written meanwhile goes on after its lines.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from spaces_platform.adapters.process.shim.segments import Reader, Writer
from spaces_platform.errors import DiskFull, Invalid, Unavailable
from spaces_platform.ports import Clock, LogLine

DROPPED = "[spaces] older lines were dropped"
OPEN_STREAMS = 32
"""Streams that stay open for writing, with two file descriptors each, and places remembered for reading."""
LOCK_SECONDS = 2.0
"""Longest wait for another process's append; it holds the lock for microseconds, unless it was stopped just then."""
LOCK_POLL_SECONDS = 0.001
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}(/[A-Za-z0-9][A-Za-z0-9._-]{0,99}){0,3}\Z")


class FileLogStore:
    """The LogStore port on a directory."""

    def __init__(self, root: Path, clock: Clock, *, limit: int = 8 << 20) -> None:
        """`limit`: bytes kept per stream; older lines are dropped in quarters of it."""
        self._root, self._clock, self._limit = root, clock, limit
        root.mkdir(parents=True, exist_ok=True)
        root.chmod(0o700)
        self._writing, self._reading = threading.Lock(), threading.Lock()
        self._writers: OrderedDict[str, _Stream] = OrderedDict()
        self._readers: OrderedDict[str, Reader] = OrderedDict()

    def append(self, stream: str, lines: Iterable[str]) -> None:
        """See the port. A text with line breaks counts as several lines. Raises Invalid, DiskFull, Unavailable."""
        place = self._place(stream)
        texts = [row.encode("utf-8", "replace") for line in lines for row in line.split("\n")]
        if not texts:
            return
        at = self._clock.now().timestamp()
        with self._writing:
            try:
                self._append(stream, place, texts, at)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise DiskFull(f"the log {stream} cannot be written: the disk is full; free some space") from error
                raise Unavailable(f"the log {stream} cannot be written: {error}") from error

    def read(self, stream: str, after: int = 0) -> Sequence[LogLine]:
        """See the port. Where older lines were dropped, the first line says so. Of an unknown stream: nothing."""
        place = self._place(stream)
        with self._reading:
            reader = self._readers.pop(stream, None) or Reader(str(place))
            self._readers[stream] = reader
            while len(self._readers) > OPEN_STREAMS:
                self._readers.popitem(last=False)
            rows = reader.read(after, DROPPED)
        return [LogLine(n, datetime.fromtimestamp(at, UTC), text) for n, at, text in rows]

    def delete(self, stream: str) -> None:
        """See the port. Deleting the absent is success."""
        place = self._place(stream)
        with self._writing, self._reading:
            open_one = self._writers.pop(stream, None)
            if open_one is not None:
                open_one.close()
            self._readers.pop(stream, None)
            if place.exists():
                shutil.rmtree(place)

    def close(self) -> None:
        """Close all files."""
        with self._writing:
            while self._writers:
                self._writers.popitem()[1].close()

    def _append(self, stream: str, place: Path, texts: list[bytes], at: float) -> None:
        while True:
            open_one = self._writers.pop(stream, None) or _Stream(place, self._limit)
            self._writers[stream] = open_one
            while len(self._writers) > OPEN_STREAMS:
                self._writers.popitem(last=False)[1].close()
            with open_one.locked():
                if open_one.is_there():
                    open_one.append(texts, at)
                    return
            # Deleted by another process since it was opened: it begins anew.
            self._writers.pop(stream).close()

    def _place(self, stream: str) -> Path:
        """One flat directory per stream, so that one stream's name can never be inside another's."""
        if not _NAME.match(stream):
            raise Invalid(f"{stream!r} cannot name a log; use letters, digits, '.', '_', '-' in up to four parts")
        return self._root / stream.replace("/", "@")


class _Stream:
    """One stream open for writing by this process."""

    def __init__(self, place: Path, limit: int) -> None:
        self._place, self._limit = place, limit
        place.mkdir(exist_ok=True)
        self._directory = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._writer: Writer | None = None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone among all processes. Raises Unavailable where one that was stopped holds the lock."""
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(self._directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    message = f"the log {self._place.name} cannot be written: another process has held it for "
                    raise Unavailable(f"{message}{LOCK_SECONDS:.0f} s") from None
                time.sleep(LOCK_POLL_SECONDS)
        try:
            yield
        finally:
            fcntl.flock(self._directory, fcntl.LOCK_UN)

    def is_there(self) -> bool:
        """Whether the directory that is open is still the one of this name."""
        return os.fstat(self._directory).st_nlink > 0

    def append(self, texts: list[bytes], at: float) -> None:
        """Only while locked."""
        if self._writer is not None and not self._writer.is_last():
            self._writer.close()
            self._writer = None
        if self._writer is None:
            self._writer = Writer(str(self._place), self._limit)
        self._writer.append(texts, at)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        os.close(self._directory)
