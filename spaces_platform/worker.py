"""The worker's process: Celery around `platform.Worker`, which does builds and small work for the control process.

Owns: the pool of processes, their life and the signals. Does not own: what a task does. It stands here and not below
`builders/`, since a build's job is its row, its log and its claim, which builders know nothing of.

A pool of forked processes, not of threads: time limits, replacement after many tasks and the loss of one without the
others only work with processes, and each costs little (measured: 72 MB resident, of which 14 to 32 MB are its own).
SIGTERM: nothing new is begun, running builds end and go back to the queue; the process ends within STOP_SECONDS.
"""

from __future__ import annotations

import argparse
import gc
import logging
import mmap
import os
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spaces_platform.errors import Invalid, PlatformError
from spaces_platform.json_lines import log_json_lines
from spaces_platform.platform import Worker
from spaces_platform.ports import Task
from spaces_platform.settings import Settings
from spaces_platform.slices import take_long_slices
from spaces_platform.wiring.assembly import build_worker
from spaces_platform.wiring.choices import celery_config

if TYPE_CHECKING:
    from spaces_platform.adapters.celery_app import CeleryConfig

log = logging.getLogger("spaces.worker")

STOP_SECONDS = 20.0
"""From SIGTERM to the end by force; a supervisor may be less patient."""


class _Pool:
    """What the processes of the pool share (a flag), and what each makes for itself after the fork (all else)."""

    def __init__(self, make: Callable[[], Worker]) -> None:
        self._make = make
        self._making = threading.Lock()
        # Anonymous shared memory: the children of a fork see what the parent writes.
        self._flag = mmap.mmap(-1, 1)

    def stop(self) -> None:
        """Tell all processes to give up what they do. Safe in a signal handler."""
        self._flag[0] = 1

    def is_stopping(self) -> bool:
        return self._flag[0] != 0

    @cached_property
    def _worker(self) -> Worker:
        worker = self._make()
        worker.builds.is_stopping = self.is_stopping
        return worker

    def worker(self) -> Worker:
        """This process's own: connections and threads do not live through a fork."""
        with self._making:
            return self._worker

    def warm(self) -> None:
        """Make it now, so that the first build does not wait for it."""
        try:
            self.worker()
        except PlatformError as exc:
            log.warning("not ready yet, tried again with the first task: %s", exc)

    def close(self) -> None:
        if "_worker" in self.__dict__:
            self._worker.close()

    def run(self, task: Task) -> None:
        """The body of a Celery task. What fails is looked at again by the sweep; the message has done its work."""
        try:
            self.worker().run(task)
        except PlatformError as exc:
            if not exc.retryable:
                raise
            log.warning("task put off: %s", exc, extra={"task": task.value})


def serve(config: CeleryConfig, processes: int, make: Callable[[], Worker]) -> int:
    """Work until a signal; the exit code. `make` is called in each process of the pool."""
    from celery import signals
    from celery.exceptions import SecurityWarning

    from spaces_platform.adapters.celery_app import QUEUES, make_app, task_name

    app, pool = make_app(config), _Pool(make)
    for task in QUEUES:
        app.task(name=task_name(task))(_body(pool, task))

    def started(**_: Any) -> None:
        threading.Thread(target=pool.warm, name="warm-up", daemon=True).start()

    def ending(**_: Any) -> None:
        pool.close()

    def stopping(**_: Any) -> None:
        pool.stop()
        # By force at last: Celery waits for its tasks without a bound. The pool dies with this process.
        timer = threading.Timer(STOP_SECONDS, os._exit, [1])
        timer.daemon = True
        timer.start()

    # Celery would set the root's level to its own: a receiver here leaves the log as it is.
    signals.setup_logging.connect(lambda **_: None, weak=False)
    signals.worker_process_init.connect(started, weak=False)
    signals.worker_process_shutdown.connect(ending, weak=False)
    signals.worker_shutting_down.connect(stopping, weak=False)
    # Celery warns of root for the sake of pickled messages: ours are JSON and hold a number. Builds run as users below.
    warnings.simplefilter("ignore", SecurityWarning)
    # What the children inherit is not looked at again by their collectors, so that its pages stay shared.
    gc.collect()
    gc.freeze()
    worker = app.Worker(
        pool="prefork", concurrency=processes, hostname=f"spaces-{os.getpid()}@{os.uname().nodename}",
        without_gossip=True, without_mingle=True, without_heartbeat=True, quiet=True,
        loglevel=logging.getLogger("celery").getEffectiveLevel(),
    )  # fmt: skip
    log.info("worker started", extra={"processes": processes, "prefix": config.prefix})
    worker.start()
    log.info("worker ended")
    return int(worker.exitcode or 0)


def _body(pool: _Pool, task: Task) -> Callable[[object], None]:
    def run(_id: object) -> None:
        pool.run(task)

    return run


def main(arguments: Sequence[str]) -> int:
    """`spaces worker`: work until SIGTERM. Exit code 1 with one line on stderr where it cannot start."""
    parser = argparse.ArgumentParser(prog="spaces worker", description="Build for a control plane, until SIGTERM.")
    parser.add_argument("--data", type=Path, default=None, help="data directory [SPACES_DATA, ~/.spaces]")
    data = parser.parse_args(arguments).data
    log_json_lines()
    try:
        settings = Settings.load(data=data)
        if settings.queue != "celery":
            raise Invalid("A worker needs the queue `celery`: set SPACES_QUEUE=celery, or SPACES_MODE=single-host.")
        logging.getLogger().setLevel(settings.log_level.upper())
        logging.getLogger("celery").setLevel(logging.WARNING)
        take_long_slices()
        # One more than builds: small work never waits for them. How many builds run is decided by their claims.
        return serve(celery_config(settings), settings.build_slots + 1, lambda: build_worker(settings))
    except PlatformError as exc:
        print(f"Error: {exc.message}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
