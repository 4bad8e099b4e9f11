"""What people do with a Space: create, push, configure, pause, restart, wake, rename, delete.

Each use case checks what the actor may do, writes what is desired in one transaction together with its Event, and hints
the reconciler after the commit. None of them builds, starts or stops anything.
"""

from __future__ import annotations

import secrets as random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, update
from sqlmodel import Session as Read
from sqlmodel import col, or_, select

from spaces_platform.accounts import ANONYMOUS, Access, Actor, access, find_account, may_create
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
from spaces_platform.hardware import Hardware
from spaces_platform.lifecycle import Desired
from spaces_platform.models import Account, Event, Host, Redirect, Secret, Space, Variable
from spaces_platform.names import check_repo_name, check_setting_key, loopback_address, slug
from spaces_platform.ports import Clock, FileChange, Queue, Repo, RepoStore, Task
from spaces_platform.routing import RouteFeed
from spaces_platform.secrets import Vault
from spaces_platform.settings import Settings
from spaces_platform.storage import Storage
from spaces_platform.store import Store, Transaction

SDKS = ("gradio", "streamlit", "dash", "static", "docker")
VISIBILITIES = ("public", "private")
MAX_VALUE = 64 * 1024
"""Bytes of one variable or secret: an environment of many larger ones does not fit `execve`."""
MAX_SETTINGS = 200
NEVER = -1


@dataclass(frozen=True, slots=True)
class Setting:
    """A variable or secret as somebody gives it."""

    key: str
    value: str
    description: str = ""


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
        vault: Vault,
        settings: Settings,
        feed: RouteFeed,
        hardware: Hardware,
        storage: Storage,
    ) -> None:
        self.store, self.clock, self.repos, self.queue = store, clock, repos, queue
        self.vault, self.settings, self.feed, self.hardware = vault, settings, feed, hardware
        self.storage = storage
        self.unrecorded: set[int] = set()
        """Spaces with a push that git stored and whose record failed; the sweep takes them up."""

    def now(self) -> float:
        return self.clock.now().timestamp()

    # --- finding ---------------------------------------------------------------------------------
    def find(self, owner: str, name: str, actor: Actor, needed: Access = Access.READ) -> Space:
        """The Space, also by a former name (compare `space.owner/name` with what was asked for).

        Raises RepoNotFound for what does not exist or must not be known to exist, Forbidden for what the actor may see
        but not do.
        """
        with self.store.read() as db:
            return find_space(db, owner, name, actor, needed)

    def by_id(self, space_id: int) -> Space:
        """Raises RepoNotFound."""
        with self.store.read() as db:
            space = db.get(Space, space_id)
        if space is None or space.purged_at is not None:
            raise RepoNotFound()
        return space

    def by_label(self, label: str, actor: Actor) -> Space:
        """By the first label of its app's host name. Raises RepoNotFound."""
        return self.by_host(f"{label}.{self.settings.domain}", actor)

    def by_host(self, name: str, actor: Actor) -> Space:
        """By any of its app's host names, with or without a port. Raises RepoNotFound."""
        with self.store.read() as db:
            host = db.get(Host, name.lower().partition(":")[0])
            space = db.get(Space, host.space_id) if host is not None else None
        if space is None or space.desired == Desired.DELETED or access(actor, space) < Access.READ:
            raise RepoNotFound()
        return space

    def list(
        self,
        actor: Actor,
        *,
        search: str | None = None,
        author: str | None = None,
        sdk: Sequence[str] = (),
        sort: str = "modified_at",
        limit: int = 50,
        offset: int = 0,
    ) -> Sequence[Space]:
        """What the actor may see, newest first."""
        where: list[Any] = [col(Space.purged_at).is_(None), col(Space.desired) != Desired.DELETED]
        if not actor.is_admin:
            orgs = [org for org, _ in actor.roles]
            where.append(or_(col(Space.visibility) == "public", col(Space.owner_id).in_([actor.id or -1, *orgs])))
        if search:
            pattern = "%" + search.lower().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
            text = func.lower(
                col(Space.owner) + "/" + col(Space.name) + " " + col(Space.title) + " " + col(Space.short_description)
            )
            where.append(text.like(pattern, escape="\\"))
        if author:
            where.append(func.lower(col(Space.owner)) == author.lower())
        if sdk:
            where.append(col(Space.sdk).in_(sdk))
        column = {"created_at": Space.created_at, "modified_at": Space.modified_at}.get(sort, Space.modified_at)
        query = (
            select(Space).where(*where).order_by(col(column).desc(), col(Space.id).desc()).limit(limit).offset(offset)
        )
        with self.store.read() as db:
            found = db.exec(query).all()
        # A fine-grained token may see less than its user.
        return [s for s in found if access(actor, s) >= Access.READ]

    def hosts(self, space_id: int) -> Mapping[str, str]:
        """Host names by kind: `primary`, and `loopback` where there is one."""
        with self.store.read() as db:
            rows = db.exec(select(Host).where(Host.space_id == space_id, col(Host.kind) != "redirect")).all()
        return {row.kind: row.host for row in rows}

    def repo(self, space: Space) -> Repo:
        """Raises RepoNotFound."""
        return self.repos.open(repo_id(space.id or 0))

    # --- creating and deleting -------------------------------------------------------------------
    def create(self, actor: Actor, new: NewSpace) -> Space:
        """Raises Unauthenticated, Forbidden, Invalid, Conflict (it exists), TooMany."""
        if actor.is_anonymous:
            raise Unauthenticated("Sign in to create a Space.")
        _check_new(new)
        self.hardware.check(new.hardware)
        if new.storage is not None:
            self.storage.check(new.storage)
        with self.store.write() as tx:
            owner = self._owner(tx, new.owner, actor)
            existing = tx.exec(select(Space).where(Space.owner_id == owner.id, Space.key == new.name.lower())).first()
            if existing is not None:
                raise Conflict("You already created this space repo", space=f"{existing.owner}/{existing.name}")
            alive = (Space.owner_id == owner.id, col(Space.purged_at).is_(None))
            if tx.exec(select(func.count()).select_from(Space).where(*alive)).one() >= self.settings.spaces_per_owner:
                raise TooMany(
                    f"{owner.name} has {self.settings.spaces_per_owner} Spaces, the most an owner may have here."
                )
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
                self._put_variable(tx, space, setting)
            for setting in new.secrets:
                self._put_secret(tx, space, setting)
            # What lies there is of a Space whose row was never written, perhaps somebody else's.
            self.repos.delete(repo_id(space.id or 0))
            self.storage.discard(space.id or 0)
            # The repository first: a row without one would be a Space that nobody can push to.
            repo = self.repos.create(repo_id(space.id or 0))
            if new.files:
                changes = [FileChange(path, content) for path, content in new.files.items()]
                space.head = repo.commit(
                    "refs/heads/main", changes, message="initial commit", author=actor.name, email=_email(actor)
                )
            redirect = tx.get(Redirect, f"{owner.name}/{new.name}".lower())
            if redirect is not None:
                tx.delete(redirect)
            self._save(tx, space, "space.created", actor, {"sdk": new.sdk, "visibility": new.visibility})
        return space

    def delete(self, space: Space, actor: Actor) -> None:
        """Ask for its end; the reconciler stops and removes everything. Its host names stay taken."""
        self._require(space, actor, Access.ADMIN)

        def change(row: Space) -> None:
            row.desired = Desired.DELETED
            # The name is free at once for a new Space; the tombstone keeps the old one for the log.
            row.key = f"{row.key}#{row.id}"

        self._update(space, actor, "space.deleted", change)

    def rename(self, space: Space, actor: Actor, owner: str, name: str) -> Space:
        """Move to another owner or name. The old address redirects from now on. Raises Conflict, Forbidden, Invalid."""
        self._require(space, actor, Access.ADMIN)
        check_repo_name(name)
        with self.store.write() as tx:
            row = _row(tx, space)
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
            self._save(tx, row, "space.renamed", actor, {"from": old, "to": f"{row.owner}/{row.name}"})
        return row

    # --- the repository --------------------------------------------------------------------------
    def pushed(self, space_id: int, head: str | None, actor: Actor, kind: str = "space.pushed") -> Space:
        """Record where main points now. Idempotent: also called by the sweep for a push whose record was lost."""
        with self.store.write() as tx:
            row = tx.get(Space, space_id)
            if row is None:
                raise RepoNotFound()
            if row.head != head:
                row.head = head
                row.modified_at = row.last_active_at = self.now()
                self._show_building(tx, row)
                self._save(tx, row, kind, actor, {"head": head})
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
        self._require(space, actor, Access.WRITE)
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

    # --- settings --------------------------------------------------------------------------------
    def variables(self, space: Space) -> Sequence[Variable]:
        with self.store.read() as db:
            return db.exec(select(Variable).where(Variable.space_id == space.id).order_by(Variable.key)).all()

    def secrets(self, space: Space, actor: Actor) -> Sequence[Secret]:
        """Names, descriptions and dates; a value never leaves."""
        self._require(space, actor, Access.WRITE)
        with self.store.read() as db:
            return db.exec(select(Secret).where(Secret.space_id == space.id).order_by(Secret.key)).all()

    def set_variables(self, space: Space, actor: Actor, settings: Iterable[Setting]) -> None:
        """Set all of them with one restart. Raises Forbidden, Invalid, Conflict."""
        self._settings(space, actor, "variable.set", settings, self._put_variable)

    def set_secrets(self, space: Space, actor: Actor, settings: Iterable[Setting]) -> None:
        """Set all of them with one restart. Raises Forbidden, Invalid, Conflict."""
        self._settings(space, actor, "secret.set", settings, self._put_secret)

    def delete_setting(self, space: Space, actor: Actor, table: type[Variable] | type[Secret], key: str) -> None:
        """Deleting the absent is success."""
        self._require(space, actor, Access.WRITE)
        with self.store.write() as tx:
            found = tx.get(table, (space.id, key))
            if found is None:
                return
            tx.delete(found)
            row = _row(tx, space)
            row.generation += 1
            self._save(tx, row, f"{table.__name__.lower()}.deleted", actor, {"key": key})

    def _settings(self, space: Space, actor: Actor, kind: str, settings: Iterable[Setting], put: Any) -> None:
        self._require(space, actor, Access.WRITE)
        given = list(settings)
        if not given:
            return
        with self.store.write() as tx:
            row = _row(tx, space)
            for setting in given:
                put(tx, row, setting)
            row.generation += 1
            self._save(tx, row, kind, actor, {"keys": [s.key for s in given]})

    def _put_variable(self, tx: Transaction, space: Space, setting: Setting) -> None:
        _check_setting(tx, space, setting, Variable, Secret)
        tx.merge(
            Variable(space_id=space.id or 0, key=setting.key, value=setting.value, description=setting.description,
                     updated_at=self.now())
        )  # fmt: skip

    def _put_secret(self, tx: Transaction, space: Space, setting: Setting) -> None:
        _check_setting(tx, space, setting, Secret, Variable)
        sealed = self.vault.seal(setting.value, space_id=space.id or 0, key=setting.key)
        tx.merge(
            Secret(space_id=space.id or 0, key=setting.key, sealed=sealed, description=setting.description,
                   updated_at=self.now())
        )  # fmt: skip

    def set_hardware(self, space: Space, actor: Actor, flavor: str, sleep_after: int | None = None) -> Space:
        """Raises Forbidden, Invalid for a flavor that this platform does not have."""
        self.hardware.check(flavor)
        if sleep_after is not None:
            _check_sleep(sleep_after)

        def change(row: Space) -> None:
            if row.hardware != flavor:
                row.hardware, row.generation = flavor, row.generation + 1
                # A place in the line for one model is none in another's.
                row.gpu_queued_at = None
            if sleep_after is not None:
                row.sleep_after = sleep_after

        self._require(space, actor, Access.WRITE)
        return self._update(space, actor, "space.hardware", change, {"hardware": flavor})

    def set_storage(self, space: Space, actor: Actor, tier: str) -> Space:
        """Ask for storage; the app restarts with it. What the volume holds stays.

        Raises Forbidden; Invalid for a tier that there is not, or that is smaller, or where there are no volumes.
        """
        self._require(space, actor, Access.WRITE)

        def change(row: Space) -> None:
            self.storage.check(tier, row.storage)
            if row.storage != tier:
                row.storage, row.generation = tier, row.generation + 1

        return self._update(space, actor, "space.storage", change, {"tier": tier})

    def delete_storage(self, space: Space, actor: Actor) -> Space:
        """Have the volume and its snapshots removed once its app has ended, which then starts with an empty one of the
        platform's default size, or none. Raises Forbidden; Invalid where there are no volumes.

        Snapshots go as well, which who may only write could not bring about otherwise: this is for who may delete.
        """
        self._require(space, actor, Access.ADMIN)
        self.storage.require()

        def change(row: Space) -> None:
            row.storage, row.drops_volume, row.generation = None, True, row.generation + 1

        return self._update(space, actor, "space.storage_deleted", change)

    def set_sleep_after(self, space: Space, actor: Actor, seconds: int) -> Space:
        """-1: never. Raises Forbidden, Invalid."""
        self._require(space, actor, Access.WRITE)
        _check_sleep(seconds)

        def change(row: Space) -> None:
            row.sleep_after = seconds

        return self._update(space, actor, "space.sleep_after", change, {"seconds": seconds})

    def set_visibility(self, space: Space, actor: Actor, visibility: str) -> Space:
        self._require(space, actor, Access.ADMIN)
        if visibility not in VISIBILITIES:
            raise Invalid(f"The visibility {visibility!r} is not one of {', '.join(VISIBILITIES)}.")

        def change(row: Space) -> None:
            row.visibility = visibility

        return self._update(space, actor, "space.visibility", change, {"visibility": visibility})

    # --- lifecycle -------------------------------------------------------------------------------
    def pause(self, space: Space, actor: Actor) -> Space:
        self._require(space, actor, Access.WRITE)

        def change(row: Space) -> None:
            row.desired = Desired.PAUSED
            row.stage = "PAUSED"

        return self._update(space, actor, "space.paused", change)

    def restart(self, space: Space, actor: Actor, *, factory: bool = False) -> Space:
        """A new deployment of the same artifact; `factory`: built anew without what is cached. Also ends a pause."""
        self._require(space, actor, Access.WRITE)

        def change(row: Space) -> None:
            row.desired = Desired.RUNNING
            row.generation += 1
            row.last_active_at = self.now()
            if factory:
                row.salt = random.token_hex(4)
            if row.stage in ("PAUSED", "SLEEPING", "RUNTIME_ERROR"):
                row.stage = "BUILDING" if factory else "APP_STARTING"

        return self._update(space, actor, "space.restarted", change, {"factory": factory})

    def sleep(self, space: Space, actor: Actor) -> Space:
        """Put it to sleep now, as if it had been idle for its time."""
        self._require(space, actor, Access.WRITE)

        def change(row: Space) -> None:
            row.last_active_at = 0.0
            row.slept_at = self.now()

        return self._update(space, actor, "space.sleep", change)

    def wake(self, *space_ids: int, actor: Actor = ANONYMOUS) -> None:
        """Visits: idempotent and cheap for what is awake. Wakes neither the paused nor what needs its owner."""
        now = self.now()
        asleep = (
            col(Space.id).in_(space_ids),
            col(Space.desired) == Desired.RUNNING,
            col(Space.last_active_at) <= func.coalesce(Space.slept_at, 0.0),
        )
        with self.store.read() as db:
            anybody = db.exec(select(Space.id).where(*asleep)).first() is not None
        if anybody:
            with self.store.write() as tx:
                # Compared again inside: of a crowd that wakes one, one writes. The next look survives a kill
                # between this row and the hint.
                wake = update(Space).where(*asleep).values(last_active_at=now, next_check_at=now)
                for space_id in tx.execute(wake.returning(col(Space.id))).scalars():
                    tx.add(Event(at=now, kind="space.woken", space_id=space_id, actor_id=actor.id, actor=actor.name))
        for space_id in space_ids:
            self.queue.send(Task.RECONCILE, space_id)

    def events(self, space: Space, limit: int = 100) -> Sequence[Event]:
        with self.store.read() as db:
            query = select(Event).where(Event.space_id == space.id).order_by(col(Event.id).desc()).limit(limit)
            return db.exec(query).all()

    # --- inside ----------------------------------------------------------------------------------
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

    def _require(self, space: Space, actor: Actor, needed: Access) -> None:
        require(space, actor, needed)

    def _update(self, space: Space, actor: Actor, kind: str, change: Any, data: dict[str, Any] | None = None) -> Space:
        with self.store.write() as tx:
            row = _row(tx, space)
            change(row)
            self._save(tx, row, kind, actor, data or {})
        return row

    def _save(self, tx: Transaction, row: Space, kind: str, actor: Actor, data: dict[str, Any]) -> None:
        row.route_version = tx.next_version()
        row.next_check_at = self.now()
        tx.add(row)
        tx.add(Event(at=self.now(), kind=kind, space_id=row.id, actor_id=actor.id, actor=actor.name, data=data))
        space_id = row.id or 0
        tx.after_commit(lambda: self.queue.send(Task.RECONCILE, space_id))
        tx.after_commit(lambda: self.feed.changed(space_id))


def repo_id(space_id: int) -> str:
    return f"spaces/{space_id}"


def find_space(db: Read, owner: str, name: str, actor: Actor, needed: Access = Access.READ) -> Space:
    """See Spaces.find."""
    key = f"{owner}/{name}".lower()
    where = (Account.key == owner.lower(), Space.key == name.lower())
    space = db.exec(select(Space).join(Account, col(Account.id) == Space.owner_id).where(*where)).first()
    if space is None:
        redirect = db.get(Redirect, key)
        space = db.get(Space, redirect.space_id) if redirect is not None else None
    if space is None or space.desired == Desired.DELETED or access(actor, space) < Access.READ:
        raise RepoNotFound()
    require(space, actor, needed)
    return space


def require(space: Space, actor: Actor, needed: Access) -> None:
    """Raises RepoNotFound to those who may not even see it, Unauthenticated to the anonymous, else Forbidden."""
    mine = access(actor, space)
    if mine >= needed:
        return
    if mine < Access.READ:
        raise RepoNotFound()
    if actor.is_anonymous:
        raise Unauthenticated("Sign in, or send a token, to do this.")
    verb = "change" if needed is Access.WRITE else "administer"
    raise Forbidden(
        f"You are signed in as {actor.name}, who may not {verb} {space.owner}/{space.name} with these credentials."
    )


def _row(tx: Transaction, space: Space) -> Space:
    row = tx.get(Space, space.id)
    if row is None or row.desired == Desired.DELETED:
        raise RepoNotFound()
    return row


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
    if new.sleep_after is not None:
        _check_sleep(new.sleep_after)


def _check_sleep(seconds: int) -> None:
    if seconds != NEVER and not 60 <= seconds <= 365 * 86400:
        raise Invalid(f"Sleep time {seconds} is not -1 (never) or 60 seconds to a year.")


def _check_setting(tx: Transaction, space: Space, setting: Setting, table: Any, other: Any) -> None:
    check_setting_key(setting.key)
    if len(setting.value.encode()) > MAX_VALUE:
        raise Invalid(f"The value of {setting.key} is larger than {MAX_VALUE // 1024} KiB.")
    if "\0" in setting.value:
        raise Invalid(f"The value of {setting.key} has a NUL character, which no environment can hold.")
    if tx.get(other, (space.id, setting.key)) is not None:
        raise Invalid(f"{setting.key} exists as a {other.__name__.lower()} already (collision); delete that first.")
    if tx.get(table, (space.id, setting.key)) is None:
        count = tx.exec(select(func.count()).select_from(table).where(table.space_id == space.id)).one()
        if count >= MAX_SETTINGS:
            raise Invalid(f"A Space has at most {MAX_SETTINGS} of these.")


def _email(actor: Actor) -> str:
    return f"{actor.name or 'platform'}@users.noreply.localhost"
