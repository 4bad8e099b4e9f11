"""What the kernel counts of one container. Reading only; version 1 and 2, wherever the engine has put the group."""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


def memory_in_use(pid: int) -> int:
    """Bytes that the group of a process holds, without clean file pages; 0 where that cannot be seen."""
    try:
        groups = group_paths(Path(f"/proc/{pid}/cgroup").read_text())
        if "memory" in groups:
            place = ROOT / "memory" / groups["memory"].lstrip("/")
            used = int((place / "memory.usage_in_bytes").read_text())
            inactive = _stat(place, "total_inactive_file")
        else:
            place = ROOT / groups.get("", "/").lstrip("/")
            used = int((place / "memory.current").read_text())
            inactive = _stat(place, "inactive_file")
    except (OSError, ValueError):
        return 0
    return max(used - inactive, 0)


def group_paths(text: str) -> dict[str, str]:
    """Controller -> path, version 2 under the empty name, from the text of /proc/PID/cgroup. See cgroups(7)."""
    found = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        found.update(dict.fromkeys(controllers.split(","), path))
    return found


def _stat(place: Path, key: str) -> int:
    for line in (place / "memory.stat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0
