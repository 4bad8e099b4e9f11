"""What `spaces status` knows of the platform on this machine. Reads only."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

from spaces_platform.cli.client import Client, SignIn
from spaces_platform.cli.console import Failure
from spaces_platform.presence import is_supervised, read_state


def local_status(data: Path) -> dict[str, Any]:
    """Whether a supervisor holds `data`, its processes, and what the platform itself says."""
    state = read_state(data)
    if state is None or not is_supervised(data):
        return {"running": False, "ready": False, "data": str(data)}
    processes = {
        name: {**process, "memory_mb": _memory_mb(process["pid"])} for name, process in state["processes"].items()
    }
    seconds = max(0, int(time.time() - state["started_at"]))
    value = {
        **state,
        "running": True,
        "processes": processes,
        "up_seconds": seconds,
        "up": _span(seconds),
        "stages": {},
    }
    host = state["host"] if state["host"] not in ("0.0.0.0", "::", "127.0.0.1") else "localhost"
    try:
        token = (data / "admin.token").read_text().strip()
    except OSError:
        token = None
    client = Client(SignIn(f"http://{host}:{state['port']}", token, str(data)))
    try:
        client.get("/readyz")
        value["ready"] = True
        if token:
            found = client.get("/api/spaces", limit=1000, full="true")
            value["stages"] = dict(Counter((item.get("runtime") or {}).get("stage") or "?" for item in found))
    except Failure as exc:
        value["ready"] = value.get("ready", False)
        value["problem"] = exc.message
    return value


def _memory_mb(pid: int | None) -> int | None:
    """Resident memory; None where the system does not tell."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * 4096 >> 20


def _span(seconds: int) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
