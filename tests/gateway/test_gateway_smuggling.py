"""Request smuggling (RFC 9112 11.2): what an app sees is what was intended, or nothing and a refusal.

Every row is sent raw on its own connection. `REFUSED` rows must be answered with that status, close the connection
and reach no app; `PASSED` rows must reach the app as exactly the listed (request line, body) pairs.
"""

from __future__ import annotations

import asyncio
import random

import h11
import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spaces_platform.gateway.grammar import ChunkedBody, Refused, parse_request, parse_response
from tests.gateway.harness import App, platform, read_all, run

H = b"Host: user-app1.localhost\r\n"
GET = b"GET /ok HTTP/1.1\r\n" + H
POST = b"POST /p HTTP/1.1\r\n" + H
SMUGGLED = b"GET /smuggled HTTP/1.1\r\n" + H + b"\r\n"
CHUNK = b"Transfer-Encoding: chunked\r\n"

REFUSED: list[tuple[str, int, bytes]] = [
    # --- two lengths
    ("cl and te", 400, POST + b"Content-Length: 4\r\n" + CHUNK + b"\r\n0\r\n\r\n" + SMUGGLED),
    ("te and cl", 400, POST + CHUNK + b"Content-Length: 4\r\n\r\n0\r\n\r\n" + SMUGGLED),
    ("te and cl zero", 400, POST + CHUNK + b"Content-Length: 0\r\n\r\n0\r\n\r\n"),
    ("two different cl", 400, POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"),
    ("two equal cl", 400, POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello"),
    ("cl list", 400, POST + b"Content-Length: 5, 5\r\n\r\nhello"),
    ("cl list differing", 400, POST + b"Content-Length: 5,6\r\n\r\nhello!"),
    ("two te", 400, POST + CHUNK + CHUNK + b"\r\n0\r\n\r\n"),
    ("two te, second identity", 400, POST + CHUNK + b"Transfer-Encoding: identity\r\n\r\n0\r\n\r\n"),
    ("cl twin with underscore", 400, POST + b"Content-Length: 5\r\nContent_Length: 50\r\n\r\nhello"),
    ("te twin with underscore", 400, POST + b"Transfer_Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"),
    # --- content-length that is no plain number
    *[
        (f"cl {value!r}", 400, POST + b"Content-Length: " + value + b"\r\n\r\nhello" + SMUGGLED)
        for value in (
            b"+5", b"-5", b"0x5", b"5.0", b"5e0", b"", b"5 5", b"1_0", b"\xb2", b"99999999999999999999", b"5;5", b'"5"',
        )
    ],
    # --- transfer codings other than exactly chunked
    *[
        (f"te {value!r}", 400, POST + b"Transfer-Encoding: " + value + b"\r\n\r\n0\r\n\r\n" + SMUGGLED)
        for value in (
            b"identity", b"gzip, chunked", b"chunked, identity", b"chunked, chunked", b"xchunked", b"chunkedx",
            b'"chunked"',
            b"chunked;q=1",
            b"x, chunked", b",chunked", b"chunked,", b"cow", b"", b"chu\xffnked", b"deflate",
        )
    ],
    ("te in http/1.0", 400, b"POST /p HTTP/1.0\r\n" + H + CHUNK + b"\r\n0\r\n\r\n"),
    # --- field syntax
    ("space before colon", 400, POST + b"Content-Length : 5\r\n\r\nhello"),
    ("tab before colon", 400, POST + b"Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n"),
    ("folded field", 400, GET + b"X-A: 1\r\n 2\r\n\r\n"),
    ("folded te", 400, POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"),
    ("field without colon", 400, GET + b"garbage\r\n\r\n"),
    ("empty name", 400, GET + b": x\r\n\r\n"),
    ("space in name", 400, GET + b"X A: 1\r\n\r\n"),
    ("leading space in first field", 400, b"GET / HTTP/1.1\r\n Host: user-app1.localhost\r\n\r\n"),
    ("nul in value", 400, GET + b"X-A: a\0b\r\n\r\n"),
    ("nul in name", 400, GET + b"X\0A: a\r\n\r\n"),
    ("bell in value", 400, GET + b"X-A: a\x07b\r\n\r\n"),
    ("del in value", 400, GET + b"X-A: a\x7fb\r\n\r\n"),
    ("bare cr in value", 400, GET + b"X-A: a\rX-B: b\r\n\r\n"),
    ("bare cr before te", 400, POST + b"X: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("bare lf ends field", 400, GET + b"X-A: a\nX-B: b\r\n\r\n"),
    ("bare lf ends head", 400, b"GET / HTTP/1.1\nHost: user-app1.localhost\n\n"),
    ("lf lf after crlf fields", 400, GET + b"\n" + SMUGGLED),
    ("cr cr lf", 400, GET + b"X-A: a\r\r\n\r\n"),
    ("non-ascii name", 400, GET + b"X-\xc3\xa9: a\r\n\r\n"),
    ("bracket in name", 400, GET + b"X[a]: a\r\n\r\n"),
    ("underscore forwarded", 400, GET + b"X_Forwarded_For: 1.2.3.4\r\n\r\n"),
    ("underscore token", 400, GET + b"X_HF_Authorization: Bearer hf_x\r\n\r\n"),
    # --- request line
    ("two spaces", 400, b"GET  / HTTP/1.1\r\n" + H + b"\r\n"),
    ("tab between", 400, b"GET\t/ HTTP/1.1\r\n" + H + b"\r\n"),
    ("space at end", 400, b"GET / HTTP/1.1 \r\n" + H + b"\r\n"),
    ("space in target", 400, b"GET /a b HTTP/1.1\r\n" + H + b"\r\n"),
    ("fragment in target", 400, b"GET /a#b HTTP/1.1\r\n" + H + b"\r\n"),
    ("nul in target", 400, b"GET /\0 HTTP/1.1\r\n" + H + b"\r\n"),
    ("non-ascii target", 400, b"GET /\xc3\xa9 HTTP/1.1\r\n" + H + b"\r\n"),
    ("no target", 400, b"GET HTTP/1.1\r\n" + H + b"\r\n"),
    ("http/0.9", 400, b"GET /\r\n\r\n"),
    ("lower-case version", 400, b"GET / http/1.1\r\n" + H + b"\r\n"),
    ("version 1.1.1", 400, b"GET / HTTP/1.1.1\r\n" + H + b"\r\n"),
    ("version 1.2", 505, b"GET / HTTP/1.2\r\n" + H + b"\r\n"),
    ("version 2.0", 505, b"GET / HTTP/2.0\r\n" + H + b"\r\n"),
    ("http/2 preface", 505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    ("version 11", 505, b"GET / HTTP/11\r\n" + H + b"\r\n"),
    ("method with bracket", 400, b"G(T / HTTP/1.1\r\n" + H + b"\r\n"),
    ("method too long", 400, b"A" * 40 + b" / HTTP/1.1\r\n" + H + b"\r\n"),
    ("leading space", 400, b" GET / HTTP/1.1\r\n" + H + b"\r\n"),
    ("leading empty line", 400, b"\r\nGET / HTTP/1.1\r\n" + H + b"\r\n"),
    ("relative target", 400, b"GET smuggled HTTP/1.1\r\n" + H + b"\r\n"),
    ("star with get", 400, b"GET * HTTP/1.1\r\n" + H + b"\r\n"),
    ("authority form", 400, b"GET user-app1.localhost:80 HTTP/1.1\r\n" + H + b"\r\n"),
    ("tls hello", 400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    # --- host
    ("no host", 400, b"GET / HTTP/1.1\r\n\r\n"),
    ("no host in 1.0", 400, b"GET / HTTP/1.0\r\n\r\n"),
    ("two hosts", 400, GET + b"Host: user-app2.localhost\r\n\r\n"),
    ("two equal hosts", 400, GET + H + b"\r\n"),
    ("empty host", 400, b"GET / HTTP/1.1\r\nHost: \r\n\r\n"),
    ("host with path", 400, b"GET / HTTP/1.1\r\nHost: user-app1.localhost/x\r\n\r\n"),
    ("host with user", 400, b"GET / HTTP/1.1\r\nHost: a@user-app1.localhost\r\n\r\n"),
    ("host with space", 400, b"GET / HTTP/1.1\r\nHost: user-app1.localhost x\r\n\r\n"),
    ("host list", 400, b"GET / HTTP/1.1\r\nHost: user-app1.localhost, b\r\n\r\n"),
    ("host with bad port", 400, b"GET / HTTP/1.1\r\nHost: user-app1.localhost:http\r\n\r\n"),
    ("host with port 65536", 400, b"GET / HTTP/1.1\r\nHost: user-app1.localhost:65536\r\n\r\n"),
    ("host non-ascii", 400, b"GET / HTTP/1.1\r\nHost: user-\xc3\xa4pp1.localhost\r\n\r\n"),
    ("absolute form disagrees", 400, b"GET http://user-app2.localhost/ HTTP/1.1\r\n" + H + b"\r\n"),
    ("absolute form with user", 400, b"GET http://x@user-app1.localhost/ HTTP/1.1\r\n" + H + b"\r\n"),
    ("absolute form with other port", 400, b"GET http://user-app1.localhost:1/ HTTP/1.1\r\n" + H + b"\r\n"),
    ("ftp target", 400, b"GET ftp://user-app1.localhost/ HTTP/1.1\r\n" + H + b"\r\n"),
    # --- methods and expectations
    ("connect", 400, b"CONNECT user-app1.localhost:443 HTTP/1.1\r\n" + H + b"\r\n"),
    ("other expectation", 417, POST + b"Expect: 200-ok\r\nContent-Length: 0\r\n\r\n"),
    ("two authorizations", 400, GET + b"Authorization: Basic a\r\nAuthorization: Basic b\r\n\r\n"),
    ("websocket with body", 400, POST + b"Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n\r\nabc"),
    # --- sizes
    ("too many fields", 431, GET + b"".join(b"X-%d: 1\r\n" % n for n in range(101)) + b"\r\n"),
    ("too large head", 431, GET + b"X-A: " + b"a" * 40_000 + b"\r\n\r\n"),
    ("too large head without end", 431, GET + b"X-A: " + b"a" * 40_000),
    ("too long target", 414, b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n" + H + b"\r\n"),
]  # fmt: skip

BAD_CHUNKS: list[tuple[str, bytes]] = [
    ("no size", b"\r\nhello\r\n0\r\n\r\n"),
    ("signed size", b"+5\r\nhello\r\n0\r\n\r\n"),
    ("negative size", b"-5\r\nhello\r\n0\r\n\r\n"),
    ("0x size", b"0x5\r\nhello\r\n0\r\n\r\n"),
    ("leading space", b" 5\r\nhello\r\n0\r\n\r\n"),
    ("trailing space", b"5 \r\nhello\r\n0\r\n\r\n"),
    ("not hex", b"g\r\nhello\r\n0\r\n\r\n"),
    ("underscore", b"1_0\r\n0123456789abcdef\r\n0\r\n\r\n"),
    ("size overflow", b"10000000000000005\r\nhello\r\n0\r\n\r\n"),
    ("bare lf after size", b"5\nhello\r\n0\r\n\r\n"),
    ("bare cr after size", b"5\rhello\r\n0\r\n\r\n"),
    ("lf in extension", b"5;a\nb\r\nhello\r\n0\r\n\r\n"),
    ("cr in extension", b"5;a\rb\r\nhello\r\n0\r\n\r\n"),
    ("nul in extension", b"5;a\0\r\nhello\r\n0\r\n\r\n"),
    ("extension too long", b"5;" + b"a" * 300 + b"\r\nhello\r\n0\r\n\r\n"),
    ("endless extension", b"5;" + b"a" * 3_000),
    ("wrong terminator", b"5\r\nhelloXX0\r\n\r\n"),
    ("bare lf after data", b"5\r\nhello\n0\r\n\r\n"),
    ("too short data", b"6\r\nhello\r\n0\r\n\r\n"),
    ("too long data", b"4\r\nhello\r\n0\r\n\r\n"),
    ("trailer with space before colon", b"0\r\nX : 1\r\n\r\n"),
    ("folded trailer", b"0\r\nX: 1\r\n 2\r\n\r\n"),
    ("trailer with bare lf", b"0\r\nX: 1\nY: 2\r\n\r\n"),
    ("trailer without colon", b"0\r\nGET / HTTP/1.1\r\n\r\n"),
    ("trailers too large", b"0\r\n" + b"X: 1\r\n" * 3_000 + b"\r\n"),
]

PASSED: list[tuple[str, bytes, list[tuple[bytes, bytes]]]] = [
    ("plain", GET + b"\r\n", [(b"GET /ok HTTP/1.1", b"")]),
    ("get with a body", GET + b"Content-Length: 2\r\n\r\nhi", [(b"GET /ok HTTP/1.1", b"hi")]),
    ("cl with padding", POST + b"Content-Length:\t 5 \t\r\n\r\nhello", [(b"POST /p HTTP/1.1", b"hello")]),
    ("cl with leading zeros", POST + b"Content-Length: 005\r\n\r\nhello", [(b"POST /p HTTP/1.1", b"hello")]),
    ("chunked", POST + CHUNK + b"\r\n5\r\nhello\r\n0\r\n\r\n", [(b"POST /p HTTP/1.1", b"hello")]),
    (
        "chunked, capitals",
        POST + b"TRANSFER-ENCODING: ChUnKeD\r\n\r\nA\r\n0123456789\r\n0\r\n\r\n",
        [(b"POST /p HTTP/1.1", b"0123456789")],
    ),
    ("chunk extension", POST + CHUNK + b"\r\n5;a=b\r\nhello\r\n0\r\n\r\n", [(b"POST /p HTTP/1.1", b"hello")]),
    (
        "leading zeros in a chunk",
        POST + CHUNK + b"\r\n0005\r\nhello\r\n0000\r\n\r\n",
        [(b"POST /p HTTP/1.1", b"hello")],
    ),
    (
        "trailers are left out",
        POST + CHUNK + b"\r\n5\r\nhello\r\n0\r\nContent-Length: 9\r\nHost: x\r\n\r\n",
        [(b"POST /p HTTP/1.1", b"hello")],
    ),
    ("two pipelined", GET + b"\r\n" + SMUGGLED, [(b"GET /ok HTTP/1.1", b""), (b"GET /smuggled HTTP/1.1", b"")]),
    (
        "body looks like a request",
        POST + b"Content-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
        [(b"POST /p HTTP/1.1", SMUGGLED)],
    ),
    (
        "chunk looks like a request",
        POST + CHUNK + b"\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED),
        [(b"POST /p HTTP/1.1", SMUGGLED)],
    ),
    (
        "pipelined behind a body",
        POST + b"Content-Length: 3\r\n\r\nabc" + GET + b"\r\n" + POST + CHUNK + b"\r\n1\r\nx\r\n0\r\n\r\n" + SMUGGLED,
        [
            (b"POST /p HTTP/1.1", b"abc"),
            (b"GET /ok HTTP/1.1", b""),
            (b"POST /p HTTP/1.1", b"x"),
            (b"GET /smuggled HTTP/1.1", b""),
        ],
    ),
    (
        "absolute form that agrees",
        b"GET http://user-app1.localhost/a?b HTTP/1.1\r\n" + H + b"\r\n",
        [(b"GET /a?b HTTP/1.1", b"")],
    ),
    (
        "absolute form without path",
        b"GET http://user-app1.localhost?b HTTP/1.1\r\n" + H + b"\r\n",
        [(b"GET /?b HTTP/1.1", b"")],
    ),
    ("options star", b"OPTIONS * HTTP/1.1\r\n" + H + b"\r\n", [(b"OPTIONS * HTTP/1.1", b"")]),
    (
        "odd bytes in the path",
        b"GET /%00/../a//b/%2e?x=[]{}| HTTP/1.1\r\n" + H + b"\r\n",
        [(b"GET /%00/../a//b/%2e?x=[]{}| HTTP/1.1", b"")],
    ),
    ("own method", b"PROPFIND /dav HTTP/1.1\r\n" + H + b"\r\n", [(b"PROPFIND /dav HTTP/1.1", b"")]),
    ("http/1.0", b"GET /old HTTP/1.0\r\n" + H + b"\r\n", [(b"GET /old HTTP/1.1", b"")]),
    (
        "h2c upgrade is not passed on",
        GET
        + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n",
        [(b"GET /ok HTTP/1.1", b"")],
    ),
    (
        "connection cannot name framing",
        POST + b"Connection: content-length\r\nContent-Length: 2\r\n\r\nhi",
        [(b"POST /p HTTP/1.1", b"hi")],
    ),
    (
        "unknown upgrade is not passed on",
        GET + b"Connection: upgrade\r\nUpgrade: tls/1.0\r\n\r\n",
        [(b"GET /ok HTTP/1.1", b"")],
    ),
    ("bare post", POST + b"\r\n", [(b"POST /p HTTP/1.1", b"")]),
]


def test_the_matrix_is_large_enough() -> None:
    names = [row[0] for row in REFUSED] + [row[0] for row in BAD_CHUNKS] + [row[0] for row in PASSED]
    assert len(names) >= 120, len(names)
    assert len(REFUSED) == len({row[0] for row in REFUSED})


def test_refused_requests_reach_no_app() -> None:
    async def scenario() -> None:
        async with platform() as p:
            app = await p.app(1)

            async def one(name: str, status: int, data: bytes) -> None:
                answer = await p.raw(data)
                assert answer.startswith(b"HTTP/1.1 %d " % status), f"{name}: {answer[:60]!r}"
                assert answer.count(b"Content-Type:") == 1, f"{name}: {answer!r}"
                assert b"Connection: close" in answer, name

            await asyncio.gather(*(one(*row) for row in REFUSED))
            assert [seen.line for seen in app.seen] == []

    run(scenario())


def test_bad_chunks_end_the_exchange_and_smuggle_nothing() -> None:
    async def scenario() -> None:
        async with platform() as p:
            app = await p.app(1)

            async def one(number: int, name: str, data: bytes) -> None:
                answer = await p.raw(
                    b"POST /c%d HTTP/1.1\r\n" % number + H + CHUNK + b"\r\n", data + SMUGGLED, pause=0.01
                )
                status = answer[9:12]
                assert status in (b"400", b"431"), f"{name}: {answer[:60]!r}"
                assert answer.count(b"HTTP/1.1 ") == 1, name

            await asyncio.gather(*(one(n, *row) for n, row in enumerate(BAD_CHUNKS)))
            assert not [seen.line for seen in app.seen if b"smuggled" in seen.line]
            assert not [seen for seen in app.seen if seen.body.endswith(b"0\r\n\r\n")]

    run(scenario())


@pytest.mark.parametrize("cut", [0, 1, 7])
def test_passed_requests_arrive_as_they_were_meant(cut: int) -> None:
    """`cut` 0: sent in one piece; otherwise in pieces of that many bytes' alternating sizes."""

    async def scenario() -> None:
        async with platform() as p:
            for name, data, wanted in PASSED:
                app = await p.app(1)
                pieces = [data[i : i + cut] for i in range(0, len(data), cut)] if cut else [data]
                reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
                for piece in pieces:
                    writer.write(piece)
                    await asyncio.sleep(0)
                answer = b""
                while answer.count(b"app1:") < len(wanted):
                    answer += await asyncio.wait_for(reader.read(65536), 3)
                writer.transport.abort()
                assert [(seen.line, seen.body) for seen in app.seen] == wanted, name
                for seen in app.seen:
                    names = [key.lower() for key, _ in seen.fields]
                    assert names.count(b"host") == 1, name
                    assert (b"content-length" in names) + (b"transfer-encoding" in names) <= 1, name
                    assert not {b"upgrade", b"http2-settings", b"connection", b"trailer", b"te"} & set(names), name

    run(scenario(), 60)


def test_two_apps_never_share_a_connection() -> None:
    async def scenario() -> None:
        async with platform() as p:
            one, two = await p.app(1), await p.app(2)
            reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
            order = random.Random(5).choices((1, 2), k=40)
            for space in order:
                writer.write(b"GET /%d HTTP/1.1\r\nHost: user-app%d.localhost\r\n\r\n" % (space, space))
            answer = await read_all(reader)
            bodies = [part.partition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 ")[1:]]
            assert bodies == [b"app%d:/%d" % (space, space) for space in order]
            assert {seen.line for seen in one.seen} == {b"GET /1 HTTP/1.1"}
            assert {seen.line for seen in two.seen} == {b"GET /2 HTTP/1.1"}
            writer.close()

    run(scenario())


ANSWERS: list[tuple[str, bytes]] = [
    ("two lengths", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi!"),
    ("length and coding", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("other coding", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    ("bare lf", b"HTTP/1.1 200 OK\nContent-Length: 2\n\nhi"),
    ("folded", b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nhi"),
    ("nul", b"HTTP/1.1 200 OK\r\nX: a\0\r\nContent-Length: 2\r\n\r\nhi"),
    ("not http", b"hello there\r\n\r\n"),
    ("unasked switch", b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"),
    ("endless interim", b"HTTP/1.1 103 Early\r\n\r\n" * 40),
    ("huge head", b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000),
]


def test_malformed_answers_become_502_and_poison_the_connection() -> None:
    async def scenario() -> None:
        async with platform() as p:
            for name, data in ANSWERS:

                async def handler(
                    app: App,
                    seen: object,
                    reader: asyncio.StreamReader,
                    writer: asyncio.StreamWriter,
                    data: bytes = data,
                ) -> bool:
                    writer.write(data)
                    await writer.drain()
                    return True

                app = await p.app(1, handler)
                assert (await p.get("user-app1.localhost"))[0] == 502, name
                assert (await p.get("user-app1.localhost"))[0] == 502, name
                assert app.connections == 2, name

    run(scenario())


def test_bytes_behind_an_answer_reach_nobody() -> None:
    async def scenario() -> None:
        async def handler(app: App, seen: object, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
            )
            await writer.drain()
            return True

        async with platform() as p:
            app = await p.app(1, handler)
            answer = await p.raw(GET + b"\r\n" + GET + b"\r\n")
            assert answer.count(b"\r\n\r\nhi") == 2
            assert b"evil" not in answer
            assert app.connections == 2

    run(scenario())


# --- second opinions: whatever is accepted here, llhttp and h11 read in the same way

_tokens = st.sampled_from(
    [b"X-A", b"Content-Length", b"Transfer-Encoding", b"Connection", b"Host", b"Accept", b"x_y", b"X A", b""]
)
_values = st.sampled_from(
    [
        b"1",
        b"5",
        b" 5",
        b"5 ",
        b"chunked",
        b"a\tb",
        b"a.localhost",
        b"",
        b"close",
        b"\xff",
        b"a\0",
        b"a\rb",
        b"a\nb",
        b", 5",
    ]
)
_ends = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\r\n "])
_field = st.tuples(_tokens, st.sampled_from([b":"] * 8 + [b" :", b""]), _values, _ends).map(b"".join)
_heads = st.builds(
    lambda line, fields, end: line + b"Host: a.localhost\r\n" + b"".join(fields) + end,
    st.sampled_from(
        [
            b"GET / HTTP/1.1\r\n",
            b"POST /x?y HTTP/1.1\r\n",
            b"GET / HTTP/1.0\r\n",
            b"GET  / HTTP/1.1\r\n",
            b"GET /\xff HTTP/1.1\r\n",
        ]
    ),
    st.lists(_field, max_size=4),
    st.sampled_from([b"\r\n"] * 6 + [b"\n", b""]),
)


class _Llhttp:
    def __init__(self) -> None:
        self.fields: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        self.complete = True


@settings(max_examples=600, deadline=None)
@given(_heads)
def test_an_accepted_head_is_read_alike_by_other_parsers(data: bytes) -> None:
    try:
        request = parse_request(data, (32_768, 100, 16_384))
    except Refused:
        return
    if request is None:
        return
    ours = [(name.lower(), value.strip(b" \t")) for name, value in request.fields]
    llhttp = _Llhttp()
    parser = httptools.HttpRequestParser(llhttp)
    parser.feed_data(data[: request.size])
    assert llhttp.complete
    assert llhttp.fields == ours
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data[: request.size])
    event = connection.next_event()
    assert isinstance(event, h11.Request)
    assert [(bytes(k), bytes(v)) for k, v in event.headers] == ours
    assert (bytes(event.method), bytes(event.target)) == (request.method, request.target)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    st.lists(st.integers(1, 12), min_size=1, max_size=40),
    st.binary(max_size=20),
)
def test_a_chunked_body_is_the_same_however_it_is_cut(pieces: list[bytes], cuts: list[int], behind: bytes) -> None:
    data = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\nX: 1\r\n\r\n" + behind
    reader = ChunkedBody()
    content: list[bytes] = []
    rest = b""
    position = number = 0
    while position < len(data):
        step = cuts[number % len(cuts)]
        if reader.done:
            rest += data[position : position + step]
        else:
            found, left = reader.feed(data[position : position + step])
            content += found
            rest += left
        position += step
        number += 1
    assert reader.done
    assert b"".join(content) == b"".join(pieces)
    assert rest == behind


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_break_the_parsers(data: bytes) -> None:
    for parse in (
        lambda: parse_request(data, (200, 10, 100)),
        lambda: parse_response(data, b"GET", 200),
        lambda: ChunkedBody().feed(data),
    ):
        try:
            parse()
        except Refused as error:
            assert 400 <= error.status < 600  # noqa: PT017
