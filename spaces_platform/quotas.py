"""How much one owner, a person or an organisation, may have at once. Set by admins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from sqlalchemy import func
from sqlmodel import Session as Read
from sqlmodel import col, select

from spaces_platform.accounts import Actor, find_account
from spaces_platform.errors import Forbidden, Invalid
from spaces_platform.models import Account, Event, GpuLease, Quota, Space
from spaces_platform.ports import Clock, Queue, Task
from spaces_platform.settings import Settings
from spaces_platform.store import Store

NO_LIMIT = -1
MOST = 10_000
"""Larger numbers are slips of the finger."""


@dataclass(frozen=True, slots=True)
class OwnerQuota:
    owner: str
    gpus: int
    """GPUs at once; -1: no limit."""
    used: int
    """GPUs its Spaces hold now. More than `gpus` where the quota was lowered since: what runs is not stopped."""
    is_default: bool
    """It has no quota of its own."""


class Quotas:
    def __init__(self, store: Store, clock: Clock, queue: Queue, settings: Settings) -> None:
        self.store, self.clock, self.queue, self.settings = store, clock, queue, settings

    def list(self, actor: Actor) -> Sequence[OwnerQuota]:
        """Owners that have a quota of their own or hold GPUs, by name. Raises Forbidden."""
        _require_admin(actor)
        with self.store.read() as db:
            own, used = limits(db), self._used(db)
            accounts = select(Account).where(col(Account.id).in_([*own, *used])).order_by(Account.key)
            return [self._of(account, own, used) for account in db.exec(accounts)]

    def set(self, actor: Actor, owner: str, gpus: int | None) -> OwnerQuota:
        """GPUs that `owner` may use at once; -1: no limit; None: the platform's default, as before it had its own.

        What runs goes on; what waits is looked at again.

        Raises Forbidden, NotFound, Invalid.
        """
        _require_admin(actor)
        if gpus is not None and not NO_LIMIT <= gpus <= MOST:
            raise Invalid(f"A quota of {gpus} GPUs is not -1 (no limit) or 0 to {MOST}.")
        now = self.clock.now().timestamp()
        with self.store.write() as tx:
            account = find_account(tx, owner)
            row = tx.get(Quota, account.id)
            data = {"owner": account.name, "gpus": gpus, "before": None if row is None else row.gpus}
            if gpus is not None:
                tx.merge(Quota(owner_id=account.id or 0, gpus=gpus, updated_at=now))
            elif row is not None:
                tx.delete(row)
            tx.add(Event(at=now, kind="quota.set", actor_id=actor.id, actor=actor.name, data=data))
            waiting = tx.exec(
                select(Space.id).where(Space.owner_id == account.id, col(Space.gpu_queued_at).is_not(None))
            ).all()
            for space_id in waiting:
                tx.after_commit(partial(self.queue.send, Task.RECONCILE, space_id or 0))
            tx.flush()
            return self._of(account, limits(tx), self._used(tx))

    def _of(self, account: Account, own: Mapping[int, int], used: Mapping[int, int]) -> OwnerQuota:
        number = account.id or 0
        gpus = own.get(number, self.settings.gpu_quota)
        return OwnerQuota(account.name, gpus, used.get(number, 0), number not in own)

    def _used(self, db: Read) -> dict[int, int]:
        query = select(GpuLease.owner_id, func.count()).group_by(col(GpuLease.owner_id))
        return dict(db.exec(query).all())


def limits(db: Read) -> dict[int, int]:
    """GPUs at once by owner, of those that have a quota of their own."""
    return {row.owner_id: row.gpus for row in db.exec(select(Quota))}


def _require_admin(actor: Actor) -> None:
    if not actor.is_admin:
        raise Forbidden("Only an admin of the platform may see and set quotas.")
