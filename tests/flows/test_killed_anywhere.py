"""T26 at the core: the platform is killed at every single effect of a Space's life, and restarting is the only repair.

The story runs once unharmed to count its effects, then once for each of them with a kill right there. After a restart
the world must come to the same end, with every invariant kept.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest
from sqlmodel import select

from spaces_platform.frozen import Memory
from spaces_platform.models import Build, Deployment
from spaces_platform.ports import RunStatus
from tests.flows.world import World
from tests.services import databases


def story(world: World) -> None:
    """push > build > start > route > push again > drain > stop > sleep > wake, once from frozen and once, for want of
    memory, from stopped; each act is repeated until it holds."""
    world.act(world.create, lambda: world.found() is not None)
    world.act(lambda: world.push(world.must(), {"index.html": b"two"}), lambda: has_file(world, b"two"))
    world.settle()
    world.act(lambda: world.platform.spaces.sleep(world.must(), world.actor), lambda: asleep(world))
    world.settle()
    world.act(lambda: world.platform.spaces.wake(world.must().id or 0), lambda: awake(world))
    world.settle()
    world.act(lambda: world.platform.spaces.sleep(world.must(), world.actor), lambda: asleep(world))
    world.memory = Memory(16 << 30, 0)
    world.act(world.settle, lambda: not world.apps.observe())
    world.memory = Memory(16 << 30, 12 << 30)
    world.act(lambda: world.platform.spaces.wake(world.must().id or 0), lambda: awake(world))
    world.settle()


def has_file(world: World, content: bytes) -> bool:
    space = world.must()
    repo = world.platform.spaces.repo(space)
    head = repo.head()
    return head is not None and b"".join(repo.read(head, "index.html")) == content


def asleep(world: World) -> bool:
    return world.must().slept_at is not None


def awake(world: World) -> bool:
    space = world.must()
    return space.slept_at is None or space.last_active_at > space.slept_at


def verify(world: World) -> None:
    """The end is the same as without the kill, and nothing is left over."""
    world.restart()
    world.clock.at += timedelta(seconds=70)
    world.settle()
    space = world.must()
    assert space.stage == "RUNNING", f"{space.stage}: {space.message}"
    assert has_file(world, b"two")
    with world.platform.store.read() as db:
        builds = list(db.exec(select(Build)).all())
        deployments = list(db.exec(select(Deployment)).all())
    live = [d for d in deployments if d.live]
    assert [d.id for d in live] == [space.routed]
    assert live[0].commit == space.head
    assert all(b.status in ("SUCCEEDED", "CANCELLED", "FAILED") for b in builds)
    assert len([b for b in builds if b.status == "SUCCEEDED" and b.commit == space.head]) == 1
    assert set(world.apps.observe()) == {space.routed}, "something runs without a row, or the other way round"
    assert world.apps.observe()[space.routed or 0].status is RunStatus.READY
    assert len(list((world.folder / "repos").rglob("HEAD"))) == 1


def run(folder: Path, limit: int | None) -> World:
    world = World(folder, freezes=True)
    world.fuse.limit = None if limit is None else len(world.fuse.burnt) + limit
    story(world)
    verify(world)
    return world


def effects(folder: Path) -> list[str]:
    world = World(folder, freezes=True)
    before = len(world.fuse.burnt)
    story(world)
    names = world.fuse.burnt[before:]
    world.platform.store.close()
    return names


def test_the_story_has_effects_of_every_kind(tmp_path: Path) -> None:
    counted = Counter(effects(tmp_path))
    assert set(counted) == {
        "begin", "commit", "hint", "build", "start", "started", "stop", "stopped", "freeze", "frozen", "thaw", "thawed",
    }  # fmt: skip
    assert 60 <= sum(counted.values()) <= POINTS


POINTS = 340
"""Upper bound of the story's effects."""


def kill_at(folder: Path, points: range) -> None:
    for limit in points:
        place = folder / f"at{limit}"
        place.mkdir()
        run(place, limit).platform.store.close()
        shutil.rmtree(place)


@pytest.mark.parametrize("part", range(5))
def test_killed_at_some_effects(tmp_path: Path, part: int) -> None:
    """Every sixteenth effect, another sixteenth in each release of Python: `make soak` takes them all.

    On Postgres each world takes longer, and there are fewer.
    """
    count = len(effects(tmp_path / "count"))
    kill_at(tmp_path, range(16 * part + sys.version_info.minor % 16, count, 160 if databases.ON_POSTGRES else 80))


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_killed_at_every_effect(tmp_path: Path) -> None:
    kill_at(tmp_path, range(len(effects(tmp_path / "count"))))
