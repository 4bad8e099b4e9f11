"""Who hears that a log stream grew: whoever follows it reads then, instead of asking again and again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from spaces_platform.ports import LogLine, LogStore


class LogFeed:
    """Tells the followers of a stream in this process that it changed. Thread-safe; a lost word costs latency only."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._followers: dict[str, list[Callable[[], None]]] = {}

    def changed(self, stream: str) -> None:
        with self._lock:
            followers = tuple(self._followers.get(stream, ()))
        for call in followers:
            call()

    @contextmanager
    def follow(self, stream: str, changed: Callable[[], None]) -> Iterator[None]:
        """Within the block `changed` is called, from any thread, after each change; it must not block or raise."""
        with self._lock:
            self._followers.setdefault(stream, []).append(changed)
        try:
            yield
        finally:
            with self._lock:
                self._followers[stream].remove(changed)
                if not self._followers[stream]:
                    del self._followers[stream]


class AnnouncedLogs:
    """A LogStore that says which stream grew, after each append."""

    def __init__(self, inner: LogStore, changed: Callable[[str], None]) -> None:
        self._inner, self._changed = inner, changed

    def append(self, stream: str, lines: Iterable[str]) -> None:
        self._inner.append(stream, lines)
        self._changed(stream)

    def read(self, stream: str, after: int = 0) -> Sequence[LogLine]:
        return self._inner.read(stream, after)

    def delete(self, stream: str) -> None:
        self._inner.delete(stream)
