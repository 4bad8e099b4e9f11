"""Disks of fixed size: a sparse file with an ext4 file system, mounted by us, shown to a container.

Owns files, mounts and their removal; the engine's own storage cannot limit what a container writes unless it lies on
XFS with project quotas. Each deployment has one such disk; the directories that an app writes in are overlays: below,
read-only, what its image has there, on top its disk. Nothing is copied, however large the image.

    <deployment>/disk-<random>.img  the file; its blocks are taken as they are written
    <deployment>/disk/       mounted from it: upper and work directories of the overlays, tmp
    <deployment>/image/      the image's files; mounted only while the overlays are made
    <deployment>/place-<n>/  one overlay, bind-mounted into the container

Everything needs root in the engine's own mount namespace. Invariant: no path of an image is followed through a link of
that image. Sources: mount(8), ext4(5), Documentation/filesystems/overlayfs.rst (up to two overlays may be stacked).
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

from .engine import Owner
from .spec import HOME, Mount

log = logging.getLogger(__name__)
BOUNDS = "nodev,nosuid,noatime"
COMMAND_SECONDS = 120
"""Longest run of one script, unless it copies or grows what a Space has written."""
_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
PROGRAMS = ("mount", "umount", "mkfs.ext4", "cp")


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


def disk_script(template: str, image: str, mounted: str) -> str:
    """A new disk from a template, mounted."""
    words = {"template": template, "image": image, "mounted": mounted}
    quoted = {name: shlex.quote(value) for name, value in words.items()}
    return (
        "cp --sparse=always --reflink=auto {template} {image}\n"
        f"mount -t ext4 -o loop,discard,{BOUNDS} {{image}} {{mounted}}\n"
    ).format_map(quoted)


def view_script(links: Sequence[str], place: str) -> str:
    """The image's files, read-only. `links` are relative to the engine's overlay2 directory, which is where it is run:
    a mount's options must fit into one page (4096 bytes)."""
    if len(links) == 1:  # an overlay wants two
        return f"mount --bind -o ro {shlex.quote(links[0])} {shlex.quote(place)}\n"
    return f"mount -t overlay overlay -o ro,lowerdir={':'.join(links)} {shlex.quote(place)}\n"


def overlay_script(overlays: Sequence[Overlay]) -> str:
    lines = []
    for one in overlays:
        if one.lower:
            data = f"lowerdir={one.lower},upperdir={one.upper},workdir={one.work},{BOUNDS}"
            lines.append(f"mount -t overlay overlay -o {shlex.quote(data)} {shlex.quote(one.place)}\n")
        else:
            lines.append(f"mount --bind {shlex.quote(one.upper)} {shlex.quote(one.place)}\n")
    return "".join(lines)


def mounts_below(directory: str, mountinfo: str) -> list[str]:
    """Mount points at or below a directory, innermost first, from the text of /proc/self/mountinfo. See proc(5)."""
    found = []
    for line in mountinfo.splitlines():
        point = line.split()[4].encode().decode("unicode_escape")  # the kernel writes a space as \040
        if point == directory or point.startswith(f"{directory}/"):
            found.append(point)
    return found[::-1]


def run_script(
    script: str, *, cwd: str = "/", seconds: float = COMMAND_SECONDS, fault: str = "a disk could not be made"
) -> None:
    """Run shell text that ends at its first error. Raises DiskFull, Unavailable, whose words begin with `fault`."""
    # The old mount call takes a page of options; the new one, through libmount, 256 bytes for each.
    env = {"PATH": _PATH, "LC_ALL": "C", "LIBMOUNT_FORCE_MOUNT2": "always"}
    try:
        done = subprocess.run(
            ["sh", "-ec", script],
            cwd=cwd,
            env=env,
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
    points = mounts_below(str(directory), Path("/proc/self/mountinfo").read_text())
    if points:
        # Lazily: what still looks at it (a container that is just ending) loses it when it closes it.
        run_script("umount --lazy -- " + " ".join(map(shlex.quote, points)) + "\n")


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
        # A name of its own: mount(8) refuses that of a file just removed, of which the kernel still lets go.
        image = directory / f"disk-{secrets.token_hex(4)}.img"
        script = disk_script(str(self.template(size)), str(image), str(directory / "disk"))
        run_script(script + (view_script(links, str(directory / "image")) if links else ""), cwd=base)
        overlays = [self._prepare(directory, n, place, user) for n, place in enumerate(places)]
        tmp = directory / "disk" / "tmp"
        tmp.mkdir()
        tmp.chmod(0o1777)
        # The overlays keep what they need of the image's mount; its own place is not needed any more.
        done = f"umount --lazy {shlex.quote(str(directory / 'image'))}\n" if links else ""
        run_script(overlay_script(overlays) + done)
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
    """(short names of an image's layers, the directory they are relative to); nothing where there are no layers."""
    links = []
    base = "/"
    for layer in layers:  # <root>/overlay2/<id>/diff, with its short name in <root>/overlay2/<id>/link
        home = Path(layer).parent
        base = str(home.parent)
        links.append(f"l/{(home / 'link').read_text().strip()}")
    return links, base
