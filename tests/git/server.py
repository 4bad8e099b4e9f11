"""A small server around the git router: an in-memory backend on a real uvicorn. Run as a program it can be killed."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from builders.types import SourceTree
from spaces_platform.adapters.git import GitRepoStore, ProcessLimits, PushLimits, TransferLimits
from spaces_platform.api.git_http import GitAccess, make_git_router
from spaces_platform.errors import Forbidden, RepoNotFound, Unauthenticated
from spaces_platform.ports import RefUpdate, Repo

TOKEN = "hf_" + "testtoken0123456789abcdefghijkl"
READER = "hf_" + "readertoken0123456789abcdefghij"


@dataclass
class MemoryBackend:
    """Spaces are repositories `spaces/OWNER-NAME`; `private` ones need a token, `moved` ones have a new name."""

    store: GitRepoStore
    private: set[str] = field(default_factory=set)
    moved: dict[str, str] = field(default_factory=dict)
    recorded: list[RefUpdate] = field(default_factory=list)
    journal: Path | None = None
    fail: Exception | None = None
    pause: Callable[[], None] | None = None
    advice: Sequence[str] = ()

    async def authorize(
        self, username: str | None, password: str | None, owner: str, name: str, *, write: bool
    ) -> GitAccess:
        token = password or username
        space = f"{owner}/{name}"
        if token is not None and token not in {TOKEN, READER}:
            raise Unauthenticated()
        if token is None and (write or space in self.private):
            raise Unauthenticated("Sign in with an access token.")
        if write and token == READER:
            raise Forbidden(f"You may read {space}, but not push to it; ask its owner for the role write.")
        if space in self.moved:
            return GitAccess(self.repo(self.moved[space]), moved_to=self.moved[space])
        if write:
            return GitAccess(self.store.create(self.id(space)), actor=space)
        return GitAccess(self.store.open(self.id(space)), actor=space)

    async def pushed(self, access: GitAccess, updates: Sequence[RefUpdate]) -> Sequence[str]:
        if self.pause is not None:
            await asyncio.to_thread(self.pause)
        if self.fail is not None:
            raise self.fail
        self.recorded += updates
        if self.journal is not None:
            with self.journal.open("a") as file:
                file.write("".join(json.dumps([access.actor, u.ref, u.new]) + "\n" for u in updates))
                file.flush()
                os.fsync(file.fileno())
        return [f"Building {update.new[:10]} of {access.actor}" for update in updates]

    def advise(self, access: GitAccess, tree: SourceTree) -> Sequence[str]:
        return [*self.advice, f"Files: {len(tree.entries())}"]

    def id(self, space: str) -> str:
        return f"spaces/{space.replace('/', '-')}"

    def repo(self, space: str) -> Repo:
        try:
            return self.store.open(self.id(space))
        except RepoNotFound:
            return self.store.create(self.id(space))


@dataclass
class Server:
    url: str
    backend: MemoryBackend

    def remote(self, space: str, token: str = TOKEN) -> str:
        return f"{self.url.replace('://', f'://user:{token}@')}/spaces/{space}"


def application(backend: MemoryBackend) -> FastAPI:
    app = FastAPI()
    app.include_router(make_git_router(backend, backend.store))
    return app


@contextmanager
def serving(
    root: Path,
    *,
    git: str = "git",
    limits: PushLimits | None = None,
    process: ProcessLimits | None = None,
    transfers: TransferLimits | None = None,
) -> Iterator[Server]:
    """A server in a thread of this process, on a free port."""
    backend = MemoryBackend(GitRepoStore(root, git=git, limits=limits, process=process, transfers=transfers))
    server = uvicorn.Server(uvicorn.Config(application(backend), port=0, log_level="warning", lifespan="off"))
    listening = server.config.bind_socket()
    listening.listen(128)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield Server(f"http://127.0.0.1:{listening.getsockname()[1]}", backend)
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()


def main() -> None:
    """`server.py ROOT JOURNAL [GIT]`: prints its port and serves until it is killed."""
    store = GitRepoStore(Path(sys.argv[1]), git=sys.argv[3] if len(sys.argv) > 3 else "git")
    backend = MemoryBackend(store, journal=Path(sys.argv[2]))
    server = uvicorn.Server(uvicorn.Config(application(backend), port=0, log_level="warning", lifespan="off"))
    listening = server.config.bind_socket()
    listening.listen(128)
    print(listening.getsockname()[1], flush=True)
    server.run(sockets=[listening])


if __name__ == "__main__":
    main()
