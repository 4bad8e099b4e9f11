"""The floor that refuses new builds: of the platform's own disk, and of the disk that artifacts are kept on."""

from __future__ import annotations

from pathlib import Path

import pytest

from builders.types import BuilderUnavailable
from spaces_platform.platform import may_build
from spaces_platform.settings import Settings
from tests.fakes.builder import FakeBuilder


class _Away(FakeBuilder):
    def free_disk(self) -> int:
        raise BuilderUnavailable("the engine is away")


@pytest.mark.parametrize(("floor_mb", "free_mb", "free"), [(1, 1, True), (2, 1, False), (1 << 40, 1 << 41, False)])
def test_both_disks_must_be_above_the_floor(floor_mb: int, free_mb: int, free: bool, tmp_path: Path) -> None:
    builder = FakeBuilder()
    builder.free = free_mb << 20
    assert may_build(Settings(data=tmp_path, disk_floor_mb=floor_mb), builder) is free


def test_an_engine_that_is_away_says_so_at_the_build_not_at_the_floor(tmp_path: Path) -> None:
    assert may_build(Settings(data=tmp_path, disk_floor_mb=1), _Away())
