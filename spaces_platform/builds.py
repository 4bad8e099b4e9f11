"""Builds: from a row in the queue to an artifact or a reason.

`run_next` is the body of the build job, called by whatever queue there is. A hint says only that there is work: the
best build of the line (`build_line`) is claimed, whichever the hint was sent for, so a lost, doubled or late hint
changes neither what is built nor how often. The claim is renewed while the work goes on; a build whose worker died
goes back to the queue (`requeue_lost`), and after MAX_TRIES of that it fails, because it is the likely cause.
"""

from __future__ import annotations

import errno
import logging
import math
import secrets as random
import threading
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import func, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from builders.types import Artifact, BuildCancelled, Builder, BuildError, BuilderUnavailable, BuildInputs, Phase
from spaces_platform.build_files import BuildFile, BuildFiles
from spaces_platform.build_line import InLine, claimable, order
from spaces_platform.errors import DiskFull, PlatformError, Unavailable
from spaces_platform.models import Build, Event, Space
from spaces_platform.planning import plan_from_json
from spaces_platform.ports import Clock, LogStore, Queue, RepoStore, Task
from spaces_platform.routing import Changes
from spaces_platform.space_directory import repo_id
from spaces_platform.store import Store

log = logging.getLogger(__name__)

LEASE_SECONDS = 20.0
"""How long a claim holds without being renewed: a dead worker's build is taken up again after so long."""
RENEW_SECONDS = 5.0
CANCEL_POLL_SECONDS = 1.0
PHASE_WRITE_SECONDS = 1.0
"""A changed text within a phase is written to the row at most this often."""
MAX_TRIES = 3
SUPERSEDED = "A newer push or a pause cancelled it."
LINE_LENGTH = 5000
"""Oldest queued builds that are looked at to choose the next one."""


class Builds:
    def __init__(
        self,
        store: Store,
        clock: Clock,
        repos: RepoStore,
        builder: Builder,
        logs: LogStore,
        queue: Queue,
        feed: Changes,
        slots: int,
        inputs: Callable[[Build], BuildInputs],
        files: BuildFiles,
    ) -> None:
        """`slots`: builds that run at once, whatever number of workers there is. `inputs`: see `build_inputs`."""
        self.store, self.clock, self.repos, self.builder = store, clock, repos, builder
        self.logs, self.queue, self.feed, self.slots = logs, queue, feed, slots
        self.inputs, self.files = inputs, files
        self.is_disk_free: Callable[[], bool] = lambda: True
        self.is_stopping: Callable[[], bool] = lambda: False
        """Once true, nothing more is begun here, and what runs is ended and given back to the queue."""
        self._unrecorded: set[int] = set()
        """Builds that ended here and whose row could not be written."""

    def now(self) -> float:
        return self.clock.now().timestamp()

    # --- asked for by the reconciler -------------------------------------------------------------
    def request(self, space: Space, plan: dict[str, Any]) -> None:
        """Queue a build of this plan unless one is live. Idempotent: the unique index decides a race."""
        try:
            with self.store.write() as tx:
                build = Build(
                    space_id=space.id or 0, commit=space.head or "", plan_id=plan["id"], plan=plan,
                    generation=space.generation, created_at=self.now(), phase_at=self.now(),
                )  # fmt: skip
                tx.add(build)
                tx.flush()
                build_id = build.id or 0
                tx.add(
                    Event(
                        at=self.now(),
                        kind="build.queued",
                        space_id=space.id,
                        data={"build": build_id, "commit": space.head},
                    )
                )
                place = self._place(tx, build_id)
                tx.after_commit(lambda: self.logs.append(f"build/{build_id}", [f"--> queued number {place} in line"]))
                tx.after_commit(lambda: self.queue.send(Task.BUILD, build_id))
        except IntegrityError:
            log.debug("a build of this plan is live already", extra={"space": space.id, "plan": plan["id"]})

    def cancel(self, build_id: int) -> None:
        """Cancel a queued build at once, ask a running one to stop."""
        with self.store.write() as tx:
            build = tx.get(Build, build_id)
            if build is None:
                return
            if build.status == "QUEUED":
                self._end(tx, build, "CANCELLED", reason="superseded", message=SUPERSEDED)
            elif build.status == "RUNNING":
                build.cancel_requested = True
                tx.add(build)

    def position(self, build: Build) -> int:
        """Place in the line of a queued build, from 1."""
        with self.store.read() as db:
            return self._place(db, build.id or 0)

    def _place(self, db: Session, build_id: int) -> int:
        line = order(*self._line(db))
        return next((n for n, build in enumerate(line, 1) if build.id == build_id), len(line) + 1)

    def _line(self, db: Session) -> tuple[list[InLine], list[InLine], dict[int, float]]:
        """What `build_line` decides on: queued builds, running ones, and when each owner was last served."""

        def of(status: str) -> list[InLine]:
            query = select(Build.id, Build.space_id, Space.owner_id).join(Space, col(Space.id) == Build.space_id)
            rows = db.exec(query.where(Build.status == status).order_by(col(Build.id)).limit(LINE_LENGTH)).all()
            return [InLine(id or 0, space_id, owner_id) for id, space_id, owner_id in rows]

        queued = of("QUEUED")
        owners = {build.owner_id for build in queued}
        served = (
            select(Space.owner_id, func.max(Build.started_at))
            .join(Build, col(Build.space_id) == Space.id)
            .where(col(Space.owner_id).in_(owners), col(Build.started_at).is_not(None))
            .group_by(col(Space.owner_id))
        )
        times = db.exec(served).all() if owners else ()
        return queued, of("RUNNING"), {owner: at or 0.0 for owner, at in times}

    def exists(self, artifact: str) -> bool:
        """Whether an artifact can be started now. Raises Unavailable where that cannot be said."""
        try:
            return self.builder.exists(artifact)
        except BuilderUnavailable as exc:
            raise Unavailable(str(exc)) from exc

    def remove(self, artifact: str) -> None:
        """Delete an artifact. Raises Unavailable."""
        try:
            self.builder.remove(artifact)
        except BuilderUnavailable as exc:
            raise Unavailable(str(exc)) from exc

    # --- the job ---------------------------------------------------------------------------------
    def run_next(self) -> None:
        """Do the build that is next, if one may begin now. Never raises for the build's own faults."""
        claimed = None if self.is_stopping() else self._claim()
        if claimed is None:
            return
        build, owner, token = claimed
        try:
            with _Job(self, build, token) as job:
                self._work(job, build, owner)
        except PlatformError as exc:
            # Its end could not be written (the database's disk is full): it is done again once writes go on.
            if not exc.retryable:
                raise
            log.warning("the end of a build could not be recorded: %s", exc, extra={"build": build.id})
            self._unrecorded.add(build.id or 0)
        if not self.is_stopping():
            self._hint_claimable()

    def _work(self, job: _Job, build: Build, owner: str) -> None:
        try:
            if not self.is_disk_free():
                raise BuildError(
                    "disk_full",
                    "The platform's disk is nearly full, so nothing is built now.",
                    "Ask the admin to free some space, then restart the Space.",
                )
            plan = plan_from_json(build.plan)
            source = self.repos.open(repo_id(build.space_id)).tree(build.commit)
            artifact = self.builder.build(
                plan, source, owner=owner, log=job, cancelled=job.cancelled, inputs=self.inputs(build)
            )
        except BuildCancelled:
            if self.is_stopping():
                job.give_back()
            else:
                job.end("CANCELLED", reason="superseded", message=SUPERSEDED)
        except BuildError as exc:
            job.line(f"✗ {exc.cause}")
            job.line(f"  {exc.fix}")
            job.end("FAILED", reason=exc.reason, message=f"{exc.cause} {exc.fix}", evidence=exc.evidence)
        except PlatformError as exc:
            if isinstance(exc, Unavailable) and build.tries < MAX_TRIES:
                # The database was away for a moment, which is nothing to tell the owner: it is done again.
                log.warning("a build is put off: %s", exc, extra={"build": build.id})
                self._unrecorded.add(build.id or 0)
                return
            job.end("FAILED", reason=exc.code, message=exc.message)
        except BuilderUnavailable as exc:
            log.warning("a build is put off: %s", exc, extra={"build": build.id})
            job.line(f"!   {exc}")
            if build.tries < MAX_TRIES:
                # Its claim is not renewed any more: taken up again like that of a worker that died.
                job.line(f"    tried again within {LEASE_SECONDS:.0f} seconds")
                return
            message = "The container engine did not answer. Restart the Space to try again."
            job.end("FAILED", reason="engine_unavailable", message=message, evidence=[str(exc)[:500]])
        except OSError as exc:
            if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                message = "The platform's disk is full. Ask its admin to free some space, then restart the Space."
                job.end("FAILED", reason="disk_full", message=message, evidence=[str(exc)])
                return
            message = f"The platform could not build it: {exc}. Restart the Space to try again."
            job.end("FAILED", reason="internal", message=message)
        except Exception as exc:
            log.exception("build failed inside the platform", extra={"build": build.id})
            message = f"The platform failed while building it ({type(exc).__name__}). Restart the Space to try again."
            job.end("FAILED", reason="internal", message=message)
        else:
            self._keep_files(build.id or 0, artifact)
            job.end("SUCCEEDED", artifact=artifact.ref, lock=artifact.lock)

    def _keep_files(self, build_id: int, artifact: Artifact) -> None:
        try:
            self.files.save(build_id, BuildFile.SBOM, artifact.sbom)
            self.files.save(build_id, BuildFile.DOCKERFILE, artifact.dockerfile)
        except OSError as exc:
            # A paper less is better than a build less.
            log.warning("SBOM and Dockerfile of a build are not kept: %s", exc, extra={"build": build_id})

    def requeue_lost(self) -> None:
        """Give builds whose worker died back to the queue, and hint as many as may begin now.

        Only so many: a hint for each queued build at every look would pile up where the workers are busy or away.
        """
        now = self.now()
        with self.store.read() as db:
            lost = db.exec(select(Build.id).where(Build.status == "RUNNING", col(Build.claimed_until) < now)).all()
        for build_id in lost:
            self._give_back(build_id or 0, now)
        self._hint_claimable()

    def _hint_claimable(self) -> None:
        with self.store.read() as db:
            found = claimable(*self._line(db), self.slots)
        for build in found:
            self.queue.send(Task.BUILD, build.id)

    def requeue_unrecorded(self) -> None:
        """Give builds whose end could not be written here back to the queue, now that writes may go on."""
        for build_id in tuple(self._unrecorded):
            self._give_back(build_id, math.inf)
            self._unrecorded.discard(build_id)
            self.queue.send(Task.BUILD, build_id)

    def _give_back(self, build_id: int, before: float) -> None:
        """Back to the queue, if its claim ended earlier than `before`."""
        with self.store.write() as tx:
            build = tx.get(Build, build_id)
            if build is None or build.status != "RUNNING" or build.claimed_until >= before:
                return
            if build.tries >= MAX_TRIES and not build.cancel_requested:
                message = f"The build ended its worker {build.tries} times. It probably uses more memory than there is."
                self._end(tx, build, "FAILED", reason="worker_lost", message=message)
            else:
                self._queue_again(tx, build)

    def _queue_again(self, tx: Any, build: Build) -> None:
        """From RUNNING back to QUEUED, or to its end where it was cancelled meanwhile."""
        if build.cancel_requested:
            self._end(tx, build, "CANCELLED", reason="superseded", message=SUPERSEDED)
            return
        build.status, build.claim_token = "QUEUED", None
        build.phase, build.phase_text, build.phase_at = "queued", "", self.now()
        tx.add(build)
        space_id = build.space_id
        tx.after_commit(lambda: self.feed.changed(space_id))

    def _claim(self) -> tuple[Build, str, str] | None:
        """Take the best build that may begin now: the build, its owner, and the token of the claim."""
        token = random.token_hex(8)
        with self.store.write() as tx:
            # Writers are alone: two that counted at once would both see the last free slot. What waited to be alone
            # begins now: the build whose slot it takes ended while it waited.
            now = self.now()
            for best in claimable(*self._line(tx), self.slots):
                claim = (
                    update(Build)
                    .where(col(Build.id) == best.id, col(Build.status) == "QUEUED")
                    .values(
                        status="RUNNING",
                        claim_token=token,
                        claimed_until=now + LEASE_SECONDS,
                        started_at=now,
                        tries=Build.tries + 1,
                        phase="cloning",
                        phase_text="",
                        phase_at=now,
                    )
                )
                if tx.execute(claim).rowcount == 1:  # type: ignore[attr-defined]
                    build = tx.get_one(Build, best.id, populate_existing=True)
                    tx.after_commit(lambda space_id=best.space_id: self.feed.changed(space_id))  # type: ignore[misc]
                    return build, str(best.owner_id), token
        return None

    def _end(
        self, tx: Any, build: Build, status: str, *, reason: str = "", message: str = "", evidence: Any = (),
        artifact: str | None = None, lock: str = "",
    ) -> None:  # fmt: skip
        build.status, build.reason, build.message = status, reason, message
        build.evidence, build.artifact, build.lock = list(evidence)[:50], artifact, lock
        build.ended_at, build.claim_token = self.now(), None
        tx.add(build)
        # In the same transaction: a hint that is lost on its way from a worker costs one look of the sweep.
        due = update(Space).where(col(Space.id) == build.space_id, col(Space.purged_at).is_(None))
        tx.execute(due.values(next_check_at=self.now()))
        data = {"build": build.id, "status": status, "reason": reason}
        tx.add(Event(at=self.now(), kind=f"build.{status.lower()}", space_id=build.space_id, data=data))
        space_id = build.space_id
        tx.after_commit(lambda: self.queue.send(Task.RECONCILE, space_id))
        tx.after_commit(lambda: self.feed.changed(space_id))


class _Job:
    """The BuildLog of one running build; watches for its cancellation, and renews its claim while it is entered."""

    def __init__(self, builds: Builds, build: Build, token: str) -> None:
        self.builds, self.build, self.token = builds, build, token
        self.stream = f"build/{build.id}"
        self._began = time.monotonic()
        self._phase: Phase | None = None
        self._phase_began = self._began
        self._written = 0.0
        self._checked = 0.0
        self._cancelled = False
        self._lock = threading.Lock()
        self._unlogged = 0
        self._ended = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name=f"claim of build {build.id}", daemon=True)
        self.line(f"===== Build {build.id} of commit {build.commit[:12]} (plan {build.plan_id[:12]}) =====")

    def __enter__(self) -> _Job:
        self._renewing.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._ended.set()
        self._renewing.join()

    def _renew(self) -> None:
        """In a thread of its own, since a step of a build may be silent for minutes."""
        while not self._ended.wait(RENEW_SECONDS):
            try:
                self._update({"claimed_until": self.builds.now() + LEASE_SECONDS})
            except PlatformError as exc:
                log.warning("the claim of a build could not be renewed: %s", exc, extra={"build": self.build.id})

    def line(self, text: str) -> None:
        try:
            self.builds.logs.append(self.stream, [text])
        except (DiskFull, Unavailable) as exc:
            # A line less is better than a build less.
            if not self._unlogged:
                log.warning("the log of a build is not whole: %s", exc, extra={"build": self.build.id})
            self._unlogged += 1

    def phase(self, phase: Phase, text: str = "") -> None:
        now = time.monotonic()
        with self._lock:
            new = phase is not self._phase
            if new:
                if self._phase is not None:
                    self.line(f"    {self._phase.value} took {now - self._phase_began:.2f} s")
                self._phase, self._phase_began = phase, now
            if new or text:
                self.line(f"--> {phase.value} {text}".rstrip())
            if not new and now - self._written < PHASE_WRITE_SECONDS:
                return
            self._written = now
        values: dict[str, Any] = {"phase": phase.value, "phase_text": text[:200]}
        if new:
            values["phase_at"] = self.builds.now()
        try:
            self._update(values)
        except Unavailable as exc:
            # A phase less is better than a build less.
            log.warning("the phase of a build could not be written: %s", exc, extra={"build": self.build.id})
            return
        self.builds.feed.changed(self.build.space_id)

    def cancelled(self) -> bool:
        """Cheap: looks at the row once in CANCEL_POLL_SECONDS at most."""
        now = time.monotonic()
        if not self._cancelled and now - self._checked >= CANCEL_POLL_SECONDS:
            self._checked = now
            try:
                with self.builds.store.read() as db:
                    query = select(Build.cancel_requested, Build.claim_token).where(Build.id == self.build.id)
                    row = db.exec(query).first()
            except Unavailable:
                # Asked again soon. A build goes on while the database is restarted.
                return self.builds.is_stopping()
            # Somebody else's claim means that this worker was given up for dead: its result would be refused.
            self._cancelled = row is None or row[0] or row[1] != self.token
        return self._cancelled or self.builds.is_stopping()

    def give_back(self) -> None:
        """Back to the queue, as if it had not begun: its worker stops, through no fault of the build."""
        self.line("    its worker is stopped; it goes back to the queue")
        with self.builds.store.write() as tx:
            row = tx.get(Build, self.build.id)
            if row is not None and row.claim_token == self.token:
                row.tries -= 1
                self.builds._queue_again(tx, row)

    def end(self, status: str, **result: Any) -> None:
        """Write the result, unless the claim was lost: a stale writer is refused."""
        if self._phase is not None:
            self.line(f"    {self._phase.value} took {time.monotonic() - self._phase_began:.2f} s")
        self.line(f"===== {status} after {time.monotonic() - self._began:.1f} s =====")
        with self.builds.store.write() as tx:
            row = tx.get(Build, self.build.id)
            if row is None or row.claim_token != self.token:
                log.warning("result of a build with a lost claim is dropped", extra={"build": self.build.id})
                return
            self.builds._end(tx, row, status, **result)

    def _update(self, values: dict[str, Any]) -> None:
        with self.builds.store.write(alone=False) as tx:
            tx.execute(
                update(Build)
                .where(col(Build.id) == self.build.id, col(Build.claim_token) == self.token)
                .values(**values)
            )
