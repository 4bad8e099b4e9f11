"""The gateway's own status, on a separate address: /metrics, /healthz, /readyz.

Owns: the figures' names and the small server. Does not own: the counting.
Invariant: nothing here is reachable through the listeners for visitors.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from spaces_platform.gateway.config import split_address

if TYPE_CHECKING:
    from spaces_platform.gateway.server import Gateway

_REQUEST_SECONDS = 5.0
_LINE_MAX = 8_192
PAGES_AT_ONCE = 128

Page = tuple[int, str, bytes]
"""Status, content type, body."""


class _Figures(Collector):
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def collect(self) -> Iterator[Metric]:
        gateway = self._gateway
        backends = gateway.backends()
        gauges = {
            "connections": ("Visitors' connections now", len(gateway.clients)),
            "routes": ("Spaces in the route table", len(gateway.table.entries)),
            "route_version": ("Version of the route table", gateway.table.version),
            "control_connected": ("1 while the route feed is open", int(gateway.link.connected)),
            "held_requests": ("Requests held for a starting app", gateway.waiting.held),
            "progress_streams": ("Open waiting pages", gateway.waiting.watching),
            "requests_in_flight": ("Exchanges that count as use", sum(b.active for b in backends)),
            "attached": ("Open heartbeats and WebSockets", sum(b.attached for b in backends)),
            "upstream_connections": ("Connections to apps", sum(b.connections for b in backends)),
            "draining_deployments": ("Replaced deployments with exchanges left", len(gateway.retired)),
        }
        counters = {
            "accepted_connections": ("Connections taken", gateway.served),
            "shed_connections": ("Connections closed at a limit", gateway.shed),
            "refused_requests": ("Requests that were not well-formed", gateway.refused),
            "wakes": ("Wakes asked for", gateway.waiting.wakes),
            "turned_away": ("Requests not held because a queue was full", gateway.waiting.turned_away),
            "link_failures": ("Times the route feed ended", gateway.link.failures),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"spaces_gateway_{name}", text, value=value)
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(f"spaces_gateway_{name}", text, value=value)
        for name, text in (("requests", "Requests proxied"), ("errors", "Failures to reach the app")):
            family = CounterMetricFamily(f"spaces_gateway_space_{name}", text, labels=["space"])
            for backend in backends:
                if not backend.retired:
                    family.add_metric([str(backend.space)], getattr(backend, name))
            yield family


def status(gateway: Gateway) -> dict[str, object]:
    """What /readyz says."""
    return {
        "gateway": gateway.config.id,
        "ready": not gateway.draining and (gateway.link.connected or gateway.table.version > 0),
        "control": gateway.link.connected,
        "version": gateway.table.version,
        "routes": len(gateway.table.entries),
        "loopback_addresses": gateway.loopback_addresses,
        "addresses": [f"{host}:{port}" for host, port in gateway.addresses],
    }


async def serve_admin(gateway: Gateway, address: str) -> asyncio.Server:
    """Figures and health on `unix:/path` or `host:port`. Raises OSError."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(gateway))

    def page(target: bytes) -> Page:
        path = target.partition(b"?")[0]
        if path == b"/metrics":
            return 200, "text/plain; version=0.0.4; charset=utf-8", generate_latest(registry)
        if path == b"/healthz":
            return 200, "application/json", b'{"ok": true}'
        if path == b"/readyz":
            found = status(gateway)
            return 200 if found["ready"] else 503, "application/json", json.dumps(found).encode()
        return 404, "application/json", b'{"error": "Not found."}'

    return await serve_pages(gateway, address, page)


async def serve_pages(gateway: Gateway, address: str, page: Callable[[bytes], Page]) -> asyncio.Server:
    """Answer GETs by `page(target)`, which must not wait, at most PAGES_AT_ONCE at once. Raises OSError."""
    open_now = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now
        open_now += 1
        try:
            if open_now > PAGES_AT_ONCE:
                return
            async with asyncio.timeout(_REQUEST_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                parts = head.split(b"\r\n", 1)[0].split(b" ")
                code, kind, body = page(parts[1] if len(parts) == 3 else b"")
                writer.write(
                    f"HTTP/1.1 {code} {'OK' if code == 200 else 'No'}\r\nContent-Type: {kind}\r\n"
                    f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
                    + body
                )
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            gateway.log("admin_request_failed", error=repr(error))
        finally:
            open_now -= 1
            writer.close()

    kind, host, port = split_address(address)
    if kind == "unix":
        Path(host).unlink(missing_ok=True)
        old = os.umask(0o077)
        try:
            return await asyncio.start_unix_server(handle, host, limit=_LINE_MAX)
        finally:
            os.umask(old)
    return await asyncio.start_server(handle, host, port, limit=_LINE_MAX)
