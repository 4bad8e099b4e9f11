"""Puts this process where what it mounts and the networks that it makes are nobody else's.

Owns: the namespaces of the main thread, and the way back. Needs root. See unshare(2), setns(2).
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from spaces_platform.adapters.docker.disks import unmount_all

CLONE_FS, CLONE_NEWNS, CLONE_NEWNET = 0x200, 0x20000, 0x40000000
_KINDS = {"mnt": CLONE_NEWNS, "net": CLONE_NEWNET}
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def apart(instead: Mapping[Path, Path]) -> Iterator[None]:
    """Meanwhile this thread, with the threads and programs that it starts, has mounts and networks of its own.

    `instead`: files of the machine (which must exist) -> what is seen there meanwhile.
    """
    cwd = os.getcwd()
    outside = {kind: os.open(f"/proc/thread-self/ns/{kind}", os.O_RDONLY) for kind in _KINDS}
    try:
        _check(_libc.unshare(CLONE_NEWNS | CLONE_NEWNET), "unshare")
        for command in (
            ["mount", "--make-rprivate", "/"],
            *(["mount", "--bind", str(ours), str(theirs)] for theirs, ours in instead.items()),
            ["ip", "link", "set", "lo", "up"],
        ):
            subprocess.run(command, check=True, timeout=60)
        unmount_all(Path(tempfile.gettempdir()))  # copies of what others have there, which they could not let go of
        yield
    finally:
        # Threads that are still there share where they are in the files, and would keep this one from leaving.
        _check(_libc.unshare(CLONE_FS), "unshare")
        for kind, namespace in outside.items():
            _check(_libc.setns(namespace, _KINDS[kind]), "setns")
            os.close(namespace)
        os.chdir(cwd)


def _check(result: int, name: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
