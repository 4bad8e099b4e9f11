"""Visitors in numbers: an open-loop prober, held-open WebSockets and long downloads, on one event loop in a thread.

And a single one whose request lasts until the test lets it go (`Held`).
Invariant of the prober: requests are sent when they were planned, whatever earlier ones do, and their time is counted
from then; a slow platform can therefore not hide by slowing its visitors down.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Outcome:
    """What visitors met."""

    sent: int = 0
    failed: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    texts: dict[str, int] = field(default_factory=dict)
    statuses: dict[int, int] = field(default_factory=dict)

    def quantile(self, share: float) -> float:
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def fetch(
    port: int, host: str, path: str = "/", timeout: float = 30.0, headers: str = ""
) -> tuple[int, dict[str, str], bytes]:
    """One GET on a connection of its own, read to its announced end. Raises OSError, EOFError, ValueError."""
    async with asyncio.timeout(timeout):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            fields = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:])}
            if "content-length" in fields:
                body = await reader.readexactly(int(fields["content-length"]))
            elif fields.get("transfer-encoding") == "chunked":
                body = b""
                while size := int(await reader.readuntil(b"\r\n"), 16):
                    body += await reader.readexactly(size)
                    await reader.readexactly(2)
            else:
                raise ValueError(f"an answer without a length: {head}")
            return int(head[0].split()[1]), fields, body
        finally:
            writer.close()


class Held:
    """A visitor whose request lasts until `release()`: its body comes slowly, and the app answers at the body's end."""

    def __init__(self, port: int, host: str) -> None:
        self.port, self.host = port, f"{host}:{port}"
        self.heard = ""
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def release(self) -> str:
        """Let it end. What it heard: the answer's body, or "cut"."""
        self._released.set()
        return self.end()

    def end(self) -> str:
        """Wait for its end."""
        self._thread.join(90)
        assert not self._thread.is_alive(), "a visitor still waits for an answer"
        return self.heard

    def _ask(self) -> None:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
                head = f"POST /held HTTP/1.1\r\nHost: {self.host}\r\nConnection: close\r\n"
                connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
                while True:
                    # Faster than what a gateway takes for an attack.
                    connection.sendall(b"800\r\n" + b"x" * 0x800 + b"\r\n")
                    if self._released.wait(0.5):
                        break
                connection.sendall(b"0\r\n\r\n")
                answer = b"".join(iter(lambda: connection.recv(65536), b""))
        except OSError:
            self.heard = "cut"
            return
        head, _, body = answer.partition(b"\r\n\r\n")
        self.heard = body.decode() if head.startswith(b"HTTP/1.1 200") else (head.decode("latin-1")[:300] or "cut")


class Crowd:
    """Visitors of one app, in a thread of their own. Use as a context manager; `outcome` is whole afterwards."""

    def __init__(self, port: int, host: str) -> None:
        self.port, self.host = port, f"{host}:{port}"
        self.outcome, self.sockets, self.downloads = Outcome(), Outcome(), Outcome()
        self._tasks: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def probe(self, rate: float, path: str = "/") -> Crowd:
        """`rate` requests a second, open loop."""
        self._tasks.append(lambda: self._probe(rate, path))
        return self

    def websockets(self, count: int, every: float = 0.1) -> Crowd:
        """Sockets that say something every so often, and open again when they are closed with 1012 (or 1001)."""
        self._tasks += [lambda: self._socket(every)] * count
        return self

    def download(self, count: int, pieces: int) -> Crowd:
        """Answers that take `pieces` tenths of a second, one after another."""
        self._tasks += [lambda: self._download(pieces)] * count
        return self

    def __enter__(self) -> Crowd:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(90)
        assert not self._thread.is_alive(), "visitors still wait for an answer"

    def _run(self) -> None:
        async def all_of_them() -> None:
            await asyncio.gather(*(task() for task in self._tasks))

        asyncio.run(all_of_them())

    async def _probe(self, rate: float, path: str) -> None:
        began, requests = time.monotonic(), set()
        while not self._stopping.is_set():
            planned = began + self.outcome.sent / rate
            await asyncio.sleep(max(0.0, planned - time.monotonic()))
            self.outcome.sent += 1
            task = asyncio.create_task(self._one(self.outcome, path, planned))
            requests.add(task)
            task.add_done_callback(requests.discard)
        await asyncio.gather(*requests)

    async def _download(self, pieces: int) -> None:
        while not self._stopping.is_set():
            self.downloads.sent += 1
            await self._one(self.downloads, f"/drip/{pieces}", time.monotonic(), whole=pieces)

    async def _one(self, outcome: Outcome, path: str, planned: float, whole: int = 1) -> None:
        try:
            status, _, body = await fetch(self.port, self.host, path)
        except (OSError, EOFError, ValueError, TimeoutError) as exc:
            outcome.failed.append(f"{path} {time.monotonic() - planned:.3f} s: {exc!r}")
            return
        outcome.seconds.append(time.monotonic() - planned)
        outcome.statuses[status] = outcome.statuses.get(status, 0) + 1
        text = body.decode("utf-8", "replace").strip()
        if status != 200 or len(text) % whole:
            outcome.failed.append(f"{path}: {status} {text[:200]!r}")
            return
        # A long answer must come from one version alone.
        first = text[: len(text) // whole]
        if first * whole != text:
            outcome.failed.append(f"{path}: mixed {text[:200]!r}")
        outcome.texts[first] = outcome.texts.get(first, 0) + 1

    async def _socket(self, every: float) -> None:
        while not self._stopping.is_set():
            self.sockets.sent += 1
            try:
                code = await self._conversation(every)
            except (OSError, EOFError, ValueError, TimeoutError) as exc:
                self.sockets.failed.append(f"socket: {exc!r}")
                await asyncio.sleep(0.2)
                continue
            self.sockets.statuses[code] = self.sockets.statuses.get(code, 0) + 1
            if code not in (0, 1001, 1012):
                self.sockets.failed.append(f"socket closed with {code}")

    async def _conversation(self, every: float) -> int:
        """Say and hear until told to stop (0) or closed (its code)."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(
                f"GET /ws HTTP/1.1\r\nHost: {self.host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
            )
            async with asyncio.timeout(30):
                head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 101"):
                raise ValueError(head.decode("latin-1")[:300])
            while not self._stopping.is_set():
                began, said = time.monotonic(), os.urandom(4)
                writer.write(b"\x82\x84\0\0\0\0" + said)
                async with asyncio.timeout(30):
                    first, size = await reader.readexactly(2)
                    heard = await reader.readexactly(size)
                if first & 15 == 8:
                    return int.from_bytes(heard[:2])
                text, _, echo = heard.partition(b":")
                if echo != said:
                    raise ValueError(f"said {said!r}, heard {heard!r}")
                self.sockets.seconds.append(time.monotonic() - began)
                self.sockets.texts[text.decode()] = self.sockets.texts.get(text.decode(), 0) + 1
                await asyncio.sleep(every)
            return 0
        finally:
            writer.close()
