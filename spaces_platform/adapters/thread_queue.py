"""The Queue port as threads of this process.

Each task kind has its own bounded pool, so that builds never keep reconciling waiting. A hint for an id that waits
already is dropped; one for an id that is being worked on is kept and run again after, so no hint is lost here.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping

from spaces_platform.errors import PlatformError
from spaces_platform.ports import Task

log = logging.getLogger(__name__)


class ThreadQueue:
    def __init__(self, workers: Mapping[Task, int]) -> None:
        self._pools = {task: _Pool(task.value, count) for task, count in workers.items()}

    def start(self, run: Callable[[Task, int], None]) -> None:
        """Begin to work; hints sent before wait."""
        for task, pool in self._pools.items():
            pool.start(lambda id, task=task: run(task, id))  # type: ignore[misc]

    def send(self, task: Task, id: int) -> None:
        self._pools[task].send(id)

    def close(self, timeout: float = 10.0) -> None:
        """Take no more work and wait for what is under way, at most `timeout` seconds in all."""
        for pool in self._pools.values():
            pool.close()
        for pool in self._pools.values():
            pool.join(timeout)


class _Pool:
    def __init__(self, name: str, workers: int) -> None:
        self._name, self._workers = name, workers
        self._waiting: OrderedDict[int, None] = OrderedDict()
        self._running: set[int] = set()
        self._again: set[int] = set()
        self._closed = False
        self._change = threading.Condition()
        self._threads: list[threading.Thread] = []

    def start(self, run: Callable[[int], None]) -> None:
        for n in range(self._workers):
            thread = threading.Thread(target=self._work, args=(run,), name=f"{self._name}-{n}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def send(self, id: int) -> None:
        with self._change:
            if id in self._running:
                self._again.add(id)
            elif not self._closed:
                self._waiting.setdefault(id)
                self._change.notify()

    def close(self) -> None:
        with self._change:
            self._closed = True
            self._waiting.clear()
            self._change.notify_all()

    def join(self, timeout: float) -> None:
        for thread in self._threads:
            thread.join(timeout)

    def _work(self, run: Callable[[int], None]) -> None:
        while True:
            with self._change:
                while not self._waiting and not self._closed:
                    self._change.wait()
                if self._closed:
                    return
                id, _ = self._waiting.popitem(last=False)
                self._running.add(id)
            try:
                run(id)
            except PlatformError as exc:
                if not exc.retryable:
                    log.exception("task failed", extra={"task": self._name, "id": id})
                else:
                    log.warning("task put off: %s", exc, extra={"task": self._name, "id": id})
            except Exception:
                # The sweep looks at the row again; a worker that died of one row would starve all others.
                log.exception("task failed", extra={"task": self._name, "id": id})
            finally:
                with self._change:
                    self._running.discard(id)
                    if id in self._again:
                        self._again.discard(id)
                        if not self._closed:
                            self._waiting.setdefault(id)
                            self._change.notify()
