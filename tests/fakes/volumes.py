"""A full Volumes port in memory: what apps write is in `data`, and a start makes or grows a volume by `attach`.

It keeps the whole contract of the port (tests/contracts/test_volumes.py runs on it too).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from spaces_platform.errors import Conflict, NotFound, Unavailable
from spaces_platform.ports import SNAPSHOT_NAME, Clock, VolumeUse

KEEP = 8
"""Snapshots of one volume."""


@dataclass
class _Volume:
    size: int
    data: dict[str, str] = field(default_factory=dict)
    """What is in it, by file."""
    snapshots: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)
    """Size and content, by name."""


class FakeVolumes:
    def __init__(self, clock: Clock, in_use: Callable[[int], bool] = lambda _: False) -> None:
        self.clock, self.in_use = clock, in_use
        self.volumes: dict[int, _Volume] = {}
        self._lock = threading.RLock()

    # --- the port -----------------------------------------------------------------------------------------------------
    def use(self, space_id: int) -> VolumeUse | None:
        with self._lock:
            volume = self.volumes.get(space_id)
            if volume is None:
                return None
            return VolumeUse(volume.size, _bytes(volume.data), sum(_bytes(d) for _, d in volume.snapshots.values()))

    def snapshot(self, space_id: int) -> str:
        with self._lock:
            volume = self.volumes.get(space_id)
            if volume is None:
                raise NotFound(f"Space {space_id} has no volume yet; it is made when the Space first starts")
            now = self.clock.now()
            if volume.snapshots:
                newest = datetime.strptime(max(volume.snapshots), SNAPSHOT_NAME).replace(tzinfo=UTC)
                now = max(now, newest + timedelta(microseconds=1))
            name = now.strftime(SNAPSHOT_NAME)
            volume.snapshots[name] = (volume.size, dict(volume.data))
            for old in sorted(volume.snapshots)[:-KEEP]:
                del volume.snapshots[old]
            return name

    def snapshots(self, space_id: int) -> Sequence[str]:
        with self._lock:
            volume = self.volumes.get(space_id)
            return sorted(volume.snapshots) if volume is not None else []

    def restore(self, space_id: int, name: str) -> None:
        with self._lock:
            volume = self.volumes.get(space_id)
            if volume is None or name not in volume.snapshots:
                raise NotFound(f"Space {space_id} has no snapshot {name!r}; `snapshots` lists them")
            if self.in_use(space_id):
                raise Conflict(f"Space {space_id} runs; pause it, then restore its volume")
            volume.size, data = volume.snapshots[name]
            volume.data = dict(data)

    def remove(self, space_id: int) -> None:
        with self._lock:
            if self.in_use(space_id):
                raise Unavailable(f"the app of Space {space_id} has its volume open; it is removed once that has ended")
            self.volumes.pop(space_id, None)

    # --- for the orchestrator -----------------------------------------------------------------------------------------
    def attach(self, space_id: int, size: int) -> None:
        """An app starts that is to have it at /data."""
        with self._lock:
            volume = self.volumes.setdefault(space_id, _Volume(size))
            volume.size = max(volume.size, size)


def _bytes(data: dict[str, str]) -> int:
    return sum(len(text) for text in data.values())
