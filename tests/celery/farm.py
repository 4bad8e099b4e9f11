"""A control plane in this process and real Celery workers beside it, with builds that last as long as their tree says.

`python -m tests.celery.farm DATA REDIS …` is the worker's process.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sqlmodel import select

import runtime_images
from builders.types import NO_INPUTS, Artifact, BuildCancelled, BuildInputs, BuildLog, BuildPlan, Phase, SourceTree
from spaces_platform import builds as rules
from spaces_platform import worker
from spaces_platform.accounts import Actor
from spaces_platform.adapters.celery_app import CeleryConfig
from spaces_platform.adapters.file_logs import FileLogStore
from spaces_platform.adapters.git import GitRepoStore
from spaces_platform.builds import LEASE_SECONDS
from spaces_platform.clock import SystemClock
from spaces_platform.models import Build, Event, Space
from spaces_platform.platform import Platform, Worker
from spaces_platform.ports import FileChange, Isolation
from spaces_platform.reconciler import Planner
from spaces_platform.secrets import Vault
from spaces_platform.settings import Settings
from spaces_platform.spaces import NewSpace
from spaces_platform.store import Store
from spaces_platform.wiring import choices
from spaces_platform.wiring.assembly import assemble, assemble_worker, hear
from tests.fakes.orchestrator import FakeOrchestrator, Script

ROOT = Path(__file__).resolve().parents[2]
README = b"---\ntitle: Demo\nsdk: static\n---\n"
DONE = ("SUCCEEDED", "FAILED", "CANCELLED")


class TimedBuilder:
    """A Builder on disk, so that all processes see its artifacts.

    A tree's file `SECONDS` says how long its build takes; with a file `KILL` it kills its own process. Every begin and
    end is a line of `built.txt`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def exists(self, artifact_ref: str) -> bool:
        return (self.folder / artifact_ref).exists()

    def build(
        self,
        plan: BuildPlan,
        source: SourceTree,
        *,
        owner: str,
        log: BuildLog,
        cancelled: Callable[[], bool],
        inputs: BuildInputs = NO_INPUTS,
    ) -> Artifact:
        names = {entry.path for entry in source.entries()}
        log.phase(Phase.BUILDING)
        self._note("begin", plan)
        if "KILL" in names:
            os.kill(os.getpid(), signal.SIGKILL)
        seconds = float(source.read("SECONDS")) if "SECONDS" in names else 0.0
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if cancelled():
                self._note("cancelled", plan)
                raise BuildCancelled
            time.sleep(max(0.05, min(seconds / 1000, 2.0)))  # one that lasts an hour is looked at less often
        (self.folder / plan.id).touch()
        self._note("end", plan)
        return Artifact(plan.id)

    def remove(self, artifact_ref: str) -> None:
        (self.folder / artifact_ref).unlink(missing_ok=True)

    def prune(self) -> int:
        return 0

    def close(self) -> None:
        """Nothing of it is on the machine."""

    def free_disk(self) -> int:
        return 1 << 40

    def _note(self, what: str, plan: BuildPlan) -> None:
        with (self.folder / "built.txt").open("a") as file:
            file.write(f"{what} {plan.id} {os.getpid()}\n")

    def notes(self, what: str) -> Counter[str]:
        """How often each plan's build got there."""
        path = self.folder / "built.txt"
        rows = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return Counter(plan for kind, plan, _ in rows if kind == what)

    def pids(self) -> list[int]:
        """Processes that began builds, newest last."""
        return [int(line.split()[2]) for line in (self.folder / "built.txt").read_text().splitlines()]


def settings_of(data: Path, redis: str, **more: Any) -> Settings:
    return Settings.load({}, data=data, queue="celery", redis=redis, disk_floor_mb=0, **more)


def make_worker(settings: Settings) -> Worker:
    clock = SystemClock()
    return assemble_worker(
        settings, clock=clock, store=Store(settings.database_url), vault=Vault.load(settings.data / "keys"),
        repos=GitRepoStore(settings.data / "repos"),
        builder=TimedBuilder(settings.data / "built"), logs=FileLogStore(settings.data / "logs", clock),
    )  # fmt: skip


class Farm:
    """Control plane and workers on one data directory and one Redis."""

    def __init__(self, data: Path, redis: str, *, lease: float = LEASE_SECONDS, **more: Any) -> None:
        self.lease = lease
        self.settings = settings_of(data, redis, **more)
        self.builder = TimedBuilder(data / "built")
        self.clock = SystemClock()
        self.apps = FakeOrchestrator(self.clock, script=lambda _spec: Script(ready=True))
        self.workers: list[subprocess.Popen[bytes]] = []
        self.platform = self.control()
        self.actor: Actor = self.platform.accounts.actor_of_token((data / "admin.token").read_text().strip())

    def control(self) -> Platform:
        """A started control plane."""
        settings = self.settings
        queue, hints = choices.queue(settings)
        platform = assemble(
            settings, clock=self.clock, store=Store(settings.database_url), vault=Vault.load(settings.data / "keys"),
            repos=GitRepoStore(settings.data / "repos"), builder=self.builder, orchestrator=self.apps,
            logs=FileLogStore(settings.data / "logs", self.clock), queue=queue,
            planner=Planner(runtime_images.load(), lambda: ("3.11",)), isolation=Isolation("none", "fake apps"),
        )  # fmt: skip
        hear(platform, hints)
        platform.start()
        return platform

    def work(self, *, visibility: int | None = None) -> subprocess.Popen[bytes]:
        """Start a worker."""
        settings = self.settings
        argv = [sys.executable, "-m", "tests.celery.farm", str(settings.data), settings.redis]
        argv += ["--slots", str(settings.build_slots), *(["--visibility", str(visibility)] if visibility else [])]
        argv += ["--lease", str(self.lease), "--build-seconds", str(settings.build_seconds)]
        with (settings.data / f"worker{len(self.workers)}.log").open("ab") as log:
            process = subprocess.Popen(argv, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        self.workers.append(process)
        return process

    def worker_log(self, last: int = 9000) -> str:
        """The ends of the workers' logs, each of so many characters; all of them with 0."""
        return "\n".join(path.read_text()[-last:] for path in sorted(self.settings.data.glob("worker*.log")))

    def received(self) -> Counter[str]:
        """How often each message was given to a worker: once, and again where it was not acknowledged in time."""
        return Counter(re.findall(r"spaces\.build\[([0-9a-f-]+)\] received", self.worker_log(0)))

    def space(self, name: str, *, owner: str = "admin", seconds: float = 0.0, **files: bytes) -> Space:
        """A new Space; its first build is queued as soon as it is reconciled."""
        tree = {"README.md": README, "index.html": name.encode(), "SECONDS": str(seconds).encode(), **files}
        return self.platform.spaces.create(self.actor, NewSpace(owner, name, sdk="static", files=tree))

    def push(self, space: Space, text: str, *, seconds: float = 0.0) -> None:
        changes = [FileChange("index.html", text.encode()), FileChange("SECONDS", str(seconds).encode())]
        self.platform.spaces.commit(self.platform.directory.by_id(space.id or 0), self.actor, changes, message=text)

    def running(self) -> list[Build]:
        return [build for build in self.builds() if build.status == "RUNNING"]

    def builds(self) -> list[Build]:
        with self.platform.store.read() as db:
            return list(db.exec(select(Build).order_by(Build.id)).all())  # type: ignore[arg-type]

    def until(self, what: Callable[[], Any], seconds: float = 60.0, every: float = 0.05) -> Any:
        """The first true answer; fails the test, with the workers' logs, where there is none in time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if value := what():
                return value
            time.sleep(every)
        rows = [(b.id, b.status, b.tries, b.reason) for b in self.builds()]
        raise AssertionError(f"not within {seconds:.0f} s; builds: {rows}; workers: {self.worker_log()}")

    def wait(self, count: int, seconds: float = 60.0, every: float = 0.05) -> list[Build]:
        """All builds, once there are `count` and each has ended."""
        self.until(lambda: len(b := self.builds()) >= count and all(x.status in DONE for x in b), seconds, every)
        return self.builds()

    def assert_each_ended_once(self) -> None:
        """The invariant of every fault: one end per accepted build, one artifact per plan, nothing half-way."""
        with self.platform.store.read() as db:
            events = db.exec(select(Event)).all()
        ends = Counter(e.data["build"] for e in events if e.kind in [f"build.{s.lower()}" for s in DONE])
        builds = self.builds()
        assert ends == {b.id: 1 for b in builds}
        good = [b for b in builds if b.status == "SUCCEEDED"]
        assert all(self.builder.exists(b.artifact or "") for b in good)

    def close(self) -> None:
        self.platform.close()
        for process in self.workers:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("redis")
    parser.add_argument("--slots", type=int)
    parser.add_argument("--visibility", type=int)
    parser.add_argument("--lease", type=float)
    parser.add_argument("--build-seconds", type=int)
    given = parser.parse_args(arguments)
    rules.LEASE_SECONDS, rules.RENEW_SECONDS = given.lease, given.lease / 4
    logging.basicConfig(level=logging.INFO)
    settings = settings_of(given.data, given.redis, build_slots=given.slots, build_seconds=given.build_seconds)
    config = CeleryConfig(settings.redis, settings.queue_prefix, settings.build_seconds, given.visibility)
    return worker.serve(config, given.slots + 1, lambda: make_worker(settings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
