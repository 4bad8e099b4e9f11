"""A platform of real use cases on a real database; only what touches git, processes and log files is kept in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from sqlmodel import select

from spaces_platform.accounts import Accounts, Actor
from spaces_platform.clock import SystemClock
from spaces_platform.errors import EntryNotFound, RepoNotFound, RevisionNotFound
from spaces_platform.hardware import Hardware, Machine
from spaces_platform.models import Build, Deployment, Space
from spaces_platform.ports import CommitInfo, FileChange, LogLine, PathEntry, Task
from spaces_platform.routing import RouteFeed
from spaces_platform.secrets import Vault
from spaces_platform.settings import Settings
from spaces_platform.space_directory import SpaceDirectory
from spaces_platform.space_settings import SpaceSettings
from spaces_platform.space_writes import SpaceWrites
from spaces_platform.spaces import NewSpace, Spaces
from spaces_platform.storage import Storage
from spaces_platform.store import Store
from spaces_platform.web.pages import make_router, render_error
from tests.services import databases

HERE = "http://localhost:7860"
FROM_US = {"sec-fetch-site": "same-origin"}


@dataclass
class MemoryRepo:
    """A repository of a few text files, each commit a whole tree."""

    path: Path
    trees: dict[str, dict[str, bytes]] = field(default_factory=dict)
    history: list[CommitInfo] = field(default_factory=list)
    heads: dict[str, str] = field(default_factory=dict)

    def head(self, ref: str = "refs/heads/main") -> str | None:
        return self.heads.get(ref)

    def resolve(self, rev: str) -> str:
        for commit in self.trees:
            if len(rev) >= 4 and commit.startswith(rev):
                return commit
        raise RevisionNotFound()

    def list(self, commit: str, path: str = "", recursive: bool = False) -> Sequence[PathEntry]:
        below = f"{path}/" if path else ""
        found: dict[str, PathEntry] = {}
        for name, content in self.trees[commit].items():
            if name.startswith(below):
                first, slash, _ = name[len(below) :].partition("/")
                kind = "directory" if slash else "file"
                found[first] = PathEntry(kind, below + first, "0" * 40, 0 if slash else len(content))
        if not found:
            raise EntryNotFound()
        return list(found.values())

    def stat(self, commit: str, path: str) -> PathEntry:
        tree = self.trees[commit]
        if path in tree:
            return PathEntry("file", path, "0" * 40, len(tree[path]))
        if any(name.startswith(path + "/") for name in tree):
            return PathEntry("directory", path, "0" * 40, 0)
        raise EntryNotFound()

    def read(self, commit: str, path: str) -> Iterator[bytes]:
        if path not in self.trees[commit]:
            raise EntryNotFound()
        yield self.trees[commit][path]

    def log(self, rev: str, limit: int = 50, skip: int = 0) -> Sequence[CommitInfo]:
        return self.history[::-1][skip : skip + limit]

    def refs(self) -> Mapping[str, str]:
        return self.heads

    def commit(
        self,
        ref: str,
        changes: Sequence[FileChange],
        *,
        message: str,
        author: str,
        email: str,
        parent: str | None = None,
    ) -> str:
        tree = dict(self.trees[self.heads[ref]]) if ref in self.heads else {}
        tree.update({c.path: c.content for c in changes if c.content is not None})
        commit = hashlib.sha1(repr((sorted(tree.items()), message, len(self.history))).encode()).hexdigest()
        self.trees[commit], self.heads[ref] = tree, commit
        self.history.append(CommitInfo(commit, message.split("\n")[0], message, author, datetime.now(UTC)))
        return commit


class MemoryRepos:
    def __init__(self, path: Path) -> None:
        self.path, self.repos = path, dict[str, MemoryRepo]()

    def create(self, repo_id: str) -> MemoryRepo:
        return self.repos.setdefault(repo_id, MemoryRepo(self.path / repo_id))

    def open(self, repo_id: str) -> MemoryRepo:
        if repo_id not in self.repos:
            raise RepoNotFound()
        return self.repos[repo_id]

    def delete(self, repo_id: str) -> None:
        self.repos.pop(repo_id, None)


class MemoryLogs:
    def __init__(self) -> None:
        self.lines: dict[str, list[LogLine]] = {}

    def append(self, stream: str, lines: Iterable[str]) -> None:
        kept = self.lines.setdefault(stream, [])
        for text in lines:
            kept.append(LogLine(len(kept) + 1, datetime.now(UTC), text))

    def read(self, stream: str, after: int = 0) -> Sequence[LogLine]:
        return [line for line in self.lines.get(stream, []) if line.n > after]


class Sent(list[tuple[Task, int]]):
    """The queue: what was hinted."""

    def send(self, task: Task, id: int) -> None:
        self.append((task, id))


class Tables:
    """The reading side of builds and deployments, whose working sides need a machine."""

    def __init__(self, store: Store, logs: MemoryLogs) -> None:
        self.store, self.kept = store, logs

    def position(self, build: Build) -> int:
        return 1

    def of(self, space_id: int, limit: int = 20) -> Sequence[Deployment]:
        with self.store.read() as db:
            rows = db.exec(select(Deployment).where(Deployment.space_id == space_id)).all()
        return sorted(rows, key=lambda d: -(d.id or 0))[:limit]

    def logs(self, deployment_id: int, after: int = 0) -> Sequence[LogLine]:
        return self.kept.read(f"run/{deployment_id}", after)

    def describe_start(self, deployment_id: int) -> str:
        return "connection refused on port 40001"


def prepare(data: Path) -> None:
    """A database with the users ada and bob. Made once: migrations and password hashes take their time."""
    store = Store(databases.url_of(data))
    store.migrate()
    for name in ("ada", "bob"):
        Accounts(store, SystemClock()).create_user(name, password=f"{name}-password")
    store.close()


class World:
    """The platform, and short ways to put it into a state."""

    def __init__(self, data: Path) -> None:
        """`data` holds a database made by `prepare`."""
        settings = Settings(data=data)
        clock, store = SystemClock(), Store(databases.url_of(data))
        databases.make_quick(store)
        self.logs, self.queue, self.repos = MemoryLogs(), Sent(), MemoryRepos(data)
        self.accounts = Accounts(store, clock)
        vault, hardware = Vault.load(data / "keys"), Hardware(settings, Machine(2.0, 4 << 30))
        storage = Storage(settings)
        writes = SpaceWrites(store, clock, self.queue, RouteFeed())  # type: ignore[arg-type]
        self.directory = SpaceDirectory(store, settings)
        self.space_settings = SpaceSettings(store, clock, writes, vault, hardware, storage)
        rest = (settings, storage, writes, self.space_settings)
        self.spaces = Spaces(store, clock, self.repos, self.queue, *rest)  # type: ignore[arg-type]
        self.store, self.clock, self.settings = store, clock, settings
        tables = Tables(store, self.logs)
        self.platform = SimpleNamespace(
            settings=settings, clock=clock, store=store, repos=self.repos, logs=self.logs, queue=self.queue,
            accounts=self.accounts, spaces=self.spaces, directory=self.directory,
            space_settings=self.space_settings, builds=tables, deployments=tables,
        )  # fmt: skip
        self.app = FastAPI()
        self.app.include_router(make_router(self.platform))  # type: ignore[arg-type]

        @self.app.exception_handler(404)
        async def missing(request: Request, exc: Exception) -> Any:
            return render_error(request, 404, "There is no such page.")

    def actor(self, name: str) -> Actor:
        return self.accounts.actor_of_user(self.accounts.find(name).id or 0)

    def browser(self, name: str = "") -> TestClient:
        client = TestClient(self.app, base_url=HERE, follow_redirects=False)
        if name:
            client.cookies.set("spaces-session", self.accounts.open_session(self.actor(name)), domain="localhost.local")
        return client

    def space(self, name: str = "hello", files: Mapping[str, bytes] | None = None, **row: Any) -> Space:
        given = {key: row.pop(key) for key in ("visibility", "sdk") if key in row}
        space = self.spaces.create(self.actor("ada"), NewSpace("ada", name, files=files or {}, **given))
        return self.change(space, **row)

    def change(self, space: Space, **row: Any) -> Space:
        with self.store.write() as tx:
            found = tx.get(Space, space.id)
            assert found is not None
            for key, value in row.items():
                setattr(found, key, value)
            tx.add(found)
        return found

    def build(self, space: Space, *log: str, **row: Any) -> Build:
        now = self.clock.now().timestamp()
        values = {"commit": "c" * 40, "plan_id": "p", "plan": {}, "created_at": now - 9, "phase_at": now - 2, **row}
        with self.store.write() as tx:
            build = Build(space_id=space.id or 0, **values)
            tx.add(build)
            tx.flush()
        self.logs.append(f"build/{build.id}", log)
        return build

    def deployment(self, space: Space, *log: str, **row: Any) -> Deployment:
        values = {
            "artifact": "venv:p",
            "plan": {},
            "commit": "d" * 40,
            "created_at": self.clock.now().timestamp(),
            **row,
        }
        with self.store.write() as tx:
            deployment = Deployment(space_id=space.id or 0, **values)
            tx.add(deployment)
            tx.flush()
        self.logs.append(f"run/{deployment.id}", log)
        return deployment
