"""Mounts and loop devices by system calls: a start makes five, and as many programs take several times as long.

Owns no files and no order of things: disks.py and volumes.py do. Everything needs root. Sources: mount(2), umount2(2),
loop(4), unshare(2); numbers of ioctls from include/uapi/linux/loop.h (LOOP_CONFIGURE: Linux 5.8).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from spaces_platform.errors import DiskFull, Unavailable

RDONLY, NOSUID, NODEV, REMOUNT, NOATIME, BIND = 1, 2, 4, 32, 1024, 4096
BOUNDS = NOSUID | NODEV | NOATIME
PAGE = 4096
"""What the kernel takes of a mount's options."""
_DETACH, _CLONE_FS = 2, 0x200
_GET_FREE, _CONFIGURE = 0x4C82, 0x4C0A
_AUTOCLEAR = 4
_CONFIG = struct.Struct("=II 5Q4I 64s 64s 32s 2Q 8Q")
"""struct loop_config: file, block size, struct loop_info64, 8 reserved."""
_LOOP_TRIES = 64
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class MountCall:
    """The arguments of one mount(2)."""

    source: str
    target: str
    kind: str = ""
    flags: int = 0
    data: str = ""


def mount(call: MountCall) -> None:
    """Raises DiskFull, Unavailable."""
    words = (call.source.encode(), call.target.encode(), call.kind.encode() or None)
    if len(call.data) >= PAGE:
        raise Unavailable(f"a disk could not be made: the options of {call.target} do not fit into a page")
    if _libc.mount(*words, ctypes.c_ulong(call.flags), call.data.encode() or None):
        raise failed(f"mounting {call.kind or call.source} at {call.target}", ctypes.get_errno())


def mount_in(directory: str, calls: Sequence[MountCall]) -> None:
    """One after the other, with paths taken from `directory`. Raises DiskFull, Unavailable."""

    def work() -> None:
        for call in calls:
            mount(call)

    _in_directory(directory, work)


def unmount(target: str) -> None:
    """Lazily: what still looks at it loses it when it closes it. Raises Unavailable."""
    if _libc.umount2(target.encode(), _DETACH):
        raise failed(f"unmounting {target}", ctypes.get_errno())


def mount_image(image: Path, target: Path) -> None:
    """Mount a file with an ext4 file system that was never mounted before; its device goes with its last mount.

    Of another one the kernel might still have a device, and two of one file system destroy it: mount(8) looks for that.
    Raises DiskFull, Unavailable.
    """
    try:
        fd, device = _attach(image)
    except OSError as error:
        raise failed(f"making a device of {image}", error.errno or 0) from error
    try:
        mount(MountCall(device, str(target), "ext4", BOUNDS, "discard"))
    finally:
        os.close(fd)


def failed(what: str, number: int) -> DiskFull | Unavailable:
    """What is to be said of a system call that failed."""
    if number in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"a disk could not be made: {what}: {os.strerror(number)}; free some space")
    return Unavailable(f"a disk could not be made: {what}: {os.strerror(number)}; look at the kernel's log")


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file without its holes; the blocks are shared where the file system can. Raises DiskFull, Unavailable."""
    try:
        with source.open("rb") as old, target.open("xb") as new:
            size = os.fstat(old.fileno()).st_size
            os.truncate(new.fileno(), size)
            at = 0
            while (begin := _next_data(old.fileno(), at)) is not None:
                at = os.lseek(old.fileno(), begin, os.SEEK_HOLE)
                while begin < at:
                    begin += os.copy_file_range(old.fileno(), new.fileno(), at - begin, begin, begin)
    except OSError as error:
        raise failed(f"copying {source} to {target}", error.errno or 0) from error


def _next_data(fd: int, at: int) -> int | None:
    try:
        return os.lseek(fd, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:  # only a hole is left
            return None
        raise


def _attach(image: Path) -> tuple[int, str]:
    """A loop device with the file behind it: a descriptor, which keeps it until it is mounted, and its path."""
    with image.open("r+b") as file, open("/dev/loop-control", "rb") as control:
        info = (0, 0, 0, 0, 0, 0, 0, 0, _AUTOCLEAR, str(image).encode()[:63], b"", b"", 0, 0)
        config = _CONFIG.pack(file.fileno(), 0, *info, *(0,) * 8)
        for _ in range(_LOOP_TRIES):
            device = f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}"
            fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(fd, _CONFIGURE, config)
            except OSError as error:
                os.close(fd)
                if error.errno != errno.EBUSY:  # else somebody else was quicker
                    raise
            else:
                return fd, device
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def _in_directory(directory: str, work: Callable[[], object]) -> None:
    """Do it in a thread that has a working directory of its own. Raises what it raises."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            if _libc.unshare(_CLONE_FS):
                raise failed("unsharing a working directory", ctypes.get_errno())
            os.chdir(directory)
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="mounts")
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
