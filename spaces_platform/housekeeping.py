"""Keeps the disk in bounds: old artifacts, repositories to repack, package caches, old events and sessions.

Nothing is removed that a Space could wake from: its newest builds, what serves, and what served last are kept.
"""

from __future__ import annotations

import logging

from sqlalchemy import func, update
from sqlmodel import Session as Read
from sqlmodel import col, delete, select

from builders.types import Builder, BuilderUnavailable
from spaces_platform.build_files import BuildFiles
from spaces_platform.errors import PlatformError
from spaces_platform.lifecycle import OPEN
from spaces_platform.models import Build, Counter, Deployment, Event, Session, Space
from spaces_platform.ports import Clock, LogStore, RepoStore
from spaces_platform.space_directory import repo_id
from spaces_platform.store import Store

log = logging.getLogger(__name__)

KEEP_ARTIFACTS = 3
"""Newest artifacts of a Space that are kept besides those in use: what a rollback goes to."""
KEEP_BUILDS = 50
"""Builds of a Space whose rows and logs are kept."""
HOUSEKEEPING_SECONDS = 3600.0
"""How often it is done."""
KEEP_EVENTS_SECONDS = 400 * 86400.0
"""The audit log goes back more than a year."""


class Housekeeping:
    def __init__(
        self, store: Store, clock: Clock, repos: RepoStore, builder: Builder, logs: LogStore, files: BuildFiles
    ) -> None:
        self.store, self.clock, self.repos, self.builder, self.logs = store, clock, repos, builder, logs
        self.files = files

    def now(self) -> float:
        return self.clock.now().timestamp()

    def run_if_due(self) -> None:
        """Everything, unless it was begun a short while ago, by any process: hints may be doubled or pile up."""
        minute = int(self.now() // 60)
        if self._move("housekeeping_minute", minute, least=minute - int(HOUSEKEEPING_SECONDS // 120)):
            self.run()

    def run(self) -> None:
        """Everything once. Takes as long as there is to remove; safe beside all other work."""
        self.prune_builds()
        self.prune_caches()
        self.maintain_repositories()
        self.forget_old()

    def prune_builds(self) -> int:
        """Remove artifacts that nothing can wake from, and old rows and logs. Returns how many artifacts."""
        with self.store.read() as db:
            many = select(Build.space_id).group_by(col(Build.space_id)).having(func.count() > KEEP_ARTIFACTS)
            spaces = db.exec(many).all()
        return sum(self._prune(space_id) for space_id in spaces)

    def _prune(self, space_id: int) -> int:
        with self.store.read() as db:
            builds = db.exec(select(Build).where(Build.space_id == space_id).order_by(col(Build.id).desc())).all()
            wanted = self._wanted(db, space_id)
        kept = [b.artifact for b in builds if b.artifact is not None]
        wanted |= set(list(dict.fromkeys(kept))[:KEEP_ARTIFACTS])
        removed = {b.artifact for b in builds if b.artifact is not None} - wanted
        old = [b.id for b in builds[KEEP_BUILDS:] if b.artifact not in wanted and b.status not in ("QUEUED", "RUNNING")]
        with self.store.write() as tx:
            # The rows first: a row that names an artifact promises that it can be started.
            mine = (col(Build.space_id) == space_id, col(Build.artifact).in_(removed))
            tx.execute(update(Build).where(*mine).values(artifact=None))
            tx.execute(delete(Build).where(col(Build.id).in_(old)))
        for artifact in removed:
            if not self._is_used(artifact):
                self._remove(artifact)
        for build_id in old:
            self.logs.delete(f"build/{build_id}")
            self.files.delete(build_id or 0)
        return len(removed)

    def _remove(self, artifact: str) -> None:
        try:
            self.builder.remove(artifact)
        except BuilderUnavailable as exc:
            # Its row is gone, so nothing names it: what the builder has without a row goes when it prunes.
            log.warning("an artifact is not removed yet: %s", exc, extra={"artifact": artifact})

    def prune_caches(self) -> int:
        """Free what no artifact needs. Bytes, about."""
        try:
            return self.builder.prune()
        except BuilderUnavailable as exc:
            log.warning("caches are not pruned now: %s", exc)
            return 0

    def _wanted(self, db: Read, space_id: int) -> set[str]:
        running = (Deployment.space_id == space_id, col(Deployment.status).in_(OPEN))
        wanted = set(db.exec(select(Deployment.artifact).where(*running)).all())
        space = db.get(Space, space_id)
        return wanted | ({space.last_good} if space is not None and space.last_good else set())

    def _is_used(self, artifact: str) -> bool:
        with self.store.read() as db:
            return db.exec(select(Build.id).where(Build.artifact == artifact)).first() is not None

    def maintain_repositories(self) -> int:
        """Repack the repositories that were pushed to since the last time. Returns how many."""
        pushes = ("space.pushed", "space.created", "space.push_found")
        with self.store.read() as db:
            newest = db.exec(select(func.max(Event.id))).one() or 0
            done = db.get(Counter, "maintained_to")
            query = (
                select(Event.space_id)
                .where(col(Event.id) > (done.value if done is not None else 0), col(Event.kind).in_(pushes))
                .distinct()
            )
            spaces = db.exec(query).all()
        for space_id in spaces:
            try:
                self.repos.maintain(self.repos.open(repo_id(space_id or 0)))
            except PlatformError as exc:
                # Deleted meanwhile, or pushed to again and again: the next round takes it.
                log.info("repository left as it is: %s", exc, extra={"space": space_id})
        # Last: what a kill leaves undone is done again.
        self._move("maintained_to", newest, least=newest)
        return len(spaces)

    def _move(self, name: str, value: int, *, least: int) -> bool:
        """Set a number that all processes share, if it is not above `least`. Whether this call did."""
        with self.store.write() as tx:
            row = tx.get(Counter, name) or Counter(name=name)
            if row.value > least:
                return False
            row.value = value
            tx.add(row)
        return True

    def forget_old(self) -> None:
        with self.store.write() as tx:
            tx.execute(delete(Event).where(col(Event.at) < self.now() - KEEP_EVENTS_SECONDS))
            tx.execute(delete(Session).where(col(Session.expires_at) < self.now()))
