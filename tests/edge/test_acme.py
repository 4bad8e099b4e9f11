"""Certificates from an ACME authority at the first visit: Caddy with the configuration that is shipped, the gateway's
real answers to its question, and a real authority, which looks whether the names lead here.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from spaces_platform.cli.doctor.network import check_certificate
from spaces_platform.settings import Settings
from tests.cli.conftest import Place, new_place
from tests.edge.acme import Authority, apart, authority
from tests.edge.caddy import APP, CUSTOM, PLATFORM, Edge, Front, edge, told
from tests.edge.dns_server import NameServer, name_server
from tests.edge.servers import free_port, program
from tests.gateway.harness import run, until
from tests.services import databases

OURS = (PLATFORM, APP, CUSTOM)
MANY = tuple(f"alice-{n}.apps.example.org" for n in range(30))
STRANGERS = tuple(f"s{n}.example.net" for n in range(60))
NEIGHBOURS = ("other.apps.example.org", f"x.{CUSTOM}", "apps.example.org", "example.com", "localhost")
SPACE = "admin-shop.apps.example.org"
SLOW_SECONDS = 11.0
"""What an authority takes on a bad day. A limit of 10 s on heads, within which the handshake falls, cut such visits."""
SECONDS = 150.0

T = TypeVar("T")
Scenario = Callable[[Edge, Authority], Awaitable[None]]


@asynccontextmanager
async def served(folder: Path, **environment: str) -> AsyncIterator[tuple[Edge, Authority]]:
    """An authority, and Caddy that is told of it, on the ports that authorities look at."""
    ca = authority(folder / "authority")
    (folder / "edge").mkdir()
    try:
        await ca.start()
        settings = {**ca.settings, **environment}
        async with edge(folder / "edge", "acme", port=443, plain=80, root=ca.root, **settings) as made:
            yield made, ca
    finally:
        await ca.stop()


def play(scenario: Scenario, folder: Path, **environment: str) -> None:
    async def whole() -> None:
        async with served(folder, **environment) as (made, ca):
            await scenario(made, ca)

    apart(lambda: run(whole(), SECONDS), folder, (*OURS, *MANY, *STRANGERS, *NEIGHBOURS))


async def certificate(caddy: Front, host: str, seconds: float = 60.0) -> dict[str, Any] | None:
    """What a handshake for this name shows, checked against the authority's root; None where it is refused, or not
    through in time.
    """
    try:
        async with asyncio.timeout(seconds):
            _, writer = await asyncio.open_connection(
                "127.0.0.1", caddy.port, ssl=caddy.context, server_hostname=host, ssl_handshake_timeout=seconds
            )
    except ssl.SSLCertVerificationError:
        raise
    except (ssl.SSLError, ConnectionError, TimeoutError):
        return None
    shown: dict[str, Any] = writer.get_extra_info("peercert")
    writer.transport.abort()
    return shown


async def eventually(ask: Callable[[], Awaitable[T | None]], seconds: float = 60.0) -> T:
    """The first answer that is not no."""
    async with asyncio.timeout(seconds):
        while not (found := await ask()):
            await asyncio.sleep(0.05)
        return found


def test_platform_app_and_custom_domain_get_one_at_the_first_visit(tmp_path: Path) -> None:
    async def scenario(e: Edge, ca: Authority) -> None:
        await e.routed()
        assert ca.orders() == 0, "none before a visit"
        assert await e.curl(APP, "/a") == (0, "app1:/a")
        assert await e.curl(CUSTOM, "/b") == (0, "app1:/b")
        code, page = await e.curl(PLATFORM, "/healthz")
        assert (code, "healthz" in page) == (0, True), page
        for host in OURS:
            shown = await certificate(e, host)
            assert shown is not None
            assert shown["subjectAltName"] == (("DNS", host),)
        assert ca.orders() == 3, "the first visit of each, and no other"

    play(scenario, tmp_path)


def test_authorities_may_look_at_either_port(tmp_path: Path) -> None:
    """Caddy draws which way it offers, and then keeps to one that worked: so each time a new one is asked."""

    async def scenario(e: Edge, ca: Authority) -> None:
        await e.platform.app(1, hosts=list(MANY))
        names = iter(MANY)
        while not all(f'"challenge":"{way}"' in e.log for way in ("http-01", "tls-alpn-01")):
            assert await e.curl(next(names), "/a") == (0, "app1:/a")
            await e.stop()
            await e.start()

    play(scenario, tmp_path)


def test_an_app_cannot_answer_an_authority(tmp_path: Path) -> None:
    """Sent on to the app, its owner could show any authority that the platform's name is theirs."""

    async def scenario(e: Edge, ca: Authority) -> None:
        app = await e.routed()
        for path in ("/.well-known/acme-challenge/token", "/%2Ewell-known/acme-challenge/token"):
            code, said = await e.curl(APP, path, "--include", "--location", plain=True)
            assert (code, said.split()[1]) == (0, "404"), said
        assert app.seen == []

    play(scenario, tmp_path)


def test_a_slow_authority_does_not_cost_the_first_visit(tmp_path: Path) -> None:
    async def scenario(e: Edge, ca: Authority) -> None:
        await e.routed()
        assert ca.process is not None
        ca.process.send_signal(signal.SIGSTOP)
        visit = asyncio.create_task(e.curl(APP, "/a"))
        since = time.monotonic()
        await until(lambda: time.monotonic() > since + SLOW_SECONDS, SLOW_SECONDS + 5)
        assert not visit.done()
        ca.process.send_signal(signal.SIGCONT)
        assert await visit == (0, "app1:/a")

    play(scenario, tmp_path)


# --- who has none -------------------------------------------------------------------------------
def test_nobody_elses_name_is_ordered(tmp_path: Path) -> None:
    async def scenario(e: Edge, ca: Authority) -> None:
        await e.routed()
        shown = await asyncio.gather(*(certificate(e, name) for name in (*STRANGERS, *NEIGHBOURS)))
        assert shown == [None] * len(shown)
        assert ca.orders() == 0
        assert not list(e.folder.glob("data/caddy/certificates/*/*"))
        # Nor do they keep back those who may.
        assert await certificate(e, APP) is not None
        assert ca.orders() == 1

    play(scenario, tmp_path)


def test_where_nobody_says_whether_it_may_none_is_ordered(tmp_path: Path) -> None:
    async def scenario(e: Edge, ca: Authority) -> None:
        await e.routed()
        assert await certificate(e, APP) is None
        assert ca.orders() == 0

    play(scenario, tmp_path, SPACES_TLS_ASK="127.0.0.1:9")


# --- while the authority is away, and later -----------------------------------------------------
def test_who_has_one_is_served_while_the_authority_is_away(tmp_path: Path) -> None:
    async def scenario(e: Edge, ca: Authority) -> None:
        await e.routed()
        assert await e.curl(APP, "/a") == (0, "app1:/a")
        await ca.stop()
        assert await e.curl(APP, "/b") == (0, "app1:/b")
        await e.stop()
        await e.start()
        assert await e.curl(APP, "/c") == (0, "app1:/c"), "also after a restart"
        assert await certificate(e, PLATFORM, seconds=2) is None
        await ca.start()
        assert await e.curl(CUSTOM, "/d") == (0, "app1:/d"), "the next name has its own at once"

    play(scenario, tmp_path)


def test_after_a_restart_they_are_still_there(tmp_path: Path) -> None:
    async def scenario(e: Edge, ca: Authority) -> None:
        await e.routed()
        before = [await certificate(e, host) for host in OURS]
        await e.stop()
        await e.start()
        assert [await certificate(e, host) for host in OURS] == before
        assert ca.orders() == len(OURS)

    play(scenario, tmp_path)


async def near_its_end(e: Edge, ca: Authority, host: str) -> None:
    """Have Caddy stopped, with a certificate for `host` that ends tomorrow."""
    assert await certificate(e, host) is not None
    await e.stop()
    (stored,) = e.folder.glob(f"data/caddy/certificates/*/{host}/{host}.crt")
    ca.remake(stored, (-80, 1))


async def is_another(e: Edge, host: str, old: dict[str, Any]) -> bool:
    return await certificate(e, host) not in (old, None)


def test_one_near_its_end_is_renewed_by_a_visit(tmp_path: Path) -> None:
    async def scenario(e: Edge, ca: Authority) -> None:
        await e.routed()
        await near_its_end(e, ca, APP)
        await e.start()
        old = await certificate(e, APP)
        assert old is not None
        await eventually(lambda: is_another(e, APP, old))
        assert ca.orders() == 2

    play(scenario, tmp_path)


def test_one_near_its_end_serves_on_while_the_authority_is_away(tmp_path: Path) -> None:
    async def scenario(e: Edge, ca: Authority) -> None:
        await e.routed()
        await near_its_end(e, ca, APP)
        await ca.stop()
        await e.start()
        old = await certificate(e, APP)
        assert old is not None
        await until(lambda: "could not get certificate" in e.log, 60, "Caddy to have tried")
        assert await certificate(e, APP) == old
        assert await e.curl(APP, "/a") == (0, "app1:/a")

    play(scenario, tmp_path)


def test_that_of_a_domain_that_was_taken_away_is_not_renewed(tmp_path: Path) -> None:
    async def scenario(e: Edge, ca: Authority) -> None:
        await e.routed()
        await near_its_end(e, ca, CUSTOM)
        await e.platform.route(1, hosts=[APP])
        await e.start()
        assert await certificate(e, CUSTOM) is not None
        await until(lambda: "certificate not allowed by ask" in e.log, 60, "Caddy to have asked")
        assert "app1" not in (await e.curl(CUSTOM, "/a"))[1]
        assert ca.orders() == 1

    play(scenario, tmp_path)


# --- an authority of one's own ------------------------------------------------------------------
def test_an_authority_is_trusted_by_its_root_alone(tmp_path: Path) -> None:
    async def scenario(e: Edge, ca: Authority) -> None:
        await e.routed()
        visit = asyncio.create_task(certificate(e, APP))
        await until(lambda: "certificate signed by unknown authority" in e.log, 60, "Caddy to refuse the authority")
        visit.cancel()
        assert ca.orders() == 0

    play(scenario, tmp_path, SPACES_ACME_ROOT="")


def test_a_root_that_is_not_there_is_said_at_the_start(tmp_path: Path) -> None:
    async def scenario() -> None:
        with pytest.raises(AssertionError, match=r"trusted root CA.*/nowhere/root\.pem"):
            async with edge(tmp_path, "acme", SPACES_ACME_ROOT="/nowhere/root.pem"):
                pass

    run(scenario(), SECONDS)


def test_an_authority_may_be_behind_a_proxy(tmp_path: Path) -> None:
    asked: list[bytes] = []

    async def pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(1 << 16):
            sink.write(data)
        sink.close()

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0])
        # By address: the loop's own threads, which look names up, may be older than this network.
        there, back = await asyncio.open_connection("127.0.0.1", int(asked[-1].split()[1].rpartition(b":")[2]))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(pass_on(reader, back), pass_on(there, writer))

    async def scenario(e: Edge, ca: Authority) -> None:
        await e.routed()
        async with await asyncio.start_server(proxy, "127.0.0.1", 3128):
            assert await e.curl(APP, "/a") == (0, "app1:/a")
            assert asked, "the authority was asked past the proxy"
            # The gateway's own answers, and the app's, take no detour.
            assert all(re.match(rb"CONNECT ca\.example\.test:", line) for line in asked), asked

    play(scenario, tmp_path, HTTPS_PROXY="http://127.0.0.1:3128")


def test_doctor_tells_an_authority_that_this_machine_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings.load({"SPACES_PUBLIC_URL": f"https://{PLATFORM}"})

    async def scenario(e: Edge, ca: Authority) -> None:
        unknown = await asyncio.to_thread(check_certificate, settings)
        assert (unknown.level, "does not know" in unknown.found) == ("warn", True), unknown
        # It lasts 12 hours, as those of such authorities do: no reason to worry.
        monkeypatch.setenv("SSL_CERT_FILE", str(ca.root))
        known = await asyncio.to_thread(check_certificate, settings)
        assert (known.level, "11 hours left" in known.found) == ("ok", True), known

    play(scenario, tmp_path)


# --- the whole platform -------------------------------------------------------------------------
@databases.not_on_postgres
def test_a_claimed_domain_has_one_once_it_is_shown_to_be_its_owners(tmp_path: Path) -> None:
    """The real control plane: from the claim by way of a TXT record to the certificate."""
    program("caddy", "caddy")
    place = new_place()

    def inside() -> None:
        with name_server() as names:
            try:
                run(_claimed(place, tmp_path, names), SECONDS)
            finally:
                place.end()

    apart(inside, tmp_path, (PLATFORM, SPACE, CUSTOM))


async def _claimed(place: Place, folder: Path, names: NameServer) -> None:
    ca, ask = authority(folder / "authority"), free_port()
    env = told(folder, "acme", gateway=place.port, ask=ask, port=443, plain=80, **ca.settings)
    caddy = Front(folder=folder, port=443, plain=80, root=ca.root, env=env)
    settings = [f"tls_ask=127.0.0.1:{ask}", f"dns={names.address}", "trusted_proxies=127.0.0.1/32"]
    addresses = ["--public-url", f"https://{PLATFORM}", "--apps-domain", "apps.example.org"]
    place.up(*addresses, *(word for setting in settings for word in ("--set", setting)))
    try:
        await ca.start()
        await caddy.start()
        at = "/api/platform/spaces/admin/shop/domains"
        await _call(place, caddy, "/api/repos/create", {"type": "space", "name": "shop", "sdk": "static"})
        proof = (await _call(place, caddy, at, {"domain": CUSTOM}))["proof"]
        assert await eventually(lambda: certificate(caddy, SPACE))
        assert await certificate(caddy, CUSTOM) is None
        assert ca.orders() == 2, "of the platform and of the Space"
        names.records[proof["name"]] = [proof["value"]]
        await eventually(lambda: _verified(place, caddy, f"{at}/{CUSTOM}/verify"))
        shown = await eventually(lambda: certificate(caddy, CUSTOM))
        assert shown["subjectAltName"] == (("DNS", CUSTOM),)
        assert ca.orders() == 3
    finally:
        await caddy.stop()
        await ca.stop()


async def _verified(place: Place, caddy: Front, path: str) -> bool:
    """Have its DNS looked at, which soon after the last look is refused."""
    return (await _call(place, caddy, path, {})).get("status") == "active"


async def _call(place: Place, caddy: Front, path: str, body: dict[str, str]) -> dict[str, Any]:
    """POST to the API as the first admin, through Caddy."""
    token = (place.data / "admin.token").read_text().strip()
    options = ("--header", f"Authorization: Bearer {token}", "--json", json.dumps(body))
    code, text = await caddy.curl(PLATFORM, path, *options)
    assert code == 0, text
    found: dict[str, Any] = json.loads(text)
    return found
