"""What the contract of volumes needs of each implementation: apps that write, read and stay, on its volumes.

To add an implementation: write a VolumeWorld and name it in test_volumes.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Protocol

from spaces_platform.adapters.docker.volumes import is_attached
from spaces_platform.ports import DeploymentSpec, Resources, RunStatus, Volumes
from tests.containers.harness import SMALL, Place, exited, gone, place_on, ready, text
from tests.fakes.orchestrator import FakeOrchestrator, Script
from tests.fakes.volumes import FakeVolumes
from tests.process import apps
from tests.process.harness import SystemClock, wait_for

MIB = 1 << 20
SECONDS = 60.0


class VolumeWorld(Protocol):
    """One implementation, set up for tests."""

    volumes: Volumes

    def write(self, space_id: int, word: str, size: int = 16 * MIB) -> None:
        """An app of the Space with a volume of this size writes the word at /data, and ends."""

    def read(self, space_id: int, size: int = 16 * MIB) -> str:
        """What an app of the Space reads there; empty where there is nothing."""

    def running(self, space_id: int, size: int = 16 * MIB) -> AbstractContextManager[None]:
        """Meanwhile an app of the Space runs that has the volume, and has ended afterwards."""


class FakeVolumeWorld:
    def __init__(self) -> None:
        clock = SystemClock()
        self.fake = FakeVolumes(clock)
        self.volumes: Volumes = self.fake
        self.orchestrator = FakeOrchestrator(clock, script=lambda _: Script(ready=True), volumes=self.fake)
        self.number = 0

    def write(self, space_id: int, word: str, size: int = 16 * MIB) -> None:
        with self.running(space_id, size):
            self.fake.volumes[space_id].data["word"] = word

    def read(self, space_id: int, size: int = 16 * MIB) -> str:
        with self.running(space_id, size):
            return self.fake.volumes[space_id].data.get("word", "")

    @contextmanager
    def running(self, space_id: int, size: int = 16 * MIB) -> Iterator[None]:
        self.number += 1
        spec = DeploymentSpec(self.number, space_id, "ada/app", "there", ("run",), resources=Resources(volume=size))
        self.orchestrator.start(spec)
        yield
        self.orchestrator.stop(spec.id)


class DockerVolumeWorld:
    """Containers of a real engine."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.orchestrator = place.orchestrator()
        self.volumes: Volumes = self.orchestrator.volumes

    def write(self, space_id: int, word: str, size: int = 16 * MIB) -> None:
        self._run(f"open('/data/word', 'w').write({word!r})", space_id, size)

    def read(self, space_id: int, size: int = 16 * MIB) -> str:
        source = "import os\nprint(open('/data/word').read() if os.path.exists('/data/word') else '')"
        return self._run(source, space_id, size)

    def _run(self, source: str, space_id: int, size: int) -> str:
        spec = self.place.spec(source, space_id=space_id, resources=replace(SMALL, volume=size))
        self.orchestrator.start(spec)
        exited(self.orchestrator, spec.id)
        said = text(self.orchestrator, spec.id)
        self._end(spec.id, space_id)
        return said

    @contextmanager
    def running(self, space_id: int, size: int = 16 * MIB) -> Iterator[None]:
        spec = self.place.spec(apps.server(), space_id=space_id, resources=replace(SMALL, volume=size))
        self.orchestrator.start(spec)
        ready(self.orchestrator, spec.id)
        yield
        self._end(spec.id, space_id)

    def _end(self, number: int, space_id: int) -> None:
        self.orchestrator.stop(number)
        gone(self.orchestrator, number)
        self.orchestrator.forget(number)
        wait_for("its container is gone", lambda: number not in self.place.containers(), SECONDS)
        if not any(seen.status is not RunStatus.EXITED for seen in self.orchestrator.observe().values()):
            image = self.place.root / f"containers/volumes/{space_id}/disk.img"
            wait_for("the kernel lets go of its volume", lambda: not is_attached(image), SECONDS)


@contextmanager
def docker_volumes(url: str) -> Iterator[VolumeWorld]:
    with place_on(url) as place:
        yield DockerVolumeWorld(place)


@contextmanager
def fake_volumes() -> Iterator[VolumeWorld]:
    yield FakeVolumeWorld()
