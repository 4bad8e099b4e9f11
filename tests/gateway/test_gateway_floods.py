"""Floods of WebSockets and of slow connections: what one visitor or one app may take, and what the others notice."""

from __future__ import annotations

import asyncio
import resource
import time
from contextlib import AsyncExitStack

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import InvalidStatus

from spaces_platform.gateway.websocket import CONTROLS_PER_SECOND, FRAMES_PER_SECOND, FrameTracker
from tests.gateway.harness import App, Platform, Seen, platform, run, until
from tests.gateway.test_gateway_websockets import HOST, SWITCH, UPGRADE, frame, socket_app, visit

SECONDS = 60.0
BUFFERED = 2 << 20
"""More than one direction of a socket may ever keep: a read of uvloop's (256 KiB) beyond the high-water mark."""
PING = frame(b"", 9, mask=b"abcd")


# --- how many -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("most", "asking"), [(20, 60), pytest.param(2000, 3000, marks=pytest.mark.soak, id="thousands")]
)
def test_an_app_has_so_many_sockets_and_no_more_and_others_have_theirs(most: int, asking: int) -> None:
    async def scenario() -> None:
        async with platform(websockets_per_space=most) as p, AsyncExitStack() as stack:
            one, endpoint, _ = await socket_app(p)
            two, other_endpoint, _ = await socket_app(p)
            await p.route(1, endpoint=endpoint, deployment=1)
            await p.route(2, endpoint=other_endpoint, deployment=2)
            # All at once: more are let through to the app than may stay.
            asked = await asyncio.gather(*(visit(p) for _ in range(asking)), return_exceptions=True)
            open_ones = [found for found in asked if isinstance(found, ClientConnection)]
            for found in open_ones:
                stack.push_async_callback(found.close)
            refused = [found for found in asked if isinstance(found, InvalidStatus)]
            assert (len(open_ones), len(refused)) == (most, asking - most)
            assert {found.response.status_code for found in refused} == {429}
            backend = p.gateway.backends()[0]
            assert len(backend.sockets) == backend.attached == most
            with pytest.raises(InvalidStatus) as late:
                await visit(p)
            assert late.value.response.status_code == 429
            assert late.value.response.headers["retry-after"]
            assert backend.active == 0

            other = await visit(p, host=HOST.replace("app1", "app2"))
            stack.push_async_callback(other.close)
            assert await other.recv() == "one"
            await open_ones[0].close()
            await until(lambda: len(backend.sockets) == most - 1, SECONDS)
            again = await visit(p)
            stack.push_async_callback(again.close)
            assert await again.recv() == "one"
            one.close()
            two.close()

    run(scenario(), SECONDS)


# --- how much -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("data", "flooded"),
    [
        (PING * CONTROLS_PER_SECOND, False),
        (PING * (CONTROLS_PER_SECOND + 1), True),
        (frame(b"x", mask=b"abcd") * FRAMES_PER_SECOND, False),
        (frame(b"x", mask=b"abcd") * (FRAMES_PER_SECOND + 1), True),
        (frame(b"x" * (16 << 20), 2, mask=b"\0\0\0\0"), False),
    ],
)
def test_what_is_a_flood(data: bytes, flooded: bool) -> None:
    tracker, app = FrameTracker(limited=True), FrameTracker()
    tracker.feed(data)
    app.feed(data)
    assert tracker.flooded is flooded
    assert tracker.at_boundary is not flooded
    assert app.at_boundary
    tracker.new_second()
    tracker.feed(PING)
    assert tracker.flooded is flooded


def test_a_flood_is_looked_at_no_further_than_to_its_limit() -> None:
    looked = 0

    class Counted(FrameTracker):
        def _begin_frame(self) -> bool:
            nonlocal looked
            looked += 1
            return super()._begin_frame()

    Counted(limited=True).feed(PING * 50_000)
    assert looked == CONTROLS_PER_SECOND + 1


def test_a_ping_flood_ends_its_own_socket_and_no_other() -> None:
    async def scenario() -> None:
        async with platform() as p:
            server, endpoint, codes = await socket_app(p)
            await p.route(1, endpoint=endpoint, deployment=1)
            async with await visit(p) as good:
                assert await good.recv() == "one"
                for _ in range(3):
                    reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
                    writer.write(UPGRADE.replace(b"-Key: x", b"-Key: dGhlIHNhbXBsZSBub25jZQ=="))
                    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
                    writer.write(PING * 50_000)
                    await asyncio.wait_for(reader.readuntil(b"\x88\x02\x03\xf0"), SECONDS)  # 1008
                    writer.close()
                    await good.send("still here")
                    assert await asyncio.wait_for(good.recv(), SECONDS) == "still here"
                assert len(p.gateway.backends()[0].sockets) == 1
                await until(lambda: len(codes) == 3, SECONDS, "the app to see the floods end")
            server.close()

    run(scenario(), SECONDS)


def test_a_frame_of_16_mib_goes_on_before_it_is_whole() -> None:
    got = bytearray()

    async def handler(app: App, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(SWITCH)
        while data := await reader.read(1 << 20):
            got.extend(data)
        return False

    async def scenario() -> None:
        async with platform() as p:
            await p.app(1, handler)
            reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
            writer.write(UPGRADE)
            await reader.readuntil(b"\r\n\r\n")
            message = frame(bytes(16 << 20), 2, mask=b"abcd")
            half = len(message) // 2
            writer.write(message[:half])
            await until(lambda: len(got) == half, SECONDS, "the first half at the app")
            writer.write(message[half:])
            await until(lambda: len(got) == len(message), SECONDS, "the whole frame at the app")
            assert got == message
            writer.close()

    run(scenario(), SECONDS)


@pytest.mark.parametrize("who", ["app", "visitor"])
def test_who_never_reads_is_not_buffered_for(who: str) -> None:
    """The app never reads what its visitor sends, or the visitor never reads what its app sends."""

    async def handler(app: App, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(SWITCH)
        if who == "app":
            reader._transport.pause_reading()  # type: ignore[attr-defined]
            await asyncio.Event().wait()
        await send_without_end(writer, b"")
        return False

    async def scenario() -> None:
        async with platform(write_stall_seconds=1.0) as p:
            await p.app(1, handler)
            reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
            writer.write(UPGRADE)
            await reader.readuntil(b"\r\n\r\n")
            (client,) = p.gateway.clients
            if who == "visitor":
                reader._transport.pause_reading()  # type: ignore[attr-defined]
                await until(lambda: client.slow, SECONDS, "the visitor to fall behind")
                assert kept(p) < BUFFERED
                await until(lambda: not p.gateway.clients, SECONDS, "the visitor to be cut")
            else:
                sending = asyncio.create_task(send_without_end(writer, b"\0\0\0\0"))
                await until(lambda: client.not_reading, SECONDS, "the visitor to be kept waiting")
                assert kept(p) < BUFFERED
                sending.cancel()
            writer.transport.abort()

    run(scenario(), SECONDS)


async def send_without_end(writer: asyncio.StreamWriter, mask: bytes) -> None:
    message = frame(bytes(1 << 20), 2, mask=mask)
    try:
        while True:
            writer.write(message)
            await writer.drain()
    except OSError:
        return  # cut, as it should be


def kept(p: Platform) -> int:
    """Bytes that wait in the gateway for visitors and apps."""
    clients = list(p.gateway.clients)
    transports = [c.transport for c in clients] + [c.up.transport for c in clients if c.up is not None]
    return sum(t.get_write_buffer_size() for t in transports if not t.is_closing())


# --- slow connections ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "heads", [pytest.param(200, id="some"), pytest.param(2_000, id="thousands", marks=pytest.mark.soak)]
)
def test_slow_connections_are_cut_while_others_are_served(heads: int) -> None:
    """Headers and bodies that drip, and answers that nobody takes; beside them, every good request is answered."""
    slow_others = heads // 10

    async def handler(app: App, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if seen.line.startswith(b"GET /large"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n")
            await send_without_end(writer, b"")
            return False
        await app.read_body(seen, reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        return True

    async def drip(p: Platform, first: bytes, begun: asyncio.Event) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
        writer.write(first)
        begun.set()
        reading = asyncio.create_task(reader.read(-1))
        while not reading.done():
            writer.write(b"x")
            await asyncio.wait({reading}, timeout=0.5)
        writer.transport.abort()
        return reading.result()

    async def read_nothing(p: Platform) -> asyncio.StreamWriter:
        _, writer = await asyncio.open_connection("127.0.0.1", p.port, limit=1_024)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(f"GET /large HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        return writer

    async def scenario() -> None:
        allowed = 3.0 if heads < 1_000 else 10.0  # all must be there before the first is cut
        limits = {
            "head_seconds": allowed, "body_window": allowed, "body_min_rate": 1_000, "write_stall_seconds": allowed,
        }  # fmt: skip
        async with platform(**limits) as p:
            await p.app(1, handler)
            begun = asyncio.Event()
            head = b"GET / HTTP/1.1\r\nX: "
            upload = f"POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 100000\r\n\r\n".encode()
            slow = asyncio.gather(
                *(drip(p, head, begun) for _ in range(heads)), *(drip(p, upload, begun) for _ in range(slow_others))
            )
            silent = [await read_nothing(p) for _ in range(slow_others)]
            good: list[float] = []
            most = 0
            while not slow.done():
                start = time.monotonic()
                assert (await p.get(HOST))[0] == 200
                good.append(time.monotonic() - start)
                most = max(most, len(p.gateway.clients))
            assert most > heads, "they were not there together"
            assert len(good) > 10
            assert all(answer.startswith(b"HTTP/1.1 408") for answer in await slow)
            await until(lambda: not p.gateway.clients, SECONDS, "those who read nothing to be cut")
            for writer in silent:
                writer.transport.abort()
            assert (await p.get(HOST))[0] == 200

    room = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if room != resource.RLIM_INFINITY and room < 6 * heads:
        pytest.skip(f"{6 * heads} open files are needed, {room} are allowed (ulimit -Hn)")
    run(scenario(), 4 * SECONDS)
