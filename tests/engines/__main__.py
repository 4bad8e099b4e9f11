"""`python -m tests.engines`: see the package."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from runtime_images.base import MIRROR
from tests.engines import programs
from tests.machines.disk import ROOT

NEEDED = {"debootstrap": "debootstrap", "patchelf": "patchelf", f"/{programs.CLIENT}": "docker.io"}
STORES = {"containerd": "--feature=containerd-snapshotter=true", "overlay2": "--storage-driver=overlay2"}
"""Where the engine keeps images -> its flag for that."""


def main() -> int:
    """The exit code of the tests; 2 where they cannot be run."""
    asked = _asked()
    fault = _missing()
    if fault:
        print(fault, file=sys.stderr)
        return 2
    with ExitStack() as stack:
        folder = asked.keep
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="engine-")))
        folder = folder.resolve() / asked.suite
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            programs.make(folder, asked.suite, os.environ.get("TEST_MACHINE_MIRROR", MIRROR))
        flags = f"{os.environ.get('TEST_ENGINE_FLAGS', '')} {STORES[asked.store]}"
        pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not soak", *asked.tests]
        environ = {**os.environ, "TEST_ENGINE_FLAGS": flags}
        environ.pop("DOCKER_HOST", None)
        return subprocess.run(programs.in_place(folder, pytest), cwd=ROOT, env=environ, check=False).returncode


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.engines", description="Run tests on another engine.",
                                     allow_abbrev=False)  # fmt: skip
    parser.add_argument("--suite", default="forky", help="of Debian: forky (Docker 28), trixie (Docker 26)")
    parser.add_argument("--store", default="containerd", choices=STORES, help="where the engine keeps images")
    parser.add_argument("--keep", type=Path, help="a folder in which the programs are kept, and found by the next run")
    asked, asked.tests = parser.parse_known_args()
    if not asked.tests:
        parser.error("name tests, as to pytest")
    return asked


def _missing() -> str:
    """Why there can be no such engine here; empty where there can."""
    if os.geteuid() != 0:
        return "An engine is made and run by root (debootstrap, mount)."
    if platform.machine() != "x86_64":
        return f"Engines of {platform.machine()} are not made yet: x86_64 only."
    absent = sorted(package for program, package in NEEDED.items() if shutil.which(program) is None)
    return f"apt install {' '.join(absent)}" if absent else ""


if __name__ == "__main__":
    sys.exit(main())
