"""T29 and T31: Redis wiped, killed, full, and messages doubled, late, reordered or nonsense. Every build ends once."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spaces_platform.adapters.celery_app import task_name
from spaces_platform.ports import Task
from tests.celery.farm import Farm
from tests.services.redis import RedisServer

MakeFarm = Callable[..., Farm]


@pytest.fixture
def make_farm(tmp_path: Path, redis_server: RedisServer) -> Iterator[MakeFarm]:
    made: list[Farm] = []

    def make(**given: object) -> Farm:
        made.append(Farm(tmp_path, redis_server.url, **given))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for farm in made:
        farm.close()


def queue_key(farm: Farm) -> str:
    return f"{farm.settings.queue_prefix}:builds"


# --- T29: Redis ---------------------------------------------------------------------------------------------
def test_redis_wiped_again_and_again_during_thirty_builds(make_farm: MakeFarm, redis_server: RedisServer) -> None:
    farm = make_farm(build_slots=4)
    farm.work()
    with redis_server.client() as client:
        for n in range(30):
            farm.space(f"s{n}", seconds=0.1)
            if n % 3 == 0:
                client.flushall()
        while (ended := len([b for b in farm.builds() if b.ended_at])) < 30:
            client.flushall()
            farm.until(lambda before=ended: len([b for b in farm.builds() if b.ended_at]) > before, 30)  # type: ignore[misc]
    builds = farm.wait(30)
    assert {b.status for b in builds} == {"SUCCEEDED"}
    assert set(farm.builder.notes("end").values()) == {1}
    farm.assert_each_ended_once()


@pytest.mark.parametrize(
    ("count", "outage"), [(6, 4.0), pytest.param(30, 60.0, marks=[pytest.mark.soak, pytest.mark.timeout(600)])]
)
def test_redis_killed_and_back_empty(make_farm: MakeFarm, redis_server: RedisServer, count: int, outage: float) -> None:
    farm = make_farm(build_slots=2)
    farm.work()
    for n in range(count // 2):
        farm.space(f"s{n}", seconds=1.0)
    farm.until(farm.running)
    redis_server.kill()
    ends = time.monotonic() + outage
    longest = 0.0
    for n in range(count // 2, count):
        began = time.monotonic()
        farm.space(f"s{n}", seconds=0.1)
        longest = max(longest, time.monotonic() - began)
    assert longest < 2.0, "a push waited for Redis"
    # What ran when Redis went away goes on to its end and is recorded.
    farm.until(lambda: not farm.running(), outage + 10)
    assert any(b.status == "SUCCEEDED" for b in farm.builds())
    time.sleep(max(0.0, ends - time.monotonic()))
    redis_server.start()
    back = time.monotonic()
    known = {b.id for b in farm.builds() if b.ended_at}
    farm.until(lambda: any(b.started_at for b in farm.builds() if b.id not in known), 30)
    assert time.monotonic() - back < 30, "queued work must go on within 30 s"
    builds = farm.wait(count, 120)
    assert {b.status for b in builds} == {"SUCCEEDED"}
    farm.assert_each_ended_once()


def test_redis_full_refuses_writes_and_builds_go_on_when_it_has_room(
    make_farm: MakeFarm, redis_server: RedisServer
) -> None:
    farm = make_farm(build_slots=2)
    worker = farm.work()
    farm.space("before")
    farm.wait(1)
    with redis_server.client() as client:
        client.config_set("maxmemory", "1")
        for n in range(3):
            farm.space(f"s{n}")
        farm.until(lambda: len(farm.builds()) == 4)
        client.config_set("maxmemory", "0")
    builds = farm.wait(4)
    assert {b.status for b in builds} == {"SUCCEEDED"}
    assert worker.poll() is None, "the worker ended"
    farm.assert_each_ended_once()


# --- T31: messages ------------------------------------------------------------------------------------------
def test_doubled_reordered_and_baseless_messages_build_nothing_twice(make_farm: MakeFarm) -> None:
    farm = make_farm(build_slots=3)
    farm.work()
    for n in range(4):
        farm.space(f"s{n}", seconds=1.0)
    farm.until(lambda: len(farm.builds()) == 4)
    queue = farm.platform.queue
    for _ in range(10):
        for build in reversed(farm.builds()):
            queue.send(Task.BUILD, build.id or 0)
        for baseless in (0, -1, 10**12):
            queue.send(Task.BUILD, baseless)
        time.sleep(0.1)
    builds = farm.wait(4)
    assert {(b.status, b.tries) for b in builds} == {("SUCCEEDED", 1)}
    assert set(farm.builder.notes("begin").values()) == {1}
    farm.assert_each_ended_once()


def test_a_build_longer_than_the_visibility_timeout_is_done_once(make_farm: MakeFarm) -> None:
    farm = make_farm(build_slots=2)
    farm.work(visibility=2)
    farm.space("long", seconds=12)
    (build,) = farm.wait(1)
    assert (build.status, build.tries) == ("SUCCEEDED", 1)
    assert farm.builder.notes("begin") == {build.plan_id: 1}
    assert 2 <= max(farm.received().values()) <= 8, "the message was not given again, or again and again"


def test_a_killed_pool_process_costs_one_try(make_farm: MakeFarm) -> None:
    farm = make_farm(lease=4.0)
    farm.work()
    farm.space("demo", seconds=3)
    farm.until(lambda: farm.builder.notes("begin"))
    killed = time.monotonic()
    os.kill(farm.builder.pids()[-1], signal.SIGKILL)
    farm.until(lambda: sum(farm.builder.notes("begin").values()) == 2)
    assert time.monotonic() - killed < 4.0 + 5.0 + 15.0, "lease, then the sweep's next look"
    (build,) = farm.wait(1)
    assert (build.status, build.tries) == ("SUCCEEDED", 2)
    farm.assert_each_ended_once()


@pytest.mark.parametrize("lease", [4.0, pytest.param(20.0, marks=pytest.mark.soak)])
def test_a_killed_worker_takes_its_pool_with_it_and_another_goes_on(make_farm: MakeFarm, lease: float) -> None:
    farm = make_farm(lease=lease)
    first = farm.work()
    farm.space("demo", seconds=5)
    farm.until(lambda: farm.builder.notes("begin"))
    pool = farm.builder.pids()[-1]
    first.kill()
    killed = time.monotonic()
    first.wait()
    farm.work()
    farm.until(lambda: sum(farm.builder.notes("begin").values()) == 2, 40)
    assert time.monotonic() - killed < lease + 10.0
    assert not Path(f"/proc/{pool}").exists(), "the pool outlived its worker"
    (build,) = farm.wait(1)
    assert (build.status, build.tries) == ("SUCCEEDED", 2)
    assert sum(farm.builder.notes("end").values()) == 1
    farm.assert_each_ended_once()


def test_a_build_that_kills_its_worker_fails_after_three_tries_and_the_queue_moves(make_farm: MakeFarm) -> None:
    farm = make_farm(lease=2.0, build_slots=1)
    farm.work()
    farm.space("poison", KILL=b"")
    farm.until(lambda: farm.builder.notes("begin"))
    good = farm.space("good")
    farm.wait(2, 90)
    poison, fine = farm.builds()
    assert fine.space_id == good.id
    assert fine.status == "SUCCEEDED"
    assert (poison.status, poison.reason, poison.tries) == ("FAILED", "worker_lost", 3)
    assert "3 times" in poison.message
    farm.assert_each_ended_once()


def test_messages_that_mean_nothing_are_dropped(make_farm: MakeFarm, redis_server: RedisServer) -> None:
    farm = make_farm()
    worker = farm.work()
    farm.space("before")
    farm.wait(1)
    app = farm.platform.queue._app  # type: ignore[attr-defined]
    known = task_name(Task.BUILD)
    for name, args in (("spaces.unknown", [1]), (known, []), (known, [1, 2, 3]), (known, [{"a": "b"}]), (known, ["x"])):
        app.send_task(name, args=args, queue="builds", ignore_result=True)
    whole = {"content-type": "application/json", "content-encoding": "utf-8"}
    bodies: list[object] = [
        {"body": "{torn", "headers": {"task": known, "id": "x"}, **whole},
        {
            "body": "AAAA",
            "headers": {"task": known, "id": "y"},
            **whole,
            "content-type": "application/x-python-serialize",
        },
    ]
    with redis_server.client() as client:
        for n, body in enumerate(bodies):
            message = {**body, "properties": {"delivery_tag": f"t{n}", "body_encoding": "base64",  # type: ignore[dict-item]
                       "delivery_info": {"exchange": "", "routing_key": "builds"}}}  # fmt: skip
            client.lpush(queue_key(farm), json.dumps(message))
        for item in ("garbage", "{}", "[]", "null", json.dumps({**bodies[0], "properties": {"body_encoding": "odd"}})):  # type: ignore[dict-item]
            client.lpush(queue_key(farm), item)
        for word in ("nonsense", "[]", "[1, 2, 3]", '["reconcile", "x"]', '["reconcile", 99999]', '["unknown", 1]'):
            client.publish(f"{farm.settings.queue_prefix}:hints", word)
        farm.until(lambda: client.llen(queue_key(farm)) == 0, 20)
    farm.space("after")
    farm.wait(2)
    assert worker.poll() is None, "the worker ended"
    assert {b.status for b in farm.builds()} == {"SUCCEEDED"}
    farm.assert_each_ended_once()
