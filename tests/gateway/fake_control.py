"""A whole small control plane for tests: route feed, wakes, activity, verdicts, and a page; it can fail on command."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

LINK_TOKEN = "link-secret"


class FakeControl:
    """Serves `/internal/gateway/*` and echoes everything else. All state is public, for assertions."""

    def __init__(self) -> None:
        self.entries: dict[int, dict[str, Any]] = {}
        self.version = 0
        self.wakes: list[int] = []
        self.reports: list[dict[str, Any]] = []
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.seen: list[tuple[bytes, dict[bytes, bytes]]] = []
        """Requests that came through the gateway, not over the link."""
        self.allow: Callable[[dict[str, Any]], bool] = lambda body: False
        self.sessions: dict[str, str] = {}
        """Code or sign -> session."""
        self.on_wake: Callable[[int], None] | None = None
        self.fail: int = 0
        """Status that every link call is answered with; 0: work."""
        self._folder = tempfile.TemporaryDirectory(prefix="control-")
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._feeds: set[asyncio.Queue[bytes]] = set()

    @property
    def address(self) -> str:
        return f"unix:{self._folder.name}/control.sock"

    async def start(self) -> None:
        """On a Unix socket, as the real one."""
        path = Path(self.address.removeprefix("unix:"))
        path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, path)

    async def kill(self) -> None:
        """Die: listeners and open connections end at once; state stays for a restart."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- routes
    def put(self, space: int, **fields: Any) -> None:
        """Add or change an entry, and tell every gateway."""
        self.version += 1
        base: dict[str, Any] = self.entries.get(space) or {
            "space": space, "name": f"user/app{space}", "title": f"App {space}", "emoji": "🚀",
            "hosts": [f"user-app{space}.localhost"], "redirects": [], "stage": "RUNNING", "message": "",
            "progress": None,
            "deployment": None, "endpoint": None,
            "wakeable": True, "public": True, "embed": True, "headers": {},
            "page": f"http://localhost:7860/spaces/user/app{space}", "retry_after": 0, "gone": False,
        }  # fmt: skip
        self.entries[space] = {**base, **fields, "version": self.version}
        self._tell(self.entries[space], {"version": self.version})

    def remove(self, space: int) -> None:
        self.put(space, gone=True)
        del self.entries[space]

    def _tell(self, *lines: dict[str, Any]) -> None:
        data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        for feed in self._feeds:
            feed.put_nowait(data)

    @property
    def applied(self) -> int:
        """The newest version that the gateway said it routes by."""
        return max((report["applied"] for report in self.reports), default=0)

    def rows(self, space: int) -> list[dict[str, Any]]:
        return [row for report in self.reports for row in report["spaces"] if row["space"] == space]

    # --- HTTP
    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                line, *rest = head[:-4].split(b"\r\n")
                target = line.split(b" ", 2)[1]
                fields = {k.lower(): v.strip() for k, _, v in (item.partition(b":") for item in rest)}
                body = await reader.readexactly(int(fields.get(b"content-length", b"0")))
                if not target.startswith(b"/internal/gateway/"):
                    self.seen.append((target, fields))
                    await self._page(writer, {"control": True, "target": target.decode("latin-1")})
                elif fields.get(b"authorization") != f"Bearer {LINK_TOKEN}".encode():
                    self._answer(writer, 401, {"error": "no"})
                elif self.fail:
                    self._answer(writer, self.fail, {"error": "failing on command"})
                elif target.startswith(b"/internal/gateway/routes"):
                    await self._feed(writer, int(target.split(b"after=")[1].split(b"&")[0]))
                else:
                    self._answer(writer, *self._call(target.rpartition(b"/")[2].decode(), json.loads(body)))
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the gateway closed, or this control plane was killed
        except asyncio.CancelledError:
            pass  # killed
        finally:
            self._writers.discard(writer)
            if task is not None:
                self._tasks.discard(task)
            writer.close()

    @staticmethod
    def _answer(writer: asyncio.StreamWriter, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        writer.write(
            b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (status, len(data), data)
        )

    @staticmethod
    async def _page(writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        """Head and body apart, as servers write them."""
        data = json.dumps(body).encode()
        writer.write(b"HTTP/1.1 200 X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data))
        await asyncio.sleep(0)
        writer.write(data)

    async def _feed(self, writer: asyncio.StreamWriter, after: int) -> None:
        feed: asyncio.Queue[bytes] = asyncio.Queue()
        known = [entry for entry in self.entries.values() if entry["version"] > after]
        last: dict[str, Any] = {"version": self.version}
        if after == 0:
            last["complete"] = True
        feed.put_nowait(b"".join(json.dumps(line).encode() + b"\n" for line in (*known, last)))
        self._feeds.add(feed)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while True:
                try:
                    data = await asyncio.wait_for(feed.get(), 2.0)
                except TimeoutError:
                    data = json.dumps({"version": self.version}).encode() + b"\n"
                writer.write(b"%x\r\n%b\r\n" % (len(data), data))
                await writer.drain()
        finally:
            self._feeds.discard(feed)

    def _call(self, name: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.asked.append((name, body))
        if name == "wake":
            for space in body["spaces"]:
                self.wakes.append(space)
                if self.on_wake is not None:
                    self.on_wake(space)
            return 202, {}
        if name == "activity":
            self.reports.append(body)
            return 200, {"ok": True}
        if name == "authorize":
            return 200, {"allow": self.allow(body)}
        if name == "exchange":
            session = self.sessions.pop(body.get("code") or body.get("sign") or "", None)
            return (200, {"session": session, "max_age": 60}) if session else (404, {"error": "unknown"})
        return 404, {"error": "unknown call"}
