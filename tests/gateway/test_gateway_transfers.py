"""Bodies and connections: everything that HTTP/1 does between a visitor and an app, without buffering."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import time

import pytest

from spaces_platform.gateway.downstream import Client
from spaces_platform.gateway.hygiene import app_cookies, app_set_cookies
from tests.gateway.harness import App, Handler, Seen, platform, read_all, run, split_answer, until

HOST = "user-app1.localhost"
H = b"Host: user-app1.localhost\r\n"


def fixed(data: bytes, keep: bool = True) -> Handler:
    """A handler that answers every request with the same bytes."""

    async def handler(app: App, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        await app.read_body(seen, reader)
        writer.write(data)
        await writer.drain()
        return keep

    return handler


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
ANSWERS = [
    # name, the app's answer, it keeps its connection, method, visitor's version, the body it gets, it is kept alive
    ("length", OK + b"Content-Length: 5\r\n\r\nhello", True, "GET", "1.1", b"hello", True),
    ("chunks", OK + CHUNKED + b"2;x=1\r\nhe\r\n3\r\nllo\r\n0\r\nX: 1\r\n\r\n", True, "GET", "1.1", b"hello", True),
    ("until close", OK + b"\r\nhello", False, "GET", "1.1", b"hello", True),
    ("http/1.0 app", b"HTTP/1.0 200 OK\r\n\r\nhello", False, "GET", "1.1", b"hello", True),
    ("no reason", b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello", True, "GET", "1.1", b"hello", True),
    ("length to 1.0", OK + b"Content-Length: 5\r\n\r\nhello", True, "GET", "1.0", b"hello", False),
    ("chunks to 1.0", OK + CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", True, "GET", "1.0", b"hello", False),
    ("until close to 1.0", OK + b"\r\nhello", False, "GET", "1.0", b"hello", False),
    ("head with length", OK + b"Content-Length: 5\r\n\r\n", True, "HEAD", "1.1", b"", True),
    ("head with chunks", OK + CHUNKED, True, "HEAD", "1.1", b"", True),
    ("204", b"HTTP/1.1 204 No Content\r\n\r\n", True, "GET", "1.1", b"", True),
    ("204 with length", b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", True, "GET", "1.1", b"", True),
    ("304 with length", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", True, "GET", "1.1", b"", True),
    ("empty", OK + b"Content-Length: 0\r\n\r\n", True, "GET", "1.1", b"", True),
    ("app closes", OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello", False, "GET", "1.1", b"hello", True),
    ("interim", b"HTTP/1.1 103 E\r\n\r\n" + OK + b"Content-Length: 5\r\n\r\nhello", True, "GET", "1.1", b"hello", True),
]  # fmt: skip


def test_every_framing_of_an_answer() -> None:
    async def scenario() -> None:
        async with platform() as p:
            for name, data, keeps, method, version, wanted, kept in ANSWERS:
                await p.app(1, fixed(data, keeps))
                request = f"{method} /x HTTP/{version}\r\nHost: {HOST}\r\n\r\n".encode()
                reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
                writer.write(request)
                answer = await read_all(reader, 0.1)
                assert answer.startswith(b"HTTP/1.1 "), name
                if method == "GET":
                    assert split_answer(answer)[2] == wanted, name
                else:
                    assert answer.endswith(b"\r\n\r\n"), name
                assert answer.count(b"HTTP/1.1 ") == 1, name
                if kept:
                    writer.write(request)
                    assert await read_all(reader, 0.1) == answer, name
                else:
                    assert reader.at_eof(), name
                writer.transport.abort()

    run(scenario())


def test_an_answer_that_breaks_off_is_seen_to_break_off() -> None:
    async def scenario() -> None:
        async with platform() as p:
            for data in (
                b"HTTP/1.1 200 OK\r\nContent-Length: 59\r\n\r\nhello",
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloXX",
            ):
                await p.app(1, fixed(data, False))
                reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
                writer.write(b"GET / HTTP/1.1\r\n" + H + b"\r\n")
                answer = await read_all(reader)
                assert reader.at_eof() or reader.exception() is not None
                assert b"0\r\n\r\n" not in answer
                writer.transport.abort()

    run(scenario())


def test_pipelined_requests_are_answered_in_order_while_bodies_stream() -> None:
    async def scenario() -> None:
        async with platform() as p:
            app = await p.app(1)
            data = b"".join(
                b"POST /%d HTTP/1.1\r\n" % n + H + b"Content-Length: 3\r\n\r\nabc"
                if n % 3
                else b"GET /%d HTTP/1.1\r\n" % n + H + b"\r\n"
                for n in range(300)
            )
            answer = await p.raw(data)
            assert [int(part.rpartition(b"/")[2]) for part in answer.split(b"HTTP/1.1 ")[1:]] == list(range(300))
            assert app.connections <= 2

    run(scenario())


def test_events_arrive_one_by_one() -> None:
    async def handler(app: App, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(3):
            await steps.get()
            writer.write(b"9\r\ndata: x\n\n\r\n")
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        return True

    async def scenario() -> None:
        global steps
        steps = asyncio.Queue()
        async with platform() as p:
            await p.app(1, handler)
            reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
            writer.write(b"GET /queue/data HTTP/1.1\r\n" + H + b"\r\n")
            await reader.readuntil(b"\r\n\r\n")
            for _ in range(3):
                steps.put_nowait(None)
                assert await asyncio.wait_for(reader.readexactly(14), 1) == b"9\r\ndata: x\n\n\r\n"
            assert await reader.readexactly(5) == b"0\r\n\r\n"
            writer.close()

    run(scenario())


steps: asyncio.Queue[None]


def test_100_continue_reaches_the_visitor_before_the_body() -> None:
    async def handler(app: App, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        assert seen.names[b"expect"] == b"100-continue"
        if seen.line.split(b" ")[1] == b"/no":
            writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
            await writer.drain()
            return True
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await app.read_body(seen, reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        return True

    async def scenario() -> None:
        async with platform() as p:
            app = await p.app(1, handler)
            reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
            writer.write(b"PUT /yes HTTP/1.1\r\n" + H + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n")
            assert await reader.readexactly(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(b"hello")
            assert (await read_all(reader)).endswith(b"ok")
            assert app.seen[0].body == b"hello"
            writer.write(b"PUT /no HTTP/1.1\r\n" + H + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n")
            answer = await read_all(reader)
            assert answer.startswith(b"HTTP/1.1 413")
            assert b"Connection: close" in answer
            assert reader.at_eof()
            writer.transport.abort()

    run(scenario())


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_upload_arrives_whole_and_waits_for_a_slow_app(chunked: bool) -> None:
    size, piece = 48 << 20, b"u" * 65_536

    async def handler(app: App, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        await gate.wait()
        digest = hashlib.sha256()
        await app.read_body(seen, reader)
        digest.update(seen.body)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\n" + digest.hexdigest().encode())
        return True

    async def scenario() -> None:
        global gate
        gate = asyncio.Event()
        async with platform() as p:
            await p.app(1, handler)
            reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
            framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size
            writer.write(b"POST /up HTTP/1.1\r\n" + H + framing + b"\r\n\r\n")
            sent = 0

            async def send() -> None:
                nonlocal sent
                for _ in range(size // len(piece)):
                    writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                    await writer.drain()
                    sent += len(piece)
                writer.write(b"0\r\n\r\n" if chunked else b"")

            sending = asyncio.create_task(send())
            await stalled(lambda: sent)
            assert sent < size, "the gateway took in a whole upload that the app does not read"
            clients = list(p.gateway.clients)
            assert sum(len(client.buffer) for client in clients) < 1 << 20
            assert sum(c.up.transport.get_write_buffer_size() for c in clients if c.up is not None) < 4 << 20
            gate.set()
            await sending
            answer = await read_all(reader)
            assert answer.endswith(hashlib.sha256(piece * (size // len(piece))).hexdigest().encode())
            writer.close()

    run(scenario(), 60)


gate: asyncio.Event


async def stalled(value: object) -> None:
    """Until a figure has stopped moving."""
    last, since = -1, time.monotonic()
    while time.monotonic() - since < 0.3:
        now = value()  # type: ignore[operator]
        if now != last:
            last, since = now, time.monotonic()
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_download_waits_for_a_slow_visitor(chunked: bool) -> None:
    size, piece = 48 << 20, b"z" * 65_536
    state = {"sent": 0}

    async def handler(app: App, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size
        writer.write(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n")
        for _ in range(size // len(piece)):
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            await writer.drain()
            state["sent"] += len(piece)
        writer.write(b"0\r\n\r\n" if chunked else b"")
        return True

    async def scenario() -> None:
        async with platform() as p:
            await p.app(1, handler)
            reader, writer = await asyncio.open_connection("127.0.0.1", p.port, limit=65_536)
            writer.write(b"GET /down HTTP/1.1\r\n" + H + b"\r\n")
            await stalled(lambda: state["sent"])
            assert state["sent"] < size, "the gateway took in a whole answer that the visitor does not read"
            assert sum(c.transport.get_write_buffer_size() for c in p.gateway.clients) < 4 << 20
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            got = 0
            while got < size:
                data = await reader.read(1 << 20)
                assert data
                got += data.count(b"z")
            assert got == size
            writer.close()

    run(scenario(), 60)


def test_an_early_answer_to_an_upload_is_delivered() -> None:
    async def handler(app: App, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await writer.drain()
        return False

    async def scenario() -> None:
        async with platform() as p:
            await p.app(1, handler)
            reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
            writer.write(b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 9999999\r\n\r\n" + b"x" * 1000)
            answer = await asyncio.wait_for(reader.read(-1), 5)
            assert answer.startswith(b"HTTP/1.1 413")
            assert answer.endswith(b"big")
            writer.transport.abort()

    run(scenario())


def test_a_visitor_that_leaves_ends_the_exchange_at_the_app() -> None:
    async def handler(app: App, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await writer.drain()
        assert await reader.read(1) == b""
        left.set()
        return False

    async def scenario() -> None:
        global left
        left = asyncio.Event()
        async with platform() as p:
            await p.app(1, handler)
            reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
            writer.write(b"GET /stream HTTP/1.1\r\n" + H + b"\r\n")
            await reader.readuntil(b"hello")
            backend = p.gateway.backends()[0]
            assert backend.active == 1
            writer.close()
            await asyncio.wait_for(left.wait(), 3)
            assert backend.active == 0

    run(scenario())


left: asyncio.Event


def test_a_half_closed_http_1_0_visitor_gets_its_answer() -> None:
    async def scenario() -> None:
        async with platform() as p:
            await p.app(1)
            answer = await p.raw(b"GET /x HTTP/1.0\r\n" + H + b"\r\n", end=True)
            assert answer.endswith(b"app1:/x")

    run(scenario())


def test_a_stale_pooled_connection_is_retried_once_for_what_may_be_repeated() -> None:
    """The app answers once per connection without saying so, as after its keep-alive limit."""

    async def handler(app: App, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        await app.read_body(seen, reader)
        if len(app.seen) % 2 == 0 and app.name == "odd":
            return False  # a request on a used connection: close without a byte
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()
        return True

    async def scenario() -> None:
        async with platform() as p:
            app = await p.app(1, handler)
            app.name = "odd"
            assert (await p.get(HOST))[0] == 200
            assert (await p.get(HOST))[0] == 200  # refused on the pooled connection, then repeated
            assert [seen.line for seen in app.seen] == [b"GET / HTTP/1.1"] * 3
            assert (await p.get(HOST, "/", "Content-Length: 0", method="POST"))[0] == 502  # never repeated
            assert len(app.seen) == 4

    run(scenario())


def test_an_app_that_is_gone() -> None:
    async def scenario() -> None:
        async with platform() as p:
            app = await p.app(1)
            await app.stop()
            status, fields, _ = await p.get(HOST)
            assert (status, fields["content-type"]) == (502, "application/json")
            status, fields, body = await p.get(HOST, "/", "Accept: text/html")
            assert (status, fields["content-type"]) == (503, "text/html; charset=utf-8")
            assert b"does not answer" in body
            await until(lambda: p.control.rows(1) and p.control.rows(1)[-1]["errors"] == 2)

    run(scenario())


def test_headers_on_their_way_to_an_app() -> None:
    async def scenario() -> None:
        async with platform() as p:
            app = await p.app(1)
            await p.get(
                HOST,
                "/",
                "X-Forwarded-For: 6.6.6.6", "X-Forwarded-Host: evil.example", "X-Forwarded-Proto: https",
                "X-Forwarded-Port: 1",
                "Forwarded: for=6.6.6.6", "X-Real-IP: 6.6.6.6", "X-Forwarded-Prefix: /evil",
                "X-Spaces-User: admin",
                "Connection: x-secret-hop, keep-alive",
                "X-Secret-Hop: 1", "Keep-Alive: 5", "TE: trailers", "Trailer: X",
                "Proxy-Authorization: Basic eA==", "Proxy-Connection: close", "Proxy: http://evil",
                "Authorization: Bearer hf_usertoken", "X-HF-Authorization: Bearer hf_usertoken",
                "Cookie: a=1; spaces-session=s3cret; b=2", "Cookie: __Host-spaces-csrf=x; spaces-app-session=s; c=3",
                "X-Ok: yes",
            )  # fmt: skip
            names = app.seen[0].names
            assert names[b"x-forwarded-for"] == b"127.0.0.1"
            assert names[b"x-forwarded-host"] == HOST.encode()
            assert names[b"x-forwarded-proto"] == b"http"
            assert names[b"cookie"] == b"a=1; b=2; c=3"
            assert names[b"host"] == HOST.encode()
            assert names[b"x-ok"] == b"yes"
            assert set(names) == {
                b"host", b"x-ok", b"cookie", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto",
            }  # fmt: skip
            assert b"hf_usertoken" not in app.raw
            assert b"s3cret" not in app.raw
            await p.get(HOST, "/", "Authorization: Bearer own-token-of-the-app")
            assert app.seen[1].names[b"authorization"] == b"Bearer own-token-of-the-app"

    run(scenario())


def test_headers_on_their_way_to_the_control_plane_keep_its_own() -> None:
    async def scenario() -> None:
        async with platform() as p:
            await p.get(
                "localhost", "/", "Authorization: Bearer hf_t", "Cookie: spaces-session=s", "X-Forwarded-For: 6.6.6.6"
            )
            _, fields = p.control.seen[0]
            assert fields[b"authorization"] == b"Bearer hf_t"
            assert fields[b"cookie"] == b"spaces-session=s"
            assert fields[b"x-forwarded-for"] == b"127.0.0.1"

    run(scenario())


def test_headers_on_their_way_to_a_visitor() -> None:
    answer = (
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Frame-Options: DENY\r\n"
        b"Keep-Alive: timeout=5\r\nConnection: x-hop\r\nX-Hop: 1\r\n"
        b"Set-Cookie: a=1; Path=/; Domain=localhost; HttpOnly\r\nSet-Cookie: spaces-session=evil; Path=/\r\n"
        b"Set-Cookie: =spaces-session=evil\r\nCross-Origin-Opener-Policy: unsafe-none\r\n"
        b"Access-Control-Allow-Origin: *\r\n\r\n"
    )

    async def scenario() -> None:
        async with platform() as p:
            await p.app(1, fixed(answer), headers={"cross-origin-opener-policy": "same-origin"})
            data = await p.raw(b"GET / HTTP/1.1\r\n" + H + b"\r\n")
            lines = sorted(data.decode().lower().split("\r\n")[1:-2])
            assert lines == [
                "access-control-allow-origin: *", "content-length: 0", "cross-origin-opener-policy: same-origin",
                "set-cookie: a=1; path=/; httponly",
            ]  # fmt: skip
            await p.route(1, embed=False)
            _, fields, _ = await p.get(HOST)
            assert fields["content-security-policy"] == "frame-ancestors 'self' http://localhost:7860"

    run(scenario())


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("a=1; Domain=x.y; Path=/", "a=1; Path=/"),
        ("a=1;domain=.x;Secure", "a=1;Secure"),
        ("a=1; DOMAIN = x ", "a=1"),
        ("a=domain=x; Path=/", "a=domain=x; Path=/"),
        ("domain=x; Path=/", "domain=x; Path=/"),
        ("a=1; Domain", "a=1"),
        ("spaces-session=1", None),
        (" Spaces-App-Session =1", None),
        ("__Host-spaces-x=1", None),
        ("=spaces-session=1", None),
        ("my-spaces-session=1", "my-spaces-session=1"),
    ],
)
def test_cookies_that_apps_set(sent: str, kept: str | None) -> None:
    lines = [line.decode().removeprefix("Set-Cookie: ").rstrip() for line in app_set_cookies([sent.encode()])]
    assert lines == ([] if kept is None else [kept])


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b"a=1", b"Cookie: a=1\r\n"),
        (b"spaces-session=1", b""),
        (b"a=1;spaces-session=1;b=2", b"Cookie: a=1; b=2\r\n"),
        (b" spaces-app-session = 1; a=b", b"Cookie: a=b\r\n"),
        (b"SPACES-SESSION=1; a=spaces-x", b"Cookie: a=spaces-x\r\n"),
        (b"__Host-spaces-session=1", b""),
    ],
)
def test_cookies_that_apps_get(sent: bytes, kept: bytes) -> None:
    assert app_cookies([sent]) == kept


def test_slow_headers_are_cut_counted_from_the_first_byte() -> None:
    async def scenario() -> None:
        async with platform(head_seconds=1.0, body_window=1.0, body_min_rate=1_000, idle_seconds=2.0) as p:
            await p.app(1)

            async def drip(first: bytes) -> tuple[bytes, float]:
                reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
                begin = time.monotonic()
                writer.write(first)
                reading = asyncio.create_task(reader.read(-1))
                while not reading.done():
                    writer.write(b"x")
                    await asyncio.sleep(0.05)
                writer.transport.abort()
                return reading.result(), time.monotonic() - begin

            async def good() -> int:
                count = 0
                while not slow.done():
                    assert (await p.get(HOST))[0] == 200
                    count += 1
                return count

            slow = asyncio.gather(
                *(drip(b"GET / HTTP/1.1\r\nX: ") for _ in range(60)),
                *(drip(b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 100000\r\n\r\n") for _ in range(20)),
            )
            count, answers = await asyncio.gather(good(), slow)
            assert count > 20
            for answer, seconds in answers:
                assert answer.startswith(b"HTTP/1.1 408"), answer
                assert 0.9 < seconds < 4.5
            reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
            assert await asyncio.wait_for(reader.read(-1), 5) == b""  # an idle one ends too
            writer.close()

    run(scenario())


def test_a_visitor_that_reads_nothing_is_cut() -> None:
    async def scenario() -> None:
        async with platform(write_stall_seconds=1.0) as p:
            await p.app(1, fixed(b"HTTP/1.1 200 OK\r\nContent-Length: 60000000\r\n\r\n" + b"x" * 60_000_000))
            _, writer = await asyncio.open_connection("127.0.0.1", p.port, limit=1024)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(b"GET / HTTP/1.1\r\n" + H + b"\r\n")
            await until(lambda: any(client.slow for client in p.gateway.clients), what="the visitor to fall behind")
            await until(lambda: not p.gateway.clients, 6, "the stalled visitor to be cut")
            writer.transport.abort()

    run(scenario())


def test_connections_are_capped_per_client_and_in_all() -> None:
    async def scenario() -> None:
        async with platform(max_connections_per_client=5, uncapped_clients=[]) as p:
            await p.app(1)
            writers = [(await asyncio.open_connection("127.0.0.1", p.port))[1] for _ in range(5)]
            await until(lambda: len(p.gateway.clients) == 5)
            assert (await p.raw(b"GET / HTTP/1.1\r\n" + H + b"\r\n")).startswith(b"HTTP/1.1 503")
            for writer in writers:
                writer.close()
            await until(lambda: not p.gateway.clients)
            assert (await p.get(HOST))[0] == 200
        async with platform(max_connections=16) as p:
            writers = [(await asyncio.open_connection("127.0.0.1", p.port))[1] for _ in range(16)]
            await until(lambda: len(p.gateway.clients) == 16)
            assert (await p.raw(b"")).startswith(b"HTTP/1.1 503")
            assert p.gateway.shed == 1

    run(scenario())


def test_clients_leave_nothing_behind() -> None:
    async def scenario() -> None:
        async with platform() as p:
            await p.app(1)
            await asyncio.gather(*(p.get(HOST, f"/{n}") for n in range(50)))
            await until(lambda: not p.gateway.clients)
            backend = p.gateway.backends()[0]
            assert (backend.active, backend.attached) == (0, 0)
            assert backend.requests == 50
            assert p.gateway._per_peer == {}
            assert Client.__dict__.get("__dict__") is None

    run(scenario())


@pytest.mark.parametrize("framing", ["length", "chunks"])
@pytest.mark.skipif(not hasattr(socket, "TCP_QUICKACK"), reason="needs Linux")
def test_an_app_that_waits_for_acknowledgements_is_not_kept_waiting(framing: str) -> None:
    """Head and body in two writes with Nagle's algorithm on: the kernel's delayed acknowledgement costs 40 ms each."""
    parts = [b"Content-Length: 5\r\n\r\n", b"hello"]
    if framing == "chunks":
        parts = [CHUNKED, b"5\r\nhello\r\n", b"0\r\n\r\n"]

    async def in_parts(app: App, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
        for part in (OK + parts[0], *parts[1:]):
            writer.write(part)
            await asyncio.sleep(0)
        return True

    async def scenario() -> None:
        async with platform() as p:
            app = await p.app(1, in_parts)
            reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
            times = []
            for _ in range(40):
                began = time.monotonic()
                writer.write(b"GET /x HTTP/1.1\r\n" + H + b"\r\n")
                await reader.readuntil(b"hello" if framing == "length" else b"0\r\n\r\n")
                times.append(time.monotonic() - began)
            assert app.connections == 1
            # The kernel itself acknowledges the first segments of a connection at once.
            assert sorted(times[20:])[10] < 0.02, times
            writer.transport.abort()

    run(scenario())
