"""GPUs from the wish to the app and back: leases, the line, swaps in place, quotas, kills; apps are full fakes."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select

from spaces_platform.clock import SystemClock
from spaces_platform.errors import Forbidden, Invalid, NotFound
from spaces_platform.gpus import FIRST, Gpus, Granted
from spaces_platform.hardware import Hardware, Machine, parse_gpus
from spaces_platform.models import Account, Deployment, Event, GpuLease, Quota, Space
from spaces_platform.ports import RunStatus
from spaces_platform.settings import Settings
from spaces_platform.spaces import NewSpace
from spaces_platform.store import Store
from tests.fakes.orchestrator import Script
from tests.flows.world import GOOD, Killed, StepQueue, World
from tests.services import databases

ONE = "T4:GPU-a"
TWO = "T4:GPU-a,T4:GPU-b"


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def build(gpus: str = ONE, **settings: Any) -> World:
        made.append(World(tmp_path, freezes=True, gpus=gpus, **settings))
        return made[-1]

    yield build
    for world in made:
        world.platform.store.close()


def create(world: World, name: str = "demo", hardware: str = "t4-small", owner: str = "admin") -> Space:
    new = NewSpace(owner, name, sdk="static", files=GOOD, hardware=hardware)
    return world.platform.spaces.create(world.actor, new)


def leases(world: World) -> dict[str, int]:
    """Deployment by GPU."""
    with world.platform.store.read() as db:
        return {row.gpu: row.deployment_id for row in db.exec(select(GpuLease))}


def events(world: World, kind: str) -> list[Event]:
    with world.platform.store.read() as db:
        return list(db.exec(select(Event).where(Event.kind == kind).order_by(col(Event.id))).all())


def newest(world: World, space: Space) -> Deployment:
    return world.platform.deployments.of(space.id or 0)[0]


def running_gpus(world: World) -> list[str]:
    """GPUs of everything that runs now, as the orchestrator was told."""
    running = [id for id, seen in world.apps.observe().items() if seen.status is not RunStatus.EXITED]
    return [gpu for id in running for gpu in world.apps.specs[id].gpus]


def test_the_app_gets_its_gpu_and_nobody_else_does(make: Callable[..., World]) -> None:
    world = make(TWO)
    space, plain = create(world), create(world, "plain", "cpu-basic")
    world.settle()
    spec = world.apps.specs[world.space(space).routed or 0]
    assert spec.gpus == ("GPU-a",)
    assert (spec.env["ACCELERATOR"], spec.env["CUDA_VISIBLE_DEVICES"]) == ("t4-small", "GPU-a")
    assert spec.resources == world.platform.hardware.resources("t4-small")
    assert leases(world) == {"GPU-a": world.space(space).routed}
    other = world.apps.specs[world.space(plain).routed or 0]
    assert (other.gpus, other.env["ACCELERATOR"]) == ((), "none")
    assert "CUDA_VISIBLE_DEVICES" not in other.env


def test_who_finds_none_free_waits_with_the_reason_and_starts_once_one_is(make: Callable[..., World]) -> None:
    world = make(ONE, start_slots=1)
    first = create(world, "first")
    world.settle()
    second, third = create(world, "second"), create(world, "third", "t4-medium")
    world.settle()
    assert [world.space(s).stage for s in (second, third)] == ["APP_STARTING", "APP_STARTING"]
    assert world.space(second).reason == "gpu_busy"
    assert world.space(second).message == "Waiting for 1 T4 GPU, number 1 in line: all are in use."
    assert "number 2 in line" in world.space(third).message
    assert world.space(third).hardware == "t4-medium"
    plain = create(world, "plain", "cpu-basic")
    world.settle()
    assert world.space(plain).stage == "RUNNING", "those in line for GPUs take no start slot from others"
    world.platform.spaces.pause(world.space(first), world.actor)
    world.settle()
    assert world.space(second).stage == "RUNNING"
    assert "number 1 in line" in world.space(third).message
    world.platform.spaces.delete(world.space(second), world.actor)
    world.settle()
    assert world.space(third).stage == "RUNNING"
    assert (world.space(third).message, world.space(third).reason) == ("", "")
    assert [e.data["hardware"] for e in events(world, "gpu.waiting")] == ["t4-small", "t4-medium"]


def test_sleep_gives_the_gpu_back_and_nothing_is_frozen_with_one(make: Callable[..., World]) -> None:
    world = make()
    space, plain = create(world), create(world, "plain", "cpu-basic")
    world.settle()
    world.clock.at += timedelta(seconds=601)
    world.settle()
    assert world.space(space).stage == world.space(plain).stage == "SLEEPING"
    assert (newest(world, space).status, newest(world, plain).status) == ("GONE", "FROZEN")
    assert leases(world) == {}
    world.platform.spaces.wake(space.id or 0)
    world.settle()
    assert world.space(space).stage == "RUNNING"
    assert list(leases(world)) == ["GPU-a"]


@pytest.mark.parametrize("change", ["push", "restart", "hardware"])
def test_a_push_to_the_holder_of_the_only_gpu_swaps_in_place(make: Callable[..., World], change: str) -> None:
    world = make()
    space = create(world)
    world.settle()
    waiting = create(world, "waiting")
    world.settle()
    old = world.space(space).routed
    world.apps.script = lambda _spec: Script(ready=True, ignores_stop=True)
    match change:
        case "push":
            world.push(space, {"index.html": b"two"})
        case "restart":
            world.platform.spaces.restart(world.space(space), world.actor)
        case "hardware":
            world.platform.space_settings.set_hardware(world.space(space), world.actor, "t4-medium")
    world.apps._apps[old or 0].script = Script(ignores_stop=True)
    world.settle_some(6)
    row = world.space(space)
    assert (row.stage, row.reason, row.routed) == ("APP_STARTING", "gpu_swap", None)
    assert "stopped first" in row.message
    assert leases(world) == {"GPU-a": old}, "it still runs: nobody may have its GPU"
    world.apps.kill_due()
    world.settle()
    assert world.space(space).stage == "RUNNING"
    assert leases(world) == {"GPU-a": world.space(space).routed}
    assert world.space(space).routed != old
    assert world.space(waiting).reason == "gpu_busy", "who gives back what it takes stands before the line"
    assert [e.data["reason"] for e in events(world, "gpu.waiting") if e.space_id == space.id] == ["gpu_swap"]


def test_with_a_second_gpu_the_new_version_answers_before_the_old_one_goes(make: Callable[..., World]) -> None:
    world = make(TWO)
    space = create(world)
    world.settle()
    old = world.space(space).routed
    world.push(space, {"index.html": b"two"})
    world.settle()
    assert leases(world) == {"GPU-b": world.space(space).routed}
    order = [call for call in world.apps.calls if call[0] in ("start", "stop")]
    assert order.index(("start", world.space(space).routed)) < order.index(("stop", old))
    assert events(world, "gpu.waiting") == []


def test_a_bad_push_on_the_only_gpu_brings_the_last_good_version_back(make: Callable[..., World]) -> None:
    world = make()
    space = create(world)
    world.settle()
    waiting = create(world, "waiting")
    world.settle()
    good = newest(world, space).artifact
    broken = Script(exits=True, exit_code=1, lines=("ModuleNotFoundError: No module named 'torch'",))
    world.apps.script = lambda spec: Script(ready=True) if spec.artifact_ref == good else broken
    world.push(space, {"index.html": b"two"})
    world.settle()
    assert world.space(space).stage == "RUNTIME_ERROR"
    assert newest(world, space).artifact == good
    assert leases(world) == {"GPU-a": world.space(space).routed}
    assert world.space(waiting).reason == "gpu_busy"


def test_a_failed_start_that_still_runs_keeps_its_gpu_until_it_has_ended(make: Callable[..., World]) -> None:
    world = make()
    world.apps.script = lambda _spec: Script(ignores_stop=True)
    space, waiting = create(world), create(world, "waiting")
    world.settle_some(6)
    held = newest(world, space)
    world.clock.at += timedelta(seconds=3600)
    world.settle_some(6)
    assert newest(world, space).status == "FAILED"
    assert leases(world) == {"GPU-a": held.id}
    assert running_gpus(world) == ["GPU-a"]
    world.apps.script = lambda _spec: Script(ready=True)
    world.apps.kill_due()
    world.settle()
    assert world.space(waiting).stage == "RUNNING"
    assert leases(world) == {"GPU-a": world.space(waiting).routed}


def test_hardware_can_be_left_and_asked_for_while_the_app_serves(make: Callable[..., World]) -> None:
    world = make()
    space, other = create(world, "demo", "cpu-basic"), create(world, "other")
    world.settle()
    world.platform.space_settings.set_hardware(world.space(space), world.actor, "t4-small")
    world.settle()
    row = world.space(space)
    assert (row.stage, row.reason) == ("RUNNING_APP_STARTING", "gpu_busy")
    assert row.routed is not None, "the version on CPUs serves while it waits"
    world.platform.space_settings.set_hardware(world.space(other), world.actor, "cpu-basic")
    world.settle()
    assert leases(world) == {"GPU-a": world.space(space).routed}
    assert world.space(other).stage == "RUNNING"


def test_a_place_in_line_ends_with_the_wish(make: Callable[..., World]) -> None:
    world = make()
    create(world, "first")
    world.settle()
    waits = create(world, "second")
    last = create(world, "third")
    world.settle()
    assert "number 2" in world.space(last).message
    world.platform.spaces.pause(world.space(waits), world.actor)
    world.settle()
    assert world.space(waits).gpu_queued_at is None
    assert "number 1" in world.space(last).message
    world.platform.space_settings.set_hardware(world.space(last), world.actor, "cpu-basic")
    world.settle()
    assert world.space(last).stage == "RUNNING"
    assert world.space(last).gpu_queued_at is None


def test_a_first_place_is_not_carried_to_other_hardware(make: Callable[..., World]) -> None:
    world = make("T4:GPU-a,L4:GPU-l")
    space, holder = create(world), create(world, "holder", "l4x1")
    world.settle()
    waiting = create(world, "waiting", "l4x1")
    world.settle()
    world.apps._apps[world.space(space).routed or 0].script = Script(ignores_stop=True)
    world.push(space, {"index.html": b"two"})
    world.settle_some(6)
    assert world.space(space).gpu_queued_at == FIRST
    world.platform.space_settings.set_hardware(world.space(space), world.actor, "l4x1")
    world.settle_some(6)
    assert world.space(space).gpu_queued_at != FIRST
    world.platform.spaces.pause(world.space(holder), world.actor)
    world.settle_some(10)
    assert world.space(waiting).stage == "RUNNING"
    assert leases(world)["GPU-l"] == world.space(waiting).routed


# --- quotas ----------------------------------------------------------------------------------------------------------
def test_over_its_quota_an_owner_waits_and_others_do_not(make: Callable[..., World]) -> None:
    world = make(TWO, gpu_quota=1)
    world.platform.accounts.create_org("lab", by=world.actor)
    first, second = create(world, "first"), create(world, "second")
    world.settle()
    other = create(world, "other", owner="lab")
    world.settle()
    assert world.space(first).stage == world.space(other).stage == "RUNNING"
    assert (world.space(second).stage, world.space(second).reason) == ("APP_STARTING", "gpu_quota")
    assert "the quota of admin does not allow more" in world.space(second).message
    world.platform.spaces.pause(world.space(other), world.actor)
    made = world.platform.quotas.set(world.actor, "admin", 2)
    assert (made.gpus, made.used, made.is_default) == (2, 1, False)
    world.settle()
    assert world.space(second).stage == "RUNNING"
    assert [(q.owner, q.gpus, q.used) for q in world.platform.quotas.list(world.actor)] == [("admin", 2, 2)]
    back = world.platform.quotas.set(world.actor, "admin", None)
    assert (back.gpus, back.used, back.is_default) == (1, 2, True)
    assert world.platform.quotas.set(world.actor, "lab", None).is_default
    assert [e.data for e in events(world, "quota.set")] == [
        {"owner": "admin", "gpus": 2, "before": None},
        {"owner": "admin", "gpus": None, "before": 2},
        {"owner": "lab", "gpus": None, "before": None},
    ]


def test_a_lowered_quota_stops_nothing_and_grants_nothing(make: Callable[..., World]) -> None:
    world = make(TWO)
    first, second = create(world, "first"), create(world, "second")
    world.settle()
    world.platform.quotas.set(world.actor, "ADMIN", 1)
    world.settle()
    assert world.space(first).stage == world.space(second).stage == "RUNNING"
    world.platform.spaces.restart(world.space(first), world.actor)
    world.settle()
    assert world.space(first).reason == "gpu_quota"
    assert world.space(first).routed is not None, "what serves is not given up for a start that would wait"
    world.platform.spaces.pause(world.space(second), world.actor)
    world.settle()
    assert world.space(first).stage == "RUNNING"
    assert world.space(first).reason == ""
    assert [q.used for q in world.platform.quotas.list(world.actor)] == [1]


def test_only_admins_set_quotas_and_only_sensible_ones(make: Callable[..., World]) -> None:
    world = make()
    world.platform.accounts.create_user("eve")
    eve = world.platform.accounts.actor_of_user(world.platform.accounts.find("eve").id or 0)
    quotas = world.platform.quotas
    with pytest.raises(Forbidden):
        quotas.set(eve, "eve", 8)
    with pytest.raises(Forbidden):
        quotas.list(eve)
    for number in (-2, 10_001):
        with pytest.raises(Invalid, match=f"A quota of {number} GPUs"):
            quotas.set(world.actor, "eve", number)
    with pytest.raises(NotFound):
        quotas.set(world.actor, "nobody", 1)
    assert quotas.list(world.actor) == []


# --- races, kills, histories -----------------------------------------------------------------------------------------
def contenders(folder: Path, count: int) -> tuple[list[Store], list[int]]:
    """As many processes' views of one database, and as many Spaces that want its only GPU."""
    stores = [Store(databases.url_of(folder)) for _ in range(count)]
    stores[0].migrate()
    with stores[0].write() as tx:
        owner = Account(name="a", key="a")
        tx.add(owner)
        tx.flush()
        spaces = [
            Space(owner_id=owner.id or 0, owner="a", name=f"s{n}", key=f"s{n}", creator_id=owner.id or 0,
                  hardware="t4-small", stage="APP_STARTING")
            for n in range(count)
        ]  # fmt: skip
        tx.add_all(spaces)
        tx.flush()
        ids = [space.id or 0 for space in spaces]
    return stores, ids


def test_of_many_that_ask_for_the_last_gpu_at_once_one_gets_it(tmp_path: Path) -> None:
    stores, ids = contenders(tmp_path, 6)
    hardware = Hardware(Settings(data=tmp_path), Machine(2.0, 4 << 30), parse_gpus(ONE))
    barrier, won, failed = threading.Barrier(len(ids)), [], []

    def contend(store: Store, space_id: int) -> None:
        gpus = Gpus(store, SystemClock(), StepQueue(), hardware, Settings(data=tmp_path))
        barrier.wait(10)
        try:
            with store.write() as tx:
                space = tx.get(Space, space_id)
                assert space is not None
                granted = gpus.take(tx, space)
                if isinstance(granted, Granted):
                    deployment = Deployment(space_id=space_id, artifact="a", plan={}, hardware="t4-small")
                    tx.add(deployment)
                    tx.flush()
                    gpus.give(tx, space, deployment, granted)
                    tx.flush()
                    won.append(space_id)
        except Exception as exc:
            failed.append(exc)

    threads = [threading.Thread(target=contend, args=pair) for pair in zip(stores, ids, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failed == []
    assert len(won) == 1
    with stores[0].read() as db:
        assert [lease.space_id for lease in db.exec(select(GpuLease))] == won
        waiting = select(Space.id).where(col(Space.gpu_queued_at).is_not(None))
        assert set(db.exec(waiting)) == set(ids) - set(won)
    for store in stores:
        store.close()


def test_the_schema_itself_refuses_a_second_lease_of_a_gpu(tmp_path: Path) -> None:
    (store, other), (one, two) = contenders(tmp_path, 2)
    other.close()
    with store.write() as tx:
        tx.add(GpuLease(gpu="GPU-a", deployment_id=1, space_id=one, owner_id=1))
    with pytest.raises(IntegrityError), store.write() as tx:
        tx.add(GpuLease(gpu="GPU-a", deployment_id=2, space_id=two, owner_id=1))
    store.close()


def check(world: World) -> None:
    """At this instant: no GPU twice, none outside the pool, and what runs has what its rows say."""
    held = leases(world)
    assert set(held) <= {gpu.id for gpu in world.platform.hardware.gpus}
    running = Counter(running_gpus(world))
    assert all(count == 1 for count in running.values()), f"a GPU is used twice: {running}"
    assert set(running) <= set(held), "a GPU is used that nobody is known to have"


def check_quotas(world: World, default: int, lowered: dict[int, int]) -> None:
    """No more than the quota, or than what was held when it was lowered."""
    with world.platform.store.read() as db:
        quotas = {row.owner_id: row.gpus for row in db.exec(select(Quota))}
        used = Counter(row.owner_id for row in db.exec(select(GpuLease)))
    for owner, count in used.items():
        quota = quotas.get(owner, default)
        if quota >= 0:
            lowered[owner] = min(lowered.get(owner, quota), count) if count > quota else quota
            assert count <= max(quota, lowered[owner])


def happen(world: World, rng: random.Random, spaces: list[Space]) -> None:
    space = rng.choice(spaces)
    row = world.space(space)
    match rng.choice(("push", "restart", "pause", "sleep", "wake", "hardware", "crash", "time", "grace", "quota")):
        case "push":
            world.push(space, {"index.html": str(rng.random()).encode()})
        case "restart":
            world.platform.spaces.restart(row, world.actor)
        case "pause":
            world.platform.spaces.pause(row, world.actor)
        case "sleep":
            world.platform.spaces.sleep(row, world.actor)
        case "wake":
            world.platform.spaces.wake(space.id or 0)
        case "hardware":
            flavor = rng.choice(("cpu-basic", "t4-small", "t4-medium", "l4x1"))
            world.platform.space_settings.set_hardware(row, world.actor, flavor)
        case "crash":
            running = [id for id, seen in world.apps.observe().items() if seen.status is not RunStatus.EXITED]
            if running:
                world.apps.exit(rng.choice(running), 1)
        case "time":
            world.clock.at += timedelta(seconds=rng.choice((1, 700, 4000)))
        case "grace":
            world.apps.kill_due()
        case "quota":
            world.platform.quotas.set(world.actor, rng.choice(("admin", "lab")), rng.choice((-1, 1, 2, None)))


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(4, 40))])
def test_random_histories_with_kills_never_share_a_gpu(make: Callable[..., World], seed: int) -> None:
    """Every step of a history is looked at, and some end in a kill; at the end all that may run does."""
    rng = random.Random(seed)
    world = make("T4:GPU-a,T4:GPU-b,L4:GPU-l", gpu_quota=2)
    world.platform.accounts.create_org("lab", by=world.actor)
    world.apps.script = lambda _spec: Script(ready=rng.random() < 0.6, ignores_stop=rng.random() < 0.6)
    spaces = [create(world, f"s{n}", owner=("admin", "lab")[n % 2]) for n in range(4)]
    lowered: dict[int, int] = {}
    for _ in range(40):
        if rng.random() < 0.15:
            world.fuse.limit = len(world.fuse.burnt) + rng.randrange(12)
        try:
            happen(world, rng, spaces)
            check_quotas(world, 2, lowered)
            for _ in range(rng.randrange(4)):
                world.settle_some(1)
                check(world)
                check_quotas(world, 2, lowered)
        except Killed:
            check(world)
            world.restart()
    world.fuse.limit = None
    world.apps.script = lambda _spec: Script(ready=True)
    for owner in ("admin", "lab"):
        world.platform.quotas.set(world.actor, owner, -1)
    for space in spaces[1:]:
        world.platform.spaces.pause(world.space(space), world.actor)
    for _ in range(4):
        world.settle_some(20)
        world.apps.kill_due()
        check(world)
    world.platform.space_settings.set_hardware(world.space(spaces[0]), world.actor, "t4-small")
    world.platform.spaces.restart(world.space(spaces[0]), world.actor)
    world.settle_some(40)
    world.apps.kill_due()
    world.settle()
    assert world.space(spaces[0]).stage == "RUNNING"
    assert list(leases(world).values()) == [world.space(spaces[0]).routed]
