"""What is known of one deployment, in memory and in its directory. Owns the small files; orchestrator.py the moves.

<root>/<id>/started   exists once its container was started
<root>/<id>/ready     unix seconds of its first good answer
<root>/<id>/stop      unix seconds at which it is to be ended by force
<root>/<id>/forget    nothing of it is to be kept once it has ended
<root>/<id>/log/      its output
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from pathlib import Path

from spaces_platform.adapters.process.shim import files
from spaces_platform.ports import Observation, RunStatus

from .output import Output

log = logging.getLogger(__name__)
MARKS = ("started", "ready", "stop", "forget")


@dataclass(slots=True, eq=False)
class Known:
    """One deployment. Its fields change under the orchestrator's lock only."""

    id: int
    space_id: int
    port: int
    base_path: str
    directory: Path
    output: Output
    seen: Observation
    container: str = ""
    """The engine's id of it; empty until it is made, and once it was removed."""
    host: str = ""
    """Its address."""
    pid: int = 0
    """Its init, as the host numbers it; 0 where unknown."""
    paused: bool = False
    """Frozen by the engine, which alone can thaw it then."""
    in_gvisor: bool = False
    """See gvisor.py."""
    starting: bool = False
    """`start` is still at work on it."""
    stopping: bool = False
    forgetting: bool = False
    gone: bool = False
    """Ended after a stop: no longer observed."""
    clearing: threading.Lock = field(default_factory=threading.Lock)
    """Held while what it has left is removed."""

    @property
    def is_running(self) -> bool:
        return self.seen.status is not RunStatus.EXITED

    def mark(self, name: str, value: float) -> None:
        """Write one of MARKS where there is room; memory knows, and only a restart on a full disk would ask again."""
        try:
            files.replace(str(self.directory / name), f"{value}\n")
        except OSError as error:
            log.warning("the record of deployment %d could not be written: %s", self.id, error)

    def marked(self, name: str) -> float | None:
        return marked(self.directory, name)


def marked(directory: Path, name: str) -> float | None:
    try:
        return float((directory / name).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
