"""Runs one app from start to end: `run()` reads a launch (marshal) from standard input and returns when all is over.

Life: launch read to its end (else nothing is started) -> directories, cgroups, child -> output, limits and stop request
are watched -> every process of the app is killed -> `exit.json`. SIGTERM asks to stop; the file `stop` in the state
directory holds the grace in seconds. Invariant: when `exit.json` exists, no process of the app is left.
"""

from __future__ import annotations

import errno
import marshal
import os
import resource
import select
import sys
import time

from . import files, groups, procfs
from .guard import Guard
from .output import Pump
from .segments import Writer

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing and signal would take longer to import than all the rest
    import signal
    from typing import Any
else:
    import _signal as signal

DEFAULT_GRACE = 10.0
KILL_WAIT = 5.0
"""Seconds within which killed processes must be gone; longer only where the kernel holds them (a dead disk)."""
RECORD_SIZE = 512
"""Bytes of exit.json, set aside at the start: an app that fills the disk is still recorded."""
PR_SET_CHILD_SUBREAPER = 36


def run() -> None:
    """The whole life of one app."""
    data = sys.stdin.buffer.read()
    try:
        launch = marshal.loads(data)
    except (EOFError, ValueError, TypeError):
        return  # whoever started this died meanwhile; nothing was started, nothing is to be recorded
    Shim(launch).run()


class Shim:
    """One app and everything it started."""

    def __init__(self, launch: dict[str, Any]) -> None:
        self.launch = launch
        self.state: str = launch["state"]
        self.child = 0
        self.status: int | None = None
        self.stop_at: float | None = None
        self.reason = ""
        self.words = ""
        os.umask(0o077)
        self.wake, wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, self._signal)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.makedirs(f"{self.state}/log", mode=0o700, exist_ok=True)
        reader, self.writer = os.pipe2(os.O_CLOEXEC)
        self.pump = Pump(reader, Writer(f"{self.state}/log", launch["log_bytes"]), launch["log_rate"])
        self.ending = files.reserve(f"{self.state}/exit.json.new", RECORD_SIZE)
        self.guard = Guard(launch["watch"], launch["watched_directories"], self._tree)

    def run(self) -> None:
        try:
            self._prepare()
            if self.stop_at is None:
                self._spawn()
            if self.child:
                if self.stop_at is not None:
                    self._terminate()
                self._watch()
        except OSError as error:
            self._say(f"could not run the app: {error}")
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            self.reason, self.words = "disk_full" if full else "machine", f"could not run: {error}"
        finally:
            if self.child:
                self._end_all()
                self.pump.finish()
            self._record(self.status)

    def _signal(self, number: int, frame: object) -> None:
        """Python-level handler: what matters is that the wake-up pipe is written."""
        if number == signal.SIGTERM:
            self._stop_requested()

    def _stop_requested(self) -> None:
        try:
            with open(f"{self.state}/stop") as file:
                grace = float(file.read())
        except (OSError, ValueError):
            grace = DEFAULT_GRACE
        first = self.stop_at is None
        deadline = time.monotonic() + grace
        self.stop_at = deadline if self.stop_at is None else min(self.stop_at, deadline)
        if first and self.child and self.status is None:
            self._terminate()

    # --- start ------------------------------------------------------------------------------------------------------
    def _prepare(self) -> None:
        launch = self.launch
        if launch["subreaper"]:
            import ctypes  # costs 2 ms and 0.5 MB, so only where no pid namespace holds the app's processes

            if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
                raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
        files.make_directories(launch["directories"], launch["uid"])
        for source, target in launch["copies"]:
            files.copy_tree(source, target, launch["uid"])
        for path, settings in launch["cgroups"]:
            os.makedirs(path, exist_ok=True)
            for name, value in settings:
                with open(f"{path}/{name}", "w") as file:
                    file.write(value)

    def _spawn(self) -> None:
        script, script_writer = os.pipe2(os.O_CLOEXEC)
        self.child = os.fork()
        if not self.child:
            try:
                self._become_app(script)
            except BaseException as error:
                os.write(2, f"[spaces] could not start the app: {error}\n".encode())
            finally:
                os._exit(126)
        os.close(script)
        os.close(self.writer)
        data = self.launch["script"]
        try:
            while data:
                data = data[os.write(script_writer, data) :]
        except BrokenPipeError:
            pass  # the app's shell ended before reading all; its exit is seen below
        os.close(script_writer)

    def _become_app(self, script: int) -> None:
        """In the child: into the cgroups, under the limits, then the sandbox. Never returns."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        os.dup2(script, 0)
        os.dup2(self.writer, 1)
        os.dup2(self.writer, 2)
        for path, _ in self.launch["cgroups"]:
            with open(f"{path}/cgroup.procs", "w") as file:
                file.write("0")
        for which, limit in self.launch["rlimits"]:
            hard = resource.getrlimit(which)[1]
            limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.setrlimit(which, (limit, limit))
        if self.launch["nice"]:
            os.nice(self.launch["nice"])
        argv = self.launch["argv"]
        os.execve(argv[0], argv, self.launch["env"])

    # --- watching ---------------------------------------------------------------------------------------------------
    def _watch(self) -> None:
        """Until the app's first process has ended."""
        poll = select.poll()
        poll.register(self.wake, select.POLLIN)
        reading = False
        while self.status is None:
            now = time.monotonic()
            paused = self.pump.paused_until(now)
            want = self.pump.open and paused is None
            if want != reading:
                poll.register(self.pump.fd, select.POLLIN) if want else poll.unregister(self.pump.fd)
                reading = want
            wake_at = min(t for t in (self.guard.next, self.stop_at, paused) if t is not None)
            for fd, _ in poll.poll(max(0.0, wake_at - now) * 1000 + 1):
                if fd == self.wake:
                    os.read(self.wake, 512)
                else:
                    self.pump.pump(time.monotonic())
            self._reap()
            self._enforce(time.monotonic())

    def _enforce(self, now: float) -> None:
        if self.status is not None:
            return
        if self.stop_at is not None and now >= self.stop_at:
            self._say("still running after the grace period; killed")
            self._end_all()
            return
        broken = self.guard.exceeded(now)
        if broken:
            self.reason, self.words = broken
            self._say(self.words)
            self._end_all()

    def _reap(self) -> None:
        """Collect every child that ended, adopted ones too."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid == self.child:
                self.status = os.waitstatus_to_exitcode(status)

    # --- ending -----------------------------------------------------------------------------------------------------
    def _tree(self) -> list[int]:
        return procfs.descendants(os.getpid())

    def _terminate(self) -> None:
        """SIGTERM to the app's process group, past the sandbox's own processes (they would end without asking it)."""
        leader = self.child
        for _ in range(self.launch["wrappers"]):
            below = procfs.children(leader)
            if not below:
                break
            leader = below[0]
        try:
            group = os.getpgid(leader)
            if group == os.getpgid(0):
                os.kill(leader, signal.SIGTERM)
            else:
                os.killpg(group, signal.SIGTERM)
        except ProcessLookupError:
            return

    def _end_all(self) -> None:
        """Kill every process of the app and wait until they are gone."""
        deadline = time.monotonic() + KILL_WAIT
        # A sandbox that ended by itself has waited for its whole pid namespace: looking at /proc would find nobody.
        emptied = self.launch["wrappers"] and self.status is not None and self.status >= 0
        while time.monotonic() < deadline:
            left = [] if emptied else self._tree()
            for path, _ in self.launch["cgroups"]:
                left += groups.members(path)
            if not left:
                break
            for pid in left:
                groups.kill(pid)
            select.select([], [], [], 0.002)
            self._reap()
        self._reap()

    def _record(self, status: int | None) -> None:
        """Write exit.json, last of all."""
        killed = self._oom_kills()
        if killed and status != 0 and not self.reason:
            self.reason, self.words = "memory", f"out of memory: {self.launch['memory'] >> 20} MiB allowed"
            self._say(self.words)
        for path, _ in self.launch["cgroups"]:
            groups.remove(path)
        if status is not None and self.launch["shell_codes"] and 128 < status < 128 + 65:
            status = 128 - status
        code = "null" if status is None else str(status)
        out_of_memory = "true" if self.reason == "memory" else "false"
        words = "".join(c if (c.isascii() and c.isalnum()) or c in " .,:;/()[]+-=_'" else "?" for c in self.words)
        text = (
            f'{{"code": {code}, "out_of_memory": {out_of_memory}, "at": {time.time()}, '
            f'"reason": "{self.reason}", "words": "{words[: RECORD_SIZE // 2]}"}}'
        )
        os.pwrite(self.ending, text.encode().ljust(RECORD_SIZE), 0)
        os.replace(f"{self.state}/exit.json.new", f"{self.state}/exit.json")

    def _oom_kills(self) -> int:
        path, key = self.launch["oom_events"]
        if not path:
            return 0
        try:
            with open(path) as file:
                return sum(int(line.split()[1]) for line in file if line.split()[0] == key)
        except FileNotFoundError:
            return 0

    def _say(self, words: str) -> None:
        self.pump.write([f"[spaces] {words}".encode()])
