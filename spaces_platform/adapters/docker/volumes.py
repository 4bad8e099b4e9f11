"""The persistent volumes of Spaces: one file with an ext4 file system each, of fixed size, mounted by us.

    <root>/<space id>/disk.img          the file; its blocks are taken as they are written
    <root>/<space id>/growing           there while the file is larger than its file system may be: bytes of that
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
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from spaces_platform.adapters.process.shim import files
from spaces_platform.errors import Conflict, DiskFull, NotFound, Unavailable
from spaces_platform.ports import SNAPSHOT_NAME, Clock, VolumeUse

from .disks import COMMAND_SECONDS, Disks, run_script, unmount_all
from .engine import Owner

log = logging.getLogger(__name__)
FIFREEZE, FITHAW = 0xC0045877, 0xC0045878
"""ioctls of include/uapi/linux/fs.h: `_IOWR('X', 119, int)` and `_IOWR('X', 120, int)`."""
KEEP = 8
"""Snapshots of one volume; a further one takes the place of the oldest."""
SLOWEST_DISK = 20 << 20
"""Bytes a second that a disk copies at least: what takes longer is given up."""
SLOWEST_FILES = 1000
"""Files a second that get another owner at least, likewise."""
LETTING_GO_SECONDS = 5.0
"""How long a start that makes a volume larger waits for others' copies of its mount to end."""
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
    def use(self, space_id: int) -> VolumeUse | None:
        """See ports.Volumes."""
        place = self._place(space_id)
        try:
            size = (place / "disk.img").stat().st_size
        except FileNotFoundError:
            return None
        kept = [(place / "snapshots" / f"{name}.img") for name in self._names(place)]
        return VolumeUse(_growing(place) or size, _taken(place / "disk.img"), sum(map(_taken, kept)))

    def snapshot(self, space_id: int) -> str:
        """See ports.Volumes. Writers wait while it is copied; at most KEEP are kept."""
        with self._of(space_id) as place:
            image = place / "disk.img"
            if not image.exists():
                raise NotFound(f"Space {space_id} has no volume yet; it is made when the Space first starts")
            taken = _taken(image)
            if shutil.disk_usage(place).free < taken:
                raise DiskFull(f"a snapshot of Space {space_id} needs {taken >> 20} MiB; free some space")
            folder = place / "snapshots"
            folder.mkdir(exist_ok=True)
            name = next_name(self._clock.now(), self._names(place))
            with _held_still(place):
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
            _mark_growing(place, source.stat().st_size)  # its file system may be smaller: it was growing then
            _copy(source, place / "disk.img")

    def remove(self, space_id: int) -> None:
        """See ports.Volumes."""
        with self._of(space_id) as place:
            if self._in_use(space_id):
                raise Unavailable(f"the app of Space {space_id} has its volume open; it is removed once that has ended")
            if place.exists():
                unmount_all(place)
                # First out of the way: a half-deleted one must not be found by the next start.
                gone = place.with_name(f"{place.name}.gone")
                if gone.exists():
                    shutil.rmtree(gone)
                place.rename(gone)
                shutil.rmtree(gone)

    # --- for the orchestrator -----------------------------------------------------------------------------------------
    def attach(self, space_id: int, size: int, user: Owner) -> str:
        """Mount the Space's volume, made or grown to `size` bytes where need be; the directory to show as /data.

        Idempotent. All that is in it belongs to `user`, the app's. Raises DiskFull, Unavailable.
        """
        with self._of(space_id) as place:
            mounted, image = place / "mounted", place / "disk.img"
            mounted.mkdir(parents=True, exist_ok=True)
            data = mounted / "data"
            if not image.exists():
                _copy(self._disks.template(size, journal=True), image)
            grows = image.stat().st_size < size or _growing(place) is not None
            if not os.path.ismount(mounted):
                if grows and _is_let_go(image):
                    _grow(place, size, grow_script)
                    grows = False
                run_script(mount_script(str(image), str(mounted)))
            if grows:
                self._grow_mounted(place, size)
            if not data.exists():
                data.mkdir()
                os.chown(data, user.uid, user.gid)
            elif (now := owner_of(data)) != user:
                log.warning("the volume of Space %d is %s's on this host: it is given to %s", space_id, now, user)
                _give(data, user)
            return str(data)

    def _grow_mounted(self, place: Path, size: int) -> None:
        """Grow it beneath the apps that have it. Where the kernel does not let us, a start that has it alone does."""
        try:
            _grow(place, size, grow_mounted_script)
        except Unavailable as error:
            # Better an app in the room it had than none.
            log.warning("the volume in %s does not grow while an app has it: %s", place, error)

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
        """After a start: thaw what a killed snapshot left frozen, delete half-made copies and half-removed volumes."""
        for place in list(self._root.iterdir()):
            if place.name.endswith(".gone"):
                shutil.rmtree(place)
                continue
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
    """By mount(8), which takes the device that the file may still have: two of one file system would destroy it."""
    return f"mount -t ext4 -o loop,discard,nodev,nosuid,noatime {shlex.quote(image)} {shlex.quote(mounted)}\n"


def grow_script(image: str, size: int) -> str:
    """Make a volume that is not mounted larger. e2fsck answers 1 where it mended something, which is success."""
    path = shlex.quote(image)
    return f"truncate -s {size} {path}\ne2fsck -fp {path} >&2 || [ $? = 1 ]\nresize2fs {path} >&2\n"


def grow_mounted_script(image: str, size: int) -> str:
    """The same of a mounted one: ext4 grows while it is in use, where we have CAP_SYS_RESOURCE. See resize2fs(8)."""
    path = shlex.quote(image)
    return (
        f"truncate -s {size} {path}\n"
        f"device=$(losetup --noheadings --output NAME --associated {path})\n"
        'losetup --set-capacity "$device"\n'
        'resize2fs "$device" >&2\n'
    )


def owner_of(path: Path) -> Owner:
    status = path.lstat()
    return Owner(status.st_uid, status.st_gid)


def give_script(data: str, user: Owner) -> str:
    """From the leaves up, no link followed: the directory itself comes last, by which it is seen that all is done."""
    return f"chown --recursive --no-dereference -P {user} -- {shlex.quote(data)}\n"


def _give(data: Path, user: Owner) -> None:
    """Give a volume to the user that its Space's apps now are: the engine has begun to remap users, or has ceased to.

    Nobody else writes there, so nothing is lost by it. Cut short, it is done by the next start. Raises Unavailable.
    """
    found = os.statvfs(data)
    run_script(
        give_script(str(data), user),
        seconds=COMMAND_SECONDS + (found.f_files - found.f_ffree) / SLOWEST_FILES,
        fault=f"the volume at {data} could not be given to {user}, its app's user on this host",
    )


def _grow(place: Path, size: int, script: Callable[[str, int], str]) -> None:
    """Make it `size` bytes large, or as large as its file is already where that was cut short. Raises Unavailable."""
    image = place / "disk.img"
    now = image.stat().st_size
    size = max(size, now)
    _mark_growing(place, now)
    run_script(script(str(image), size), seconds=COMMAND_SECONDS + size / SLOWEST_DISK / 100)
    (place / "growing").unlink()


def _mark_growing(place: Path, size: int) -> None:
    """Note how large the file system is, unless an earlier growth that did not end has done so."""
    if _growing(place) is None:
        files.replace(str(place / "growing"), f"{size}\n")


def _growing(place: Path) -> int | None:
    """Bytes of a file system that is to grow to the size of its file; None where it has that."""
    try:
        return int((place / "growing").read_text())
    except FileNotFoundError:
        return None


def is_attached(image: Path) -> bool:
    """Whether the kernel still has the file as a device: a container that somebody starts begins with a copy of our
    mounts, and so keeps what we have unmounted for a moment.
    """
    return any(_backing(device) == str(image) for device in Path("/sys/block").glob("loop*"))


def _is_let_go(image: Path) -> bool:
    """Whether the file is no device, waited for a moment: what is not grown now is not before the next start."""
    deadline = time.monotonic() + LETTING_GO_SECONDS
    while attached := is_attached(image):
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return not attached


def _backing(device: Path) -> str:
    try:
        return (device / "loop" / "backing_file").read_text().strip()
    except OSError:
        return ""  # not in use


def next_name(now: datetime, names: Sequence[str]) -> str:
    """The name of a snapshot taken now: greater than all before it, also where the clock was set back."""
    if names:
        newest = datetime.strptime(names[-1], SNAPSHOT_NAME).replace(tzinfo=UTC)
        now = max(now, newest + timedelta(microseconds=1))
    return now.strftime(SNAPSHOT_NAME)


def _taken(image: Path) -> int:
    """Bytes that a sparse file takes of the disk."""
    try:
        return image.stat().st_blocks * 512
    except FileNotFoundError:
        return 0  # removed just now


def _copy(source: Path, target: Path) -> None:
    """Copy a disk, whole or not at all; holes stay holes. Raises DiskFull, Unavailable."""
    new = f"{target}.new"
    try:
        run_script(
            f"cp --sparse=always --reflink=auto {shlex.quote(str(source))} {shlex.quote(new)}\n"
            f"sync -d {shlex.quote(new)}\n"
            f"mv {shlex.quote(new)} {shlex.quote(str(target))}\n",
            seconds=COMMAND_SECONDS + _taken(source) / SLOWEST_DISK,
        )
    except BaseException:
        Path(new).unlink(missing_ok=True)
        raise


@contextmanager
def _held_still(place: Path) -> Iterator[None]:
    """Hold all writes to a volume, and have everything that was written before in its file.

    One that is not mounted is, meanwhile: of one unmounted just now, the kernel may not have written all yet, since a
    container that anybody starts begins with a copy of our mounts.
    """
    mounted = place / "mounted"
    was_mounted = os.path.ismount(mounted)
    if not was_mounted:
        run_script(mount_script(str(place / "disk.img"), str(mounted)))
    try:
        _freeze(mounted, FIFREEZE)
        try:
            yield
        finally:
            _freeze(mounted, FITHAW)
    finally:
        if not was_mounted:
            unmount_all(mounted)


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
