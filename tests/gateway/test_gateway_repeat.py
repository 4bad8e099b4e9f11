"""What is done once per connection is done as if it were done each time: repeated heads of visitors and of apps."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spaces_platform.gateway.grammar import Refused, Request, parse_request
from spaces_platform.gateway.hygiene import forwarded_lines, request_head
from spaces_platform.gateway.repeat import Repeat
from spaces_platform.gateway.routes import parse_entry
from tests.gateway.harness import App, Handler, Platform, Seen, platform, read_all, run, until
from tests.gateway.test_gateway_smuggling import PASSED, REFUSED

HOST = b"user-app1.localhost"
H = b"Host: " + HOST + b"\r\n"
GET = b"GET /warm HTTP/1.1\r\n" + H + b"\r\n"
LIMITS = (2_000, 20, 60)
ENTRY = parse_entry({"space": 1, "version": 1, "name": "user/app", "hosts": [], "stage": "RUNNING", "public": True})


class _NoBackend:
    def answers_for(self, entry: object) -> dict[bytes, Any]:
        return {}


def whole_way(data: bytes) -> tuple[Request, bytes] | None:
    """What grammar and hygiene make of `data`, where it is one whole request and nothing else."""
    try:
        request = parse_request(data, LIMITS)
    except Refused:
        return None
    if request is None or request.size != len(data):
        return None
    return request, request_head(request, forwarded_lines(b"10.0.0.1", request.host, b"http"), control=False)


_LINES = st.sampled_from(
    [
        b"Accept: */*\r\n", b"Cookie: a=b; spaces-app-session=s\r\n", b"Cookie: a=b\r\n",
        b"X-Forwarded-For: 1.2.3.4\r\n", b"Authorization: Bearer hf_x\r\n", b"Connection: keep-alive\r\n",
        b"Connection: close, x-a\r\n", b"X-A: 1\r\n", b"TE: trailers\r\n", b"Content-Length: 0\r\n", b"X_A: 1\r\n",
    ]
)  # fmt: skip
_TARGETS = st.one_of(
    st.sampled_from(
        [
            b"/", b"/a?b=c", b"/.spaces/events", b"/.spaces", b"//.spaces/x", b"http://user-app1.localhost/x", b"*",
            b"", b"/a b", b"/\xff", b"/#x", b"/" + b"a" * 59, b"/" + b"a" * 60, b"/x HTTP/1.1\r\nX-B: y", b"/x\r\n",
            b"/x HTTP/1.1\r\n" + H + b"\r\nGET /smuggled",
        ]
    ),
    st.binary(max_size=6).map(lambda tail: b"/" + tail),
)  # fmt: skip
_HEADS = st.builds(
    lambda method, target, version, lines: b"%b %b HTTP/%b\r\n%b%b\r\n" % (method, target, version, H, b"".join(lines)),
    st.sampled_from([b"GET", b"HEAD", b"POST", b"OPTIONS"]),
    _TARGETS,
    st.sampled_from([b"1.1", b"1.0"]),
    st.lists(_LINES, max_size=4, unique=True),
)


@settings(max_examples=1_500, deadline=None)
@given(_HEADS, _TARGETS, st.one_of(st.none(), st.tuples(st.integers(0, 400), st.binary(max_size=2))))
def test_what_is_recognised_is_what_the_whole_way_makes_of_it(
    first: bytes, target: bytes, damage: tuple[int, bytes] | None
) -> None:
    """The second head has another target, and perhaps some bytes put into it anywhere."""
    found = whole_way(first)
    if found is None or not Repeat.is_worth_it(found[0], ENTRY):
        return
    request, sent = found
    came = request.target
    repeat = Repeat(request, HOST, sent, LIMITS, ENTRY, cast(Any, _NoBackend()))
    second = first.replace(b" " + came + b" ", b" " + target + b" ", 1)
    if damage is not None:
        at = min(damage[0], len(second))
        second = second[:at] + damage[1] + second[at:]
    onward = repeat.onward(second)
    if onward is None:
        return
    whole = whole_way(second)
    assert whole is not None, second
    assert onward == whole[1]
    assert repeat.onward(second) == onward
    assert request.target == whole[0].target
    assert request.fields == whole[0].fields
    assert not request.target.startswith(b"/.spaces/")


@pytest.mark.parametrize("target", [b"/", b"/other?x=%20", b"/" + b"a" * 59])
def test_another_target_is_recognised(target: bytes) -> None:
    found = whole_way(GET)
    assert found is not None
    repeat = Repeat(found[0], HOST, found[1], LIMITS, ENTRY, cast(Any, _NoBackend()))
    second = GET.replace(b"/warm", target)
    whole = whole_way(second)
    assert whole is not None
    assert repeat.onward(second) == whole[1]


@pytest.mark.parametrize(
    ("data", "public"),
    [
        (GET, False),
        (GET.replace(H, H + b"Content-Length: 3\r\n"), True),
        (GET.replace(H, H + b"Transfer-Encoding: chunked\r\n"), True),
        (GET.replace(H, H + b"Connection: upgrade\r\nUpgrade: websocket\r\n"), True),
    ],
)
def test_what_depends_on_more_than_its_bytes_is_judged_each_time(data: bytes, public: bool) -> None:
    request = parse_request(data, (9_999, 20, 60))
    assert request is not None
    assert not Repeat.is_worth_it(request, dataclasses.replace(ENTRY, public=public))


def decisions(p: Platform) -> list[bytes]:
    """Grows with the target of every request that goes the whole way."""
    found: list[bytes] = []
    dispatch = p.gateway.dispatch
    handle = dispatch.handle

    def counted(client: Any, request: Request) -> None:
        found.append(request.target)
        handle(client, request)

    dispatch.handle = counted  # type: ignore[method-assign]
    return found


async def warm(p: Platform, request: bytes = GET) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection whose request has been repeated, until it is recognised."""
    reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
    for _ in range(3):
        writer.write(request)
        assert await read_all(reader, 0.02)
    return reader, writer


def test_a_repeated_request_is_judged_once() -> None:
    async def scenario() -> None:
        async with platform() as p:
            app = await p.app(1)
            whole = decisions(p)
            reader, writer = await warm(p)
            writer.write(GET.replace(b"/warm", b"/else?where"))
            assert (await read_all(reader, 0.05)).endswith(b"app1:/else?where")
            assert whole == [b"/warm", b"/warm"]
            assert [seen.line.split()[1] for seen in app.seen] == [b"/warm"] * 3 + [b"/else?where"]
            assert len({tuple(seen.fields) for seen in app.seen}) == 1
            assert app.connections == 1
            assert p.gateway.backends()[0].requests == 4
            writer.close()

    run(scenario())


def test_long_heads_are_not_kept() -> None:
    async def scenario() -> None:
        async with platform() as p:
            await p.app(1)
            whole = decisions(p)
            _reader, writer = await warm(p, GET.replace(H, H + b"X-A: %b\r\n" % (b"a" * 2_048)))
            assert len(whole) == 3
            (client,) = p.gateway.clients
            assert (client.relay._fields, client.relay._repeat) == (b"", None)
            writer.close()

    run(scenario())


def test_the_smuggling_matrix_on_a_connection_that_is_recognised() -> None:
    async def scenario() -> None:
        async with platform() as p:
            app = await p.app(1)

            async def refused(name: str, status: int, data: bytes) -> None:
                reader, writer = await warm(p)
                writer.write(data)
                answer = await read_all(reader)
                assert answer.startswith(b"HTTP/1.1 %d " % status), f"{name}: {answer[:60]!r}"
                assert answer.count(b"Content-Type:") == 1, name
                writer.transport.abort()

            await asyncio.gather(*(refused(*row) for row in REFUSED))
            assert {seen.line for seen in app.seen} == {b"GET /warm HTTP/1.1"}

    run(scenario(), 60)


def test_well_formed_requests_behind_a_recognised_one() -> None:
    async def scenario() -> None:
        async with platform() as p:
            for name, data, wanted in PASSED:
                app = await p.app(1)
                # The row's own head where it can be repeated, so that the row itself is what is recognised.
                first = data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
                repeats = first == data and b"HTTP/1.0" not in data
                reader, writer = await warm(p, first if repeats else GET)
                app.seen.clear()
                writer.write(data)
                answer = b""
                while answer.count(b"app1:") < len(wanted):
                    answer += await asyncio.wait_for(reader.read(65536), 3)
                writer.transport.abort()
                assert [(seen.line, seen.body) for seen in app.seen] == wanted, name

    run(scenario(), 60)


def test_a_changed_route_is_seen_by_the_next_request() -> None:
    async def scenario() -> None:
        async with platform() as p:
            old = await p.app(1)
            reader, writer = await warm(p)
            new = await p.app(1, deployment=2)
            new.name = "new"
            writer.write(GET)
            assert (await read_all(reader, 0.05)).endswith(b"new:/warm")
            assert len(old.seen) == 3
            for _ in range(3):
                writer.write(GET)
                await read_all(reader, 0.02)
            await p.route(1, headers={"X-Frame": "own"})
            for _ in range(3):
                writer.write(GET)
                assert b"\r\nX-Frame: own\r\n" in await read_all(reader, 0.05)
            await p.route(1, public=False)
            writer.write(GET)
            assert (await read_all(reader, 0.05)).startswith(b"HTTP/1.1 404 ")
            await p.route(1, public=True)
            writer.write(GET)
            assert (await read_all(reader, 0.05)).startswith(b"HTTP/1.1 200 ")
            p.control.remove(1)
            await until(lambda: not p.gateway.table.entries)
            writer.write(GET)
            assert (await read_all(reader, 0.05)).startswith(b"HTTP/1.1 404 ")
            writer.close()

    run(scenario())


def test_the_gateways_own_paths_and_heartbeats_are_told_apart_each_time() -> None:
    async def handler(app: App, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if b"heartbeat" in seen.line:
            await go.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        await writer.drain()
        return True

    async def scenario() -> None:
        global go
        go = asyncio.Event()
        async with platform() as p:
            app = await p.app(1, handler)
            reader, writer = await warm(p)
            writer.write(GET.replace(b"/warm", b"/.spaces/secret"))
            assert (await read_all(reader, 0.05)).startswith(b"HTTP/1.1 404 ")
            assert len(app.seen) == 3
            backend = p.gateway.backends()[0]
            writer.write(GET.replace(b"/warm", b"/gradio_api/heartbeat/x"))
            await until(lambda: len(app.seen) == 4)
            assert (backend.active, backend.attached) == (0, 1)
            go.set()
            await read_all(reader, 0.05)
            assert (backend.active, backend.attached) == (0, 0)
            writer.close()

    run(scenario())


go: asyncio.Event


def answers(*texts: bytes) -> Handler:
    """A handler that gives these answers, one after another, the last for ever."""
    left = list(texts)

    async def handler(app: App, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(left.pop(0) if len(left) > 1 else left[0])
        await writer.drain()
        return True

    return handler


HI = b"HTTP/1.1 200 OK\r\nX-A: 1\r\nContent-Length: 2\r\n\r\n"


def test_a_known_answer_is_the_same_as_a_new_one() -> None:
    """Every request of one connection gets what a connection of its own gets, whatever the app sent before."""
    rows = [
        HI + b"hi",
        HI + b"ho",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 103 Early\r\n\r\n" + HI + b"hi",
        b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b; Domain=localhost\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nConnection: x-a\r\nX-A: 1\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nX: %b\r\nContent-Length: 2\r\n\r\nhi" % (b"a" * 2_000),
    ]

    async def scenario() -> None:
        async with platform() as p:
            for row in rows:
                await p.app(1, answers(row))
                alone = await p.raw(GET)
                reader, writer = await warm(p)
                for number in range(3):
                    writer.write(GET)
                    assert await read_all(reader, 0.02) == alone
                    writer.write(GET.replace(H, H + b"X-N: %d\r\n" % number))
                    assert await read_all(reader, 0.02) == alone
                writer.close()

    run(scenario())


def test_a_visitor_of_another_kind_does_not_get_a_known_head() -> None:
    async def handler(app: App, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(HI if seen.line.startswith(b"HEAD") else HI + b"hi")
        await writer.drain()
        return True

    async def scenario() -> None:
        async with platform() as p:
            await p.app(1, handler)
            reader, writer = await warm(p)
            for line, end in ((b"HEAD /warm HTTP/1.1\r\n", b"\r\n\r\n"), (b"GET /warm HTTP/1.1\r\n", b"\r\n\r\nhi")):
                for _ in range(3):
                    writer.write(line + H + b"\r\n")
                    assert (await read_all(reader, 0.02)).endswith(end)
            old = b"GET /warm HTTP/1.0\r\n" + H + b"Connection: keep-alive\r\n\r\n"
            for _ in range(3):
                writer.write(old)
                assert b"\r\nConnection: keep-alive\r\n" in await read_all(reader, 0.02)
            writer.write(b"GET /warm HTTP/1.1\r\n" + H + b"Connection: close\r\n\r\n")
            assert b"\r\nConnection: close\r\n" in await read_all(reader)
            assert reader.at_eof()
            writer.close()

    run(scenario())


def test_bytes_behind_a_known_answer_reach_nobody() -> None:
    async def scenario() -> None:
        async with platform() as p:
            evil = HI + b"hiHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
            app = await p.app(1, answers(HI + b"hi", HI + b"hi", HI + b"hi", evil, HI + b"hi"))
            reader, writer = await warm(p)
            for _ in range(2):
                writer.write(GET)
                assert (await read_all(reader, 0.05)).endswith(b"\r\n\r\nhi")
            assert app.connections == 2  # the one with bytes out of turn was given up
            writer.close()

    run(scenario())


@pytest.mark.parametrize("cut", [1, 17, len(HI) - 1])
def test_a_known_head_that_comes_in_two_pieces_leaves_nothing_for_the_next_answer(cut: int) -> None:
    gateways: list[Platform] = []

    async def handler(app: App, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        answer, at = HI + b"hi", cut if len(app.seen) > 3 else 0
        if at:
            writer.write(answer[:at])
            (client,) = gateways[0].gateway.clients
            await until(lambda: client.up is not None and client.up._buffer == answer[:at], what="the first piece")
        writer.write(answer[at:])
        await writer.drain()
        return True

    async def scenario() -> None:
        async with platform() as p:
            gateways.append(p)
            app = await p.app(1, handler)
            reader, writer = await warm(p)
            for _ in range(3):
                writer.write(GET)
                assert await read_all(reader, 0.05) == HI + b"hi"
            assert app.connections == 1
            writer.close()

    run(scenario())


def test_a_gateway_that_drains_says_so_with_known_answers_too() -> None:
    async def scenario() -> None:
        async with platform() as p:
            held: list[asyncio.StreamWriter] = []

            async def handler(app: App, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
                if b"/held" in seen.line:
                    held.append(writer)
                    await go.wait()
                writer.write(HI + b"hi")
                await writer.drain()
                return True

            global go
            go = asyncio.Event()
            await p.app(1, handler)
            reader, writer = await warm(p)
            writer.write(GET.replace(b"/warm", b"/held"))
            await until(lambda: held)
            draining = asyncio.create_task(p.gateway.drain())
            await until(lambda: p.gateway.draining)
            go.set()
            answer = await reader.read(-1)
            assert b"\r\nConnection: close\r\n" in answer
            assert answer.endswith(b"\r\n\r\nhi")
            await draining
            writer.close()

    run(scenario())


def test_what_is_remembered_is_bounded() -> None:
    async def handler(app: App, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        app.connections += 1
        writer.write(b"HTTP/1.1 200 OK\r\nX-N: %d\r\nContent-Length: 2\r\n\r\nhi" % app.connections)
        await writer.drain()
        return True

    async def scenario() -> None:
        async with platform() as p:
            await p.app(1, handler)
            reader, writer = await warm(p)
            for number in range(60):
                writer.write(GET)
                head = await reader.readuntil(b"\r\n\r\n")
                assert b"X-N: %d\r\n" % (number + 5) in head
                await reader.readexactly(2)
            backend = p.gateway.backends()[0]
            entry = p.gateway.table.entries[1]
            assert 0 < len(backend.answers_for(entry)) <= 16
            writer.close()

    run(scenario())
