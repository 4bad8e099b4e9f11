"""What the gateway's tests share: a gateway in this loop beside a fake control plane, recording apps, raw exchanges."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import uvloop

from spaces_platform.gateway.config import GatewayConfig, parse
from spaces_platform.gateway.server import Gateway
from tests.gateway.fake_control import LINK_TOKEN, FakeControl

T = TypeVar("T")


def run(scenario: Coroutine[Any, Any, T], seconds: float = 30.0) -> T:
    """Run one scenario on the loop that the gateway uses."""

    async def bounded() -> T:
        async with asyncio.timeout(seconds):
            return await scenario

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(bounded())


async def until(condition: Callable[[], Any], seconds: float = 10.0, what: str = "") -> None:
    """Wait for a condition; fails with its description at the deadline."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what or condition}"
        await asyncio.sleep(0.005)


@dataclass
class Seen:
    """One request as an app saw it."""

    line: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes

    @property
    def names(self) -> dict[bytes, bytes]:
        return {name.lower(): value for name, value in self.fields}


Handler = Callable[["App", Seen, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bool]]


@dataclass
class App:
    """An upstream that records what it gets, byte by byte, and answers from a handler.

    A handler returns True to keep the connection.
    """

    handler: Handler | None = None
    name: str = "app"
    seen: list[Seen] = field(default_factory=list)
    raw: bytearray = field(default_factory=bytearray)
    connections: int = 0
    reuse: list[int] = field(default_factory=list)
    port: int = 0
    server: asyncio.Server | None = None
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> App:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=1 << 20)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        if self.server is not None:
            self.server.close()
            self.server = None
        for writer in list(self.writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.raw += head
                line, *rest = head[:-4].split(b"\r\n")
                fields = [(k, v.strip()) for k, _, v in (item.partition(b":") for item in rest)]
                seen = Seen(line, fields, b"")
                self.seen.append(seen)
                if self.handler is not None:
                    if not await self.handler(self, seen, reader, writer):
                        break
                    continue
                await self.read_body(seen, reader)
                body = b"%b:%b" % (self.name.encode(), line.split(b" ")[1])
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
                if not line.startswith(b"HEAD"):
                    writer.write(body)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the gateway closed its side
        finally:
            self.writers.discard(writer)
            writer.close()

    async def read_body(self, seen: Seen, reader: asyncio.StreamReader) -> None:
        """The whole body, in either framing."""
        names = seen.names
        if b"transfer-encoding" in names:
            size, pieces = -1, []
            while size:
                size = int((await reader.readuntil(b"\r\n")).strip(), 16)
                pieces.append(await reader.readexactly(size))
                assert await reader.readexactly(2) == b"\r\n"
            seen.body = b"".join(pieces)
        else:
            seen.body = await reader.readexactly(int(names.get(b"content-length", b"0")))
        self.raw += seen.body


@dataclass
class Platform:
    gateway: Gateway
    control: FakeControl
    port: int
    apps: list[App] = field(default_factory=list)

    async def app(self, space: int, handler: Handler | None = None, *, route: bool = True, **entry: Any) -> App:
        """Start an app and route a Space to it."""
        app = await App(handler, name=f"app{space}").start()
        self.apps.append(app)
        if route:
            await self.route(space, endpoint=app.endpoint, deployment=entry.pop("deployment", space * 10), **entry)
        return app

    async def route(self, space: int, **entry: Any) -> None:
        """Change an entry, and wait until the gateway has it."""
        self.control.put(space, **entry)
        await until(lambda: self.gateway.table.version == self.control.version, what="the route to arrive")

    async def raw(self, *data: bytes, pause: float = 0.0, end: bool = False) -> bytes:
        """Send bytes as they are; everything that comes back until the gateway closes or is silent for a while."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        for piece in data:
            writer.write(piece)
            await writer.drain()
            if pause:
                await asyncio.sleep(pause)
        if end:
            writer.write_eof()
        answer = await read_all(reader)
        writer.transport.abort()
        return answer

    async def get(
        self, host: str, target: str = "/", *fields: str, method: str = "GET"
    ) -> tuple[int, dict[str, str], bytes]:
        """One request on its own connection: status, fields, body."""
        lines = "".join(f"{item}\r\n" for item in fields)
        request = f"{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{lines}\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request.encode())
        data = await reader.read(-1)
        writer.transport.abort()
        return split_answer(data)


def split_answer(data: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = data.partition(b"\r\n\r\n")
    line, *rest = head.decode("latin-1").split("\r\n")
    fields = {k.lower(): v.strip() for k, _, v in (item.partition(":") for item in rest)}
    if fields.get("transfer-encoding") == "chunked":
        body = unchunk(body)
    return int(line.split(" ")[1]), fields, body


def unchunk(data: bytes) -> bytes:
    whole = b""
    while True:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            return whole
        whole += data[:length]
        data = data[length + 2 :]


async def read_all(reader: asyncio.StreamReader, silence: float = 0.3) -> bytes:
    """Until the end of the stream, or until nothing has come for a moment after something had."""
    data = b""
    while True:
        try:
            async with asyncio.timeout(silence if data else 3.0):
                piece = await reader.read(1 << 20)
        except TimeoutError:
            return data
        except ConnectionError:
            return data
        if not piece:
            return data
        data += piece


def config(control: FakeControl, **changes: Any) -> GatewayConfig:
    values: dict[str, Any] = {
        "control": control.address,
        "link_token": LINK_TOKEN,
        "listen": [{"host": "127.0.0.1", "port": 0, "loopback_only": True}],
        "activity_seconds": 0.1,
        "drain_seconds": 2.0,
    }
    return parse({**values, **changes})


@asynccontextmanager
async def platform(**changes: Any) -> AsyncIterator[Platform]:
    """A gateway in this loop with its control plane; ends everything it started."""
    control = FakeControl()
    await control.start()
    gateway = Gateway(config(control, **changes))
    await gateway.start()
    found = Platform(gateway, control, gateway.addresses[0][1])
    try:
        await until(lambda: gateway.link.connected, what="the gateway to find the control plane")
        yield found
    finally:
        await gateway.drain()
        for app in found.apps:
            await app.stop()
        await control.kill()
