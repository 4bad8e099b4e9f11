"""What is removed, and what never is: whatever a Space could wake from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlmodel import select

from spaces_platform.housekeeping import KEEP_ARTIFACTS
from spaces_platform.models import Build
from tests.flows.world import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.platform.store.close()


def test_old_artifacts_go_and_what_a_space_can_wake_from_stays(world: World) -> None:
    space = world.create()
    world.settle()
    first = world.space(space).last_good
    for n in range(5):
        world.push(space, {"index.html": f"version {n}".encode()})
        world.settle()
    # The newest pushes do not build: the last one that served must stay, however old it gets.
    served = world.space(space).last_good
    for n in range(4):
        world.push(space, {"FAIL": f"broken {n}".encode()})
        world.settle()
    assert len(world.builder.artifacts) == 6
    world.platform.housekeeping.run()
    assert served in world.builder.artifacts
    assert first not in world.builder.artifacts
    assert len(world.builder.artifacts) == KEEP_ARTIFACTS
    with world.platform.store.read() as db:
        named = {b.artifact for b in db.exec(select(Build)).all() if b.artifact}
    assert named == world.builder.artifacts
    world.platform.spaces.sleep(world.space(space), world.actor)
    world.settle()
    world.platform.spaces.wake(space.id or 0)
    world.settle()
    assert world.space(space).routed is not None
    assert world.space(space).stage == "BUILD_ERROR"


def test_going_back_to_an_old_commit_builds_it_again(world: World) -> None:
    space = world.create()
    world.settle()
    for n in range(5):
        world.push(space, {"index.html": f"version {n}".encode()})
        world.settle()
    world.platform.housekeeping.run()
    world.push(space, {"index.html": b"<h1>one</h1>"})
    world.settle()
    assert world.space(space).stage == "RUNNING"


def test_repositories_are_repacked_once_after_pushes(world: World) -> None:
    space = world.create()
    for n in range(4):
        world.push(space, {"index.html": f"version {n}".encode()})
    packs = list((world.folder / "repos").rglob("*.pack"))
    assert world.platform.housekeeping.maintain_repositories() == 1
    assert len(list((world.folder / "repos").rglob("*.pack"))) < len(packs)
    assert world.platform.housekeeping.maintain_repositories() == 0
    assert world.platform.spaces.repo(world.space(space)).head() == world.space(space).head
