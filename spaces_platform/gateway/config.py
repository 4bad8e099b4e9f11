"""The gateway's configuration: one frozen value, read once from a JSON file.

Owns: names, defaults, units and checks of every setting. Does not own: how a setting is used.
Invariant: a GatewayConfig that exists is valid; unknown keys are refused, so that a misspelt limit is never silently
off.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from spaces_platform.errors import Invalid


@dataclass(frozen=True, slots=True)
class Listen:
    host: str = "127.0.0.1"
    port: int = 7860
    """0 lets the kernel choose; the `listening` log line says which."""
    loopback_only: bool = True
    """Bind every loopback address (0.0.0.0 tied to the `lo` device) instead of `host`, where the kernel allows it."""


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    control: str
    """Address of the control plane: `unix:/path` or `host:port`."""
    link_token: str = field(repr=False)
    """Bearer token of `/internal/gateway/*`."""
    id: str = "gateway-1"
    """Name of this gateway in activity reports; unique among the gateways of one platform."""
    listen: tuple[Listen, ...] = (Listen(),)
    platform_hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]")
    """Names that reach the control plane; no other name ever does."""
    platform_origin: str = "http://localhost:7860"
    """Origin of the platform's pages: links, sign-in, frame-ancestors."""
    apps_domain: str = "localhost"
    """Below which apps have their names: for these, a page of nothing offers to sign in."""
    scheme: str = "http"
    """Scheme that visitors use; sent as X-Forwarded-Proto (a trusted proxy may say otherwise)."""
    snapshot: str | None = None
    """File that keeps the route table over a restart; None keeps none."""
    admin: str | None = None
    """Where /metrics, /healthz and /readyz are served: `unix:/path` or `host:port`; None serves them nowhere."""
    tls_ask: str | None = None
    """Where a proxy in front asks for which names it may get certificates (tls_ask.py): as `admin`."""

    max_connections: int = 20_000
    """Visitors' connections in all; lowered at start to what the open-file limit allows."""
    max_connections_per_client: int = 1_024
    uncapped_clients: tuple[str, ...] = ("127.0.0.0/8", "::1/128")
    """Networks without the per-client cap: loopback, and proxies in front that stand for many visitors."""
    trusted_proxies: tuple[str, ...] = ()
    """Networks whose X-Forwarded-For (last entry) and X-Forwarded-Proto are believed."""
    max_head_bytes: int = 32_768
    max_head_fields: int = 100
    max_target_bytes: int = 16_384
    head_seconds: float = 10.0
    """From the first byte of a request to the end of its headers."""
    idle_seconds: float = 75.0
    """Between requests of a kept-alive connection."""
    body_min_rate: int = 256
    """Bytes per second, averaged over `body_window` seconds, that an upload must reach while it is being read."""
    body_window: float = 15.0
    write_stall_seconds: float = 60.0
    """How long a visitor may take nothing of an answer that waits for it."""
    response_seconds: float = 3_600.0
    """How long an exchange may stay without a byte in either direction (WebSocket and event streams included)."""
    connect_seconds: float = 5.0
    upstream_idle_seconds: float = 55.0
    upstream_idle_max: int = 128
    """Kept-alive connections per deployment."""

    hold_seconds: float = 90.0
    hold_per_space: int = 100
    hold_total: int = 5_000
    events_total: int = 5_000
    """Open live-progress streams of waiting pages."""
    wake_repeat_seconds: float = 4.0
    websockets_per_space: int = 2_000
    """Open WebSockets of one app; further ones get 429. Far below `max_connections`, so that no app takes them all."""
    websocket_spread_seconds: float = 2.0
    """WebSockets of a replaced deployment are closed over this span, so that they do not all return at once."""
    drain_seconds: float = 30.0
    """How long running exchanges may go on after SIGTERM."""
    activity_seconds: float = 2.0
    """Between reports of who visits what. Each takes a few milliseconds of gateway and control plane, during which
    visitors wait; what somebody waits for is reported at once."""

    @property
    def head_limits(self) -> tuple[int, int, int]:
        """Of a request's head: bytes, fields, bytes of its target."""
        return self.max_head_bytes, self.max_head_fields, self.max_target_bytes


def load(path: Path) -> GatewayConfig:
    """The configuration in a JSON file. Raises Invalid naming the file, the key and what is expected."""
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise Invalid(f"Cannot read the gateway configuration {path}: {error.strerror}.") from error
    except ValueError as error:
        raise Invalid(f"{path} is not JSON: {error}.") from error
    if not isinstance(data, dict):
        raise Invalid(f"{path} must hold one JSON object.")
    try:
        return parse(data)
    except Invalid as error:
        raise Invalid(f"{path}: {error.message}") from error


def parse(data: Mapping[str, Any]) -> GatewayConfig:
    """The configuration in a mapping, checked. Raises Invalid."""
    known = {f.name: f for f in fields(GatewayConfig)}
    for key in data:
        if key not in known:
            raise Invalid(f"Unknown key {key!r}; known keys: {', '.join(sorted(known))}.")
    for key in ("control", "link_token"):
        if not isinstance(data.get(key), str) or not data[key]:
            raise Invalid(f"{key!r} is required and must be a non-empty string.")
    values: dict[str, Any] = {}
    for key, value in data.items():
        values[key] = _listens(value) if key == "listen" else _scalar(key, value, str(known[key].type))
    config = GatewayConfig(**values)
    split_address(config.control)
    for address in (config.admin, config.tls_ask):
        if address is not None:
            split_address(address)
    for network in (*config.uncapped_clients, *config.trusted_proxies):
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            raise Invalid(f"{network!r} is not a network such as 10.0.0.0/8.") from error
    if config.scheme not in ("http", "https"):
        raise Invalid(f"'scheme' must be http or https, not {config.scheme!r}.")
    return config


def _listens(value: Any) -> tuple[Listen, ...]:
    if not isinstance(value, list) or not value:
        raise Invalid("'listen' must be a list of objects {host, port, loopback_only}.")
    known = {f.name for f in fields(Listen)}
    for item in value:
        if not isinstance(item, dict) or set(item) - known or not isinstance(item.get("port", 0), int):
            raise Invalid(f"'listen' holds {item!r}; expected an object with host, port and loopback_only.")
    return tuple(Listen(**item) for item in value)


def _scalar(key: str, value: Any, kind: str) -> Any:
    if kind.startswith("tuple"):
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
            raise Invalid(f"{key!r} must be a list of strings.")
        return tuple(value)
    if kind == "str | None" and value is None:
        return None
    if kind.startswith("str"):
        if not isinstance(value, str):
            raise Invalid(f"{key!r} must be a string.")
        return value
    if isinstance(value, bool) or not isinstance(value, int if kind == "int" else (int, float)) or value < 0:
        raise Invalid(f"{key!r} must be a number that is not negative.")
    return value


def split_address(address: str) -> tuple[str, str, int]:
    """`unix:/path` -> ("unix", path, 0); `host:port` -> ("tcp", host, port). Raises Invalid."""
    if address.startswith("unix:") and len(address) > 5:
        return "unix", address[5:], 0
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 <= int(port) < 65536:
        raise Invalid(f"{address!r} is not an address: expected unix:/path or host:port.")
    return "tcp", host.removeprefix("[").removesuffix("]"), int(port)
