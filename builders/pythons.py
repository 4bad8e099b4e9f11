"""Which Python interpreters this machine has, and who may run them.

Owns: finding interpreters and proving each by running it, as the user that builds and apps will have. Does not own:
choosing one (`plan`). Invariant: an interpreter that is listed did start as the given user in this process's lifetime.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NAME = re.compile(r"python3\.\d{1,2}")
_PROBE = "import sys; print('%d.%d.%d' % sys.version_info[:3], sys.base_prefix)"
Identity = tuple[int, int]
"""uid and gid."""


@dataclass(frozen=True, slots=True)
class Interpreter:
    version: str
    """`3.11.7`."""
    path: Path
    prefix: Path
    """Its installation; what a sandbox must show to run it."""

    @property
    def minor(self) -> str:
        return ".".join(self.version.split(".")[:2])


def find(run_as: Identity | None = None, extra: Iterable[Path] = ()) -> tuple[Interpreter, ...]:
    """Every CPython 3 at hand that starts as `run_as` (None: as this process), best first for each version."""
    paths = list(dict.fromkeys(path for path in _candidates(extra) if path.exists()))
    with ThreadPoolExecutor(max_workers=4) as pool:
        found = [one for one in pool.map(lambda path: probe(path, run_as), paths) if one is not None]
    seen: dict[Path, Interpreter] = {}
    for one in found:
        seen.setdefault(one.prefix / one.version, one)
    return tuple(seen.values())


def probe(path: Path, run_as: Identity | None = None) -> Interpreter | None:
    """Start one interpreter; None where it does not start within ten seconds or is older than 3.8."""
    try:
        done = subprocess.run(
            [str(path), "-I", "-S", "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
            env={"PATH": "/usr/bin:/bin"},
            cwd="/",
            **identity(run_as),
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    version, _, prefix = done.stdout.strip().partition(" ")
    if done.returncode or not re.fullmatch(r"3\.\d+\.\d+", version) or int(version.split(".")[1]) < 8:
        return None
    return Interpreter(version, path, Path(prefix))


def identity(run_as: Identity | None) -> dict[str, Any]:
    """Arguments of subprocess that start a child as another user, without any of this process's groups."""
    return {} if run_as is None else {"user": run_as[0], "group": run_as[1], "extra_groups": []}


def _candidates(extra: Iterable[Path]) -> Iterator[Path]:
    """Places where interpreters live; shims of version switchers are left out, since what they start may change."""
    yield from extra
    yield Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    folders = [Path(part) for part in os.get_exec_path() if "shims" not in part]
    folders += [Path("/usr/local/bin"), Path("/usr/bin"), Path("/opt/homebrew/bin")]
    home = Path.home()
    for group in (home / ".pyenv" / "versions", home / ".local" / "share" / "uv" / "python"):
        if group.is_dir():
            folders += sorted((entry / "bin" for entry in group.iterdir()), reverse=True)
    for folder in folders:
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue
        for name in names:
            if _NAME.fullmatch(name) and not (folder.parent / "pyvenv.cfg").exists():
                yield folder / name
