"""How long fences around builds stand, and what two of them do to each other: real rules, in a network of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="fences are put up by root")
ONE, TWO = "0000000ab", "0000000bb"
PLATFORM = """
import sys
from contextlib import ExitStack
from spaces_platform.adapters.docker.build_fences import BuildFence, remove_stale
from spaces_platform.adapters.docker.fence import build_fence
from spaces_platform.adapters.docker.settings import DockerSettings
name, *allow = sys.argv[1:]
fence = BuildFence(build_fence(name, DockerSettings(egress_allow=tuple(allow)), "spbuild0"))
builds = ExitStack()
print("ready", flush=True)
for line in sys.stdin:
    match line.strip():
        case "begin": builds.enter_context(fence.building())
        case "end": builds.close()
        case "stop": fence.release()
        case "start": print(*remove_stale(), sep=",", end=" ")
    print("done", flush=True)
"""
LISTEN = """
import select, socket
servers = [socket.create_server(("192.168.213.1", port)) for port in (1001, 1002, 1003)]
print("ready", flush=True)
while True:
    for server in select.select(servers, [], [])[0]:
        server.accept()[0].close()
"""
CONNECT = """
import json, socket
reached = []
for port in (1001, 1002, 1003):
    try:
        socket.create_connection(("192.168.213.1", port), 2).close()
        reached.append(port)
    except OSError:
        pass
print(json.dumps(reached))
"""


class Process:
    """A process of a platform that builds, in the network of the test."""

    def __init__(self, network: Network, name: str, *allow: str) -> None:
        self._process = network.start(PLATFORM, name, *allow)

    def tell(self, order: str) -> str:
        """Do it; what it says."""
        pipes = self._process
        assert pipes.stdin is not None
        assert pipes.stdout is not None
        pipes.stdin.write(f"{order}\n")
        pipes.stdin.flush()
        said = pipes.stdout.readline().strip()
        assert said.endswith("done"), said
        return said.removesuffix("done").strip()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Network:
    """A network namespace: rules and abstract sockets of its own."""

    def __init__(self, name: str, stack: ExitStack) -> None:
        self.name, self._stack = name, stack

    def start(self, source: str, *arguments: str, inside: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        """A Python program there that says `ready`."""
        argv = ["ip", "netns", "exec", self.name, *inside, sys.executable, "-c", source, *arguments]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    def call(self, *argv: str) -> str:
        done = subprocess.run(["ip", "netns", "exec", self.name, *argv], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{argv}: {done.stderr}"
        return done.stdout

    def fences(self) -> set[str]:
        """Names of the chains, and of what leads to them, by both protocols."""
        lines = [line for program in ("iptables", "ip6tables") for line in self.call(program, "-S").splitlines()]
        return {word for line in lines for word in line.split() if word.startswith("SPACES-")}


@pytest.fixture
def network() -> Iterator[Network]:
    if any(shutil.which(tool) is None for tool in ("ip", "iptables-restore", "ip6tables-restore", "nsenter")):
        pytest.skip("network namespaces need the packages iproute2, iptables and util-linux")
    name = f"spfences-{os.getpid()}"
    with ExitStack() as stack:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True)  # of a run that was killed
        subprocess.run(["ip", "netns", "add", name], check=True)
        stack.callback(subprocess.run, ["ip", "netns", "delete", name], check=True)
        yield Network(name, stack)


def chains(*names: str) -> set[str]:
    return {f"SPACES-{name}-{end}" for name in names for end in ("OUT", "HOST")}


def test_a_fence_goes_with_the_last_process_of_its_platform(network: Network) -> None:
    first, second, other = Process(network, ONE), Process(network, ONE), Process(network, TWO)
    for process in (first, second, other):
        process.tell("begin")
        process.tell("end")
    assert network.fences() == chains(ONE, TWO)
    second.tell("stop")
    assert network.fences() == chains(ONE, TWO)
    first.tell("stop")
    assert network.fences() == chains(TWO)
    first.tell("stop")  # removing the absent is success
    other.tell("stop")
    assert network.fences() == set()
    assert "SPACES" not in network.call("iptables", "-S")


def test_a_fence_stands_while_a_build_runs(network: Network) -> None:
    process, other = Process(network, ONE), Process(network, TWO)
    process.tell("begin")
    process.tell("stop")
    assert other.tell("start") == ""
    assert network.fences() == chains(ONE)
    process.tell("end")
    process.tell("stop")
    assert network.fences() == set()


def test_the_fence_of_a_killed_platform_goes_when_another_starts(network: Network) -> None:
    killed, lives, starts = Process(network, ONE), Process(network, TWO), Process(network, "0000000cb")
    for process in (killed, lives):
        process.tell("begin")
        process.tell("end")
    # Somebody's twice, as two processes that looked at the same time once made them; and one of an app, which stays.
    network.call("iptables", "-I", "INPUT", "1", "-i", "spbuild0", "-j", f"SPACES-{ONE}-HOST")
    network.call("iptables", "-N", "SPACES-0000000a-OUT")
    killed.kill()
    assert network.fences() == chains(ONE, TWO) | {"SPACES-0000000a-OUT"}
    assert starts.tell("start") == ONE
    assert network.fences() == chains(TWO) | {"SPACES-0000000a-OUT"}
    lives.tell("stop")
    assert network.fences() == {"SPACES-0000000a-OUT"}


def test_many_at_once_leave_each_rule_once(network: Network) -> None:
    processes = [Process(network, ONE) for _ in range(4)]
    for process in processes:
        assert process._process.stdin is not None
        process._process.stdin.write("begin\n")
        process._process.stdin.flush()
    for process in processes:
        assert process._process.stdout is not None
        assert process._process.stdout.readline() == "done\n"
    rules = network.call("iptables", "-S").splitlines()
    assert len([rule for rule in rules if rule.startswith(("-A INPUT", "-A FORWARD"))]) == 2
    assert len(rules) == len(set(rules))


def test_beside_each_other_builds_reach_what_both_allow_and_alone_what_one_does(network: Network) -> None:
    """Neither opens what the other closes; what one closes for the other is open again once it is gone."""
    for line in (
        "ip link set lo up",
        "ip link add spbuild0 type bridge",
        "ip addr add 192.168.213.1/24 dev spbuild0",
        "ip link set spbuild0 up",
        "ip link add spv0 type veth peer name spv1",
        "ip link set spv0 master spbuild0 up",
    ):
        network.call(*line.split())
    network.start(LISTEN)
    waits = "import sys; print('ready', flush=True); sys.stdin.read()"
    build = network.start(waits, inside=("unshare", "--net"))
    step = ("nsenter", "--net", f"--target={build.pid}")
    network.call("ip", "link", "set", "spv1", "netns", str(build.pid))
    network.call(*step, "ip", "addr", "add", "192.168.213.2/24", "dev", "spv1")
    network.call(*step, "ip", "link", "set", "spv1", "up")

    def reached() -> list[int]:
        found: list[int] = json.loads(network.call(*step, sys.executable, "-I", "-S", "-c", CONNECT))
        return found

    assert reached() == [1001, 1002, 1003]  # without a fence
    one = Process(network, ONE, "192.168.213.1:1001", "192.168.213.1:1002")
    two = Process(network, TWO, "192.168.213.1:1002", "192.168.213.1:1003")
    one.tell("begin")
    assert reached() == [1001, 1002]
    two.tell("begin")
    assert reached() == [1002]
    one.tell("end")
    one.tell("begin")  # the newer one is no stronger
    assert reached() == [1002]
    two.tell("end")
    two.tell("stop")
    assert reached() == [1001, 1002]
