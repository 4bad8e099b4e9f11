"""Commands of a build: their output, however the machine is busy."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from builders.confined import Budget, Command, Sandbox, run
from builders.types import BuildLimits
from tests.process.harness import wait_for


def budget(folder: Path) -> Budget:
    return Budget(BuildLimits(), time.monotonic() + 60, lambda: False, (folder,), "test-confined")


def command(folder: Path, script: str) -> Command:
    return Command(("sh", "-c", script), folder, {"PATH": "/usr/bin:/bin"}, (folder,), folder)


def has_ended(pid: str) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")


@pytest.mark.parametrize("lines", [1, 3000])
def test_what_is_written_right_before_the_end_is_read(lines: int, tmp_path: Path) -> None:
    """A builder that gets no processor between two looks finds the command ended, its last lines unread."""
    script = f"echo $$ > pid; while [ ! -e go ]; do sleep 0.01; done; yes 0123456 | head -n {lines}; echo last"
    seen: list[str] = []

    def look() -> None:
        if not (tmp_path / "go").exists():
            pid = wait_for("it has begun", lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
            (tmp_path / "go").touch()
            wait_for("it has ended", lambda: has_ended(pid.strip()))

    assert run(command(tmp_path, script), Sandbox(), budget(tmp_path), seen.append, look) == 0
    assert (len(seen), seen[-1]) == (lines + 1, "last")


def test_who_goes_on_writing_is_not_read_for_ever(tmp_path: Path) -> None:
    seen: list[str] = []
    assert run(command(tmp_path, "yes & sleep 0.3; exit 7"), Sandbox(), budget(tmp_path), seen.append) == 7
    assert set(seen[:-1]) == {"y"}
