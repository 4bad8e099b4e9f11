"""One thread that sees what happens to deployments: first answers, wrong ports, ends.

Owns the event loop, probing and the watch on each shim; says so to the orchestrator, which owns what is known. It
keeps one invariant: one deployment's slowness never delays another's events.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from spaces_platform.ports import Clock, Observation, RunStatus

from . import probe, sockets
from .record import Record
from .settings import ProcessSettings
from .shim import procfs
from .shim.segments import Reader

log = logging.getLogger(__name__)
SHARE = 0.005
"""Seconds added to the pause between connects per deployment that starts, so that probing stays below 5 % of a core."""
LATE = 30.0
"""Seconds after which a start is probed less often."""


@dataclass(slots=True, eq=False)
class Known:
    """One deployment as the orchestrator knows it."""

    id: int
    record: Record
    port: int
    base_path: str
    seen: Observation
    stopping: bool = False
    forgetting: bool = False
    gone: bool = False
    """Ended after a stop: no longer observed."""
    process: subprocess.Popen[bytes] | None = None
    """The shim, where it is this process's own child and must be waited for."""
    ended: threading.Event = field(default_factory=threading.Event)
    reading: threading.Lock = field(default_factory=threading.Lock)
    reader: Reader = field(init=False)

    def __post_init__(self) -> None:
        self.reader = Reader(f"{self.record.path}/log")


class Watcher:
    """Calls `ended(known)` when a shim is gone, and `changed(id)` after every change."""

    def __init__(
        self,
        settings: ProcessSettings,
        clock: Clock,
        changed: Callable[[int], None],
        ended: Callable[[Known], None],
    ) -> None:
        self._settings, self._clock, self._changed, self._ended = settings, clock, changed, ended
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="deployment-watcher", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    def watch(self, known: Known, shim: int) -> None:
        """Follow one deployment to its end. Any thread."""
        self._loop.call_soon_threadsafe(self._begin, known, shim)

    def later(self, job: Callable[[], None], delay: float = 0.0) -> None:
        """Run a job that may take long, off every caller's path; once closed, it is left to the next start."""
        if not self._thread.is_alive():
            return

        async def run() -> None:
            await asyncio.sleep(delay)
            await asyncio.to_thread(job)

        def begin() -> None:
            task = self._loop.create_task(run())
            self._tasks.add(task)
            task.add_done_callback(self._done)

        self._loop.call_soon_threadsafe(begin)

    def close(self) -> None:
        """Stop watching; the deployments go on."""

        async def finish() -> None:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._loop.stop()

        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(finish(), self._loop)
            self._thread.join(10)

    def _begin(self, known: Known, shim: int) -> None:
        task = self._loop.create_task(self._follow(known, shim))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("watching a deployment failed", exc_info=error)

    def _tell(self, known: Known) -> None:
        try:
            self._changed(known.id)
        except Exception:
            log.exception("the listener for deployment %d failed", known.id)

    async def _follow(self, known: Known, shim: int) -> None:
        probing = None
        if known.seen.status is RunStatus.STARTING:
            probing = self._loop.create_task(self._probe(known, shim))
            probing.add_done_callback(self._done)
        try:
            await self._gone(known, shim)
        finally:
            if probing is not None:
                probing.cancel()
                await asyncio.gather(probing, return_exceptions=True)
        if known.process is not None:
            known.process.wait()
        await asyncio.to_thread(self._ended, known)
        self._tell(known)

    async def _gone(self, known: Known, shim: int) -> None:
        """Until the shim's process has ended."""
        try:
            fd = os.pidfd_open(shim)
        except ProcessLookupError:
            return
        try:
            if known.process is None and known.record.shim() != shim:
                return  # the number was taken by another process before the descriptor was had
            over = asyncio.Event()
            self._loop.add_reader(fd, over.set)
            try:
                await over.wait()
            finally:
                self._loop.remove_reader(fd)
        finally:
            os.close(fd)

    # --- probing ------------------------------------------------------------------------------------------------------
    async def _probe(self, known: Known, shim: int) -> None:
        self._starting += 1
        try:
            await self._until_ready(known, shim)
        finally:
            self._starting -= 1

    async def _until_ready(self, known: Known, shim: int) -> None:
        """Until the first good answer, from a socket that is the deployment's own."""
        began = time.monotonic()
        looked = began
        elsewhere_since: float | None = None
        while True:
            now = time.monotonic()
            early = now - began < LATE
            found = await probe.attempt(known.port, known.base_path, self._settings.http_timeout)
            if found.ready:
                listening, complete = await asyncio.to_thread(self._listening, shim)
                if not complete or any(a.endswith(f":{known.port}") for a in listening):
                    self._ready(known, found.words, listening)
                    return
                found = replace(found, words=f"port {known.port} is answered by a process that is not this app's")
            known.seen = replace(known.seen, probe=found.words)
            if not found.connected and now - looked >= 1:
                looked = now
                elsewhere_since = await self._look_elsewhere(known, shim, elsewhere_since)
            elif found.connected and known.seen.listening:
                known.seen = replace(known.seen, listening=())
                self._tell(known)
            pause = self._settings.connect_interval if early else self._settings.connect_interval_late
            pause = max(pause, self._starting * SHARE)
            await asyncio.sleep(pause if not found.connected else max(pause, 0.1))

    async def _look_elsewhere(self, known: Known, shim: int, since: float | None) -> float | None:
        """Tell where the app listens, once it has done so for a while; returns since when it does."""
        listening, _ = await asyncio.to_thread(self._listening, shim)
        now = time.monotonic()
        since = (now if since is None else since) if listening else None
        shown = listening if since is not None and now - since >= self._settings.listening_after else ()
        if shown != known.seen.listening:
            known.seen = replace(known.seen, listening=shown)
            self._tell(known)
        return since

    def _listening(self, shim: int) -> tuple[tuple[str, ...], bool]:
        return sockets.listening(procfs.descendants(shim))

    def _ready(self, known: Known, words: str, listening: tuple[str, ...]) -> None:
        at = self._clock.now()
        try:
            known.record.mark("ready", at.timestamp())
        except OSError as error:
            log.warning("deployment %d is ready, but that could not be recorded: %s", known.id, error)
        known.seen = replace(known.seen, status=RunStatus.READY, ready_at=at, probe=words, listening=listening)
        self._tell(known)
