"""T06, from a build: what RUN steps reach of the network. Every target is first shown to be reached without the fence.

On an engine and a bridge of its own: others who share the engine have fences around its default bridge, too. It has
IPv6, so that more can be reached than by default.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import IO

import dns.message
import dns.rdatatype
import dns.rrset
import pytest

from spaces_platform.adapters.docker.build_fences import BuildFence
from spaces_platform.adapters.docker.fence import Fence, build_fence
from spaces_platform.adapters.docker.settings import DockerSettings
from tests.builders.conftest import Log
from tests.containers.builds import BASE, builds_on, in_thread
from tests.containers.harness import place_on, ready
from tests.containers.neighbourhood import (
    CARRIER,
    DEVICE,
    HOST,
    LAN,
    METADATA,
    PORTS,
    PUBLIC,
    Neighbourhood,
    call,
    neighbourhood,
)
from tests.process import apps
from tests.services.engine import cli, copy_image, own_engine

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="fences are put up by root")
BRIDGE, GATEWAY, GATEWAY6 = "spbuild0", "10.214.77.1", "fd77:214:77::1"
LAN6 = "fd77:213::2"
"""In the neighbours' network: a unique local address that is reached by way of the host."""
CLOUD = "169.254.169.254"
SERVICES = (7860, 6379, 5432, 5000)
"""The platform's public door, Redis, Postgres and a registry, where a machine commonly has them."""
REBINDING = "rebinding.example.org"
OPEN = (80, 443, 8080)
AT_ONCE = 30
Target = tuple[str, int]


def test_a_build_reaches_public_addresses_and_nothing_near(engine_url: str, tmp_path: Path) -> None:
    if shutil.which("iptables-restore") is None:
        pytest.skip("iptables is missing: apt install iptables")
    with ExitStack() as stack:
        around = stack.enter_context(neighbourhood())
        url = stack.enter_context(engine_on_a_bridge(engine_url))
        hits: set[Target] = set()
        stack.enter_context(neighbour_by_ipv6(around, hits))
        here = [*((GATEWAY, port) for port in SERVICES), (CLOUD, 80), ("::", around.host_port)]
        stack.enter_context(canaries(here, hits))
        names = stack.enter_context(rebinding_name(GATEWAY))
        space = stack.enter_context(another_space(engine_url))
        mine = [*own_addresses(4), *own_addresses(6), GATEWAY, GATEWAY6, HOST]
        targets: dict[str, list[Target]] = {
            "hosts of a local network, shared and link-local addresses": [
                (host, port) for host in (LAN, CARRIER, METADATA) for port in PORTS
            ],
            "ports that are not open on public addresses": [(PUBLIC, port) for port in PORTS if port not in OPEN],
            "the host by each of its addresses": [(address, around.host_port) for address in mine],
            "services of the platform's machine": [(GATEWAY, port) for port in SERVICES],
            "the metadata service": [(CLOUD, 80)],
            "a unique local address elsewhere": [(LAN6, 80)],
            "an app of another Space": [space],
        }
        forbidden = [one for group in targets.values() for one in group]
        # From 28 on, an engine lets nobody reach a container by its address from outside of its network.
        by_engine = {space} if major_version(url) >= 28 else set()
        allowed = [(PUBLIC, port) for port in OPEN]
        for number, fence in enumerate((None, fence_of(tmp_path, url))):
            names.clear()
            around.hits.clear()
            hits.clear()
            got = reached_by_a_build(tmp_path / str(number), url, [*allowed, *forbidden], fence)
            if fence is None:
                # Without the fence all is reached: every one of them can fail.
                wanted = {*allowed, *forbidden} - by_engine
                assert got - {REBINDING} >= {*map(str, wanted)}, missing(got, targets)
                assert {host for _, host, _ in around.hits} >= {LAN, CARRIER, METADATA, PUBLIC}
                assert hits == {*here, (LAN6, 80)}
            else:
                assert got == {*map(str, allowed)}
                assert {(host, port) for _, host, port in around.hits} == {*allowed}
                assert hits == set()
            # It was public at first, and private when it was connected to again.
            assert names[:2] == [PUBLIC, LAN]
            assert (REBINDING in got) == (fence is None)


def fence_of(folder: Path, url: str) -> BuildFence:
    """As the platform puts it up, with the name server of this test in place of the machine's."""
    like = build_fence("buildtestb", DockerSettings(url=url), BRIDGE)
    resolv_conf = folder / "resolv.conf"
    resolv_conf.write_text(f"nameserver {GATEWAY}\n")
    return BuildFence(Fence(like.name, like.rules, resolv_conf))


def reached_by_a_build(root: Path, url: str, targets: Sequence[Target], fence: BuildFence | None) -> set[str]:
    """What one RUN step could connect to, as it says itself."""
    each = 'timeout 4 bash -c "</dev/tcp/$0/$1" 2>/dev/null && echo "got:$0 $1" || true'
    steps = [
        # The same name twice: each time it is asked for anew.
        f"for n in 1 2; do timeout 4 bash -c '</dev/tcp/{REBINDING}/80' 2>/dev/null && echo \"name:$n\"; done",
        # So many at once as stays below the processes that a build may start.
        f"echo {' '.join(f'{host} {port}' for host, port in targets)} | xargs -n 2 -P {AT_ONCE} sh -c '{each}'",
        "echo all-tried",
    ]
    text = "RUN " + "; ".join(steps) + "\n"
    log = Log()
    with builds_on(root, url, **({"fence": fence.building, "unfence": fence.release} if fence else {})) as builds:
        try:
            builds.dockerfile(text, log=log)
        finally:
            builds.builder.close()
    assert "all-tried" in log.lines
    assert "name:1" in log.lines  # names are resolved, and public addresses are reached by them
    pairs = [line.removeprefix("got:").split() for line in log.lines if line.startswith("got:")]
    return {str((host, int(port))) for host, port in pairs} | ({REBINDING} if "name:2" in log.lines else set())


def major_version(url: str) -> int:
    return int(cli(url, "version", "--format", "{{.Server.Version}}").stdout.partition(".")[0])


def missing(got: set[str], targets: dict[str, list[Target]]) -> str:
    return "; ".join(
        f"{name}: {[one for one in group if str(one) not in got]}"
        for name, group in targets.items()
        if any(str(one) not in got for one in group)
    )


# --- the machine and what is around it -----------------------------------------------------------------------------
@contextmanager
def engine_on_a_bridge(other: str) -> Iterator[str]:
    """An engine whose builds run on a bridge of this test, with the base image; forwarded wherever the machine can."""
    forwarding = Path("/proc/sys/net/ipv6/conf/all/forwarding")
    before = forwarding.read_text()
    ways = [(program, way) for program in ("iptables", "ip6tables") for way in ("-i", "-o")]
    with ExitStack() as stack:
        subprocess.run(["ip", "link", "del", BRIDGE], check=False, capture_output=True)  # of a run that was killed
        call("ip", "link", "add", BRIDGE, "type", "bridge")
        stack.callback(call, "ip", "link", "del", BRIDGE)
        call("ip", "address", "add", f"{GATEWAY}/24", "dev", BRIDGE)
        call("ip", "-6", "address", "add", f"{GATEWAY6}/64", "dev", BRIDGE, "nodad")
        call("ip", "link", "set", BRIDGE, "up")
        stack.callback(forwarding.write_text, before)
        forwarding.write_text("1")
        for program, way in ways:
            rule = ("FORWARD", way, BRIDGE, "-j", "ACCEPT")
            call(program, "-w", "10", "-A", *rule)
            stack.callback(call, program, "-w", "10", "-D", *rule)
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dockerd-", ignore_cleanup_errors=True)))
        flags = (
            f"--bridge={BRIDGE}",
            "--iptables=false",
            "--ip6tables=false",
            "--ipv6",
            f"--fixed-cidr-v6={GATEWAY6}/64",
            f"--dns={GATEWAY}",
        )
        url = stack.enter_context(own_engine(place, *flags)).url
        copy_image(other, url, BASE)
        yield url


LISTEN6 = """
import socket, sys
server = socket.create_server((sys.argv[1], 80), family=socket.AF_INET6)
print("ready", flush=True)
while True:
    server.accept()[0].close()
    print("hit", flush=True)
"""


@contextmanager
def neighbour_by_ipv6(around: Neighbourhood, hits: set[Target]) -> Iterator[None]:
    """A listener in the neighbours' network, which the machine forwards to."""
    host = str(ipaddress.IPv6Address(LAN6) - 1)
    call("ip", "-6", "address", "add", f"{host}/64", "dev", DEVICE, "nodad")
    around.inside("ip", "-6", "address", "add", f"{LAN6}/64", "dev", "eth0", "nodad")
    around.inside("ip", "-6", "route", "add", "default", "via", host)
    argv = ["ip", "netns", "exec", around.namespace, sys.executable, "-I", "-S", "-c", LISTEN6, LAN6]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        in_thread(partial(note_lines, process.stdout, (LAN6, 80), hits))
        try:
            yield
        finally:
            process.kill()


def note_lines(lines: IO[str], target: Target, hits: set[Target]) -> None:
    for _ in lines:
        hits.add(target)


@contextmanager
def canaries(targets: Sequence[Target], hits: set[Target]) -> Iterator[None]:
    """Listeners of this machine, and which of them were reached."""
    with ExitStack() as stack:
        for host in {host for host, _ in targets} - {GATEWAY, "::"}:
            subprocess.run(["ip", "address", "add", f"{host}/32", "dev", "lo"], check=False, capture_output=True)
            stack.callback(call, "ip", "address", "del", f"{host}/32", "dev", "lo")
        for host, port in targets:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            server = stack.enter_context(socket.create_server((host, port), family=family))
            in_thread(partial(accept, server, (host, port), hits))
            stack.callback(server.shutdown, socket.SHUT_RDWR)
        yield


def accept(server: socket.socket, target: Target, hits: set[Target]) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        hits.add(target)
        connection.close()


@contextmanager
def rebinding_name(address: str) -> Iterator[list[str]]:
    """A name server that answers every question by a public address first and by a private one ever after.

    What it has answered; to be cleared to begin anew.
    """
    answers: list[str] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((address, 53))

        def serve() -> None:
            while True:
                try:
                    data, sender = server.recvfrom(1000)
                except OSError:
                    return  # closed while it waited
                if not data:
                    return
                query = dns.message.from_wire(data)
                response = dns.message.make_response(query)
                if query.question[0].rdtype == dns.rdatatype.A:
                    answers.append(LAN if answers else PUBLIC)
                    name = query.question[0].name
                    response.answer.append(dns.rrset.from_text(name, 0, "IN", "A", answers[-1]))
                server.sendto(response.to_wire(), sender)

        thread = in_thread(serve)
        yield answers
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", (address, 53))
        thread.join(10)


@contextmanager
def another_space(url: str) -> Iterator[Target]:
    """An app in a container on the engine that others use, without a fence of its own: what builds may not reach it by
    is the fence of builds alone."""
    with place_on(url) as place:
        running = place.orchestrator(fence=False)
        spec = place.spec(apps.server(), app_port=8080)
        running.start(spec)
        host, _, port = str(ready(running, spec.id).endpoint).partition(":")
        yield host, int(port)


def own_addresses(version: int) -> list[str]:
    """Of this machine, but for loopback and the bridges of apps, which others make and remove meanwhile."""
    found = []
    for line in call("ip", f"-{version}", "-o", "addr", "show").splitlines():
        words = line.split()
        device, address = words[1], ipaddress.ip_interface(words[3]).ip
        if device == BRIDGE and address.is_link_local:
            found.append(f"{address}%eth0")  # as a build sees it
        elif not address.is_loopback and not address.is_link_local and not device.startswith("sp"):
            found.append(str(address))
    return found
