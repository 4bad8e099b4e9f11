from __future__ import annotations

import threading

from spaces_platform.adapters.thread_queue import ThreadQueue
from spaces_platform.ports import Task


def test_a_hint_during_work_is_run_again_after_it_and_never_at_once() -> None:
    queue = ThreadQueue({Task.RECONCILE: 4, Task.BUILD: 1})
    began, go, done = threading.Event(), threading.Event(), threading.Semaphore(0)
    running, most = 0, 0
    lock = threading.Lock()

    def run(_task: Task, _id: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        began.set()
        go.wait(10)
        with lock:
            running -= 1
        done.release()

    queue.start(run)
    queue.send(Task.RECONCILE, 1)
    assert began.wait(10)
    for _ in range(50):
        queue.send(Task.RECONCILE, 1)
    go.set()
    assert done.acquire(timeout=10)
    assert done.acquire(timeout=10), "the hint sent during the work was lost"
    assert not done.acquire(timeout=0.1), "fifty hints are one"
    assert most == 1
    queue.close()


def test_a_failing_task_does_not_end_its_worker() -> None:
    queue = ThreadQueue({Task.RECONCILE: 1})
    seen = threading.Event()

    def run(_task: Task, id: int) -> None:
        if id == 1:
            raise ValueError("broken row")
        seen.set()

    queue.start(run)
    queue.send(Task.RECONCILE, 1)
    queue.send(Task.RECONCILE, 2)
    assert seen.wait(10)
    queue.close()
