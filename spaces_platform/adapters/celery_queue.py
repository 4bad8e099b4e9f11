"""The Queue port with Celery on Redis: builds and small work go to worker processes, reconciling stays at home.

Reconciling uses what the control process holds in memory (traffic, the orchestrator's state) and a wake must take
milliseconds, so its hints are a thread pool's there. Workers send theirs to that process by pub/sub.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from celery import Celery

from spaces_platform.adapters.celery_app import QUEUES, task_name
from spaces_platform.adapters.outbox import Outbox
from spaces_platform.adapters.redis_hints import RedisHints
from spaces_platform.adapters.thread_queue import ThreadQueue
from spaces_platform.ports import Task

NO_RETRY = {"max_retries": 0}
"""kombu would try to connect for ever."""


class CeleryQueue:
    """Sending never waits for Redis and never fails: a hint that is lost is sent again by the sweep."""

    def __init__(self, app: Celery, hints: RedisHints, *, reconcilers: int = 0) -> None:
        """`reconcilers`: threads of this process that reconcile; 0 in a worker, which tells the control process."""
        self._app, self._hints = app, hints
        self._outbox: Outbox[tuple[Task, int]] = Outbox("the Celery queue", self._publish)
        self._local = ThreadQueue({Task.RECONCILE: reconcilers}) if reconcilers else None

    def send(self, task: Task, id: int) -> None:
        if task in QUEUES:
            self._outbox.say((task, id))
        elif self._local is not None:
            self._local.send(task, id)
        else:
            self._hints.tell(task.value, id)

    def start(self, run: Callable[[Task, int], None]) -> None:
        """Reconcile here, also what workers ask for."""
        if self._local is not None:
            local = self._local
            local.start(run)
            self._hints.on_id(Task.RECONCILE.value, lambda id: local.send(Task.RECONCILE, id))
            self._hints.listen()

    def close(self) -> None:
        """Send what waits, within a second; wait for what is reconciled here."""
        self._hints.close()
        self._outbox.close()
        if self._local is not None:
            self._local.close()

    def _publish(self, tasks: Sequence[tuple[Task, int]]) -> None:
        # A connection of its own for each batch: none that could be found dead, and builds are rare.
        with self._app.connection_for_write(transport_options=NO_RETRY) as connection:
            producer = self._app.amqp.Producer(connection, auto_declare=False)
            for task, id in tasks:
                self._app.send_task(
                    task_name(task), args=[id], queue=QUEUES[task], producer=producer, ignore_result=True
                )
