"""Load for the gateway's benchmark, run as processes of their own: an open-loop generator, idle WebSockets, their app.

Each mode prints one JSON object as its last line. Standard library and uvloop only, so that the load costs little.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import cast

import uvloop


class Caller(asyncio.Protocol):
    """One kept-alive connection; `ask` sends a request, its time is noted when the whole answer is there."""

    def __init__(self, request: bytes, times: list[float]) -> None:
        self._request = request
        self._times = times
        self._due = 0.0
        self._left = -1
        self.free = True
        self.errors = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def ask(self, due: float) -> None:
        self.free = False
        self._due = due
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self._left < 0:
            head, _, rest = data.partition(b"\r\n\r\n")
            if b" 200 " not in head[:16]:
                self.errors += 1
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            self._left = length - len(rest)
        else:
            self._left -= len(data)
        if self._left == 0:
            self._left = -1
            self._times.append(time.perf_counter() - self._due)
            self.free = True


async def open_loop(host: str, port: int, path: str, rate: float, seconds: float) -> None:
    """Requests at fixed times, however slow the answers are: a late answer delays no later request's clock."""
    loop = asyncio.get_running_loop()
    request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept: */*\r\n\r\n".encode()
    times: list[float] = []
    callers = [(await loop.create_connection(lambda: Caller(request, times), "127.0.0.1", port))[1] for _ in range(50)]
    start = time.perf_counter() + 0.1
    late = 0
    for number in range(int(rate * seconds)):
        due = start + number / rate
        wait = due - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        caller = next((one for one in callers if one.free), None)
        if caller is None:
            late += 1
            continue
        # The timer's own lateness is the generator's, not the proxy's.
        caller.ask(time.perf_counter())
    await asyncio.sleep(0.3)
    times = sorted(times[len(times) // 10 :])
    found = {
        "times_ms": [round(one * 1e3, 4) for one in times],
        "requests": len(times),
        "missed": late,
        "errors": sum(one.errors for one in callers),
        "p50_ms": times[len(times) // 2] * 1e3,
        "p99_ms": times[int(len(times) * 0.99)] * 1e3,
    }
    print(json.dumps(found))


class SocketApp(asyncio.Protocol):
    """Agrees to every WebSocket and then says nothing."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"GET "):
            self.transport.write(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
            )


async def socket_app() -> None:
    server = await asyncio.get_running_loop().create_server(SocketApp, "127.0.0.1", 0, backlog=4_096)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    await server.serve_forever()


class Visitor(asyncio.Protocol):
    def __init__(self, request: bytes, opened: list[Visitor]) -> None:
        self._request = request
        self._opened = opened

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if b" 101 " in data[:16]:
            self._opened.append(self)


async def idle_sockets(host: str, port: int, count: int) -> None:
    """Open WebSockets, say how many are open, keep them until standard input ends."""
    loop = asyncio.get_running_loop()
    request = (
        f"GET /ws HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()
    opened: list[Visitor] = []
    for begin in range(0, count, 200):
        size = min(200, count - begin)
        await asyncio.gather(
            *(loop.create_connection(lambda: Visitor(request, opened), "127.0.0.1", port) for _ in range(size))
        )
        end = time.monotonic() + 20
        while len(opened) < begin + size and time.monotonic() < end:
            await asyncio.sleep(0.01)
    print(json.dumps({"open": len(opened)}), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


def main() -> None:
    mode, *rest = sys.argv[1:]
    if mode == "open-loop":
        uvloop.run(open_loop(rest[0], int(rest[1]), rest[2], float(rest[3]), float(rest[4])))
    elif mode == "socket-app":
        uvloop.run(socket_app())
    elif mode == "idle-sockets":
        uvloop.run(idle_sockets(rest[0], int(rest[1]), int(rest[2])))
    else:
        sys.exit(f"unknown mode {mode!r}")


if __name__ == "__main__":
    main()
