"""Deployments: the rows of what runs, kept in step with what the orchestrator observes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy
from sqlalchemy import bindparam
from sqlmodel import Session, col, select

from builders.diagnosis import Explanation, diagnose_run
from spaces_platform.environment import make_environment
from spaces_platform.errors import DiskFull, Invalid, PlatformError
from spaces_platform.gpus import Gpus
from spaces_platform.lifecycle import OPEN
from spaces_platform.models import Deployment, Event, Host, Secret, Space, Variable
from spaces_platform.planning import run_from_json
from spaces_platform.ports import (
    Clock,
    DeploymentSpec,
    Freezer,
    LogLine,
    LogStore,
    Observation,
    Orchestrator,
    RunStatus,
)
from spaces_platform.routing import RouteFeed
from spaces_platform.secrets import Vault
from spaces_platform.settings import Settings
from spaces_platform.storage import Storage
from spaces_platform.store import Store, Transaction

log = logging.getLogger(__name__)

WRONG_PORT_SECONDS = 30.0
"""An app that listens, but only elsewhere than it should, is told so at once and given up after so long."""
KEEP_LOGS = 3
"""Ended deployments of a Space whose logs are kept."""
OWN_FAULT = "The platform cannot start it by a fault of its own, and goes on trying; its log says more to its admin."
TAIL = 400
# Prepared once: every pass reads the first, every start the others.
_OPEN = (
    select(Deployment)
    .where(Deployment.space_id == bindparam("space"), col(Deployment.status).in_(OPEN))
    .order_by(col(Deployment.id))
)
_PRIMARY = sqlalchemy.select(col(Host.host)).where(
    col(Host.space_id) == bindparam("space"), col(Host.kind) == "primary"
)
_VARIABLES = sqlalchemy.select(col(Variable.key), col(Variable.value)).where(
    col(Variable.space_id) == bindparam("space")
)
_SECRETS = sqlalchemy.select(col(Secret.key), col(Secret.sealed)).where(col(Secret.space_id) == bindparam("space"))
LOST = Explanation(
    "lost",
    "The app was ended together with the machine or the platform.",
    "It is started again by itself; restart the Space if it is not.",
)
LOST_FROZEN = Explanation(
    "lost",
    "The app was ended while it slept in memory.",
    "Nothing is to be done: the next visit starts it.",
)
HINDERED = {
    "disk_full": "Ask the admin of the platform to free some space; the app is started again by itself.",
    "machine": "Ask the admin of the platform to look at the machine; the app is started again by itself.",
}


@dataclass(frozen=True, slots=True)
class Shown:
    """What a Space shows once a deployment is routed."""

    stage: str
    reason: str = ""
    message: str = ""
    evidence: Sequence[str] = ()


class Deployments:
    def __init__(
        self,
        store: Store,
        clock: Clock,
        orchestrator: Orchestrator,
        vault: Vault,
        settings: Settings,
        feed: RouteFeed,
        log_store: LogStore,
        gpus: Gpus,
        storage: Storage,
        freezer: Freezer | None = None,
    ) -> None:
        """`freezer`: the same orchestrator, where it can freeze."""
        self.store, self.clock, self.orchestrator, self.log_store = store, clock, orchestrator, log_store
        self.vault, self.settings, self.feed, self.freezer = vault, settings, feed, freezer
        self.gpus, self.storage = gpus, storage
        self._passed = settings.passed_environment()
        self._held_up: dict[int, str] = {}
        """Deployments that the machine cannot start now (a full disk), and why."""

    def now(self) -> float:
        return self.clock.now().timestamp()

    def of(self, space_id: int, limit: int = 20) -> Sequence[Deployment]:
        """Newest first."""
        with self.store.read() as db:
            query = select(Deployment).where(Deployment.space_id == space_id).order_by(col(Deployment.id).desc())
            return db.exec(query.limit(limit)).all()

    def logs(self, deployment_id: int, after: int = 0) -> Sequence[LogLine]:
        return self.orchestrator.logs(deployment_id, after)

    # --- observing -------------------------------------------------------------------------------
    def open_of(self, db: Session, space_id: int) -> Sequence[Deployment]:
        """The Space's open deployments, oldest first."""
        return db.execute(_OPEN, {"space": space_id}).scalars().all()

    def refresh(
        self, space: Space, rows: Sequence[Deployment]
    ) -> tuple[Sequence[Deployment], Mapping[int, Observation]]:
        """Open deployments, their rows brought up to what is observed now, and what was observed."""
        if not rows:
            return rows, {}
        observed = self.orchestrator.observe()
        open_rows = []
        for row in rows:
            seen = observed.get(row.id or 0)
            if row.status == "STARTING" and seen is None:
                # Committed, but not started yet: the worker that wrote the row was killed before it could.
                self.start(space, row)
            elif row.status == "STARTING" and seen is not None and seen.status is RunStatus.READY:
                row = self._became_ready(row, seen)
            elif row.status == "STOPPING" and (seen is None or seen.status is RunStatus.EXITED):
                self._has_gone(row)
                self._forget_old(space.id or 0)
                continue
            elif row.status == "STOPPING":
                # Asked again: whoever wrote the row may have been killed before it could ask.
                self.orchestrator.stop(row.id or 0)
            elif row.status == "FROZEN" and seen is not None and seen.status is RunStatus.READY:
                # The row was committed and the worker killed before it could freeze, or between a thaw and its row.
                row = self._keep_frozen(row)
            elif row.status == "READY" and row.live and seen is not None and seen.status is RunStatus.FROZEN:
                # Somebody else froze what serves.
                self._thaw(row.id or 0)
            open_rows.append(row)
        return open_rows, observed

    def _became_ready(self, row: Deployment, seen: Observation) -> Deployment:
        note = bind_note(seen.listening, seen.endpoint or "")
        took = self.now() - row.created_at
        lines = [f"--> probing {row.plan['base_path']}", f"    the app answered {took:.2f} s after its start"]
        self._tell(row, *lines, *([f"!   {note}"] if note else []))
        return self._write(
            row, status="READY", endpoint=seen.endpoint, ready_at=self.now(), isolation=seen.isolation, message=note
        )

    def has_failed(self, row: Deployment, observed: Mapping[int, Observation]) -> bool:
        """Whether it ended by itself, is lost, or listens where nobody can reach it."""
        if row.status == "STOPPING":
            return False
        seen = observed.get(row.id or 0)
        if seen is None:
            return row.status in ("READY", "FROZEN")
        if seen.status is RunStatus.EXITED:
            return True
        return bool(row.status == "STARTING" and seen.listening and self.now() - row.created_at > WRONG_PORT_SECONDS)

    def describe_start(self, deployment_id: int) -> str:
        """What a starting app is doing, in words, for its owner."""
        seen = self.orchestrator.observe().get(deployment_id)
        if seen is None:
            return self._held_up.get(deployment_id, "")
        if seen.listening:
            expected = (seen.endpoint or "").rpartition(":")[2]
            return f"The app listens on {', '.join(seen.listening)}, not on port {expected} (the variable PORT)."
        return seen.probe

    def _tell(self, row: Deployment, *lines: str) -> None:
        """Go on with the log of the build that this deployment is the first run of: the owner waits for it."""
        if row.build_id is not None and row.first:
            try:
                self.log_store.append(f"build/{row.build_id}", lines)
            except DiskFull as exc:
                # A line less is better than an app less.
                log.warning("a line of a build's log is lost: %s", exc)

    # --- moving ----------------------------------------------------------------------------------
    def start(self, space: Space, row: Deployment) -> None:
        """Hand it to the orchestrator. Idempotent; what the machine cannot do now is tried again by the next pass.

        So is what fails by a fault of the platform's own: its log has it, and the owner is told whose fault it is.
        """
        number = row.id or 0
        if number not in self._held_up:
            self._tell(row, "--> starting")
        try:
            self.orchestrator.start(self._spec(space, row))
            self._held_up.pop(number, None)
        except Invalid as exc:
            self._tell(row, f"✗ {exc.message}")
            self._write(row, status="FAILED", fatal=True, reason=exc.code, message=exc.message, ended_at=self.now())
        except Exception as exc:
            expected = isinstance(exc, PlatformError) and exc.retryable
            message = str(exc) if expected else OWN_FAULT
            if number not in self._held_up:
                log.warning("a start is put off: %s", exc, exc_info=not expected, extra={"deployment": number})
                self._tell(row, f"    put off: {message}")
            self._held_up[number] = message

    def route(self, space_id: int, deployment_id: int, shown: Shown | None = None) -> None:
        """Point the Space's route at it, in one transaction; the one before begins to drain.

        A FROZEN one is READY with that: it was thawed. `shown` is written along: one commit less for a visitor to wait.
        """
        with self.store.write() as tx:
            space, row = tx.get(Space, space_id), tx.get(Deployment, deployment_id, with_for_update=True)
            if space is None or row is None or row.status not in ("READY", "FROZEN"):
                return
            version, now = tx.next_version(), self.now()
            for old in tx.exec(select(Deployment).where(Deployment.space_id == space_id, col(Deployment.live))):
                if old.id != deployment_id:
                    old.live, old.unrouted_at, old.unrouted_version = False, now, version
                    tx.add(old)
            tx.flush()
            row.status, row.frozen_at = "READY", None
            row.live, row.routed_at, row.unrouted_at, row.unrouted_version = True, now, None, None
            space.routed, space.last_good, space.start_queued_at = row.id, row.artifact, None
            if space.slept_at is None or space.last_active_at > space.slept_at:
                space.slept_at, space.last_active_at = None, now  # else sleep was asked for while it started
            space.route_version = version
            tx.add(row)
            tx.add(space)
            data = {"deployment": row.id, "commit": row.commit, "version": version}
            tx.add(Event(at=now, kind="deployment.routed", space_id=space_id, data=data))
            if shown is not None and space.desired == "RUNNING":
                show(tx, space, shown, now)
            tx.after_commit(lambda: self.feed.changed(space_id))

    def park(self, space_id: int, *, asleep: bool, unroute: bool = False) -> None:
        """Point the route at nothing; what was routed begins to drain."""
        with self.store.write() as tx:
            space = tx.get(Space, space_id)
            if space is None:
                return
            version, now = tx.next_version(), self.now()
            for old in tx.exec(select(Deployment).where(Deployment.space_id == space_id, col(Deployment.live))):
                old.live, old.unrouted_at, old.unrouted_version = False, now, version
                tx.add(old)
            if asleep:
                space.slept_at = now
                tx.add(Event(at=now, kind="space.asleep", space_id=space_id))
            space.routed, space.route_version, space.unrouted = None, version, space.unrouted or unroute
            tx.add(space)
            tx.after_commit(lambda: self.feed.changed(space_id))

    def stop(self, deployment_id: int) -> None:
        with self.store.write() as tx:
            row = tx.get(Deployment, deployment_id, with_for_update=True)
            if row is None or row.status not in OPEN:
                return
            row.status, row.live = "STOPPING", False
            tx.add(row)
        self.orchestrator.stop(deployment_id)

    def freeze(self, deployment_id: int) -> None:
        """Keep it in memory until a visit; where it cannot be frozen, it is stopped."""
        with self.store.write() as tx:
            row = tx.get(Deployment, deployment_id, with_for_update=True)
            if row is None or row.status != "READY" or row.live:
                return
            row.status, row.frozen_at = "FROZEN", self.now()
            tx.add(row)
            data = {"deployment": row.id}
            tx.add(Event(at=self.now(), kind="deployment.frozen", space_id=row.space_id, data=data))
        self._keep_frozen(row)

    def thaw(self, space_id: int, deployment_id: int, shown: Shown | None = None) -> bool:
        """Let it run and route it. First the thaw, which changes nothing that a row says, then one commit.

        False where it cannot be thawed: it is stopped, and the next round starts another one.
        """
        if self._thaw(deployment_id):
            self.route(space_id, deployment_id, shown)
            return True
        self.stop(deployment_id)
        return False

    def _keep_frozen(self, row: Deployment) -> Deployment:
        """Make true what its row says, FROZEN, or stop it."""
        try:
            if self.freezer is not None:
                self.freezer.freeze(row.id or 0)
                return row
        except PlatformError as exc:
            if not exc.retryable:
                raise
            log.warning("an idle app is stopped, not frozen: %s", exc, extra={"deployment": row.id})
        self.stop(row.id or 0)
        return row.model_copy(update={"status": "STOPPING"})

    def _thaw(self, deployment_id: int) -> bool:
        try:
            if self.freezer is not None:
                self.freezer.thaw(deployment_id)
                return True
        except PlatformError as exc:
            if not exc.retryable:
                raise
            log.warning("a frozen app cannot be thawed: %s", exc, extra={"deployment": deployment_id})
        return False

    def fail(self, deployment_id: int, *, timed_out: bool) -> None:
        """Record why it failed, from what is observed and its own log, and end what is left of it."""
        seen = self.orchestrator.observe().get(deployment_id)
        lines = [line.text for line in self.orchestrator.logs(deployment_id)][-TAIL:]
        with self.store.write() as tx:
            row = tx.get(Deployment, deployment_id)
            if row is None or row.status not in ("STARTING", "READY", "FROZEN"):
                return
            space = tx.get(Space, row.space_id)
            sdk = (space.sdk or "") if space is not None else ""
            was_ready = row.ready_at is not None
            ended = seen is not None and seen.status is RunStatus.EXITED
            lost = seen is None or (ended and seen.exit_code is None)
            if row.status == "FROZEN":
                found = LOST_FROZEN
            elif seen is None or (lost and not seen.hindrance):
                found = LOST
            elif seen.hindrance:
                found = _hindered(seen)
            else:
                found = diagnose_run(
                    exit_code=seen.exit_code,
                    exited=ended,
                    out_of_memory=seen.out_of_memory,
                    listening=seen.listening,
                    port=int((seen.endpoint or ":0").rpartition(":")[2]),
                    timed_out=timed_out and not ended,
                    log_lines=lines,
                    sdk=sdk,
                    seconds=self.now() - row.created_at,
                )
            row.status, row.live, row.ended_at = "FAILED", False, self.now()
            row.exit_code = seen.exit_code if seen is not None else None
            row.reason, row.message = found.reason, f"{found.cause} {found.fix}"
            row.evidence = list(found.evidence)[:50]
            # What failed before it ever answered will fail again, unless it was not the app's doing.
            row.fatal = not was_ready and not lost
            tx.add(row)
            if space is not None and (seen is None or ended):
                # What still runs is stopped below, and holds its GPUs until that is seen.
                self.gpus.release_failed(tx, space, deployment_id)
            data = {"deployment": row.id, "reason": row.reason, "exit_code": row.exit_code}
            tx.add(Event(at=self.now(), kind="deployment.failed", space_id=row.space_id, data=data))
        self._tell(row, f"✗ {found.cause}", f"  {found.fix}")
        self.orchestrator.stop(deployment_id, grace=2.0)
        self._forget_old(row.space_id)

    def forget(self, deployment_id: int) -> None:
        self._held_up.pop(deployment_id, None)
        self.orchestrator.stop(deployment_id, grace=0.0)
        self.orchestrator.forget(deployment_id)

    # --- inside ----------------------------------------------------------------------------------
    def _spec(self, space: Space, row: Deployment) -> DeploymentSpec:
        plan = run_from_json(row.plan)
        limits = replace(self.gpus.hardware.resources(row.hardware), volume=self.storage.size_of(space))
        of_space, space_id = {"space": space.id}, space.id or 0
        with self.store.read() as db:
            gpus = self.gpus.of(db, row.id or 0)
            host = db.execute(_PRIMARY, of_space).scalars().first()
            variables = db.execute(_VARIABLES, of_space).all()
            secrets = db.execute(_SECRETS, of_space).all()
        env = make_environment(
            space,
            host=host or "",
            resources=limits,
            plan=plan.env,
            variables=dict(variables),
            secrets={key: self.vault.open(sealed, space_id=space_id, key=key) for key, sealed in secrets},
            passed=self._passed,
            accelerator=row.hardware if gpus else "none",
            gpus=gpus,
        )
        return DeploymentSpec(
            id=row.id or 0,
            space_id=space_id,
            space=f"{space.owner}/{space.name}",
            artifact_ref=row.artifact,
            argv=plan.argv,
            env=env,
            app_port=plan.app_port,
            base_path=plan.base_path,
            resources=limits,
            gpus=gpus,
        )

    def _has_gone(self, row: Deployment) -> None:
        with self.store.write() as tx:
            fresh = tx.get(Deployment, row.id)
            if fresh is not None:
                fresh.status, fresh.ended_at = "GONE", self.now()
                tx.add(fresh)
                self.gpus.release(tx, row.id or 0)

    def _write(self, row: Deployment, **values: Any) -> Deployment:
        with self.store.write() as tx:
            fresh = tx.get(Deployment, row.id)
            if fresh is None:
                return row
            for name, value in values.items():
                setattr(fresh, name, value)
            tx.add(fresh)
        return fresh

    def _forget_old(self, space_id: int) -> None:
        with self.store.read() as db:
            ended = (Deployment.space_id == space_id, col(Deployment.status).in_(("GONE", "FAILED")))
            query = select(Deployment.id).where(*ended).order_by(col(Deployment.id).desc()).offset(KEEP_LOGS).limit(50)
            for deployment_id in db.exec(query).all():
                self.orchestrator.forget(deployment_id or 0)


def _hindered(seen: Observation) -> Explanation:
    cause = "The platform's disk is full." if seen.hindrance == "disk_full" else "The machine could not run the app."
    return Explanation(seen.hindrance, cause, HINDERED[seen.hindrance], (seen.probe,))


def show(tx: Transaction, space: Space, shown: Shown, now: float) -> None:
    """Write a Space's stage and its explanation, with an Event for a new stage."""
    if space.stage != shown.stage:
        data = {"from": space.stage, "to": shown.stage, "reason": shown.reason}
        tx.add(Event(at=now, kind="space.stage", space_id=space.id, data=data))
    if shown.stage not in ("APP_STARTING", "RUNNING_APP_STARTING"):
        space.start_queued_at = None
    space.stage, space.reason, space.message = shown.stage, shown.reason, shown.message
    space.evidence = list(shown.evidence)
    tx.add(space)


def bind_note(listening: Sequence[str], endpoint: str) -> str:
    """What to tell an owner whose app answers, but on this machine's loopback only. Pure."""
    port = endpoint.rpartition(":")[2]
    mine = [address for address in listening if address.rpartition(":")[2] == port]
    if not mine or not all(address.startswith(("127.", "[::1]", "::1")) for address in mine):
        return ""
    return (
        f"The app listens on {mine[0]} only. That works here, but nobody could reach it in a container: bind 0.0.0.0 "
        "(gradio and streamlit do when no server name is given)."
    )
