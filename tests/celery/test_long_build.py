"""T31 at full size: a build that lasts longer than Redis waits for its acknowledgement ends once.

Only when asked for, since each test lasts as long as its build: TEST_BUILD_SECONDS says how long that is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spaces_platform.adapters.celery_app import SOFT_MARGIN
from spaces_platform.models import Build
from spaces_platform.settings import Settings
from tests.celery.farm import Farm
from tests.services.redis import RedisServer

LENGTH = int(os.environ.get("TEST_BUILD_SECONDS", "0"))
USUAL = 3600
"""Seconds after which Redis gives a message again, where a user of Celery says nothing else."""
DEFAULT_LIMIT = Settings().build_seconds + SOFT_MARGIN
"""Seconds after which Celery ends a build that did not end by itself, where an admin says nothing else."""
MARGIN = 120
"""Seconds that others on this machine may cost."""
BESIDE = 6
"""Builds that are pushed while the long one goes on."""

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(LENGTH + 2 * MARGIN),
    pytest.mark.skipif(
        not LENGTH,
        reason="each lasts an hour; TEST_BUILD_SECONDS=3700 asks for it: make soak ARGS='-n 3 tests/celery'",
    ),
]


@pytest.fixture
def farm(tmp_path: Path, redis_server: RedisServer, request: pytest.FixtureRequest) -> Iterator[Farm]:
    """With the longest build that the test's parameter allows."""
    made = Farm(tmp_path, redis_server.url, build_seconds=request.param)
    yield made
    made.close()


def build_among_others(farm: Farm, visibility: int | None) -> Build:
    """The row of a build of LENGTH, done by one of two workers, once it and those beside it have ended."""
    for _ in range(2):
        farm.work(visibility=visibility)
    farm.space("long", seconds=LENGTH)
    farm.until(farm.running)
    for n in range(BESIDE):
        time.sleep(LENGTH / (BESIDE + 2))
        farm.space(f"short{n}", seconds=0.5)
    long, *others = farm.wait(1 + BESIDE, LENGTH + MARGIN, every=1.0)
    assert {b.status for b in others} == {"SUCCEEDED"}
    assert farm.builder.notes("begin")[long.plan_id] == 1
    assert all(worker.poll() is None for worker in farm.workers), "a worker ended"
    farm.assert_each_ended_once()
    return long


@pytest.mark.parametrize("farm", [LENGTH], indirect=True, ids=["limit as long as the build"])
def test_its_message_is_given_again_and_it_is_done_once(farm: Farm) -> None:
    long = build_among_others(farm, USUAL if LENGTH > USUAL else LENGTH // 2)
    assert (long.status, long.tries) == ("SUCCEEDED", 1)
    assert (long.ended_at or 0) - (long.started_at or 0) >= LENGTH
    assert 2 <= max(farm.received().values()) <= 8, "the message was not given again, or again and again"


@pytest.mark.parametrize("farm", [LENGTH], indirect=True, ids=["limit as long as the build"])
def test_with_the_platforms_own_timeout_its_message_is_given_once(farm: Farm) -> None:
    long = build_among_others(farm, None)
    assert (long.status, long.tries) == ("SUCCEEDED", 1)
    assert set(farm.received().values()) == {1}


@pytest.mark.skipif(LENGTH < DEFAULT_LIMIT + MARGIN, reason=f"shorter than the default limit, {DEFAULT_LIMIT} s")
@pytest.mark.parametrize("farm", [Settings().build_seconds], indirect=True, ids=["default limit"])
def test_the_default_limit_ends_it_once(farm: Farm) -> None:
    long = build_among_others(farm, None)
    assert (long.status, long.tries) == ("FAILED", 1)
    lasted = (long.ended_at or 0) - (long.started_at or 0)
    assert DEFAULT_LIMIT - 1 <= lasted <= DEFAULT_LIMIT + MARGIN
