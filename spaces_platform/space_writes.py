"""How any change of a Space is written: the row, a new route version and the Event in one transaction, then the hints.

Owns: that none of these is left out, and that nobody hears of a change before it is committed. Does not own: what is
changed, nor who may change it (`spaces`, `space_settings`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from spaces_platform.accounts import Actor
from spaces_platform.errors import RepoNotFound
from spaces_platform.lifecycle import Desired
from spaces_platform.models import Event, Space
from spaces_platform.ports import Clock, Queue, Task
from spaces_platform.routing import RouteFeed
from spaces_platform.store import Store, Transaction


class SpaceWrites:
    def __init__(self, store: Store, clock: Clock, queue: Queue, feed: RouteFeed) -> None:
        self.store, self.clock, self.queue, self.feed = store, clock, queue, feed

    def update(
        self,
        space: Space,
        actor: Actor,
        kind: str,
        change: Callable[[Space], None],
        data: Mapping[str, Any] | None = None,
    ) -> Space:
        """Let `change` set what is to be on the row as it is now, in a transaction of its own. Raises RepoNotFound."""
        with self.store.write() as tx:
            row = living(tx, space)
            change(row)
            self.save(tx, row, kind, actor, data or {})
        return row

    def save(self, tx: Transaction, row: Space, kind: str, actor: Actor, data: Mapping[str, Any]) -> None:
        """Write a changed row with its Event; the reconciler and all who follow the Space hear of it once committed."""
        now = self.clock.now().timestamp()
        row.route_version = tx.next_version()
        row.next_check_at = now
        tx.add(row)
        tx.add(Event(at=now, kind=kind, space_id=row.id, actor_id=actor.id, actor=actor.name, data=dict(data)))
        space_id = row.id or 0
        tx.after_commit(lambda: self.queue.send(Task.RECONCILE, space_id))
        tx.after_commit(lambda: self.feed.changed(space_id))


def living(tx: Transaction, space: Space) -> Space:
    """The row as it is in this transaction. Raises RepoNotFound once the Space is deleted."""
    row = tx.get(Space, space.id)
    if row is None or row.desired == Desired.DELETED:
        raise RepoNotFound()
    return row
