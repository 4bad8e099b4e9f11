"""The contract of the Volumes port, held to every implementation alike."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from spaces_platform.errors import Conflict, NotFound, Unavailable
from spaces_platform.ports import SNAPSHOT_NAME
from tests.contracts.volumes import MIB, VolumeWorld, docker_volumes, fake_volumes

NO_SUCH = "20200101T000000000000Z"


@pytest.fixture(params=["fake", pytest.param("docker", marks=pytest.mark.containers)])
def world(request: pytest.FixtureRequest) -> Iterator[VolumeWorld]:
    if request.param == "docker" and os.geteuid() != 0:
        pytest.skip("volumes are mounted by root")
    with fake_volumes() if request.param == "fake" else docker_volumes(request.getfixturevalue("engine_url")) as made:
        yield made


def test_what_is_written_stays_with_its_space_and_no_other(world: VolumeWorld) -> None:
    world.write(1, "kept")
    assert world.read(1) == "kept"
    assert world.read(2) == ""


def test_there_is_none_before_the_first_start(world: VolumeWorld) -> None:
    assert world.volumes.use(1) is None
    assert list(world.volumes.snapshots(1)) == []
    with pytest.raises(NotFound, match="first starts"):
        world.volumes.snapshot(1)
    with pytest.raises(NotFound, match="no snapshot"):
        world.volumes.restore(1, NO_SUCH)
    world.volumes.remove(1)


def test_it_is_as_large_as_was_asked_for_grows_and_never_shrinks(world: VolumeWorld) -> None:
    sizes = []
    for size in (16 * MIB, 48 * MIB, 24 * MIB):
        world.write(1, "kept", size)
        use = world.volumes.use(1)
        assert use is not None
        sizes.append(use.size)
        assert 0 < use.used < use.size
        assert use.snapshots == 0
    assert sizes == [16 * MIB, 48 * MIB, 48 * MIB]
    assert world.read(1) == "kept"


def test_it_grows_while_another_app_of_its_space_has_it_or_after(world: VolumeWorld) -> None:
    with world.running(1):
        world.write(1, "meanwhile", 64 * MIB)
        use = world.volumes.use(1)
        assert use is not None
        assert use.size in (16 * MIB, 64 * MIB)
    assert world.read(1, 64 * MIB) == "meanwhile"
    use = world.volumes.use(1)
    assert use is not None
    assert use.size == 64 * MIB


def test_snapshots_are_named_by_their_time_and_put_back(world: VolumeWorld) -> None:
    before = datetime.now(UTC)
    world.write(1, "first")
    one = world.volumes.snapshot(1)
    world.write(1, "second", 32 * MIB)
    two = world.volumes.snapshot(1)
    assert list(world.volumes.snapshots(1)) == [one, two]
    assert before <= datetime.strptime(one, SNAPSHOT_NAME).replace(tzinfo=UTC) <= datetime.now(UTC)
    use = world.volumes.use(1)
    assert use is not None
    assert use.snapshots > 0
    world.volumes.restore(1, one)
    assert world.read(1) == "first"
    world.volumes.restore(1, two)
    assert world.read(1, 32 * MIB) == "second"
    # What was smaller when it was taken is as large as is asked for now.
    world.volumes.restore(1, one)
    assert world.read(1, 32 * MIB) == "first"
    use = world.volumes.use(1)
    assert use is not None
    assert use.size == 32 * MIB
    assert list(world.volumes.snapshots(1)) == [one, two]
    assert list(world.volumes.snapshots(2)) == []
    for name in (NO_SUCH, "../../1/disk", ""):
        with pytest.raises(NotFound, match="no snapshot"):
            world.volumes.restore(1, name)


def test_only_so_many_snapshots_are_kept_the_newest(world: VolumeWorld) -> None:
    world.write(1, "x")
    names = [world.volumes.snapshot(1) for _ in range(10)]
    assert names == sorted(set(names))
    assert list(world.volumes.snapshots(1)) == names[-8:]


def test_a_volume_that_an_app_has_is_neither_replaced_nor_removed(world: VolumeWorld) -> None:
    world.write(1, "old")
    one = world.volumes.snapshot(1)
    world.write(1, "new")
    with world.running(1):
        world.volumes.snapshot(1)
        with pytest.raises(Conflict, match="pause it"):
            world.volumes.restore(1, one)
        with pytest.raises(Unavailable, match="has ended"):
            world.volumes.remove(1)
        world.volumes.remove(2)
    assert world.read(1) == "new"
    world.volumes.restore(1, one)
    assert world.read(1) == "old"


def test_what_is_removed_is_gone_with_its_snapshots(world: VolumeWorld) -> None:
    world.write(1, "gone")
    world.write(2, "stays")
    world.volumes.snapshot(1)
    world.volumes.remove(1)
    world.volumes.remove(1)
    assert world.volumes.use(1) is None
    assert list(world.volumes.snapshots(1)) == []
    assert world.read(1) == ""
    assert world.read(2) == "stays"
