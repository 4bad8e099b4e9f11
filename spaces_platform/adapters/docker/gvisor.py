"""What is different where apps run under gVisor: each has a kernel of its own, made of ordinary threads of this host.

Owns the facts, all of them pure; where they matter, the modules around ask. Seen with the releases of 2022-12-19 (on
ptrace) and 2024-07-29 (on systrap).

- The host's limit of processes counts gVisor's own threads, and gVisor ends at it. The app's own limit is set inside.
- Held from outside, gVisor does not answer the engine, which then waits for ever. It pauses an app itself, and must let
  it go on before the app can be given a signal.
- The engine's name server listens on the loopback of the host's side, which apps do not have. They ask the servers that
  it asks.
- What an app listens on is not seen from outside.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OWN_TASKS = 256
"""Threads of gVisor itself, where nothing runs in it yet. Seen: up to 79."""
TASKS_PER_PROCESS = 4
"""Threads of the host for one process in it. Seen on systrap: up to 3."""


def is_gvisor(name: str, runtime: Mapping[str, Any]) -> bool:
    """Whether one runtime of the answer to `GET /info` is gVisor, by its name, program or shim."""
    words = (name, str(runtime.get("path") or ""), str(runtime.get("runtimeType") or runtime.get("type") or ""))
    return any("runsc" in word or "gvisor" in word for word in words)


def host_tasks(processes: int) -> int:
    """The host's limit of tasks for an app that may have so many processes: wide, since gVisor ends where it is hit."""
    return OWN_TASKS + TASKS_PER_PROCESS * processes
