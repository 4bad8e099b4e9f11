"""The one state machine: what a Space is, and what is to be done next. Pure; imports only the standard library.

`decide(facts, now)` looks at one Space as it is and says which stage it has and which actions bring it nearer to what
its owner asked for. It is level-triggered: it never asks what happened, only what is, so a lost or doubled event
changes nothing. The stage (the Hub's word) is the product of two axes, what the build does (`BuildAxis`) and what the
run does (`RunAxis`), joined by the table `STAGES`.

Invariants (tests/unit/test_lifecycle.py walks random histories): at most one live deployment and one candidate; a live
deployment ends only by pause, delete, idleness, the removal of its Space's volume, replacement (after it where hardware
is too scarce for two, then before it) or its own exit; at most one is frozen, and only while its Space sleeps;
deciding again on the world that the actions made yields no further action.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Stage(StrEnum):
    """Public stage of a Space, in the Hub's words."""

    NO_APP_FILE = "NO_APP_FILE"
    CONFIG_ERROR = "CONFIG_ERROR"
    BUILDING = "BUILDING"
    BUILD_ERROR = "BUILD_ERROR"
    APP_STARTING = "APP_STARTING"
    RUNNING = "RUNNING"
    RUNNING_BUILDING = "RUNNING_BUILDING"
    RUNNING_APP_STARTING = "RUNNING_APP_STARTING"
    RUNTIME_ERROR = "RUNTIME_ERROR"
    SLEEPING = "SLEEPING"
    PAUSED = "PAUSED"
    DELETING = "DELETING"


class Desired(StrEnum):
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    DELETED = "DELETED"


class BuildStatus(StrEnum):
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class DeploymentStatus(StrEnum):
    STARTING = "STARTING"
    READY = "READY"
    FROZEN = "FROZEN"
    """Asleep in memory: a visit thaws it in milliseconds."""
    STOPPING = "STOPPING"
    GONE = "GONE"
    FAILED = "FAILED"


BUILD_MOVES: dict[BuildStatus, frozenset[BuildStatus]] = {
    BuildStatus.QUEUED: frozenset({BuildStatus.RUNNING, BuildStatus.CANCELLED}),
    # A claim that ran out goes back to the queue: its worker was killed.
    BuildStatus.RUNNING: frozenset(
        {BuildStatus.QUEUED, BuildStatus.SUCCEEDED, BuildStatus.FAILED, BuildStatus.CANCELLED}
    ),
    BuildStatus.SUCCEEDED: frozenset(),
    BuildStatus.FAILED: frozenset(),
    BuildStatus.CANCELLED: frozenset(),
}

DEPLOYMENT_MOVES: dict[DeploymentStatus, frozenset[DeploymentStatus]] = {
    DeploymentStatus.STARTING: frozenset({DeploymentStatus.READY, DeploymentStatus.FAILED, DeploymentStatus.STOPPING}),
    DeploymentStatus.READY: frozenset({DeploymentStatus.FROZEN, DeploymentStatus.STOPPING, DeploymentStatus.FAILED}),
    DeploymentStatus.FROZEN: frozenset({DeploymentStatus.READY, DeploymentStatus.STOPPING, DeploymentStatus.FAILED}),
    DeploymentStatus.STOPPING: frozenset({DeploymentStatus.GONE}),
    DeploymentStatus.GONE: frozenset(),
    DeploymentStatus.FAILED: frozenset(),
}

OPEN = (DeploymentStatus.STARTING, DeploymentStatus.READY, DeploymentStatus.FROZEN, DeploymentStatus.STOPPING)
"""Statuses of a deployment that may still have something running."""


class BuildAxis(StrEnum):
    EMPTY = "EMPTY"
    """No commit on main yet, or no app file in it."""
    CONFIG_ERROR = "CONFIG_ERROR"
    BUILT = "BUILT"
    BUILDING = "BUILDING"
    BUILD_ERROR = "BUILD_ERROR"


class RunAxis(StrEnum):
    DOWN = "DOWN"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    REPLACING = "REPLACING"
    """One deployment serves while the next one starts."""
    SLEEPING = "SLEEPING"
    FAILED = "FAILED"


S = Stage
STAGES: dict[BuildAxis, dict[RunAxis, Stage]] = {
    BuildAxis.EMPTY: dict.fromkeys(RunAxis, S.NO_APP_FILE),
    BuildAxis.CONFIG_ERROR: dict.fromkeys(RunAxis, S.CONFIG_ERROR),
    BuildAxis.BUILD_ERROR: dict.fromkeys(RunAxis, S.BUILD_ERROR),
    BuildAxis.BUILDING: {
        RunAxis.DOWN: S.BUILDING,
        RunAxis.STARTING: S.BUILDING,
        RunAxis.RUNNING: S.RUNNING_BUILDING,
        RunAxis.REPLACING: S.RUNNING_BUILDING,
        RunAxis.SLEEPING: S.BUILDING,
        RunAxis.FAILED: S.BUILDING,
    },
    BuildAxis.BUILT: {
        RunAxis.DOWN: S.APP_STARTING,
        RunAxis.STARTING: S.APP_STARTING,
        RunAxis.RUNNING: S.RUNNING,
        RunAxis.REPLACING: S.RUNNING_APP_STARTING,
        RunAxis.SLEEPING: S.SLEEPING,
        RunAxis.FAILED: S.RUNTIME_ERROR,
    },
}

MAX_ATTEMPTS = 4
"""Starts of one artifact and generation before the platform waits for its owner."""
BACKOFF = (0.0, 1.0, 5.0, 20.0)
"""Seconds to wait after the n-th failed attempt."""
STEADY_AFTER = 60.0
"""A deployment that served this many seconds gives its attempts back."""
DRAIN_SECONDS = 60.0
"""Longest wait for requests that run on a deployment which is no longer routed."""
WAIT_FOR_HINT = 30.0
"""Seconds until a look at something that may take hours, and whose hint is seldom lost."""
WAIT_IN_LINE = 3.0
"""Seconds until a look at a start that was asked for: it may stand in the line for a slot, and whoever gives one back
hints the first; of one that began, the row says to look earlier."""
LOOK_AGAIN = 1.0
"""Seconds until a look at something that is expected to change and whose hint may be lost."""


@dataclass(frozen=True, slots=True)
class BuildFacts:
    id: int
    plan_id: str
    status: BuildStatus
    generation: int
    """The Space's generation when the build was asked for."""
    artifact: str | None = None


@dataclass(frozen=True, slots=True)
class DeploymentFacts:
    id: int
    artifact: str
    generation: int
    status: DeploymentStatus
    live: bool = False
    deadline: float | None = None
    """When a start that is not READY counts as failed."""
    failed: bool = False
    """It ended by itself, or was observed as lost, and has not been recorded as FAILED yet."""
    drained: bool = False
    """No gateway routes to it any more and no request runs on it."""
    unrouted_at: float | None = None
    may_freeze: bool = False
    """It may be kept in memory while its Space sleeps: the orchestrator can, there is room, it holds no accelerator."""
    frozen_at: float | None = None
    """Of a FROZEN one."""


@dataclass(frozen=True, slots=True)
class Attempts:
    """Failed starts of one (artifact, generation) since it last served steadily."""

    failed: int = 0
    last_at: float = 0.0
    fatal: bool = False
    """The failure will repeat (a syntax error, a missing module): no further attempt is worth its time."""

    def left(self) -> bool:
        return not self.fatal and self.failed < MAX_ATTEMPTS

    def not_before(self) -> float:
        return self.last_at + BACKOFF[min(self.failed, len(BACKOFF) - 1)]


@dataclass(frozen=True, slots=True)
class Facts:
    """One Space as it is. Gathered by the reconciler; nothing here is a live object."""

    desired: Desired = Desired.RUNNING
    generation: int = 1
    problem: BuildAxis | None = None
    """EMPTY or CONFIG_ERROR where the head cannot be planned."""
    plan_id: str | None = None
    """Plan of the head; None where `problem` says why there is none."""
    builds: tuple[BuildFacts, ...] = ()
    """Live builds of any plan, and the newest build of the head's plan."""
    artifact: str | None = None
    """The artifact of the head's plan, where it exists."""
    last_good: str | None = None
    """The artifact that served last."""
    deployments: tuple[DeploymentFacts, ...] = ()
    """All that are not GONE or FAILED."""
    attempts: dict[str, Attempts] = field(default_factory=dict)
    """By artifact, for this generation."""
    sleep_after: float | None = None
    """Seconds; None: never."""
    last_active_at: float = 0.0
    """Last request, push, restart or wake."""
    in_flight: int = 0
    slept_at: float | None = None
    """When it was put to sleep, or was asked to; None once it serves."""
    frozen_for: float = 86400.0
    """Seconds a frozen deployment is kept."""
    traffic_known: bool = True
    """False while no gateway reports: nothing is put to sleep on a guess."""
    swap_in_place: bool = False
    """A new deployment can have its hardware only once the one that serves has ended."""
    waits_for_gpu: bool = False
    """Its start stands in the line for GPUs; whoever gives one back hints it."""
    drops_volume: bool = False
    """Its volume is to be removed: whatever has it open ends first, and nothing starts before."""
    routed: int | None = None
    """Deployment the route points to; None: parked."""
    unrouted: bool = False
    """The route is gone altogether (deleting)."""


# --- actions: each leaves the executor no choice ------------------------------------------------
@dataclass(frozen=True, slots=True)
class StartBuild:
    plan_id: str


@dataclass(frozen=True, slots=True)
class CancelBuild:
    build_id: int


@dataclass(frozen=True, slots=True)
class StartDeployment:
    artifact: str
    generation: int


@dataclass(frozen=True, slots=True)
class FailDeployment:
    """Record that it failed, and remove what is left of it."""

    deployment_id: int
    timed_out: bool


@dataclass(frozen=True, slots=True)
class StopDeployment:
    deployment_id: int


@dataclass(frozen=True, slots=True)
class FreezeDeployment:
    """Keep it in memory, without processor time; where that cannot be done, stop it."""

    deployment_id: int


@dataclass(frozen=True, slots=True)
class Route:
    """Point the route at this deployment; the one routed before is unrouted and drains."""

    deployment_id: int


@dataclass(frozen=True, slots=True)
class ThawDeployment:
    """Let a frozen one run and point the route at it; where that cannot be done, stop it."""

    deployment_id: int


@dataclass(frozen=True, slots=True)
class Park:
    """Point the route at nothing. `asleep`: a visit wakes it."""

    asleep: bool


@dataclass(frozen=True, slots=True)
class Unroute:
    pass


@dataclass(frozen=True, slots=True)
class RemoveVolume:
    """Delete the volume and its snapshots. Only once nothing runs."""


@dataclass(frozen=True, slots=True)
class Purge:
    """Remove the Space's rows, repository, volume, artifacts and logs. Only once nothing runs."""


Action = (
    StartBuild
    | CancelBuild
    | StartDeployment
    | FailDeployment
    | StopDeployment
    | FreezeDeployment
    | ThawDeployment
    | Route
    | Park
    | Unroute
    | RemoveVolume
    | Purge
)


@dataclass(frozen=True, slots=True)
class Decision:
    stage: Stage
    actions: tuple[Action, ...] = ()
    check_at: float | None = None
    """When to look again without a hint; None: only a hint can change anything."""


def decide(facts: Facts, now: float) -> Decision:
    """The stage of the Space and what to do next. Pure and total: every Facts has a Decision."""
    draining, check = _drain(facts, now)
    if facts.desired is Desired.DELETED:
        return _delete(facts, draining)
    if facts.desired is Desired.PAUSED:
        return _pause(facts, draining, check)
    build_axis, build_actions = _build_axis(facts)
    run = _clear_out(facts, now) if facts.drops_volume else _run_axis(facts, build_axis, now)
    run_axis, run_actions, run_check = run
    return Decision(
        STAGES[build_axis][run_axis],
        (*build_actions, *draining, *run_actions),
        _earliest(check, run_check, now + 5 * LOOK_AGAIN if build_axis is BuildAxis.BUILDING else None),
    )


def live_of(facts: Facts) -> DeploymentFacts | None:
    """The deployment that serves, if it still runs."""
    return next((d for d in facts.deployments if d.live and not d.failed), None)


def candidate_of(facts: Facts) -> DeploymentFacts | None:
    """The newest deployment that has never been routed and is not being stopped."""
    fresh = [
        d
        for d in facts.deployments
        if not d.live and d.unrouted_at is None and d.status in (DeploymentStatus.STARTING, DeploymentStatus.READY)
    ]
    return max(fresh, key=lambda d: d.id, default=None)


def kept_of(facts: Facts) -> DeploymentFacts | None:
    """The deployment that needs no start to serve again: frozen, or parked and not yet stopped, and still wanted."""
    if facts.desired is not Desired.RUNNING or facts.drops_volume:
        return None
    wanted, live, candidate = _wanted(facts), live_of(facts), candidate_of(facts)
    if any(d is not None and (d.artifact, d.generation) == wanted for d in (live, candidate)):
        return None
    usable = [
        d
        for d in facts.deployments
        if (d.artifact, d.generation) == wanted
        and not d.failed
        and (d.status is DeploymentStatus.FROZEN or (d.status is DeploymentStatus.READY and d.unrouted_at is not None))
    ]
    return max(usable, key=lambda d: d.id, default=None)


def _drain(facts: Facts, now: float) -> tuple[tuple[Action, ...], float | None]:
    """End what is no longer routed once its last request is answered; of a sleeping Space, freeze what may be kept."""
    actions: list[Action] = []
    check: float | None = None
    kept = kept_of(facts)
    for d in facts.deployments:
        if d.status is DeploymentStatus.STOPPING:
            check = _earliest(check, now + LOOK_AGAIN)
        elif d.status is DeploymentStatus.FROZEN:
            until = (now if d.frozen_at is None else d.frozen_at) + facts.frozen_for
            if d.failed:
                actions.append(FailDeployment(d.id, timed_out=False))
            elif d is not kept or (is_asleep(facts) and now >= until):
                actions.append(StopDeployment(d.id))
            else:
                check = _earliest(check, until)
        elif d.unrouted_at is not None and not d.live:
            check = _earliest(check, now + LOOK_AGAIN)
            if d is kept and not is_asleep(facts):
                continue  # It is routed again.
            if d is kept and d.drained and d.may_freeze:
                actions.append(FreezeDeployment(d.id))
            elif d.drained or d.failed or now >= d.unrouted_at + DRAIN_SECONDS:
                actions.append(StopDeployment(d.id))
    return tuple(actions), check


def _delete(facts: Facts, draining: tuple[Action, ...]) -> Decision:
    actions: list[Action] = [CancelBuild(b.id) for b in facts.builds if _is_live(b)]
    if not facts.unrouted:
        actions.append(Unroute())
    actions += [StopDeployment(d.id) for d in facts.deployments if d.status is not DeploymentStatus.STOPPING]
    if not actions and not facts.deployments and not draining:
        actions.append(Purge())
    # A stop needs a moment to show; the next pass purges.
    return Decision(Stage.DELETING, tuple(actions), check_at=0.0 if actions else None)


def _pause(facts: Facts, draining: tuple[Action, ...], check: float | None) -> Decision:
    actions: list[Action] = [CancelBuild(b.id) for b in facts.builds if _is_live(b)]
    actions += _end_all(facts)
    if facts.drops_volume and not facts.deployments:
        actions.append(RemoveVolume())
    if any(d.live for d in facts.deployments):
        check = 0.0
    return Decision(Stage.PAUSED, (*actions, *draining), check)


def _end_all(facts: Facts) -> list[Action]:
    """Unroute what serves, which drains and is stopped by `_drain`, and stop what never served."""
    serves = facts.routed is not None or any(d.live for d in facts.deployments)
    actions: list[Action] = [Park(asleep=False)] if serves else []
    idle = (DeploymentStatus.STOPPING, DeploymentStatus.FROZEN)
    for d in facts.deployments:
        if d.status not in idle and d.unrouted_at is None and not d.live:
            actions.append(StopDeployment(d.id))
    return actions


def _clear_out(facts: Facts, now: float) -> tuple[RunAxis, tuple[Action, ...], float | None]:
    """The volume goes before anything starts again, and what has it open before that."""
    axis = RunAxis.SLEEPING if is_asleep(facts) else RunAxis.STARTING
    if not facts.deployments:
        return axis, (RemoveVolume(),), now
    return axis, tuple(_end_all(facts)), now + LOOK_AGAIN


def _build_axis(facts: Facts) -> tuple[BuildAxis, tuple[Action, ...]]:
    others = tuple(CancelBuild(b.id) for b in facts.builds if _is_live(b) and b.plan_id != facts.plan_id)
    if facts.problem is not None:
        return facts.problem, others
    if facts.artifact is not None:
        return BuildAxis.BUILT, others
    mine = [b for b in facts.builds if b.plan_id == facts.plan_id]
    newest = max(mine, key=lambda b: b.id, default=None)
    if newest is not None and _is_live(newest):
        return BuildAxis.BUILDING, others
    if newest is not None and newest.status is BuildStatus.FAILED and newest.generation == facts.generation:
        return BuildAxis.BUILD_ERROR, others
    if facts.plan_id is None:
        return BuildAxis.EMPTY, others
    return BuildAxis.BUILDING, (*others, StartBuild(facts.plan_id))


def _run_axis(facts: Facts, build: BuildAxis, now: float) -> tuple[RunAxis, tuple[Action, ...], float | None]:
    live, candidate = live_of(facts), candidate_of(facts)
    actions: list[Action] = []
    for d in facts.deployments:
        if d.live and d.failed:
            # It ended by itself. Parked here, so that no request is sent to a dead endpoint; started again below.
            actions += [Park(asleep=False), FailDeployment(d.id, timed_out=False)]
            return _after_failure(facts, d, actions, now)
    wanted = _wanted(facts)

    if candidate is not None and (candidate.artifact, candidate.generation) != wanted:
        actions.append(StopDeployment(candidate.id))
        candidate = None
    if candidate is not None:
        late = candidate.deadline is not None and now >= candidate.deadline
        if candidate.failed or (candidate.status is DeploymentStatus.STARTING and late):
            actions.append(FailDeployment(candidate.id, timed_out=not candidate.failed))
            return _after_failure(facts, candidate, actions, now)
        if candidate.status is DeploymentStatus.READY:
            return RunAxis.RUNNING, (*actions, Route(candidate.id)), now + LOOK_AGAIN
        axis = RunAxis.REPLACING if live else RunAxis.STARTING
        return axis, tuple(actions), _earliest(now + LOOK_AGAIN, candidate.deadline)

    failed = _is_exhausted(facts, facts.artifact)
    if live is not None and wanted == (live.artifact, live.generation):
        return _serving(facts, live, actions, failed, now)
    if wanted is not None and wanted[1] == facts.generation:
        if live is None and is_asleep(facts):
            if facts.routed is not None:
                actions.append(Park(asleep=True))
            return (RunAxis.FAILED if failed else RunAxis.SLEEPING), tuple(actions), None
        return _bring_up(facts, wanted, actions, failed, now)
    if live is not None:
        return _serving(facts, live, actions, failed, now)
    if facts.routed is not None:
        actions.append(Park(asleep=False))
    return (RunAxis.FAILED if failed else RunAxis.DOWN), tuple(actions), None


def _bring_up(
    facts: Facts, wanted: tuple[str, int], actions: list[Action], failed: bool, now: float
) -> tuple[RunAxis, tuple[Action, ...], float | None]:
    """What should run does not: use the one that is kept, else start one."""
    kept = kept_of(facts)
    if kept is not None:
        frozen = kept.status is DeploymentStatus.FROZEN
        actions.append(ThawDeployment(kept.id) if frozen else Route(kept.id))
        return (RunAxis.FAILED if failed else RunAxis.RUNNING), tuple(actions), now + LOOK_AGAIN
    attempts = facts.attempts.get(wanted[0], Attempts())
    axis = RunAxis.REPLACING if live_of(facts) else RunAxis.STARTING
    if failed:
        axis = RunAxis.FAILED
    if now < attempts.not_before():
        return axis, tuple(actions), attempts.not_before()
    if facts.swap_in_place and live_of(facts) is not None:
        # The start is asked for in the same pass: it is refused, and keeps what is about to be given back.
        axis = RunAxis.FAILED if failed else RunAxis.STARTING
        return axis, (*actions, Park(asleep=False), StartDeployment(*wanted)), now + LOOK_AGAIN
    wait = WAIT_FOR_HINT if facts.waits_for_gpu else WAIT_IN_LINE
    return axis, (*actions, StartDeployment(*wanted)), now + wait


def _serving(
    facts: Facts, live: DeploymentFacts, actions: list[Action], failed: bool, now: float
) -> tuple[RunAxis, tuple[Action, ...], float | None]:
    """A deployment serves and nothing newer is under way: keep its route right, or let it sleep."""
    if is_asleep(facts):
        axis = RunAxis.FAILED if failed else RunAxis.SLEEPING
        return axis, (*actions, Park(asleep=True)), now + LOOK_AGAIN
    if facts.sleep_after is not None and facts.traffic_known and facts.in_flight == 0:
        sleep_at = facts.last_active_at + facts.sleep_after
        if now >= sleep_at:
            axis = RunAxis.FAILED if failed else RunAxis.SLEEPING
            return axis, (*actions, Park(asleep=True)), now + LOOK_AGAIN
        check: float | None = sleep_at
    else:
        check = None if facts.sleep_after is None else now + 30 * LOOK_AGAIN
    if facts.routed != live.id:
        actions.append(Route(live.id))
    return (RunAxis.FAILED if failed else RunAxis.RUNNING), tuple(actions), check


def _after_failure(
    facts: Facts, gone: DeploymentFacts, actions: list[Action], now: float
) -> tuple[RunAxis, tuple[Action, ...], float | None]:
    """A deployment failed in this pass: the next pass, on recorded facts, says whether another attempt is due."""
    live = live_of(facts)
    if live is not None and live.id != gone.id:
        return RunAxis.REPLACING, tuple(actions), now
    return RunAxis.STARTING, tuple(actions), now


def _wanted(facts: Facts) -> tuple[str, int] | None:
    """What should run: the head's artifact while it has attempts left, else what served last."""
    for artifact in (facts.artifact, facts.last_good):
        if artifact is not None and not _is_exhausted(facts, artifact):
            live = live_of(facts)
            if artifact != facts.artifact and live is not None and live.artifact == artifact:
                # An older version that serves is left alone, also across a change of generation.
                return live.artifact, live.generation
            return artifact, facts.generation
    return None


def _is_exhausted(facts: Facts, artifact: str | None) -> bool:
    return artifact is not None and artifact in facts.attempts and not facts.attempts[artifact].left()


def is_asleep(facts: Facts) -> bool:
    """Put to sleep, or asked to, and not visited since."""
    return facts.slept_at is not None and facts.last_active_at <= facts.slept_at


def _is_live(build: BuildFacts) -> bool:
    return build.status in (BuildStatus.QUEUED, BuildStatus.RUNNING)


def _earliest(*times: float | None) -> float | None:
    known = [t for t in times if t is not None]
    return min(known) if known else None
