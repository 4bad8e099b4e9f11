"""What containers may reach: the public internet on a few ports, name servers, and nothing near.

The rules are values made by pure functions; `Fence` puts them in place by one atomic `iptables-restore --noflush` per
protocol: chains of our own, hooked first into DOCKER-USER (which the engine leaves alone, also when it restarts) and
INPUT. Invariant: a packet from one of our bridges to the host itself, or to any address that is not public, is refused
before anybody else's rules see it. Builds on the engine's default bridge get the same by `build_fence`.

Sources: IANA special-purpose address registries (RFC 6890 and its successors); iptables-restore(8); "Packet filtering
and firewalls" of the Docker documentation.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import shutil
import subprocess
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from spaces_platform.errors import Invalid, Unavailable

from .settings import DockerSettings

log = logging.getLogger(__name__)
NOT_PUBLIC = (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
    "224.0.0.0/4", "240.0.0.0/4",
)  # fmt: skip
"""IPv4 addresses that are not of the public internet: private, shared, link-local (metadata), test, multicast."""
DEFAULT_BRIDGE = "docker0"
RESOLV_CONF = Path("/etc/resolv.conf")
STUB, UPSTREAM = "127.0.0.53", Path("/run/systemd/resolve/resolv.conf")
"""Where systemd-resolved answers, and the file in which it says whom it asks. See systemd-resolved(8)."""
PORTS_PER_RULE = 15
"""What the multiport match takes."""
_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
Hook = tuple[str, tuple[str, ...]]
"""(chain, the words of a rule that must stand in it)"""
_LOCK_SECONDS = "10"
_COMMAND_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Allowed:
    """One destination that is reached in spite of everything."""

    network: str
    port: int = 0
    """TCP port; 0 for every port and protocol."""


@dataclass(frozen=True, slots=True)
class FenceRules:
    """What one kind of container may reach."""

    interfaces: tuple[str, ...]
    """Bridges they are on; `+` at the end stands for any ending."""
    ports: tuple[int, ...] = (80, 443, 8080)
    allow: tuple[Allowed, ...] = ()
    inbound: bool = False
    """Whether others than the host may connect to them: containers of other people publish ports on a shared bridge."""


def parse_allow(text: str) -> Allowed:
    """`10.0.0.5:3128`, `10.1.0.0/16`, `10.0.0.5`. Raises Invalid."""
    address, colon, port = text.strip().partition(":")
    try:
        network = ipaddress.IPv4Network(address)
        number = int(port) if colon else 0
        if colon and not 1 <= number <= 65535:
            raise ValueError(port)
    except ValueError as error:
        raise Invalid(f"egress_allow {text!r} is not like 10.0.0.5:3128 or 10.1.0.0/16") from error
    return Allowed(str(network), number)


def fence_of(settings: DockerSettings, interfaces: tuple[str, ...]) -> FenceRules:
    """Raises Invalid."""
    if any(not 1 <= port <= 65535 for port in settings.egress_ports):
        raise Invalid(f"egress_ports {settings.egress_ports} are not all between 1 and 65535")
    return FenceRules(interfaces, settings.egress_ports, tuple(map(parse_allow, settings.egress_allow)))


def resolv_conf(path: Path = RESOLV_CONF, upstream: Path = UPSTREAM) -> str:
    """The text that the engine takes its name servers from; empty where there is none.

    Where the only one is systemd-resolved's, on an address of its own, the engine asks those behind it.
    """
    text = path.read_text() if path.exists() else ""
    words = [line.split()[1:2] for line in text.splitlines() if line.startswith("nameserver")]
    return upstream.read_text() if words == [[STUB]] and upstream.exists() else text


def name_servers(resolv_conf: str) -> tuple[str, ...]:
    """IPv4 name servers that the engine's resolver asks from inside a container's network.

    Those on a loopback address it asks from the host's, which needs no rule.
    """
    found = []
    for line in resolv_conf.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                address = ipaddress.ip_address(words[1])
            except ValueError:
                continue
            if address.version == 4 and not address.is_loopback:
                found.append(str(address))
    return tuple(found)


def chains(name: str) -> tuple[str, str]:
    """(of packets that pass through, of packets to the host itself); 28 characters are the limit."""
    return f"SPACES-{name}-OUT", f"SPACES-{name}-HOST"


def hooks(name: str, rules: FenceRules, forward: str) -> list[Hook]:
    """What must stand in others' chains. `forward`: where passing packets are first looked at."""
    out, host = chains(name)
    found: list[Hook] = []
    for interface in rules.interfaces:
        found.append((forward, ("-i", interface, "-j", out)))
        if not rules.inbound:  # not from the networks that this machine is a router for
            new = ("-m", "conntrack", "--ctstate", "NEW")
            found.append((forward, ("!", "-i", interface, "-o", interface, *new, "-j", "DROP")))
        found.append(("INPUT", ("-i", interface, "-j", host)))
    return found


def rules_v4(name: str, rules: FenceRules, servers: Sequence[str]) -> list[str]:
    """The content of our chains, in the words of iptables-save."""
    out, host = chains(name)
    answers = "-m conntrack --ctstate ESTABLISHED,RELATED -j"
    lines = [f"-A {out} {answers} RETURN", f"-A {host} {answers} RETURN"]
    for chain in (out, host):
        for one in rules.allow:
            port = f" -p tcp -m tcp --dport {one.port}" if one.port else ""
            lines.append(f"-A {chain} -d {one.network}{port} -j RETURN")
        for server in servers:
            lines += [f"-A {chain} -d {server}/32 -p {p} -m {p} --dport 53 -j RETURN" for p in ("udp", "tcp")]
    # Refused with an answer, so that a program is told at once instead of waiting for nothing.
    refuse = "-j REJECT --reject-with icmp-admin-prohibited"
    lines += [f"-A {out} -d {network} {refuse}" for network in NOT_PUBLIC]
    for start in range(0, len(rules.ports), PORTS_PER_RULE):
        ports = ",".join(map(str, rules.ports[start : start + PORTS_PER_RULE]))
        lines.append(f"-A {out} -p tcp -m multiport --dports {ports} -j RETURN")
    return [*lines, f"-A {out} {refuse}", f"-A {host} {refuse}"]


def rules_v6(name: str) -> list[str]:
    """Containers have no IPv6 but link-local addresses, by which they would reach the host: nothing passes."""
    out, host = chains(name)
    return [f"-A {out} -j REJECT --reject-with icmp6-adm-prohibited", f"-A {host} -j DROP"]


def restore_text(name: str, lines: Iterable[str], missing_hooks: Iterable[Hook]) -> str:
    """Input for `iptables-restore --noflush`: our chains emptied and filled, and hooks put first where they miss."""
    out, host = chains(name)
    inserted = [f"-I {chain} 1 {' '.join(rule)}" for chain, rule in missing_hooks]
    return "\n".join(["*filter", f":{out} - [0:0]", f":{host} - [0:0]", *lines, *inserted, "COMMIT", ""])


def removal_text(name: str, rules: Sequence[str], also: Iterable[Hook] = ()) -> str:
    """Input for `iptables-restore --noflush` that removes a fence from `rules`; empty where it is not in them. Pure."""
    mine, more = chains(name), {words for _, words in also}
    there = [chain for chain in mine if f"-N {chain}" in rules]
    lines = []
    for words in (rule.split() for rule in rules):
        if words[0] == "-A" and words[1] not in mine and (words[-1] in there or tuple(words[2:]) in more):
            lines.append(f"-D {' '.join(words[1:])}")
    lines += [f"{order} {chain}" for order in ("-F", "-X") for chain in there]
    return "\n".join(["*filter", *lines, "COMMIT", ""]) if lines else ""


def missing() -> str:
    """Why there can be no fence here, in words; empty where there can, as far as can be seen without trying."""
    if os.geteuid() != 0:
        return "the platform does not run as root"
    absent = [n for n in ("iptables", "iptables-restore", "ip6tables-restore") if shutil.which(n, path=_PATH) is None]
    return f"{', '.join(absent)} not installed (Debian: iptables)" if absent else ""


class Fence:
    """One fence, put up and kept up. Safe to call from any thread."""

    def __init__(self, name: str, rules: FenceRules, names: Path = RESOLV_CONF) -> None:
        """`name`: up to 12 letters and digits; two fences of one name are one."""
        if not name.isalnum() or len(name) > 12:
            raise ValueError(f"{name!r} cannot name a fence")
        self.name, self.rules, self._resolv_conf = name, rules, names
        self._lock = threading.Lock()

    def ensure(self) -> None:
        """Put everything in place that is not. Idempotent; existing connections live on. Raises Unavailable."""
        servers = name_servers(resolv_conf(self._resolv_conf))
        with self._lock:
            self._apply("iptables", rules_v4(self.name, self.rules, servers))
            self._apply("ip6tables", rules_v6(self.name))

    def holds(self) -> bool:
        """Whether all hooks and chains are in place now. Raises Unavailable."""
        with self._lock:
            return not any(self._missing(program, self._hooks(program)) for program in ("iptables", "ip6tables"))

    def remove(self) -> None:
        """Take it down. Removing the absent is success. Raises Unavailable."""
        with self._lock:
            for program in ("iptables", "ip6tables"):
                take_down(program, self.name, self._hooks(program))

    def _hooks(self, program: str) -> list[Hook]:
        docker = _succeeds([program, "-w", _LOCK_SECONDS, "-n", "-L", "DOCKER-USER"])
        return hooks(self.name, self.rules, "DOCKER-USER" if docker else "FORWARD")

    def _missing(self, program: str, wanted: list[Hook]) -> list[Hook]:
        """Hooks that are not there, the one that must stand first last: each is put before all others."""
        return [(c, r) for c, r in wanted[::-1] if not _succeeds([program, "-w", _LOCK_SECONDS, "-C", c, *r])]

    def _apply(self, program: str, lines: list[str]) -> None:
        text = restore_text(self.name, lines, self._missing(program, self._hooks(program)))
        _run([f"{program}-restore", "--noflush", "-w", _LOCK_SECONDS], text)


def build_fence(name: str, settings: DockerSettings, interface: str = DEFAULT_BRIDGE) -> Fence:
    """The fence around builds: `RUN` steps of BuildKit run on the engine's default bridge.

    Whatever else runs on that bridge is fenced in as well. Call `ensure()` before each build: it is quick. Raises
    Invalid.
    """
    return Fence(name, replace(fence_of(settings, (interface,)), inbound=True))


def take_down(program: str, name: str, also: Iterable[Hook] = ()) -> None:
    """Remove the chains of a fence and all rules that lead to them, at once, and the rules of `also` where they are.

    Removing the absent is success. Raises Unavailable.
    """
    text = removal_text(name, saved(program), also)
    if text:
        _run([f"{program}-restore", "--noflush", "-w", _LOCK_SECONDS], text)


def saved(program: str) -> list[str]:
    """All rules that are there now, in the words of iptables-save. Raises Unavailable."""
    done = _call([program, "-w", _LOCK_SECONDS, "-S"])
    if done.returncode:
        said = " ".join(done.stderr.split())[-300:]
        raise Unavailable(f"{program}: the packet filter could not be read: {said}")
    return done.stdout.splitlines()


def _succeeds(argv: Sequence[str]) -> bool:
    return _call(argv).returncode == 0


def _run(argv: Sequence[str], text: str = "") -> None:
    done = _call(argv, text)
    if done.returncode:
        said = " ".join(done.stderr.split())[-300:]
        raise Unavailable(f"{argv[0]}: the packet filter could not be set: {said}")


def _call(argv: Sequence[str], text: str = "") -> subprocess.CompletedProcess[str]:
    env = {"PATH": _PATH, "LC_ALL": "C"}
    try:
        return subprocess.run(argv, input=text, capture_output=True, text=True, env=env, timeout=_COMMAND_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{argv[0]}: the packet filter could not be set: {error}") from error
