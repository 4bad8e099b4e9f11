"""Free TCP ports of a range. Owns which are lent; a port just given back is the last to be lent again, because a stale
route may still point to it. Not safe for threads by itself."""

from __future__ import annotations

import random
import socket

from spaces_platform.errors import Unavailable


class PortRange:
    """Ports `first` to `last`."""

    def __init__(self, first: int, last: int) -> None:
        self._first, self._count = first, last - first + 1
        self._next = random.randrange(self._count)
        self._lent: set[int] = set()

    def take(self) -> int:
        """A port that nothing listens on now. Raises Unavailable when all are taken."""
        for _ in range(self._count):
            port = self._first + self._next
            self._next = (self._next + 1) % self._count
            if port not in self._lent and _free(port):
                self._lent.add(port)
                return port
        last = self._first + self._count - 1
        raise Unavailable(f"no free port between {self._first} and {last}; widen the range or stop some apps")

    def reserve(self, port: int) -> None:
        """Mark as lent: an adopted deployment has it."""
        self._lent.add(port)

    def release(self, port: int) -> None:
        self._lent.discard(port)


def _free(port: int) -> bool:
    """Whether an app could listen here on any address."""
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind((address, port))
        except OSError as error:
            if family == socket.AF_INET or error.errno == 98:
                return False
    return True
