"""`spaces run`: the build and the start that the platform would do, here and now, in a temporary directory.

Owns: the order plan > build > start > wait > stop, and showing it. Does not own: any of these; they are the platform's
own builder and orchestrator. Invariant: whatever way it ends, the app is stopped and the temporary directory removed.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path

import runtime_images
from builders.diagnosis import diagnose_run
from builders.local_tree import LocalTree
from builders.types import BuildError, BuildPlan
from builders.uv import index_settings
from builders.venv import VenvBuilder
from spaces_platform.adapters.process import LocalArtifact, ProcessOrchestrator
from spaces_platform.adapters.process.settings import ProcessSettings, network_environment
from spaces_platform.cli.console import ConsoleLog, Failure, note, paint, say
from spaces_platform.clock import SystemClock
from spaces_platform.planning import plan_head
from spaces_platform.ports import DeploymentSpec, Observation, RunStatus

POLL_SECONDS = 0.05
WRONG_PORT_SECONDS = 4.0


def run_folder(folder: Path, port: int) -> int:
    """Blocks until Ctrl-C (0) or until the app ends (1). Raises Failure where it cannot be built or started."""
    if not folder.is_dir():
        raise Failure(f"{folder} is not a folder.", "Name the folder that holds your app.", code=2)
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _n, _f: stopping.set())
    place = Path(tempfile.mkdtemp(prefix="spaces-run-"))
    place.chmod(0o711)
    try:
        return _Run(place, folder, port, stopping).run()
    finally:
        shutil.rmtree(place, ignore_errors=True)


class _Run:
    def __init__(self, place: Path, folder: Path, port: int, stopping: threading.Event) -> None:
        self._stopping, self._port = stopping, port
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spaces" / "run"
        cache.mkdir(parents=True, exist_ok=True)
        self._tree = LocalTree(folder)
        # Environments are kept between runs: the second start of the same requirements installs nothing.
        self._builder = VenvBuilder(cache, index=index_settings(os.environ))
        ports = {"port_first": port, "port_last": port} if port else {}
        settings = ProcessSettings(platform_env=network_environment(os.environ), **ports)  # type: ignore[arg-type]
        self._orchestrator = ProcessOrchestrator(
            place / "apps", resolve_artifact=self._resolve, clock=SystemClock(),
            changed=lambda _id: None, settings=settings,
        )  # fmt: skip
        self._shown = 0

    def _resolve(self, ref: str) -> LocalArtifact:
        built = self._builder.resolve(ref)
        extra = (built.python_prefix, *((built.python_path,) if built.python_path else ()))
        return LocalArtifact(built.app_dir, built.environment_dir, extra, built.hub_dir)

    def run(self) -> int:
        plan = self._plan()
        try:
            artifact = self._builder.build(
                plan, self._tree, owner="local", log=ConsoleLog(), cancelled=self._stopping.is_set
            )
        except BuildError as exc:
            for line in exc.evidence:
                note(f"  | {line}")
            raise Failure(exc.cause, exc.fix, reason=exc.reason) from exc
        env = {"SYSTEM": "spaces", "SPACE_ID": "local/app", "SPACE_HOST": "localhost", **plan.run.env}
        spec = DeploymentSpec(
            id=1, space_id=1, space="local/app", artifact_ref=artifact.ref, argv=plan.run.argv, env=env,
            app_port=plan.run.app_port, base_path=plan.run.base_path,
        )  # fmt: skip
        try:
            self._orchestrator.start(spec)
            self._wait_ready(plan.run.start_timeout)
            return self._serve(plan.run.base_path)
        finally:
            self._stop()

    def _plan(self) -> BuildPlan:
        planned = plan_head(self._tree, runtime_images.load(), self._builder.available_pythons)
        for warning in planned.warnings:
            note(f"warning: {warning}", style="yellow")
        if planned.plan is None:
            for line in planned.evidence:
                note(f"  | {line}")
            raise Failure(planned.message, reason=planned.reason)
        return planned.plan

    def _wait_ready(self, timeout: float) -> None:
        began = time.monotonic()
        while not self._stopping.is_set():
            seen = self._seen()
            took = time.monotonic() - began
            if seen.status is RunStatus.READY:
                return
            if seen.status is RunStatus.EXITED or (seen.listening and took > WRONG_PORT_SECONDS) or took > timeout:
                raise self._diagnosed(seen, timed_out=took > timeout)
            self._stopping.wait(POLL_SECONDS)

    def _serve(self, base_path: str) -> int:
        if not self._stopping.is_set():
            say(f"{paint('Live:', 'green')} http://{self._seen().endpoint}{base_path}")
            say(f"Isolation: {self._seen().isolation}. Ctrl-C stops it.", style="dim")
        while not self._stopping.wait(0.2):
            seen = self._seen()
            if seen.status is RunStatus.EXITED:
                raise self._diagnosed(seen, timed_out=False)
        return 0

    def _seen(self) -> Observation:
        for line in self._orchestrator.logs(1, self._shown):
            self._shown = line.n
            note(f"    {line.text}")
        return self._orchestrator.observe().get(1) or Observation(RunStatus.EXITED)

    def _diagnosed(self, seen: Observation, *, timed_out: bool) -> Failure:
        found = diagnose_run(
            exit_code=seen.exit_code,
            exited=seen.status is RunStatus.EXITED,
            out_of_memory=seen.out_of_memory,
            listening=seen.listening,
            port=int((seen.endpoint or ":0").rpartition(":")[2]),
            timed_out=timed_out,
            log_lines=[line.text for line in self._orchestrator.logs(1)][-200:],
            paths=[entry.path for entry in self._tree.entries()],
        )
        return Failure(found.cause, found.fix, reason=found.reason)

    def _stop(self) -> None:
        self._orchestrator.stop(1, grace=3.0)
        deadline = time.monotonic() + 8.0
        while 1 in self._orchestrator.observe() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        self._orchestrator.forget(1)
        self._orchestrator.close(stop_all=True, grace=0.0)
