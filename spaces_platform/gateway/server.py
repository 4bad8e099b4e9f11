"""The gateway process: listeners, the parts and how they meet, the clock, the orderly end.

Owns: sockets, life cycle, connection limits, backends by Space. Does not own: any decision about a request
(dispatch.py).
Invariant: exactly one live Backend per routed Space, at its entry's endpoint; every other one is retired and only
ends.
"""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from spaces_platform.errors import Unavailable
from spaces_platform.gateway.access import Access
from spaces_platform.gateway.activity import Activity
from spaces_platform.gateway.backend import Backend
from spaces_platform.gateway.config import GatewayConfig, Listen
from spaces_platform.gateway.dispatch import Dispatch
from spaces_platform.gateway.downstream import Client
from spaces_platform.gateway.grammar import Request
from spaces_platform.gateway.link import Link
from spaces_platform.gateway.metrics import serve_admin
from spaces_platform.gateway.phases import READ
from spaces_platform.gateway.routes import RouteEntry, RouteTable, write_snapshot
from spaces_platform.gateway.tls_ask import serve_tls_ask
from spaces_platform.gateway.waiting import Waiting
from spaces_platform.gateway.websocket import CLOSE_AWAY, CLOSE_RESTART

_BACKLOG = 4_096
_RESERVED_FILES = 256


class Gateway:
    """All parts of one gateway. Create it inside the running loop."""

    def __init__(self, config: GatewayConfig) -> None:
        self.config = config
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time
        self.scheme = config.scheme.encode()
        self.frame_ancestors = f"Content-Security-Policy: frame-ancestors 'self' {config.platform_origin}\r\n".encode()
        self.head_limits = config.head_limits
        self.has_proxies = bool(config.trusted_proxies)
        self.draining = False
        self.loopback_addresses = False
        """True when every 127.x.y.z address reaches this gateway."""
        self.addresses: list[tuple[str, int]] = []
        self.refused = 0
        self.shed = 0
        self.served = 0
        """Connections taken so far."""
        self.clients: set[Client] = set()
        self.max_connections = config.max_connections
        self.table = RouteTable(config.platform_hosts)
        self.table.changed = self._changed
        self.activity = Activity()
        self.link = Link(self)
        self.waiting = Waiting(config, self.now, self.link.wake)
        self.dispatch = Dispatch(self, Access(self.link.ask, self.now))
        self.control = self._new_backend(0, None, config.control)
        self._backends: dict[int, Backend] = {}
        self.retired: set[Backend] = set()
        self._per_peer: dict[bytes, int] = {}
        self._uncapped = [ipaddress.ip_network(n) for n in config.uncapped_clients]
        self._proxies = [ipaddress.ip_network(n) for n in config.trusted_proxies]
        self._in: dict[tuple[bytes, str], bool] = {}
        self._servers: list[asyncio.Server] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._saved = 0
        self._save: asyncio.Future[None] | None = None
        self._applied_changed = False

    def log(self, event: str, **data: Any) -> None:
        """One JSON line for an event that matters; never one per request."""
        print(
            json.dumps({"at": round(time.time(), 3), "part": "gateway", "event": event, **data}),
            file=sys.stderr,
            flush=True,
        )

    # --- life cycle
    async def start(self) -> None:
        """Load the snapshot, listen, and follow the control plane. Raises OSError when an address cannot be bound."""
        self._restore()
        self.max_connections = _fit_open_files(self.config.max_connections)
        for listen in self.config.listen:
            for sock in self._sockets(listen):
                server = await self._loop.create_server(lambda: Client(self), sock=sock, backlog=_BACKLOG)
                self._servers.append(server)
                self.addresses.append(sock.getsockname()[:2])
        if self.config.admin is not None:
            self._servers.append(await serve_admin(self, self.config.admin))
        if self.config.tls_ask is not None:
            self._servers.append(await serve_tls_ask(self, self.config.tls_ask))
        self.link.start()
        self._tasks.append(self.watched(self._tick()))
        gc.collect()
        gc.freeze()
        # The steady state makes no cycles; the default thresholds would walk every connection again and again.
        gc.set_threshold(20_000, 50, 100)
        self.log(
            "listening",
            addresses=[f"{host}:{port}" for host, port in self.addresses],
            loopback_addresses=self.loopback_addresses,
            routes=len(self.table.entries),
            max_connections=self.max_connections,
        )

    def watched(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that must never end by itself: if it does, the gateway drains and ends, to be started anew."""

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and task.exception() is not None:
                self.log("crashed", error=repr(task.exception()))
                os.kill(os.getpid(), signal.SIGTERM)

        task = self._loop.create_task(work)
        task.add_done_callback(ended)
        return task

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain."""
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, stop.set)
        await self.start()
        await stop.wait()
        await self.drain()

    async def drain(self) -> None:
        """Take no more connections, let running exchanges end (at most `drain_seconds`), close WebSockets, report."""
        self.draining = True
        self.log("draining", connections=len(self.clients))
        for server in self._servers:
            server.close()
        for client in list(self.clients):
            if client.tunnel is not None:
                client.tunnel.close(CLOSE_AWAY)
            if client.phase == READ:
                client.transport.close()
        for waiting in self.waiting.release_all():
            entry = self.table.entries.get(waiting.entry.space) if waiting.entry else None
            if entry is not None:
                self.dispatch.turn_away(waiting, entry)
        end = self.now() + self.config.drain_seconds
        while self.clients and self.now() < end:
            await asyncio.sleep(0.02)
        cut = len(self.clients)
        for client in list(self.clients):
            client.transport.abort()
        await asyncio.sleep(0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.link.stop()
        if self.config.snapshot is not None and self._saved != self.table.version:
            write_snapshot(Path(self.config.snapshot), self.table.dump())
        self.log("stopped", cut=cut)

    def _restore(self) -> None:
        if self.config.snapshot is None:
            return
        try:
            count = self.table.restore(Path(self.config.snapshot))
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.log("snapshot_unusable", path=self.config.snapshot, error=repr(error))
            self.table.version = 0
            return
        self._saved = self.table.version
        self.log("snapshot_loaded", routes=count, version=self.table.version)

    def _sockets(self, listen: Listen) -> list[socket.socket]:
        """The listening sockets of one `listen` item."""
        host = listen.host
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if listen.loopback_only and family == socket.AF_INET:
            host = "127.0.0.1"
            if sys.platform == "linux":
                try:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
                    host = "0.0.0.0"
                    self.loopback_addresses = True
                except OSError as error:
                    self.log("loopback_addresses_unavailable", error=str(error))
        try:
            sock.bind((host, listen.port))
        except OSError:
            sock.close()
            raise
        return [sock]

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            now = self.now()
            for client in list(self.clients):
                if not client.transport.is_closing():
                    client.check(now)
            for client in self.waiting.tick(self.table.entries.get):
                entry = client.entry
                if entry is not None:
                    self.dispatch.turn_away(client, self.table.entries.get(entry.space, entry))
            before = now - self.config.upstream_idle_seconds
            for backend in (self.control, *self._backends.values()):
                backend.expire(before)
            self._save_snapshot()

    def _save_snapshot(self) -> None:
        """Write the table in a thread when it has changed and no write is running."""
        if self.config.snapshot is None or self._saved == self.table.version or (self._save and not self._save.done()):
            return
        version, path = self.table.version, Path(self.config.snapshot)

        def done(future: asyncio.Future[None]) -> None:
            error = future.exception()
            if error is not None:
                self.log("snapshot_failed", path=str(path), error=str(error))
            else:
                self._saved = version

        self._save = self._loop.run_in_executor(None, write_snapshot, path, self.table.dump())
        self._save.add_done_callback(done)

    # --- connections
    def admit(self, client: Client) -> bool:
        """Take a connection, unless there are too many in all or of that client."""
        if len(self.clients) >= self.max_connections or self.draining:
            self.shed += 1
            return False
        peer = client.peer
        count = self._per_peer.get(peer, 0)
        if count >= self.config.max_connections_per_client and not self._is_in(peer, "uncapped"):
            self.shed += 1
            return False
        self._per_peer[peer] = count + 1
        self.clients.add(client)
        self.served += 1
        return True

    def leave(self, client: Client) -> None:
        """A connection has ended."""
        if client not in self.clients:
            return
        self.clients.discard(client)
        count = self._per_peer.get(client.peer, 1) - 1
        if count:
            self._per_peer[client.peer] = count
        else:
            self._per_peer.pop(client.peer, None)
        if client.entry is not None:
            self.waiting.leave(client, client.entry.space)

    def _is_in(self, peer: bytes, which: str) -> bool:
        known = self._in.get((peer, which))
        if known is None:
            address = ipaddress.ip_address(peer.decode("ascii").partition("%")[0])
            known = any(address in network for network in (self._uncapped if which == "uncapped" else self._proxies))
            if len(self._in) > 4_096:
                self._in.clear()
            self._in[(peer, which)] = known
        return known

    def origin_of(self, peer: bytes, request: Request) -> tuple[bytes, bytes]:
        """The visitor's address and scheme; what a trusted proxy says is believed."""
        if not self._is_in(peer, "proxies"):
            return peer, self.scheme
        address = (request.forwarded_for or b"").rpartition(b",")[2].strip(b" \t") or peer
        scheme = (request.forwarded_proto or b"").lower()
        return address, scheme if scheme in (b"http", b"https") else self.scheme

    # --- backends
    def _new_backend(self, space: int, deployment: int | None, endpoint: str) -> Backend:
        return Backend(space, deployment, endpoint, self.config, self.activity)

    def backend(self, entry: RouteEntry) -> Backend:
        """The live backend of an entry that has an endpoint. Raises Unavailable for one that has none."""
        found = self._backends.get(entry.space)
        if found is None:
            if entry.endpoint is None:
                raise Unavailable(f"Space {entry.name} has no endpoint.")
            found = self._backends[entry.space] = self._new_backend(entry.space, entry.deployment, entry.endpoint)
        return found

    def backends(self) -> list[Backend]:
        """Every backend of an app, retired ones included."""
        return [*self._backends.values(), *self.retired]

    def _changed(self, before: RouteEntry | None, after: RouteEntry | None) -> None:
        """A route was added, changed or removed."""
        entry = after or before
        if entry is None:
            return
        now = None if after is None else (after.endpoint, after.deployment)
        if before is not None and before.endpoint is not None and (before.endpoint, before.deployment) != now:
            # One that was never asked is reported too: the control plane waits for a row with nothing in flight.
            old = self.backend(before)
            del self._backends[entry.space]
            self._retire(old)
        if (
            before is None
            or after is None
            or now != (before.endpoint, before.deployment)
            or (before.stage != after.stage and after.endpoint is not None)
        ):
            # Told at once: a drain waits for it, and so does whoever is to be given the address. For what a Space that
            # has none shows meanwhile nobody waits.
            self._applied_changed = True
        for client in self.waiting.changed(entry.space, after):
            self.dispatch.serve(client, after)

    def _retire(self, backend: Backend) -> None:
        self.retired.add(backend)
        backend.quiet = self._quiet
        backend.retire()
        self.activity.touched.add(backend)
        sockets = list(backend.sockets)
        for number, tunnel in enumerate(sockets):
            delay = self.config.websocket_spread_seconds * number / len(sockets)
            self._loop.call_later(delay, tunnel.close, CLOSE_RESTART)

    def _quiet(self, backend: Backend) -> None:
        self.activity.touched.add(backend)
        self.link.report_soon()

    def reported(self, backends: set[Backend]) -> None:
        """A report with these rows has arrived."""
        for backend in backends:
            if backend.retired and not backend.active and not backend.attached:
                self.retired.discard(backend)

    def routes_at(self, version: int) -> None:
        """The table is complete up to `version`."""
        self.table.version = version
        if self._applied_changed:
            self._applied_changed = False
            self.link.report_soon()


def _fit_open_files(wanted: int) -> int:
    """Raise the open-file limit; how many visitors fit under it (each may need a connection to an app too)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard or hard == resource.RLIM_INFINITY:
        goal = 2 * wanted + _RESERVED_FILES
        goal = goal if hard == resource.RLIM_INFINITY else min(hard, max(goal, soft))
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (goal, hard))
            soft = goal
        except (OSError, ValueError):
            soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(16, min(wanted, (soft - _RESERVED_FILES) // 2))
