"""What a Space is set to run with: variables and secrets, hardware, storage, and when it falls asleep.

Owns: which of these a Space can have here, and that the app is started anew where one of them is part of how it runs.
Each use case checks what the actor may do and writes what is desired; none starts or stops anything. Does not own: what
hardware and storage there are (`hardware`, `storage`), how values are sealed (`secrets`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import func
from sqlmodel import col, select

from spaces_platform.accounts import Access, Actor
from spaces_platform.errors import Invalid
from spaces_platform.hardware import Hardware
from spaces_platform.models import Secret, Space, Variable
from spaces_platform.names import check_setting_key
from spaces_platform.ports import Clock
from spaces_platform.secrets import Vault
from spaces_platform.space_directory import require
from spaces_platform.space_writes import SpaceWrites, living
from spaces_platform.storage import Storage
from spaces_platform.store import Store, Transaction

MAX_VALUE = 64 * 1024
"""Bytes of one variable or secret: an environment of many larger ones does not fit `execve`."""
MAX_SETTINGS = 200
NEVER = -1
"""The time after which a Space falls asleep that never does."""

Table = type[Variable] | type[Secret]


@dataclass(frozen=True, slots=True)
class Setting:
    """A variable or secret as somebody gives it."""

    key: str
    value: str
    description: str = ""


class SpaceSettings:
    def __init__(
        self, store: Store, clock: Clock, writes: SpaceWrites, vault: Vault, hardware: Hardware, storage: Storage
    ) -> None:
        self.store, self.clock, self.writes = store, clock, writes
        self.vault, self.hardware, self.storage = vault, hardware, storage

    def now(self) -> float:
        return self.clock.now().timestamp()

    # --- variables and secrets -------------------------------------------------------------------
    def variables(self, space: Space) -> Sequence[Variable]:
        """By name."""
        with self.store.read() as db:
            return db.exec(select(Variable).where(Variable.space_id == space.id).order_by(Variable.key)).all()

    def secrets(self, space: Space, actor: Actor) -> Sequence[Secret]:
        """Names, descriptions and dates; a value never leaves. Raises Forbidden."""
        require(space, actor, Access.WRITE)
        with self.store.read() as db:
            return db.exec(select(Secret).where(Secret.space_id == space.id).order_by(Secret.key)).all()

    def set_variables(self, space: Space, actor: Actor, settings: Iterable[Setting]) -> None:
        """Set all of them with one restart. Raises Forbidden, Invalid."""
        self._set(space, actor, "variable.set", settings, self.put_variable)

    def set_secrets(self, space: Space, actor: Actor, settings: Iterable[Setting]) -> None:
        """Set all of them with one restart. Raises Forbidden, Invalid."""
        self._set(space, actor, "secret.set", settings, self.put_secret)

    def delete_setting(self, space: Space, actor: Actor, table: Table, key: str) -> None:
        """Deleting the absent is success. Raises Forbidden."""
        require(space, actor, Access.WRITE)
        with self.store.write() as tx:
            found = tx.get(table, (space.id, key))
            if found is None:
                return
            tx.delete(found)
            row = living(tx, space)
            row.generation += 1
            self.writes.save(tx, row, f"{table.__name__.lower()}.deleted", actor, {"key": key})

    def put_variable(self, tx: Transaction, space: Space, setting: Setting) -> None:
        """Set it as part of a change that the caller saves. Raises Invalid."""
        _check_setting(tx, space, setting, Variable, Secret)
        tx.merge(
            Variable(space_id=space.id or 0, key=setting.key, value=setting.value, description=setting.description,
                     updated_at=self.now())
        )  # fmt: skip

    def put_secret(self, tx: Transaction, space: Space, setting: Setting) -> None:
        """Set it as part of a change that the caller saves. Raises Invalid."""
        _check_setting(tx, space, setting, Secret, Variable)
        sealed = self.vault.seal(setting.value, space_id=space.id or 0, key=setting.key)
        tx.merge(
            Secret(space_id=space.id or 0, key=setting.key, sealed=sealed, description=setting.description,
                   updated_at=self.now())
        )  # fmt: skip

    def _set(
        self,
        space: Space,
        actor: Actor,
        kind: str,
        settings: Iterable[Setting],
        put: Callable[[Transaction, Space, Setting], None],
    ) -> None:
        require(space, actor, Access.WRITE)
        given = list(settings)
        if not given:
            return
        with self.store.write() as tx:
            row = living(tx, space)
            for setting in given:
                put(tx, row, setting)
            row.generation += 1
            self.writes.save(tx, row, kind, actor, {"keys": [s.key for s in given]})

    # --- what it runs on -------------------------------------------------------------------------
    def check(self, hardware: str, storage: str | None = None, sleep_after: int | None = None) -> None:
        """Whether a new Space can have these here; None: the platform's default. Raises Invalid."""
        if sleep_after is not None:
            _check_sleep(sleep_after)
        self.hardware.check(hardware)
        if storage is not None:
            self.storage.check(storage)

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

        require(space, actor, Access.WRITE)
        return self.writes.update(space, actor, "space.hardware", change, {"hardware": flavor})

    def set_storage(self, space: Space, actor: Actor, tier: str) -> Space:
        """Ask for storage; the app restarts with it. What the volume holds stays.

        Raises Forbidden; Invalid for a tier that there is not, or that is smaller, or where there are no volumes.
        """
        require(space, actor, Access.WRITE)

        def change(row: Space) -> None:
            self.storage.check(tier, row.storage)
            if row.storage != tier:
                row.storage, row.generation = tier, row.generation + 1

        return self.writes.update(space, actor, "space.storage", change, {"tier": tier})

    def delete_storage(self, space: Space, actor: Actor) -> Space:
        """Have the volume and its snapshots removed once its app has ended, which then starts with an empty one of the
        platform's default size, or none. Raises Forbidden; Invalid where there are no volumes.

        Snapshots go as well, which who may only write could not bring about otherwise: this is for who may delete.
        """
        require(space, actor, Access.ADMIN)
        self.storage.require()

        def change(row: Space) -> None:
            row.storage, row.drops_volume, row.generation = None, True, row.generation + 1

        return self.writes.update(space, actor, "space.storage_deleted", change)

    def set_sleep_after(self, space: Space, actor: Actor, seconds: int) -> Space:
        """-1: never. Raises Forbidden, Invalid."""
        require(space, actor, Access.WRITE)
        _check_sleep(seconds)

        def change(row: Space) -> None:
            row.sleep_after = seconds

        return self.writes.update(space, actor, "space.sleep_after", change, {"seconds": seconds})


def _check_sleep(seconds: int) -> None:
    if seconds != NEVER and not 60 <= seconds <= 365 * 86400:
        raise Invalid(f"Sleep time {seconds} is not -1 (never) or 60 seconds to a year.")


def _check_setting(tx: Transaction, space: Space, setting: Setting, table: Table, other: Table) -> None:
    check_setting_key(setting.key)
    if len(setting.value.encode()) > MAX_VALUE:
        raise Invalid(f"The value of {setting.key} is larger than {MAX_VALUE // 1024} KiB.")
    if "\0" in setting.value:
        raise Invalid(f"The value of {setting.key} has a NUL character, which no environment can hold.")
    if tx.get(other, (space.id, setting.key)) is not None:
        raise Invalid(f"{setting.key} exists as a {other.__name__.lower()} already (collision); delete that first.")
    if tx.get(table, (space.id, setting.key)) is None:
        count = tx.exec(select(func.count()).select_from(table).where(col(table.space_id) == space.id)).one()
        if count >= MAX_SETTINGS:
            raise Invalid(f"A Space has at most {MAX_SETTINGS} of these.")
