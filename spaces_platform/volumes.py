"""What people do with a Space's volume: look at it, take snapshots, put one back.

Each use case checks what the actor may do and leaves an Event. How large a volume is to be, and that it is to be
removed, is part of what is desired of the Space (`space_settings`); the reconciler sees to both.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlmodel import col, select

from spaces_platform.accounts import PLATFORM, Access, Actor
from spaces_platform.errors import Conflict, DiskFull, NotFound, RepoNotFound, TooMany, Unavailable
from spaces_platform.lifecycle import OPEN, Desired
from spaces_platform.models import Deployment, Event, Space
from spaces_platform.ports import SNAPSHOT_NAME, Clock, VolumeUse
from spaces_platform.space_directory import require
from spaces_platform.storage import Storage
from spaces_platform.store import Store

AT_ONCE = 2
"""Volumes that are copied at once, of all Spaces: each copy keeps a disk busy and a request waiting."""


@dataclass(frozen=True, slots=True)
class Volume:
    """A Space's storage, as asked for and as it is."""

    tier: str | None
    """As asked for; None: the platform's default."""
    wanted: int
    """Bytes it is to have at the next start; 0: there will be none."""
    use: VolumeUse | None
    """None before the first start."""
    is_removed: bool
    """It goes, with its snapshots, as soon as no app has it."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    name: str
    taken_at: float


class SpaceVolumes:
    def __init__(
        self, store: Store, clock: Clock, storage: Storage, free_disk: Callable[[], int], disk_floor: int
    ) -> None:
        """`free_disk`: bytes that are free where volumes lie; `disk_floor`: bytes of them that snapshots leave free."""
        self.store, self.clock, self.storage = store, clock, storage
        self.free_disk, self.disk_floor = free_disk, disk_floor
        self._busy: set[int] = set()
        self._lock = threading.Lock()

    def show(self, space: Space, actor: Actor) -> Volume:
        """Raises Forbidden; Invalid where there are no volumes."""
        require(space, actor, Access.WRITE)
        use = self.storage.require().use(space.id or 0)
        return Volume(space.storage, self.storage.size_of(space), use, space.drops_volume)

    def snapshots(self, space: Space, actor: Actor) -> Sequence[Snapshot]:
        """Oldest first. Raises Forbidden; Invalid where there are no volumes."""
        require(space, actor, Access.WRITE)
        return [_snapshot(name) for name in self.storage.require().snapshots(space.id or 0)]

    def snapshot(self, space: Space, actor: Actor) -> Snapshot:
        """A copy of the volume as it is at one moment; the app goes on, and its writes wait until it is taken.

        Raises Forbidden, NotFound before the first start, DiskFull, Conflict, TooMany; Invalid where there are no
        volumes.
        """
        require(space, actor, Access.WRITE)
        volumes, space_id = self.storage.require(), space.id or 0
        with self._alone(space):
            there = volumes.use(space_id)
            if there is not None and self.free_disk() - there.used < self.disk_floor:
                raise DiskFull(
                    f"A snapshot of {space.owner}/{space.name} takes {there.used >> 20} MiB, and would leave less than "
                    f"{self.disk_floor >> 20} MiB of the machine's disk free. Free some space first."
                )
            name = volumes.snapshot(space_id)
            self._record("volume.snapshot", space_id, actor, name)
        return _snapshot(name)

    def restore(self, space: Space, actor: Actor, name: str) -> None:
        """Put a snapshot in the place of what the volume has now, which is lost. Only of a paused Space.

        Raises Forbidden, NotFound; Conflict while it is not paused, Unavailable while its app still ends; Invalid
        where there are no volumes.
        """
        require(space, actor, Access.WRITE)
        volumes, space_id = self.storage.require(), space.id or 0
        full = f"{space.owner}/{space.name}"
        with self._alone(space):
            self._check_paused(space_id)
            if name not in volumes.snapshots(space_id):
                raise NotFound(f"{full} has no snapshot {name[:100]!r}; `spaces volume list {full}` lists them.")
            # Before, so that what a kill leaves half-known has its Event.
            self._record("volume.restored", space_id, actor, name)
            try:
                volumes.restore(space_id, name)
            except Conflict as exc:
                raise Unavailable(f"The app of {full} is still ending; try again in a moment.") from exc

    def _check_paused(self, space_id: int) -> None:
        with self.store.read() as db:
            row = db.get(Space, space_id)
            running = (Deployment.space_id == space_id, col(Deployment.status).in_(OPEN))
            still = db.exec(select(Deployment.id).where(*running)).first()
        if row is None or row.desired == Desired.DELETED:
            raise RepoNotFound()
        full = f"{row.owner}/{row.name}"
        if row.desired != Desired.PAUSED:
            raise Conflict(f"{full} is not paused, and its app would lose what it has open. Pause it, then restore.")
        if still is not None:
            raise Unavailable(f"The app of {full} is still ending; try again in a moment.")
        if row.drops_volume:
            raise Conflict(f"The storage of {full} is being deleted, with its snapshots.")

    def remove(self, space_id: int) -> None:
        """Remove the volume, its snapshots and the wish for that; for the reconciler. Idempotent.

        Raises Unavailable while an app has it.
        """
        self.storage.require().remove(space_id)
        with self.store.write() as tx:
            row = tx.get(Space, space_id)
            if row is not None and row.drops_volume:
                row.drops_volume = False
                tx.add(row)
                now = self.clock.now().timestamp()
                tx.add(Event(at=now, kind="volume.removed", space_id=space_id, actor=PLATFORM.name))

    @contextmanager
    def _alone(self, space: Space) -> Iterator[None]:
        """One copy of a Space's volume at a time, and AT_ONCE of all. Raises Conflict, TooMany."""
        space_id = space.id or 0
        with self._lock:
            if space_id in self._busy:
                raise Conflict(
                    f"The volume of {space.owner}/{space.name} is being copied; try again when that is done."
                )
            if len(self._busy) >= AT_ONCE:
                raise TooMany("Other Spaces' volumes are being copied; try again in a moment.")
            self._busy.add(space_id)
        try:
            yield
        finally:
            with self._lock:
                self._busy.discard(space_id)

    def _record(self, kind: str, space_id: int, actor: Actor, name: str) -> None:
        now = self.clock.now().timestamp()
        with self.store.write() as tx:
            data = {"snapshot": name}
            tx.add(Event(at=now, kind=kind, space_id=space_id, actor_id=actor.id, actor=actor.name, data=data))


def _snapshot(name: str) -> Snapshot:
    return Snapshot(name, datetime.strptime(name, SNAPSHOT_NAME).replace(tzinfo=UTC).timestamp())
