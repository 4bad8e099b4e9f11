"""A frozen app is held by the kernel, ends when it is to end, and serves whatever thaws it. The Freezer port."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import docker
import pytest

from spaces_platform.adapters.docker import DockerOrchestrator, cgroups
from spaces_platform.ports import DeploymentSpec, RunStatus
from tests.containers.harness import Place, exited, gone, ready, text
from tests.containers.test_run_restarts import get
from tests.process import apps
from tests.process.harness import wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the freezer is root's")
SECONDS = 60.0
SAYS_GOODBYE = apps.server("""
import signal
def bye(*_):
    print("goodbye", flush=True)
    os._exit(0)
signal.signal(signal.SIGTERM, bye)
""")


@pytest.fixture
def running(place: Place) -> DockerOrchestrator:
    return place.orchestrator()


@pytest.fixture
def engine(engine_url: str) -> docker.APIClient:
    with docker.APIClient(base_url=engine_url, version="auto") as client:
        yield client


def frozen(place: Place, running: DockerOrchestrator, source: str = SAYS_GOODBYE) -> tuple[DeploymentSpec, str]:
    """A frozen app and its container."""
    spec = place.spec(source)
    running.start(spec)
    ready(running, spec.id)
    running.freeze(spec.id)
    assert running.observe()[spec.id].status is RunStatus.FROZEN
    return spec, str(place.containers()[spec.id]["Id"])


def state(place: Place, spec: DeploymentSpec) -> bool | None:
    found = place.containers()[spec.id]
    return cgroups.is_frozen(found["State"]["Pid"], found["Id"])


def test_the_kernel_holds_it_and_the_engine_need_not_know(place: Place, running: DockerOrchestrator) -> None:
    spec, _ = frozen(place, running)
    assert state(place, spec) is True
    assert place.containers()[spec.id]["State"]["Paused"] is False
    running.freeze(spec.id)
    running.thaw(spec.id)
    running.thaw(spec.id)
    assert state(place, spec) is False
    assert get(running.observe()[spec.id].endpoint) == "ok"


@pytest.mark.parametrize("grace", [20.0, 0.0])
def test_a_frozen_app_is_told_to_end_and_ends(place: Place, running: DockerOrchestrator, grace: float) -> None:
    spec, _ = frozen(place, running)
    running.stop(spec.id, grace=grace)
    gone(running, spec.id)
    assert ("goodbye" in text(running, spec.id)) is (grace > 0)
    wait_for("its container is gone", lambda: not place.containers(), SECONDS)


def test_one_that_ignores_it_ends_after_the_grace(place: Place, running: DockerOrchestrator) -> None:
    spec, _ = frozen(place, running, apps.IGNORES_TERM)
    running.stop(spec.id, grace=0.3)
    gone(running, spec.id)


def test_it_can_be_forgotten(place: Place, running: DockerOrchestrator) -> None:
    frozen(place, running)
    (number,) = running.observe()
    running.forget(number)
    wait_for("nothing is left", lambda: not place.containers() and not running.observe(), SECONDS)


@pytest.mark.parametrize(
    "end",
    [
        lambda engine, container: engine.kill(container, "SIGTERM"),
        lambda engine, container: engine.stop(container, timeout=5),
        lambda engine, container: engine.remove_container(container, force=True),
    ],
    ids=["kill", "stop", "rm -f"],
)
def test_whoever_ends_its_container_by_hand_is_obeyed(
    place: Place, running: DockerOrchestrator, engine: docker.APIClient, end: Callable[[docker.APIClient, str], None]
) -> None:
    spec, container = frozen(place, running)
    end(engine, container)
    exited(running, spec.id)


def test_what_somebody_paused_by_the_engine_is_thawed_by_it(
    place: Place, running: DockerOrchestrator, engine: docker.APIClient
) -> None:
    spec = place.spec(SAYS_GOODBYE)
    running.start(spec)
    endpoint = ready(running, spec.id).endpoint
    engine.pause(place.containers()[spec.id]["Id"])
    wait_for("that is seen", lambda: running.observe()[spec.id].status is RunStatus.FROZEN, SECONDS)
    running.thaw(spec.id)
    assert place.containers()[spec.id]["State"]["Paused"] is False
    assert get(endpoint) == "ok"


def test_where_the_groups_cannot_be_seen_the_engine_freezes(
    place: Place, running: DockerOrchestrator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cgroups, "ROOT", tmp_path)
    spec, _ = frozen(place, running)
    assert place.containers()[spec.id]["State"]["Paused"] is True
    running.close()
    second = place.orchestrator()
    assert second.observe()[spec.id].status is RunStatus.FROZEN
    second.thaw(spec.id)
    assert place.containers()[spec.id]["State"]["Paused"] is False
    assert get(second.observe()[spec.id].endpoint) == "ok"
    second.freeze(spec.id)
    second.stop(spec.id, grace=20.0)
    gone(second, spec.id)
    assert "goodbye" in text(second, spec.id)


def test_it_can_be_removed_by_hand_while_no_platform_is_there(
    place: Place, running: DockerOrchestrator, engine: docker.APIClient
) -> None:
    _, container = frozen(place, running)
    running.close()
    engine.remove_container(container, force=True)
    assert not place.containers()
