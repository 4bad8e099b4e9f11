"""What apps in containers reach of the network: a few ports of public addresses, and nothing near. T06."""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence

import pytest

from spaces_platform.adapters.docker import DockerOrchestrator, orchestrator
from spaces_platform.adapters.docker.network import bridge_name
from spaces_platform.ports import RunStatus
from tests.containers.harness import Place, place_on, ran, ready
from tests.containers.neighbourhood import (
    CARRIER,
    CONNECT,
    HOST,
    LAN,
    METADATA,
    MULTICAST,
    PORTS,
    PUBLIC,
    Neighbourhood,
    call,
    neighbourhood,
    own_addresses,
    settled,
)
from tests.process import apps
from tests.process.harness import wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="fences are put up by root")
PROBE = """
import json, os, socket
from concurrent.futures import ThreadPoolExecutor
reached, refused = [], []
def connect(host, port):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        for info in socket.getaddrinfo(host, port, family, socket.SOCK_STREAM):
            with socket.socket(*info[:3]) as one:
                one.settimeout(3)
                one.connect(info[4])
            reached.append([host, port])
    except TimeoutError:
        pass
    except OSError as error:
        refused.append([host, port])
def datagram(host, port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        for _ in range(3):
            try:
                one.sendto(b"canary", (host, port))
            except OSError:
                pass
tcp, udp = json.loads(os.environ["TARGETS"])
with ThreadPoolExecutor(24) as pool:  # an app may have few processes, and this machine many addresses
    done = [pool.submit(connect, *one) for one in tcp] + [pool.submit(datagram, *one) for one in udp]
for one in done:
    one.result()
print(json.dumps({"reached": sorted(reached), "refused": sorted(refused)}), flush=True)
"""
Target = tuple[str, int]
LEFT_OVER = "spacesleft0"


@pytest.fixture
def around() -> Iterator[Neighbourhood]:
    with neighbourhood() as made:
        yield made


@pytest.fixture
def left_over() -> Iterator[str]:
    """Addresses of apps whose first half is that of a bridge which nobody answers for."""
    subprocess.run(["ip", "link", "add", LEFT_OVER, "type", "bridge"], check=True)
    try:
        subprocess.run(["ip", "address", "add", "10.213.76.1/24", "dev", LEFT_OVER], check=True)
        subprocess.run(["ip", "link", "set", LEFT_OVER, "up"], check=True)
        yield "10.213.76.0/23"
    finally:
        subprocess.run(["ip", "link", "delete", LEFT_OVER], check=True)


def probe(
    place: Place, running: DockerOrchestrator, tcp: Sequence[Target], udp: Sequence[Target] = ()
) -> dict[str, list[Target]]:
    """What an app of Space 1 reached, as it saw it; and where it was told at once that it may not."""
    said = json.loads(ran(place, running, PROBE, env={"TARGETS": json.dumps([tcp, udp])}))
    return {name: [(host, port) for host, port in pairs] for name, pairs in said.items()}


def on_tcp(*targets: Target) -> set[tuple[str, str, int]]:
    return {("tcp", host, port) for host, port in targets}


def test_apps_reach_a_few_ports_of_public_addresses_and_nothing_near(engine_url: str, around: Neighbourhood) -> None:
    outside = [(host, port) for host in (PUBLIC, LAN, METADATA, CARRIER) for port in PORTS]
    with place_on(engine_url) as place:
        # Without the fence all is reached: the neighbourhood works, and the test can fail.
        running = place.orchestrator(fence=False)
        host = [(HOST, around.host_port)]
        assert probe(place, running, [*outside, *host], [(LAN, 53)])["reached"] == sorted([*outside, *host])
        settled(around, on_tcp(*outside, *host) | {("udp", "any", 53)})
        assert "open network" in running.isolation().words
    around.hits.clear()
    with place_on(engine_url) as place:
        running = place.orchestrator()
        assert "fenced network" in running.isolation().words
        gateway = gateway_of(place, running)
        mine = [(address, around.host_port) for address in (*own_addresses(), gateway, HOST)]
        mapped = [(f"::ffff:{address}", port) for address, port in (*mine, (LAN, 80), (METADATA, 80))]
        link_local = [(f"{address}%eth0", around.host_port) for address in v6_addresses(place)]
        cloud = [("169.254.169.254", 80), ("169.254.170.2", 80), ("fd00:ec2::254", 80)]
        forbidden = [*mine, *mapped, *link_local, *cloud, (MULTICAST, 80)]
        udp = [(host, port) for host in (LAN, PUBLIC, gateway, METADATA) for port in (53, 80, 443)]
        seen = probe(place, running, [*outside, *forbidden], udp)
    allowed = [(PUBLIC, port) for port in (80, 443, 8080)]
    assert seen["reached"] == sorted(allowed)
    assert settled(around, on_tcp(*allowed)) == on_tcp(*allowed)


def gateway_of(place: Place, running: DockerOrchestrator) -> str:
    """The host's own address on the network of Space 1."""
    ran(place, running, "print(1)")
    network = next(iter(place.containers().values()))["NetworkSettings"]["Networks"]
    return str(next(iter(network.values()))["Gateway"]) or bridge_address(place)


def bridge_address(place: Place) -> str:
    return call("ip", "-4", "-o", "addr", "show", "dev", bridge_name(place.instance, 1)).split()[3].split("/")[0]


def v6_addresses(place: Place) -> list[str]:
    """The host's link-local addresses on that network."""
    words = call("ip", "-6", "-o", "addr", "show", "dev", bridge_name(place.instance, 1)).split()
    return [words[n + 1].split("/")[0] for n, word in enumerate(words) if word == "inet6"]


def test_what_the_admin_allows_is_reached_and_no_more(engine_url: str, around: Neighbourhood) -> None:
    with place_on(engine_url) as place:
        running = place.orchestrator(
            egress_ports=(25,), egress_allow=(f"{LAN}:5432", CARRIER, f"{HOST}:{around.host_port}")
        )
        outside = [(host, port) for host in (PUBLIC, LAN, CARRIER, METADATA) for port in PORTS]
        seen = probe(place, running, [*outside, (HOST, around.host_port)])["reached"]
    allowed = [(PUBLIC, 25), (LAN, 5432), *((CARRIER, port) for port in PORTS), (HOST, around.host_port)]
    assert seen == sorted(allowed)
    assert settled(around, on_tcp(*allowed)) == on_tcp(*allowed)


@pytest.mark.parametrize("target", [(LAN, 80), (PUBLIC, 3333), (HOST, 9)])
def test_a_program_is_told_at_once_instead_of_waiting(place: Place, around: Neighbourhood, target: Target) -> None:
    running = place.orchestrator()
    # The kernel answers a few a second (icmp_ratelimit): others may just have used them up.
    wait_for("it is told", lambda: probe(place, running, [target])["refused"] == [target], 60)


def test_an_app_reaches_no_other_and_only_the_host_reaches_an_app(place: Place, around: Neighbourhood) -> None:
    running = place.orchestrator()
    # On a port that is open on public addresses.
    others = [place.spec(apps.server(), space_id=space_id, app_port=8080) for space_id in (1, 2)]
    for spec in others:
        running.start(spec)
    endpoints = [str(ready(running, spec.id).endpoint).split(":") for spec in others]
    targets = [(host, int(port)) for host, port in endpoints]
    # Neither one of another Space, nor another version of its own.
    assert probe(place, running, targets)["reached"] == []
    assert json.loads(around.inside(sys.executable, "-I", "-S", "-c", CONNECT, json.dumps(targets))) == []
    for target in targets:
        socket.create_connection(target, 10).close()


def _is_address(word: str) -> bool:
    try:
        ipaddress.IPv4Address(word)
    except ValueError:
        return False
    return True


def test_names_are_resolved_through_the_engine(place: Place) -> None:
    name = "deb.debian.org"
    try:
        expected = {info[4][0] for info in socket.getaddrinfo(name, 80, socket.AF_INET)}
    except OSError:
        pytest.skip(f"this machine resolves no public name ({name})")
    source = f"import socket\nprint(*{{i[4][0] for i in socket.getaddrinfo({name!r}, 80, socket.AF_INET)}})"
    assert expected
    found = ran(place, place.orchestrator(), source).split()
    assert [word for word in found if not _is_address(word)] == [], found
    assert found


def test_rules_that_somebody_flushed_are_put_up_again(
    place: Place, around: Neighbourhood, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orchestrator, "PERIOD", 0.2)
    running = place.orchestrator()
    out, host = f"SPACES-{place.instance}-OUT", f"SPACES-{place.instance}-HOST"
    rules = call("iptables", "-S", out) + call("iptables", "-S", host)
    assert rules.count("REJECT") > 10
    bridges = f"sp{place.instance[:4]}-+"
    call("iptables", "-w", "10", "-F", out)
    call("iptables", "-w", "10", "-D", "INPUT", "-i", bridges, "-j", host)
    call("ip6tables", "-w", "10", "-D", "INPUT", "-i", bridges, "-j", host)

    def whole() -> bool:
        again = call("iptables", "-S", out) + call("iptables", "-S", host)
        inputs = call("iptables", "-S", "INPUT"), call("ip6tables", "-S", "INPUT")
        return again == rules and all(f"-A INPUT -i {bridges} -j {host}" in text for text in inputs)

    wait_for("the rules are there again", whole, 60)
    assert probe(place, running, [(LAN, 80), (HOST, around.host_port)])["reached"] == []
    assert around.hits == set()


def test_a_fence_that_does_not_hold_is_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The self-check tries it: rules that are accepted and do nothing are found out."""
    from spaces_platform.adapters.docker import fence

    monkeypatch.setattr(fence, "rules_v4", lambda *_: [])
    found = place.orchestrator().isolation()
    assert "open network" in found.words
    assert any("can be reached" in words for words in found.lacks)
    assert not place.orchestrator().safe_for_strangers


def test_an_app_answers_where_another_bridge_has_the_first_addresses(engine_url: str, left_over: str) -> None:
    with place_on(engine_url) as place:
        running = place.orchestrator(subnets=left_over)
        spec = place.spec(apps.server())
        running.start(spec)
        assert str(ready(running, spec.id).endpoint).startswith("10.213.77.")


def test_networks_of_sleeping_spaces_are_given_back(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orchestrator, "PERIOD", 0.2)
    running = place.orchestrator(idle_networks=2)
    awake = place.spec(apps.server(), space_id=1)
    running.start(awake)
    ready(running, awake.id)
    for space_id in range(2, 7):
        spec = place.spec("print(1)", space_id=space_id)
        running.start(spec)
        wait_for("the end", lambda n=spec.id: running.observe()[n].status is RunStatus.EXITED, 60)  # type: ignore[misc]
        running.stop(spec.id)
    # Its own, and the two used last.
    wait_for("the rest are gone", lambda: bridges_of(place) == {bridge_name(place.instance, n) for n in (1, 5, 6)}, 60)
    again = place.spec("print('woken')", space_id=2)
    running.start(again)
    wait_for("it wakes", lambda: [line.text for line in running.logs(again.id)] == ["woken"], 60)


def bridges_of(place: Place) -> set[str]:
    return {name for name in os.listdir("/sys/class/net") if name.startswith(f"sp{place.instance[:4]}-")}
