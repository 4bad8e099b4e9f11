"""Words that are sent on by a thread of their own, so that whoever says them neither waits nor fails.

For hints only: what cannot be delivered is dropped. Equal words that wait are one, so a flood of them costs one send.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

Word = TypeVar("Word", bound=Hashable)

MOST_WAITING = 10_000
RETRY_SECONDS = 1.0
"""After a failed delivery nothing is tried for so long; what is said meanwhile waits."""


class Outbox(Generic[Word]):
    """Thread-safe; also usable in the child of a fork, where nothing was said before the fork."""

    def __init__(self, name: str, deliver: Callable[[Sequence[Word]], None], *, spacing: float = 0.0) -> None:
        """`deliver` may raise anything; `spacing`: least seconds between two deliveries."""
        self._name, self._deliver, self._spacing = name, deliver, spacing
        self._waiting: dict[Word, None] = {}
        self._change = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._is_failing = False

    def say(self, word: Word) -> None:
        """Returns at once. After `close`, and where too many wait, the word is dropped."""
        with self._change:
            if self._closed or len(self._waiting) >= MOST_WAITING:
                return
            self._waiting.setdefault(word)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()
            self._change.notify()

    def close(self, timeout: float = 1.0) -> None:
        """Deliver what waits, within `timeout` seconds."""
        with self._change:
            self._closed = True
            self._change.notify()
        if self._thread is not None:
            self._thread.join(timeout)

    def _work(self) -> None:
        while True:
            with self._change:
                while not self._waiting and not self._closed:
                    self._change.wait()
                if not self._waiting:
                    return
                words = tuple(self._waiting)
                self._waiting.clear()
            self._pause(self._spacing if self._try(words) else RETRY_SECONDS)

    def _try(self, words: Sequence[Word]) -> bool:
        try:
            self._deliver(words)
        except Exception as exc:
            # Whatever it is, the sweep heals what a lost hint leaves; said once, not at every try of an outage.
            if not self._is_failing:
                log.warning("%s: %d hints are lost, and more until it works again: %s", self._name, len(words), exc)
            self._is_failing = True
            return False
        if self._is_failing:
            log.info("%s works again", self._name)
        self._is_failing = False
        return True

    def _pause(self, seconds: float) -> None:
        with self._change:
            if seconds and not self._closed:
                self._change.wait_for(lambda: self._closed, seconds)
