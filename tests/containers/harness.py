"""Runs the Docker orchestrator on throw-away directories. Waits are on conditions, each with a deadline."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from spaces_platform.adapters.docker import DockerOrchestrator, DockerSettings, cgroups
from spaces_platform.adapters.docker.engine import Engine, EngineFacts
from spaces_platform.adapters.docker.network import INSTANCE
from spaces_platform.adapters.docker.settings import instance_of
from spaces_platform.adapters.docker.spec import DEPLOYMENT
from spaces_platform.ports import DeploymentSpec, Observation, Resources, RunStatus
from tests.process.harness import SystemClock, wait_for
from tests.services.engine import IMAGE

SMALL = Resources(cpus=1.0, memory=256 << 20, processes=64, disk=64 << 20, log_bytes=256 << 10)
START_SECONDS = 40.0
"""How long an app may take to answer here: the engine of a busy machine is slow."""


class Place:
    """One data directory on one engine, on which orchestrators come and go."""

    def __init__(self, root: Path, url: str, number: int) -> None:
        self.root, self.url = root, url
        self.settings = DockerSettings(url=url, listening_after=0.4, http_timeout=2.0, subnets="10.213.0.0/16")
        self.changes: list[tuple[float, int]] = []
        self._number = number
        self._made: list[DockerOrchestrator] = []
        self.instance = instance_of(root / "containers")
        self.image = image_id(url)

    def orchestrator(self, **settings: Any) -> DockerOrchestrator:
        made = DockerOrchestrator(
            self.root / "containers",
            clock=SystemClock(),
            changed=lambda number: self.changes.append((time.monotonic(), number)),
            settings=replace(self.settings, **settings),
        )
        self._made.append(made)
        return made

    def containers(self) -> dict[int, dict[str, Any]]:
        """Deployment -> what the engine says of its container, whatever its state."""
        import docker

        client = docker.APIClient(base_url=self.url, version="auto")
        try:
            label = f"{INSTANCE}={self.instance}"
            found = {}
            for row in client.containers(all=True, filters={"label": label}):
                with suppress(docker.errors.NotFound):  # removed since it was listed
                    found[int(row["Labels"][DEPLOYMENT])] = client.inspect_container(row["Id"])
            return found
        finally:
            client.close()

    def facts(self) -> EngineFacts:
        engine = Engine(self.url)
        try:
            return engine.facts()
        finally:
            engine.close()

    def cgroup(self, deployment: int, controller: str) -> Path:
        """The container's control group, of version 1 or 2."""
        pid = self.containers()[deployment]["State"]["Pid"]
        groups = cgroups.group_paths(Path(f"/proc/{pid}/cgroup").read_text())
        if controller in groups:
            return cgroups.ROOT / controller / groups[controller].lstrip("/")
        return cgroups.ROOT / groups[""].lstrip("/")

    def members(self, deployment: int) -> list[int]:
        """Processes in the container's control group, as the host numbers them."""
        return [int(word) for word in (self.cgroup(deployment, "pids") / "cgroup.procs").read_text().split()]

    def clean(self) -> None:
        """End all orchestrators, and remove all that any of them made."""
        for made in self._made:
            made.close()
        self.orchestrator(fence=False, disks=False).close(stop_all=True)

    def spec(
        self,
        source: str = "",
        *,
        space_id: int = 1,
        env: Mapping[str, str] | None = None,
        resources: Resources = SMALL,
        **more: Any,
    ) -> DeploymentSpec:
        """A deployment of an app that is one text of Python."""
        self._number += 1
        argv = ("python3", "-S", "-c", source)
        return replace(
            DeploymentSpec(
                id=self._number, space_id=space_id, space=f"ada/app-{self._number}", artifact_ref=f"image:{self.image}",
                argv=argv, env=env or {}, resources=resources,
            ),
            **more,
        )  # fmt: skip


def image_id(url: str, image: str = IMAGE) -> str:
    import docker

    client = docker.APIClient(base_url=url, version="auto")
    try:
        return str(client.inspect_image(image)["Id"])
    finally:
        client.close()


@contextmanager
def place_on(url: str, number: int = 0) -> Iterator[Place]:
    """A data directory, gone at the end with all that ran in it."""
    with tempfile.TemporaryDirectory(prefix="docker-test-", ignore_cleanup_errors=True) as folder:
        found = Place(Path(folder), url, number)
        try:
            yield found
        finally:
            found.clean()


def ready(orchestrator: DockerOrchestrator, number: int, seconds: float = START_SECONDS) -> Observation:
    """The observation once READY; an early end is an error that shows the log."""

    def look() -> Observation | None:
        seen = orchestrator.observe()[number]
        if seen.status is RunStatus.EXITED:
            raise AssertionError(f"ended: {seen}\n{text(orchestrator, number)}")
        return seen if seen.status is RunStatus.READY else None

    return wait_for(f"deployment {number} is ready", look, seconds)


def exited(orchestrator: DockerOrchestrator, number: int, seconds: float = START_SECONDS) -> Observation:
    def look() -> Observation | None:
        seen = orchestrator.observe()[number]
        return seen if seen.status is RunStatus.EXITED else None

    return wait_for(f"deployment {number} has ended", look, seconds)


def text(orchestrator: DockerOrchestrator, number: int) -> str:
    return "\n".join(line.text for line in orchestrator.logs(number))


def ran(place: Place, orchestrator: DockerOrchestrator, source: str, **more: Any) -> str:
    """The output of an app that ends by itself."""
    spec = place.spec(source, **more)
    orchestrator.start(spec)
    exited(orchestrator, spec.id)
    return text(orchestrator, spec.id)


def alive(pids: list[int]) -> list[int]:
    """Those that still are: zombies are not."""
    found = []
    for pid in pids:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def gone(orchestrator: DockerOrchestrator, number: int, seconds: float = START_SECONDS) -> None:
    wait_for(f"deployment {number} is gone", lambda: number not in orchestrator.observe(), seconds)
