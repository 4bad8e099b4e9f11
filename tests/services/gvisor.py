"""gVisor for tests: the program `runsc` as an engine can use it on this machine."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

MARK = "/proc/sys/net/core/rmem_default"
"""Releases before August 2024 take a network namespace that has this for the host's own, and refuse it. Since Linux
6.11 all have it (google/gvisor issue 10704)."""
HIDES = """\
#!/bin/sh
exec unshare --mount --propagation slave sh -c 'mount -t tmpfs none /proc/sys/net && exec {program} "$@"' runsc "$@"
"""


def runsc(folder: Path) -> str:
    """Path of the program to give to an engine; skips where gVisor is not installed."""
    found = shutil.which("runsc")
    if found is None:
        pytest.skip("gVisor is not installed (Debian package runsc)")
    if subprocess.run(["unshare", "--net", "test", "-e", MARK], check=False).returncode:
        return found
    path = folder / "runsc"
    path.write_text(HIDES.format(program=found))
    path.chmod(0o755)
    return str(path)
