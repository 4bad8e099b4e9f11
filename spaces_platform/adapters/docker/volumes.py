"""The persistent volumes of Spaces: one file with an ext4 file system each, of fixed size, mounted by us.

    <root>/<space id>/disk.img          the file; its blocks are taken as they are written
    <root>/<space id>/mounted/data      what a container has at /data
    <root>/<space id>/snapshots/<name>.img

Owns the files and their mounts. A volume is mounted while a container of its Space exists, by all of them at once.
Invariants: a snapshot is what a power cut at one moment would have left, which a journal mends; a file system is never
left frozen, also not by a platform that was killed while it copied.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import shlex
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from spaces_platform.errors import Conflict, DiskFull, NotFound
from spaces_platform.ports import Clock

from .disks import BOUNDS, Disks, run_script, unmount_all

log = logging.getLogger(__name__)
FIFREEZE, FITHAW = 0xC0045877, 0xC0045878
"""ioctls of include/uapi/linux/fs.h: `_IOWR('X', 119, int)` and `_IOWR('X', 120, int)`."""
KEEP = 8
"""Snapshots of one volume; a further one takes the place of the oldest."""
_NAME = re.compile(r"[0-9]{8}T[0-9]{12}Z\Z")


class DockerVolumes:
    """The Volumes port. Safe to call from any thread."""

    def __init__(self, root: Path, disks: Disks, clock: Clock, *, in_use: Callable[[int], bool]) -> None:
        """`in_use(space id)`: whether a container may have the volume open."""
        self._root, self._disks, self._clock, self._in_use = root, disks, clock, in_use
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._guard = threading.Lock()
        self._locks: dict[int, threading.Lock] = {}

    # --- the port -----------------------------------------------------------------------------------------------------
    def snapshot(self, space_id: int) -> str:
        """See ports.Volumes. Writers wait while it is copied; at most KEEP are kept."""
        with self._of(space_id) as place:
            image = place / "disk.img"
            if not image.exists():
                raise NotFound(f"Space {space_id} has no volume yet; it is made when the Space first starts")
            taken = image.stat().st_blocks * 512
            if shutil.disk_usage(place).free < taken:
                raise DiskFull(f"a snapshot of Space {space_id} needs {taken >> 20} MiB; free some space")
            folder = place / "snapshots"
            folder.mkdir(exist_ok=True)
            name = self._clock.now().strftime("%Y%m%dT%H%M%S%fZ")
            with _frozen(place / "mounted"):
                _copy(image, folder / f"{name}.img")
            for old in self._names(place)[:-KEEP]:
                (folder / f"{old}.img").unlink()
            return name

    def snapshots(self, space_id: int) -> Sequence[str]:
        """See ports.Volumes."""
        return self._names(self._place(space_id))

    def restore(self, space_id: int, name: str) -> None:
        """See ports.Volumes."""
        with self._of(space_id) as place:
            source = place / "snapshots" / f"{name}.img"
            if not _NAME.match(name) or not source.exists():
                raise NotFound(f"Space {space_id} has no snapshot {name!r}; `snapshots` lists them")
            if self._in_use(space_id):
                raise Conflict(f"Space {space_id} runs; pause it, then restore its volume")
            unmount_all(place / "mounted")
            _copy(source, place / "disk.img")

    def remove(self, space_id: int) -> None:
        """See ports.Volumes."""
        with self._of(space_id) as place:
            if place.exists():
                unmount_all(place)
                shutil.rmtree(place)

    # --- for the orchestrator -----------------------------------------------------------------------------------------
    def attach(self, space_id: int, size: int, user: int) -> str:
        """Mount the Space's volume, made or grown to `size` bytes where need be; the directory to show as /data.

        Idempotent. `user` (on the host) owns a new volume's root. Raises DiskFull, Unavailable.
        """
        with self._of(space_id) as place:
            mounted, image = place / "mounted", place / "disk.img"
            mounted.mkdir(parents=True, exist_ok=True)
            data = mounted / "data"
            if os.path.ismount(mounted):
                return str(data)
            if not image.exists():
                _copy(self._disks.template(size, journal=True), image)
            elif image.stat().st_size < size:
                run_script(grow_script(str(image), size))
            run_script(mount_script(str(image), str(mounted)))
            if not data.exists():
                data.mkdir()
                os.chown(data, user, user)
            return str(data)

    def release(self, space_id: int) -> None:
        """Unmount the Space's volume if nothing uses it."""
        if not (self._root / str(space_id) / "mounted").is_dir():
            return
        with self._of(space_id) as place:
            if not self._in_use(space_id):
                unmount_all(place / "mounted")

    def release_all(self) -> None:
        unmount_all(self._root)

    def recover(self) -> None:
        """After a start: thaw what a killed snapshot left frozen, and delete half-made copies."""
        for place in self._root.iterdir():
            if os.path.ismount(place / "mounted"):
                _freeze(place / "mounted", FITHAW)
            for half in [*place.glob("*.new"), *place.glob("snapshots/*.new")]:
                half.unlink()

    def _place(self, space_id: int) -> Path:
        return self._root / str(int(space_id))

    @contextmanager
    def _of(self, space_id: int) -> Iterator[Path]:
        """One Space's directory; one call at a time works on it."""
        with self._guard:
            lock = self._locks.setdefault(space_id, threading.Lock())
        with lock:
            yield self._place(space_id)

    def _names(self, place: Path) -> list[str]:
        return sorted(path.stem for path in (place / "snapshots").glob("*.img") if _NAME.match(path.stem))


def mount_script(image: str, mounted: str) -> str:
    return f"mount -t ext4 -o loop,discard,{BOUNDS} {shlex.quote(image)} {shlex.quote(mounted)}\n"


def grow_script(image: str, size: int) -> str:
    """Make a volume that is not mounted larger. e2fsck answers 1 where it mended something, which is success."""
    path = shlex.quote(image)
    return f"truncate -s {size} {path}\ne2fsck -fp {path} >&2 || [ $? = 1 ]\nresize2fs {path} >&2\n"


def _copy(source: Path, target: Path) -> None:
    """Copy a disk, whole or not at all; holes stay holes. Raises DiskFull, Unavailable."""
    new = f"{target}.new"
    try:
        run_script(
            f"cp --sparse=always --reflink=auto {shlex.quote(str(source))} {shlex.quote(new)}\n"
            f"sync -d {shlex.quote(new)}\n"
            f"mv {shlex.quote(new)} {shlex.quote(str(target))}\n"
        )
    except BaseException:
        Path(new).unlink(missing_ok=True)
        raise


@contextmanager
def _frozen(mounted: Path) -> Iterator[None]:
    """Hold all writes to a mounted file system, and have everything written before on its disk."""
    if not os.path.ismount(mounted):
        yield
        return
    _freeze(mounted, FIFREEZE)
    try:
        yield
    finally:
        _freeze(mounted, FITHAW)


def _freeze(mounted: Path, how: int) -> None:
    """Freezing the frozen and thawing the thawed is success."""
    fd = os.open(mounted, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(fd, how, 0)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.EINVAL):
            raise
    finally:
        os.close(fd)
