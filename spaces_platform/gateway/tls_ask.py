"""May the proxy in front get a certificate for this name? `GET /internal/tls/ask?domain=…`: 200, or 404.

Answered from the route table, by one look-up: it costs no database, and certificates are renewed while the control
plane is away. That look-up is all the work a stranger's handshake can cause here; how many certificates can be asked of
an authority is bounded by how many names there are, since a name that is not in the table gets none.
Invariant: yes only for the platform's own name and for names of Spaces: their own, verified custom domains, and former
ones that redirect. Never for an address, nor for a name that somebody merely pointed at this machine.
"""

from __future__ import annotations

import asyncio
import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from spaces_platform.gateway.config import GatewayConfig
from spaces_platform.gateway.grammar import normalise_host
from spaces_platform.gateway.metrics import Page, serve_pages
from spaces_platform.gateway.routes import RouteTable

if TYPE_CHECKING:
    from spaces_platform.gateway.server import Gateway

PATH = "/internal/tls/ask"


def may_have_certificate(domain: str, config: GatewayConfig, table: RouteTable) -> bool:
    """Whether this name, as it stands in a TLS handshake, is one of ours. Pure."""
    if not domain.isascii() or ":" in domain:
        return False
    host = normalise_host(domain.encode())
    if host is None or _is_address(domain):
        return False
    own = urlsplit(config.platform_origin).hostname or ""
    return host == own.encode() or table.find(host) is not None or table.redirect(host) is not None


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def answer(target: bytes, config: GatewayConfig, table: RouteTable) -> Page:
    """The answer to one request target. Pure."""
    parts = urlsplit(target.decode("latin-1"))
    asked = [value for key, value in parse_qsl(parts.query, max_num_fields=10) if key == "domain"]
    if parts.path == PATH and len(asked) == 1 and may_have_certificate(asked[0], config, table):
        return 200, "text/plain", b"yes\n"
    return 404, "text/plain", b"no\n"


async def serve_tls_ask(gateway: Gateway, address: str) -> asyncio.Server:
    """Listen on `unix:/path` or `host:port`. Raises OSError."""

    def page(target: bytes) -> Page:
        try:
            return answer(target, gateway.config, gateway.table)
        except ValueError:  # no query at all: too many fields, or no URL
            return 404, "text/plain", b"no\n"

    return await serve_pages(gateway, address, page)
