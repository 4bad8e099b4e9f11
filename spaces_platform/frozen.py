"""Frozen apps are a cache: kept while memory allows, and the one frozen longest goes first.

`victims` decides, `FrozenApps` applies. Which apps are frozen is read from their rows; what they hold, from the
orchestrator; what the machine has left, from the kernel.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlmodel import col, select

from spaces_platform.errors import PlatformError
from spaces_platform.models import Deployment, Event, Space
from spaces_platform.ports import Clock, Freezer, Orchestrator, Queue, Task
from spaces_platform.settings import Settings
from spaces_platform.store import Store

log = logging.getLogger(__name__)

SHARE = 4
"""Frozen apps may hold one part in so many of the machine's memory, where no setting says how much."""
FLOOR_SHARE = 16
"""One part in so many of the machine's memory is left available: below it the kernel begins to reclaim in earnest."""
START_ROOM = 512 << 20
"""Bytes that a starting app is expected to need at first; an app that takes more is seen by the next look."""
MEMINFO = Path("/proc/meminfo")
# Prepared once: every start reads it.
_FROZEN = (
    select(Deployment.id, Deployment.frozen_at)
    .where(Deployment.status == "FROZEN")
    .order_by(col(Deployment.frozen_at), col(Deployment.id))
)


@dataclass(frozen=True, slots=True)
class Frozen:
    """One frozen app."""

    id: int
    frozen_at: float
    memory: int
    """Bytes it holds."""


@dataclass(frozen=True, slots=True)
class Memory:
    """The machine's memory, in bytes."""

    total: int
    available: int
    """What could be given to a new program without swapping (MemAvailable)."""


def victims(frozen: Sequence[Frozen], *, budget: int, available: int, floor: int) -> tuple[int, ...]:
    """Which to stop, longest frozen first, until the rest holds at most `budget` and at least `floor` is available.

    Pure. What is stopped gives back what it holds. A budget of 0 keeps none, whatever they hold.
    """
    held, chosen = sum(f.memory for f in frozen), []
    for f in sorted(frozen, key=lambda f: (f.frozen_at, f.id)):
        if budget > 0 and held <= budget and available >= floor:
            break
        chosen.append(f.id)
        held -= f.memory
        available += f.memory
    return tuple(chosen)


def machine_memory(path: Path = MEMINFO) -> Memory:
    """From the kernel (proc(5)); where there is no such file, memory without bounds, so that only the budget counts."""
    try:
        fields = {
            name: int(rest.split()[0]) << 10
            for name, _, rest in (line.partition(":") for line in path.read_text().splitlines())
            if name in ("MemTotal", "MemAvailable")
        }
        return Memory(fields["MemTotal"], fields["MemAvailable"])
    except (OSError, KeyError, ValueError, IndexError) as exc:
        log.debug("the machine's memory cannot be read: %s", exc)
        return Memory(1 << 62, 1 << 62)


class FrozenApps:
    """Keeps what is frozen within its bounds."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        orchestrator: Orchestrator,
        freezer: Freezer | None,
        queue: Queue,
        settings: Settings,
        memory: Callable[[], Memory] = machine_memory,
    ) -> None:
        self.store, self.clock, self.orchestrator, self.freezer = store, clock, orchestrator, freezer
        self.queue, self.settings, self.memory = queue, settings, memory

    def relieve(self, needed: int = 0) -> Sequence[int]:
        """Stop what the bounds, and `needed` bytes for something else, leave no room for. Returns what was stopped.

        Costs one indexed query where nothing is frozen.
        """
        frozen = self.frozen()
        if not frozen:
            return ()
        memory, megabytes = self.memory(), self.settings.frozen_mb
        chosen = victims(
            frozen,
            budget=memory.total // SHARE if megabytes < 0 else megabytes << 20,
            available=memory.available,
            floor=memory.total // FLOOR_SHARE + needed,
        )
        for deployment_id in chosen:
            self._evict(deployment_id)
        return chosen

    def make_room(self, memory: int) -> None:
        """A start that may take up to `memory` bytes is at hand."""
        self.relieve(min(memory, START_ROOM))

    def frozen(self) -> Sequence[Frozen]:
        """All that is frozen, longest first."""
        with self.store.read() as db:
            rows = db.execute(_FROZEN).all()
        return [Frozen(id or 0, at or 0.0, self._memory_of(id or 0)) for id, at in rows]

    def _memory_of(self, deployment_id: int) -> int:
        try:
            return self.freezer.memory_in_use(deployment_id) if self.freezer is not None else 0
        except PlatformError as exc:
            if not exc.retryable:
                raise
            log.warning("a frozen app's memory is not known: %s", exc, extra={"deployment": deployment_id})
            return 0

    def _evict(self, deployment_id: int) -> None:
        """Stop it unless a visit was faster: whichever commits first, the row says who has won."""
        with self.store.write() as tx:
            row = tx.get(Deployment, deployment_id, with_for_update=True)
            if row is None or row.status != "FROZEN":
                return
            row.status = "STOPPING"
            tx.add(row)
            space = tx.get(Space, row.space_id)
            if space is not None:
                # Its end is recorded by a pass, also if we are killed before the stop.
                space.next_check_at = self.clock.now().timestamp()
                tx.add(space)
            data = {"deployment": deployment_id}
            event = Event(at=self.clock.now().timestamp(), kind="deployment.evicted", space_id=row.space_id, data=data)
            tx.add(event)
            space_id = row.space_id
            tx.after_commit(lambda: self.queue.send(Task.RECONCILE, space_id))
        self.orchestrator.stop(deployment_id)
