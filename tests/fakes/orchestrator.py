"""A full Orchestrator and Freezer in memory: fails on command, and tests script readiness, output and ends.

It keeps the whole contract of the port (tests/contracts/test_orchestrator.py runs on it too), so that what is tested
on it holds for the real ones. Time comes from the clock it is given; nothing happens by itself except what
`script` says.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from spaces_platform.errors import Invalid, Unavailable
from spaces_platform.ports import Clock, DeploymentSpec, LogLine, Observation, RunStatus
from tests.fakes.volumes import FakeVolumes


@dataclass(frozen=True, slots=True)
class Script:
    """What an app does as soon as it is started; every field may also be brought about later by a method."""

    ready: bool = False
    lines: tuple[str, ...] = ()
    probe: str = "port: connection refused"
    listening: tuple[str, ...] = ()
    exit_code: int | None = None
    """Ends at once with this code, where `exits`."""
    exits: bool = False
    out_of_memory: bool = False
    hindrance: str = ""
    """Of one that exits: why the machine could not run it, as Observation has it."""
    memory: int = 100 << 20
    """Bytes it holds."""
    ignores_stop: bool = False
    """Stays after stop() until `kill_due()`, as an app that ignores SIGTERM stays until its grace is over."""


@dataclass(slots=True)
class _App:
    spec: DeploymentSpec
    seen: Observation
    script: Script
    lines: list[LogLine] = field(default_factory=list)
    stopping: bool = False
    gone: bool = False


class FakeOrchestrator:
    """In-memory orchestrator. `calls` records (method, deployment id) in order, refused calls included."""

    def __init__(
        self,
        clock: Clock,
        changed: Callable[[int], None] = lambda _: None,
        *,
        script: Callable[[DeploymentSpec], Script] = lambda _: Script(),
        volumes: FakeVolumes | None = None,
    ) -> None:
        """`volumes`: what Spaces that ask for one have at /data."""
        self.clock, self.changed, self.script = clock, changed, script
        self.volumes = volumes
        if volumes is not None:
            volumes.in_use = self._uses_volume
        self.calls: list[tuple[str, int]] = []
        self.specs: dict[int, DeploymentSpec] = {}
        """Every spec that was ever started, by deployment."""
        self.artifacts: set[str] | None = None
        """References that exist; None for all."""
        self._apps: dict[int, _App] = {}
        self._failures: dict[str, deque[Exception]] = {}
        self._port = 20000
        self._lock = threading.RLock()

    # --- the port -----------------------------------------------------------------------------------------------------
    def start(self, spec: DeploymentSpec) -> None:
        with self._lock:
            self._called("start", spec.id)
            if spec.id in self._apps:
                return
            if not spec.argv or not spec.argv[0]:
                raise Invalid(f"deployment {spec.id} of {spec.space} has no command to run; set one in its plan")
            if self.artifacts is not None and spec.artifact_ref not in self.artifacts:
                raise Invalid(f"{spec.space}: artifact {spec.artifact_ref} is not there; build it again")
            if self.volumes is not None and spec.resources.volume:
                self.volumes.attach(spec.space_id, spec.resources.volume)
            self._port += 1
            script = self.script(spec)
            seen = Observation(
                RunStatus.STARTING,
                endpoint=f"127.0.0.1:{self._port}",
                started_at=self.clock.now(),
                probe=script.probe,
                listening=script.listening,
                isolation="fake",
            )
            self.specs[spec.id] = spec
            self._apps[spec.id] = _App(spec, seen, script)
        for line in script.lines:
            self.output(spec.id, line)
        if script.listening:
            self.changed(spec.id)
        if script.ready:
            self.make_ready(spec.id)
        if script.exits:
            self.exit(spec.id, script.exit_code, out_of_memory=script.out_of_memory, hindrance=script.hindrance)

    def observe(self) -> Mapping[int, Observation]:
        with self._lock:
            self._called("observe", 0)
            return {number: app.seen for number, app in self._apps.items() if not app.gone}

    def logs(self, deployment_id: int, after: int = 0) -> Sequence[LogLine]:
        with self._lock:
            self._called("logs", deployment_id)
            app = self._apps.get(deployment_id)
            return [line for line in app.lines if line.n > after] if app else []

    def stop(self, deployment_id: int, grace: float = 10.0) -> None:
        with self._lock:
            self._called("stop", deployment_id)
            app = self._apps.get(deployment_id)
            if app is None or app.gone:
                return
            if app.seen.status is RunStatus.EXITED:
                app.gone = True
                return
            app.stopping = True
            if app.script.ignores_stop and grace > 0:
                return
        self.exit(deployment_id, -15)

    def forget(self, deployment_id: int) -> None:
        with self._lock:
            self._called("forget", deployment_id)
            app = self._apps.get(deployment_id)
            if app is not None and app.seen.status is not RunStatus.EXITED:
                self.exit(deployment_id, -9)
            self._apps.pop(deployment_id, None)

    def close(self) -> None:
        """Nothing is held: all of it is in memory, and outlives the platform that uses it."""

    # --- the Freezer --------------------------------------------------------------------------------------------------
    def freeze(self, deployment_id: int) -> None:
        with self._lock:
            self._called("freeze", deployment_id)
            self._change(deployment_id, RunStatus.READY, RunStatus.FROZEN)

    def thaw(self, deployment_id: int) -> None:
        with self._lock:
            self._called("thaw", deployment_id)
            self._change(deployment_id, RunStatus.FROZEN, RunStatus.READY)

    def memory_in_use(self, deployment_id: int) -> int:
        with self._lock:
            self._called("memory_in_use", deployment_id)
            app = self._apps.get(deployment_id)
            return app.script.memory if app is not None and app.seen.status is not RunStatus.EXITED else 0

    def _change(self, deployment_id: int, before: RunStatus, after: RunStatus) -> None:
        app = self._apps.get(deployment_id)
        if app is not None and app.seen.status is before and not app.stopping:
            app.seen = replace(app.seen, status=after)

    # --- what tests bring about ---------------------------------------------------------------------------------------

    def fail_next(self, method: str, error: Exception | None = None, times: int = 1) -> None:
        """The next `times` calls of a method raise `error` (Unavailable by default) and do nothing."""
        failures = self._failures.setdefault(method, deque())
        failures.extend([error or Unavailable(f"{method} was told to fail")] * times)

    def make_ready(self, deployment_id: int) -> None:
        """The app answers its probe."""
        with self._lock:
            app = self._running(deployment_id)
            at = self.clock.now()
            app.seen = replace(app.seen, status=RunStatus.READY, ready_at=at, probe="GET /: HTTP 200", listening=())
        self.changed(deployment_id)

    def exit(self, deployment_id: int, code: int | None, *, out_of_memory: bool = False, hindrance: str = "") -> None:
        """The app ends; None for an end that nobody saw."""
        with self._lock:
            app = self._running(deployment_id)
            app.seen = replace(
                app.seen,
                status=RunStatus.EXITED,
                exit_code=code,
                out_of_memory=out_of_memory,
                hindrance=hindrance,
                probe="could not run: no room" if hindrance else app.seen.probe,
                listening=(),
            )
            app.gone = app.stopping
        self.changed(deployment_id)

    def kill_due(self) -> None:
        """The grace of every stop is over: what ignored it is killed."""
        with self._lock:
            due = [n for n, app in self._apps.items() if app.stopping and not app.gone]
        for number in due:
            self.exit(number, -9)

    def output(self, deployment_id: int, text: str) -> None:
        """The app prints a line."""
        with self._lock:
            app = self._running(deployment_id)
            app.lines.append(LogLine(len(app.lines) + 1, self.clock.now(), text))

    def listen_elsewhere(self, deployment_id: int, *addresses: str) -> None:
        """The app is seen listening on other addresses than it should."""
        with self._lock:
            app = self._running(deployment_id)
            app.seen = replace(app.seen, listening=addresses)
        self.changed(deployment_id)

    def restart(self) -> None:
        """The machine restarts: everything that ran has ended, and nobody saw how."""
        for number, seen in dict(self.observe()).items():
            if seen.status is not RunStatus.EXITED:
                self.exit(number, None)

    def _uses_volume(self, space_id: int) -> bool:
        with self._lock:
            mine = [app for app in self._apps.values() if app.spec.space_id == space_id]
            return any(app.seen.status is not RunStatus.EXITED for app in mine)

    def _running(self, deployment_id: int) -> _App:
        app = self._apps.get(deployment_id)
        if app is None or app.seen.status is RunStatus.EXITED:
            raise LookupError(f"deployment {deployment_id} does not run")
        return app

    def _called(self, method: str, deployment_id: int) -> None:
        self.calls.append((method, deployment_id))
        if failures := self._failures.get(method):
            raise failures.popleft()
