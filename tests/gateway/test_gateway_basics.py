"""One gateway, one control plane, apps: routes, wakes, waiting pages."""

from __future__ import annotations

import asyncio
import json

from tests.gateway.harness import platform, run, until


def test_host_names_lead_to_their_apps_and_only_there() -> None:
    async def scenario() -> None:
        async with platform() as p:
            one, two = await p.app(1), await p.app(2, hosts=["user-app2.localhost", "127.9.8.7"])
            assert (await p.get("user-app1.localhost", "/x?y=%20"))[2] == b"app1:/x?y=%20"
            assert (await p.get("USER-App2.localhost.:7860", "/"))[2] == b"app2:/"
            assert (await p.get("127.9.8.7:1", "/"))[2] == b"app2:/"
            assert (await p.get("localhost", "/api/x"))[2] == b'{"control": true, "target": "/api/x"}'
            status, fields, _ = await p.get("user-app3.localhost")
            assert (status, "location" in fields) == (404, False)
            assert len(one.seen) == 1
            assert len(two.seen) == 2
            await p.route(1, gone=True)
            assert (await p.get("user-app1.localhost"))[0] == 404

    run(scenario())


def test_a_visit_wakes_once_and_is_held_until_the_app_answers() -> None:
    async def scenario() -> None:
        async with platform() as p:
            app = await p.app(1, route=False)
            await p.route(1, stage="SLEEPING")
            asks = [asyncio.create_task(p.get("user-app1.localhost", f"/{n}")) for n in range(20)]
            await until(lambda: p.gateway.waiting.held == 20)
            await until(lambda: p.control.wakes == [1])
            await p.route(1, stage="RUNNING", endpoint=app.endpoint, deployment=7)
            answers = await asyncio.gather(*asks)
            assert [answer[2] for answer in answers] == [b"app1:/%d" % n for n in range(20)]
            assert p.control.wakes == [1]

    run(scenario())


def test_a_person_gets_a_waiting_page_and_follows_it_live() -> None:
    async def scenario() -> None:
        async with platform() as p:
            await p.route(1, stage="SLEEPING", title="<b>Demo</b>")
            status, fields, body = await p.get("user-app1.localhost", "/", "Accept: text/html,*/*")
            assert (status, fields["cache-control"]) == (503, "no-store")
            assert int(fields["retry-after"]) > 0
            assert b"&lt;b&gt;Demo" in body
            assert b"<b>Demo" not in body
            await until(lambda: p.control.wakes == [1])
            reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
            writer.write(
                b"GET /.spaces/events HTTP/1.1\r\nHost: user-app1.localhost\r\nAccept: text/event-stream\r\n\r\n"
            )
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"text/event-stream" in head
            progress = {"phase": "installing", "text": "installing 42/57", "since": 1.5}
            await p.route(1, stage="BUILDING", progress=progress)
            app = await p.app(1, stage="RUNNING")
            events = (await reader.readuntil(b"event: ready\n")).decode()
            stages = [json.loads(line[6:]) for line in events.split("\n") if line.startswith("data: ")]
            assert [item["stage"] for item in stages] == ["SLEEPING", "BUILDING"]
            assert stages[1]["progress"] == progress
            writer.close()
            assert app.seen == []

    run(scenario())
