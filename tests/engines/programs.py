"""The programs of another suite's engine, made to run with that suite's libraries.

Owns: getting them and their places. Does not own: what is run with them. Invariant: they are complete once the folder
has the name that they are found by.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from tests.machines.disk import call, say

PACKAGES = ("docker.io", "docker-cli", "docker-buildx", "docker-compose", "containerd", "runc", "ca-certificates")
ENGINE = (
    "usr/sbin/dockerd",
    "usr/sbin/docker-proxy",
    "usr/bin/containerd",
    "usr/bin/containerd-shim-runc-v2",
    "usr/sbin/runc",
)
INIT = "usr/bin/tini-static"
CLIENT = "usr/bin/docker"
PLUGINS = "usr/libexec/docker/cli-plugins"
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_LOADER = "lib64/ld-linux-x86-64.so.2"
_SCRIPTS = Path("/usr/share/debootstrap/scripts")


def make(folder: Path, suite: str, mirror: str) -> None:
    """Put `bin`, `plugins` and the suite's own tree into a folder. Needs root. Raises CalledProcessError."""
    tree = folder / "tree"
    say(f"getting the engine of Debian {suite} …")
    include = f"--include={','.join(PACKAGES)}"
    # A suite that this debootstrap does not know is made as the others are.
    script = next(path for path in (_SCRIPTS / suite, _SCRIPTS / "sid") if path.exists())
    call(["debootstrap", "--variant=minbase", include, suite, str(tree), mirror, str(script)], quiet=True)
    for name, sources in (("bin", [*ENGINE, CLIENT]), ("plugins", sorted(_below(tree, PLUGINS)))):
        (folder / name).mkdir()
        for source in sources:
            made = folder / name / Path(source).name
            shutil.copyfile(tree / source, made)
            made.chmod(0o755)
            call(patched(made, tree))
    shutil.copy(tree / INIT, folder / "bin" / "docker-init")
    (folder / "complete").touch()


def patched(program: Path, tree: Path) -> list[str]:
    """The command that has a program use the loader and the libraries of a tree, wherever it is run. Pure."""
    return ["patchelf", "--set-interpreter", f"{tree}/{_LOADER}", "--set-rpath", f"{tree}/{_LIBRARIES}", str(program)]


def in_place(folder: Path, command: Sequence[str]) -> list[str]:
    """A command that finds these programs where this machine has its own. Pure.

    The client and its plugins lie at fixed places: what builds with BuildKit looks there, and in no variable.
    """
    script = (
        'set -e; mkdir -p "$2"; mount --bind "$1/plugins" "$2"; mount --bind "$1/bin/docker" "$3"; '
        'export PATH="$1/bin:$PATH"; shift 3; exec "$@"'
    )
    places = [str(folder), f"/{PLUGINS}", f"/{CLIENT}"]
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *places, *command]


def _below(tree: Path, folder: str) -> list[str]:
    return [f"{folder}/{path.name}" for path in (tree / folder).iterdir()]
