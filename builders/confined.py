"""Running one command of a build: untrusted, within limits, stoppable.

Owns: the process group, user, sandbox and scrubbed environment of a command, streaming its output line by line, and
ending all of it when a limit is exceeded or the build is cancelled. Does not own: which commands run (`venv`).
Invariant: when `run` returns or raises, no process that the command started is left, and nothing outside the writable
folders was changed. Limits are polled (every POLL seconds), so a command may exceed one for that long.
"""

from __future__ import annotations

import os
import selectors
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from builders import usage
from builders.pythons import Identity, identity
from builders.types import BuildCancelled, BuildLimits

POLL = 0.1
"""Seconds between two looks at cancellation, processes and memory."""
PIPE_BYTES = 1 << 16
PIPE_READS = 16
"""Of PIPE_BYTES: a pipe of an unprivileged process holds up to a megabyte."""
DISK_POLL = 1.0
"""Least seconds between two walks over the folders; a walk never takes more than a tenth of the time."""
MAX_LINE = 4000
MAX_OUTPUT = 16 << 20
"""Bytes of output that are read as lines; the rest is dropped with a mark."""


class LimitHit(Exception):
    """A command used more than it may. `kind`: seconds, memory, processes, disk or free_disk."""

    def __init__(self, kind: str, used: float, limit: float) -> None:
        super().__init__(f"{kind}: {used} of {limit}")
        self.kind, self.used, self.limit = kind, used, limit


@dataclass(frozen=True, slots=True)
class Sandbox:
    """How commands are kept apart from the machine. Made once by `detect`."""

    run_as: Identity | None = None
    bwrap: str | None = None
    setpriv: str | None = None
    """Ends a command when its builder is killed; bubblewrap does that itself."""
    hidden: tuple[Path, ...] = ()
    """Folders the command must not see: the platform's data, the user's home."""

    @property
    def words(self) -> str:
        parts = ["bubblewrap"] if self.bwrap else ["no sandbox (bubblewrap is missing or not permitted)"]
        return ", ".join([*parts, f"uid {self.run_as[0]}" if self.run_as else "the platform's own uid"])


def detect(run_as: Identity | None, hidden: Sequence[Path] = ()) -> Sandbox:
    """What isolation really works here, found by trying it."""
    bwrap = shutil.which("bwrap")
    if bwrap:
        works = _works(
            [bwrap, "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--unshare-pid", "true"], run_as
        )
        bwrap = bwrap if works else None
    setpriv = shutil.which("setpriv")
    if setpriv and not _works([setpriv, "--pdeathsig", "KILL", "true"], run_as):
        setpriv = None
    # What lies in somebody's private folder is out of reach already, also for bubblewrap, which would put a lid on it.
    seen = [path.resolve() for path in hidden if _works(["test", "-d", f"{path}/."], run_as)]
    return Sandbox(run_as, bwrap, setpriv, tuple(seen))


def _works(argv: list[str], run_as: Identity | None) -> bool:
    try:
        done = subprocess.run(argv, capture_output=True, timeout=10, check=False, cwd="/", **identity(run_as))
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def can_reach(python: Path, folder: Path, run_as: Identity) -> bool:
    """Whether a user can enter a folder, found by trying it."""
    return _works([str(python), "-I", "-S", "-c", "import os, sys; os.stat(sys.argv[1] + '/.')", str(folder)], run_as)


def can_run(program: str, run_as: Identity) -> bool:
    """Whether a user can start a program, found by trying it."""
    return _works([program, "--version"], run_as)


@dataclass(slots=True)
class Budget:
    """What is left to a whole build; shared by its commands."""

    limits: BuildLimits
    deadline: float
    """time.monotonic() at which the build is over."""
    cancelled: Callable[[], bool]
    measured: tuple[Path, ...]
    """Folders whose size counts against the disk limit; the first one exists."""
    mark: str
    reserve: int = 256 << 20
    """Bytes that must stay free on the disk."""
    next_disk: float = 0.0

    def check(self, root: int) -> None:
        """Raises BuildCancelled or LimitHit."""
        now = time.monotonic()
        if self.cancelled():
            raise BuildCancelled
        if now > self.deadline:
            raise LimitHit("seconds", self.limits.seconds, self.limits.seconds)
        used = usage.processes_of(root, self.mark)
        if len(used.processes) > self.limits.processes:
            raise LimitHit("processes", len(used.processes), self.limits.processes)
        if used.memory > self.limits.memory:
            raise LimitHit("memory", used.memory, self.limits.memory)
        if now >= self.next_disk:
            self.check_disk()
            spent = time.monotonic() - now
            self.next_disk = time.monotonic() + max(DISK_POLL, 10 * spent)

    def check_disk(self) -> None:
        self.check_used(usage.disk(self.measured))

    def check_used(self, used: int) -> None:
        """Raises LimitHit where `used` bytes, or what is left on the disk, are beyond the limit."""
        if used > self.limits.disk:
            raise LimitHit("disk", used, self.limits.disk)
        free = shutil.disk_usage(self.measured[0]).free
        if free < self.reserve:
            raise LimitHit("free_disk", free, self.reserve)


def new_mark(prefix: str) -> str:
    """A mark for the processes of one build of this process."""
    return f"{prefix}:{os.getpid()}:{usage.started(os.getpid())}:{uuid.uuid4().hex}"


@dataclass(frozen=True, slots=True)
class Command:
    argv: tuple[str, ...]
    cwd: Path
    env: Mapping[str, str]
    """All of it: nothing is inherited."""
    writable: tuple[Path, ...]
    temp: Path
    """Becomes /tmp where there is a sandbox."""
    visible: tuple[Path, ...] = ()
    """Read-only paths below hidden folders that the command needs."""


def run(
    command: Command,
    sandbox: Sandbox,
    budget: Budget,
    on_line: Callable[[str], None],
    on_tick: Callable[[], None] = lambda: None,
    *,
    measure: bool = True,
) -> int:
    """Run to the end; the exit status, negative for a signal. Raises LimitHit, BuildCancelled, OSError.

    `measure`: look at the disk once more after it; walking an environment of a large SDK takes a tenth of a second, so
    commands of ours that write little leave it to the next one.
    """
    process: subprocess.Popen[bytes] = subprocess.Popen(
        wrapped(command, sandbox),
        cwd="/" if sandbox.bwrap else command.cwd,
        env={**command.env, usage.MARK: budget.mark},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
        **identity(sandbox.run_as),
    )
    try:
        _follow(process, budget, _Lines(on_line), on_tick)
        if measure:
            budget.check_disk()
    finally:
        usage.kill(process.pid, budget.mark)
        process.wait()
        if process.stdout:
            process.stdout.close()
    return process.returncode


def _follow(process: subprocess.Popen[bytes], budget: Budget, lines: _Lines, on_tick: Callable[[], None]) -> None:
    if process.stdout is None:
        raise RuntimeError("the command was started without a pipe")
    fd = process.stdout.fileno()
    os.set_blocking(fd, False)
    checked = 0.0
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while True:
            ready = selector.select(POLL)
            data = _read(fd) if ready else None
            if data:
                lines.feed(data)
            if time.monotonic() - checked >= POLL:
                budget.check(process.pid)
                on_tick()
                checked = time.monotonic()
                # A daemon the command left behind may hold the pipe open: the command's own end decides.
                if _ended(process):
                    _drain(fd, lines)
                    break
            if data == b"":
                break
    while not _ended(process):  # closed its output, but still runs
        budget.check(process.pid)
        time.sleep(POLL / 5)
    lines.end()


def _ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it ended, without reaping it: its id must stay its own until all of its group is killed."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _drain(fd: int, lines: _Lines) -> None:
    """What the command wrote after the last look and before its end: no more than a pipe holds, whoever else writes."""
    for _ in range(PIPE_READS):
        data = _read(fd)
        if not data:
            return
        lines.feed(data)


def _read(fd: int) -> bytes | None:
    try:
        return os.read(fd, PIPE_BYTES)
    except BlockingIOError:
        return None


@dataclass(slots=True)
class _Lines:
    """Bytes to lines, bounded."""

    on_line: Callable[[str], None]
    rest: bytes = b""
    total: int = 0
    dropped: bool = field(default=False)

    def feed(self, data: bytes) -> None:
        self.total += len(data)
        if self.total > MAX_OUTPUT:
            if not self.dropped:
                self.on_line(f"[output is longer than {MAX_OUTPUT >> 20} MiB; the rest is not kept]")
            self.dropped = True
            return
        *full, self.rest = (self.rest + data.replace(b"\r", b"\n")).split(b"\n")
        for line in full:
            self._emit(line)
        if len(self.rest) > MAX_LINE:
            self._emit(self.rest)
            self.rest = b""

    def end(self) -> None:
        self._emit(self.rest)
        self.rest = b""

    def _emit(self, line: bytes) -> None:
        if line.strip():
            self.on_line(line[:MAX_LINE].decode("utf-8", "replace").rstrip())


def wrapped(command: Command, sandbox: Sandbox) -> list[str]:
    """The full argv: the command inside what isolation there is. Pure."""
    if not sandbox.bwrap:
        guard = [sandbox.setpriv, "--pdeathsig", "KILL"] if sandbox.setpriv else []
        return [*guard, *command.argv]
    argv = [sandbox.bwrap, "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
    argv += ["--bind", str(command.temp), "/tmp"]
    for folder in sandbox.hidden:
        if folder != Path("/"):
            argv += ["--tmpfs", str(folder)]
    for path in command.visible:
        argv += ["--ro-bind", str(path), str(path)]
    for folder in (*command.writable, command.temp):
        argv += ["--bind", str(folder), str(folder)]
    argv += ["--chdir", str(command.cwd), "--unshare-pid", "--unshare-ipc", "--die-with-parent", "--new-session", "--"]
    return [*argv, *command.argv]
