"""A Space's volume through its life: swap, growth, deletion, rename, and a platform that is killed anywhere in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlmodel import select

from spaces_platform.models import Deployment, Event, Space
from spaces_platform.ports import RunStatus
from tests.fakes.orchestrator import Script
from tests.fakes.volumes import FakeVolumes
from tests.flows.world import README, World

MB = 1 << 20
DOCKER = {"README.md": README.replace(b"static", b"gradio"), "app.py": b"print(1)\n"}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, has_volumes=True)
    yield made
    made.platform.store.close()


def volumes(world: World) -> FakeVolumes:
    assert world.volumes is not None
    return world.volumes


def begun(world: World) -> Space:
    """A Space that serves and has written into its volume."""
    space = world.create(files=DOCKER)
    world.settle()
    assert world.space(space).stage == "RUNNING"
    volumes(world).volumes[space.id or 0].data["word"] = "kept"
    return space


def running(world: World) -> list[int]:
    return [n for n, seen in world.apps.observe().items() if seen.status is not RunStatus.EXITED]


def word(world: World, space: Space) -> str | None:
    volume = volumes(world).volumes.get(space.id or 0)
    return volume.data.get("word") if volume is not None else None


def test_every_app_gets_the_default_and_a_static_site_none(world: World) -> None:
    site = world.create("site")
    space = begun(world)
    use = volumes(world).use(space.id or 0)
    assert use is not None
    assert use.size == 1024 * MB
    assert volumes(world).use(site.id or 0) is None
    assert "volume" not in str(world.apps.specs[world.space(site).routed or 0].env)


def test_a_new_version_has_it_beside_the_old_one(tmp_path: Path) -> None:
    """The swap: both run for a moment, on the same volume."""
    world = World(tmp_path, has_volumes=True, script=lambda spec: Script(ready=spec.id == 1))
    space = begun(world)
    world.push(space, {"app.py": b"print(2)\n"})
    world.settle_some(4)
    assert len(running(world)) == 2
    assert {world.apps.specs[n].resources.volume for n in running(world)} == {1024 * MB}
    assert len(volumes(world).volumes) == 1
    world.apps.make_ready(max(running(world)))
    world.settle()
    assert len(running(world)) == 1
    assert word(world, space) == "kept"
    world.platform.store.close()


def test_asking_for_more_is_a_swap_and_keeps_what_is_there(world: World) -> None:
    space = begun(world)
    before = world.space(space).routed
    world.platform.space_settings.set_storage(world.space(space), world.actor, "small")
    world.settle()
    row = world.space(space)
    assert row.routed not in (None, before)
    use = volumes(world).use(space.id or 0)
    assert use is not None
    assert use.size == 4096 * MB
    assert word(world, space) == "kept"


def test_deleted_storage_goes_once_the_app_has_ended(tmp_path: Path) -> None:
    world = World(tmp_path, has_volumes=True, script=lambda _: Script(ready=True, ignores_stop=True))
    space = begun(world)
    volumes(world).snapshot(space.id or 0)
    world.platform.space_settings.delete_storage(world.space(space), world.actor)
    world.settle_some(10)
    assert word(world, space) == "kept", "it went while the app had it"
    assert world.space(space).stage == "APP_STARTING"
    assert len(running(world)) == 1, "a new one started on what is to go"
    world.apps.kill_due()
    world.settle()
    row = world.space(space)
    assert (row.stage, row.drops_volume) == ("RUNNING", False)
    assert word(world, space) is None
    assert list(volumes(world).snapshots(space.id or 0)) == []
    world.platform.store.close()


@pytest.mark.parametrize("rest", ["pause", "sleep"])
@pytest.mark.parametrize("freezes", [True, False])
def test_deleted_storage_of_one_that_rests_goes_and_it_rests_on(tmp_path: Path, rest: str, freezes: bool) -> None:
    world = World(tmp_path, has_volumes=True, freezes=freezes)
    space = begun(world)
    getattr(world.platform.spaces, rest)(world.space(space), world.actor)
    world.settle()
    world.platform.space_settings.delete_storage(world.space(space), world.actor)
    world.settle()
    row = world.space(space)
    assert (row.stage, row.drops_volume) == ("PAUSED" if rest == "pause" else "SLEEPING", False)
    assert volumes(world).use(space.id or 0) is None
    assert running(world) == []
    world.platform.store.close()


def test_storage_is_deleted_though_the_newest_version_does_not_build(world: World) -> None:
    """What serves is an older version, which nothing else would end."""
    space = begun(world)
    world.push(space, {"FAIL": b"broken"})
    world.settle()
    assert world.space(space).stage == "BUILD_ERROR"
    world.platform.space_settings.delete_storage(world.space(space), world.actor)
    world.settle()
    assert word(world, space) is None
    assert world.space(space).routed is not None


def test_a_volume_that_something_still_has_is_tried_again(world: World) -> None:
    """An app whose row has ended, and which the platform lost sight of."""
    space = begun(world)
    world.platform.spaces.pause(world.space(space), world.actor)
    world.settle()
    in_use = volumes(world).in_use
    volumes(world).in_use = lambda _: True
    world.platform.space_settings.delete_storage(world.space(space), world.actor)
    world.settle_some(8)
    assert world.space(space).drops_volume
    volumes(world).in_use = in_use
    world.settle_some(8)
    assert not world.space(space).drops_volume
    assert word(world, space) is None


def test_renaming_keeps_it_and_deleting_takes_it(world: World) -> None:
    space = begun(world)
    renamed = world.platform.spaces.rename(world.space(space), world.actor, "admin", "other")
    world.settle()
    assert renamed.name == "other"
    assert word(world, space) == "kept"
    again = world.create(files=DOCKER)
    world.settle()
    assert word(world, again) is None
    world.platform.spaces.delete(world.space(space), world.actor)
    world.settle()
    assert volumes(world).use(space.id or 0) is None
    assert volumes(world).use(again.id or 0) is not None


def test_without_volumes_nothing_waits_for_one(tmp_path: Path) -> None:
    """A platform that ran containers, and now runs processes: the deletion waits until it runs containers again."""
    world = World(tmp_path, has_volumes=True)
    space = begun(world)
    world.platform.spaces.pause(world.space(space), world.actor)
    world.settle()
    kept, world.volumes = world.volumes, None
    with world.platform.store.write() as tx:
        row = tx.get(Space, space.id)
        assert row is not None
        row.drops_volume = True
        tx.add(row)
    world.apps.volumes = None
    world.restart()
    world.platform.spaces.restart(world.space(space), world.actor)
    world.settle()
    assert (world.space(space).stage, world.space(space).drops_volume) == ("RUNNING", True)
    world.volumes = kept
    assert word(world, space) == "kept"
    world.restart()
    world.settle()
    assert word(world, space) is None
    world.platform.store.close()


# --- killed anywhere --------------------------------------------------------------------------------------------------
def empty_story(world: World) -> None:
    """Storage is asked for, used, deleted; then the Space."""
    world.act(lambda: world.create(files=DOCKER), lambda: world.found() is not None)
    world.act(lambda: grow(world), lambda: world.must().storage == "small" or has_deleted(world))
    volumes(world).volumes[world.must().id or 0].data["word"] = "kept"
    world.act(lambda: empty(world), lambda: has_deleted(world))
    assert word(world, world.must()) is None
    assert world.must().stage == "RUNNING"
    world.act(lambda: world.platform.spaces.delete(world.must(), world.actor), lambda: world.found() is None)


def grow(world: World) -> None:
    world.platform.space_settings.set_storage(world.must(), world.actor, "small")


def empty(world: World) -> None:
    world.platform.space_settings.delete_storage(world.must(), world.actor)


def has_deleted(world: World) -> bool:
    with world.platform.store.read() as db:
        return db.exec(select(Event).where(Event.kind == "space.storage_deleted")).first() is not None


def run(folder: Path, limit: int | None) -> int:
    """How many effects the story has."""
    folder.mkdir()
    world = World(folder, has_volumes=True, freezes=True)
    before = len(world.fuse.burnt)
    world.fuse.limit = None if limit is None else before + limit
    empty_story(world)
    effects = len(world.fuse.burnt) - before
    world.restart()
    world.settle()
    assert volumes(world).volumes == {}, "a volume is left of a deleted Space"
    assert running(world) == []
    with world.platform.store.read() as db:
        assert all(row.purged_at is not None and not row.drops_volume for row in db.exec(select(Space)).all())
        assert db.exec(select(Deployment)).all() == []
    world.platform.store.close()
    shutil.rmtree(folder)
    return effects


def test_killed_anywhere_nothing_is_left_and_nothing_goes_too_early(tmp_path: Path) -> None:
    """Some effects; `make soak` takes them all."""
    count = run(tmp_path / "count", None)
    assert 40 <= count <= 300
    for limit in range(2, count, 29):
        run(tmp_path / f"at{limit}", limit)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_killed_at_every_effect(tmp_path: Path) -> None:
    for limit in range(run(tmp_path / "count", None)):
        run(tmp_path / f"at{limit}", limit)
