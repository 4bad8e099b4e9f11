"""The gateway as its own process: loss of the control plane, restart from the snapshot, drain, and swaps under load
(T37)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from spaces_platform.errors import Invalid
from spaces_platform.gateway.config import load, parse
from tests.gateway.fake_control import LINK_TOKEN, FakeControl
from tests.gateway.harness import App, Seen, platform, run, split_answer, until

HOST = "user-app1.localhost"


class Process:
    """One gateway process and the events it logs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []
        self.port = 0

    def find(self, event: str) -> dict[str, Any] | None:
        return next((item for item in self.events if item["event"] == event), None)

    async def read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.events.append(json.loads(line))

    async def get(self, host: str, target: str = "/") -> tuple[int, dict[str, str], bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        data = await reader.read(-1)
        writer.close()
        return split_answer(data)


@asynccontextmanager
async def gateway_process(tmp_path: Path, control: FakeControl, **changes: Any) -> AsyncIterator[Process]:
    file = tmp_path / "gateway.json"
    values = {
        "control": control.address, "link_token": LINK_TOKEN, "listen": [{"port": 0}],
        "snapshot": str(tmp_path / "routes.json"), "activity_seconds": 0.1, "drain_seconds": 3, **changes,
    }  # fmt: skip
    file.write_text(json.dumps(values))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "spaces_platform.gateway", "--config", str(file), stderr=asyncio.subprocess.PIPE
    )
    found = Process(process)
    reading = asyncio.create_task(found.read())
    try:
        await until(lambda: found.find("listening") or process.returncode is not None)
        listening = found.find("listening")
        assert listening is not None, "the gateway ended before it listened"
        found.port = int(listening["addresses"][0].rpartition(":")[2])
        yield found
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading


def test_a_new_route_is_confirmed_at_once() -> None:
    """Whoever waits for an app's address gets it when the gateway says that it leads there, not a report later."""

    async def scenario() -> None:
        async with platform(activity_seconds=3600.0) as p:
            await until(lambda: p.control.reports, what="the first report")
            await p.app(1, stage="RUNNING_APP_STARTING")
            await until(lambda: p.control.applied == p.control.version, 5, "the new app's route to be confirmed")
            await p.route(1, stage="RUNNING")
            await until(lambda: p.control.applied == p.control.version, 5, "the new stage to be confirmed")
            await p.route(2, stage="SLEEPING")
            await until(lambda: p.control.applied == p.control.version, 5, "the new Space to be confirmed")
            # Nobody waits for a stage without an address: it is said with the next report.
            await p.route(2, stage="APP_STARTING")
            with pytest.raises(AssertionError, match="a report"):
                await until(lambda: p.control.applied == p.control.version, 0.3, "a report")
            await p.app(2, stage="RUNNING")
            await until(lambda: p.control.applied == p.control.version, 5, "the second app's route to be confirmed")

    run(scenario())


def test_it_serves_without_the_control_plane_and_starts_without_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        control = FakeControl()
        await control.start()
        app = await App().start()
        control.put(1, endpoint=app.endpoint, deployment=1)
        control.put(2, endpoint=app.endpoint, deployment=2)
        async with gateway_process(tmp_path, control) as gateway:
            await until(lambda: gateway.find("control_found"))
            assert (await gateway.get(HOST))[0] == 200
            await control.kill()
            await until(lambda: gateway.find("control_lost"))
            assert [(await gateway.get(HOST))[0] for _ in range(20)] == [200] * 20
            await until(lambda: (tmp_path / "routes.json").exists())
            os.kill(gateway.process.pid, signal.SIGKILL)
            await gateway.process.wait()
        async with gateway_process(tmp_path, control) as gateway:
            assert (await gateway.get(HOST))[0] == 200  # the control plane is still dead
            assert (await gateway.get("localhost"))[0] == 503
            control.remove(2)
            control.put(3, endpoint=app.endpoint, deployment=3)
            control.entries[1]["version"] = control.version = 50
            await control.start()
            await until(lambda: gateway.find("control_found"))
            assert (await gateway.get("user-app3.localhost"))[0] == 200
            assert (await gateway.get("localhost"))[0] == 200
        (tmp_path / "routes.json").write_text("{broken")
        async with gateway_process(tmp_path, control) as gateway:
            assert gateway.find("snapshot_unusable") is not None
            await until(lambda: gateway.find("control_found"))
            assert (await gateway.get("user-app2.localhost"))[0] == 404  # a full table names what is there
            assert (await gateway.get("user-app3.localhost"))[0] == 200
        await control.kill()
        await app.stop()

    run(scenario())


def test_every_loopback_address_reaches_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        control = FakeControl()
        await control.start()
        app = await App().start()
        control.put(1, endpoint=app.endpoint, deployment=1, hosts=[HOST, "127.83.12.9"])
        async with gateway_process(tmp_path, control) as gateway:
            await until(lambda: gateway.find("control_found"))
            listening = gateway.find("listening")
            assert listening is not None
            if not listening["loopback_addresses"]:
                pytest.skip("this kernel refuses SO_BINDTODEVICE")
            reader, writer = await asyncio.open_connection("127.83.12.9", gateway.port)
            writer.write(b"GET /x HTTP/1.1\r\nHost: 127.83.12.9:%d\r\nConnection: close\r\n\r\n" % gateway.port)
            assert (await reader.read(-1)).endswith(b"app:/x")
            writer.close()
        await control.kill()
        await app.stop()

    run(scenario())


def test_sigterm_lets_running_requests_end(tmp_path: Path) -> None:
    async def slow(app: App, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
        await writer.drain()
        await go.wait()
        writer.write(b"world")
        await writer.drain()
        return True

    async def scenario() -> None:
        global go
        go = asyncio.Event()
        control = FakeControl()
        await control.start()
        app = await App(slow).start()
        control.put(1, endpoint=app.endpoint, deployment=1)
        control.put(2, stage="SLEEPING")
        async with gateway_process(tmp_path, control) as gateway:
            await until(lambda: gateway.find("control_found"))
            running = asyncio.create_task(gateway.get(HOST))
            held = asyncio.create_task(gateway.get("user-app2.localhost"))
            await until(lambda: app.seen and control.wakes)
            gateway.process.send_signal(signal.SIGTERM)
            assert (await held)[0] == 503
            await until(lambda: gateway.find("draining"))
            with pytest.raises(OSError):
                await asyncio.open_connection("127.0.0.1", gateway.port)
            go.set()
            status, _, body = await running
            assert (status, body) == (200, b"helloworld")
            assert await asyncio.wait_for(gateway.process.wait(), 5) == 0
        await control.kill()
        await app.stop()

    run(scenario())


go: asyncio.Event


def test_nothing_is_lost_while_deployments_are_swapped_under_load() -> None:
    """10 swaps under 200 requests a second, long requests and open WebSockets beside them."""

    async def handler(app: App, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        await app.read_body(seen, reader)
        if b"/long" in seen.line:
            await asyncio.sleep(1.0)
        body = app.name.encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()
        return True

    async def hold(connection: ServerConnection) -> None:
        await connection.wait_closed()

    async def scenario() -> None:
        async with platform(websocket_spread_seconds=0.1) as p:
            sockets = await serve(hold, "127.0.0.1", 0, ping_interval=None)
            endpoint = f"127.0.0.1:{sockets.sockets[0].getsockname()[1]}"
            await p.route(2, endpoint=endpoint, deployment=1)
            app = await p.app(1, handler, deployment=0)
            done = asyncio.Event()
            results: list[tuple[int, bytes]] = []
            codes: list[int | None] = []

            async def ask(target: str, method: str) -> None:
                status, _, body = await p.get(HOST, target, "Content-Length: 0", method=method)
                results.append((status, body))

            async def load() -> None:
                asks = set()
                count = 0
                while not done.is_set():
                    target = "/long" if count % 50 == 0 else "/"
                    asks.add(asyncio.create_task(ask(target, "POST" if count % 3 == 0 else "GET")))
                    count += 1
                    await asyncio.sleep(0.005)
                await asyncio.gather(*asks)

            async def stay() -> None:
                while not done.is_set():
                    async with connect(
                        "ws://user-app2.localhost/", host="127.0.0.1", port=p.port, ping_interval=None, proxy=None
                    ) as one:
                        try:
                            while not done.is_set():
                                async with asyncio.timeout(0.2):
                                    await one.recv()
                        except ConnectionClosed:
                            codes.append(one.close_code)
                        except TimeoutError:
                            continue

            work = asyncio.gather(load(), *(stay() for _ in range(10)))
            for number in range(1, 11):
                old = app
                app = await p.app(1, handler, deployment=number)
                app.name = f"v{number}"
                await p.route(2, endpoint=endpoint, deployment=number + 1)
                version = p.control.version
                await until(lambda version=version: p.control.applied >= version)  # type: ignore[misc]

                def quiet(number: int = number) -> bool:
                    rows = [row for row in p.control.rows(1) if row["deployment"] == number - 1]
                    return bool(rows) and rows[-1]["in_flight"] == 0

                await until(quiet)
                await old.stop()
            done.set()
            await work
            assert len(results) > 200
            assert {status for status, _ in results} == {200}
            assert {f"v{number}".encode() for number in range(1, 11)} <= {body for _, body in results}
            assert set(codes) == {1012}
            assert len(codes) >= 20
            sockets.close()

    run(scenario())


def test_a_full_table_replaces_what_the_snapshot_had() -> None:
    async def scenario() -> None:
        async with platform() as p:
            await p.app(1)
            await p.app(2)
            p.gateway.table.version = 0
            del p.control.entries[2]
            await p.control.kill()
            await p.control.start()
            await until(lambda: set(p.gateway.table.entries) == {1})

    run(scenario())


def test_a_feed_of_nonsense_is_left_and_tried_again() -> None:
    async def scenario() -> None:
        async with platform() as p:
            await p.app(1)
            for line in ({"complete": True}, {"version": None}, {"space": 5, "version": "x"}, {"version": [1]}):
                p.control._tell(line)
            await until(lambda: p.gateway.link.failures >= 1)
            await p.route(1, title="New")
            assert p.gateway.table.entries[1].title == "New"
            assert (await p.get(HOST))[0] == 200

    run(scenario())


def test_the_admin_address(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "admin.sock"
        async with platform(admin=f"unix:{path}") as p:
            assert path.stat().st_mode & 0o077 == 0
            await p.app(1)
            await p.get(HOST)

            async def ask(target: str) -> tuple[int, bytes]:
                reader, writer = await asyncio.open_unix_connection(str(path))
                writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                status, _, body = split_answer(await reader.read(-1))
                writer.close()
                return status, body

            assert (await ask("/healthz"))[0] == 200
            status, body = await ask("/readyz")
            assert (status, json.loads(body)["control"]) == (200, True)
            status, body = await ask("/metrics")
            assert b'spaces_gateway_space_requests_total{space="1"} 1.0' in body
            assert (await ask("/x"))[0] == 404

    run(scenario())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"control": "nowhere"}, "'nowhere' is not an address"),
        ({"control": ""}, "'control' is required"),
        ({"max_conections": 5}, "Unknown key 'max_conections'"),
        ({"hold_seconds": "90"}, "'hold_seconds' must be a number"),
        ({"hold_per_space": 1.5}, "'hold_per_space' must be a number"),
        ({"hold_per_space": -1}, "'hold_per_space' must be a number"),
        ({"listen": []}, "'listen' must be a list"),
        ({"listen": [{"porto": 1}]}, "'listen' holds"),
        ({"platform_hosts": "localhost"}, "'platform_hosts' must be a list"),
        ({"trusted_proxies": ["10.0.0.0/99"]}, "'10.0.0.0/99' is not a network"),
        ({"scheme": "ftp"}, "'scheme' must be"),
        ({"admin": "x"}, "'x' is not an address"),
    ],
)
def test_a_configuration_that_cannot_be_used_says_why(change: dict[str, Any], says: str) -> None:
    with pytest.raises(Invalid, match=says.replace("/", "/")):
        parse({"control": "127.0.0.1:1", "link_token": "t", **change})


def test_a_configuration_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="Cannot read"):
        load(tmp_path / "none.json")
    file = tmp_path / "x.json"
    file.write_text("{")
    with pytest.raises(Invalid, match="is not JSON"):
        load(file)
    file.write_text(
        '{"control": "unix:/run/x.sock", "link_token": "t", "listen": [{"port": 80, "loopback_only": false}]}'
    )
    config = load(file)
    assert config.listen[0].loopback_only is False
    assert "'t'" not in repr(config)
