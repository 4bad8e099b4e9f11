"""A platform whose database and git are real, whose apps and builds are full fakes, and which can be killed anywhere.

Every effect (a commit of the database, a call of the orchestrator or builder, a hint) burns a fuse. When the fuse is
used up the platform is dead: that effect and every later one fails, as after SIGKILL, and `restart` makes a new
platform on what is left on disk.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import runtime_images
from spaces_platform.accounts import Actor
from spaces_platform.adapters.file_logs import FileLogStore
from spaces_platform.adapters.git import GitRepoStore
from spaces_platform.errors import PlatformError
from spaces_platform.frozen import Memory
from spaces_platform.models import Space
from spaces_platform.platform import Platform
from spaces_platform.ports import DeploymentSpec, FileChange, Isolation, LogLine, Observation, Task, VolumeUse
from spaces_platform.reconciler import Planner
from spaces_platform.secrets import Vault
from spaces_platform.settings import Settings
from spaces_platform.spaces import NewSpace
from spaces_platform.store import Store, Transaction
from spaces_platform.wiring.assembly import assemble
from tests.fakes.builder import FakeBuilder
from tests.fakes.orchestrator import FakeOrchestrator, Script
from tests.fakes.volumes import FakeVolumes
from tests.services import databases

GATEWAY = "gateway-1"
README = b"---\ntitle: Demo\nsdk: static\n---\n"
GOOD = {"README.md": README, "index.html": b"<h1>one</h1>"}


class Killed(BaseException):
    """The process was killed here."""


class HandClock:
    def __init__(self) -> None:
        self.at = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.at


class Fuse:
    def __init__(self) -> None:
        self.burnt: list[str] = []
        self.limit: int | None = None
        self.dead = False

    def burn(self, what: str) -> None:
        if self.dead:
            raise Killed(what)
        self.burnt.append(what)
        if self.limit is not None and len(self.burnt) > self.limit:
            self.dead = True
            raise Killed(what)


class FusedStore(Store):
    fuse: Fuse

    @contextmanager
    def write(self, *, alone: bool = True) -> Iterator[Transaction]:
        self.fuse.burn("begin")
        with super().write(alone=alone) as tx:
            yield tx
            self.fuse.burn("commit")
            # What is told after the commit is lost if the process dies between the two.
            tx._hints.insert(0, lambda: self.fuse.burn("hint"))


class FusedOrchestrator:
    """The fake orchestrator outlives the platform, as real apps do."""

    def __init__(self, inner: FakeOrchestrator, fuse: Fuse) -> None:
        self.inner, self.fuse = inner, fuse

    def start(self, spec: DeploymentSpec) -> None:
        self.fuse.burn("start")
        self.inner.start(spec)
        self.fuse.burn("started")

    def stop(self, deployment_id: int, grace: float = 10.0) -> None:
        self.fuse.burn("stop")
        self.inner.stop(deployment_id, grace)
        self.fuse.burn("stopped")

    def observe(self) -> Mapping[int, Observation]:
        return self.inner.observe()

    def logs(self, deployment_id: int, after: int = 0) -> Sequence[LogLine]:
        return self.inner.logs(deployment_id, after)

    def forget(self, deployment_id: int) -> None:
        self.inner.forget(deployment_id)

    def close(self) -> None:
        self.inner.close()


class FusedVolumes:
    """The fake volumes outlive the platform, as files do."""

    def __init__(self, inner: FakeVolumes, fuse: Fuse) -> None:
        self.inner, self.fuse = inner, fuse

    def use(self, space_id: int) -> VolumeUse | None:
        return self.inner.use(space_id)

    def snapshot(self, space_id: int) -> str:
        self.fuse.burn("snapshot")
        return self.inner.snapshot(space_id)

    def snapshots(self, space_id: int) -> Sequence[str]:
        return self.inner.snapshots(space_id)

    def restore(self, space_id: int, name: str) -> None:
        self.fuse.burn("restore")
        self.inner.restore(space_id, name)

    def remove(self, space_id: int) -> None:
        self.fuse.burn("remove")
        self.inner.remove(space_id)
        self.fuse.burn("removed")


class FusedFreezer(FusedOrchestrator):
    """One that can freeze as well."""

    def freeze(self, deployment_id: int) -> None:
        self.fuse.burn("freeze")
        self.inner.freeze(deployment_id)
        self.fuse.burn("frozen")

    def thaw(self, deployment_id: int) -> None:
        self.fuse.burn("thaw")
        self.inner.thaw(deployment_id)
        self.fuse.burn("thawed")

    def memory_in_use(self, deployment_id: int) -> int:
        return self.inner.memory_in_use(deployment_id)


class StepQueue:
    """Hints wait until the test takes them."""

    def __init__(self) -> None:
        self.waiting: OrderedDict[tuple[Task, int], None] = OrderedDict()

    def send(self, task: Task, id: int) -> None:
        self.waiting.setdefault((task, id))

    def start(self, run: Callable[[Task, int], None]) -> None:
        """The test runs the hints."""

    def close(self) -> None:
        self.waiting.clear()


class World:
    def __init__(
        self,
        folder: Path,
        *,
        script: Callable[[DeploymentSpec], Script] | None = None,
        freezes: bool = False,
        has_volumes: bool = False,
        **settings: Any,
    ) -> None:
        """`freezes`: the orchestrator can freeze; one that cannot has sleeping apps stopped. `has_volumes`: as
        containers have."""
        self.folder, self.freezes, self.memory = folder, freezes, Memory(16 << 30, 12 << 30)
        self.settings = Settings.load({}, data=folder, database=databases.url_of(folder), sleep_after=600, **settings)
        self.clock = HandClock()
        self.volumes = FakeVolumes(self.clock) if has_volumes else None
        self.apps = FakeOrchestrator(
            self.clock, script=script or (lambda _spec: Script(ready=True)), volumes=self.volumes
        )
        self.builder = FakeBuilder()
        self.fuse = Fuse()
        self.applied = 0
        """The newest version of the routes that the gateway has."""
        self.platform = self._build()
        self.platform.recover()
        self.actor: Actor = self.platform.accounts.actor_of_token((folder / "admin.token").read_text().strip())

    def _build(self) -> Platform:
        store = FusedStore(self.settings.database_url)
        store.fuse = self.fuse
        self.queue = StepQueue()
        self.builder.before = lambda _plan: self.fuse.burn("build")
        orchestrator = (FusedFreezer if self.freezes else FusedOrchestrator)(self.apps, self.fuse)
        platform = assemble(
            self.settings,
            clock=self.clock,
            store=store,
            vault=Vault.load(self.folder / "keys"),
            repos=GitRepoStore(self.folder / "repos"),
            builder=self.builder,
            orchestrator=orchestrator,
            logs=FileLogStore(self.folder / "logs", self.clock),
            queue=self.queue,
            planner=Planner(runtime_images.load(), lambda: ("3.11",)),
            isolation=Isolation("none", "fake apps"),
            volumes=FusedVolumes(self.volumes, self.fuse) if self.volumes is not None else None,
        )
        platform.frozen.memory = lambda: self.memory
        return platform

    def restart(self) -> None:
        """A new process on what the killed one left. Hints, traffic and everything else in memory are gone."""
        self.platform.store.close()
        self.fuse = Fuse()
        self.platform = self._build()
        self.platform.recover()
        self.platform.sweep.find_lost_pushes()
        self.platform.sweep.stop_orphans()

    # --- driving ---------------------------------------------------------------------------------
    def step(self) -> None:
        """Run all hints once; a gateway applies the routes and has no request running."""
        self.report()
        for task, id in list(self.queue.waiting):
            self.queue.waiting.pop((task, id), None)
            self.platform.run(task, id)

    def report(self, rows: Sequence[Any] = ()) -> None:
        self.applied = max((e["version"] for e in self.platform.routes.after(self.applied)), default=self.applied)
        self.platform.traffic.report(GATEWAY, self.applied, rows, self.clock.now().timestamp())

    def settle(self, rounds: int = 60) -> None:
        """Let time pass until nothing is due and nothing waits."""
        quiet = 0
        for _ in range(rounds):
            self.platform.sweep.hint_due()
            self.platform.builds.requeue_lost()
            self.platform.frozen.relieve()
            self.platform.release_gpus()
            quiet = 0 if self.queue.waiting else quiet + 1
            self.step()
            self.clock.at += timedelta(seconds=1)
            if quiet >= 6:
                return
        raise AssertionError(f"never quiet: {self.spaces()}")

    def settle_some(self, rounds: int) -> None:
        """Let some seconds pass."""
        for _ in range(rounds):
            self.platform.sweep.hint_due()
            self.platform.release_gpus()
            self.step()
            self.clock.at += timedelta(seconds=1)

    def spaces(self) -> list[tuple[str, str, str]]:
        return [(s.name, s.stage, s.message) for s in self.platform.directory.list(self.actor)]

    # --- acts -----
    def create(self, name: str = "demo", files: Mapping[str, bytes] = GOOD) -> Space:
        return self.platform.spaces.create(self.actor, NewSpace("admin", name, sdk="static", files=files))

    def push(self, space: Space, files: Mapping[str, bytes | None]) -> str:
        changes = [FileChange(path, content) for path, content in files.items()]
        return self.platform.spaces.commit(self.space(space), self.actor, changes, message="change")

    def space(self, space: Space) -> Space:
        return self.platform.directory.by_id(space.id or 0)

    def found(self, name: str = "demo") -> Space | None:
        try:
            return self.platform.directory.find("admin", name, self.actor)
        except PlatformError:
            return None

    def must(self, name: str = "demo") -> Space:
        space = self.found(name)
        assert space is not None
        return space

    def act(self, do: Callable[[], object], done: Callable[[], bool]) -> None:
        """What a user does: try, and after a failure look whether it happened, else try again."""
        for _ in range(3):
            try:
                if not done():
                    do()
                self.settle()
                return
            except Killed:
                self.restart()
        raise AssertionError("an act never succeeds")
