"""Whether an app answers: TCP, then HTTP. Owns one attempt and its verdict; watcher.py owns when and what follows.

Any status below 500 counts as an answer: an app behind a login or without a page at its root is still up.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from dataclasses import dataclass

MAX_HEAD = 16 << 10


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one attempt found."""

    connected: bool
    ready: bool
    words: str


async def attempt(port: int, path: str, timeout: float, host: str = "127.0.0.1") -> Verdict:
    """Connect to an IPv4 address and send one GET. Takes `timeout` seconds at most; never raises but CancelledError."""
    writer: asyncio.StreamWriter | None = None
    refused = Verdict(False, False, f"nothing listens on port {port} yet")
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # On one machine the refusal, which is what most attempts find, is there before connect(2) returns.
        begun = connection.connect_ex((host, port)) == errno.EINPROGRESS
        if begun and connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED:
            return refused
        async with asyncio.timeout(timeout):
            try:
                await asyncio.get_running_loop().sock_connect(connection, (host, port))
            except ConnectionRefusedError:
                return refused
            except OSError as error:
                return Verdict(False, False, f"port {port}: {error.strerror or error}")
            reader, writer = await asyncio.open_connection(sock=connection, limit=MAX_HEAD)
            writer.write(
                f"GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nUser-Agent: spaces-probe\r\n"
                "Accept: */*\r\nConnection: close\r\n\r\n".encode()
            )
            return verdict(await reader.readline(), path)
    except TimeoutError:
        return Verdict(writer is not None, False, f"GET {path}: no answer within {timeout:g} seconds")
    except (OSError, ValueError) as error:
        return Verdict(True, False, f"GET {path}: {error}")
    finally:
        if writer is not None:
            writer.close()
        else:
            connection.close()


def verdict(line: bytes, path: str) -> Verdict:
    """What the first line of an answer means."""
    words = line.decode("latin-1").split(None, 2)
    if len(words) < 2 or not words[0].startswith("HTTP/") or not words[1].isdigit():
        shown = line[:60].decode("latin-1").strip()
        return Verdict(True, False, f"GET {path}: no HTTP answer" + (f": {shown!r}" if shown else ""))
    return Verdict(True, int(words[1]) < 500, f"GET {path}: HTTP {words[1]}")
