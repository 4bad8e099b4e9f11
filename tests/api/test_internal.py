"""The link to the gateways."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from sqlalchemy import event

from spaces_platform.api.signing import sign
from spaces_platform.errors import Unavailable
from spaces_platform.ports import Task
from tests.api.conftest import Caller, Served, World, until


class Feed:
    """A gateway's route stream, read in a thread."""

    def __init__(self, served: Served, after: int = 0) -> None:
        self.lines: list[tuple[float, dict[str, Any]]] = []
        self.ended = threading.Event()
        self._served, self._after = served, after
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        headers = {"authorization": f"Bearer {self._served.app.state.link_token}"}
        url = f"{self._served.url}/internal/gateway/routes?after={self._after}&gateway=g1"
        with httpx.stream("GET", url, headers=headers, timeout=30) as answer:
            for line in answer.iter_lines():
                self.lines.append((time.monotonic(), json.loads(line)))
        self.ended.set()

    def find(self, **wanted: Any) -> tuple[float, dict[str, Any]]:
        def look() -> tuple[float, dict[str, Any]] | None:
            return next((x for x in list(self.lines) if wanted.items() <= x[1].items()), None)

        found = until(look)
        assert found is not None
        return found  # type: ignore[no-any-return]


@pytest.fixture
def link(call: Caller, app: Any) -> Any:
    headers = {"authorization": f"Bearer {app.state.link_token}"}
    return lambda path, body: call("POST", f"/internal/gateway/{path}", headers=headers, json=body)


def test_only_the_link_token_opens_it(call: Caller, world: World) -> None:
    path = world.settings.data / "run" / "link.token"
    assert path.stat().st_mode & 0o777 == 0o600
    for who in (None, "alice", "admin"):
        for method, route in (("GET", "routes"), ("POST", "wake"), ("POST", "activity"), ("POST", "authorize")):
            assert call(method, f"/internal/gateway/{route}", who=who, json={}).status_code == 403


def test_the_full_table_and_then_each_change(served: Served) -> None:
    world = served.world
    space = world.space("alice/app")
    world.space("alice/private", visibility="private")
    feed = Feed(served)
    _, done = feed.find(complete=True)
    names = {line["name"]: line for _, line in feed.lines if "name" in line}
    assert set(names) == {"alice/app", "alice/private"}
    assert names["alice/app"]["public"] is True
    assert names["alice/private"]["public"] is False
    assert done["version"] == max(line["version"] for line in names.values())
    began = time.monotonic()
    world.serve_space(space)
    at, entry = feed.find(name="alice/app", endpoint="127.0.0.1:40001")
    assert at - began < 3.5, "sooner than the heartbeat would bring it"
    feed.find(version=entry["version"])
    assert world.traffic.is_anybody_there(world.clock.now().timestamp())
    later = Feed(served, after=entry["version"])
    later.find(version=entry["version"])
    assert not [line for _, line in later.lines if "name" in line]
    ahead = Feed(served, after=10**9)
    ahead.find(complete=True)
    served.stop_streams()
    assert feed.ended.wait(3)


def test_progress_is_sent_without_a_new_version(served: Served) -> None:
    world = served.world
    space = world.space("alice/app")
    feed = Feed(served)
    feed.find(complete=True)
    before = len(feed.lines)
    until(lambda: world.feed._waiters)
    world.feed.changed(space.id or 0)
    until(lambda: len(feed.lines) >= before + 2)
    assert feed.lines[before][1]["name"] == "alice/app"
    assert set(feed.lines[before + 1][1]) == {"version"}


def test_many_spaces_of_one_version_come_in_pages(world: World) -> None:
    spaces = [world.space(f"alice/s{n}") for n in range(5)]
    with world.store.write() as tx:
        version = tx.next_version()
        for space in spaces:
            space.route_version = version
            tx.merge(space)
    assert len(world.routes.after(0, 2)) == 5
    assert world.routes.after(version, 2) == []


def test_a_crowd_wakes_a_space_with_one_write(served: Served) -> None:
    world = served.world
    space = world.space("alice/app")
    world.change(space, stage="SLEEPING", slept_at=world.clock.now().timestamp(), last_active_at=0.0)
    writes: list[str] = []

    @event.listens_for(world.store.engine, "before_cursor_execute")
    def count(_c: Any, _cur: Any, statement: str, *_rest: Any) -> None:
        if statement.startswith(("UPDATE", "INSERT", "BEGIN IMMEDIATE")):
            writes.append(statement)

    headers = {"authorization": f"Bearer {served.app.state.link_token}"}
    with httpx.Client(base_url=served.url, headers=headers) as client, ThreadPoolExecutor(20) as pool:
        answers = list(
            pool.map(
                lambda _: client.post("/internal/gateway/wake", json={"spaces": [space.id]}).status_code, range(200)
            )
        )
    assert set(answers) == {202}
    assert len([w for w in writes if w.startswith("UPDATE space")]) == 1
    assert len([w for w in writes if w.startswith("INSERT")]) == 1
    assert (Task.RECONCILE, space.id) in world.queue.sent


def test_a_drain_that_ends_is_told_at_once(world: World, link: Any) -> None:
    now = world.clock.now().timestamp()
    row = {"space": 7, "deployment": 3, "in_flight": 1, "last_active": now, "requests": 5}
    assert link("activity", {"gateway": "g", "applied": 4, "spaces": [row]}).json() == {"ok": True}
    assert not world.traffic.is_drained(7, 3, 9, now)
    assert world.queue.sent == []
    link("activity", {"gateway": "g", "applied": 9, "spaces": [row]})
    assert world.queue.sent == []
    link("activity", {"gateway": "g", "applied": 9, "spaces": [{**row, "in_flight": 0, "attached": 1, "sockets": 1}]})
    assert world.queue.sent == []
    link("activity", {"gateway": "g", "applied": 9, "spaces": [{**row, "in_flight": 0, "requests": 6}]})
    assert world.queue.sent == [(Task.RECONCILE, 7)]
    assert world.traffic.requests_total == 6
    link("activity", {"gateway": "g", "applied": 9, "spaces": [{**row, "in_flight": 0, "requests": 2}]})
    assert world.queue.sent == [(Task.RECONCILE, 7)]
    assert world.traffic.requests_total == 8
    for bad in ({"in_flight": -1}, {"last_active": 1e300}, {"space": 2**70}):
        assert link("activity", {"gateway": "g", "applied": 1, "spaces": [{**row, **bad}]}).status_code == 400


def test_private_spaces_open_for_those_who_may_read(world: World, link: Any) -> None:
    space = world.space("alice/app", visibility="private")
    now = world.clock.now().timestamp()
    at = {"space": space.id}

    def allowed(**credential: str) -> bool:
        return bool(link("authorize", {**at, **credential}).json()["allow"])

    assert allowed(token=world.tokens["alice"])
    assert allowed(token=world.tokens["alice:read"])
    assert not allowed(token=world.tokens["bob"])
    assert not allowed(token="hf_x")
    assert not allowed()
    assert not link("authorize", {"space": 999, "token": world.tokens["alice"]}).json()["allow"]
    alice, bob = (world.actor(who) for who in ("alice", "bob"))
    code = world.accounts.open_session(alice, space_id=space.id, kind="code")
    session = link("exchange", {**at, "code": code}).json()["session"]
    assert allowed(session=session)
    assert link("exchange", {**at, "code": code}).status_code == 401
    other = world.space("alice/other", visibility="private")
    assert not link("authorize", {"space": other.id, "session": session}).json()["allow"]
    bobs = world.accounts.open_session(bob, space_id=space.id, kind="code")
    assert link("exchange", {**at, "code": bobs}).status_code in (401, 404)
    word = sign(world.vault, alice.id or 0, space.id or 0, now)
    assert allowed(sign=word)
    assert not link("authorize", {"space": other.id, "sign": word}).json()["allow"]
    assert not allowed(sign=sign(world.vault, alice.id or 0, space.id or 0, now - 7200))
    assert link("exchange", {**at, "sign": word}).json()["max_age"] > 0


def test_a_signed_word_is_for_its_reader(call: Caller, world: World) -> None:
    space = world.space("alice/app", visibility="private")
    assert call("GET", "/api/spaces/alice/app/jwt", who="bob").status_code == 404
    assert call("GET", "/api/spaces/alice/app/jwt", who=None).status_code == 401
    word = call("GET", "/api/spaces/alice/app/jwt").json()["token"]
    secret = world.vault.seal("x", space_id=space.id or 0, key="A").decode()
    for given, allow in ((word, True), (secret, False), (word[:-4], False), ("é", False)):
        headers = {"authorization": f"Bearer {call.client.app.state.link_token}"}  # type: ignore[attr-defined]
        answer = call("POST", "/internal/gateway/authorize", headers=headers, json={"space": space.id, "sign": given})
        assert answer.json() == {"allow": allow}


def test_thousands_of_routes_stream_without_holding_the_loop(served: Served) -> None:
    world = served.world
    space = world.space("alice/app")
    with world.store.write() as tx:
        for n in range(2, 3000):
            tx.add(
                type(space)(
                    id=n,
                    owner_id=space.owner_id,
                    owner="alice",
                    name=f"s{n}",
                    key=f"s{n}",
                    creator_id=1,
                    route_version=n + 10,
                )
            )
    feed = Feed(served)
    answered = 0
    with httpx.Client() as client:
        while not any(line.get("complete") for _, line in list(feed.lines)):
            client.get(f"{served.url}/healthz")
            answered += 1
    assert len({line["space"] for _, line in feed.lines if "space" in line}) == 2999
    # Requests were answered between its pages.
    assert answered >= 5


def test_a_route_stream_outlasts_an_outage_of_the_database(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = served.world
    space = world.space("alice/app")
    feed = Feed(served)
    feed.find(complete=True)
    asked = threading.Event()

    def away(*_: object) -> None:
        asked.set()
        raise Unavailable("the database is away")

    with monkeypatch.context() as outage:
        outage.setattr(world.routes, "after", away)
        world.change(space, stage="PAUSED")
        assert asked.wait(30)
    # Told at the next heartbeat at the latest, on the same stream.
    feed.find(space=space.id, stage="PAUSED")
    assert not feed.ended.is_set()
    assert "Traceback" not in caplog.text


def test_an_answer_that_an_outage_cuts_is_seen_as_cut_and_is_no_fault_of_ours(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: object) -> None:
        raise Unavailable("the database is away")

    monkeypatch.setattr(served.world.routes, "after", away)
    headers = {"authorization": f"Bearer {served.app.state.link_token}"}
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"{served.url}/internal/gateway/routes?after=0&gateway=g1", headers=headers, timeout=30)
    assert "an answer was cut: the database is away" in caplog.text
    assert "Traceback" not in caplog.text
