"""The state machine: its table row by row, then random histories of a simulated world that obeys its actions."""

from __future__ import annotations

import dataclasses
import random
import typing
from collections import Counter

import pytest

from spaces_platform import lifecycle
from spaces_platform.lifecycle import (
    Attempts,
    BuildAxis,
    BuildFacts,
    BuildStatus,
    CancelBuild,
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
    decide,
)

S, D, B = Stage, DeploymentStatus, BuildStatus
NOW = 1000.0


def deployment(id: int = 1, artifact: str = "a1", status: D = D.READY, **more: object) -> DeploymentFacts:
    values: dict[str, object] = {"generation": 1, "live": status is D.READY and not more.get("unrouted_at"), **more}
    return DeploymentFacts(id, artifact, status=status, **values)  # type: ignore[arg-type]


def facts(**more: object) -> Facts:
    """A Space with head plan p1, nothing built and nothing running."""
    return dataclasses.replace(Facts(plan_id="p1", last_active_at=NOW - 1), **more)  # type: ignore[arg-type]


def running(**more: object) -> Facts:
    """A Space whose head is built and serves."""
    return facts(artifact="a1", deployments=(deployment(),), routed=1, last_good="a1", **more)


def asleep(*deployments: DeploymentFacts, **more: object) -> Facts:
    """A Space whose head is built and which sleeps."""
    given: dict[str, object] = {"artifact": "a1", "last_good": "a1", "slept_at": NOW - 5, "last_active_at": NOW - 9}
    return facts(deployments=deployments, **{**given, **more})


def parked(id: int = 1, artifact: str = "a1", **more: object) -> DeploymentFacts:
    """It served, and drains."""
    return deployment(id, artifact, **{"live": False, "unrouted_at": NOW - 1, "may_freeze": True, **more})  # type: ignore[arg-type]


def frozen(id: int = 1, artifact: str = "a1", **more: object) -> DeploymentFacts:
    return deployment(id, artifact, D.FROZEN, **{"unrouted_at": NOW - 9, "frozen_at": NOW - 8, **more})


TABLE = [
    ("nothing pushed yet", facts(plan_id=None, problem=BuildAxis.EMPTY), S.NO_APP_FILE, []),
    ("bad front matter", facts(plan_id=None, problem=BuildAxis.CONFIG_ERROR), S.CONFIG_ERROR, []),
    ("a push is built", facts(), S.BUILDING, [StartBuild("p1")]),
    ("a build is under way", facts(builds=(BuildFacts(1, "p1", B.QUEUED, 1),)), S.BUILDING, []),
    (
        "a newer push cancels the older build",
        facts(builds=(BuildFacts(1, "p0", B.RUNNING, 1),)),
        S.BUILDING,
        [CancelBuild(1), StartBuild("p1")],
    ),
    ("a failed build waits for its owner", facts(builds=(BuildFacts(1, "p1", B.FAILED, 1),)), S.BUILD_ERROR, []),
    (
        "a restart tries a failed build again",
        facts(builds=(BuildFacts(1, "p1", B.FAILED, 1),), generation=2),
        S.BUILDING,
        [StartBuild("p1")],
    ),
    (
        "before its volume goes, what serves is unrouted",
        running(drops_volume=True, generation=2),
        S.APP_STARTING,
        [Park(asleep=False)],
    ),
    (
        "before its volume goes, what never served is stopped",
        facts(artifact="a1", drops_volume=True, deployments=(deployment(status=D.STARTING, deadline=NOW + 9),)),
        S.APP_STARTING,
        [StopDeployment(1)],
    ),
    (
        "before its volume goes, what drains is waited for",
        facts(artifact="a1", drops_volume=True, deployments=(parked(),)),
        S.APP_STARTING,
        [],
    ),
    (
        "before its volume goes, what is drained is stopped and not frozen",
        asleep(parked(drained=True), drops_volume=True),
        S.SLEEPING,
        [StopDeployment(1)],
    ),
    (
        "before its volume goes, what is frozen is stopped",
        asleep(frozen(), drops_volume=True),
        S.SLEEPING,
        [StopDeployment(1)],
    ),
    (
        "its volume stays while an app of it still ends",
        facts(artifact="a1", drops_volume=True, deployments=(deployment(status=D.STOPPING, live=False),)),
        S.APP_STARTING,
        [],
    ),
    (
        "an old version that serves ends as well, though nothing newer runs",
        facts(
            problem=BuildAxis.CONFIG_ERROR,
            plan_id=None,
            last_good="a1",
            deployments=(deployment(),),
            routed=1,
            drops_volume=True,
            generation=2,
        ),
        S.CONFIG_ERROR,
        [Park(asleep=False)],
    ),
    ("the volume goes once nothing runs", facts(artifact="a1", drops_volume=True), S.APP_STARTING, [RemoveVolume()]),
    ("the volume of a sleeping Space goes, and it sleeps on", asleep(drops_volume=True), S.SLEEPING, [RemoveVolume()]),
    (
        "the volume of a paused Space goes",
        facts(artifact="a1", desired=Desired.PAUSED, drops_volume=True),
        S.PAUSED,
        [RemoveVolume()],
    ),
    (
        "a build goes on while the volume goes",
        facts(drops_volume=True),
        S.BUILDING,
        [StartBuild("p1"), RemoveVolume()],
    ),
    ("built is started", facts(artifact="a1"), S.APP_STARTING, [StartDeployment("a1", 1)]),
    (
        "starting is waited for",
        facts(artifact="a1", deployments=(deployment(status=D.STARTING, deadline=NOW + 9),)),
        S.APP_STARTING,
        [],
    ),
    (
        "ready is routed",
        facts(artifact="a1", deployments=(deployment(live=False),)),
        S.RUNNING,
        [Route(1)],
    ),
    ("running is left alone", running(), S.RUNNING, []),
    ("a lost route is mended", dataclasses.replace(running(), routed=None), S.RUNNING, [Route(1)]),
    (
        "a start past its deadline failed",
        facts(artifact="a1", deployments=(deployment(status=D.STARTING, deadline=NOW),)),
        S.APP_STARTING,
        [FailDeployment(1, timed_out=True)],
    ),
    (
        "a start that exits failed",
        facts(artifact="a1", deployments=(deployment(status=D.STARTING, failed=True),)),
        S.APP_STARTING,
        [FailDeployment(1, timed_out=False)],
    ),
    (
        "a failure that repeats is not tried again",
        facts(artifact="a1", attempts={"a1": Attempts(1, NOW, fatal=True)}),
        S.RUNTIME_ERROR,
        [],
    ),
    (
        "a crash is started again after its back-off",
        facts(artifact="a1", attempts={"a1": Attempts(1, NOW - 2)}),
        S.APP_STARTING,
        [StartDeployment("a1", 1)],
    ),
    ("a crash waits for its back-off", facts(artifact="a1", attempts={"a1": Attempts(2, NOW - 2)}), S.APP_STARTING, []),
    ("attempts end", facts(artifact="a1", attempts={"a1": Attempts(4, NOW - 99)}), S.RUNTIME_ERROR, []),
    (
        "the old version serves while the new one builds",
        dataclasses.replace(running(), artifact=None, plan_id="p2"),
        S.RUNNING_BUILDING,
        [StartBuild("p2")],
    ),
    (
        "the new one starts beside the old one",
        dataclasses.replace(running(), artifact="a2", plan_id="p2"),
        S.RUNNING_APP_STARTING,
        [StartDeployment("a2", 1)],
    ),
    (
        "the new one is routed once it answers",
        facts(artifact="a2", deployments=(deployment(), deployment(2, "a2", live=False)), routed=1, last_good="a1"),
        S.RUNNING,
        [Route(2)],
    ),
    (
        "a bad push leaves the old version serving: build",
        dataclasses.replace(running(), artifact=None, plan_id="p2", builds=(BuildFacts(2, "p2", B.FAILED, 1),)),
        S.BUILD_ERROR,
        [],
    ),
    (
        "a bad push leaves the old version serving: front matter",
        dataclasses.replace(running(), artifact=None, plan_id=None, problem=BuildAxis.CONFIG_ERROR),
        S.CONFIG_ERROR,
        [],
    ),
    (
        "a bad push leaves the old version serving: start",
        dataclasses.replace(running(), artifact="a2", attempts={"a2": Attempts(1, NOW, fatal=True)}),
        S.RUNTIME_ERROR,
        [],
    ),
    (
        "an older version that serves is not restarted for a head that cannot run",
        dataclasses.replace(running(), artifact="a2", generation=2, attempts={"a2": Attempts(1, NOW, fatal=True)}),
        S.RUNTIME_ERROR,
        [],
    ),
    (
        "the last good version is woken when the head cannot run",
        facts(artifact="a2", last_good="a1", attempts={"a2": Attempts(1, NOW, fatal=True)}),
        S.RUNTIME_ERROR,
        [StartDeployment("a1", 1)],
    ),
    (
        "the replaced one is stopped once drained",
        facts(
            artifact="a2",
            deployments=(deployment(1, live=False, unrouted_at=NOW - 1, drained=True), deployment(2, "a2")),
            routed=2,
        ),
        S.RUNNING,
        [StopDeployment(1)],
    ),
    (
        "the replaced one drains while requests run on it",
        facts(
            artifact="a2", deployments=(deployment(1, live=False, unrouted_at=NOW - 1), deployment(2, "a2")), routed=2
        ),
        S.RUNNING,
        [],
    ),
    (
        "a drain has an end",
        facts(
            artifact="a2", deployments=(deployment(1, live=False, unrouted_at=NOW - 61), deployment(2, "a2")), routed=2
        ),
        S.RUNNING,
        [StopDeployment(1)],
    ),
    ("idle sleeps", running(sleep_after=60.0, last_active_at=NOW - 61), S.SLEEPING, [Park(asleep=True)]),
    (
        "a running request keeps it awake",
        running(sleep_after=60.0, last_active_at=NOW - 61, in_flight=1),
        S.RUNNING,
        [],
    ),
    (
        "unknown traffic keeps it awake",
        running(sleep_after=60.0, last_active_at=NOW - 61, traffic_known=False),
        S.RUNNING,
        [],
    ),
    ("put to sleep by its owner", running(slept_at=NOW, last_active_at=0.0), S.SLEEPING, [Park(asleep=True)]),
    ("asleep stays asleep", facts(artifact="a1", slept_at=NOW - 5, last_active_at=NOW - 9), S.SLEEPING, []),
    (
        "a visit wakes",
        facts(artifact="a1", slept_at=NOW - 5, last_active_at=NOW),
        S.APP_STARTING,
        [StartDeployment("a1", 1)],
    ),
    (
        "a live one that exits is parked, recorded and started again",
        dataclasses.replace(running(), deployments=(deployment(failed=True),)),
        S.APP_STARTING,
        [Park(asleep=False), FailDeployment(1, timed_out=False)],
    ),
    (
        "a start of an older head is stopped",
        facts(artifact="a2", deployments=(deployment(1, status=D.STARTING, deadline=NOW + 9),)),
        S.APP_STARTING,
        [StopDeployment(1), StartDeployment("a2", 1)],
    ),
    (
        "a restart replaces what runs",
        running(generation=2),
        S.RUNNING_APP_STARTING,
        [StartDeployment("a1", 2)],
    ),
    (
        "where there is no room for two, the old one goes first",
        dataclasses.replace(running(swap_in_place=True), artifact="a2", plan_id="p2"),
        S.APP_STARTING,
        [Park(asleep=False), StartDeployment("a2", 1)],
    ),
    ("no room for two: what is wanted goes on", running(swap_in_place=True), S.RUNNING, []),
    (
        "no room for two: the old one serves while the new one is built",
        dataclasses.replace(running(swap_in_place=True), artifact=None, plan_id="p2"),
        S.RUNNING_BUILDING,
        [StartBuild("p2")],
    ),
    (
        "no room for two: the old one serves until the new one's back-off is over",
        dataclasses.replace(running(swap_in_place=True), artifact="a2", attempts={"a2": Attempts(2, NOW - 2)}),
        S.RUNNING_APP_STARTING,
        [],
    ),
    (
        "no room for two: the old one is stopped once drained",
        facts(
            artifact="a2",
            deployments=(deployment(1, live=False, unrouted_at=NOW - 1, drained=True),),
            last_good="a1",
            waits_for_gpu=True,
        ),
        S.APP_STARTING,
        [StopDeployment(1), StartDeployment("a2", 1)],
    ),
    ("pause parks first", running(desired=Desired.PAUSED), S.PAUSED, [Park(asleep=False)]),
    (
        "pause cancels builds and starts",
        facts(
            desired=Desired.PAUSED,
            builds=(BuildFacts(1, "p1", B.RUNNING, 1),),
            deployments=(deployment(status=D.STARTING),),
        ),
        S.PAUSED,
        [CancelBuild(1), StopDeployment(1)],
    ),
    ("delete unroutes and stops", running(desired=Desired.DELETED), S.DELETING, [Unroute(), StopDeployment(1)]),
    ("delete purges when nothing runs", facts(desired=Desired.DELETED, unrouted=True), S.DELETING, [Purge()]),
    ("what fell asleep is frozen once drained", asleep(parked(drained=True)), S.SLEEPING, [FreezeDeployment(1)]),
    ("what fell asleep drains first", asleep(parked()), S.SLEEPING, []),
    (
        "a drain that does not end is stopped, not frozen",
        asleep(parked(unrouted_at=NOW - 61)),
        S.SLEEPING,
        [StopDeployment(1)],
    ),
    (
        "what may not be kept is stopped",
        asleep(parked(drained=True, may_freeze=False)),
        S.SLEEPING,
        [StopDeployment(1)],
    ),
    (
        "what is no longer wanted is stopped, not frozen",
        asleep(parked(drained=True), generation=2),
        S.SLEEPING,
        [StopDeployment(1)],
    ),
    (
        "a replaced version is stopped, not frozen",
        asleep(parked(drained=True), parked(2, "a2", drained=True), artifact="a2", last_good="a2"),
        S.SLEEPING,
        [StopDeployment(1), FreezeDeployment(2)],
    ),
    ("frozen stays frozen", asleep(frozen()), S.SLEEPING, []),
    ("a visit thaws", asleep(frozen(), last_active_at=NOW), S.RUNNING, [ThawDeployment(1)]),
    ("a visit during the drain routes it again", asleep(parked(), last_active_at=NOW), S.RUNNING, [Route(1)]),
    (
        "a visit at the end of the drain routes it again",
        asleep(parked(drained=True), last_active_at=NOW),
        S.RUNNING,
        [Route(1)],
    ),
    (
        "frozen has an end",
        asleep(frozen(frozen_at=NOW - 100), frozen_for=100.0),
        S.SLEEPING,
        [StopDeployment(1)],
    ),
    (
        "a visit at that end thaws",
        asleep(frozen(frozen_at=NOW - 100), frozen_for=100.0, last_active_at=NOW),
        S.RUNNING,
        [ThawDeployment(1)],
    ),
    (
        "a frozen one that died is recorded",
        asleep(frozen(failed=True)),
        S.SLEEPING,
        [FailDeployment(1, timed_out=False)],
    ),
    (
        "a frozen one that died is started anew by a visit",
        asleep(frozen(failed=True), last_active_at=NOW),
        S.APP_STARTING,
        [FailDeployment(1, timed_out=False), StartDeployment("a1", 1)],
    ),
    ("a changed setting stops what is frozen", asleep(frozen(), generation=2), S.SLEEPING, [StopDeployment(1)]),
    (
        "a restart stops what is frozen and starts anew",
        asleep(frozen(), generation=2, last_active_at=NOW),
        S.APP_STARTING,
        [StopDeployment(1), StartDeployment("a1", 2)],
    ),
    (
        "a new version stops what is frozen of the old one",
        asleep(frozen(), artifact="a2", last_active_at=NOW),
        S.APP_STARTING,
        [StopDeployment(1), StartDeployment("a2", 1)],
    ),
    (
        "while a push is built, a visit gets the version that is frozen",
        asleep(frozen(), artifact=None, plan_id="p2", builds=(BuildFacts(2, "p2", B.RUNNING, 1),), last_active_at=NOW),
        S.RUNNING_BUILDING,
        [ThawDeployment(1)],
    ),
    (
        "the last good version is thawed when the head cannot run",
        asleep(frozen(), artifact="a2", attempts={"a2": Attempts(1, NOW, fatal=True)}, last_active_at=NOW),
        S.RUNTIME_ERROR,
        [ThawDeployment(1)],
    ),
    ("of two frozen the newer is kept", asleep(frozen(1), frozen(2)), S.SLEEPING, [StopDeployment(1)]),
    ("pause stops what is frozen", asleep(frozen(), desired=Desired.PAUSED), S.PAUSED, [StopDeployment(1)]),
    (
        "delete stops what is frozen",
        asleep(frozen(), desired=Desired.DELETED, unrouted=True),
        S.DELETING,
        [StopDeployment(1)],
    ),
    (
        "delete waits for what still ends",
        facts(desired=Desired.DELETED, unrouted=True, deployments=(deployment(status=D.STOPPING, live=False),)),
        S.DELETING,
        [],
    ),
]


@pytest.mark.parametrize(("given", "stage", "actions"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_row(given: Facts, stage: Stage, actions: list[object]) -> None:
    decision = decide(given, NOW)
    assert decision.stage is stage
    assert list(decision.actions) == actions


def test_every_pair_of_axes_has_a_stage() -> None:
    assert {b: set(row) for b, row in lifecycle.STAGES.items()} == {b: set(lifecycle.RunAxis) for b in BuildAxis}


class World:
    """A Space in memory that does what it is told, and to which things happen."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.now, self.pushes, self.ids = rng, NOW, 0, 0
        self.facts = Facts(
            plan_id=None, problem=BuildAxis.EMPTY, sleep_after=60.0, last_active_at=NOW, frozen_for=200.0
        )
        self.counts: Counter[type] = Counter()
        self.quality: dict[str, str] = {}
        self.artifacts: dict[str, str] = {}
        self.purged = False
        self.is_scarce = False
        """There is one GPU, and every deployment needs it."""

    def set(self, **changes: object) -> None:
        self.facts = dataclasses.replace(self.facts, **changes)  # type: ignore[arg-type]

    def happen(self) -> None:
        """One thing that users, apps, builders or time may do."""
        f, rng = self.facts, self.rng
        self.now += rng.choice((0.0, 0.1, 1.0, 10.0, 90.0))
        what = rng.choice(
            (
                "push",
                "push",
                "build",
                "start",
                "start",
                "visit",
                "crash",
                "drain",
                "end",
                "wish",
                "time",
                "time",
                "evict",
            )
        )
        if what == "push" and f.desired is not Desired.DELETED:
            self.push()
        elif what == "build":
            self.set(builds=tuple(self.built(b) for b in f.builds))
            self.adopt_artifact()
        elif what == "start":
            self.set(deployments=tuple(self.answer(d) for d in f.deployments))
        elif what == "visit":
            self.set(last_active_at=self.now, in_flight=rng.choice((0, 1)))
        elif what == "crash" and f.deployments:
            victim = rng.choice(f.deployments)
            if victim.status is not D.STOPPING:
                self.set(
                    deployments=tuple(dataclasses.replace(d, failed=True) if d is victim else d for d in f.deployments)
                )
        elif what == "drain":
            self.set(
                in_flight=0,
                deployments=tuple(dataclasses.replace(d, drained=d.unrouted_at is not None) for d in f.deployments),
            )
        elif what == "evict" and rng.random() < 0.5:
            for d in f.deployments:
                if d.status is D.FROZEN:
                    self.change(d.id, status=D.STOPPING)
        elif what == "end":
            self.set(deployments=tuple(d for d in f.deployments if d.status is not D.STOPPING))
        elif what == "wish" and f.desired is not Desired.DELETED:
            self.wish()

    def push(self) -> None:
        self.pushes += 1
        plan = f"p{self.pushes}"
        kind = self.rng.choice(("good", "good", "good", "no build", "no start", "config", "empty"))
        self.quality[plan] = kind
        problem = {"config": BuildAxis.CONFIG_ERROR, "empty": BuildAxis.EMPTY}.get(kind)
        self.set(plan_id=None if problem else plan, problem=problem, artifact=None, last_active_at=self.now)

    def built(self, build: BuildFacts) -> BuildFacts:
        if build.status is B.QUEUED:
            return dataclasses.replace(build, status=B.RUNNING)
        if build.status is B.RUNNING:
            if self.quality[build.plan_id] == "no build":
                return dataclasses.replace(build, status=B.FAILED)
            self.artifacts[build.plan_id] = f"a-{build.plan_id}"
            return dataclasses.replace(build, status=B.SUCCEEDED)
        return build

    def adopt_artifact(self) -> None:
        f = self.facts
        builds = tuple(b for b in f.builds if b.status is not B.SUCCEEDED and b.status is not B.CANCELLED)
        self.set(builds=builds, artifact=self.artifacts.get(f.plan_id or ""))

    def answer(self, d: DeploymentFacts) -> DeploymentFacts:
        if d.status is not D.STARTING or d.failed:
            return d
        if self.quality[d.artifact[2:]] == "no start":
            return dataclasses.replace(d, failed=True)
        # The orchestrator cannot freeze every one: it holds an accelerator, or there is no room.
        return dataclasses.replace(d, status=D.READY, may_freeze=self.rng.random() < 0.8)

    def wish(self) -> None:
        f = self.facts
        wish = self.rng.choice(
            ("pause", "restart", "restart", "sleep", "empty", "delete" if self.rng.random() < 0.1 else "restart")
        )
        if wish == "pause":
            self.set(desired=Desired.PAUSED)
        elif wish == "restart":
            self.set(desired=Desired.RUNNING, generation=f.generation + 1, attempts={}, last_active_at=self.now)
        elif wish == "sleep":
            self.set(slept_at=self.now, last_active_at=0.0)
        elif wish == "empty":
            self.set(drops_volume=True, generation=f.generation + 1, attempts={})
        else:
            self.set(desired=Desired.DELETED)

    def obey(self, action: lifecycle.Action) -> None:
        f = self.facts
        self.counts[type(action)] += 1
        match action:
            case StartBuild(plan_id):
                self.ids += 1
                kept = tuple(b for b in f.builds if b.plan_id != plan_id)
                self.set(builds=(*kept, BuildFacts(self.ids, plan_id, B.QUEUED, f.generation)))
            case CancelBuild(build_id):
                self.set(builds=tuple(b for b in f.builds if b.id != build_id))
            case StartDeployment(artifact, generation):
                assert not f.drops_volume
                if self.is_scarce and f.deployments:
                    self.set(waits_for_gpu=True)
                    return
                self.ids += 1
                self.set(waits_for_gpu=False)
                new = DeploymentFacts(self.ids, artifact, generation, D.STARTING, deadline=self.now + 300)
                self.set(deployments=(*f.deployments, new))
            case FailDeployment(id_, _):
                gone = next(d for d in f.deployments if d.id == id_)
                a = f.attempts.get(gone.artifact, Attempts())
                fatal = gone.status is D.STARTING
                if gone.status is not D.FROZEN:
                    attempts = {**f.attempts, gone.artifact: Attempts(a.failed + 1, self.now, a.fatal or fatal)}
                    self.set(attempts=attempts)
                self.set(deployments=tuple(d for d in f.deployments if d.id != id_))
            case StopDeployment(id_):
                self.change(id_, status=D.STOPPING, live=False)
            case FreezeDeployment(id_):
                frozen = next(d for d in f.deployments if d.id == id_)
                assert frozen.status is D.READY
                assert frozen.drained
                assert frozen.may_freeze
                assert not frozen.live
                assert f.routed is None
                self.change(id_, status=D.FROZEN, frozen_at=self.now)
            case Route(id_) | ThawDeployment(id_):
                if isinstance(action, ThawDeployment):
                    assert next(d for d in f.deployments if d.id == id_).status is D.FROZEN
                    if self.rng.random() < 0.1:
                        # It cannot be thawed, and is stopped instead.
                        self.change(id_, status=D.STOPPING)
                        return
                for d in f.deployments:
                    if d.live and d.id != id_:
                        self.change(d.id, live=False, unrouted_at=self.now)
                self.change(id_, status=D.READY, live=True, unrouted_at=None, drained=False, frozen_at=None)
                routed = next(d for d in self.facts.deployments if d.id == id_)
                self.set(routed=id_, last_good=routed.artifact, slept_at=None, last_active_at=self.now)
            case Park(asleep):
                self.unroute()
                if asleep:
                    self.set(slept_at=self.now)
            case Unroute():
                self.unroute()
                self.set(unrouted=True)
            case RemoveVolume():
                assert f.drops_volume
                assert not f.deployments
                self.set(drops_volume=False)
            case Purge():
                self.purged = True

    def unroute(self) -> None:
        for d in self.facts.deployments:
            if d.live:
                self.change(d.id, live=False, unrouted_at=self.now)
        self.set(routed=None)

    def change(self, id_: int, **changes: object) -> None:
        self.set(
            deployments=tuple(
                dataclasses.replace(d, **changes) if d.id == id_ else d
                for d in self.facts.deployments  # type: ignore[arg-type]
            )
        )

    def settle(self) -> Stage:
        """Decide and obey until there is nothing to do; fails if that never comes."""
        before = self.facts
        for _ in range(20):
            self.set(swap_in_place=self.is_scarce and any(d.live for d in self.facts.deployments))
            decision = decide(self.facts, self.now)
            waits = self.is_scarce and self.facts.deployments and self.waits_only(decision)
            if not decision.actions or self.purged or waits:
                self.check(before)
                return decision.stage
            for action in decision.actions:
                if isinstance(action, StartDeployment):
                    kept = [d for d in self.facts.deployments if d.status is D.FROZEN and not d.failed]
                    assert (action.artifact, action.generation) not in {(d.artifact, d.generation) for d in kept}
                self.obey(action)
                self.adopt_artifact()
            self.check_always()
        raise AssertionError(f"never settles: {self.facts} -> {decision}")

    def waits_only(self, decision: lifecycle.Decision) -> bool:
        """Nothing is asked for but a start, which waits for what still ends."""
        return all(isinstance(action, StartDeployment) for action in decision.actions)

    def check_always(self) -> None:
        assert not self.is_scarce or len(self.facts.deployments) <= 1
        live = [d for d in self.facts.deployments if d.live]
        starting = [d for d in self.facts.deployments if d.status is D.STARTING]
        frozen = [d for d in self.facts.deployments if d.status is D.FROZEN]
        assert len(live) <= 1
        assert len(starting) <= 1
        assert not any(d.live or d.id == self.facts.routed for d in frozen)

    def check(self, before: Facts) -> None:
        """A deployment that served and is well ends only for a reason."""
        served = lifecycle.live_of(before)
        after = self.facts
        frozen = [d for d in after.deployments if d.status is D.FROZEN]
        assert len(frozen) <= 1
        assert not (frozen and live_or_awake(after)), f"{after} keeps a frozen one and is not asleep"
        if served is None or before.desired is not Desired.RUNNING:
            return
        if lifecycle.live_of(after) is None:
            idle = before.sleep_after is not None and self.now - before.last_active_at >= before.sleep_after
            asked = before.slept_at is not None and before.last_active_at <= before.slept_at
            # Where there is no room for two, what serves gives way to what is newer, and to nothing else.
            is_old = (served.artifact, served.generation) != (after.artifact, after.generation)
            gives_way = (self.is_scarce and is_old) or before.drops_volume
            assert idle or asked or gives_way, f"{before} lost its app: {after}"


def live_or_awake(facts: Facts) -> bool:
    asleep = facts.slept_at is not None and facts.last_active_at <= facts.slept_at
    return facts.desired is not Desired.RUNNING or lifecycle.live_of(facts) is not None or not asleep


def test_random_histories_keep_the_invariants_and_reach_every_stage() -> None:
    stages: Counter[Stage] = Counter()
    acts: Counter[type] = Counter()
    moves: set[tuple[Stage, Stage]] = set()
    for seed in range(1500):
        world = World(random.Random(seed))
        world.is_scarce = seed % 3 == 0
        stage = world.settle()
        for _ in range(40):
            world.happen()
            new = world.settle()
            moves.add((stage, new))
            stage = new
            stages[stage] += 1
            if world.purged:
                break
        acts += world.counts
    assert set(acts) == set(typing.get_args(lifecycle.Action))
    assert set(stages) == set(Stage), f"never reached: {set(Stage) - set(stages)}"
    assert len(moves) > 60


def test_a_quiet_world_asks_for_nothing() -> None:
    """Deciding again on what the actions made yields no further action."""
    for seed in range(300):
        world = World(random.Random(seed))
        for _ in range(20):
            world.happen()
            world.settle()
            if world.purged:
                break
            assert decide(world.facts, world.now).actions == ()
