"""The hub of a build: what preload_from_hub may read, with the rights of the Space's owner.

Owns: reading this platform's own Spaces so, and which hub has which kind of repository. Does not own: other hubs
(`adapters.http_hub`), the layout of what is fetched (`builders.preload`).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import cast

from sqlmodel import select

from builders import preload
from builders.types import Hub, HubFile, HubMissing, HubRepo
from spaces_platform.accounts import Actor
from spaces_platform.errors import EntryNotFound, Invalid, RepoNotFound, RevisionNotFound
from spaces_platform.models import Account, Membership
from spaces_platform.ports import Repo, RepoStore
from spaces_platform.space_directory import find_space, repo_id
from spaces_platform.store import Store

TOKEN = "HF_TOKEN"
"""The secret of a Space that the other hub is shown."""


class SpaceHub:
    """The hub of one build: Spaces are here, all else is at the other hub, where there is one."""

    def __init__(self, own: Hub, other: Hub | None) -> None:
        self.own, self.other = own, other

    def find(self, kind: str, name: str, revision: str) -> HubRepo:
        return self._of(kind).find(kind, name, revision)

    def open(self, repo: HubRepo, path: str) -> AbstractContextManager[tuple[str, Iterator[bytes]]]:
        return self._of(repo.kind).open(repo, path)

    def _of(self, kind: str) -> Hub:
        if kind == "space":
            return self.own
        if self.other is None:
            raise HubMissing(
                f"this platform holds Spaces (`spaces/owner/name`) and knows no hub with {kind}s; the app fetches it "
                "when it asks for it. The admin names a hub with hub_endpoint; then rebuild with a factory restart"
            )
        return self.other


class OwnHub:
    """Spaces of this platform, as far as `owner_id`, a user or an organisation, may read them."""

    def __init__(self, store: Store, repos: RepoStore, owner_id: int) -> None:
        self.store, self.repos, self.owner_id = store, repos, owner_id

    def find(self, kind: str, name: str, revision: str) -> HubRepo:
        if kind != "space":
            raise HubMissing("this platform holds Spaces only")
        repo = self._repo(name)
        try:
            commit = repo.resolve(revision)
            files = repo.list(commit, recursive=True)
        except (RevisionNotFound, Invalid) as error:
            raise preload.no_revision(name, revision) from error
        return HubRepo(kind, name, commit, {f.path: HubFile(f.size, f.oid) for f in files if f.type == "file"})

    @contextmanager
    def open(self, repo: HubRepo, path: str) -> Iterator[tuple[str, Iterator[bytes]]]:
        try:
            # The protocol says Iterator; the git adapter's is a generator, whose process must end with the file.
            with closing(cast(Generator[bytes], self._repo(repo.name).read(repo.commit, path))) as chunks:
                yield "", chunks
        except EntryNotFound as error:
            raise preload.no_file(repo.name, path) from error

    def _repo(self, name: str) -> Repo:
        owner, _, short = name.partition("/")
        try:
            with self.store.read() as db:
                account = db.get_one(Account, self.owner_id)
                roles = db.exec(select(Membership).where(Membership.user_id == self.owner_id)).all()
                # Not as an admin, even where the owner is one: what a build reads, the app's visitors may get to see.
                actor = Actor(
                    id=account.id, name=account.name, via="session", roles=tuple((m.org_id, m.role) for m in roles)
                )
                space = find_space(db, owner, short, actor)
            return self.repos.open(repo_id(space.id or 0))
        except RepoNotFound as error:
            raise preload.no_repo(f"spaces/{name}", "here", "that the Space's owner may not read") from error
