"""Builds by real Celery workers on a real Redis: done once, seen live, in turns, and taken up again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from spaces_platform.models import Counter
from spaces_platform.ports import Task
from tests.celery.farm import Farm
from tests.services.redis import RedisServer


@pytest.fixture
def farm(tmp_path: Path, redis_server: RedisServer) -> Iterator[Farm]:
    made = Farm(tmp_path, redis_server.url, build_slots=2)
    yield made
    made.close()


def test_a_push_is_built_by_a_worker_and_goes_live(farm: Farm) -> None:
    farm.work()
    space = farm.space("demo")
    farm.until(lambda: farm.platform.directory.by_id(space.id or 0).stage == "RUNNING")
    (build,) = farm.wait(1)
    assert build.status == "SUCCEEDED"
    assert farm.builder.notes("end") == {build.plan_id: 1}
    assert farm.builder.pids()[0] != farm.workers[0].pid, "builds are done by the processes of the pool"
    texts = [line.text for line in farm.platform.logs.read(f"build/{build.id}")]
    assert texts[0] == "--> queued number 1 in line"
    assert any(text.startswith("===== SUCCEEDED") for text in texts)
    farm.assert_each_ended_once()


def test_slots_are_held_and_owners_take_turns(farm: Farm) -> None:
    for owner in ("alice", "bob"):
        farm.platform.accounts.create_user(owner)
    for n in range(4):
        farm.space(f"a{n}", owner="alice", seconds=0.5)
    farm.until(lambda: len(farm.builds()) == 4)
    late = farm.space("b0", owner="bob", seconds=0.5)
    farm.until(lambda: len(farm.builds()) == 5)
    for _ in range(2):
        farm.work()
    builds = farm.wait(5)
    assert max(sum(b.started_at <= a.started_at < b.ended_at for b in builds) for a in builds) <= 2  # type: ignore[operator]
    begun = sorted(builds, key=lambda b: b.started_at or 0)
    assert late.id in [b.space_id for b in begun[:2]], "the owner with one build waited behind all of the other's"
    farm.assert_each_ended_once()


def test_what_a_worker_writes_and_does_is_heard_at_once(farm: Farm) -> None:
    farm.work()
    grew, changed = threading.Event(), threading.Event()
    space = farm.space("demo", seconds=60)
    (build,) = farm.until(farm.running)
    farm.platform.feed.changed = lambda space_id: changed.set()  # type: ignore[method-assign]
    seen = farm.platform.logs.read(f"build/{build.id}")[-1].n
    with farm.platform.log_feed.follow(f"build/{build.id}", grew.set):
        farm.push(space, "newer")
        assert grew.wait(20), "nothing was told of the cancelled build's last lines"
        farm.until(lambda: farm.platform.logs.read(f"build/{build.id}", seen))
    farm.wait(2)
    assert [b.status for b in farm.builds()] == ["CANCELLED", "SUCCEEDED"]
    assert changed.is_set()


def test_a_running_build_survives_a_new_control_plane(farm: Farm) -> None:
    farm.work()
    farm.space("demo", seconds=4)
    (build,) = farm.until(farm.running)
    farm.platform.close()
    farm.platform = farm.control()
    assert [b.id for b in farm.running()] == [build.id]
    (build,) = farm.wait(1)
    assert (build.status, build.tries) == ("SUCCEEDED", 1)
    assert farm.builder.notes("begin") == {build.plan_id: 1}


def test_sigterm_gives_running_builds_back_and_the_next_worker_does_them(farm: Farm) -> None:
    first = farm.work()
    farm.space("demo", seconds=3)
    (build,) = farm.until(farm.running)
    farm.until(lambda: farm.builder.notes("begin"))
    first.terminate()
    assert first.wait(15) == 0
    (row,) = farm.builds()
    assert (row.status, row.tries, row.phase) == ("QUEUED", 0, "queued")
    assert farm.builder.notes("cancelled") == {build.plan_id: 1}
    farm.work()
    (build,) = farm.wait(1)
    assert (build.status, build.tries) == ("SUCCEEDED", 1)
    texts = [line.text for line in farm.platform.logs.read(f"build/{build.id}")]
    assert any("goes back to the queue" in text for text in texts)
    farm.assert_each_ended_once()


def test_small_work_is_done_by_a_worker_once(farm: Farm) -> None:
    farm.work()
    farm.space("demo")
    farm.wait(1)
    for n in range(5):
        farm.platform.queue.send(Task.HOUSEKEEPING, n)

    def maintained() -> Counter | None:
        with farm.platform.store.read() as db:
            return db.get(Counter, "maintained_to")

    farm.until(maintained)
    assert not farm.platform.housekeeping._move("housekeeping_minute", 1, least=0), "it was claimed by a worker"
