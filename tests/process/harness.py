"""Runs the process orchestrator on throw-away directories. Waits are on conditions, each with a deadline."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

from spaces_platform.adapters.process import LocalArtifact, ProcessOrchestrator, ProcessSettings
from spaces_platform.ports import DeploymentSpec, Observation, Resources, RunStatus

T = TypeVar("T")
PYTHON = "{PLATFORM_PYTHON}"
STRETCH = max(1.0, float(os.environ.get("TEST_STRETCH", "1")))
"""Every wait here may be so often as long: on a machine that is emulated (tests/machines)."""
SMALL = Resources(cpus=1.0, memory=256 << 20, processes=64, disk=64 << 20, log_bytes=256 << 10)


class SystemClock:
    """Wall-clock time."""

    def now(self) -> datetime:
        return datetime.now(UTC)


def wait_for(what: str, look: Callable[[], T | Literal[False] | None], seconds: float = 60.0) -> T:
    """Until `look()` is true; its value. Fails at the deadline (stretched)."""
    seconds *= STRETCH
    deadline = time.monotonic() + seconds
    while True:
        value = look()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds} seconds; last seen {value!r}")
        threading.Event().wait(0.01)


class Machine:
    """One data directory, on which orchestrators come and go."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.root.chmod(0o755)
        self.changes: list[tuple[float, int]] = []
        self._number = 0
        self._made: list[ProcessOrchestrator] = []
        self.hub_dir: Path | None = None
        """What all apps have preloaded."""

    def orchestrator(self, settings: ProcessSettings | None = None) -> ProcessOrchestrator:
        made = ProcessOrchestrator(
            self.root / "run",
            resolve_artifact=self.resolve,
            clock=SystemClock(),
            changed=lambda number: self.changes.append((time.monotonic(), number)),
            settings=settings or SETTINGS,
        )
        self._made.append(made)
        return made

    def clean(self) -> None:
        """End all orchestrators, and all that ran under any of them."""
        for made in self._made:
            made.close()
        self.orchestrator().close(stop_all=True, grace=0)

    def resolve(self, ref: str) -> LocalArtifact:
        app = self.root / "apps" / ref
        if not app.is_dir():
            raise LookupError(ref)
        return LocalArtifact(app, hub_dir=self.hub_dir)

    def spec(
        self,
        source: str,
        *,
        space_id: int = 1,
        env: Mapping[str, str] | None = None,
        resources: Resources = SMALL,
        base_path: str = "/",
    ) -> DeploymentSpec:
        """A deployment of an app with one file."""
        self._number += 1
        app = self.root / "apps" / f"app-{self._number}"
        app.mkdir(parents=True)
        (app / "app.py").write_text(source)
        return DeploymentSpec(
            id=self._number,
            space_id=space_id,
            space=f"ada/app-{self._number}",
            artifact_ref=app.name,
            argv=(PYTHON, "-S", "app.py"),
            env=env or {},
            base_path=base_path,
            resources=resources,
        )


SETTINGS = ProcessSettings(listening_after=0.4, port_first=23000, port_last=23999, http_timeout=2.0)


@contextmanager
def machine() -> Iterator[Machine]:
    """A data directory that other users may pass through, gone at the end with all that ran in it."""
    with tempfile.TemporaryDirectory(prefix="process-test-", ignore_cleanup_errors=True) as place:
        found = Machine(Path(place))
        try:
            yield found
        finally:
            found.clean()


def status(orchestrator: ProcessOrchestrator, number: int) -> Observation | None:
    return orchestrator.observe().get(number)


def ready(orchestrator: ProcessOrchestrator, number: int, seconds: float = 10.0) -> Observation:
    """The observation once READY; an early end is an error that shows the log."""

    def look() -> Observation | None:
        seen = orchestrator.observe()[number]
        if seen.status is RunStatus.EXITED:
            raise AssertionError(f"ended: {seen}\n" + "\n".join(line.text for line in orchestrator.logs(number)))
        return seen if seen.status is RunStatus.READY else None

    return wait_for(f"deployment {number} is ready", look, seconds)


def exited(orchestrator: ProcessOrchestrator, number: int, seconds: float = 10.0) -> Observation:
    def look() -> Observation | None:
        seen = orchestrator.observe()[number]
        return seen if seen.status is RunStatus.EXITED else None

    return wait_for(f"deployment {number} has ended", look, seconds)


def text(orchestrator: ProcessOrchestrator, number: int) -> str:
    return "\n".join(line.text for line in orchestrator.logs(number))


def processes_with(mark: str) -> list[int]:
    """Live processes whose command line or environment holds a text, this one left out."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                data = Path(f"/proc/{name}/cmdline").read_bytes() + Path(f"/proc/{name}/environ").read_bytes()
                if mark.encode() in data and "Z" not in Path(f"/proc/{name}/stat").read_text().rpartition(")")[2][:3]:
                    found.append(int(name))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
    return found
