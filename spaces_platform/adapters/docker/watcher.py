"""Probes starting apps until they answer, and does what is due later. One thread with an event loop.

Says so to the orchestrator, which owns what is known. One app's slowness never delays another's probes.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from spaces_platform.adapters.process import probe, sockets
from spaces_platform.ports import RunStatus

from .known import Known
from .settings import DockerSettings

log = logging.getLogger(__name__)
WORKERS = 8
"""Threads for what calls the engine or the disk."""
SHARE = 0.01
"""Seconds added to the pause between connects per deployment that starts: probing stays below 3 % of a core."""
LATE = 30.0
"""Seconds after which a start is probed less often."""
RESOLVER = "127.0.0.11:"
"""The engine's own name server, which listens inside every container."""


class Watcher:
    """`ready(known, words, listening)` at the first good answer; `elsewhere(known, listening)` when what an app that
    does not answer listens on has changed."""

    def __init__(
        self,
        settings: DockerSettings,
        ready: Callable[[Known, str, tuple[str, ...]], None],
        probed: Callable[[Known, str], None],
        elsewhere: Callable[[Known, tuple[str, ...]], None],
    ) -> None:
        self._settings, self._ready, self._probed, self._elsewhere = settings, ready, probed, elsewhere
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting = 0
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="docker-work")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="docker-watcher", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    def watch(self, known: Known) -> None:
        """Probe one deployment until it is READY or has ended. Any thread."""
        self._spawn(lambda: self._until_ready(known))

    def later(self, job: Callable[[], None], delay: float = 0.0) -> None:
        """Run a job that may take long, off every caller's path; once closed, it is left to the next start."""

        async def run() -> None:
            await asyncio.sleep(delay)
            await self._loop.run_in_executor(self._pool, job)

        self._spawn(run)

    def every(self, seconds: float, job: Callable[[], None]) -> None:
        """Run a job again and again; a failure is told and the next one tried."""

        async def run() -> None:
            while True:
                await asyncio.sleep(seconds)
                try:
                    await self._loop.run_in_executor(self._pool, job)
                except Exception:
                    log.exception("periodic work failed")

        self._spawn(run)

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
        self._pool.shutdown(wait=True)

    def _spawn(self, make: Callable[[], object]) -> None:
        def begin() -> None:
            task: asyncio.Task[None] = self._loop.create_task(make())  # type: ignore[arg-type]
            self._tasks.add(task)
            task.add_done_callback(self._done)

        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(begin)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("work on a deployment failed", exc_info=error)

    async def _until_ready(self, known: Known) -> None:
        self._starting += 1
        try:
            await self._probe(known)
        finally:
            self._starting -= 1

    async def _probe(self, known: Known) -> None:
        began = looked = time.monotonic()
        elsewhere_since: float | None = None
        while known.seen.status is RunStatus.STARTING and not known.gone:
            now = time.monotonic()
            found = await probe.attempt(known.port, known.base_path, self._settings.http_timeout, known.host)
            if found.ready:
                listening = await asyncio.to_thread(self._listening, known)
                await self._loop.run_in_executor(self._pool, self._ready, known, found.words, listening)
                return
            self._probed(known, found.words)
            if not found.connected and now - looked >= 1:
                looked = now
                elsewhere_since = await self._look_elsewhere(known, elsewhere_since)
            elif found.connected and known.seen.listening:
                await self._loop.run_in_executor(self._pool, self._elsewhere, known, ())
            early = now - began < LATE
            pause = self._settings.connect_interval if early else self._settings.connect_interval_late
            pause = max(pause, self._starting * SHARE)
            await asyncio.sleep(pause if not found.connected else max(pause, 0.1))

    async def _look_elsewhere(self, known: Known, since: float | None) -> float | None:
        """Tell where the app listens, once it has done so for a while; returns since when it does."""
        listening = await asyncio.to_thread(self._listening, known)
        now = time.monotonic()
        since = (now if since is None else since) if listening else None
        shown = listening if since is not None and now - since >= self._settings.listening_after else ()
        if shown != known.seen.listening:
            await self._loop.run_in_executor(self._pool, self._elsewhere, known, shown)
        return since

    def _listening(self, known: Known) -> tuple[str, ...]:
        """Of every process of the container, which shares nothing else with its network namespace."""
        if not known.pid:
            return ()
        return tuple(a for a in sockets.listening_beside(known.pid) if not a.startswith(RESOLVER))
