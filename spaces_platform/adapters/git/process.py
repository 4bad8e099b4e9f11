"""Runs the git binary: owns the environment, limits and life of every git child.

It knows nothing of refs, rules or HTTP. Invariant: a git child never reads configuration, hooks or credentials of the
machine or its user, can never outlive its caller's time limit, and is always ended together with its own children.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from spaces_platform.errors import DiskFull, TooLarge, Unavailable

CHUNK = 65536
_STDERR_KEPT = 4096
# A lower limit that is in force already cannot be raised; it holds then, so a refused `ulimit` is no error.
_LIMITED = 'ulimit -v "$1" 2>/dev/null; ulimit -t "$2" 2>/dev/null; ulimit -c 0; shift 2; exec "$@"'


@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """What one git process, and each process it starts, may use."""

    memory: int = 3 << 30
    """Bytes of address space; git maps packs into it."""
    cpu: int = 120
    """Seconds of processor time."""
    seconds: float = 60.0
    """Wall clock of one call that is not a transfer."""


class GitError(Exception):
    """git ended with an error. `status` is its exit status (minus the signal number where one ended it)."""

    def __init__(self, command: str, status: int, stderr: str) -> None:
        super().__init__(f"git {command} failed with status {status}: {stderr.strip() or 'no message'}")
        self.status, self.stderr = status, stderr


def _failure(command: str, status: int, stderr: str) -> Exception:
    if any(words in stderr for words in (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))):
        return DiskFull("The disk of the repositories is full; nothing was changed. Ask the admin to free some space.")
    return GitError(command, status, stderr)


def end_group(pid: int) -> None:
    """End a process that leads its own group, with all it started. The absent is success."""
    with suppress(ProcessLookupError, PermissionError):  # PermissionError: macOS reports it for a group of zombies
        os.killpg(pid, signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Git:
    """The git binary with its limits."""

    binary: str = "git"
    limits: ProcessLimits = field(default_factory=ProcessLimits)

    def argv(self, *args: str) -> list[str]:
        """The command line that runs `git args` under the limits."""
        found = shutil.which(self.binary)
        if found is None:
            raise Unavailable(f"git was not found as {self.binary!r}; install git 2.34 or later")
        limits = [str(self.limits.memory // 1024), str(self.limits.cpu)]
        return ["/bin/sh", "-c", _LIMITED, "sh", *limits, found, *args]

    def environment(self, repository: Path | None, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """The whole environment of a git child: nothing is inherited.

        `safe.directory` names the one repository, because git accepts it from the command's scope only.
        """
        config = {"protocol.allow": "never", "core.fsync": "all", "core.fsyncMethod": "fsync", "gc.auto": "0"}
        if repository is not None:
            config["safe.directory"] = str(repository)
        env = {
            "PATH": f"{Path(shutil.which(self.binary) or '/usr/bin/git').parent}:/usr/bin:/bin",
            "HOME": "/nonexistent",
            "XDG_CONFIG_HOME": "/nonexistent",
            "LC_ALL": "C",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ALLOW_PROTOCOL": "",
            "GIT_LITERAL_PATHSPECS": "1",
            "GIT_CONFIG_COUNT": str(len(config)),
        }
        for number, (key, value) in enumerate(config.items()):
            env[f"GIT_CONFIG_KEY_{number}"], env[f"GIT_CONFIG_VALUE_{number}"] = key, value
        return env | dict(extra or {})


@dataclass(frozen=True, slots=True)
class GitAt:
    """git in one bare repository, or in the quarantine of a push into it."""

    git: Git
    path: Path
    quarantine: Path | None = None
    """Where the objects of a push wait for the verdict; git refuses to move refs while it is set."""
    alone: bool = False
    """With a quarantine: see its objects only, not those of the repository."""

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        env = {"GIT_DIR": str(self.path)}
        if self.quarantine is not None:
            env["GIT_OBJECT_DIRECTORY"] = env["GIT_QUARANTINE_PATH"] = str(self.quarantine)
            if not self.alone:
                env["GIT_ALTERNATE_OBJECT_DIRECTORIES"] = str(self.path / "objects")
        return self.git.environment(self.path, env | dict(extra or {}))

    @contextmanager
    def process(self, *args: str, seconds: float | None = None) -> Iterator[subprocess.Popen[bytes]]:
        """A running git with pipes on stdin and stdout, ended with the block or when its time is up.

        Raises GitError on leaving the block if git ended by itself with an error, unless an exception is on its way.
        """
        with tempfile.TemporaryFile() as stderr:
            child = subprocess.Popen(
                self.git.argv(*args),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=self.environment(),
                cwd="/",
                start_new_session=True,
            )
            timer = threading.Timer(seconds or self.git.limits.seconds, end_group, (child.pid,))
            timer.daemon = True
            timer.start()
            try:
                yield child
                _close(child.stdin)
                status = child.wait()
            finally:
                timer.cancel()
                if child.poll() is None:
                    end_group(child.pid)
                    child.wait()
                _close(child.stdin)
                _close(child.stdout)
            if status != 0:
                raise _failure(args[0], status, _tail(stderr))

    def run(self, *args: str, given: bytes = b"", at_most: int = 64 << 20) -> bytes:
        """The whole output of a git command. Raises GitError; TooLarge past `at_most` bytes of output."""
        with self.process(*args) as child:
            writer = threading.Thread(target=_write, args=(child.stdin, given), daemon=True)
            writer.start()
            output = bytearray()
            while chunk := pipe(child.stdout).read1(CHUNK):  # type: ignore[attr-defined]
                output += chunk
                if len(output) > at_most:
                    raise TooLarge(f"git {args[0]} in {self.path.name} gave more than {at_most} bytes of output")
            writer.join()
        return bytes(output)

    def lines(self, *args: str, given: bytes = b"") -> Sequence[str]:
        return self.run(*args, given=given).decode("utf-8", "replace").splitlines()


def pipe(stream: IO[bytes] | None) -> IO[bytes]:
    """A stream that was asked for as a pipe."""
    if stream is None:
        raise RuntimeError("the process was started without this pipe")
    return stream


def _write(stream: IO[bytes] | None, data: bytes) -> None:
    # git may end before it has read everything; its exit status tells why.
    with suppress(BrokenPipeError, ValueError):
        pipe(stream).write(data)
    _close(stream)


def _close(stream: IO[bytes] | None) -> None:
    if stream is not None:
        with suppress(BrokenPipeError):  # closing flushes; the reader may be gone
            stream.close()


def _tail(stream: IO[bytes]) -> str:
    stream.seek(max(0, stream.seek(0, os.SEEK_END) - _STDERR_KEPT))
    return stream.read().decode("utf-8", "replace")
