"""A Debian base image made by debootstrap, for machines that can pull none.

Owns: the command, what is taken out of the tree and put into it, and handing it to the engine. Does not own: what is
built on it (`recipes`). Invariant: the tree holds no list, log or address of the mirror that it came from; names are
sorted and no time is later than the archive's release, so that the same packages make the same layer.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path

from runtime_images.engine import Engine, EngineError, Found
from runtime_images.network import Network

SUITE = "bookworm"
MIRROR = "http://deb.debian.org/debian"
SECURITY = "http://deb.debian.org/debian-security"
LABEL = "spaces.image.suite"
SECONDS = 1800.0

_EXCLUDED = ("/usr/share/doc/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/man/*", "/usr/share/lintian/*")
_KEPT = ("/usr/share/doc/*/copyright", "/usr/share/locale/locale.alias")
_EMPTIED = (
    "var/cache/apt",
    "var/cache/debconf",
    "var/cache/ldconfig",
    "var/lib/apt/lists",
    "var/log",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/man",
    "run",
    "tmp",
)
_WITHOUT = ("etc/hostname", "etc/resolv.conf", "etc/machine-id", "var/lib/dbus/machine-id")
"""Files of the machine that made it; the engine and the first boot write their own."""


def files(suite: str) -> Mapping[str, str]:
    """What is written into the tree, by path."""
    dpkg = [f"path-exclude={path}" for path in _EXCLUDED] + [f"path-include={path}" for path in _KEPT]
    sources = [f"deb {MIRROR} {s} main" for s in (suite, f"{suite}-updates")]
    sources.append(f"deb {SECURITY} {suite}-security main")
    return {
        "etc/apt/sources.list": _lines(sources),
        "etc/apt/apt.conf.d/90spaces": _lines(
            ['APT::Install-Recommends "false";', 'Acquire::Retries "3";', 'Acquire::Languages "none";']
        ),
        "etc/dpkg/dpkg.cfg.d/90spaces": _lines(dpkg),
    }


def debootstrap_argv(suite: str, root: Path, mirror: str) -> tuple[str, ...]:
    return ("debootstrap", "--variant=minbase", suite, str(root), mirror)


def wget_settings(ca: Path) -> str:
    """A file for WGETRC: debootstrap fetches by wget, and has no option for the certificates it is to trust."""
    return f"ca_certificate = {ca}\n"


def tar_argv(root: Path, tar: Path, released: int) -> tuple[str, ...]:
    """Packs the tree; `released`: seconds since 1970, no file is said to be younger."""
    order = ("--sort=name", f"--mtime=@{released}", "--clamp-mtime", "--numeric-owner", "--format=gnu")
    return ("tar", *order, f"--directory={root}", "--create", f"--file={tar}", ".")


def make_base(engine: Engine, ref: str, suite: str, network: Network, environ: Mapping[str, str]) -> Found:
    """Make the base image. Needs root and debootstrap. Raises EngineError."""
    _check()
    mirror = (network.apt_mirror.split() or [MIRROR])[0]
    with tempfile.TemporaryDirectory(prefix="spaces-base-") as folder:
        root, tar, ca, settings = (Path(folder) / name for name in ("root", "root.tar", "ca.pem", "wgetrc"))
        env = {**environ, **network.variables}
        if network.ca:
            ca.write_bytes(network.ca)
            settings.write_text(wget_settings(ca), encoding="utf-8")
            env["WGETRC"] = str(settings)
        _run(debootstrap_argv(suite, root, mirror), env)
        released = release_time(root)
        _clean(root, suite)
        _run(tar_argv(root, tar, released), env)
        with tar.open("rb") as stream:
            return engine.import_tar(stream, ref, ('CMD ["bash"]', f"LABEL {LABEL}={suite}"))


def release_time(root: Path) -> int:
    """When the archive was released, in seconds since 1970, by the newest list of the tree. Raises EngineError."""
    times = []
    for path in (root / "var/lib/apt/lists").glob("*Release"):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("Date: "):
                times.append(int(parsedate_to_datetime(line.removeprefix("Date: ")).timestamp()))
                break
    if not times:
        raise EngineError(f"debootstrap left no Release file with a date below {root}/var/lib/apt/lists.")
    return max(times)


def _check() -> None:
    if os.geteuid() != 0:
        raise EngineError(
            "Making a Debian base needs root (debootstrap). Name one that the engine has or can pull instead: "
            "--base debian:bookworm-slim."
        )
    if shutil.which("debootstrap") is None:
        raise EngineError("debootstrap is not installed: apt install debootstrap, or name a base: --base IMAGE.")


def _clean(root: Path, suite: str) -> None:
    for name in _EMPTIED:
        _empty(root / name)
    for folder in (root / "usr/share/doc").iterdir():
        for entry in folder.iterdir() if folder.is_dir() and not folder.is_symlink() else ():
            if entry.name != "copyright":
                _remove(entry)
    for entry in (root / "usr/share/locale").iterdir():
        if entry.name != "locale.alias":
            _remove(entry)
    for name in _WITHOUT:
        (root / name).unlink(missing_ok=True)
    for name, text in files(suite).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


def _empty(folder: Path) -> None:
    for entry in folder.iterdir() if folder.is_dir() else ():
        _remove(entry)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _run(argv: tuple[str, ...], environ: Mapping[str, str]) -> None:
    try:
        done = subprocess.run(argv, stdout=2, env=dict(environ), timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"{argv[0]} did not end within {SECONDS:.0f} s.") from error
    if done.returncode:
        raise EngineError(f"{' '.join(argv)} failed: see the lines above (exit code {done.returncode}).")


def _lines(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
