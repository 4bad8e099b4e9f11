"""What git over HTTP means to the platform: who may fetch and push, what a push creates and tells.

Owns the decisions behind `git_http.GitBackend`. Invariants: a push is recorded before its client is told that it
succeeded; a Space is made by a push only for somebody who could make it otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool

from builders.config import ConfigError, MissingAppFile, read_config
from builders.types import SourceTree
from spaces_platform.accounts import ANONYMOUS, Access, Actor
from spaces_platform.api import views
from spaces_platform.api.git_http import GitAccess
from spaces_platform.errors import Conflict, PlatformError, RepoNotFound, Unauthenticated, Unavailable
from spaces_platform.models import Space
from spaces_platform.names import check_repo_name
from spaces_platform.ports import RefUpdate, Repo
from spaces_platform.spaces import NewSpace

if TYPE_CHECKING:
    from spaces_platform.platform import Platform

MAIN = "refs/heads/main"
README = "README.md"
MAX_LINES = 20


class PlatformGit:
    """A `git_http.GitBackend`."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform

    # --- access ---------------------------------------------------------------------------------------------
    async def authorize(
        self, username: str | None, password: str | None, owner: str, name: str, *, write: bool
    ) -> GitAccess:
        return await run_in_threadpool(self._authorize, username, password, owner, name, write)

    def _authorize(self, username: str | None, password: str | None, owner: str, name: str, write: bool) -> GitAccess:
        actor = self._actor(username, password)
        if write and actor.is_anonymous:
            raise Unauthenticated("Sign in to push: any user name, and an access token as the password.")
        if write and not self.platform.is_disk_free():
            raise Unavailable(
                "The platform's disk is nearly full, so pushes are refused now. Ask its admin to free space."
            )
        try:
            space = self.platform.directory.find(owner, name, actor, Access.WRITE if write else Access.READ)
        except RepoNotFound:
            if actor.is_anonymous:
                # Only a 401 makes git ask for credentials, and a private Space must look like a missing one.
                raise Unauthenticated("Sign in to see this repository, if it exists.") from None
            if not write:
                raise
            space = self._create(actor, owner, name)
        moved = (space.owner.lower(), space.name.lower()) != (owner.lower(), name.lower())
        return GitAccess(
            repo=self.platform.spaces.repo(space),
            actor=actor,
            moved_to=f"{space.owner}/{space.name}" if moved else None,
            data={"space": space.id},
        )

    def _actor(self, username: str | None, password: str | None) -> Actor:
        """A token, as the password or as the user name with an empty password. Raises Unauthenticated."""
        token = password or username
        return self.platform.accounts.actor_of_token(token) if token else ANONYMOUS

    def _create(self, actor: Actor, owner: str, name: str) -> Space:
        """Raises Forbidden, Invalid, TooMany."""
        check_repo_name(name)
        try:
            return self.platform.spaces.create(actor, NewSpace(owner, name))
        except Conflict:
            # Made by another request meanwhile, or there and not this actor's to write to.
            return self.platform.directory.find(owner, name, actor, Access.WRITE)

    # --- pushes ---------------------------------------------------------------------------------------------
    async def pushed(self, access: GitAccess, updates: Sequence[RefUpdate]) -> Sequence[str]:
        try:
            return await run_in_threadpool(self._pushed, access, updates)
        except PlatformError:
            # git has moved the ref, and the same push again would find nothing to send.
            self.platform.spaces.unrecorded.add(int(access.data["space"]))
            raise

    def _pushed(self, access: GitAccess, updates: Sequence[RefUpdate]) -> Sequence[str]:
        space = self.platform.directory.by_id(int(access.data["space"]))
        name = f"{space.owner}/{space.name}"
        if not any(u.ref == MAIN for u in updates):
            refs = ", ".join(u.ref.removeprefix("refs/heads/").removeprefix("refs/tags/") for u in updates[:5])
            return [f"{name}: {refs} stored. Only main deploys: git push origin {_source(updates)}:main"]
        # Read again, also after it was written: another push may move it on, and the row must never stay behind.
        recorded, head = False, access.repo.head(MAIN)
        while not recorded:
            self.platform.spaces.pushed(space.id or 0, head, access.actor)
            before, head = head, access.repo.head(MAIN)
            recorded = head == before
        return self._told(space, access.repo)

    def _told(self, space: Space, repo: Repo) -> list[str]:
        settings = self.platform.settings
        urls = views.urls(views.load_one(self.platform, space), settings)
        lines = ["", f"Watch  {settings.url}/spaces/{space.owner}/{space.name}", f"App    {urls['browser']}"]
        if urls["direct"]:
            lines.append(f"       {urls['direct']} (for programs on this machine)")
        return [*lines, ""]

    def advise(self, access: GitAccess, tree: SourceTree) -> Sequence[str]:
        """What would keep this tree from being deployed, and what has no effect; the push is stored all the same."""
        return advice(tree)[:MAX_LINES]


def advice(tree: SourceTree) -> list[str]:
    """Pure but for reading the tree."""
    paths = [entry.path for entry in tree.entries()]
    readme = tree.read(README).decode("utf-8", "replace") if README in paths else None
    try:
        config = read_config(readme, paths)
    except ConfigError as error:
        lines = [line for problem in error.problems for line in str(problem).splitlines()]
        return ["This will not deploy:", *(f"  {line}" for line in lines), *_warnings(error.warnings)]
    except MissingAppFile as missing:
        return [f"This will not deploy: {missing}", *_warnings(missing.config.warnings)]
    return _warnings(config.warnings)


def _warnings(warnings: Sequence[str]) -> list[str]:
    return [f"Note: {warning}" for warning in warnings]


def _source(updates: Sequence[RefUpdate]) -> str:
    heads = [u.ref.removeprefix("refs/heads/") for u in updates if u.ref.startswith("refs/heads/")]
    return heads[0] if heads else "HEAD"
