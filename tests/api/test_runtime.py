"""What runs, as its readers and its owners see it, and the log and event streams."""

from __future__ import annotations

import json
import threading
import time
from functools import partial
from typing import Any

import httpx
import pytest

from spaces_platform.api import streams
from spaces_platform.build_files import BuildFile
from spaces_platform.models import Build
from tests.api.conftest import Caller, Served, World, until

AT = "/api/spaces/alice/app"


def test_readers_see_an_app_that_serves_although_its_newest_push_failed(call: Caller, world: World) -> None:
    space = world.space()
    world.serve_space(space)
    world.change(space, stage="BUILD_ERROR", message="numpy cannot be installed.", evidence=["line"])
    owner, reader = (call("GET", f"{AT}/runtime", who=who).json() for who in ("alice", "bob"))
    assert (owner["stage"], owner["errorMessage"]) == ("BUILD_ERROR", "numpy cannot be installed.")
    assert (reader["stage"], reader["errorMessage"]) == ("RUNNING", None)
    assert owner["sha"] == reader["sha"] == "c" * 40
    mine, theirs = (call("GET", "/api/platform/spaces/alice/app", who=who).json() for who in ("alice", None))
    assert (mine["stage"], mine["evidence"], mine["access"]) == ("BUILD_ERROR", ["line"], "admin")
    assert (theirs["stage"], theirs["message"], theirs["evidence"], theirs["access"]) == ("RUNNING", "", [], "read")
    world.change(space, routed=None)
    assert call("GET", f"{AT}/runtime", who="bob").json()["stage"] == "BUILD_ERROR"


def test_an_app_is_reachable_once_a_gateway_leads_to_it(call: Caller, world: World) -> None:
    def reachable() -> bool:
        return bool(call("GET", "/api/platform/spaces/alice/app").json()["reachable"])

    space = world.space()
    version = (world.directory.by_id(space.id or 0)).route_version
    world.traffic.report("g", version, [], world.clock.now().timestamp())
    assert not reachable(), "nothing serves"
    world.serve_space(space)
    assert not reachable(), "the gateway does not know yet"
    version = world.directory.by_id(space.id or 0).route_version
    world.traffic.report("g", version, [], world.clock.now().timestamp())
    assert reachable()


def test_the_runtime_has_what_the_hub_sends(call: Caller, world: World) -> None:
    world.space()
    runtime = call("GET", f"{AT}/runtime").json()
    assert runtime["hardware"] == {"current": None, "requested": "cpu-basic"}
    assert runtime["gcTimeout"] == 1800
    assert runtime["replicas"] == {"current": 0, "requested": 1}
    assert runtime["domains"] == [{"domain": "alice-app.localhost", "stage": "READY"}]
    host = call("GET", f"{AT}/host").json()
    assert host == {"host": "http://127.64.1.2:7860/", "subdomain": "alice-app"}
    assert call("GET", AT).json()["host"] == host["host"]


def test_what_is_kept_beside_a_build_is_for_those_who_may_write(call: Caller, world: World) -> None:
    space = world.space()
    build = world.add(
        Build(space_id=space.id or 0, commit="a", plan_id="p", plan={}, status="SUCCEEDED", created_at=1.0)
    )
    at = f"/api/platform/spaces/alice/app/builds/{build.id}"
    assert call("GET", f"{at}/sbom").status_code == 404
    world.builds.files.save(build.id or 0, BuildFile.SBOM, '{"bomFormat": "CycloneDX"}')
    world.builds.files.save(build.id or 0, BuildFile.DOCKERFILE, "FROM x\n")
    sbom = call("GET", f"{at}/sbom")
    assert sbom.headers["content-type"].startswith("application/vnd.cyclonedx+json")
    assert sbom.json() == {"bomFormat": "CycloneDX"}
    assert call("GET", f"{at}/dockerfile").text == "FROM x\n"
    for paper in ("sbom", "dockerfile", "lock"):
        assert call("GET", f"{at}/{paper}", who="bob").status_code == 403
    other = world.space("bob/app")
    foreign = f"/api/platform/spaces/bob/app/builds/{build.id}/dockerfile"
    assert other.id != space.id
    assert call("GET", foreign, who="bob").status_code == 404


def test_status_tells_builds_deployments_and_traffic(call: Caller, world: World) -> None:
    space = world.space()
    world.add(Build(space_id=space.id or 0, commit="a", plan_id="p", plan={}, status="RUNNING", phase="installing",
                    phase_text="3/9", lock="numpy==2\n", created_at=1.0))  # fmt: skip
    queued = world.add(Build(space_id=space.id or 0, commit="b", plan_id="q", plan={}, created_at=2.0))
    world.serve_space(space)
    status = call("GET", "/api/platform/spaces/alice/app").json()
    assert status["build"]["position"] == 1
    assert status["progress"]["phase"] == "queued"
    assert status["deployment"]["endpoint"] == "127.0.0.1:40001"
    assert status["urls"] == {"browser": "http://alice-app.localhost:7860/", "direct": "http://127.64.1.2:7860/"}
    assert status["gitUrl"] == "http://localhost:7860/spaces/alice/app"
    builds = call("GET", "/api/platform/spaces/alice/app/builds").json()
    assert [b["id"] for b in builds] == [queued.id, queued.id - 1]
    assert call("GET", f"/api/platform/spaces/alice/app/builds/{queued.id - 1}/lock").text == "numpy==2\n"
    world.logs.append(f"build/{queued.id}", ["a", "b", "c"])
    page = call("GET", f"/api/platform/spaces/alice/app/builds/{queued.id}/logs?after=1").json()
    assert ([line["text"] for line in page["lines"]], page["done"]) == (["b", "c"], False)
    other = world.space("bob/app")
    theirs = world.add(Build(space_id=other.id or 0, commit="a", plan_id="p", plan={}))
    assert call("GET", f"/api/platform/spaces/alice/app/builds/{theirs.id}/logs").status_code == 404
    assert call("GET", f"/api/platform/spaces/alice/app/builds/{2**70}/logs").status_code == 400
    deployments = call("GET", "/api/platform/spaces/alice/app/deployments").json()
    assert [d["status"] for d in deployments] == ["READY"]
    assert call("GET", f"/api/platform/spaces/alice/app/deployments/{deployments[0]['id']}/logs").json() == {
        "lines": [],
        "done": False,
    }
    history = call("GET", "/api/platform/spaces/alice/app/history").json()
    assert history[-1]["kind"] == "space.created"
    for path in ("builds", "deployments", "history"):
        assert call("GET", f"/api/platform/spaces/alice/app/{path}", who="bob").status_code == 403


def test_sleep_and_wake(call: Caller, world: World) -> None:
    space = world.space()
    assert call("POST", "/api/platform/spaces/alice/app/sleep", who="bob").status_code == 403
    assert call("POST", "/api/platform/spaces/alice/app/sleep").status_code == 200
    assert world.directory.by_id(space.id or 0).slept_at is not None
    assert call("POST", "/api/platform/spaces/alice/app/wake", who=None).status_code == 200
    row = world.directory.by_id(space.id or 0)
    assert row.last_active_at > (row.slept_at or 0)


def test_platform_info(call: Caller) -> None:
    info = call("GET", "/api/platform/info", who=None).json()
    assert info["url"] == "http://localhost:7860"
    assert info["maxPushBytes"] == 512 << 20


# --- streams ------------------------------------------------------------------------------------------------
class Listener:
    """Reads one stream in a thread."""

    def __init__(self, served: Served, path: str, who: str = "alice") -> None:
        self.lines: list[str] = []
        self.ended = threading.Event()
        self.status: int | None = None
        self._url, self._headers = served.url + path, {"authorization": f"Bearer {served.world.tokens[who]}"}
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with httpx.stream("GET", self._url, headers=self._headers, timeout=30) as answer:
            self.status = answer.status_code
            for line in answer.iter_lines():
                self.lines.append(line)
        self.ended.set()

    @property
    def data(self) -> list[Any]:
        return [json.loads(line[6:]) for line in list(self.lines) if line.startswith("data: {")]


def test_a_build_log_is_replayed_followed_and_ended(served: Served) -> None:
    world = served.world
    space = world.space()
    build = world.add(Build(space_id=space.id or 0, commit="c", plan_id="p", plan={}, status="RUNNING"))
    world.logs.append(f"build/{build.id}", ["one", "two"])
    listener, tail = Listener(served, f"{AT}/logs/build"), Listener(served, f"{AT}/logs/build?tail=1")
    until(lambda: len(listener.data) == 2)
    assert listener.lines[0].startswith('data: {"data":"one\\n","timestamp":"')
    assert listener.data[0]["timestamp"].endswith("Z")
    world.logs.append(f"build/{build.id}", ["three"])
    until(lambda: len(listener.data) == 3)
    assert not listener.ended.is_set()
    with world.store.write() as tx:
        build.status = "SUCCEEDED"
        tx.merge(build)
    world.logs.append(f"build/{build.id}", ["last"])
    assert listener.ended.wait(5)
    assert [d["data"] for d in listener.data] == ["one\n", "two\n", "three\n", "last\n"]
    assert tail.ended.wait(5)
    assert [d["data"] for d in tail.data] == ["two\n", "three\n", "last\n"]


def test_a_run_log_ends_with_its_deployment(served: Served) -> None:
    world = served.world
    space = world.space()
    empty = Listener(served, f"{AT}/logs/run")
    assert empty.ended.wait(5)
    assert (empty.status, empty.lines) == (200, [])
    row = world.serve_space(space)
    world.logs.append(f"run/{row.id}", ["started"])
    listener = Listener(served, f"{AT}/logs/run")
    until(lambda: listener.data)
    with world.store.write() as tx:
        row.status = "GONE"
        tx.merge(row)
    assert listener.ended.wait(5)


def test_logs_are_the_owners(call: Caller, world: World) -> None:
    world.space()
    for path in ("build", "run"):
        assert call("GET", f"{AT}/logs/{path}", who="bob").status_code == 403
        assert call("GET", f"{AT}/logs/{path}", who=None).status_code == 401


def test_silence_is_kept_alive(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "KEEP_ALIVE_SECONDS", 0.3)
    monkeypatch.setattr(streams, "STATUS_POLL_SECONDS", 0.2)
    space = served.world.space()
    served.world.serve_space(space)
    for path in (f"{AT}/logs/run", f"{AT}/events", "/api/platform/spaces/alice/app/events"):
        listener = Listener(served, path)
        until(partial(listener.lines.__contains__, ": keep-alive"))


def test_events_tell_every_change_once(served: Served) -> None:
    world = served.world
    space = world.space()
    listener = Listener(served, "/api/platform/spaces/alice/app/events")
    until(lambda: listener.data)
    world.change(space, stage="BUILDING")
    until(lambda: listener.data[-1]["stage"] == "BUILDING")
    began = time.monotonic()
    world.serve_space(space)
    until(lambda: listener.data[-1]["stage"] == "RUNNING")
    assert time.monotonic() - began < 10
    until(lambda: world.feed._waiters)
    count = len(listener.data)
    world.feed.changed(space.id or 0)
    world.change(space, stage="SLEEPING")
    until(lambda: listener.data[-1]["stage"] == "SLEEPING")
    assert len(listener.data) == count + 1
    world.change(space, purged_at=1.0)
    assert listener.ended.wait(5)


def test_events_end_when_the_right_to_see_them_does(served: Served) -> None:
    world = served.world
    space = world.space()
    listener = Listener(served, "/api/platform/spaces/alice/app/events", who="bob")
    until(lambda: listener.data)
    world.spaces.set_visibility(space, world.actor("alice"), "private")
    assert listener.ended.wait(5)


def test_streams_are_bounded_and_end_at_once(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    world = served.world
    space = world.space()
    world.serve_space(space)
    monkeypatch.setattr(streams, "MAX_LOG_STREAMS", 2)
    open_ones = [Listener(served, f"{AT}/logs/run") for _ in range(2)]
    until(lambda: served.app.state.streams.open["logs"] == 2)
    followed = served.app.state.streams.logs.followed
    until(lambda: [f.viewers for f in followed.values()] == [2])  # one log, read once for both
    answer = httpx.get(served.url + f"{AT}/logs/run", headers={"authorization": f"Bearer {world.tokens['alice']}"})
    assert answer.status_code == 429
    assert answer.headers["retry-after"]
    served.stop_streams()
    assert all(x.ended.wait(3) for x in open_ones)
    until(lambda: served.app.state.streams.open["logs"] == 0)
    until(lambda: not followed)


def test_a_reader_who_leaves_frees_its_stream(served: Served) -> None:
    world = served.world
    world.serve_space(world.space())
    headers = {"authorization": f"Bearer {world.tokens['alice']}"}
    with httpx.stream("GET", served.url + f"{AT}/events", headers=headers) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert served.app.state.streams.open["sse"] == 1
    until(lambda: served.app.state.streams.open["sse"] == 0)
    until(lambda: not world.feed._waiters)


# --- health -------------------------------------------------------------------------------------------------
def test_health_and_metrics(call: Caller, world: World) -> None:
    assert call("GET", "/healthz", who=None).text == "ok\n"
    assert call("GET", "/readyz", who=None).json() == {"ready": True, "problems": []}
    first = call("GET", "/metrics", who=None).text
    assert "spaces_by_stage{" not in first
    space = world.space()
    build = world.add(Build(space_id=space.id or 0, commit="c", plan_id="p", plan={}, status="RUNNING", started_at=1.0))
    with world.store.write() as tx:
        row = tx.get(Build, build.id)
        world.builds._end(tx, row, "FAILED", reason="x")  # type: ignore[arg-type]
    text = call("GET", "/metrics", who=None).text
    assert 'spaces_by_stage{stage="NO_APP_FILE"} 1.0' in text
    assert 'spaces_builds{status="FAILED"} 1.0' in text
    assert 'spaces_build_seconds_count{status="FAILED"} 1.0' in text
    assert "spaces_created_total 1.0" in text
    assert "spaces_requests_total 0.0" in text
    assert 'spaces_queue_depth{task="build"} 0.0' in text
    assert "alice" not in text
    world.has_disk = False
    answer = call("GET", "/readyz", who=None)
    assert answer.status_code == 503
    assert "disk" in answer.json()["problems"][0]


def test_a_fault_of_ours_is_a_json_500(call: Caller, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(world.accounts, "find", fail)
    answer = call("GET", "/api/whoami-v2")
    assert answer.status_code == 500
    assert "broken" not in answer.text
    assert answer.headers["x-request-id"]
