"""Finds work that no hint told of: what is due, what was lost in a kill, what runs without a row that wants it.

Everything here is cheap however many Spaces sleep, and safe to do twice or by two processes at once.
"""

from __future__ import annotations

import logging

from sqlalchemy import update
from sqlmodel import col, or_, select

from spaces_platform.accounts import PLATFORM
from spaces_platform.errors import RepoNotFound
from spaces_platform.lifecycle import OPEN, Desired, Stage
from spaces_platform.models import Deployment, Event, Space
from spaces_platform.ports import Clock, Orchestrator, Queue, RepoStore, Task
from spaces_platform.space_directory import repo_id
from spaces_platform.store import Store
from spaces_platform.traffic import Traffic

log = logging.getLogger(__name__)


class Sweep:
    def __init__(
        self,
        store: Store,
        clock: Clock,
        repos: RepoStore,
        orchestrator: Orchestrator,
        traffic: Traffic,
        queue: Queue,
        unrecorded: set[int],
    ) -> None:
        """`unrecorded`: Spaces whose newest push could not be recorded (`Spaces.unrecorded`)."""
        self.store, self.clock, self.repos = store, clock, repos
        self.orchestrator, self.traffic, self.queue = orchestrator, traffic, queue
        self.unrecorded = unrecorded

    def now(self) -> float:
        return self.clock.now().timestamp()

    def hint_due(self) -> int:
        """Hint every Space that is due. Cheap however many sleep: they are not due. Returns how many were."""
        self._save_activity()
        with self.store.read() as db:
            due = (col(Space.next_check_at) <= self.now(), col(Space.purged_at).is_(None))
            ids = db.exec(select(Space.id).where(*due).order_by(col(Space.next_check_at)).limit(500)).all()
        for space_id in ids:
            if space_id is not None:
                self.queue.send(Task.RECONCILE, space_id)
        return len(ids)

    def recover(self) -> None:
        """After a start: every Space that should run, builds or is being deleted is looked at once."""
        with self.store.write() as tx:
            busy = or_(
                col(Space.routed).is_not(None),
                col(Space.desired) == Desired.DELETED,
                col(Space.stage).in_([s.value for s in Stage if s not in (Stage.SLEEPING, Stage.PAUSED)]),
                col(Space.id).in_(select(Deployment.space_id).where(col(Deployment.status).in_(OPEN))),
            )
            tx.execute(update(Space).where(col(Space.purged_at).is_(None), busy).values(next_check_at=self.now()))

    def record_pushes(self) -> None:
        """Take up pushes that could not be recorded when they were made."""
        for space_id in tuple(self.unrecorded):
            try:
                self._take_up(space_id, self.repos.open(repo_id(space_id)).head())
            except RepoNotFound:
                log.info("a push is gone with its Space", extra={"space": space_id})
            self.unrecorded.discard(space_id)

    def find_lost_pushes(self) -> int:
        """Compare every repository's main with the row: a push whose record was lost is taken up. Returns how many."""
        with self.store.read() as db:
            rows = db.exec(
                select(Space.id, Space.head).where(col(Space.purged_at).is_(None), Space.desired != "DELETED")
            ).all()
        found = 0
        for space_id, head in rows:
            try:
                actual = self.repos.open(repo_id(space_id or 0)).head()
            except RepoNotFound:
                continue
            if actual != head:
                found += 1
                self._take_up(space_id or 0, actual)
        return found

    def _take_up(self, space_id: int, head: str | None) -> None:
        with self.store.write() as tx:
            space = tx.get(Space, space_id)
            if space is None or space.head == head:
                return
            space.head, space.last_active_at, space.next_check_at = head, self.now(), self.now()
            tx.add(space)
            tx.add(
                Event(
                    at=self.now(), kind="space.push_found", space_id=space_id, actor=PLATFORM.name, data={"head": head}
                )
            )

    def stop_orphans(self) -> None:
        """End what runs without a row that wants it."""
        observed = self.orchestrator.observe()
        with self.store.read() as db:
            rows = db.exec(
                select(Deployment.id).where(col(Deployment.id).in_(list(observed)), col(Deployment.status).in_(OPEN))
            ).all()
        for deployment_id in set(observed) - set(rows):
            self.orchestrator.stop(deployment_id)

    def put_all_to_sleep(self) -> None:
        """The platform is stopped on purpose: what ran is asleep, and wakes by a visit after the next start."""
        with self.store.write() as tx:
            now = self.now()
            version = tx.next_version()
            running = col(Space.routed).is_not(None)
            tx.execute(
                update(Space)
                .where(running, col(Space.desired) == Desired.RUNNING)
                .values(
                    routed=None, slept_at=now, last_active_at=0.0, stage="SLEEPING", route_version=version, message=""
                )
            )
            tx.execute(
                update(Deployment)
                .where(col(Deployment.status).in_(OPEN))
                .values(status="GONE", live=False, ended_at=now)
            )

    def _save_activity(self) -> None:
        unsaved = self.traffic.take_unsaved()
        if not unsaved:
            return
        with self.store.write() as tx:
            for space_id, at in unsaved.items():
                older = (col(Space.id) == space_id, col(Space.last_active_at) < at)
                tx.execute(update(Space).where(*older).values(last_active_at=at))
        self.traffic.saved(unsaved)
