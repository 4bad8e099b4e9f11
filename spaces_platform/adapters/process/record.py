"""One deployment on disk: `root/deployments/<id>/` and what its files mean.

    deployment.json  written before anything runs: space, port, base path, start; never a secret
    shim.json        pid and start time of the shim; nothing of the app runs before it exists
    ready            unix time of the first good probe
    stop             grace in seconds; the deployment was asked to stop
    forget           it is to be removed once it has ended
    exit.json        how it ended; no process of it is left
    log/             its output (shim/segments.py)
    work/ home/ tmp/ what the app may write, until it has ended

Invariant: files are replaced whole, so a reader sees the old or the new content.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .shim import files, procfs

HINDRANCES = ("disk_full", "machine")


@dataclass(frozen=True, slots=True)
class Ending:
    """How a deployment ended."""

    code: int | None
    out_of_memory: bool = False
    words: str = ""
    hindrance: str = ""
    """See ports.Observation."""


class Record:
    """Reads and writes one deployment's directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self, facts: dict[str, object]) -> None:
        """Make the directory. The app's user may pass through it, and list nothing."""
        self.path.mkdir(mode=0o711)
        self.path.chmod(0o711)
        self._write("deployment.json", json.dumps(facts))

    def facts(self) -> dict[str, object]:
        """What `create` was given; empty where that never came to be."""
        return self._json("deployment.json")

    def set_shim(self, pid: int) -> None:
        self._write("shim.json", json.dumps({"pid": pid, "start": procfs.start_time(pid)}))

    def shim(self) -> int | None:
        """Pid of the shim while it lives: the very process that was started, never another with its number."""
        known = self._json("shim.json")
        pid, start = known.get("pid"), known.get("start")
        if isinstance(pid, int) and start is not None and procfs.start_time(pid) == start:
            return pid
        return None

    def ending(self) -> Ending | None:
        known = self._json("exit.json")
        if not known:
            return None
        code = known.get("code")
        words = str(known.get("words", ""))
        reason = str(known.get("reason", ""))
        return Ending(
            code if isinstance(code, int) else None,
            known.get("out_of_memory") is True,
            words,
            reason if reason in HINDRANCES else "",
        )

    def set_ending(self, ending: Ending) -> None:
        facts = {"code": ending.code, "out_of_memory": ending.out_of_memory, "words": ending.words}
        self._write("exit.json", json.dumps(facts))

    def mark(self, name: str, value: float) -> None:
        """Write `ready`, `stop` or `forget`."""
        self._write(name, str(value))

    def marked(self, name: str) -> float | None:
        try:
            return float((self.path / name).read_text())
        except (FileNotFoundError, ValueError):
            return None

    def shed(self, trash: Path) -> None:
        """Keep what tells of an ended one; what the app wrote is moved away, for `empty` to delete."""
        for name in ("work", "home", "tmp"):
            with contextlib.suppress(FileNotFoundError):
                (self.path / name).rename(trash / f"{self.path.name}-{name}-{os.urandom(6).hex()}")

    def discard(self, trash: Path) -> None:
        """Move everything away, at once, for `empty` to delete; the absent is success."""
        try:
            self.path.rename(trash / f"{self.path.name}-{os.urandom(6).hex()}")
        except FileNotFoundError:
            return

    def _write(self, name: str, text: str) -> None:
        files.replace(str(self.path / name), text + "\n")

    def _json(self, name: str) -> dict[str, object]:
        try:
            known = json.loads((self.path / name).read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}


def empty(trash: Path) -> None:
    """Delete what is in the trash, however deep, many or locked an app has left its files. Raises OSError.

    By rm(1), which needs neither recursion nor long paths, and follows no link.
    """
    for path in trash.iterdir():
        done = subprocess.run(["rm", "-rf", "--", str(path)], capture_output=True)
        if done.returncode:
            subprocess.run(["chmod", "-R", "u+rwX", "--", str(path)], capture_output=True)
            done = subprocess.run(["rm", "-rf", "--", str(path)], capture_output=True)
        if done.returncode:
            raise OSError(f"cannot delete {path}: {done.stderr.decode(errors='replace').strip()[-300:]}")
