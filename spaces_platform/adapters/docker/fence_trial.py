"""Shows that a fence holds, on this kernel and with the rules that are there now, without any container.

Two bridges with names that the fence goes by, a network namespace on each, as two Spaces would have them. The host
must reach both (else the trial itself does not work), and neither the host nor the other may be reached.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from spaces_platform.errors import Unavailable

from .fence import Fence

SECONDS = 1.0
"""How long a connection may take here; nothing is far away."""
NETWORK = "100.127.255"
"""Of the shared address space (RFC 6598), in use for the moment of the trial."""
_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
_LISTEN = "import socket,sys;s=socket.create_server(('0.0.0.0',7));print('ok',flush=True);sys.stdin.read()"
_CONNECT = (
    "import socket,sys\n"
    "for a in sys.argv[2:]:\n"
    " h,p=a.split(':')\n"
    " try: socket.create_connection((h,int(p)),float(sys.argv[1])).close();print(a)\n"
    " except OSError: pass\n"
)
_one_at_a_time = threading.Lock()


def run(fence: Fence) -> str:
    """What is wrong with the fence, in words; empty where it holds. Raises Unavailable where it cannot be tried."""
    ip = shutil.which("ip", path=_PATH)
    if ip is None:
        raise Unavailable("the fence could not be tried: ip is not installed (Debian: iproute2)")
    prefix = fence.rules.interfaces[0].removesuffix("+")
    with (
        _one_at_a_time,
        _lab(ip, prefix) as (first, second),
        _listening(first),
        _listening(second),
        socket.create_server(("", 0)) as canary,
    ):
        port = canary.getsockname()[1]
        for address in (f"{NETWORK}.242", f"{NETWORK}.250"):
            if not _reaches(address, 7):
                raise Unavailable(f"the fence could not be tried: the host does not reach a namespace ({address})")
        targets = {
            f"{NETWORK}.241:{port}": "the host by its bridge",
            f"{NETWORK}.249:{port}": "the host by another bridge",
            f"{NETWORK}.250:7": "another Space",
        }
        argv = [*_inside(ip, first), sys.executable, "-I", "-S", "-c", _CONNECT, str(SECONDS), *targets]
        reached = [targets[line] for line in _call(argv).split()]
    return f"the fence does not hold: {', '.join(reached)} can be reached" if reached else ""


@contextmanager
def _lab(ip: str, prefix: str) -> Iterator[tuple[str, str]]:
    """Two namespaces behind two bridges; all gone afterwards."""
    # `_` is in no name of a Space's bridge; both fit into the 15 characters of a name.
    names = [(f"{prefix}_a", f"{prefix}_c", 240), (f"{prefix}_b", f"{prefix}_d", 248)]
    namespaces = [f"{bridge}-{os.getpid()}" for bridge, _, _ in names]
    try:
        for (bridge, veth, first), namespace in zip(names, namespaces, strict=True):
            inner = f"{ip} -n {namespace}"
            _remove(ip, bridge, namespace)
            for words in (
                f"{ip} netns add {namespace}",
                f"{ip} link add {bridge} type bridge",
                f"{ip} addr add {NETWORK}.{first + 1}/29 dev {bridge}",
                f"{ip} link set {bridge} up",
                f"{ip} link add {veth} type veth peer name eth0 netns {namespace}",
                f"{ip} link set {veth} master {bridge} up",
                f"{inner} addr add {NETWORK}.{first + 2}/29 dev eth0",
                f"{inner} link set eth0 up",
                f"{inner} route add default via {NETWORK}.{first + 1}",
            ):
                _call(words.split())
        yield namespaces[0], namespaces[1]
    finally:
        for (bridge, _, _), namespace in zip(names, namespaces, strict=True):
            _remove(ip, bridge, namespace)


def _remove(ip: str, bridge: str, namespace: str) -> None:
    for words in (f"{ip} netns delete {namespace}", f"{ip} link delete {bridge}"):
        subprocess.run(words.split(), capture_output=True, timeout=10)


def _inside(ip: str, namespace: str) -> list[str]:
    return [ip, "netns", "exec", namespace]


@contextmanager
def _listening(namespace: str) -> Iterator[None]:
    """A listener in a namespace."""
    ip = shutil.which("ip", path=_PATH) or "ip"
    argv = [*_inside(ip, namespace), sys.executable, "-I", "-S", "-c", _LISTEN]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            if process.stdout is None or process.stdout.readline().strip() != b"ok":
                raise Unavailable("the fence could not be tried: nothing can listen in a network namespace")
            yield
        finally:
            process.kill()


def _reaches(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), SECONDS).close()
    except OSError:
        return False
    return True


def _call(argv: list[str]) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"the fence could not be tried: {error}") from error
    if done.returncode:
        raise Unavailable(f"the fence could not be tried: {' '.join(argv[:6])}: {done.stderr.strip()[-200:]}")
    return done.stdout
