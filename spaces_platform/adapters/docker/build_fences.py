"""The fence around builds, from its owner's side: put up before a build, gone with the platform.

All builds of an engine run on its default bridge, whosever they are. Each platform has a fence there of its own, and a
packet passes them all: with several platforms, builds reach what every one of them allows. So a fence must not outlive
its platform, and must stand as long as any process of it may build.

Owns: who uses which fence, and taking down what nobody uses. Does not own: the rules (`fence`). Invariant: whoever
builds holds the fence; nobody's fence is taken down while it is held. Holding is a unix socket with an abstract name:
the kernel keeps those for each network namespace, as it keeps the rules, and a killed process holds none.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from spaces_platform.errors import Unavailable

from . import fence as rules
from .fence import Fence
from .settings import instance_of

log = logging.getLogger(__name__)
PROGRAMS = ("iptables", "ip6tables")
WAIT_SECONDS = 10.0
"""How long another process may be about it: each call of iptables takes some milliseconds."""
_HELD = "spaces-fence-held/"
_ALONE = "spaces-fence-changing"
_CHAIN = re.compile(r"-N SPACES-([0-9a-f]{8}b)-(?:OUT|HOST)")
"""Of builds: their names end in `b`. Those of apps guard what goes on without a platform, and are left alone here."""


class BuildFence:
    """The fence of one process that builds. Safe to use from several threads; to be made after a fork."""

    def __init__(self, fence: Fence) -> None:
        self.fence = fence
        self._lock = threading.Lock()
        self._held: socket.socket | None = None
        self._running = 0

    @contextmanager
    def building(self) -> Iterator[None]:
        """Fenced in while it is entered. Raises Unavailable where that cannot be had."""
        with self._lock:
            with _alone():
                if self._held is None:
                    self._held = _bound(f"{_HELD}{self.fence.name}/{os.getpid()}-{secrets.token_hex(4)}")
                self.fence.ensure()
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1

    def release(self) -> None:
        """No build begins here any more: take the fence down, unless another process of the platform holds it.

        Where one still runs, the fence stays, and is stale once this process has ended. Raises Unavailable.
        """
        with self._lock:
            if self._running:
                log.info("the fence of builds stays: %d of them still run", self._running)
                return
            with _alone():
                if self._held is not None:
                    self._held.close()
                    self._held = None
                if self.fence.name not in held():
                    self.fence.remove()


def name_of(data: Path) -> str:
    """Of the platform that has this data directory."""
    return f"{instance_of(data)}b"


def remove_stale() -> list[str]:
    """Take down the fences of builds that nobody holds; their names. Raises Unavailable."""
    if not stale():
        return []
    with _alone():
        names = stale()
        for name in names:
            for program in PROGRAMS:
                rules.take_down(program, name)
    return names


def stale() -> list[str]:
    """Fences of builds whose platform is gone, or has not built since it started. Raises Unavailable."""
    return sorted(set(standing()) - held())


def standing() -> list[str]:
    """Names of all fences of builds on this machine. Raises Unavailable."""
    return names_of([line for program in PROGRAMS for line in rules.saved(program)])


def names_of(lines: Sequence[str]) -> list[str]:
    """Names of the fences of builds among rules. Pure."""
    found = (_CHAIN.fullmatch(line) for line in lines)
    return sorted({match[1] for match in found if match is not None})


def held() -> set[str]:
    """Names of the fences that some process holds."""
    words = Path("/proc/net/unix").read_text(errors="replace").split()
    return {word.split("/")[1] for word in words if word.startswith(f"@{_HELD}")}


@contextmanager
def _alone() -> Iterator[None]:
    """No other process of this machine takes a fence up or down meanwhile."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            mine = _bound(_ALONE)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"another process has been changing the fence of builds for {WAIT_SECONDS} s"
                ) from error
            time.sleep(0.01)
    try:
        yield
    finally:
        mine.close()


def _bound(name: str) -> socket.socket:
    """A socket that has an abstract name until it is closed. Raises OSError where somebody has it."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        made.bind(f"\0{name}")
    except OSError:
        made.close()
        raise
    return made
