"""Which addresses a deployment's processes listen on, from /proc. Pure reading; see proc(5) and proc_pid_net(5)."""

from __future__ import annotations

import ipaddress
import os
import struct
from collections.abc import Iterable
from pathlib import Path

LISTEN = "0A"


def listening(pids: Iterable[int]) -> tuple[tuple[str, ...], bool]:
    """(`address:port` of each listening TCP socket the processes hold, whether all processes could be looked at)."""
    inodes, complete = _socket_inodes(pids)
    found = {address for inode, address in _listeners("/proc/net") if inode in inodes}
    return tuple(sorted(found)), complete


def listening_beside(pid: int) -> tuple[str, ...]:
    """`address:port` of each listening TCP socket in the network namespace of a process; nothing once it is gone."""
    try:
        return tuple(sorted(address for _, address in _listeners(f"/proc/{pid}/net")))
    except OSError:
        return ()


def parse(line: str) -> tuple[str, str] | None:
    """(socket inode, address) of one row of /proc/net/tcp or tcp6 that listens; None for any other row."""
    fields = line.split()
    if len(fields) < 10 or fields[3] != LISTEN:
        return None
    host, port = fields[1].split(":")
    words = [struct.pack("=I", int(host[i : i + 8], 16)) for i in range(0, len(host), 8)]
    address = ipaddress.ip_address(b"".join(words))
    shown = f"[{address}]" if address.version == 6 else str(address)
    return fields[9], f"{shown}:{int(port, 16)}"


def _listeners(net: str) -> Iterable[tuple[str, str]]:
    for name in ("tcp", "tcp6"):
        table = Path(net, name)
        if table.exists():
            for line in table.read_text().splitlines()[1:]:
                row = parse(line)
                if row is not None:
                    yield row


def _socket_inodes(pids: Iterable[int]) -> tuple[set[str], bool]:
    found: set[str] = set()
    complete = True
    for pid in pids:
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                try:
                    target = os.readlink(f"/proc/{pid}/fd/{fd}")
                except FileNotFoundError:
                    continue
                if target.startswith("socket:["):
                    found.add(target[8:-1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        except PermissionError:
            complete = False
    return found, complete
