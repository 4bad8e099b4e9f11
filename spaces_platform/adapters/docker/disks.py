"""Disks of fixed size: a sparse file with an ext4 file system, mounted by us, shown to a container.

Owns files, mounts and their removal; the engine's own storage cannot limit what a container writes unless it lies on
XFS with project quotas. Each deployment has one such disk; the directories that an app writes in are overlays: below,
read-only, what its image has there, on top its disk. Nothing is copied, however large the image.

    <deployment>/disk-<random>.img  the file; its blocks are taken as they are written
    <deployment>/disk/       mounted from it: upper and work directories of the overlays, tmp
    <deployment>/image/      the image's files; mounted only while the overlays are made
    <deployment>/place-<n>/  one overlay, bind-mounted into the container

Everything needs root in the engine's own mount namespace. Invariant: no path of an image is followed through a link of
that image. Sources: ext4(5), Documentation/filesystems/overlayfs.rst (up to two overlays may be stacked).
"""

from __future__ import annotations

import logging
import os
import secrets
import shlex
import shutil
import stat
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spaces_platform.errors import DiskFull, Invalid, Unavailable

from . import mounts
from .engine import Owner
from .mounts import MountCall
from .spec import HOME, Mount

log = logging.getLogger(__name__)
COMMAND_SECONDS = 120
"""Longest run of one script, unless it copies or grows what a Space has written."""
_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
PROGRAMS = ("mount", "mkfs.ext4", "cp")


@dataclass(frozen=True, slots=True)
class Overlay:
    """One writable directory of a container."""

    target: str
    """In the container."""
    lower: str
    """On the host; empty where the image has nothing there."""
    upper: str
    work: str
    place: str
    """Where it is mounted on the host."""


def missing() -> str:
    """Why disks cannot be made here, in words; empty where they can, as far as can be seen without trying."""
    if os.geteuid() != 0:
        return "the platform does not run as root"
    absent = [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]
    if absent:
        return f"{', '.join(absent)} not installed (Debian: mount, e2fsprogs, coreutils)"
    if not Path("/dev/loop-control").exists():
        return "the kernel has no loop devices (/dev/loop-control)"
    return ""


def template_script(path: str, size: int, *, journal: bool) -> str:
    """Make an empty file system of `size` bytes. Scratch needs no journal: it does not outlive its deployment."""
    options = "" if journal else "-O ^has_journal "
    new = shlex.quote(f"{path}.new")
    return (
        f"truncate -s {size} {new}\n"
        f"mkfs.ext4 -q -F -m 0 {options}-E lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0 {new}\n"
        f"mv {new} {shlex.quote(path)}\n"
    )


def view_mounts(links: Sequence[str], place: str) -> list[MountCall]:
    """The image's files, read-only. `links` are relative to the directory of the engine's layers, which is where it is
    done: a mount's options must fit into one page."""
    if len(links) == 1:  # an overlay wants two
        # A bind is read-only only once it is mounted again.
        flags = (mounts.BIND, mounts.REMOUNT | mounts.BIND | mounts.RDONLY)
        return [MountCall(links[0], place, flags=one) for one in flags]
    return [MountCall("overlay", place, "overlay", mounts.RDONLY, f"lowerdir={':'.join(links)}")]


def overlay_mounts(overlays: Sequence[Overlay]) -> list[MountCall]:
    """What an app writes in, above what its image has there."""
    calls = []
    for one in overlays:
        if one.lower:
            data = f"lowerdir={one.lower},upperdir={one.upper},workdir={one.work}"
            calls.append(MountCall("overlay", one.place, "overlay", mounts.BOUNDS, data))
        else:
            calls.append(MountCall(one.upper, one.place, flags=mounts.BIND))
    return calls


def mounts_below(directory: str, mountinfo: str) -> list[str]:
    """Mount points at or below a directory, innermost first, from the text of /proc/self/mountinfo. See proc(5)."""
    found = []
    for line in mountinfo.splitlines():
        point = line.split()[4].encode().decode("unicode_escape")  # the kernel writes a space as \040
        if point == directory or point.startswith(f"{directory}/"):
            found.append(point)
    return found[::-1]


def run_script(script: str, *, seconds: float = COMMAND_SECONDS, fault: str = "a disk could not be made") -> None:
    """Run shell text that ends at its first error. Raises DiskFull, Unavailable, whose words begin with `fault`."""
    try:
        done = subprocess.run(
            ["sh", "-ec", script],
            env={"PATH": _PATH, "LC_ALL": "C"},
            capture_output=True,
            timeout=seconds,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{fault}: {error}; try again") from error
    if done.returncode:
        said = " ".join(done.stderr.decode("utf-8", "replace").split())[-400:]
        if "No space left" in said:
            raise DiskFull(f"{fault}: {said}; free some space")
        raise Unavailable(f"{fault}: {said}; look at the kernel's log")


def unmount_all(directory: Path) -> None:
    """Unmount everything at or below a directory. Raises Unavailable."""
    # Lazily: what still looks at it (a container that is just ending) loses it when it closes it.
    for point in mounts_below(str(directory), Path("/proc/self/mountinfo").read_text()):
        mounts.unmount(point)


class Disks:
    """The disks of deployments. Safe to call from any thread; one deployment's calls come one after another."""

    def __init__(self, root: Path) -> None:
        self._templates = root / "templates"
        self._templates.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()

    def template(self, size: int, *, journal: bool = False) -> Path:
        """An empty file system of a size, made at its first use."""
        path = self._templates / f"{size}{'-journal' if journal else ''}.img"
        with self._lock:
            if not path.exists():
                run_script(template_script(str(path), size, journal=journal))
        return path

    def make(
        self, directory: Path, size: int, places: Sequence[str], layers: Sequence[str], *, user: Owner
    ) -> list[Mount]:
        """A deployment's disk, with what is to be mounted into its container; `user` is the app's.

        Raises DiskFull, Unavailable; Invalid where the image has a link or a file in such a place. What was done until
        then is undone by `drop`.
        """
        for name in ("disk", "image"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        links, base = _links(layers)
        # A name of its own: of a file just removed the kernel may still have the device.
        image = directory / f"disk-{secrets.token_hex(4)}.img"
        mounts.copy_sparse(self.template(size), image)
        mounts.mount_image(image, directory / "disk")
        if links:
            mounts.mount_in(base, view_mounts(links, str(directory / "image")))
        overlays = [self._prepare(directory, n, place, user) for n, place in enumerate(places)]
        tmp = directory / "disk" / "tmp"
        tmp.mkdir()
        tmp.chmod(0o1777)
        for call in overlay_mounts(overlays):
            mounts.mount(call)
        if links:  # the overlays keep what they need of it
            mounts.unmount(str(directory / "image"))
        return [*(Mount(one.place, one.target) for one in overlays), Mount(str(tmp), "/tmp")]

    def drop(self, directory: Path) -> None:
        """Unmount and delete a deployment's disk. Dropping the absent is success. Raises Unavailable."""
        unmount_all(directory)
        for image in directory.glob("disk-*.img"):
            image.unlink(missing_ok=True)
        for path in [directory / "disk", directory / "image", *directory.glob("place-*")]:
            if path.is_dir():
                path.rmdir()

    def _prepare(self, directory: Path, n: int, target: str, user: Owner) -> Overlay:
        upper, work, place = (
            directory / "disk" / f"upper-{n}",
            directory / "disk" / f"work-{n}",
            directory / f"place-{n}",
        )
        for path in (upper, work, place):
            path.mkdir()
        lower = inside(directory / "image", target)
        owner, mode = user, 0o755
        if lower is not None and target != HOME:
            status = lower.lstat()
            owner, mode = Owner(status.st_uid, status.st_gid), stat.S_IMODE(status.st_mode)
        os.chown(upper, owner.uid, owner.gid)
        upper.chmod(mode)
        return Overlay(target, str(lower or ""), str(upper), str(work), str(place))


def inside(image: Path, target: str) -> Path | None:
    """The directory that an image has at a path, or None. Raises Invalid where it is a link, or behind one, or a file.

    Images are of strangers: a link in one would be followed on the host.
    """
    place = image
    for part in target.strip("/").split("/"):
        place = place / part
        try:
            kind = place.lstat().st_mode
        except FileNotFoundError:
            return None
        if not stat.S_ISDIR(kind):
            raise Invalid(f"the image has a link or a file at {target!r} (at {part!r}), where its app is to write")
    return place


def _links(layers: Sequence[str]) -> tuple[list[str], str]:
    """(short names of an image's layers, the directory they are relative to); nothing where there are no layers.

    Raises FileNotFoundError for a layer that is gone.
    """
    links = []
    base = "/"
    for layer in layers:
        home = Path(layer).parent
        base = str(home.parent)
        if home.name.isdigit():  # containerd's <snapshots>/<number>/fs
            os.stat(layer)
            links.append(f"{home.name}/{Path(layer).name}")
        else:  # <root>/overlay2/<id>/diff, with its short name in <root>/overlay2/<id>/link
            links.append(f"l/{(home / 'link').read_text().strip()}")
    return links, base
