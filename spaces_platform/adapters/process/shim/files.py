"""The app's own files: directories it may write, and its private copy of the pushed tree.

Invariant: nothing is followed through a link, and the source is never written.
"""

from __future__ import annotations

import os


def make_directories(directories: list[tuple[str, int]], uid: int | None) -> None:
    """Make each (path, mode), owned by `uid` where one is given."""
    for path, mode in directories:
        os.makedirs(path, exist_ok=True)
        os.chmod(path, mode)
        if uid is not None:
            os.chown(path, uid, uid)


def copy_tree(source: str, target: str, uid: int | None) -> None:
    """Copy a tree into an existing directory: links stay links, times are kept (bytecode is checked against them)."""
    below = [""]
    while below:
        place = below.pop()
        with os.scandir(source + place) as entries:
            for entry in entries:
                inner = f"{place}/{entry.name}"
                to = target + inner
                if entry.is_symlink():
                    os.symlink(os.readlink(entry.path), to)
                elif entry.is_dir(follow_symlinks=False):
                    os.mkdir(to, 0o755)
                    below.append(inner)
                elif entry.is_file(follow_symlinks=False):
                    _copy_file(entry.path, to)
                else:
                    continue
                if uid is not None:
                    os.chown(to, uid, uid, follow_symlinks=False)


def _copy_file(source: str, target: str) -> None:
    read = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        status = os.fstat(read)
        mode = (status.st_mode & 0o777) | 0o600
        write = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            while os.sendfile(write, read, None, 1 << 30):
                pass
            os.utime(write, ns=(status.st_atime_ns, status.st_mtime_ns))
        finally:
            os.close(write)
    finally:
        os.close(read)


def reserve(path: str, size: int) -> int:
    """A descriptor of a new file that has its space already, to be filled in place when the disk may be full."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    os.write(fd, b" " * size)
    return fd


def replace(path: str, text: str) -> None:
    """Write a small file so that readers see the old or the new content, never half of it."""
    temporary = f"{path}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
    os.replace(temporary, path)
