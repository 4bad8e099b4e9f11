"""How Celery is used: queue names, messages, limits. The same configuration for who sends and who works.

A message is a hint that there is work, no more: rows decide what is done (`Builds.run_next`), so messages may be lost,
doubled, late or for nothing. Hence no result backend, no retries and no redelivery for dead workers.
"""

from __future__ import annotations

from dataclasses import dataclass

from celery import Celery
from kombu import Exchange, Queue

from spaces_platform.ports import Task

SOFT_MARGIN = 300
"""Seconds beyond the longest build before Celery ends the task: the builder's own limit comes first, with a better
explanation; this one is for what hangs outside of it."""
HARD_MARGIN = 60
"""From the soft limit to SIGKILL."""
VISIBILITY_MARGIN = 600
SOCKET_SECONDS = 2.0
TASKS_PER_CHILD = 100
"""A worker's process is replaced after so many tasks, so that what leaks stays small."""
CHILD_START_SECONDS = 30.0

QUEUES = {Task.BUILD: "builds", Task.HOUSEKEEPING: "small"}
"""The tasks that workers do. Builds can fill their queue without keeping small work waiting."""


@dataclass(frozen=True, slots=True)
class CeleryConfig:
    url: str
    """`redis://host:port/db`."""
    prefix: str
    """Begins every key, so that several platforms can share one Redis."""
    build_seconds: int
    visibility_seconds: int | None = None
    """When an unacknowledged message is given to another worker. None: later than the longest task can take."""


def make_app(config: CeleryConfig) -> Celery:
    """A Celery app that knows the queues. Connects to nothing."""
    soft = config.build_seconds + SOFT_MARGIN
    hard = soft + HARD_MARGIN
    visibility = config.visibility_seconds or hard + VISIBILITY_MARGIN
    app = Celery("spaces", broker=config.url, set_as_current=False)
    app.conf.update(
        # The exchange without a name routes by queue name alone: a binding would be lost with a wiped Redis.
        task_queues=[Queue(name, Exchange(""), routing_key=name) for name in QUEUES.values()],
        task_default_queue=QUEUES[Task.HOUSEKEEPING],
        task_create_missing_queues=False,
        task_acks_late=True,
        # A build that kills its worker would kill the next one at once; its row's lease passes it on, and counts.
        task_reject_on_worker_lost=False,
        task_acks_on_failure_or_timeout=True,
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_serializer="json",
        accept_content=["json"],
        task_soft_time_limit=soft,
        task_time_limit=hard,
        task_publish_retry=False,
        worker_prefetch_multiplier=1,
        worker_max_tasks_per_child=TASKS_PER_CHILD,
        worker_proc_alive_timeout=CHILD_START_SECONDS,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_send_task_events=False,
        worker_enable_remote_control=False,
        # A build goes on through an outage of the queue; its row is in the database.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_consumer="spaces_platform.adapters.celery_transport:Consumer",
        broker_transport="spaces_platform.adapters.celery_transport:Transport",
        broker_pool_limit=2,
        broker_connection_timeout=SOCKET_SECONDS,
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            # Also the hash of unacknowledged messages: the shortest timeout of all who share it would win.
            "global_keyprefix": f"{config.prefix}:",
            "visibility_timeout": visibility,
            "unacked_restore_interval": min(10, visibility),
            "unacked_restore_throttle": 1,
            "socket_timeout": 4 * SOCKET_SECONDS,
            "socket_connect_timeout": SOCKET_SECONDS,
            "max_connections": 10,
        },
    )
    return app


def task_name(task: Task) -> str:
    return f"spaces.{task.value}"
