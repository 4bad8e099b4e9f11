"""The contract of the Orchestrator port, held to every implementation alike."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace

import pytest

from spaces_platform.errors import Invalid, Unavailable
from spaces_platform.ports import Observation, RunStatus
from tests.contracts.orchestrators import Behaviour, FakeWorld, World, docker_world, fake_world, process_world
from tests.process.harness import wait_for

WORLDS: dict[str, Callable[[], AbstractContextManager[World]]] = {"fake": fake_world, "process": process_world}
SLOWEST = 40.0
"""Seconds that the slowest implementation may take for anything."""


@pytest.fixture(params=[*sorted(WORLDS), pytest.param("docker", marks=pytest.mark.containers)])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    make = WORLDS.get(request.param)
    url = "" if make is not None else request.getfixturevalue("engine_url")
    with make() if make is not None else docker_world(url) as made:
        yield made


def started(world: World, behaviour: Behaviour, status: RunStatus) -> tuple[int, Observation]:
    """Start an app and wait until it has a status."""
    spec = world.spec(behaviour)
    world.orchestrator.start(spec)

    def look() -> Observation | None:
        seen = world.orchestrator.observe()[spec.id]
        return seen if seen.status is status else None

    return spec.id, wait_for(f"{behaviour} is {status}", look, SLOWEST)


def test_an_app_that_answers_becomes_ready_and_this_is_told(world: World) -> None:
    number, seen = started(world, Behaviour.SERVES, RunStatus.READY)
    assert re.fullmatch(r"(127\.0\.0\.1|10\.\d+\.\d+\.\d+):\d+", str(seen.endpoint))
    assert seen.started_at is not None
    assert seen.ready_at is not None
    assert seen.ready_at >= seen.started_at
    assert seen.isolation
    wait_for("the change was told", lambda: number in world.changes)


def test_any_status_below_500_is_an_answer(world: World) -> None:
    started(world, Behaviour.NEEDS_LOGIN, RunStatus.READY)


def test_an_app_that_answers_5xx_is_not_ready_and_says_why(world: World) -> None:
    number, _ = started(world, Behaviour.ERRORS, RunStatus.STARTING)
    seen = wait_for("the probe", lambda: ("503" in (s := world.orchestrator.observe()[number]).probe) and s)
    assert seen.status is RunStatus.STARTING


def test_the_endpoint_is_known_from_the_start_on(world: World) -> None:
    spec = world.spec(Behaviour.HANGS)
    world.orchestrator.start(spec)
    seen = world.orchestrator.observe()[spec.id]
    assert seen.status is RunStatus.STARTING
    assert seen.endpoint is not None
    assert seen.ready_at is None


def test_starting_twice_is_starting_once(world: World) -> None:
    spec = world.spec(Behaviour.SERVES)
    world.orchestrator.start(spec)
    before = world.orchestrator.observe()[spec.id]
    world.orchestrator.start(spec)
    after = world.orchestrator.observe()[spec.id]
    assert (before.endpoint, before.started_at) == (after.endpoint, after.started_at)
    wait_for("the output", lambda: world.orchestrator.logs(spec.id))
    assert [line.text for line in world.orchestrator.logs(spec.id)] == ["listening"]


def test_two_deployments_have_two_endpoints(world: World) -> None:
    first, second = world.spec(Behaviour.HANGS), world.spec(Behaviour.HANGS)
    world.orchestrator.start(first)
    world.orchestrator.start(second)
    seen = world.orchestrator.observe()
    assert seen[first.id].endpoint != seen[second.id].endpoint


@pytest.mark.parametrize(
    ("behaviour", "code"), [(Behaviour.EXITS_0, 0), (Behaviour.EXITS_3, 3), (Behaviour.DIES_BY_SIGNAL, -9)]
)
def test_an_end_is_seen_with_its_code_and_told(world: World, behaviour: Behaviour, code: int) -> None:
    number, seen = started(world, behaviour, RunStatus.EXITED)
    assert seen.exit_code == code
    assert not seen.out_of_memory
    wait_for("the change was told", lambda: number in world.changes)


def test_running_out_of_memory_is_named(world: World) -> None:
    _, seen = started(world, Behaviour.EATS_MEMORY, RunStatus.EXITED)
    assert seen.out_of_memory


def test_an_ended_deployment_stays_until_it_is_stopped(world: World) -> None:
    number, _ = started(world, Behaviour.EXITS_3, RunStatus.EXITED)
    assert number in world.orchestrator.observe()
    world.orchestrator.stop(number)
    assert number not in world.orchestrator.observe()


def test_an_ended_deployment_is_not_started_again(world: World) -> None:
    spec = world.spec(Behaviour.EXITS_3)
    world.orchestrator.start(spec)
    wait_for("the end", lambda: world.orchestrator.observe()[spec.id].status is RunStatus.EXITED)
    world.orchestrator.start(spec)
    assert world.orchestrator.observe()[spec.id].exit_code == 3


def test_a_wrong_port_is_named(world: World) -> None:
    number, _ = started(world, Behaviour.WRONG_PORT, RunStatus.STARTING)
    seen = wait_for("the port is seen", lambda: bool((s := world.orchestrator.observe()[number]).listening) and s)
    assert [address.rpartition(":")[0] for address in seen.listening] == ["0.0.0.0"]
    assert str(seen.endpoint).rpartition(":")[2] not in seen.listening[0]
    assert seen.status is RunStatus.STARTING
    wait_for("the change was told", lambda: number in world.changes)


def test_stop_ends_a_running_app_and_keeps_its_log(world: World) -> None:
    number, _ = started(world, Behaviour.SERVES, RunStatus.READY)
    world.orchestrator.stop(number)
    wait_for("it is gone", lambda: number not in world.orchestrator.observe())
    assert [line.text for line in world.orchestrator.logs(number)] == ["listening"]


def test_an_app_that_ignores_the_request_is_ended_after_the_grace(world: World) -> None:
    number, _ = started(world, Behaviour.IGNORES_STOP, RunStatus.READY)
    world.orchestrator.stop(number, grace=0.4)
    assert number in world.orchestrator.observe()
    world.grace_is_over()
    wait_for("it is gone", lambda: number not in world.orchestrator.observe(), 60)


def test_stopping_twice_and_stopping_the_absent_is_success(world: World) -> None:
    number, _ = started(world, Behaviour.SERVES, RunStatus.READY)
    world.orchestrator.stop(number)
    world.orchestrator.stop(number)
    wait_for("it is gone", lambda: number not in world.orchestrator.observe())
    world.orchestrator.stop(number)
    world.orchestrator.stop(4711)


def test_lines_are_numbered_from_one_and_read_from_any_line_on(world: World) -> None:
    number, _ = started(world, Behaviour.EXITS_3, RunStatus.EXITED)
    lines = world.orchestrator.logs(number)
    assert [(line.n, line.text) for line in lines] == [(1, "one"), (2, "two"), (3, "three")]
    assert [line.text for line in world.orchestrator.logs(number, after=2)] == ["three"]
    assert not world.orchestrator.logs(number, after=3)
    assert not world.orchestrator.logs(4711)


def test_forget_removes_the_log_and_the_deployment(world: World) -> None:
    number, _ = started(world, Behaviour.EXITS_3, RunStatus.EXITED)
    world.orchestrator.stop(number)
    world.orchestrator.forget(number)
    assert not world.orchestrator.logs(number)
    assert number not in world.orchestrator.observe()
    world.orchestrator.forget(number)


def test_forgetting_a_running_app_ends_it(world: World) -> None:
    number, _ = started(world, Behaviour.IGNORES_STOP, RunStatus.READY)
    world.orchestrator.forget(number)
    wait_for("it is gone", lambda: number not in world.orchestrator.observe())


def test_what_can_never_start_is_invalid_and_leaves_nothing(world: World) -> None:
    empty = replace(world.spec(Behaviour.SERVES), argv=())
    for spec in (empty, world.missing_artifact()):
        with pytest.raises(Invalid):
            world.orchestrator.start(spec)
        assert spec.id not in world.orchestrator.observe()
        assert not world.orchestrator.logs(spec.id)


def test_no_method_waits_for_an_app(world: World) -> None:
    number, _ = started(world, Behaviour.IGNORES_STOP, RunStatus.READY)
    began = time.monotonic()
    world.orchestrator.start(world.spec(Behaviour.HANGS))
    world.orchestrator.observe()
    world.orchestrator.logs(number)
    world.orchestrator.stop(number, grace=5)
    assert time.monotonic() - began < 3


def test_the_fake_fails_on_command_and_then_works() -> None:
    world = FakeWorld()
    world.orchestrator.fail_next("start", times=2)
    spec = world.spec(Behaviour.SERVES)
    for _ in range(2):
        with pytest.raises(Unavailable):
            world.orchestrator.start(spec)
    assert not world.orchestrator.observe()
    world.orchestrator.start(spec)
    assert world.orchestrator.observe()[spec.id].status is RunStatus.READY
    assert [call for call in world.orchestrator.calls if call[0] == "start"] == [("start", 1)] * 3


def test_the_fake_can_be_restarted_under_its_apps() -> None:
    world = FakeWorld()
    spec = world.spec(Behaviour.SERVES)
    world.orchestrator.start(spec)
    world.orchestrator.restart()
    seen = world.orchestrator.observe()[spec.id]
    assert (seen.status, seen.exit_code) == (RunStatus.EXITED, None)
