"""The link to the control plane: route feed, wakes, activity, verdicts on private Spaces.

Owns: the calls and their repetition. Does not own: what they change (routes.py, waiting.py, activity.py).
Invariant: the gateway serves whatever this link's state; every loop here goes on for ever, with back-off, until it is
cancelled.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import TYPE_CHECKING, Any

import httpx

from spaces_platform.errors import Unavailable
from spaces_platform.gateway.config import split_address
from spaces_platform.gateway.routes import parse_entry

if TYPE_CHECKING:
    from spaces_platform.gateway.server import Gateway

_HEARTBEAT_SECONDS = 15.0
"""Three of the control plane's heartbeats; a feed silent for longer is dead."""
_CALL_SECONDS = 5.0
_BACK_OFF = (0.1, 5.0)
_LINE_MAX = 1 << 20
_COALESCE_SECONDS = 0.02
WAKES = 500
"""Spaces that one call wakes at most."""


class Link:
    """All calls to the control plane."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        config = gateway.config
        kind, host, port = split_address(config.control)
        transport = httpx.AsyncHTTPTransport(
            uds=host if kind == "unix" else None, limits=httpx.Limits(max_connections=64)
        )
        base = "http://control" if kind == "unix" else f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self._client = httpx.AsyncClient(
            transport=transport,
            base_url=base,
            headers={"Authorization": f"Bearer {config.link_token}"},
            timeout=httpx.Timeout(_CALL_SECONDS, read=_HEARTBEAT_SECONDS),
        )
        self._soon = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.connected = False
        """True while the route feed is open and complete."""
        self.failures = 0
        self.reported = 0
        """Route version named in the last report that arrived."""
        self._to_wake: dict[int, None] = {}
        self._waking = False
        self._all_due = True
        """The next report says everything: a control plane that has just started knows nothing, and one that knew an
        earlier process of this gateway believes in requests that ended with it."""

    def start(self) -> None:
        for work in (self._follow_routes(), self._report_activity()):
            self._keep(self._gateway.watched(work))

    async def stop(self) -> None:
        """Send what is left to report, once, and end."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            async with asyncio.timeout(1.0):
                await self._report_once()
        except (Unavailable, TimeoutError) as error:
            self._gateway.log("last_report_failed", error=str(error))
        await self._client.aclose()

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- routes
    async def _follow_routes(self) -> None:
        wait = _BACK_OFF[0]
        while True:
            began = time.monotonic()
            try:
                await self._read_feed()
                reason = "the feed ended"
            except (httpx.HTTPError, ValueError, KeyError, TypeError, Unavailable) as error:
                reason = f"{type(error).__name__}: {error}"
            if self.connected:
                self._gateway.log("control_lost", reason=reason, routes=len(self._gateway.table.entries))
            self.connected = False
            self.failures += 1
            wait = _BACK_OFF[0] if time.monotonic() - began > _BACK_OFF[1] else min(wait * 2, _BACK_OFF[1])
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))

    async def _read_feed(self) -> None:
        table = self._gateway.table
        params = {"after": str(table.version), "gateway": self._gateway.config.id}
        seen: set[int] = set()
        async with self._client.stream("GET", "/internal/gateway/routes", params=params) as response:
            if response.status_code != 200:
                raise Unavailable(f"the control plane answered {response.status_code} to the route feed")
            rest = b""
            async for data in response.aiter_raw():
                *lines, rest = (rest + data).split(b"\n")
                if len(rest) > _LINE_MAX:
                    raise ValueError("a line of the route feed is too long")
                for line in lines:
                    if line.strip():
                        self._line(json.loads(line), seen)
                if not self.connected:
                    self.connected = self._all_due = True
                    self.report_soon()
                    self._gateway.log("control_found", version=table.version, routes=len(table.entries))

    def _line(self, line: Any, seen: set[int]) -> None:
        gateway = self._gateway
        if not isinstance(line, dict):
            raise ValueError("a line of the route feed is not an object")
        if "space" not in line:
            if line.get("complete"):
                gateway.table.keep_only(seen)
            gateway.routes_at(int(line["version"]))
            return
        try:
            entry = parse_entry(line)
        except ValueError as error:
            # One entry that cannot be read must not keep the others from being served.
            gateway.log("route_refused", error=str(error))
            return
        seen.add(entry.space)
        gateway.table.apply(entry, gone=bool(line.get("gone")))

    # --- calls
    async def ask(self, call: str, body: dict[str, Any]) -> dict[str, Any]:
        """POST one call; its answer. Raises Unavailable, also for an answer that cannot be used."""
        try:
            response = await self._client.post(f"/internal/gateway/{call}", json=body, timeout=_CALL_SECONDS)
            if response.status_code >= 500 or response.status_code in (401, 403):
                raise Unavailable(f"The control plane answered {response.status_code} to {call}.")
            answer = response.json() if response.content else {}
        except (httpx.HTTPError, ValueError) as error:
            raise Unavailable("The platform cannot be asked right now; try again in a moment.") from error
        return answer if isinstance(answer, dict) and response.status_code < 400 else {}

    def wake(self, space: int) -> None:
        """Tell the control plane that somebody waits for a Space; a wake that is lost is repeated by waiting.py.

        One call at a time: Spaces that are visited meanwhile are woken by the next, all together.
        """
        self._to_wake[space] = None
        if not self._waking:
            self._waking = True
            self._keep(asyncio.get_running_loop().create_task(self._send_wakes()))

    async def _send_wakes(self) -> None:
        try:
            while spaces := list(self._to_wake)[:WAKES]:
                for space in spaces:
                    del self._to_wake[space]
                try:
                    await self.ask("wake", {"spaces": spaces})
                except Unavailable as error:
                    self._gateway.log("wake_failed", spaces=spaces, error=error.message)
        finally:
            self._waking = False

    # --- activity
    def report_soon(self) -> None:
        """Report now instead of at the next second."""
        self._soon.set()

    async def _report_activity(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._gateway.config.activity_seconds):
                    await self._soon.wait()
                await asyncio.sleep(_COALESCE_SECONDS)
            except TimeoutError:
                pass  # the regular report is due
            self._soon.clear()
            try:
                await self._report_once()
            except Unavailable:
                await asyncio.sleep(self._gateway.config.activity_seconds)

    async def _report_once(self) -> None:
        gateway = self._gateway
        applied = gateway.table.version
        everything = self._all_due
        if everything:
            gateway.activity.restore({b for b in gateway.backends() if b.active or b.attached})
        touched = set(gateway.activity.touched)
        if not touched and applied == self.reported and not everything:
            return
        body = {"gateway": gateway.config.id, "applied": applied, "full": everything, "spaces": gateway.activity.rows()}
        self._all_due = False
        try:
            await self.ask("activity", body)
        except Unavailable:
            gateway.activity.restore(touched)
            self._all_due = self._all_due or everything
            raise
        self.reported = applied
        gateway.reported(touched)
