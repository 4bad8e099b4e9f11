"""Where the repositories lie: creating, opening, deleting, maintaining. A `spaces_platform.ports.RepoStore`.

It owns the layout below its root (`<id>.git`, `.hooks`, `.fresh`, `.trash`) and the configuration of every repository.
Invariant: a repository exists completely or not at all, and its configuration and hooks are ours alone.
"""

from __future__ import annotations

import os
import re
import shutil
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

from spaces_platform.adapters.git import hook
from spaces_platform.adapters.git.durable import sync_folder, sync_tree
from spaces_platform.adapters.git.objects import Materialise
from spaces_platform.adapters.git.process import Git, GitAt, ProcessLimits
from spaces_platform.adapters.git.push_check import Advise, FactsMemo
from spaces_platform.adapters.git.push_rules import PushLimits
from spaces_platform.adapters.git.repo import GitRepo
from spaces_platform.adapters.git.transport import OnPushed, TransferLimits, Transport
from spaces_platform.errors import Invalid, RepoNotFound
from spaces_platform.ports import Repo

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9][A-Za-z0-9._-]{0,127}){0,3}")
_LEFT_OVER = 3600.0


def configuration(hooks: Path, limits: PushLimits) -> str:
    """The whole `config` of a repository. Sources: `git help config`."""
    return f"""\
[core]
	repositoryFormatVersion = 0
	bare = true
	fileMode = true
	hooksPath = "{_quoted(hooks)}"
	fsync = all
	fsyncMethod = fsync
	protectHFS = true
	protectNTFS = true
	bigFileThreshold = 16m
	packedGitLimit = 512m
	packedGitWindowSize = 32m
	deltaBaseCacheLimit = 64m
	logAllRefUpdates = false
[transfer]
	fsckObjects = true
	hideRefs = refs
	hideRefs = !refs/heads
	hideRefs = !refs/tags
	advertiseSID = false
[receive]
	fsckObjects = true
	maxInputSize = {limits.pack_bytes}
	unpackLimit = 1
	autogc = false
	denyDeleteCurrent = true
	denyNonFastForwards = false
	denyCurrentBranch = ignore
	advertisePushOptions = false
	updateServerInfo = false
[uploadpack]
	allowFilter = true
[pack]
	threads = 1
	windowMemory = 128m
[gc]
	auto = 0
[protocol]
	allow = never
[credential]
	helper =
"""


def _quoted(path: Path) -> str:
    text = str(path)
    if any(c in text for c in '"\\\n'):
        raise Invalid(f"The repository folder {text!r} must not hold quotes, backslashes or line ends.")
    return text


class GitRepoStore:
    """All repositories below one folder. Use one per process; several processes may share the folder."""

    def __init__(
        self,
        root: Path,
        *,
        git: str = "git",
        limits: PushLimits | None = None,
        process: ProcessLimits | None = None,
        transfers: TransferLimits | None = None,
        materialise: Materialise | None = None,
    ) -> None:
        """Makes the folder and the hook. Raises OSError, Unavailable (no git)."""
        self.limits = limits or PushLimits()
        self._root = Path(os.path.abspath(root))
        self._git = Git(git, process or ProcessLimits())
        self._git.argv()
        self._transport = Transport(transfers or TransferLimits())
        self._memo, self._started, self._materialise = FactsMemo(), time.time(), materialise
        self._hooks, self._fresh, self._trash = (self._root / name for name in (".hooks", ".fresh", ".trash"))
        for folder in (self._root, self._fresh, self._trash):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        hook.install(self._hooks)
        self._config = configuration(self._hooks, self.limits)
        self._drop_left_overs()

    def create(self, repo_id: str) -> Repo:
        path = self._path(repo_id)
        if not path.is_dir():
            fresh = self._fresh / uuid.uuid4().hex
            at = GitAt(self._git, fresh)
            at.run("init", "--bare", "--quiet", "--template=", "--initial-branch=main", str(fresh))
            (fresh / "config").write_text(self._config)
            sync_tree(fresh)
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                fresh.rename(path)
            except OSError:
                shutil.rmtree(fresh)
                if not path.is_dir():  # else another request created it meanwhile
                    raise
            for folder in (path.parent, *path.parent.parents):
                sync_folder(folder)
                if folder == self._root:
                    break
        return self.open(repo_id)

    def open(self, repo_id: str) -> GitRepo:
        path = self._path(repo_id)
        try:
            if (path / "config").read_text() != self._config:
                self._configure(path)
        except FileNotFoundError:
            raise RepoNotFound() from None
        return GitRepo(GitAt(self._git, path), self.limits, self._memo, self._started, self._materialise)

    def delete(self, repo_id: str) -> None:
        path = self._path(repo_id)
        gone = self._trash / uuid.uuid4().hex
        with suppress(FileNotFoundError):
            path.rename(gone)
            sync_folder(path.parent)
            shutil.rmtree(gone)

    def maintain(self, repo: Repo) -> None:
        """Repack and drop what no ref reaches (after two weeks), locks and quarantines of killed pushes. Minutes."""
        found = self._own(repo)
        found.drop_left_overs()
        at = GitAt(Git(self._git.binary, ProcessLimits(seconds=1800, cpu=1800)), found.path)
        at.run("repack", "-A", "-d", "-q", "--unpack-unreachable=2.weeks.ago")
        at.run("prune", "--expire=2.weeks.ago")
        at.run("pack-refs", "--all")

    def advertise(self, repo: Repo, service: str, protocol: str) -> AsyncIterator[bytes]:
        """Body of `GET info/refs?service=…`."""
        return self._transport.advertise(self._own(repo), service, protocol)

    def serve(
        self,
        repo: Repo,
        service: str,
        protocol: str,
        body: AsyncIterator[bytes],
        *,
        on_pushed: OnPushed | None = None,
        advise: Advise | None = None,
    ) -> AsyncIterator[bytes]:
        """See `Transport.serve`."""
        return self._transport.serve(self._own(repo), service, protocol, body, on_pushed=on_pushed, advise=advise)

    def _own(self, repo: Repo) -> GitRepo:
        if not isinstance(repo, GitRepo):
            raise TypeError(f"{type(repo).__name__} is not a repository of this store")
        return repo

    def _path(self, repo_id: str) -> Path:
        parts = repo_id.split("/")
        if not _ID.fullmatch(repo_id) or any(p.endswith((".git", ".lock", ".")) or ".." in p for p in parts):
            raise Invalid(f"Not a repository id: {repo_id[:80]!r}")
        return self._root / f"{repo_id}.git"

    def _configure(self, path: Path) -> None:
        fresh = path / f"config.{uuid.uuid4().hex}"
        fresh.write_text(self._config)
        fresh.replace(path / "config")

    def _drop_left_overs(self) -> None:
        """What a killed `create` or `delete` left; young ones may belong to another process."""
        for folder in (self._fresh, self._trash):
            for left in folder.iterdir():
                with suppress(FileNotFoundError):
                    if time.time() - left.stat().st_mtime > _LEFT_OVER:
                        shutil.rmtree(left)
