"""The real Caddy with the configuration that is shipped, before a real gateway."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from tests.edge.caddy import APP, CADDYFILE, CUSTOM, PLATFORM, edge
from tests.edge.servers import program
from tests.gateway.harness import App, Seen, run

UPLOAD = 64 << 20


def test_platform_app_and_custom_domain_have_certificates_and_nobody_else(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with edge(tmp_path) as e:
            app = await e.routed()
            assert await e.curl(APP, "/a") == (0, "app1:/a")
            assert await e.curl(CUSTOM, "/b") == (0, "app1:/b")
            code, page = await e.curl(PLATFORM, "/healthz")
            assert (code, "healthz" in page) == (0, True), page
            # What the app is told of its visitor.
            names = app.seen[-1].names
            assert names[b"x-forwarded-proto"] == b"https"
            assert names[b"x-forwarded-for"] == b"127.0.0.1"
            assert names[b"host"].startswith(CUSTOM.encode())
            # A name that is nobody's gets no certificate: the handshake itself fails (curl: 35).
            for stranger in ("evil.example.net", "other.apps.example.org", f"x.{CUSTOM}", "localhost"):
                code, said = await e.curl(stranger)
                assert code == 35, (stranger, said)
            # Once its domain is removed, it is served no longer.
            await e.platform.route(1, hosts=[APP])
            assert "app1" not in (await e.curl(CUSTOM, "/c"))[1]

    run(scenario(), 120)


def test_a_visitor_cannot_say_who_they_are(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with edge(tmp_path) as e:
            app = await e.routed()
            forged = ("-H", "X-Forwarded-For: 6.6.6.6", "-H", "X-Forwarded-Proto: http", "-H", "Forwarded: for=6.6.6.6")
            assert (await e.curl(APP, "/", *forged))[0] == 0
            names = app.seen[-1].names
            assert (names[b"x-forwarded-for"], names[b"x-forwarded-proto"]) == (b"127.0.0.1", b"https")
            assert b"forwarded" not in names

    run(scenario(), 120)


def test_http_goes_to_https_and_two_and_three_are_offered(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with edge(tmp_path) as e:
            await e.routed()
            code, said = await e.curl(APP, "/x?y=1", "--head", plain=True)
            assert (code, "308" in said.splitlines()[0]) == (0, True)
            assert f"location: https://{APP}/x?y=1" in said.lower()
            code, said = await e.curl(APP, "/", "--http2", "--include")
            assert said.startswith("HTTP/2 200"), said
            assert f'alt-svc: h3=":{e.port}"' in said.lower()
            heard = "".join(Path(f"/proc/net/{name}").read_text() for name in ("udp", "udp6"))
            assert f":{e.port:04X} " in heard, "HTTP/3 is offered where nobody listens"

    run(scenario(), 120)


def test_websockets_go_through(tmp_path: Path) -> None:
    async def echo(socket: ServerConnection) -> None:
        async for message in socket:
            await socket.send(message)

    async def scenario() -> None:
        async with edge(tmp_path) as e, serve(echo, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            await e.platform.route(2, hosts=[CUSTOM], endpoint=f"127.0.0.1:{port}", deployment=20)
            async with connect(
                f"wss://{CUSTOM}:{e.port}/ws",
                host="127.0.0.1",
                port=e.port,
                ssl=e.context,
                proxy=None,
                max_size=None,
                open_timeout=60,
            ) as socket:
                for message in ("hello", "x" * 1_000_000):
                    await socket.send(message)
                    assert await socket.recv() == message

    run(scenario(), 120)


def test_events_come_one_by_one(tmp_path: Path) -> None:
    """Each event waits for the client to have read the one before: a proxy that keeps any back would wait for ever."""
    read: asyncio.Queue[int] = asyncio.Queue()

    async def events(_app: App, _seen: Seen, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for n in range(5):
            event = b"data: %d\n\n" % n
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            await writer.drain()
            async with asyncio.timeout(60):
                assert await read.get() == n
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    async def scenario() -> None:
        async with edge(tmp_path) as e:
            await e.routed(events)
            reader, writer = await asyncio.open_connection("127.0.0.1", e.port, ssl=e.context, server_hostname=APP)
            writer.write(f"GET / HTTP/1.1\r\nHost: {APP}\r\nConnection: close\r\n\r\n".encode())
            for n in range(5):
                async with asyncio.timeout(60):
                    await reader.readuntil(b"data: %d\n\n" % n)
                read.put_nowait(n)
            writer.transport.abort()

    run(scenario(), 120)


def test_an_upload_is_passed_on_as_it_comes(tmp_path: Path) -> None:
    """The app answers before the upload has ended, and then takes all of it: nothing in between kept it whole."""
    sizes: list[int] = []

    async def take(app: App, _seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        size = len(await reader.readexactly(1 << 20))
        first.set()
        while size < UPLOAD:
            size += len(await reader.read(1 << 20))
        sizes.append(size)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()
        return True

    first = asyncio.Event()

    async def scenario() -> None:
        async with edge(tmp_path) as e:
            await e.routed(take)
            reader, writer = await asyncio.open_connection("127.0.0.1", e.port, ssl=e.context, server_hostname=APP)
            writer.write(f"POST / HTTP/1.1\r\nHost: {APP}\r\nContent-Length: {UPLOAD}\r\n\r\n".encode())
            writer.write(b"x" * (2 << 20))
            async with asyncio.timeout(60):
                await first.wait()
            for _ in range(UPLOAD // (2 << 20) - 1):
                writer.write(b"x" * (2 << 20))
                await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            writer.transport.abort()
            assert sizes == [UPLOAD]

    run(scenario(), 120)


def test_what_is_not_encoded_is_not_asked_for_encoded(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with edge(tmp_path) as e:
            app = await e.routed()
            code, said = await e.curl(APP)
            assert code == 0, said
            assert b"accept-encoding" not in app.seen[-1].names

    run(scenario(), 120)


def test_own_certificates(tmp_path: Path) -> None:
    """Two files of an authority of ours; names beyond them have no certificate, also where the gateway knows them."""
    import subprocess

    store = tmp_path / "certificates"
    store.mkdir()
    openssl = program("openssl", "openssl")
    root, key = tmp_path / "root.pem", tmp_path / "root.key"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key,
         "-out", root, "-days", "2", "-subj", "/CN=Test authority"], check=True, capture_output=True,
    )  # fmt: skip
    names = f"subjectAltName=DNS:{PLATFORM},DNS:*.apps.example.org"
    made = subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "-",
         "-CA", root, "-CAkey", key, "-days", "2", "-subj", "/CN=apps", "-addext", names],
        check=True, capture_output=True,
    )  # fmt: skip
    (store / "apps.pem").write_bytes(made.stdout)

    async def scenario() -> None:
        async with edge(tmp_path, "own", root=root, SPACES_CERTIFICATES=str(store)) as e:
            await e.routed()
            assert await e.curl(APP, "/a") == (0, "app1:/a")
            assert (await e.curl(PLATFORM))[0] == 0
            assert (await e.curl(CUSTOM))[0] != 0

    run(scenario(), 120)


@pytest.mark.parametrize("mode", ["internal", "acme", "own"])
def test_every_mode_is_a_valid_configuration(mode: str, tmp_path: Path) -> None:
    import subprocess

    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "SPACES_TLS": mode, "SPACES_CERTIFICATES": str(tmp_path)}
    argv = [program("caddy", "caddy"), "adapt", "--validate", "--config", str(CADDYFILE), "--adapter", "caddyfile"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    adapted = json.loads(done.stdout.splitlines()[0])
    policies = adapted["apps"]["tls"]["automation"].get("policies", [])
    assert (mode == "own") is (policies == [])
    assert "insecure" not in done.stdout.lower()
