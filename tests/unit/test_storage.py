"""What storage a Space may ask for, and how large its volume is."""

from __future__ import annotations

import pytest

from spaces_platform.errors import Invalid
from spaces_platform.models import Space
from spaces_platform.settings import Settings
from spaces_platform.storage import Storage, words
from tests.fakes.volumes import FakeVolumes
from tests.flows.world import HandClock

MB = 1 << 20


def storage(**given: object) -> Storage:
    return Storage(Settings.load({}, mode="single-host", **given), FakeVolumes(HandClock()))


def space(tier: str | None = None, sdk: str = "gradio") -> Space:
    return Space(id=7, owner_id=1, owner="ada", name="app", key="app", creator_id=1, sdk=sdk, storage=tier)


@pytest.mark.parametrize(
    ("most", "names"),
    [("large", ["small", "medium", "large"]), ("medium", ["small", "medium"]), ("small", ["small"]), ("none", [])],
)
def test_the_tiers_that_there_are(most: str, names: list[str]) -> None:
    tiers = storage(volume_most=most).tiers()
    assert list(tiers) == names
    assert list(tiers.values()) == [4096 * MB, 16384 * MB, 65536 * MB][: len(names)]


@pytest.mark.parametrize(
    ("before", "tier", "refused"),
    [
        (None, "small", ""),
        (None, "large", ""),
        ("small", "small", ""),
        ("small", "large", ""),
        ("large", "small", "never shrinks: this one is large (64 GB). To have small (4 GB), delete the storage first"),
        ("medium", "small", "never shrinks"),
        (None, "huge", "no storage 'huge' here; available: small (4 GB), medium (16 GB), large (64 GB)"),
        ("small", "", "no storage ''"),
    ],
)
def test_what_may_be_asked_for(before: str | None, tier: str, refused: str) -> None:
    if not refused:
        storage().check(tier, before)
        return
    with pytest.raises(Invalid) as error:
        storage().check(tier, before)
    assert refused in error.value.message


def test_a_tier_above_the_largest_is_refused_and_who_has_it_keeps_it() -> None:
    rules = storage(volume_most="none")
    with pytest.raises(Invalid, match="available: none"):
        rules.check("small")
    assert rules.size_of(space("large")) == 65536 * MB


@pytest.mark.parametrize(
    ("given", "mode", "fix"), [(None, "embedded", "--mode single-host"), (None, "single-host", "spaces doctor")]
)
def test_where_there_are_no_volumes_it_says_what_to_do(given: None, mode: str, fix: str) -> None:
    rules = Storage(Settings.load({}, mode=mode), given)
    with pytest.raises(Invalid, match=fix):
        rules.check("small")
    assert rules.size_of(space("small")) == 0
    rules.discard(7)


@pytest.mark.parametrize(
    ("given", "tier", "sdk", "size"),
    [
        ({}, None, "gradio", 1024 * MB),
        ({}, None, "static", 0),
        ({}, "small", "static", 4096 * MB),
        ({"volume_mb": 0}, None, "gradio", 0),
        ({"volume_mb": 0}, "medium", "docker", 16384 * MB),
        ({"volume_small_mb": 2048}, "small", "docker", 2048 * MB),
    ],
)
def test_how_large_a_volume_is(given: dict[str, int], tier: str | None, sdk: str, size: int) -> None:
    assert storage(**given).size_of(space(tier, sdk)) == size


def test_a_volume_that_is_there_is_never_left_out() -> None:
    """The admin has switched the default off since: the data is still its owner's."""
    rules = storage(volume_mb=0)
    assert isinstance(rules.volumes, FakeVolumes)
    rules.volumes.attach(7, 512 * MB)
    assert rules.size_of(space()) == 512 * MB


@pytest.mark.parametrize(
    "given",
    [
        {"volume_most": "huge"},
        {"volume_mb": 8},
        {"volume_small_mb": 0},
        {"volume_small_mb": 512},
        {"volume_medium_mb": 70000},
        {"volume_mb": -1},
    ],
)
def test_settings_that_cannot_work_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(Invalid, match="volume_"):
        Settings.load({}, **given)


def test_sizes_in_words() -> None:
    assert [words(size) for size in (16 * MB, 1024 * MB, 1536 * MB, 65536 * MB)] == ["16 MB", "1 GB", "1.5 GB", "64 GB"]
