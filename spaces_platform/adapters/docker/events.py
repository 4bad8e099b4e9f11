"""Follows the engine's events, for as long as there is an engine, and says when there is none.

One thread. Whenever the stream is (re)opened everything is looked at once, after it was opened, so that nothing that
happens falls between the look and the stream.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from spaces_platform.errors import PlatformError

from .engine import Engine

log = logging.getLogger(__name__)
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds between attempts to reach an engine that went away, doubling."""


class Follower:
    """Calls `look()` after every (re)connect and `happened(action, deployment label, container)` for every event."""

    def __init__(
        self,
        engine: Engine,
        label: str,
        deployment_label: str,
        look: Callable[[], None],
        happened: Callable[[str, str, str], None],
    ) -> None:
        self._engine, self._label, self._deployment = engine, label, deployment_label
        self._look, self._happened = look, happened
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._stream: Any = None
        self.connected = threading.Event()
        self._thread = threading.Thread(target=self._run, name="docker-events", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        with self._lock:
            if self._stream is not None:
                self._stream.close()
        if self._thread.ident is not None:
            self._thread.join(10)

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while not self._closing.is_set():
            try:
                with self._engine.events(self._label) as stream:
                    with self._lock:
                        if self._closing.is_set():
                            return
                        self._stream = stream
                    self._look()
                    self.connected.set()
                    pause = FIRST_PAUSE
                    for event in stream:
                        self._one(event)
            except PlatformError as error:
                if self.connected.is_set() and not self._closing.is_set():
                    log.warning("apps go on, but are not seen to change: %s", error)
            except Exception:
                # This thread is what keeps the platform's picture true: it goes on, and says that it could not.
                log.exception("following the engine's events failed")
            finally:
                with self._lock:
                    self._stream = None
                self.connected.clear()
            self._closing.wait(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    def _one(self, event: Mapping[str, Any]) -> None:
        actor = event.get("Actor") or {}
        deployment = (actor.get("Attributes") or {}).get(self._deployment, "")
        self._happened(str(event.get("Action", "")), str(deployment), str(actor.get("ID", "")))
