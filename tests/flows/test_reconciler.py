"""The rules users feel, on a real database and real git; apps and builds are full fakes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlmodel import select

from spaces_platform.deployments import OWN_FAULT, bind_note
from spaces_platform.errors import DiskFull, RepoNotFound, Unavailable
from spaces_platform.models import Build, Deployment, Event, Host, Secret, Space
from spaces_platform.ports import DeploymentSpec, RunStatus, Task
from spaces_platform.space_settings import Setting
from spaces_platform.traffic import SpaceTraffic
from tests.fakes.orchestrator import Script
from tests.flows.world import GATEWAY, World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.platform.store.close()


def endpoint(world: World, space: Space) -> str | None:
    return world.platform.routes.of([space.id or 0])[0]["endpoint"]


def rows(world: World, table: type) -> list[object]:
    with world.platform.store.read() as db:
        return list(db.exec(select(table)).all())


def test_a_commit_becomes_an_app_with_a_route(world: World) -> None:
    space = world.create()
    world.settle()
    assert world.space(space).stage == "RUNNING"
    assert endpoint(world, space) is not None
    entry = world.platform.routes.of([space.id or 0])[0]
    assert entry["hosts"][0] == "admin-demo.localhost"
    assert entry["hosts"][1].startswith("127.64.")
    kinds = [e.kind for e in reversed(world.platform.directory.events(world.space(space)))]
    assert kinds.index("build.queued") < kinds.index("build.succeeded") < kinds.index("deployment.routed")


@pytest.mark.parametrize(
    ("push", "stage"),
    [
        ({"FAIL": b"numpy 1 and pandas 9 cannot both be installed."}, "BUILD_ERROR"),
        ({"README.md": b"---\nsdk: nonsense\n---\n"}, "CONFIG_ERROR"),
        ({"README.md": b"no front matter"}, "CONFIG_ERROR"),
        ({"index.html": None}, "NO_APP_FILE"),
    ],
)
def test_a_bad_push_leaves_the_old_version_serving(world: World, push: dict[str, bytes | None], stage: str) -> None:
    space = world.create()
    world.settle()
    before = endpoint(world, space)
    world.push(space, push)
    world.settle()
    assert world.space(space).stage == stage
    assert world.space(space).message
    assert endpoint(world, space) == before is not None


def test_a_version_that_does_not_start_leaves_the_old_one_serving(world: World) -> None:
    space = world.create()
    world.settle()
    before = endpoint(world, space)
    world.apps.script = lambda _spec: Script(
        exits=True, exit_code=1, lines=("ModuleNotFoundError: No module named 'torch'",)
    )
    world.push(space, {"index.html": b"two"})
    world.settle()
    assert world.space(space).stage == "RUNTIME_ERROR"
    assert endpoint(world, space) == before is not None


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (Unavailable("The engine is away; start it."), "The engine is away; start it."),
        (RuntimeError("some detail of the platform"), OWN_FAULT),
    ],
    ids=["expected", "unexpected"],
)
def test_a_start_that_fails_is_told_and_tried_again(world: World, error: Exception, told: str) -> None:
    space = world.create()
    world.apps.fail_next("start", error, times=3)
    seen: list[tuple[int, str]] = []
    while world.space(space).stage != "RUNNING":
        world.settle_some(1)
        starts = sum(call[0] == "start" for call in world.apps.calls)
        seen.append((starts, world.space(space).message))
    assert {message for starts, message in seen if starts in (2, 3)} == {told}, seen
    assert seen[-1][0] == 4
    (build,) = rows(world, Build)
    log = [line.text for line in world.platform.deployments.log_store.read(f"build/{build.id}")]
    assert [line for line in log if "put off" in line] == [f"    put off: {told}"]


def test_the_new_version_is_routed_before_the_old_one_is_stopped(world: World) -> None:
    space = world.create()
    world.settle()
    old = world.space(space).routed
    world.push(space, {"index.html": b"two"})
    world.settle()
    new = world.space(space).routed
    assert new != old
    events = [(e.kind, e.data.get("deployment")) for e in reversed(world.platform.directory.events(world.space(space)))]
    assert ("deployment.routed", new) in events
    assert ("stop", old) in world.apps.calls
    assert [d.status for d in world.platform.deployments.of(space.id or 0)] == ["READY", "GONE"]


def test_a_replaced_deployment_is_not_stopped_while_a_request_runs_on_it(world: World) -> None:
    space = world.create()
    world.settle()
    old = world.space(space).routed
    world.push(space, {"index.html": b"two"})
    for _ in range(12):
        newest = world.platform.routes.of([space.id or 0])[0]["version"]
        running = SpaceTraffic(space.id or 0, old, in_flight=1)
        world.platform.traffic.report(GATEWAY, newest, [running], world.clock.now().timestamp())
        world.platform.sweep.hint_due()
        for task, id in list(world.queue.waiting):
            world.queue.waiting.pop((task, id))
            world.platform.run(task, id)
        world.clock.at += timedelta(seconds=1)
    assert world.space(space).routed != old
    assert ("stop", old) not in world.apps.calls
    done = SpaceTraffic(space.id or 0, old, in_flight=0)
    world.platform.traffic.report(GATEWAY, 0, [done], world.clock.now().timestamp())
    world.settle()
    assert ("stop", old) in world.apps.calls


def test_a_commit_that_the_database_could_not_record_is_taken_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    space = world.create()
    world.settle()

    def full() -> None:
        raise DiskFull()

    before = world.space(space).head
    monkeypatch.setattr(world.platform.store, "write", full)
    with pytest.raises(DiskFull):
        world.push(space, {"index.html": b"two"})
    monkeypatch.undo()
    assert world.space(space).head == before
    world.platform.sweep.record_pushes()
    world.settle()
    assert world.space(space).head == world.platform.spaces.repo(space).head() != before
    assert world.space(space).stage == "RUNNING"


def test_running_is_not_said_before_it_is_routed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int | None]] = []

    def told(space_id: int) -> None:
        space = world.platform.directory.by_id(space_id)
        seen.append((space.stage, space.routed))

    monkeypatch.setattr(world.platform.feed, "changed", told)
    world.create()
    world.settle()
    assert "RUNNING" in [stage for stage, _ in seen]
    assert all(routed is not None for stage, routed in seen if stage == "RUNNING")


def test_idle_sleeps_and_a_visit_wakes_it_with_one_start_however_many_visit(world: World) -> None:
    space = world.create()
    world.settle()
    world.clock.at += timedelta(seconds=601)
    world.settle()
    assert world.space(space).stage == "SLEEPING"
    assert endpoint(world, space) is None
    starts = len([c for c in world.apps.calls if c[0] == "start"])
    for _ in range(500):
        world.platform.spaces.wake(space.id or 0)
    assert len([e for e in rows(world, Event) if e.kind == "space.woken"]) == 1  # type: ignore[attr-defined]
    world.settle()
    assert world.space(space).stage == "RUNNING"
    assert len([c for c in world.apps.calls if c[0] == "start"]) == starts + 1


def test_who_visits_one_that_wakes_already_asks_for_no_other_pass(world: World) -> None:
    space = world.create()
    world.settle()
    world.platform.spaces.sleep(world.space(space), world.actor)
    world.settle()
    world.platform.spaces.wake(space.id or 0)
    assert list(world.queue.waiting) == [(Task.RECONCILE, space.id)]
    world.queue.waiting.clear()
    world.platform.spaces.wake(space.id or 0)
    assert not world.queue.waiting
    world.settle()  # the row itself says that it is due: the lost hint costs a moment
    assert world.space(space).stage == "RUNNING"


def test_sleep_that_is_asked_for_while_it_starts_holds_until_a_visit(world: World) -> None:
    space = world.create()
    world.settle()
    world.apps.script = lambda _: Script()
    world.platform.spaces.restart(world.space(space), world.actor)
    world.settle_some(3)
    (starting,) = [n for n, seen in world.apps.observe().items() if seen.status is RunStatus.STARTING]
    world.platform.spaces.sleep(world.space(space), world.actor)
    world.apps.make_ready(starting)
    world.settle()
    assert world.space(space).stage == "SLEEPING"
    world.apps.script = lambda _: Script(ready=True)
    world.platform.spaces.wake(space.id or 0)
    world.settle()
    assert world.space(space).stage == "RUNNING"


def test_asleep_stays_asleep_without_a_visit(world: World) -> None:
    space = world.create()
    world.settle()
    world.platform.spaces.sleep(world.space(space), world.actor)
    world.settle()
    world.clock.at += timedelta(days=3)
    world.settle()
    assert world.space(space).stage == "SLEEPING"
    assert not [id for id, seen in world.apps.observe().items()]


@pytest.mark.parametrize(
    ("listening", "told"),
    [
        (("127.0.0.1:20001",), True),
        (("[::1]:20001", "127.0.0.1:20001"), True),
        (("0.0.0.0:20001",), False),
        (("127.0.0.1:9999", "0.0.0.0:20001"), False),
        (("127.0.0.1:9999",), False),
        ((), False),
    ],
)
def test_an_app_on_the_loopback_alone_is_told_so(listening: tuple[str, ...], told: bool) -> None:
    assert bool(bind_note(listening, "127.0.0.1:20001")) is told


def test_a_crash_is_started_again_with_back_off_and_then_left(world: World) -> None:
    space = world.create()
    world.settle()
    for _ in range(6):
        routed = world.space(space).routed
        if routed is None:
            break
        world.apps.exit(routed, code=3)
        world.queue.send(Task.RECONCILE, space.id or 0)
        world.settle()
        world.clock.at += timedelta(seconds=25)
        world.settle()
        if world.space(space).stage == "RUNTIME_ERROR":
            break
    assert world.space(space).stage == "RUNTIME_ERROR"
    failed = [d for d in world.platform.deployments.of(space.id or 0) if d.status == "FAILED"]
    assert len(failed) == 4
    world.platform.spaces.restart(world.space(space), world.actor)
    world.settle()
    assert world.space(space).stage == "RUNNING"


def test_what_the_machine_could_not_start_is_said_and_tried_again(world: World) -> None:
    space = world.create()
    world.settle()
    before = world.space(space).routed
    world.apps.script = lambda _: Script(exits=True, hindrance="disk_full")
    world.push(space, {"index.html": b"two"})
    world.settle()
    found = world.space(space)
    assert (found.stage, found.routed, found.reason) == ("RUNNING_APP_STARTING", before, "disk_full")
    assert "disk is full" in found.message
    assert found.evidence == ["could not run: no room"]
    world.apps.script = lambda _: Script(ready=True)
    world.clock.at += timedelta(seconds=25)
    world.settle()
    found = world.space(space)
    assert (found.stage, found.reason, found.message) == ("RUNNING", "", "")
    assert found.routed != before


def test_a_newer_push_cancels_the_older_build(world: World) -> None:
    space = world.create()
    world.step()
    # Its build is queued, but no worker has come to it yet.
    world.queue.waiting.clear()
    world.push(space, {"index.html": b"two"})
    world.settle()
    builds = [b for b in rows(world, Build) if isinstance(b, Build)]
    assert [b.status for b in builds] == ["CANCELLED", "SUCCEEDED"]
    assert world.space(space).stage == "RUNNING"


def test_pause_stops_and_a_visit_does_not_wake(world: World) -> None:
    space = world.create()
    world.settle()
    world.platform.spaces.pause(world.space(space), world.actor)
    world.settle()
    world.platform.spaces.wake(space.id or 0)
    world.settle()
    assert world.space(space).stage == "PAUSED"
    assert not world.apps.observe()
    world.platform.spaces.restart(world.space(space), world.actor)
    world.settle()
    assert world.space(space).stage == "RUNNING"


def test_a_secret_reaches_the_app_and_nothing_else(world: World) -> None:
    space = world.create(files={"README.md": b"---\nsdk: gradio\n---\n", "app.py": b"print(1)"})
    world.platform.space_settings.set_secrets(world.space(space), world.actor, [Setting("TOKEN", "canary-9f8e7d")])
    world.platform.space_settings.set_variables(world.space(space), world.actor, [Setting("MODE", "fast")])
    world.settle()
    spec: DeploymentSpec = world.apps.specs[world.space(space).routed or 0]
    assert spec.env["TOKEN"] == "canary-9f8e7d"
    assert spec.env["MODE"] == "fast"
    assert spec.env["SPACE_ID"] == "admin/demo"
    assert "canary" not in repr(spec)
    world.platform.store.close()
    for path in world.folder.rglob("*"):
        if path.is_file():
            assert b"canary-9f8e7d" not in path.read_bytes(), path


def test_a_static_site_shows_its_variables_and_is_never_given_a_secret(world: World) -> None:
    space = world.create()
    world.platform.space_settings.set_secrets(world.space(space), world.actor, [Setting("TOKEN", "canary-9f8e7d")])
    world.platform.space_settings.set_variables(world.space(space), world.actor, [Setting("MODE", "fast")])
    world.settle()
    env = world.apps.specs[world.space(space).routed or 0].env
    assert env["SPACES_PUBLIC_VARIABLES"] == '{"MODE": "fast"}'
    assert "canary-9f8e7d" not in "".join(env.values())


def test_delete_leaves_nothing_but_the_log_and_its_names(world: World) -> None:
    space = world.create()
    world.platform.space_settings.set_secrets(world.space(space), world.actor, [Setting("TOKEN", "x")])
    world.settle()
    world.platform.spaces.delete(world.space(space), world.actor)
    with pytest.raises(RepoNotFound):
        world.platform.directory.find("admin", "demo", world.actor)
    world.settle()
    assert not rows(world, Build)
    assert not rows(world, Deployment)
    assert not rows(world, Secret)
    assert not world.builder.artifacts
    assert not world.apps.observe()
    assert not list((world.folder / "repos").rglob("HEAD"))
    hosts = [h for h in rows(world, Host) if isinstance(h, Host)]
    assert all(h.released_at for h in hosts)
    # The name is free, but the old host is not given to the newcomer.
    again = world.create()
    world.settle()
    assert world.platform.directory.hosts(again.id or 0)["primary"] != "admin-demo.localhost"


def test_two_names_with_one_slug_get_different_hosts(world: World) -> None:
    world.platform.accounts.create_user("a-b")
    world.platform.accounts.create_user("a")
    from spaces_platform.spaces import NewSpace

    one = world.platform.spaces.create(world.actor, NewSpace("a-b", "c"))
    two = world.platform.spaces.create(world.actor, NewSpace("a", "b-c"))
    hosts = [world.platform.directory.hosts(s.id or 0)["primary"] for s in (one, two)]
    assert hosts[0] == "a-b-c.localhost"
    assert hosts[1].startswith("a-b-c-")


def test_rename_keeps_the_old_address_working(world: World) -> None:
    space = world.create()
    world.settle()
    world.platform.spaces.rename(world.space(space), world.actor, "admin", "other")
    world.settle()
    entry = world.platform.routes.of([space.id or 0])[0]
    assert entry["hosts"][0] == "admin-other.localhost"
    assert entry["redirects"] == ["admin-demo.localhost"]
    assert world.platform.directory.find("admin", "demo", world.actor).name == "other"
    assert world.apps.specs[world.space(space).routed or 0].env["SPACE_ID"] == "admin/other"


def test_starts_wait_in_line_for_a_slot(tmp_path: Path) -> None:
    world = World(tmp_path, script=lambda _spec: Script(), start_slots=2)
    spaces = [world.create(f"s{n}") for n in range(5)]
    for _ in range(8):
        world.platform.sweep.hint_due()
        world.step()
        world.clock.at += timedelta(seconds=1)
    assert len(world.apps.observe()) == 2
    waiting = [world.space(s).message for s in spaces if world.space(s).start_queued_at is not None]
    assert len(waiting) == 3
    assert any("number 1 in line" in message for message in waiting)
    for _ in range(6):
        for id, seen in world.apps.observe().items():
            if seen.status is RunStatus.STARTING:
                world.apps.make_ready(id)
        world.settle_some(6)
    assert {world.space(s).stage for s in spaces} == {"RUNNING"}
    world.platform.store.close()


def test_two_controllers_share_the_work(world: World) -> None:
    """A pass on a claimed Space leaves it alone, and looks again later."""
    space = world.create()
    mine = world.queue
    other = world._build()
    world.queue = mine
    until = world.platform.reconciler.claims.take(space.id or 0, "me", world.clock.now().timestamp())
    assert until is not None
    other.reconciler.reconcile(space.id or 0)
    assert not rows(world, Build)
    world.platform.reconciler.claims.release(space.id or 0, "me", until, None)
    world.queue.waiting.clear()
    world.settle()
    assert world.space(space).stage == "RUNNING"
    other.store.close()


def test_an_outage_of_the_database_at_the_end_of_a_pass_holds_a_space_up_no_longer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise Unavailable("the database is away")

    space = world.create()
    with monkeypatch.context() as outage:
        outage.setattr(world.platform.reconciler.claims, "release", away)
        world.step()
        assert world.space(space).claim_token is not None
        with pytest.raises(Unavailable):
            world.platform.reconciler.release_left()
    world.platform.reconciler.release_left()
    row = world.space(space)
    assert row.claim_token is None
    assert row.next_check_at is not None
    assert row.next_check_at <= world.clock.now().timestamp()


def test_an_outage_of_the_database_fails_no_build(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise Unavailable("the database is away")

    space = world.create()
    with monkeypatch.context() as outage:
        outage.setattr(world.platform.builds, "inputs", away)
        world.step()
        world.step()
    (build,) = rows(world, Build)
    assert isinstance(build, Build)
    assert build.status == "RUNNING", "its worker gave it up"
    world.platform.builds.requeue_unrecorded()
    world.settle()
    assert world.space(space).stage == "RUNNING"
    assert [b.status for b in rows(world, Build) if isinstance(b, Build)] == ["SUCCEEDED"]
