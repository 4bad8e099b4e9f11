"""WebSockets: spliced, followed frame by frame, counted, and closed in an orderly way when a deployment is replaced."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from spaces_platform.gateway.websocket import FrameTracker, close_frame
from tests.gateway.harness import Platform, platform, run, until

HOST = "user-app1.localhost"


def frame(payload: bytes, opcode: int = 1, *, mask: bytes = b"", fin: bool = True) -> bytes:
    head = bytes(((0x80 if fin else 0) | opcode,))
    bit = 0x80 if mask else 0
    size = len(payload)
    if size < 126:
        head += bytes((bit | size,))
    elif size < 65_536:
        head += bytes((bit | 126,)) + size.to_bytes(2, "big")
    else:
        head += bytes((bit | 127,)) + size.to_bytes(8, "big")
    if mask:
        payload = bytes(byte ^ mask[i & 3] for i, byte in enumerate(payload))
    return head + mask + payload


@pytest.mark.parametrize(
    ("data", "active"),
    [
        (frame(b"hello"), True),
        (frame(b"hello", mask=b"abcd"), True),
        (frame(b"x" * 200), True),
        (frame(b"x" * 70_000, 2), True),
        (frame(b"", 9), False),
        (frame(b"are you there", 9, mask=b"abcd"), False),
        (frame(b"x" * 125, 10), False),
        (frame(b"\x03\xe8", 8), False),
        (frame(b"2"), False),
        (frame(b"3", mask=b"wxyz"), False),
        (frame(b"4"), True),
        (frame(b'{"type":"ping"}', mask=b"wxyz"), False),
        (frame(b'{"type":"sing"}', mask=b"wxyz"), True),
        (frame(b"", 1), True),
        (frame(b"", 9) + frame(b"2") + frame(b"data"), True),
        (frame(b"part", 1, fin=False) + frame(b"", 9) + frame(b"end", 0), True),
    ],
)
def test_what_counts_as_use(data: bytes, active: bool) -> None:
    whole = FrameTracker()
    assert whole.feed(data) is active
    assert whole.at_boundary
    piecewise = FrameTracker()
    found = [piecewise.feed(data[i : i + 1]) for i in range(len(data))]
    assert any(found) is active
    assert piecewise.at_boundary


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.binary(max_size=300), st.sampled_from([1, 2, 9, 10]), st.booleans()), min_size=1, max_size=6),
    st.lists(st.integers(1, 50), min_size=1),
)
def test_boundaries_are_found_however_the_bytes_are_cut(frames: list[tuple[bytes, int, bool]], cuts: list[int]) -> None:
    data, ends = b"", {0}
    for payload, opcode, masked in frames:
        data += frame(payload[:125] if opcode > 8 else payload, opcode, mask=b"k3y!" if masked else b"")
        ends.add(len(data))
    tracker = FrameTracker()
    position = number = 0
    while position < len(data):
        step = min(cuts[number % len(cuts)], len(data) - position)
        tracker.feed(data[position : position + step])
        position += step
        number += 1
        assert tracker.at_boundary is (position in ends)
    assert not tracker.broken


@pytest.mark.parametrize(
    "data", [b"\xf1\x00", b"\x83\x00", b"\x8b\x00", b"\x89\x7e\x00\xff", b"\x82\x7f" + b"\xff" * 8]
)
def test_bytes_that_are_no_frames_are_known_as_such(data: bytes) -> None:
    tracker = FrameTracker()
    tracker.feed(data)
    assert tracker.broken
    assert not tracker.at_boundary


def test_close_frames() -> None:
    assert close_frame(1012) == b"\x88\x02\x03\xf4"
    masked = close_frame(1012, masked=True)
    assert masked[:2] == b"\x88\x82"
    assert bytes(masked[6 + i] ^ masked[2 + i] for i in range(2)) == b"\x03\xf4"


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def socket_app(p: Platform, name: str = "one") -> tuple[Server, str, list[int | None]]:
    """An echo app that greets with its name and keeps the close codes it gets."""
    codes: list[int | None] = []

    async def talk(connection: ServerConnection) -> None:
        await connection.send(name)
        try:
            await echo(connection)
        finally:
            codes.append(connection.close_code)

    server = await serve(talk, "127.0.0.1", 0, ping_interval=None, max_size=None)
    return server, f"127.0.0.1:{server.sockets[0].getsockname()[1]}", codes


async def visit(p: Platform, path: str = "/ws", host: str = HOST) -> ClientConnection:
    return await connect(
        f"ws://{host}{path}", host="127.0.0.1", port=p.port, ping_interval=None, max_size=None, proxy=None
    )


def test_messages_pass_both_ways_and_count_as_attached() -> None:
    async def scenario() -> None:
        async with platform() as p:
            server, endpoint, _ = await socket_app(p)
            await p.route(1, endpoint=endpoint, deployment=1)
            async with await visit(p) as one:
                assert await one.recv() == "one"
                for message in ("hello", b"\0" * 200_000, "é" * 5_000):
                    await one.send(message)
                    assert await one.recv() == message
                await one.send(b"x" * (4 << 20))
                assert len(await one.recv()) == 4 << 20
                backend = p.gateway.backends()[0]
                assert (backend.active, backend.attached) == (0, 1)
                assert backend.requests == 1
                before = backend.last_active
                await (await one.ping())
                assert backend.last_active == before
                await one.send("work")
                await one.recv()
                assert backend.last_active > before
            await until(lambda: backend.attached == 0)
            await until(lambda: p.control.rows(1) and p.control.rows(1)[-1]["attached"] == 0)
            server.close()

    run(scenario())


def test_sockets_of_a_replaced_deployment_are_told_to_come_back() -> None:
    async def scenario() -> None:
        async with platform(websocket_spread_seconds=0.2) as p:
            old, old_endpoint, codes = await socket_app(p, "old")
            new, new_endpoint, _ = await socket_app(p, "new")
            await p.route(1, endpoint=old_endpoint, deployment=1)
            visitors = [await visit(p) for _ in range(10)]
            assert [await one.recv() for one in visitors] == ["old"] * 10
            await p.route(1, endpoint=new_endpoint, deployment=2)
            for one in visitors:
                with pytest.raises(ConnectionClosed):
                    await asyncio.wait_for(one.recv(), 3)
                assert one.close_code == 1012
            await until(lambda: codes == [1012] * 10, what="the app to see its sockets closed")
            async with await visit(p) as again:
                assert await again.recv() == "new"
            await until(lambda: p.control.applied == p.control.version)
            await until(lambda: [row for row in p.control.rows(1) if row["deployment"] == 1][-1]["attached"] == 0)
            await until(lambda: not p.gateway.retired)
            old.close()
            new.close()

    run(scenario())


def test_sockets_are_reported_until_they_are_told() -> None:
    """The control plane stops a replaced deployment once no row of it names one."""

    async def scenario() -> None:
        async with platform(websocket_spread_seconds=1.0) as p:
            old, old_endpoint, _ = await socket_app(p, "old")
            await p.route(1, endpoint=old_endpoint, deployment=1)
            visitors = [await visit(p) for _ in range(4)]
            await p.route(1, endpoint=None, deployment=None, stage="SLEEPING")
            await until(lambda: p.control.applied == p.control.version)
            rows = [row for row in p.control.rows(1) if row["deployment"] == 1]
            assert (rows[-1]["in_flight"], rows[-1]["sockets"] > 0) == (0, True)
            for one in visitors:
                await asyncio.wait_for(one.wait_closed(), 3)
                assert one.close_code == 1012
            await until(lambda: [r for r in p.control.rows(1) if r["deployment"] == 1][-1]["sockets"] == 0)
            old.close()

    run(scenario())


SWITCH = b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n"
UPGRADE = (
    f"GET /ws HTTP/1.1\r\nHost: {HOST}\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n"
    "Sec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n"
).encode()


def test_an_upgrade_under_way_during_a_swap_is_told_too() -> None:
    async def scenario() -> None:
        asked, agree = asyncio.Event(), asyncio.Event()

        async def handler(
            app: object, seen: object, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> bool:
            asked.set()
            await agree.wait()
            writer.write(SWITCH)
            await reader.read(-1)
            return False

        async with platform(websocket_spread_seconds=0) as p:
            await p.app(1, handler)
            reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
            writer.write(UPGRADE)
            await asked.wait()
            await p.app(1, deployment=99)
            agree.set()
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
            assert await asyncio.wait_for(reader.readexactly(4), 3) == b"\x88\x02\x03\xf4"
            rows = lambda: [r for r in p.control.rows(1) if r["deployment"] == 10]  # noqa: E731
            await until(lambda: rows() and rows()[-1]["sockets"] == 0)
            writer.close()

    run(scenario())


@pytest.mark.parametrize(("replaced", "heard"), [(True, b"\x88\x02\x03\xf4"), (False, b"")])
def test_an_app_that_ends_without_a_word(replaced: bool, heard: bytes) -> None:
    """Of a replaced version the gateway says it in its stead; of one that serves, the visitor must see the break."""

    async def scenario() -> None:
        async def handler(
            app: object, seen: object, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> bool:
            writer.write(SWITCH)
            await reader.read(-1)
            return False

        async with platform(websocket_spread_seconds=60) as p:
            app = await p.app(1, handler)
            pairs = [await asyncio.open_connection("127.0.0.1", p.port) for _ in range(2)]
            for reader, writer in pairs:
                writer.write(UPGRADE)
                await reader.readuntil(b"\r\n\r\n")
            if replaced:
                await p.app(1, deployment=99)
                # The first of the two is told at once, the second only after half the span.
                told = [r for r, _ in pairs if await until_closing(r)]
                assert len(told) == 1
                pairs = [(r, w) for r, w in pairs if r not in told]
            await app.stop()
            for reader, _ in pairs:
                assert await asyncio.wait_for(reader.read(-1), 3) == heard

    async def until_closing(reader: asyncio.StreamReader) -> bytes:
        try:
            async with asyncio.timeout(0.5):
                return await reader.read(4)
        except TimeoutError:
            return b""

    run(scenario())


def test_a_close_frame_never_lands_inside_another_frame() -> None:
    """The app has sent half a frame when its deployment is replaced."""

    async def handler(app: object, seen: object, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(
            b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n" + half[0]
        )
        await go.wait()
        writer.write(half[1])
        await writer.drain()
        await reader.read(-1)
        return False

    whole = frame(b"m" * 1_000)
    half = (whole[:300], whole[300:])

    async def scenario() -> None:
        global go
        go = asyncio.Event()
        async with platform(websocket_spread_seconds=0) as p:
            await p.app(1, handler)
            reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
            writer.write(
                f"GET /ws HTTP/1.1\r\nHost: {HOST}\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n"
                "Sec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
            )
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"Sec-WebSocket-Accept: x\r\n" in head
            assert await reader.readexactly(300) == half[0]
            await p.app(1, handler, deployment=99)
            await asyncio.sleep(0.05)
            go.set()
            assert await reader.readexactly(len(half[1])) == half[1]
            assert await reader.readexactly(4) == b"\x88\x02\x03\xf4"
            writer.write(frame(b"\x03\xf4", 8, mask=b"abcd"))
            assert await asyncio.wait_for(reader.read(-1), 5) == b""
            writer.close()

    run(scenario())


go: asyncio.Event


def test_a_reconnecting_tab_wakes_nothing() -> None:
    async def scenario() -> None:
        async with platform() as p:
            await p.route(1, stage="SLEEPING")
            for path in (
                "/_stcore/stream",
                "/_stcore/health",
                "/_stcore/host-config",
                "/gradio_api/heartbeat/x",
                "/heartbeat/x",
            ):
                status, fields, _ = await p.get(HOST, path)
                assert (status, "retry-after" in fields) == (503, True), path
            assert p.control.wakes == []
            assert p.gateway.waiting.held == 0

    run(scenario())


def test_a_heartbeat_is_attached_and_a_running_request_is_active() -> None:
    async def handler(app: object, seen: object, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: x\n\n")
        await writer.drain()
        await reader.read(1)
        return False

    async def scenario() -> None:
        async with platform() as p:
            await p.app(1, handler)
            writers = []
            for path in (
                "/gradio_api/heartbeat/abc",
                "/gradio_api/heartbeat/def",
                "/gradio_api/queue/data?session_hash=abc",
            ):
                reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
                writer.write(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
                await reader.readuntil(b"data: x\n\n")
                writers.append(writer)
            await until(lambda: p.control.rows(1))
            row = p.control.rows(1)[-1]
            assert (row["in_flight"], row["attached"]) == (1, 2)
            assert abs(row["last_active"] - time.time()) < 5
            for writer in writers:
                writer.close()
            await until(lambda: p.control.rows(1)[-1]["in_flight"] == p.control.rows(1)[-1]["attached"] == 0)

    run(scenario())
