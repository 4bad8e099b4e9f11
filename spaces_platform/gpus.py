"""Who has which GPU, and who is next: the choice is pure, the rows are the truth.

A GPU is given with a row (GpuLease, one per GPU) in the transaction that creates the deployment, and given back when
that deployment is seen to have ended. No grant makes an owner exceed its quota. Starts that cannot have theirs stand in
one line per model, longest waiting first; whoever is over its quota holds up nobody else. A Space whose serving version
holds what the next one needs swaps in place: it stands before the line, since it gives back what it takes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import bindparam, update
from sqlmodel import Session as Read
from sqlmodel import col, delete, or_, select

from spaces_platform.hardware import Hardware, of_model
from spaces_platform.lifecycle import Stage
from spaces_platform.models import Deployment, Event, GpuLease, Space
from spaces_platform.ports import Clock, Gpu, Observation, Queue, RunStatus, Task
from spaces_platform.quotas import NO_LIMIT, limits
from spaces_platform.settings import Settings
from spaces_platform.store import Store, Transaction

FIRST = 0.0
"""The place in line of a Space that waits for what its own version before still holds."""
STARTING = (Stage.APP_STARTING, Stage.RUNNING_APP_STARTING)
"""Stages that show what a start waits for; an error's stage goes on showing the error."""
_OF = select(GpuLease.gpu).where(GpuLease.deployment_id == bindparam("deployment")).order_by(GpuLease.gpu)
HINTS = 50
"""Of those in line, so many are told of a GPU that was given back; the others look again by themselves."""


# --- the choice: pure ------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Wish:
    """A start that needs GPUs."""

    space_id: int
    owner_id: int
    model: str
    count: int
    since: float
    """Since when it waits; orders the line."""


@dataclass(frozen=True, slots=True)
class Held:
    """A GPU that some deployment has."""

    gpu: str
    deployment_id: int
    space_id: int
    owner_id: int


@dataclass(frozen=True, slots=True)
class World:
    """All that a choice depends on."""

    pool: Sequence[Gpu]
    held: Sequence[Held]
    line: Sequence[Wish]
    quotas: Mapping[int, int]
    """By owner; -1: no limit."""
    default_quota: int = NO_LIMIT

    def quota(self, owner_id: int) -> float:
        found = self.quotas.get(owner_id, self.default_quota)
        return float("inf") if found == NO_LIMIT else found

    def without(self, deployments: frozenset[int]) -> World:
        """As it will be once these have ended."""
        held = [h for h in self.held if h.deployment_id not in deployments]
        return World(self.pool, held, self.line, self.quotas, self.default_quota)


class Why(StrEnum):
    """Why a start waits for GPUs; a Space's `reason` meanwhile."""

    NOT_HERE = "gpu_not_here"
    QUOTA = "gpu_quota"
    BUSY = "gpu_busy"
    SWAP = "gpu_swap"
    """What it needs is held by its own version before, which is stopped first."""


@dataclass(frozen=True, slots=True)
class Granted:
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    why: Why
    place: int = 1
    """In line."""
    swap_in_place: bool = False
    """It would be granted if its Space's serving deployment were stopped, and not before."""


def choose(wish: Wish, world: World) -> Granted | Refused:
    """The GPUs for this start, in the pool's order, or why it waits. Grants no more than the pool and the quota have.

    Those who stand before it in line, and could be served by their quota, keep what they wait for.
    """
    found = of_model(world.pool, wish.model)
    if len(found) < wish.count:
        return Refused(Why.NOT_HERE)
    taken = {h.gpu for h in world.held}
    free = [gpu.id for gpu in found if gpu.id not in taken]
    used = Counter(h.owner_id for h in world.held)
    place, kept = 1, 0
    for other in sorted(world.line, key=_order):
        if _order(other) >= _order(wish) or other.space_id == wish.space_id or other.model != wish.model:
            continue
        if other.count > len(found) or used[other.owner_id] + other.count > world.quota(other.owner_id):
            continue
        used[other.owner_id] += other.count
        place, kept = place + 1, kept + other.count
    if used[wish.owner_id] + wish.count > world.quota(wish.owner_id):
        return Refused(Why.QUOTA, place)
    if kept + wish.count > len(free):
        return Refused(Why.BUSY, place)
    return Granted(tuple(free[: wish.count]))


def choose_or_swap(wish: Wish, world: World, routed: int | None) -> Granted | Refused:
    """As `choose`, and says where the Space's own earlier deployments hold what it needs.

    `routed`: the deployment of the Space that serves. A version that serves is given up only where that helps.
    """
    mine = frozenset(h.deployment_id for h in world.held if h.space_id == wish.space_id)
    own = {h.gpu for h in world.held if h.space_id == wish.space_id}
    if len([gpu for gpu in of_model(world.pool, wish.model) if gpu.id in own]) >= wish.count:
        wish = Wish(wish.space_id, wish.owner_id, wish.model, wish.count, FIRST)
    found = choose(wish, world)
    if isinstance(found, Granted) or not mine:
        return found
    if isinstance(choose(wish, world.without(mine)), Refused):
        return found
    ending = mine - {routed}
    waits_only = isinstance(choose(wish, world.without(ending)), Granted)
    return Refused(Why.SWAP, found.place, swap_in_place=not waits_only)


def _order(wish: Wish) -> tuple[float, int]:
    return wish.since, wish.space_id


# --- the rows --------------------------------------------------------------------------------------------------------
class Gpus:
    """The leases and the line. Every grant is decided in a write transaction that takes turns with all others."""

    def __init__(self, store: Store, clock: Clock, queue: Queue, hardware: Hardware, settings: Settings) -> None:
        self.store, self.clock, self.queue = store, clock, queue
        self.hardware, self.settings = hardware, settings

    def now(self) -> float:
        return self.clock.now().timestamp()

    def ask(self, db: Read, space: Space) -> Granted | Refused:
        """What a start of the Space can have now. Binding only within a write transaction."""
        if not self.hardware.flavor(space.hardware).gpus:
            return Granted()
        since = self.now() if space.gpu_queued_at is None else space.gpu_queued_at
        return choose_or_swap(self._wish(space, since), self._world(db), space.routed)

    def must_swap(self, space: Space) -> bool:
        """Whether the version that serves must end before the next one can have its GPUs."""
        if space.routed is None or not self.hardware.flavor(space.hardware).gpus:
            return False
        with self.store.read() as db:
            found = self.ask(db, space)
        return isinstance(found, Refused) and found.swap_in_place

    def take(self, tx: Transaction, space: Space) -> Granted | Refused:
        """Decide for a start that is at hand; a refused one stands in line with its reason from now on."""
        if not self.hardware.flavor(space.hardware).gpus:
            space.gpu_queued_at = None
            return Granted()
        found = self.ask(tx, space)
        if isinstance(found, Refused):
            self._stand_in_line(tx, space, found)
        return found

    def give(self, tx: Transaction, space: Space, deployment: Deployment, granted: Granted) -> None:
        """Write down what a new deployment has. Same transaction as `take`."""
        space.gpu_queued_at = None
        for gpu in granted.gpus:
            tx.add(
                GpuLease(gpu=gpu, deployment_id=deployment.id or 0, space_id=space.id or 0, owner_id=space.owner_id,
                         since=self.now())
            )  # fmt: skip
        if granted.gpus:
            data = {"deployment": deployment.id, "gpus": list(granted.gpus), "owner": space.owner}
            tx.add(Event(at=self.now(), kind="gpu.granted", space_id=space.id, data=data))

    def release(self, tx: Transaction, deployment_id: int) -> bool:
        """Take back what a deployment had, which is seen to have ended; those in line are told. False: it had none."""
        leases = tx.exec(select(GpuLease).where(GpuLease.deployment_id == deployment_id)).all()
        if not leases:
            return False
        tx.execute(delete(GpuLease).where(col(GpuLease.deployment_id) == deployment_id))
        data = {"deployment": deployment_id, "gpus": sorted(lease.gpu for lease in leases)}
        tx.add(Event(at=self.now(), kind="gpu.released", space_id=leases[0].space_id, data=data))
        tx.after_commit(self._hint_line)
        return True

    def release_failed(self, tx: Transaction, space: Space, deployment_id: int) -> None:
        """As `release`, of one that failed: what its Space starts at once instead, its last good version, goes first.

        A Space that does not ask for a start in its next pass loses that place.
        """
        if self.release(tx, deployment_id):
            space.gpu_queued_at = FIRST
            tx.add(space)

    def release_ended(self, observe: Callable[[], Mapping[int, Observation]]) -> None:
        """Take back what is held by deployments whose row has ended, once nothing of them runs any more.

        One indexed query where there is nothing to do. Heals also what a kill left.
        """
        ended = or_(col(Deployment.id).is_(None), col(Deployment.status).in_(("GONE", "FAILED")))
        rows = col(Deployment.id) == col(GpuLease.deployment_id)
        query = select(GpuLease.deployment_id).outerjoin(Deployment, rows)
        with self.store.read() as db:
            ids = set(db.exec(query.where(ended)).all())
        if not ids:
            return
        observed = observe()
        for deployment_id in ids:
            seen = observed.get(deployment_id)
            if seen is None or seen.status is RunStatus.EXITED:
                with self.store.write() as tx:
                    self.release(tx, deployment_id)

    def leave_line(self, space_id: int) -> None:
        """The Space no longer asks for a start: those behind it move up."""
        with self.store.write() as tx:
            waits = (col(Space.id) == space_id, col(Space.gpu_queued_at).is_not(None))
            if tx.execute(update(Space).where(*waits).values(gpu_queued_at=None)).rowcount:  # type: ignore[attr-defined]
                tx.after_commit(self._hint_line)

    def of(self, db: Read, deployment_id: int) -> tuple[str, ...]:
        """Ids of the GPUs that a deployment has."""
        return tuple(db.execute(_OF, {"deployment": deployment_id}).scalars())

    def holders(self) -> Sequence[tuple[Gpu, GpuLease | None, Space | None]]:
        """Every GPU, and who has it; also one that is held and no longer in the pool."""
        with self.store.read() as db:
            query = select(GpuLease, Space).join(Space, col(Space.id) == col(GpuLease.space_id))
            held = {lease.gpu: (lease, space) for lease, space in db.exec(query)}
        known = {gpu.id: gpu for gpu in self.hardware.gpus}
        everything = [*known.values(), *(Gpu(id, "") for id in sorted(held) if id not in known)]
        return [(gpu, *held.get(gpu.id, (None, None))) for gpu in everything]

    def explain(self, space: Space, refused: Refused) -> str:
        """For its owner: what the start waits for, and what to do."""
        flavor = self.hardware.flavor(space.hardware)
        needs = f"{flavor.gpus} {flavor.gpu} GPU{'s' if flavor.gpus > 1 else ''}"
        match refused.why:
            case Why.NOT_HERE:
                return (
                    f"{flavor.name} needs {needs}, which this platform does not have (any more). "
                    f"Choose other hardware: {self.hardware.names()}."
                )
            case Why.QUOTA:
                return (
                    f"Waiting for {needs}: the quota of {space.owner} does not allow more at once. It starts when "
                    "another of its Spaces sleeps or is paused, or an admin raises the quota."
                )
            case Why.SWAP:
                return (
                    f"There is no second {flavor.gpu} GPU to start the new version beside the old one: the version "
                    "before is stopped first, then the new one starts."
                )
            case Why.BUSY:
                return f"Waiting for {needs}, number {refused.place} in line: all are in use."

    # --- inside ----------------------------------------------------------------------------------
    def _stand_in_line(self, tx: Transaction, space: Space, refused: Refused) -> None:
        message = self.explain(space, refused)
        since = FIRST if refused.why is Why.SWAP else self.now()
        is_shown = space.stage in STARTING
        if space.gpu_queued_at is None or (is_shown and space.reason != refused.why):
            data = {"hardware": space.hardware, "reason": str(refused.why), "message": message}
            tx.add(Event(at=self.now(), kind="gpu.waiting", space_id=space.id, data=data))
        space.gpu_queued_at = since if space.gpu_queued_at is None else min(since, space.gpu_queued_at)
        # It does not stand in the line for start slots too: it could not use one.
        space.start_queued_at = None
        if is_shown and (space.reason, space.message) != (refused.why, message):
            space.reason, space.message = str(refused.why), message
            space.route_version = tx.next_version()
        tx.add(space)

    def _wish(self, space: Space, since: float) -> Wish:
        flavor = self.hardware.flavor(space.hardware)
        return Wish(space.id or 0, space.owner_id, flavor.gpu, flavor.gpus, since)

    def _world(self, db: Read) -> World:
        held = [Held(row.gpu, row.deployment_id, row.space_id, row.owner_id) for row in db.exec(select(GpuLease))]
        waiting = (
            col(Space.gpu_queued_at).is_not(None),
            Space.desired == "RUNNING",
            col(Space.purged_at).is_(None),
        )
        line = [self._wish(space, space.gpu_queued_at or FIRST) for space in db.exec(select(Space).where(*waiting))]
        wishes = [wish for wish in line if wish.count]
        return World(self.hardware.gpus, held, wishes, limits(db), self.settings.gpu_quota)

    def _hint_line(self) -> None:
        with self.store.read() as db:
            waits = col(Space.gpu_queued_at).is_not(None)
            ids = db.exec(select(Space.id).where(waits).order_by(col(Space.gpu_queued_at)).limit(HINTS)).all()
        for space_id in ids:
            self.queue.send(Task.RECONCILE, space_id or 0)
