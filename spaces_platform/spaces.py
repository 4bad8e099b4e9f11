"""The life of a Space as people decide it: created, pushed to, shown, paused, restarted, woken, renamed, deleted.

Each use case checks what the actor may do and writes what is desired; none builds, starts or stops anything. Does not
own: finding a Space (`space_directory`), what it runs with (`space_settings`), how a change is written
(`space_writes`).
"""

from __future__ import annotations

import secrets as random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import func, update
from sqlmodel import col, select

from spaces_platform.accounts import ANONYMOUS, Access, Actor, find_account, may_create
from spaces_platform.errors import (
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    PlatformError,
    RepoNotFound,
    TooMany,
    Unauthenticated,
)
from spaces_platform.lifecycle import Desired
from spaces_platform.models import Account, Event, Host, Redirect, Space
from spaces_platform.names import check_repo_name, loopback_address, slug
from spaces_platform.ports import Clock, FileChange, Queue, Repo, RepoStore, Task
from spaces_platform.settings import Settings
from spaces_platform.space_directory import repo_id, require
from spaces_platform.space_settings import Setting, SpaceSettings
from spaces_platform.space_writes import SpaceWrites, living
from spaces_platform.storage import Storage
from spaces_platform.store import Store, Transaction

SDKS = ("gradio", "streamlit", "dash", "static", "docker")
VISIBILITIES = ("public", "private")


@dataclass(frozen=True, slots=True)
class NewSpace:
    owner: str
    name: str
    sdk: str | None = None
    visibility: str = "public"
    hardware: str = "cpu-basic"
    sleep_after: int | None = None
    storage: str | None = None
    """Tier of its volume; None: the platform's default."""
    variables: Sequence[Setting] = ()
    secrets: Sequence[Setting] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    """First commit; empty: the repository begins without one, so that any history can be pushed."""


class Spaces:
    def __init__(
        self,
        store: Store,
        clock: Clock,
        repos: RepoStore,
        queue: Queue,
        settings: Settings,
        storage: Storage,
        writes: SpaceWrites,
        space_settings: SpaceSettings,
    ) -> None:
        self.store, self.clock, self.repos, self.queue = store, clock, repos, queue
        self.settings, self.storage, self.writes, self.space_settings = settings, storage, writes, space_settings
        self.unrecorded: set[int] = set()
        """Spaces with a push that git stored and whose record failed; the sweep takes them up."""

    def now(self) -> float:
        return self.clock.now().timestamp()

    # --- creating and deleting -------------------------------------------------------------------
    def create(self, actor: Actor, new: NewSpace) -> Space:
        """Raises Unauthenticated, Forbidden, Invalid, Conflict (it exists), TooMany."""
        if actor.is_anonymous:
            raise Unauthenticated("Sign in to create a Space.")
        _check_new(new)
        self.space_settings.check(new.hardware, new.storage, new.sleep_after)
        with self.store.write() as tx:
            owner = self._owner(tx, new.owner, actor)
            self._check_room(tx, owner, new.name)
            space = Space(
                id=_next_id(tx), owner_id=owner.id or 0, owner=owner.name, name=new.name, key=new.name.lower(),
                creator_id=actor.id or 0,
                visibility=new.visibility, sdk=new.sdk, title=new.name, hardware=new.hardware,
                sleep_after=new.sleep_after, storage=new.storage,
                created_at=self.now(), modified_at=self.now(),
            )  # fmt: skip
            tx.add(space)
            tx.flush()
            self._give_hosts(tx, space)
            for setting in new.variables:
                self.space_settings.put_variable(tx, space, setting)
            for setting in new.secrets:
                self.space_settings.put_secret(tx, space, setting)
            space.head = self._make_repo(space, actor, new.files)
            redirect = tx.get(Redirect, f"{owner.name}/{new.name}".lower())
            if redirect is not None:
                tx.delete(redirect)
            self.writes.save(tx, space, "space.created", actor, {"sdk": new.sdk, "visibility": new.visibility})
        return space

    def delete(self, space: Space, actor: Actor) -> None:
        """Ask for its end; the reconciler stops and removes everything. Its host names stay taken.

        Raises Forbidden.
        """
        require(space, actor, Access.ADMIN)

        def change(row: Space) -> None:
            row.desired = Desired.DELETED
            # The name is free at once for a new Space; the tombstone keeps the old one for the log.
            row.key = f"{row.key}#{row.id}"

        self.writes.update(space, actor, "space.deleted", change)

    def rename(self, space: Space, actor: Actor, owner: str, name: str) -> Space:
        """Move to another owner or name. The old address redirects from now on. Raises Conflict, Forbidden, Invalid."""
        require(space, actor, Access.ADMIN)
        check_repo_name(name)
        with self.store.write() as tx:
            row = living(tx, space)
            target = self._owner(tx, owner, actor)
            taken = tx.exec(select(Space).where(Space.owner_id == target.id, Space.key == name.lower())).first()
            if taken is not None and taken.id != row.id:
                raise Conflict(f"A space repository called {target.name}/{name} already exists")
            old = f"{row.owner}/{row.name}"
            tx.merge(Redirect(key=old.lower(), space_id=row.id or 0))
            reclaimed = tx.get(Redirect, f"{target.name}/{name}".lower())
            if reclaimed is not None:
                tx.delete(reclaimed)
            if row.title == row.name:
                row.title = name
            row.owner_id, row.owner, row.name, row.key = target.id or 0, target.name, name, name.lower()
            for host in tx.exec(select(Host).where(Host.space_id == row.id, Host.kind == "primary")):
                host.kind = "redirect"
                tx.add(host)
            tx.flush()
            self._give_hosts(tx, row)
            # SPACE_ID, SPACE_HOST and their like are part of the app's environment.
            row.generation += 1
            self.writes.save(tx, row, "space.renamed", actor, {"from": old, "to": f"{row.owner}/{row.name}"})
        return row

    def set_visibility(self, space: Space, actor: Actor, visibility: str) -> Space:
        """Raises Forbidden, Invalid."""
        require(space, actor, Access.ADMIN)
        if visibility not in VISIBILITIES:
            raise Invalid(f"The visibility {visibility!r} is not one of {', '.join(VISIBILITIES)}.")

        def change(row: Space) -> None:
            row.visibility = visibility

        return self.writes.update(space, actor, "space.visibility", change, {"visibility": visibility})

    # --- the repository --------------------------------------------------------------------------
    def repo(self, space: Space) -> Repo:
        """Raises RepoNotFound."""
        return self.repos.open(repo_id(space.id or 0))

    def pushed(self, space_id: int, head: str | None, actor: Actor) -> Space:
        """Record where main points now. Idempotent. What is lost between git and this, the sweep finds."""
        with self.store.write() as tx:
            row = tx.get(Space, space_id)
            if row is None:
                raise RepoNotFound()
            if row.head != head:
                row.head = head
                row.modified_at = row.last_active_at = self.now()
                self._show_building(tx, row)
                self.writes.save(tx, row, "space.pushed", actor, {"head": head})
        return row

    def _show_building(self, tx: Transaction, row: Space) -> None:
        """Before the push is answered: whoever waits for the new version must not read the old one's RUNNING."""
        if row.desired != Desired.RUNNING or row.head is None:
            return
        stage = "RUNNING_BUILDING" if row.routed is not None else "BUILDING"
        if row.stage != stage:
            data = {"from": row.stage, "to": stage, "reason": ""}
            tx.add(Event(at=self.now(), kind="space.stage", space_id=row.id, data=data))
            row.stage, row.reason, row.message, row.evidence = stage, "", "", []

    def commit(
        self, space: Space, actor: Actor, changes: Sequence[FileChange], *, message: str, parent: str | None = None,
        ref: str = "refs/heads/main",
    ) -> str:  # fmt: skip
        """One commit through the API. Raises what `Repo.commit` raises, and Forbidden."""
        require(space, actor, Access.WRITE)
        repo = self.repo(space)
        commit = repo.commit(ref, changes, message=message, author=actor.name, email=_email(actor), parent=parent)
        if ref == "refs/heads/main":
            try:
                self.pushed(space.id or 0, commit, actor)
            except PlatformError:
                # git has the commit: the sweep records it as soon as the database can be written again.
                self.unrecorded.add(space.id or 0)
                raise
        return commit

    # --- lifecycle -------------------------------------------------------------------------------
    def pause(self, space: Space, actor: Actor) -> Space:
        """Stop it until somebody restarts it: visits do not wake it. Raises Forbidden."""
        require(space, actor, Access.WRITE)

        def change(row: Space) -> None:
            row.desired = Desired.PAUSED
            row.stage = "PAUSED"

        return self.writes.update(space, actor, "space.paused", change)

    def restart(self, space: Space, actor: Actor, *, factory: bool = False) -> Space:
        """A new deployment of the same artifact; `factory`: built anew without what is cached. Also ends a pause.

        Raises Forbidden.
        """
        require(space, actor, Access.WRITE)

        def change(row: Space) -> None:
            row.desired = Desired.RUNNING
            row.generation += 1
            row.last_active_at = self.now()
            if factory:
                row.salt = random.token_hex(4)
            if row.stage in ("PAUSED", "SLEEPING", "RUNTIME_ERROR"):
                row.stage = "BUILDING" if factory else "APP_STARTING"

        return self.writes.update(space, actor, "space.restarted", change, {"factory": factory})

    def sleep(self, space: Space, actor: Actor) -> Space:
        """Put it to sleep now, as if it had been idle for its time. Raises Forbidden."""
        require(space, actor, Access.WRITE)

        def change(row: Space) -> None:
            row.last_active_at = 0.0
            row.slept_at = self.now()

        return self.writes.update(space, actor, "space.sleep", change)

    def wake(self, *space_ids: int, actor: Actor = ANONYMOUS) -> None:
        """Visits: idempotent, cheap for what is awake or waking. Wakes neither the paused nor what needs its owner."""
        now = self.now()
        asleep = (
            col(Space.id).in_(space_ids),
            col(Space.desired) == Desired.RUNNING,
            col(Space.last_active_at) <= func.coalesce(Space.slept_at, 0.0),
        )
        with self.store.read() as db:
            anybody = db.exec(select(Space.id).where(*asleep)).first() is not None
        if not anybody:
            return
        with self.store.write() as tx:
            # Compared again inside: of a crowd that wakes one, one writes. The next look survives a kill between this
            # row and the hint; who asks again for one that waits for its start gives no other, which would be a pass
            # for nothing beside the starts it waits for.
            wake = update(Space).where(*asleep).values(last_active_at=now, next_check_at=now)
            woken = tx.execute(wake.returning(col(Space.id))).scalars().all()
            for space_id in woken:
                tx.add(Event(at=now, kind="space.woken", space_id=space_id, actor_id=actor.id, actor=actor.name))
        for space_id in woken:
            self.queue.send(Task.RECONCILE, space_id)

    # --- inside ----------------------------------------------------------------------------------
    def _check_room(self, tx: Transaction, owner: Account, name: str) -> None:
        existing = tx.exec(select(Space).where(Space.owner_id == owner.id, Space.key == name.lower())).first()
        if existing is not None:
            raise Conflict("You already created this space repo", space=f"{existing.owner}/{existing.name}")
        alive = (Space.owner_id == owner.id, col(Space.purged_at).is_(None))
        most = self.settings.spaces_per_owner
        if tx.exec(select(func.count()).select_from(Space).where(*alive)).one() >= most:
            raise TooMany(f"{owner.name} has {most} Spaces, the most an owner may have here.")

    def _make_repo(self, space: Space, actor: Actor, files: Mapping[str, bytes]) -> str | None:
        """Before the row is committed: one without a repository would be a Space that nobody can push to.

        The first commit, if there are files.
        """
        # What lies there is of a Space whose row was never written, perhaps somebody else's.
        self.repos.delete(repo_id(space.id or 0))
        self.storage.discard(space.id or 0)
        repo = self.repos.create(repo_id(space.id or 0))
        if not files:
            return None
        changes = [FileChange(path, content) for path, content in files.items()]
        return repo.commit("refs/heads/main", changes, message="initial commit", author=actor.name, email=_email(actor))

    def _owner(self, tx: Transaction, name: str, actor: Actor) -> Account:
        try:
            owner = find_account(tx, name)
        except NotFound as exc:
            raise Forbidden(f"You don't have the rights to create a space under the namespace {name}.") from exc
        if not may_create(actor, owner):
            raise Forbidden(f"You don't have the rights to create a space under the namespace {name}.")
        return owner

    def _give_hosts(self, tx: Transaction, space: Space) -> None:
        for salt in ("", f"{space.id}", *(random.token_hex(4) for _ in range(8))):
            host = f"{slug(space.owner, space.name, salt=salt)}.{self.settings.domain}"
            taken = tx.get(Host, host)
            if taken is not None and taken.space_id != space.id:
                continue
            tx.merge(Host(host=host, space_id=space.id or 0, kind="primary"))
            break
        else:
            raise Conflict(f"No host name is free for {space.owner}/{space.name}.")
        if self.settings.has_loopback_addresses:
            tx.merge(Host(host=loopback_address(space.id or 0), space_id=space.id or 0, kind="loopback"))


def _next_id(tx: Transaction) -> int:
    """The number after the newest Space's. Rows of Spaces are never deleted, so no Space ever had it.

    A sequence of Postgres would go on where a transaction is rolled back, and leave a repository behind each time.
    """
    return (tx.exec(select(func.max(Space.id))).one() or 0) + 1


def _check_new(new: NewSpace) -> None:
    check_repo_name(new.name)
    if new.sdk is not None and new.sdk not in SDKS:
        raise Invalid(f"The sdk {new.sdk!r} is not one of {', '.join(SDKS)}.")
    if new.visibility not in VISIBILITIES:
        raise Invalid(f"The visibility {new.visibility!r} is not one of {', '.join(VISIBILITIES)}.")


def _email(actor: Actor) -> str:
    return f"{actor.name or 'platform'}@users.noreply.localhost"
