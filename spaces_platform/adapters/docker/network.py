"""One network per Space: a bridge of its own, made at the Space's first start, dropped when it has been idle longest.

Owns names, subnets and the number of networks; not what may pass between them (fence.py). Sleeping Spaces must not hold
networks for ever: each costs the kernel a bridge and the engine a walk through its rules.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spaces_platform.errors import Conflict, Invalid, PlatformError, Unavailable

from .engine import BRIDGE, Engine

log = logging.getLogger(__name__)
Subnet = ipaddress.IPv4Network
INSTANCE = "spaces.instance"
SPACE = "spaces.space-id"
PREFIX_LENGTH = 28
ROUTES = Path("/proc/net/route")
_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def bridge_prefix(instance: str) -> str:
    """What the names of all bridges of one platform begin with; the fence goes by it."""
    return f"sp{instance[:4]}-"


def bridge_name(instance: str, space_id: int) -> str:
    """At most 15 characters, the kernel's limit (IFNAMSIZ), for every id below 36^8."""
    text, number = "", space_id
    while number or not text:
        number, digit = divmod(number, 36)
        text = _DIGITS[digit] + text
    return bridge_prefix(instance) + text


def next_subnet(pool: Subnet, taken: Iterable[Subnet], after: Subnet | None) -> Subnet:
    """The next free one of the pool behind `after`, round and round: an address is used again as late as can be.

    Raises Unavailable where all are taken.
    """
    size = 1 << (32 - PREFIX_LENGTH)
    count = pool.num_addresses // size
    base = int(pool.network_address)
    first = (int(after.network_address) - base) // size + 1 if after is not None and after.subnet_of(pool) else 0
    occupied: set[int] = set()
    for other in taken:
        if other.overlaps(pool):
            low = max(int(other.network_address), base)
            high = min(int(other.broadcast_address), base + pool.num_addresses - 1)
            occupied.update(range((low - base) // size, (high - base) // size + 1))
    for step in range(count):
        index = (first + step) % count
        if index not in occupied:
            return ipaddress.IPv4Network((base + index * size, PREFIX_LENGTH))
    raise Unavailable(f"all {count} networks of {pool} are in use; stop an app or set a larger app_subnets")


def routed_in(pool: Subnet, routes: str) -> list[Subnet]:
    """What of the pool this machine already has routes to, by the text of /proc/net/route (proc_pid_net(5)).

    The engine looks at routes only where it chooses a subnet itself. A bridge that nothing answers for any more, or a
    tunnel, would take the packets of ours. Wider routes than the pool are not counted: ours win over them.
    """
    found = []
    for line in routes.splitlines()[1:]:
        fields = line.split()
        address, mask = (int.from_bytes(bytes.fromhex(fields[index]), "little") for index in (1, 7))
        route = ipaddress.IPv4Network((address, mask.bit_count()), strict=False)
        if route.subnet_of(pool):
            found.append(route)
    return found


@dataclass(slots=True)
class _Network:
    id: str
    subnet: Subnet | None
    used_at: float = field(default_factory=time.monotonic)


class Networks:
    """The networks of one platform. Safe to call from any thread."""

    def __init__(self, engine: Engine, instance: str, pool: str, keep_idle: int) -> None:
        self._engine, self._instance, self._keep = engine, instance, keep_idle
        try:
            self._pool = ipaddress.IPv4Network(pool)
        except ValueError as error:
            raise Invalid(f"app_subnets {pool!r} is not an IPv4 network like 10.213.0.0/16") from error
        if self._pool.prefixlen > PREFIX_LENGTH:
            raise Invalid(f"app_subnets {pool} is smaller than one network of 16 addresses")
        self._lock = threading.Lock()
        self._known: dict[int, _Network] = {}
        self._last: Subnet | None = None

    def load(self) -> None:
        """Find what an earlier control plane made; what is left of an engine that knows nothing of it is removed."""
        with self._lock:
            self._known = {}
            networks = self._engine.networks()
            _remove_bridges(left_over(self._instance, [name for _, name in socket.if_nameindex()], networks))
            for found in networks:
                labels = found.get("Labels") or {}
                number = str(labels.get(SPACE, ""))
                if labels.get(INSTANCE) == self._instance and number.isdigit():
                    self._known[int(number)] = _Network(str(found["Id"]), next(iter(_subnets([found])), None))

    def name(self, space_id: int) -> str:
        return f"spaces-{self._instance}-{space_id}"

    def ensure(self, space_id: int) -> str:
        """The name of the Space's network, which exists when this returns. Raises Unavailable."""
        with self._lock:
            known = self._known.get(space_id)
            if known is None:
                known = self._known[space_id] = self._create(space_id)
            known.used_at = time.monotonic()
        return self.name(space_id)

    def lost(self, space_id: int) -> None:
        """The engine does not have it: make it anew next time."""
        with self._lock:
            self._known.pop(space_id, None)

    def trim(self, in_use: Callable[[], set[int]]) -> None:
        """Remove the networks that have been idle longest, down to the number that is kept."""
        with self._lock:
            busy = in_use()
            idle = sorted((n.used_at, space_id) for space_id, n in self._known.items() if space_id not in busy)
            for _, space_id in idle[: max(len(idle) - self._keep, 0)]:
                self._remove(space_id)

    def all(self) -> list[int]:
        """The Spaces that have a network."""
        with self._lock:
            return sorted(self._known)

    def remove(self, space_id: int) -> None:
        """Remove a Space's network, unless something is on it."""
        with self._lock:
            self._remove(space_id)

    def _remove(self, space_id: int) -> None:
        known = self._known.get(space_id)
        if known is None:
            return
        try:
            self._engine.remove_network(known.id)
        except Conflict:
            return  # a container came on it meanwhile; it is idle again later
        except PlatformError as error:
            log.warning("the network of Space %d stays for now: %s", space_id, error)
            return
        del self._known[space_id]

    def _create(self, space_id: int) -> _Network:
        name = self.name(space_id)
        labels = {INSTANCE: self._instance, SPACE: str(space_id)}
        taken = {*_subnets(self._engine.networks()), *routed_in(self._pool, ROUTES.read_text())}
        for _ in range(8):
            subnet = self._last = next_subnet(self._pool, taken, self._last)
            try:
                made = self._engine.create_network(name, bridge_name(self._instance, space_id), str(subnet), labels)
                return _Network(made, subnet)
            except Conflict:
                return _Network(name, None)
            except (Invalid, Unavailable) as error:
                if "overlap" not in str(error):
                    raise
                taken.add(subnet)  # another platform, or the machine itself, has just taken it
        raise Unavailable(f"no free network for {name}: {self._pool} overlaps with others; set another app_subnets")


def left_over(instance: str, interfaces: Iterable[str], networks: Iterable[Mapping[str, Any]]) -> list[str]:
    """The bridges of one platform that belong to no network. Pure.

    The engine would take such a one for its network of that name, as it is, and never remove it again.
    """
    known = {str((found.get("Options") or {}).get(BRIDGE)) for found in networks}
    ours = re.compile(re.escape(bridge_prefix(instance)) + "[0-9a-z]+")
    return [name for name in interfaces if ours.fullmatch(name) and name not in known]


def _remove_bridges(names: Iterable[str]) -> None:
    for name in names:
        log.warning("the bridge %s is of no network that the engine knows: it is removed", name)
        try:
            argv = ["ip", "link", "delete", name]
            subprocess.run(argv, check=True, capture_output=True, timeout=10, env={"PATH": _PATH})
        except (OSError, subprocess.SubprocessError) as error:
            log.warning("the bridge %s stays: %s", name, error)


def _subnets(networks: Iterable[object]) -> list[Subnet]:
    found = []
    for network in networks:
        ipam = network.get("IPAM") if isinstance(network, dict) else None
        for config in (ipam or {}).get("Config") or ():
            text = str(config.get("Subnet", ""))
            if "." in text:
                found.append(ipaddress.IPv4Network(text, strict=False))
    return found
