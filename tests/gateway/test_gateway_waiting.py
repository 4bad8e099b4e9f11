"""Sleeping, starting and failed Spaces: who wakes them, who is held, who is shown what; private Spaces."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest

from spaces_platform.gateway import pages
from spaces_platform.gateway.access import local_path, without_sign
from spaces_platform.gateway.grammar import parse_request
from spaces_platform.gateway.routes import RouteEntry, parse_entry
from spaces_platform.gateway.visitors import Reply, Visitor, reply, visitor
from tests.gateway.harness import App, Platform, platform, run, until

HOST = "user-app1.localhost"
HTML = "Accept: text/html,application/xhtml+xml"
BROWSER = (
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0 Safari/537.36"
)


def entry(**fields: Any) -> RouteEntry:
    base = {
        "space": 1,
        "version": 1,
        "name": "u/a",
        "hosts": [HOST],
        "stage": "SLEEPING",
        "wakeable": True,
        "public": True,
    }
    return parse_entry({**base, **fields})


@pytest.mark.parametrize(
    ("method", "target", "fields", "wanted"),
    [
        ("GET", "/", [HTML, BROWSER], Visitor.PERSON),
        ("GET", "/", [HTML], Visitor.PERSON),
        ("GET", "/", ["Accept: */*", "User-Agent: curl/8"], Visitor.PROGRAM),
        ("GET", "/config", ["User-Agent: gradio_client/2.7.2; hf_hub/2.4"], Visitor.PROGRAM),
        ("POST", "/", [HTML], Visitor.PROGRAM),
        ("HEAD", "/", [HTML], Visitor.ROBOT),
        ("GET", "/", [HTML, "User-Agent: Mozilla/5.0 (compatible; Googlebot/2.1)"], Visitor.ROBOT),
        ("GET", "/", [HTML, "User-Agent: facebookexternalhit/1.1"], Visitor.ROBOT),
        ("GET", "/", [HTML, "User-Agent: Slackbot-LinkExpanding 1.0"], Visitor.ROBOT),
        ("GET", "/", [HTML, "User-Agent: Twitterbot/1.0"], Visitor.ROBOT),
        ("GET", "/", ["User-Agent: UptimeRobot/2.0"], Visitor.ROBOT),
        ("GET", "/", ["User-Agent: kube-probe/1.30"], Visitor.ROBOT),
        ("GET", "/gradio_api/heartbeat/x", [], Visitor.TAB),
        ("GET", "/_stcore/stream", [], Visitor.TAB),
    ],
)
def test_who_is_asking(method: str, target: str, fields: list[str], wanted: Visitor) -> None:
    head = f"{method} {target} HTTP/1.1\r\nHost: {HOST}\r\n" + "".join(f"{item}\r\n" for item in fields) + "\r\n"
    request = parse_request(head.encode(), (9999, 99, 999))
    assert request is not None
    assert visitor(request) is wanted


@pytest.mark.parametrize(
    ("stage", "wakeable", "person", "program"),
    [
        ("SLEEPING", True, Reply.PAGE, Reply.HOLD),
        ("SLEEPING", False, Reply.PAGE, Reply.REFUSE),
        ("BUILDING", False, Reply.PAGE, Reply.HOLD),
        ("APP_STARTING", False, Reply.PAGE, Reply.HOLD),
        ("RUNNING", False, Reply.PAGE, Reply.HOLD),
        ("PAUSED", False, Reply.PAGE, Reply.REFUSE),
        ("BUILD_ERROR", False, Reply.PAGE, Reply.REFUSE),
        ("RUNTIME_ERROR", False, Reply.PAGE, Reply.REFUSE),
        ("RUNTIME_ERROR", True, Reply.PAGE, Reply.HOLD),
        ("CONFIG_ERROR", False, Reply.PAGE, Reply.REFUSE),
        ("NO_APP_FILE", False, Reply.PAGE, Reply.REFUSE),
        ("DELETING", False, Reply.PAGE, Reply.REFUSE),
    ],
)
def test_what_each_stage_answers(stage: str, wakeable: bool, person: Reply, program: Reply) -> None:
    found = entry(stage=stage, wakeable=wakeable)
    assert reply(found, Visitor.PERSON) is person
    assert reply(found, Visitor.PROGRAM) is program
    assert reply(found, Visitor.ROBOT) is Reply.CARD
    assert reply(found, Visitor.TAB) is Reply.REFUSE
    page = pages.space_page(found).decode()
    assert pages.words(found).title in page
    assert ('http-equiv="refresh"' in page) is pages.words(found).busy
    assert "://" not in page.replace(found.page, ""), "a page loads or links something foreign"


def test_pages_escape_what_comes_from_a_space() -> None:
    evil = "</script><img src=x onerror=alert(1)>\"'"
    found = entry(
        title=evil, emoji=evil, message=evil, stage="BUILDING", progress={"phase": evil, "text": evil, "since": 0}
    )
    for page in (pages.space_page(found), pages.card(found), pages.unreachable_page(found), pages.not_found_page(evil)):
        assert b"<img" not in page
        assert b"onerror=alert(1)>" not in page


def test_robots_get_a_card_and_wake_nothing() -> None:
    async def scenario() -> None:
        async with platform() as p:
            await p.route(1, stage="SLEEPING")
            status, _, body = await p.get(HOST, "/", HTML, "User-Agent: Googlebot/2.1")
            assert (status, b"og:title" in body) == (200, True)
            status, fields, body = await p.get(HOST, "/", method="HEAD")
            assert (status, body) == (200, b"")
            await p.route(1, stage="RUNTIME_ERROR", wakeable=False)
            status, fields, _ = await p.get(HOST, "/", method="HEAD")
            assert (status, "retry-after" in fields) == (503, True)
            assert p.control.wakes == []

    run(scenario())


def test_failed_and_paused_spaces_answer_at_once() -> None:
    async def scenario() -> None:
        async with platform() as p:
            for stage in ("PAUSED", "BUILD_ERROR", "RUNTIME_ERROR", "CONFIG_ERROR", "NO_APP_FILE"):
                await p.route(1, stage=stage, wakeable=False, message="Because.", retry_after=30)
                status, fields, body = await p.get(HOST, "/api", method="POST")
                assert (status, json.loads(body)) == (503, {"error": "Because.", "stage": stage})
                assert int(fields["retry-after"]) >= 30
                status, fields, body = await p.get(HOST, "/", HTML)
                assert (status, b"Because." in body) == (503, True)
                assert b"/spaces/user/app1" in body

    run(scenario())


def test_the_hold_queues_are_bounded_and_what_is_over_is_told_when_to_return() -> None:
    async def scenario() -> None:
        async with platform(hold_per_space=5, hold_total=8, hold_seconds=1.0) as p:
            await p.route(1, stage="SLEEPING")
            await p.route(2, stage="SLEEPING")
            asks = [asyncio.create_task(p.get(HOST)) for _ in range(7)]
            await until(lambda: p.gateway.waiting.turned_away == 2)
            assert p.gateway.waiting.held == 5
            asks += [asyncio.create_task(p.get("user-app2.localhost")) for _ in range(5)]
            await until(lambda: p.gateway.waiting.turned_away == 4)
            assert p.gateway.waiting.held == 8
            answers = await asyncio.gather(*asks)  # held ones end after hold_seconds
            assert {answer[0] for answer in answers} == {503}
            waits = {int(answer[1]["retry-after"]) for answer in answers}
            assert len(waits) > 1, "everybody is told to come back at the same second"
            assert p.gateway.waiting.held == 0
            await until(lambda: sorted(p.control.wakes) == [1, 2])

    run(scenario())


def test_a_held_visitor_that_leaves_frees_its_place() -> None:
    async def scenario() -> None:
        async with platform(hold_per_space=1) as p:
            await p.route(1, stage="SLEEPING")
            _, writer = await asyncio.open_connection("127.0.0.1", p.port)
            writer.write(f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            await until(lambda: p.gateway.waiting.held == 1)
            writer.close()
            await until(lambda: p.gateway.waiting.held == 0)

    run(scenario())


def test_a_held_upload_is_not_read_ahead_and_then_arrives_whole() -> None:
    async def scenario() -> None:
        async with platform() as p:
            app = await p.app(1, route=False)
            await p.route(1, stage="SLEEPING")
            reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
            body = random.Random(1).randbytes(8 << 20)
            writer.write(f"POST /up HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            await until(lambda: p.gateway.waiting.held == 1)
            await asyncio.sleep(0.2)
            assert sum(len(client.buffer) for client in p.gateway.clients) < 1 << 20
            await p.route(1, stage="RUNNING", endpoint=app.endpoint, deployment=1)
            assert (await reader.readuntil(b"app1:/up")).startswith(b"HTTP/1.1 200")
            assert app.seen[0].body == body
            writer.close()

    run(scenario())


def test_a_wake_that_is_lost_is_repeated_while_somebody_waits() -> None:
    async def scenario() -> None:
        async with platform(wake_repeat_seconds=0.5) as p:
            await p.route(1, stage="SLEEPING")
            app = await p.app(1, route=False)
            p.control.fail = 500
            ask = asyncio.create_task(p.get(HOST))
            await until(lambda: p.gateway.waiting.wakes >= 2)
            p.control.on_wake = lambda space: p.control.put(space, endpoint=app.endpoint, stage="RUNNING", deployment=1)
            p.control.fail = 0
            assert (await ask)[0] == 200
            assert p.control.wakes == [1]

    run(scenario())


def test_a_wake_storm_starts_each_app_once() -> None:
    """500 visitors on 50 sleeping apps, four starts at a time; awake apps are not disturbed (T19, small)."""

    async def scenario() -> None:
        async with platform(hold_seconds=20) as p:
            app = await p.app(99)
            asleep = list(range(1, 51))
            for space in asleep:
                p.control.put(space, stage="SLEEPING")
            await until(lambda: len(p.gateway.table.entries) == 51)
            starts: dict[int, int] = {}
            queue: asyncio.Queue[int] = asyncio.Queue()

            def on_wake(space: int) -> None:
                starts[space] = starts.get(space, 0) + 1
                queue.put_nowait(space)

            async def starter() -> None:
                while True:
                    space = await queue.get()
                    p.control.put(space, stage="APP_STARTING")
                    await asyncio.sleep(0.02)
                    p.control.put(space, stage="RUNNING", endpoint=app.endpoint, deployment=space)

            p.control.on_wake = on_wake
            starters = [asyncio.create_task(starter()) for _ in range(4)]
            rng = random.Random(7)
            visits = [(rng.choice(asleep), rng.random() < 0.1) for _ in range(500)]

            async def one(space: int, leaves: bool) -> int:
                if leaves:
                    _, writer = await asyncio.open_connection("127.0.0.1", p.port)
                    writer.write(f"GET / HTTP/1.1\r\nHost: user-app{space}.localhost\r\n\r\n".encode())
                    await asyncio.sleep(0.01)
                    writer.close()
                    return 200
                return (await p.get(f"user-app{space}.localhost", f"/{space}"))[0]

            async def awake() -> list[int]:
                return [(await p.get("user-app99.localhost"))[0] for _ in range(50)]

            results, calm = await asyncio.gather(asyncio.gather(*(one(*visit) for visit in visits)), awake())
            assert set(results) == {200}
            assert set(calm) == {200}
            assert set(starts.values()) == {1}, starts
            assert p.gateway.waiting.held == 0
            for task in starters:
                task.cancel()

    run(scenario())


# --- private Spaces


async def private(p: Platform) -> App:
    app = await p.app(1, public=False)
    p.control.allow = lambda body: (
        body.get("token") == "hf_good" or body.get("session") == "sess" or body.get("sign") == "signed"
    )
    return app


def test_a_private_space_does_not_exist_for_strangers() -> None:
    async def scenario() -> None:
        async with platform() as p:
            app = await private(p)
            status, fields, body = await p.get(HOST)
            assert (status, fields["content-type"]) == (404, "application/json")
            status, fields, body = await p.get(HOST, "/a?b=1", HTML)
            assert (status, b"Sign in" in body) == (404, True)
            assert b"http://localhost:7860/auth/app?host=user-app1.localhost&amp;next=%2Fa%3Fb%3D1" in body
            nobody = await p.get("nobody.localhost", "/a?b=1", HTML)
            assert nobody[2].replace(b"nobody", b"user-app1") == body, "the answer tells that the Space exists"
            for path in ("/", "/.spaces/events", "/.spaces/x"):
                for field in ("Authorization: Bearer hf_bad", "Cookie: spaces-app-session=bad", "X: 1"):
                    assert (await p.get(HOST, path, field))[0] == 404
            assert app.seen == []
            await p.route(1, stage="SLEEPING", endpoint=None)
            assert (await p.get(HOST))[0] == 404
            assert p.control.wakes == []

    run(scenario())


def test_a_private_space_opens_to_each_kind_of_credential_and_hides_it_from_the_app() -> None:
    async def scenario() -> None:
        async with platform() as p:
            app = await private(p)
            for field in (
                "Authorization: Bearer hf_good",
                "X-HF-Authorization: Bearer hf_good",
                "Cookie: spaces-app-session=sess",
            ):
                assert (await p.get(HOST, "/x", field))[0] == 200, field
            assert (await p.get(HOST, "/x?a=%20&__sign=signed&b=2"))[2] == b"app1:/x?a=%20&b=2"
            for secret in (b"hf_good", b"sess", b"signed"):
                assert secret not in app.raw
            asked = [body for name, body in p.control.asked if name == "authorize"]
            assert {"space": 1, "sign": "signed"} in asked

    run(scenario())


def test_a_verdict_lasts_a_second_or_until_the_control_plane_can_be_asked_again() -> None:
    async def scenario() -> None:
        async with platform() as p:
            await private(p)
            good = "Authorization: Bearer hf_good"
            answers = await asyncio.gather(*(p.get(HOST, "/", good) for _ in range(3)))
            assert {answer[0] for answer in answers} == {200}
            count = len([name for name, _ in p.control.asked if name == "authorize"])
            assert (await p.get(HOST, "/", good))[0] == 200
            assert len([name for name, _ in p.control.asked if name == "authorize"]) == count
            p.control.allow = lambda body: False
            await asyncio.sleep(1.1)
            assert (await p.get(HOST, "/", good))[0] == 404
            p.control.allow = lambda body: True
            await asyncio.sleep(1.1)
            assert (await p.get(HOST, "/", good))[0] == 200
            await p.control.kill()
            await asyncio.sleep(1.1)
            assert (await p.get(HOST, "/", good))[0] == 200  # a verdict of the last minute
            assert (await p.get(HOST, "/", "Authorization: Bearer hf_other"))[0] == 503  # none: nobody gets in

    run(scenario())


def test_signing_in_sets_a_cookie_for_this_host_only() -> None:
    async def scenario() -> None:
        async with platform() as p:
            await private(p)
            p.control.sessions = {"c0de": "sess", "signed": "sess"}
            status, fields, _ = await p.get(HOST, "/.spaces/auth?code=c0de&next=%2Fpage%3Fa%3D1")
            assert (status, fields["location"]) == (302, "/page?a=1")
            assert (
                fields["set-cookie"]
                == "spaces-app-session=sess; Path=/; Max-Age=60; HttpOnly; SameSite=None; Secure; Partitioned"
            )
            assert (await p.get(HOST, "/.spaces/auth?code=c0de&next=/"))[0] == 404  # used up
            status, fields, _ = await p.get(HOST, "/p?__sign=signed&x=1", HTML)
            assert (status, fields["location"]) == (302, "/p?x=1")
            assert "spaces-app-session=sess" in fields["set-cookie"]

    run(scenario())


def test_over_https_a_session_is_taken_from_this_host_alone() -> None:
    async def scenario() -> None:
        async with platform(scheme="https") as p:
            await private(p)
            p.control.sessions = {"c0de": "sess"}
            _, fields, _ = await p.get(HOST, "/.spaces/auth?code=c0de&next=/")
            assert fields["set-cookie"].startswith("__Host-spaces-app-session=sess; Path=/;")
            assert "Secure" in fields["set-cookie"]
            assert (await p.get(HOST, "/", "Cookie: __Host-spaces-app-session=sess"))[0] == 200
            # Any page of the domain can have set this one.
            assert (await p.get(HOST, "/", "Cookie: spaces-app-session=sess"))[0] == 404

    run(scenario())


@pytest.mark.parametrize(
    ("sent", "path"),
    [
        ("/", "/"), ("/a?b=c", "/a?b=c"), ("//evil", "/"), ("/\\evil", "/"), ("https://evil", "/"), ("", "/"),
        ("a", "/"),
        ("/a\r\nX: 1", "/"), ("/\t/evil", "/"), ("/a\\b", "/"),
    ],
)  # fmt: skip
def test_next_stays_on_the_host(sent: str, path: str) -> None:
    assert local_path(sent) == path


def test_the_sign_is_cut_out_and_nothing_else_changes() -> None:
    assert without_sign(b"/a%20b?__sign=x") == b"/a%20b"
    assert without_sign(b"/a?x=%20&__sign=y&&z") == b"/a?x=%20&&z"
