"""A platform with real rows and real repositories, and an app over it; building and running are recorded, not done."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from argon2 import PasswordHasher
from fastapi import FastAPI
from fastapi.testclient import TestClient

from spaces_platform import build_inputs
from spaces_platform.accounts import Accounts, Actor
from spaces_platform.adapters.git import GitRepoStore, PushLimits
from spaces_platform.api.app import create_app
from spaces_platform.build_files import BuildFiles
from spaces_platform.builds import Builds
from spaces_platform.clock import SystemClock
from spaces_platform.domains import Domains
from spaces_platform.gpus import Gpus
from spaces_platform.hardware import Hardware, Machine, parse_gpus
from spaces_platform.hub import OwnHub, SpaceHub
from spaces_platform.logs import LogFeed
from spaces_platform.models import Deployment, Space
from spaces_platform.ports import Isolation, LogLine, Task, Volumes
from spaces_platform.quotas import Quotas
from spaces_platform.routing import RouteFeed, Routes
from spaces_platform.secrets import Vault
from spaces_platform.settings import Settings
from spaces_platform.space_directory import SpaceDirectory
from spaces_platform.space_settings import SpaceSettings
from spaces_platform.space_writes import SpaceWrites
from spaces_platform.spaces import NewSpace, Spaces
from spaces_platform.storage import Storage
from spaces_platform.store import Store
from spaces_platform.traffic import Traffic
from spaces_platform.volumes import SpaceVolumes
from tests.fakes.volumes import FakeVolumes
from tests.services import databases


class MemoryLogs:
    """A LogStore in memory."""

    def __init__(self) -> None:
        self.streams: dict[str, list[LogLine]] = {}

    def append(self, stream: str, lines: Iterable[str]) -> None:
        kept = self.streams.setdefault(stream, [])
        for text in lines:
            kept.append(LogLine(len(kept) + 1, datetime.now(UTC), text))

    def read(self, stream: str, after: int = 0) -> Sequence[LogLine]:
        return [line for line in self.streams.get(stream, ()) if line.n > after]

    def delete(self, stream: str) -> None:
        self.streams.pop(stream, None)


class Hints:
    """A Queue that remembers what was hinted."""

    def __init__(self) -> None:
        self.sent: list[tuple[Task, int]] = []

    def send(self, task: Task, id: int) -> None:
        self.sent.append((task, id))

    def start(self, run: object) -> None:
        """Nothing is done here."""

    def close(self, timeout: float = 10.0) -> None:
        """Nothing is under way."""


class NoRecords:
    """TxtRecords of a world in which nobody has made any."""

    def txt(self, name: str) -> frozenset[str]:
        return frozenset()


class StoredDeployments:
    """Rows of deployments, with output in memory."""

    def __init__(self, store: Store, logs: MemoryLogs) -> None:
        self.store, self.output = store, logs

    def of(self, space_id: int, limit: int = 20) -> Sequence[Deployment]:
        from sqlmodel import col, select

        with self.store.read() as db:
            query = select(Deployment).where(Deployment.space_id == space_id).order_by(col(Deployment.id).desc())
            return db.exec(query.limit(limit)).all()

    def logs(self, deployment_id: int, after: int = 0) -> Sequence[LogLine]:
        return self.output.read(f"run/{deployment_id}", after)


@dataclass
class World:
    """What create_app needs of a Platform."""

    settings: Settings
    clock: SystemClock
    store: Store
    vault: Vault
    repos: GitRepoStore
    logs: MemoryLogs
    queue: Hints
    feed: RouteFeed
    traffic: Traffic
    routes: Routes
    accounts: Accounts
    spaces: Spaces
    directory: SpaceDirectory
    space_settings: SpaceSettings
    builds: Builds
    deployments: StoredDeployments
    domains: Domains
    hardware: Hardware
    gpus: Gpus
    quotas: Quotas
    volumes: SpaceVolumes
    log_feed: LogFeed = field(default_factory=LogFeed)
    orchestrator: object = None
    isolation: Isolation = field(default_factory=lambda: Isolation("none", "nothing runs here"))
    has_disk: bool = True
    tokens: dict[str, str] = field(default_factory=dict)

    def is_disk_free(self) -> bool:
        return self.has_disk

    def actor(self, who: str) -> Actor:
        return self.accounts.actor_of_token(self.tokens[who])

    def space(self, name: str = "alice/app", **given: Any) -> Space:
        owner, _, short = name.partition("/")
        new = NewSpace(owner, short, sdk="gradio", **given)
        return self.spaces.create(self.actor("admin"), new)

    def change(self, space: Space, **values: Any) -> None:
        """Write columns as the reconciler would, with a new route version."""
        with self.store.write() as tx:
            row = tx.get(Space, space.id)
            assert row is not None
            for name, value in values.items():
                setattr(row, name, value)
            row.route_version = tx.next_version()
            tx.add(row)
            tx.after_commit(lambda: self.feed.changed(space.id or 0))

    def add(self, row: Any) -> Any:
        with self.store.write() as tx:
            tx.add(row)
        return row

    def serve_space(self, space: Space, commit: str = "c" * 40) -> Deployment:
        """A deployment that serves the Space."""
        row = self.add(
            Deployment(space_id=space.id or 0, commit=commit, artifact="venv:x", plan={}, status="READY", live=True,
                       endpoint="127.0.0.1:40001", ready_at=1.0)
        )  # fmt: skip
        self.change(space, routed=row.id, stage="RUNNING")
        return row  # type: ignore[no-any-return]


def make_world(data: Path, template: Path | None = None, volumes: Volumes | None = None, **given: Any) -> World:
    """`volumes`: as containers have them; None: as processes have none."""
    (data / "run").mkdir(parents=True, exist_ok=True)
    if template is not None:
        databases.copy(template, data)
    settings = Settings(data=data, database=databases.url_of(data), **given)
    store = Store(settings.database_url)
    databases.make_quick(store)
    if template is None:
        store.migrate()
    clock, feed, queue, logs = SystemClock(), RouteFeed(), Hints(), MemoryLogs()
    vault = Vault.load(data / "keys")
    limits = PushLimits(file_bytes=settings.file_mb << 20, pack_bytes=settings.push_mb << 20)
    repos = GitRepoStore(data / "repos", limits=limits)
    accounts = Accounts(store, clock)
    # As slow as in service a hash would cost more than all the rest of these tests.
    accounts._hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    hardware = Hardware(settings, Machine(2.0, 4 << 30), parse_gpus(settings.gpus))
    storage = Storage(settings, volumes)
    writes = SpaceWrites(store, clock, queue, feed)
    space_settings = SpaceSettings(store, clock, writes, vault, hardware, storage)
    spaces = Spaces(store, clock, repos, queue, settings, storage, writes, space_settings)
    files = BuildFiles(data / "builds")
    inputs = partial(
        build_inputs.gather, store, vault, lambda space, _secrets: SpaceHub(OwnHub(store, repos, space.owner_id), None)
    )
    builds = Builds(store, clock, repos, None, logs, queue, feed, 2, inputs, files)  # type: ignore[arg-type]
    return World(
        settings, clock, store, vault, repos, logs, queue, feed, Traffic(), Routes(store, settings), accounts, spaces,
        SpaceDirectory(store, settings), space_settings, builds, StoredDeployments(store, logs),
        Domains(store, clock, settings, feed, NoRecords()),
        hardware, Gpus(store, clock, queue, hardware, settings), Quotas(store, clock, queue, settings),
        SpaceVolumes(store, clock, storage, lambda: 1 << 40, 0),
    )  # fmt: skip


def add_people(world: World) -> None:
    for name, is_admin in (("admin", True), ("alice", False), ("bob", False)):
        user = world.accounts.create_user(name, is_admin=is_admin, email=f"{name}@example.org")
        world.tokens[name] = world.accounts.create_token(user.id or 0, "laptop")
        world.tokens[f"{name}:read"] = world.accounts.create_token(user.id or 0, "reader", role="read")


@pytest.fixture(scope="session")
def peopled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A database with people, and their tokens; each test begins with a copy."""
    made = make_world(tmp_path_factory.mktemp("template"))
    add_people(made)
    made.store.close()
    return made.settings.data, made.tokens


@pytest.fixture
def world(tmp_path: Path, peopled: tuple[Path, dict[str, str]]) -> Iterator[World]:
    made = make_world(tmp_path / "data", peopled[0], FakeVolumes(SystemClock()))
    made.tokens.update(peopled[1])
    yield made
    made.store.close()


@pytest.fixture
def app(world: World) -> FastAPI:
    return create_app(world)  # type: ignore[arg-type]


@dataclass
class Caller:
    """A client of the app as somebody."""

    client: TestClient
    world: World

    def __call__(self, method: str, path: str, *, who: str | None = "alice", **given: Any) -> Any:
        headers = {**given.pop("headers", {})}
        if who is not None:
            headers.setdefault("authorization", f"Bearer {self.world.tokens[who]}")
        return self.client.request(method, path, headers=headers, **given)


@pytest.fixture
def call(app: FastAPI, world: World) -> Iterator[Caller]:
    client = TestClient(app, base_url="http://localhost:7860", raise_server_exceptions=True, follow_redirects=False)
    yield Caller(client, world)
    client.close()


@dataclass(frozen=True)
class Served:
    """The app on a real port."""

    url: str
    world: World
    app: FastAPI
    loop: asyncio.AbstractEventLoop

    def stop_streams(self) -> None:
        self.loop.call_soon_threadsafe(self.app.state.streams.stop)


@pytest.fixture
def served(world: World) -> Iterator[Served]:
    ready = threading.Event()
    holder: dict[str, Any] = {}

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            holder["loop"] = asyncio.get_running_loop()
            ready.set()

    import socket

    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    # Apps get the addresses of the port that clients use.
    world.settings = dataclasses.replace(world.settings, port=port)
    world.spaces.settings = world.directory.settings = world.settings
    app = create_app(world)  # type: ignore[arg-type]
    server = Server(uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    assert ready.wait(10)
    yield Served(f"http://127.0.0.1:{port}", world, app, holder["loop"])
    holder["loop"].call_soon_threadsafe(app.state.streams.stop)
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


def until(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """The first true value of `condition`; fails at the deadline."""
    import time

    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.01)
    return value


__all__ = ["Caller", "Mapping", "Served", "World", "until"]
