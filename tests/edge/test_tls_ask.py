"""Which names may have certificates: the decision as a table, and its small server."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import httpx
import pytest

from spaces_platform.gateway.config import GatewayConfig
from spaces_platform.gateway.routes import RouteTable, parse_entry
from spaces_platform.gateway.tls_ask import PATH, answer
from tests.edge.servers import free_port
from tests.gateway.harness import platform, run

CONFIG = GatewayConfig(
    control="127.0.0.1:1",
    link_token="t",
    platform_hosts=("spaces.example.org", "localhost", "127.0.0.1"),
    platform_origin="https://spaces.example.org",
    apps_domain="apps.example.org",
)
ENTRY: dict[str, Any] = {
    "space": 1, "version": 1, "name": "a/b", "hosts": ["a-b.apps.example.org", "127.64.1.2", "shop.example.com"],
    "redirects": ["a-old.apps.example.org"], "stage": "SLEEPING", "public": False,
}  # fmt: skip


def table() -> RouteTable:
    made = RouteTable(CONFIG.platform_hosts)
    made.apply(parse_entry(ENTRY))
    return made


@pytest.mark.parametrize(
    ("domain", "allowed"),
    [
        ("spaces.example.org", True),
        ("SPACES.example.org", True),
        ("a-b.apps.example.org", True),
        ("A-B.apps.example.org.", True),
        ("a-old.apps.example.org", True),
        ("shop.example.com", True),
        ("other.apps.example.org", False),
        ("apps.example.org", False),
        ("x.shop.example.com", False),
        ("example.com", False),
        ("localhost", False),
        ("127.0.0.1", False),
        ("127.64.1.2", False),
        ("::1", False),
        ("[::1]", False),
        ("shop.example.com:443", False),
        ("*.apps.example.org", False),
        ("shop.example.com\0.evil.example", False),
        ("ſhop.example.com", False),
        ("", False),
        ("a" * 5000, False),
    ],
)
def test_only_names_that_lead_somewhere_get_one(domain: str, allowed: bool) -> None:
    target = f"{PATH}?domain={quote(domain)}".encode()
    assert (answer(target, CONFIG, table())[0] == 200) is allowed


def test_a_space_that_is_gone_has_none() -> None:
    known = table()
    known.apply(parse_entry(ENTRY), gone=True)
    assert answer(f"{PATH}?domain=shop.example.com".encode(), CONFIG, known)[0] == 404


@pytest.mark.parametrize(
    "target",
    [
        b"/internal/tls/ask", b"/internal/tls/ask?", b"/internal/tls/ask?host=shop.example.com", b"/", b"",
        b"/metrics?domain=shop.example.com",
        b"/internal/tls/ask?domain=evil.example&domain=shop.example.com",
        b"/internal/tls/ask?domain=shop.example.com&domain=evil.example",
    ],
)  # fmt: skip
def test_anything_else_is_no(target: bytes) -> None:
    assert answer(target, CONFIG, table())[0] == 404


def test_it_is_asked_on_its_own_address_only() -> None:
    port = free_port()

    async def scenario() -> None:
        async with platform(tls_ask=f"127.0.0.1:{port}") as p, httpx.AsyncClient(trust_env=False) as client:
            await p.app(1, hosts=["shop.example.com"])
            ask = f"http://127.0.0.1:{port}{PATH}"
            assert (await client.get(ask, params={"domain": "shop.example.com"})).status_code == 200
            assert (await client.get(ask, params={"domain": "evil.example"})).status_code == 404
            assert (await client.get(ask + "?" + "&".join("a=1" for _ in range(50)))).status_code == 404
            # A visitor does not reach it: the platform's names have no such page, an app's have the app's.
            for host in ("localhost", "127.0.0.1"):
                assert (await p.get(host, f"{PATH}?domain=shop.example.com"))[0] == 404
            assert (await p.get("shop.example.com", PATH))[2].startswith(b"app1:")

    run(scenario())


def test_it_answers_while_the_control_plane_is_away() -> None:
    port = free_port()

    async def scenario() -> None:
        async with platform(tls_ask=f"127.0.0.1:{port}") as p, httpx.AsyncClient(trust_env=False) as client:
            await p.route(1, hosts=["shop.example.com"])
            await p.control.kill()
            found = await client.get(f"http://127.0.0.1:{port}{PATH}", params={"domain": "shop.example.com"})
            assert found.status_code == 200

    run(scenario())
