"""What lies around a machine, made of one network namespace: hosts that apps may reach and hosts they may not.

Owns: the namespace, its addresses and the listeners that count who reached them. Addresses are of ranges that nothing
else uses here, so that a machine that is at work is not disturbed. Needs root.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from tests.process.harness import wait_for

DEVICE = "spacesnbh0"
HOST, LAN = "192.168.213.1", "192.168.213.2"
PUBLIC = "11.255.213.2"
"""Routed on the internet to nobody who answers; here, to the namespace."""
METADATA, CARRIER, MULTICAST = "169.254.213.2", "100.64.213.2", "224.0.0.213"
PORTS = (22, 25, 53, 80, 443, 3333, 5432, 6379, 8080)
LISTEN = """
import json, select, socket, sys
ports = json.loads(sys.argv[1])
servers = [socket.create_server(("0.0.0.0", port)) for port in ports]
datagrams = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for port in ports]
for server, port in zip(datagrams, ports):
    server.bind(("0.0.0.0", port))
print("ready", flush=True)
while True:
    for server in select.select([*servers, *datagrams], [], [])[0]:
        if server in servers:
            connection, _ = server.accept()
            print("tcp", *connection.getsockname(), flush=True)
            connection.close()
        else:
            server.recv(100)
            print("udp", "any", server.getsockname()[1], flush=True)
"""
CONNECT = """
import json, socket, sys
reached = []
for host, port in json.loads(sys.argv[1]):
    try:
        socket.create_connection((host, port), 2).close()
        reached.append([host, port])
    except OSError:
        pass
print(json.dumps(reached))
"""


@dataclass
class Neighbourhood:
    namespace: str
    hits: set[tuple[str, str, int]] = field(default_factory=set)
    """(protocol, address, port) of all that was reached; the address of a datagram is not known."""
    host_port: int = 0
    """Where this machine itself listens, on all its addresses."""

    def inside(self, *argv: str) -> str:
        """The output of a command there."""
        return call("ip", "netns", "exec", self.namespace, *argv)


def call(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
    return done.stdout


def own_addresses() -> list[str]:
    """The IPv4 addresses of this machine, loopback left out."""
    words = call("ip", "-4", "-o", "addr", "show").split()
    found = [words[n + 1].split("/")[0] for n, word in enumerate(words) if word == "inet"]
    return [address for address in found if not address.startswith("127.")]


@contextmanager
def neighbourhood() -> Iterator[Neighbourhood]:
    """Skips where there can be none."""
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("iptables") is None:
        pytest.skip("network namespaces need root and the packages iproute2 and iptables")
    made = Neighbourhood(f"spacesnbh-{os.getpid()}")
    remove(made.namespace)
    try:
        for line in (
            f"ip netns add {made.namespace}",
            f"ip link add {DEVICE} type veth peer name eth0 netns {made.namespace}",
            f"ip addr add {HOST}/30 dev {DEVICE}",
            f"ip link set {DEVICE} up",
            f"ip -n {made.namespace} link set lo up",
            f"ip -n {made.namespace} addr add {LAN}/30 dev eth0",
            f"ip -n {made.namespace} link set eth0 up",
            f"ip -n {made.namespace} route add default via {HOST}",
            *(f"ip -n {made.namespace} addr add {one}/32 dev lo" for one in (PUBLIC, METADATA, CARRIER)),
            *(f"ip route add {one}/32 via {LAN}" for one in (PUBLIC, METADATA, CARRIER)),
        ):
            call(*line.split())
        with listening(made, PORTS), host_listening(made):
            yield made
    finally:
        remove(made.namespace)


def remove(namespace: str) -> None:
    for line in (f"ip link delete {DEVICE}", f"ip netns delete {namespace}"):
        subprocess.run(line.split(), capture_output=True, timeout=60)


@contextmanager
def listening(place: Neighbourhood, ports: Sequence[int]) -> Iterator[None]:
    argv = ["ip", "netns", "exec", place.namespace, sys.executable, "-I", "-S", "-c", LISTEN, str(list(ports))]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        lines = process.stdout
        assert lines is not None
        assert lines.readline() == "ready\n"

        def read() -> None:
            for line in lines:
                protocol, address, port = line.split()
                place.hits.add((protocol, address, int(port)))

        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield
        finally:
            process.kill()
            reader.join()


@contextmanager
def host_listening(place: Neighbourhood) -> Iterator[None]:
    with socket.create_server(("", 0)) as server:
        place.host_port = int(server.getsockname()[1])

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                place.hits.add(("tcp", *connection.getsockname()[:2]))
                connection.close()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def settled(place: Neighbourhood, expected: set[tuple[str, str, int]]) -> set[tuple[str, str, int]]:
    """The hits, once those that are expected are among them: they are told by another process."""
    wait_for("what may be reached was reached", lambda: expected <= place.hits, 60)
    return place.hits
