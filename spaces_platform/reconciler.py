"""Brings one Space to what its owner asked for: one pass, which `sweep` or a hint asks for.

A pass takes an id and nothing else, re-reads everything, claims, decides, acts, and writes. It may run twice, at the
same time, after a crash at any line: every action is idempotent, and a row is committed before it is acted on, so
nothing runs that the database does not know.
"""

from __future__ import annotations

import logging
import secrets as random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sqlalchemy
from sqlalchemy import Table, bindparam, func, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session as Read
from sqlmodel import col, delete, or_, select

from runtime_images import Catalogue
from spaces_platform import lifecycle
from spaces_platform.accounts import PLATFORM
from spaces_platform.builds import Builds
from spaces_platform.claims import Claims
from spaces_platform.deployments import Deployments, Shown, show
from spaces_platform.errors import PlatformError, RepoNotFound, Unavailable
from spaces_platform.frozen import FrozenApps
from spaces_platform.gpus import Gpus, Refused
from spaces_platform.lifecycle import (
    Attempts,
    BuildAxis,
    BuildFacts,
    BuildStatus,
    CancelBuild,
    Decision,
    DeploymentFacts,
    DeploymentStatus,
    Desired,
    Facts,
    FailDeployment,
    FreezeDeployment,
    Park,
    Purge,
    RemoveVolume,
    Route,
    Stage,
    StartBuild,
    StartDeployment,
    StopDeployment,
    ThawDeployment,
    Unroute,
    is_asleep,
)
from spaces_platform.models import Build, Deployment, Domain, Event, Host, Secret, Space, Variable
from spaces_platform.planning import Planned, card_of, plan_head, plan_to_json
from spaces_platform.ports import Clock, Queue, RepoStore, Task
from spaces_platform.routing import RouteFeed
from spaces_platform.settings import Settings
from spaces_platform.space_directory import repo_id
from spaces_platform.store import Store, Transaction
from spaces_platform.traffic import Traffic
from spaces_platform.volumes import SpaceVolumes

log = logging.getLogger(__name__)

MAX_ROUNDS = 8
"""Rounds of decide and act in one pass; more are left to the next, so that one Space cannot hold a worker."""
RETRY_SECONDS = 5.0
AFTER_SWAP_SECONDS = 2.0
"""When a Space is looked at again that was routed while more is to be done: one before drains, a newer one failed."""
AFTER_WAKE_SECONDS = 30.0
"""The same where nothing is: what is due next is at most that it is idle."""
NO_GATEWAY_SECONDS = 5.0
"""Without any gateway for so long there is none."""

# Prepared once, and without the columns that a pass has no use for: every wake reads them.
_builds: Table = Build.__table__  # type: ignore[attr-defined]
_BUILDS = (
    sqlalchemy.select(_builds.c.id, _builds.c.plan_id, _builds.c.status, _builds.c.generation, _builds.c.artifact)
    .where(_builds.c.space_id == bindparam("space"))
    .where(or_(_builds.c.status.in_(("QUEUED", "RUNNING")), _builds.c.plan_id == bindparam("plan")))
    .order_by(_builds.c.id.desc())
    .limit(20)
)
_runs: Table = Deployment.__table__  # type: ignore[attr-defined]
_FAILED = (
    sqlalchemy.select(_runs.c.artifact, _runs.c.ready_at, _runs.c.ended_at, _runs.c.fatal)
    .where(_runs.c.space_id == bindparam("space"), _runs.c.generation == bindparam("generation"))
    .where(_runs.c.status == "FAILED", _runs.c.frozen_at.is_(None))
    .order_by(_runs.c.id.desc())
    .limit(2 * lifecycle.MAX_ATTEMPTS)
)
_BUILT = (
    sqlalchemy.select(
        _builds.c.id,
        _builds.c.commit,
        _builds.c.plan,
        sqlalchemy.exists().where(_runs.c.build_id == _builds.c.id).label("ran"),
    )
    .where(_builds.c.space_id == bindparam("space"), _builds.c.artifact == bindparam("artifact"))
    .order_by(_builds.c.id.desc())
    .limit(1)
)
_spaces: Table = Space.__table__  # type: ignore[attr-defined]
_STARTING = sqlalchemy.select(func.count()).select_from(_runs).where(_runs.c.status == "STARTING").scalar_subquery()
_LINE = sqlalchemy.select(
    _STARTING,
    sqlalchemy.select(func.count())
    .select_from(_spaces)
    .where(_spaces.c.start_queued_at < bindparam("since"), _spaces.c.id != bindparam("space"))
    .where(_spaces.c.purged_at.is_(None))
    .scalar_subquery(),
)
"""How many start, and how many wait longer for it."""
_NEXT = (
    sqlalchemy.select(_spaces.c.id, _STARTING)
    .where(_spaces.c.start_queued_at.is_not(None))
    .order_by(_spaces.c.start_queued_at)
    .limit(bindparam("slots"))
)
"""Who waits longest for a start, and how many start."""


@dataclass(frozen=True, slots=True)
class Planner:
    """What planning a head needs besides the tree."""

    catalogue: Catalogue
    pythons: Callable[[], Sequence[str]]
    """Versions at hand; called when first needed, since looking takes a moment."""
    containers: bool = False
    """Whether the builder makes images."""


class Reconciler:
    def __init__(
        self,
        store: Store,
        clock: Clock,
        repos: RepoStore,
        builds: Builds,
        deployments: Deployments,
        traffic: Traffic,
        queue: Queue,
        feed: RouteFeed,
        settings: Settings,
        planner: Planner,
        frozen: FrozenApps,
        gpus: Gpus,
        volumes: SpaceVolumes,
    ) -> None:
        self.store, self.clock, self.repos, self.builds = store, clock, repos, builds
        self.deployments, self.traffic, self.queue, self.feed = deployments, traffic, queue, feed
        self.settings, self.planner, self.frozen, self.gpus = settings, planner, frozen, gpus
        self.volumes, self.claims = volumes, Claims(store)
        self._began = self.now()
        self._unreleased: dict[str, tuple[int, float]] = {}
        """Claims that an outage of the database left: token -> Space and the claim's end."""

    def now(self) -> float:
        return self.clock.now().timestamp()

    # --- one pass --------------------------------------------------------------------------------
    def reconcile(self, space_id: int) -> None:
        """One pass. Returns at once when another worker has the Space; that one, or the sweep, sees what changed."""
        token = random.token_hex(8)
        until = self.claims.take(space_id, token, self.now())
        if until is None:
            self.claims.look_later(space_id, self.now() + 1.0)
            return
        check_at: float | None = None
        try:
            for _ in range(MAX_ROUNDS):
                facts = self._gather(space_id)
                if facts is None:
                    return
                decision = lifecycle.decide(facts, self.now())
                if facts.waits_for_gpu and not any(isinstance(a, StartDeployment) for a in decision.actions):
                    self.gpus.leave_line(space_id)
                # RUNNING is said once it is true: whoever waits for the word asks the app at once.
                routes = next((a for a in decision.actions if isinstance(a, Route | ThawDeployment)), None)
                # And that it starts, with the row of what is started.
                starts = _starting(decision) and any(isinstance(a, StartDeployment) for a in decision.actions)
                if routes is None and not starts:
                    self._write_stage(space_id, decision, facts)
                done = True
                for action in decision.actions:
                    done &= self._apply(space_id, facts, action, decision)
                if routes is not None and not (done and _shown(decision)):
                    self._write_stage(space_id, decision, facts, routed=routes.deployment_id)
                check_at = decision.check_at
                if done and len(decision.actions) == 1 and routes is not None:
                    # The visitor's gateway is being told now: this process's time is for that first.
                    check_at = self.now() + _after_route(facts)
                    break
                if not decision.actions or all(isinstance(a, StartDeployment) for a in decision.actions):
                    break
            else:
                check_at = self.now()
        except PlatformError as exc:
            if not exc.retryable:
                raise
            log.warning("pass stopped: %s", exc, extra={"space": space_id})
            check_at = self.now() + RETRY_SECONDS
        except Exception:
            # Looked at again later, so that neither this Space nor the others hang on a fault of ours.
            check_at = self.now() + 12 * RETRY_SECONDS
            raise
        finally:
            try:
                self.claims.release(space_id, token, until, check_at)
            except Unavailable as exc:
                # Else nobody would look at it before the claim's end.
                log.warning("a claim could not be given back: %s", exc, extra={"space": space_id})
                self._unreleased[token] = (space_id, until)

    def release_left(self) -> None:
        """Give back the claims that could not be given back, to be looked at at once. Raises Unavailable."""
        for token, (space_id, until) in tuple(self._unreleased.items()):
            self.claims.release(space_id, token, until, self.now())
            del self._unreleased[token]

    # --- facts -----------------------------------------------------------------------------------
    def _gather(self, space_id: int) -> Facts | None:
        with self.store.read() as db:
            space = db.get(Space, space_id)
            if space is None or space.purged_at is not None:
                return None
            rows = self.deployments.open_of(db, space_id)
            builds, attempts = self._builds(db, space), self._attempts(db, space)
        if space.planned_for != _plan_key(space) and space.desired == Desired.RUNNING:
            space = self._plan(space)
            with self.store.read() as db:
                builds, attempts = self._builds(db, space), self._attempts(db, space)
        deployments, observed = self.deployments.refresh(space, rows)
        artifact = next(
            (b.artifact for b in builds if b.status is BuildStatus.SUCCEEDED and b.plan_id == space.plan_id), None
        )
        # What runs from an artifact keeps it; asking the engine would cost a wake a tenth of its time. Who stands in
        # line for a start has asked, and the start itself will tell.
        held = {d.artifact for d in deployments if d.status in ("READY", "FROZEN")}
        if space.start_queued_at is not None and artifact is not None:
            held.add(artifact)
        if artifact is not None and space.problem is None and not (artifact in held or self.builds.exists(artifact)):
            artifact = None
        now = self.now()
        default_sleep = self.settings.sleep_after
        sleep_after = space.sleep_after if space.sleep_after is not None else default_sleep
        return Facts(
            desired=Desired(space.desired),
            generation=space.generation,
            problem=BuildAxis(space.problem) if space.problem else None,
            plan_id=space.plan_id,
            builds=tuple(b for b in builds if b.status is not BuildStatus.SUCCEEDED),
            artifact=artifact if space.problem is None else None,
            last_good=(
                space.last_good
                if space.last_good and (space.last_good in held | {artifact} or self.builds.exists(space.last_good))
                else None
            ),
            deployments=tuple(
                self._deployment_facts(space, d, now, failed=self.deployments.has_failed(d, observed))
                for d in deployments
            ),
            attempts=attempts,
            sleep_after=None if sleep_after < 0 else float(sleep_after),
            last_active_at=max(space.last_active_at, self.traffic.last_active(space_id)),
            in_flight=self.traffic.in_flight(space_id),
            slept_at=space.slept_at,
            frozen_for=float(self.settings.frozen_seconds),
            traffic_known=self.traffic.is_known(now),
            swap_in_place=self.gpus.must_swap(space),
            waits_for_gpu=space.gpu_queued_at is not None,
            # Where there are no volumes now, it is removed once there are again.
            drops_volume=space.drops_volume and self.volumes.storage.volumes is not None,
            routed=space.routed,
            unrouted=space.unrouted,
        )

    def _plan(self, space: Space) -> Space:
        try:
            repo = self.repos.open(repo_id(space.id or 0))
            tree = repo.tree(space.head) if space.head else None
            planned = plan_head(
                tree,
                self.planner.catalogue,
                self.planner.pythons(),
                salt=space.salt,
                containers=self.planner.containers,
            )
        except RepoNotFound:
            planned = Planned(problem=BuildAxis.EMPTY, reason="no_repository", message="The Space has no repository.")
        with self.store.write() as tx:
            row = tx.get(Space, space.id)
            if row is None or _plan_key(row) != _plan_key(space):
                # The head moved on meanwhile; the next round plans the newer one.
                return row or space
            row.planned_for = _plan_key(row)
            row.plan_id = planned.plan.id if planned.plan else None
            row.plan = plan_to_json(planned.plan) if planned.plan else None
            row.problem = planned.problem
            row.reason, row.message, row.evidence = planned.reason, planned.message, list(planned.evidence)
            if planned.config is not None:
                row.card = card_of(planned.config)
                row.sdk = planned.config.sdk
                row.title = planned.config.title or row.name
                row.emoji = planned.config.emoji or ""
                row.short_description = planned.config.short_description or ""
            row.route_version = tx.next_version()
            tx.add(row)
        return row

    def _builds(self, db: Read, space: Space) -> list[BuildFacts]:
        rows = db.execute(_BUILDS, {"space": space.id, "plan": space.plan_id})
        return [BuildFacts(id, plan, BuildStatus(status), number, ref) for id, plan, status, number, ref in rows]

    def _attempts(self, db: Read, space: Space) -> dict[str, Attempts]:
        """Failed starts of this generation, since the artifact last served steadily; an end while frozen is none."""
        attempts: dict[str, Attempts] = {}
        steady: set[str] = set()
        for d in db.execute(_FAILED, {"space": space.id, "generation": space.generation}):
            if d.artifact in steady:
                continue
            if d.ready_at is not None and (d.ended_at or 0.0) - d.ready_at >= lifecycle.STEADY_AFTER:
                # It had served: this failure is the first of a new count, and older ones are forgiven.
                steady.add(d.artifact)
            a = attempts.get(d.artifact, Attempts())
            attempts[d.artifact] = Attempts(a.failed + 1, max(a.last_at, d.ended_at or 0.0), a.fatal or d.fatal)
        return attempts

    def _deployment_facts(self, space: Space, d: Deployment, now: float, *, failed: bool) -> DeploymentFacts:
        drained = (
            d.unrouted_version is not None
            and d.status == "READY"
            and (
                self.traffic.is_drained(space.id or 0, d.id or 0, d.unrouted_version, now)
                # No gateway at all: nobody can reach it, so nobody can be cut off. One that lives through our own
                # restart needs a moment to find us.
                or (
                    not self.traffic.is_anybody_there(now)
                    and now - max(d.unrouted_at or now, self._began) > NO_GATEWAY_SECONDS
                )
            )
        )
        return DeploymentFacts(
            id=d.id or 0,
            artifact=d.artifact,
            generation=d.generation,
            status=DeploymentStatus(d.status),
            live=d.live,
            deadline=d.deadline,
            failed=failed,
            drained=drained,
            unrouted_at=d.unrouted_at,
            # A frozen app would keep its GPUs from those who wait for one.
            may_freeze=self.deployments.freezer is not None
            and self.settings.frozen_mb != 0
            and not self.gpus.hardware.flavor(d.hardware).gpus,
            frozen_at=d.frozen_at,
        )

    # --- acting ----------------------------------------------------------------------------------
    def _apply(self, space_id: int, facts: Facts, action: lifecycle.Action, decision: Decision) -> bool:
        """False where something else was done in its place: the next round goes on from there."""
        match action:
            case StartBuild():
                with self.store.read() as db:
                    space = db.get(Space, space_id)
                if space is not None and space.plan is not None and space.plan_id == action.plan_id:
                    self.builds.request(space, space.plan)
            case CancelBuild(build_id):
                self.builds.cancel(build_id)
            case StartDeployment(artifact, generation):
                self._start(space_id, artifact, generation, _starting(decision))
            case FailDeployment(deployment_id, timed_out):
                self.deployments.fail(deployment_id, timed_out=timed_out)
                self._next_in_line()
            case StopDeployment(deployment_id):
                self.deployments.stop(deployment_id)
                self.traffic.forget(space_id, deployment_id)
                self._next_in_line()
            case FreezeDeployment(deployment_id):
                self.deployments.freeze(deployment_id)
                self.traffic.forget(space_id, deployment_id)
            case Route(deployment_id):
                self.deployments.route(space_id, deployment_id, _shown(decision))
                self._next_in_line()
            case ThawDeployment(deployment_id):
                return self.deployments.thaw(space_id, deployment_id, _shown(decision))
            case Park(asleep):
                self.deployments.park(space_id, asleep=asleep)
            case Unroute():
                self.deployments.park(space_id, asleep=False, unroute=True)
            case RemoveVolume():
                self.volumes.remove(space_id)
            case Purge():
                self._purge(space_id)
        return True

    def _start(self, space_id: int, artifact: str, generation: int, shown: Shown | None) -> None:
        """Start it if its GPUs and a start slot are free, else take a place in the line of those that wait for them.

        `shown` is written along, to a Space that is still to run.
        """
        try:
            with self.store.write() as tx:
                space = tx.get(Space, space_id)
                build = tx.execute(_BUILT, {"space": space_id, "artifact": artifact}).first()
                if space is None or build is None:
                    return
                queued_at = space.start_queued_at or self.now()
                starting, ahead = tx.execute(_LINE, {"since": queued_at, "space": space_id}).one()
                is_new = shown is not None and space.desired == "RUNNING" and space.stage != shown.stage
                if shown is not None and is_new:
                    show(tx, space, shown, self.now())
                granted = self.gpus.take(tx, space)
                if isinstance(granted, Refused):
                    self._tell(tx, space, newer=is_new)
                    return
                if starting + ahead >= self.settings.start_slots:
                    space.start_queued_at = queued_at
                    space.message = f"Waiting for a free place to start, number {ahead + 1} in line."
                    self._tell(tx, space)
                    return
                space.start_queued_at = None
                if shown is not None and (space.reason or space.message):  # why it could not start before
                    show(tx, space, shown, self.now())
                    is_new = True
                if is_new:
                    self._tell(tx, space)
                # Kept by the release of the claim: the look after a wait in a line is further away.
                space.next_check_at = self.now() + lifecycle.LOOK_AGAIN
                tx.add(space)
                run = build.plan["run"]
                deployment = Deployment(
                    space_id=space_id, build_id=build.id, first=not build.ran, commit=build.commit, artifact=artifact,
                    plan=run, generation=generation, hardware=space.hardware,
                    created_at=self.now(), deadline=self.now() + run["start_timeout"],
                )  # fmt: skip
                tx.add(deployment)
                tx.flush()
                self.gpus.give(tx, space, deployment, granted)
                data = {"deployment": deployment.id, "commit": build.commit}
                tx.add(Event(at=self.now(), kind="deployment.starting", space_id=space_id, data=data))
        except IntegrityError:
            return
        self.frozen.make_room(self.gpus.hardware.resources(deployment.hardware).memory)
        self.deployments.start(space, deployment)

    def _tell(self, tx: Transaction, space: Space, *, newer: bool = True) -> None:
        """Those who follow the Space, and with a `newer` route version gateways too."""
        space_id = space.id or 0
        if newer:
            space.route_version = tx.next_version()
        tx.add(space)
        tx.after_commit(lambda: self.feed.changed(space_id))

    def _next_in_line(self) -> None:
        """A start slot may have become free: hint whoever waits longest, one for each that is."""
        slots = self.settings.start_slots
        with self.store.read() as db:
            waiting = db.execute(_NEXT, {"slots": slots}).all()
        for place, (space_id, starting) in enumerate(waiting):
            if starting + place < slots:
                self.queue.send(Task.RECONCILE, space_id)

    def _purge(self, space_id: int) -> None:
        with self.store.read() as db:
            deployments = db.exec(select(Deployment.id).where(Deployment.space_id == space_id)).all()
            builds = db.exec(select(Build).where(Build.space_id == space_id)).all()
            artifacts = {b.artifact for b in builds if b.artifact}
            shared = set(
                db.exec(
                    select(Build.artifact).where(col(Build.artifact).in_(artifacts), Build.space_id != space_id)
                ).all()
            )
        for deployment_id in deployments:
            self.deployments.forget(deployment_id or 0)
        for build in builds:
            self.builds.logs.delete(f"build/{build.id}")
            self.builds.files.delete(build.id or 0)
        for artifact in artifacts - shared:
            self.builds.remove(artifact)
        self.repos.delete(repo_id(space_id))
        self.volumes.storage.discard(space_id)
        with self.store.write() as tx:
            space = tx.get(Space, space_id)
            if space is None:
                return
            for table in (Variable, Secret, Build, Deployment, Domain):
                tx.execute(delete(table).where(col(table.space_id) == space_id))
            # Whoever owns that domain may have another Space answer it at once; our own names stay taken.
            tx.execute(delete(Host).where(col(Host.space_id) == space_id, col(Host.kind) == "custom"))
            tx.execute(update(Host).where(col(Host.space_id) == space_id).values(released_at=self.now()))
            space.purged_at, space.routed, space.plan, space.card = self.now(), None, None, {}
            space.route_version = tx.next_version()
            tx.add(space)
            tx.add(Event(at=self.now(), kind="space.purged", space_id=space_id, actor=PLATFORM.name))
            tx.after_commit(lambda: self.feed.changed(space_id))

    # --- what people see -------------------------------------------------------------------------
    def _write_stage(self, space_id: int, decision: Decision, facts: Facts, *, routed: int | None = None) -> None:
        """Write stage and explanation where they changed; `routed`: only if that is what the route points to."""
        with self.store.read() as db:
            space = db.get(Space, space_id)
            if space is None or (routed is not None and space.routed != routed):
                return
            explained = self._explain(db, space, decision.stage, facts)
            if (space.stage, space.reason, space.message) == (decision.stage, *explained[:2]):
                return
        with self.store.write() as tx:
            row = tx.get(Space, space_id)
            if row is None or row.desired != facts.desired:
                return
            row.route_version = tx.next_version()
            show(tx, row, Shown(decision.stage, *explained), self.now())
            tx.after_commit(lambda: self.feed.changed(space_id))

    def _explain(self, db: Read, space: Space, stage: Stage, facts: Facts) -> tuple[str, str, list[str]]:
        """Reason, message and evidence that belong to a stage."""
        if stage in (Stage.CONFIG_ERROR, Stage.NO_APP_FILE):
            return space.reason, space.message, space.evidence
        if stage is Stage.BUILD_ERROR:
            query = select(Build).where(
                Build.space_id == space.id, Build.plan_id == space.plan_id, Build.status == "FAILED"
            )
            build = db.exec(query.order_by(col(Build.id).desc())).first()
            if build is not None:
                return build.reason, build.message, build.evidence
        if stage is Stage.RUNTIME_ERROR:
            failed = (
                Deployment.space_id == space.id,
                Deployment.status == "FAILED",
                Deployment.artifact == facts.artifact,
            )
            d = db.exec(select(Deployment).where(*failed).order_by(col(Deployment.id).desc())).first()
            if d is not None:
                return d.reason, d.message, d.evidence
        if stage in (Stage.APP_STARTING, Stage.RUNNING_APP_STARTING):
            starting = next((d for d in facts.deployments if d.status is DeploymentStatus.STARTING), None)
            if starting is not None:
                return "", self.deployments.describe_start(starting.id), []
            if space.gpu_queued_at is not None:
                return space.reason, space.message, []
            of_artifact = (Deployment.space_id == space.id, Deployment.artifact == facts.artifact)
            last = db.exec(select(Deployment).where(*of_artifact).order_by(col(Deployment.id).desc())).first()
            if last is not None and last.status == "FAILED":  # it waits for its next try
                return last.reason, last.message, last.evidence
            return "", space.message if space.start_queued_at is not None else "", []
        return "", "", []


def _shown(decision: Decision) -> Shown | None:
    """What to write together with the route; a stage that needs an explanation gets it afterwards."""
    return Shown(decision.stage) if decision.stage in (Stage.RUNNING, Stage.RUNNING_BUILDING) else None


def _starting(decision: Decision) -> Shown | None:
    """What to write together with a start, or with its place in a line."""
    return Shown(decision.stage) if decision.stage in (Stage.APP_STARTING, Stage.RUNNING_APP_STARTING) else None


def _after_route(facts: Facts) -> float:
    """Seconds until the look at a Space that was routed just now."""
    wanted = [(facts.artifact, facts.generation)]
    if facts.builds or [(d.artifact, d.generation) for d in facts.deployments] != wanted or is_asleep(facts):
        return AFTER_SWAP_SECONDS
    return AFTER_WAKE_SECONDS if facts.sleep_after is None else min(AFTER_WAKE_SECONDS, facts.sleep_after)


def _plan_key(space: Space) -> str:
    return f"{space.head}:{space.salt}"
