"""Idle apps that are kept in memory: frozen, thawed, evicted, and every way that can go wrong."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces_platform.frozen import Frozen, Memory, machine_memory, victims
from spaces_platform.models import Deployment, Space
from spaces_platform.ports import RunStatus, Task
from spaces_platform.space_settings import Setting
from tests.fakes.orchestrator import Script
from tests.flows.world import World

GB = 1 << 30


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, freezes=True)
    yield made
    made.platform.store.close()


def frozen_space(world: World, name: str = "demo") -> Space:
    space = world.create(name)
    world.settle()
    world.platform.spaces.sleep(world.space(space), world.actor)
    world.settle()
    assert newest(world, space).status == "FROZEN"
    assert world.space(space).stage == "SLEEPING"
    return space


def newest(world: World, space: Space) -> Deployment:
    return world.platform.deployments.of(space.id or 0)[0]


def starts(world: World) -> int:
    return len([call for call in world.apps.calls if call[0] == "start"])


def kinds(world: World, space: Space) -> list[str]:
    return [e.kind for e in reversed(world.platform.directory.events(world.space(space)))]


def test_idle_is_frozen_and_a_visit_thaws_it_in_one_pass(world: World) -> None:
    space = world.create()
    world.settle()
    routed, before = world.space(space).routed, starts(world)
    world.clock.at += timedelta(seconds=601)
    world.settle()
    assert world.space(space).stage == "SLEEPING"
    assert world.space(space).routed is None
    assert world.apps.observe()[routed or 0].status is RunStatus.FROZEN
    assert newest(world, space).frozen_at is not None
    for _ in range(20):
        world.platform.spaces.wake(space.id or 0)
    world.platform.run(Task.RECONCILE, space.id or 0)
    row = world.space(space)
    assert (row.stage, row.routed) == ("RUNNING", routed)
    assert world.apps.observe()[routed or 0].status is RunStatus.READY
    assert newest(world, space).frozen_at is None
    assert starts(world) == before
    assert [k for k in kinds(world, space) if k in ("space.asleep", "deployment.frozen", "space.woken")] == [
        "space.asleep", "deployment.frozen", "space.woken",
    ]  # fmt: skip


def test_a_visit_while_it_drains_keeps_the_app(world: World) -> None:
    space = world.create()
    world.settle()
    routed, before = world.space(space).routed, starts(world)
    world.platform.spaces.sleep(world.space(space), world.actor)
    world.platform.traffic._gateways.clear()  # No gateway has said that it is drained.
    world.platform.run(Task.RECONCILE, space.id or 0)
    assert newest(world, space).status == "READY"
    assert world.space(space).routed is None
    world.clock.at += timedelta(seconds=1)
    world.platform.spaces.wake(space.id or 0)
    world.settle()
    assert world.space(space).routed == routed
    assert starts(world) == before
    assert ("stop", routed) not in world.apps.calls


def test_no_start_slot_is_needed_to_thaw(tmp_path: Path) -> None:
    world = World(tmp_path, freezes=True, start_slots=1)
    space = frozen_space(world)
    world.apps.script = lambda _spec: Script()
    other = world.create("other")
    world.settle_some(3)
    assert newest(world, other).status == "STARTING"
    world.platform.spaces.wake(space.id or 0)
    world.settle_some(2)
    assert world.space(space).stage == "RUNNING"
    world.platform.store.close()


@pytest.mark.parametrize("change", ["secret", "variable", "restart", "pause", "delete", "rename", "push"])
def test_what_makes_it_stale_stops_it(world: World, change: str) -> None:
    space = frozen_space(world)
    old = newest(world, space).id or 0
    spaces, row = world.platform.spaces, world.space(space)
    match change:
        case "secret":
            world.platform.space_settings.set_secrets(row, world.actor, [Setting("TOKEN", "new")])
        case "variable":
            world.platform.space_settings.set_variables(row, world.actor, [Setting("MODE", "new")])
        case "restart":
            spaces.restart(row, world.actor)
        case "pause":
            spaces.pause(row, world.actor)
        case "delete":
            spaces.delete(row, world.actor)
        case "rename":
            spaces.rename(row, world.actor, "admin", "other")
        case "push":
            world.push(space, {"index.html": b"two"})
    world.settle()
    assert ("stop", old) in world.apps.calls
    assert old not in world.apps.observe()


def test_a_frozen_app_that_died_is_gone_and_the_next_visit_starts_one(world: World) -> None:
    space = frozen_space(world)
    old = newest(world, space).id or 0
    world.apps.exit(old, -9)
    world.queue.send(Task.RECONCILE, space.id or 0)
    world.settle()
    dead = newest(world, space)
    assert (dead.status, dead.reason) == ("FAILED", "lost")
    assert world.space(space).stage == "SLEEPING"
    world.platform.spaces.wake(space.id or 0)
    world.platform.run(Task.RECONCILE, space.id or 0)
    # Not an attempt that failed: nothing is waited for.
    assert newest(world, space).id != old
    world.settle()
    assert world.space(space).stage == "RUNNING"


def test_the_machine_restarted_under_what_was_frozen(world: World) -> None:
    space = frozen_space(world)
    world.apps.restart()
    world.restart()
    world.settle()
    assert newest(world, space).status == "FAILED"
    assert world.space(space).stage == "SLEEPING"
    world.platform.spaces.wake(space.id or 0)
    world.settle()
    assert world.space(space).stage == "RUNNING"


def test_what_cannot_be_thawed_is_started_anew(world: World) -> None:
    space = frozen_space(world)
    old = newest(world, space).id or 0
    world.apps.fail_next("thaw")
    world.platform.spaces.wake(space.id or 0)
    world.step()
    assert newest(world, space).id != old, "the visitor waits for another pass"
    world.settle()
    assert world.space(space).stage == "RUNNING"
    assert world.space(space).routed != old
    assert old not in world.apps.observe()


def test_what_cannot_be_frozen_is_stopped(world: World) -> None:
    space = world.create()
    world.settle()
    world.apps.fail_next("freeze")
    world.platform.spaces.sleep(world.space(space), world.actor)
    world.settle()
    assert newest(world, space).status == "GONE"
    assert not world.apps.observe()
    assert world.space(space).stage == "SLEEPING"


def test_running_is_not_said_of_what_could_not_be_thawed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    space = frozen_space(world)
    world.apps.fail_next("thaw")
    seen: list[tuple[str, int | None]] = []

    def told(space_id: int) -> None:
        row = world.platform.directory.by_id(space_id)
        seen.append((row.stage, row.routed))

    monkeypatch.setattr(world.platform.feed, "changed", told)
    world.platform.spaces.wake(space.id or 0)
    world.settle()
    assert ("RUNNING", world.space(space).routed) in seen
    assert all(routed is not None for stage, routed in seen if stage == "RUNNING")


def test_it_is_stopped_after_its_time(world: World) -> None:
    space = frozen_space(world)
    world.clock.at += timedelta(seconds=world.settings.frozen_seconds - 60)
    world.settle()
    assert newest(world, space).status == "FROZEN"
    world.clock.at += timedelta(seconds=60)
    world.settle()
    assert newest(world, space).status == "GONE"
    assert world.space(space).stage == "SLEEPING"


def test_pressure_stops_the_longest_frozen_first(world: World) -> None:
    spaces = [frozen_space(world, f"s{n}") for n in range(4)]
    # A tenth of a gigabyte each: two must go for the floor of one gigabyte to be free.
    world.memory = Memory(16 * GB, GB - (150 << 20))
    assert len(world.platform.frozen.relieve()) == 2
    world.memory = Memory(16 * GB, GB)
    world.settle()
    assert [newest(world, s).status for s in spaces] == ["GONE", "GONE", "FROZEN", "FROZEN"]
    assert "deployment.evicted" in kinds(world, spaces[0])
    assert "deployment.evicted" not in kinds(world, spaces[2])


def test_a_start_makes_room(world: World) -> None:
    spaces = [frozen_space(world, f"s{n}") for n in range(2)]
    world.memory = Memory(16 * GB, GB + (450 << 20))
    world.create("new")
    for _ in range(8):
        world.step()
    assert [newest(world, s).status for s in spaces] == ["GONE", "FROZEN"]


def test_settings_bound_what_is_frozen(tmp_path: Path) -> None:
    world = World(tmp_path, freezes=True, frozen_mb=250)
    spaces = [frozen_space(world, f"s{n}") for n in range(2)]
    third = world.create("third")
    world.settle()
    world.platform.spaces.sleep(world.space(third), world.actor)
    world.settle()
    assert [newest(world, s).status for s in (*spaces, third)] == ["GONE", "FROZEN", "FROZEN"]
    world.platform.store.close()


def test_none_is_frozen_where_the_setting_says_so(tmp_path: Path) -> None:
    world = World(tmp_path, freezes=True)
    space = frozen_space(world)
    world.platform.store.close()
    again = World(tmp_path, freezes=True, frozen_mb=0)
    again.apps = world.apps
    again.restart()
    again.settle()
    assert newest(again, space).status == "GONE"
    again.platform.spaces.wake(space.id or 0)
    again.settle()
    again.platform.spaces.sleep(again.space(space), again.actor)
    again.settle()
    assert newest(again, space).status == "GONE"
    again.platform.store.close()


def test_a_visit_and_an_eviction_at_once_have_one_winner(world: World) -> None:
    space = frozen_space(world)
    old = newest(world, space).id or 0
    world.platform.spaces.wake(space.id or 0)
    thaw = world.apps.thaw

    def thaw_and_be_evicted(deployment_id: int) -> None:
        thaw(deployment_id)
        world.platform.frozen._evict(deployment_id)

    world.apps.thaw = thaw_and_be_evicted  # type: ignore[method-assign]
    world.settle()
    row = world.space(space)
    assert row.stage == "RUNNING"
    assert row.routed != old
    assert set(world.apps.observe()) == {row.routed}


def test_stopping_the_platform_ends_what_is_frozen_too(world: World) -> None:
    space = frozen_space(world)
    world.platform.close(stop_apps=True)
    assert not world.apps.observe()
    world.restart()
    world.settle()
    world.platform.spaces.wake(space.id or 0)
    world.settle()
    assert world.space(space).stage == "RUNNING"


# --- the choice -----------------------------------------------------------------------------------------------------
apps = st.lists(
    st.builds(Frozen, id=st.integers(1, 10**6), frozen_at=st.floats(0, 1e6), memory=st.integers(0, GB)),
    max_size=12,
    unique_by=lambda f: f.id,
)


@given(apps, st.integers(0, 6 * GB), st.integers(0, 6 * GB), st.integers(0, 6 * GB))
def test_victims_are_the_oldest_and_no_more_than_needed(
    frozen: list[Frozen], budget: int, available: int, floor: int
) -> None:
    chosen = victims(frozen, budget=budget, available=available, floor=floor)
    order = [f.id for f in sorted(frozen, key=lambda f: (f.frozen_at, f.id))]
    assert list(chosen) == order[: len(chosen)]

    def fits(gone: int) -> bool:
        kept = [f.memory for f in frozen if f.id not in order[:gone]]
        freed = sum(f.memory for f in frozen) - sum(kept)
        return bool(budget) and sum(kept) <= budget and available + freed >= floor

    assert len(chosen) == len(frozen) or fits(len(chosen))
    assert not chosen or not fits(len(chosen) - 1)


def test_the_machines_memory_is_read(tmp_path: Path) -> None:
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:       16384 kB\nMemFree:         1 kB\nMemAvailable:    8192 kB\nHugePages_Total:   0\n")
    assert machine_memory(path) == Memory(16 << 20, 8 << 20)
    assert machine_memory(tmp_path / "none").available > 1 << 60
