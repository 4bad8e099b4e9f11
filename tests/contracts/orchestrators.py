"""What the orchestrator contract needs of each implementation: a way to make apps that behave in named ways.

To add an implementation: write a World and name it in WORLDS of test_orchestrator.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import ClassVar, Protocol

from spaces_platform.ports import DeploymentSpec, Orchestrator, Resources
from tests.containers.harness import Place, place_on
from tests.fakes.orchestrator import FakeOrchestrator, Script
from tests.process import apps
from tests.process.harness import Machine, SystemClock, machine


class Behaviour(Enum):
    """How an app behaves."""

    SERVES = "prints `listening`, answers 200"
    EXITS_3 = "prints `one`, `two`, `three` and ends with code 3"
    EXITS_0 = "ends with code 0"
    DIES_BY_SIGNAL = "kills itself with signal 9"
    HANGS = "prints `hanging`, never listens"
    WRONG_PORT = "listens on 0.0.0.0, but on another port than its own"
    ERRORS = "answers 503 for ever"
    NEEDS_LOGIN = "answers 401"
    IGNORES_STOP = "answers 200 and ignores SIGTERM"
    EATS_MEMORY = "takes more memory than it may"


class World(Protocol):
    """One implementation, set up for tests."""

    @property
    def orchestrator(self) -> Orchestrator: ...

    @property
    def changes(self) -> list[int]:
        """Ids given to `changed`, in order."""

    def spec(self, behaviour: Behaviour) -> DeploymentSpec:
        """A deployment that was never used before."""

    def missing_artifact(self) -> DeploymentSpec:
        """One whose artifact does not exist."""

    def grace_is_over(self) -> None:
        """Called where a test waits for a grace period: an implementation with scripted time lets it pass."""


class FakeWorld:
    """The in-memory orchestrator."""

    SCRIPTS: ClassVar = {
        Behaviour.SERVES: Script(ready=True, lines=("listening",)),
        Behaviour.EXITS_3: Script(lines=("one", "two", "three"), exits=True, exit_code=3),
        Behaviour.EXITS_0: Script(exits=True, exit_code=0),
        Behaviour.DIES_BY_SIGNAL: Script(exits=True, exit_code=-9),
        Behaviour.HANGS: Script(lines=("hanging",)),
        Behaviour.WRONG_PORT: Script(listening=("0.0.0.0:17860",)),
        Behaviour.ERRORS: Script(probe="GET /: HTTP 503"),
        Behaviour.NEEDS_LOGIN: Script(ready=True),
        Behaviour.IGNORES_STOP: Script(ready=True, ignores_stop=True),
        Behaviour.EATS_MEMORY: Script(exits=True, exit_code=-9, out_of_memory=True),
    }

    def __init__(self) -> None:
        self.changes: list[int] = []
        self.behaviours: dict[int, Behaviour] = {}
        self.orchestrator = FakeOrchestrator(
            SystemClock(), self.changes.append, script=lambda spec: self.SCRIPTS[self.behaviours[spec.id]]
        )
        self.orchestrator.artifacts = {"there"}

    def spec(self, behaviour: Behaviour) -> DeploymentSpec:
        number = len(self.behaviours) + 1
        self.behaviours[number] = behaviour
        return DeploymentSpec(number, 1, "ada/app", "there", ("run",))

    def missing_artifact(self) -> DeploymentSpec:
        return DeploymentSpec(9000, 1, "ada/app", "missing", ("run",))

    def grace_is_over(self) -> None:
        self.orchestrator.kill_due()


SOURCES = {
    Behaviour.SERVES: apps.server(),
    Behaviour.EXITS_3: apps.exits(3, "one", "two", "three"),
    Behaviour.EXITS_0: apps.exits(0),
    Behaviour.DIES_BY_SIGNAL: "import os; os.kill(os.getpid(), 9)",
    Behaviour.HANGS: apps.HANG,
    Behaviour.WRONG_PORT: apps.server(port="0"),
    Behaviour.ERRORS: apps.server(code="503"),
    Behaviour.NEEDS_LOGIN: apps.server(code="401"),
    Behaviour.IGNORES_STOP: apps.IGNORES_TERM,
    Behaviour.EATS_MEMORY: apps.MEMORY_HOG,
}
LIMITS = Resources(cpus=1.0, memory=64 << 20, processes=64, disk=64 << 20, log_bytes=256 << 10)


class ProcessWorld:
    """Processes of this machine, at the best isolation it has."""

    def __init__(self, place: Machine) -> None:
        self.machine = place
        self.orchestrator = place.orchestrator()

    @property
    def changes(self) -> list[int]:
        return [number for _, number in self.machine.changes]

    def spec(self, behaviour: Behaviour) -> DeploymentSpec:
        return self.machine.spec(SOURCES[behaviour], resources=LIMITS)

    def missing_artifact(self) -> DeploymentSpec:
        return DeploymentSpec(9000, 1, "ada/app", "missing", ("run",))

    def grace_is_over(self) -> None:
        """Time passes by itself."""


class DockerWorld:
    """Containers of a real engine."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.orchestrator = place.orchestrator()

    @property
    def changes(self) -> list[int]:
        return [number for _, number in self.place.changes]

    def spec(self, behaviour: Behaviour) -> DeploymentSpec:
        return self.place.spec(SOURCES[behaviour], resources=LIMITS)

    def missing_artifact(self) -> DeploymentSpec:
        return DeploymentSpec(9000, 1, "ada/app", f"image:sha256:{'0' * 64}", ("run",))

    def grace_is_over(self) -> None:
        """Time passes by itself."""


@contextmanager
def docker_world(url: str) -> Iterator[World]:
    with place_on(url) as place:
        yield DockerWorld(place)


@contextmanager
def fake_world() -> Iterator[World]:
    yield FakeWorld()


@contextmanager
def process_world() -> Iterator[World]:
    with machine() as place:
        world = ProcessWorld(place)
        try:
            yield world
        finally:
            world.orchestrator.close(stop_all=True, grace=0)
