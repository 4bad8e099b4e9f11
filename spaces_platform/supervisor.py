"""Runs the platform on one machine as one thing: control plane, gateway and, with Celery, a worker, each a process.

Owns: preparing the data directory, starting the processes, restarting one that dies, saying when the platform answers,
and stopping everything. Does not own: what they do, or the apps (the control plane's). Invariant: one supervisor per
data directory, held by a kernel lock; a supervisor that was killed leaves its children running, and the next one ends
them by their recorded identity before it starts its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import importlib.util
import json
import logging
import math
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, NoReturn

import spaces_platform
from spaces_platform.errors import Conflict, Invalid, Unavailable
from spaces_platform.presence import DataLock, Mark, listener_of, read_mark, read_state, write_json, write_mark
from spaces_platform.settings import Settings

log = logging.getLogger("spaces.supervisor")

READY_SECONDS = 60.0
"""From the start of the processes to the first answer; then the start has failed."""
POLL_SECONDS = 0.02
ONE_ASK_SECONDS = 1.0
"""Signals within this time are one request to stop; a later one is from somebody who does not want to wait."""
ROTATE_SECONDS = 5.0
LOG_BYTES = 16 << 20
"""Size at which the log of a child is set aside as `.1`."""
BACK_OFF = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds before the n-th restart in a row."""
STEADY_SECONDS = 30.0
"""A process that ran this long starts again at the first step of the back-off."""
GATEWAY_DRAIN_SECONDS = 4.0
STOP_SECONDS = {"gateway": 5.0, "control": 9.0, "worker": 13.0}
"""How long each process may take to end by itself, in the order in which they are awaited. The worker is asked before
the others, since its builds need none of them: so all together stay below the 15 s that a stop may take."""
SOCKET_PATH_MAX = 100
"""sun_path of unix(7) holds 108 bytes on Linux, 104 on macOS."""


@dataclass(frozen=True, slots=True)
class Program:
    """One process to keep running."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    log: Path
    stop_signal: signal.Signals = signal.SIGTERM


class StartFailed(Unavailable):
    """The platform did not start."""


def missing_packages(settings: Settings, has: Callable[[str], bool]) -> tuple[str, ...]:
    """What these settings need to be installed and `has` does not find, by name of the package. Pure."""
    wanted = {
        "celery": settings.queue == "celery",
        "redis": settings.queue == "celery",
        "docker": "docker" in (settings.builder, settings.orchestrator),
        "psycopg": settings.database.startswith("postgres"),
    }
    return tuple(name for name, needed in wanted.items() if needed and not has(name))


def prepare(settings: Settings) -> None:
    """Make the data directory and what the processes share. Raises Invalid, Unavailable."""
    if missing := missing_packages(settings, lambda name: importlib.util.find_spec(name) is not None):
        raise Unavailable(
            f"These settings need {', '.join(missing)}, which this Python does not have. Install with "
            "`make single-host`, or pip install 'spaces-platform[single-host]'."
        )
    data, run = settings.data, settings.data / "run"
    if len(os.fsencode(settings.control_socket)) > SOCKET_PATH_MAX:
        raise Invalid(
            f"The data directory {data} has too long a path for a socket in it; choose a shorter one with --data."
        )
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o711)
        for folder, mode in ((data, 0o711), (run, 0o700), (data / "logs", 0o700)):
            folder.mkdir(exist_ok=True, mode=mode)
            folder.chmod(mode)
    except OSError as exc:
        raise Unavailable(
            f"The data directory {data} cannot be used: {exc.strerror}. Choose another with --data, or make it yours."
        ) from exc


def link_token(data: Path) -> str:
    """The secret that gateway and control plane share; made once per data directory."""
    path = data / "run" / "link.token"
    try:
        token = path.read_text().strip()
    except FileNotFoundError:
        token = ""
    if not token:
        token = secrets.token_urlsafe(32)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(token + "\n")
    return token


def gateway_config(settings: Settings, token: str) -> dict[str, Any]:
    """The gateway's configuration file for these settings. Pure."""
    run = settings.data / "run"
    loopback = settings.host in ("127.0.0.1", "localhost")
    return {
        "control": f"unix:{settings.control_socket}",
        "link_token": token,
        "listen": [{"host": settings.host, "port": settings.port, "loopback_only": loopback}],
        # As they stand in a Host header: an IPv6 address only in brackets.
        "platform_hosts": [host for host in settings.platform_hosts if ":" not in host or host.startswith("[")],
        "platform_origin": settings.url,
        "apps_domain": settings.domain,
        "scheme": settings.url.partition(":")[0],
        "trusted_proxies": settings.proxies,
        # A proxy stands for all its visitors.
        "uncapped_clients": ["127.0.0.0/8", "::1/128", *settings.proxies],
        "tls_ask": settings.tls_ask or None,
        "snapshot": str(run / "routes.json"),
        "admin": f"unix:{run / 'gateway.sock'}",
        "hold_seconds": settings.hold_seconds,
        "drain_seconds": GATEWAY_DRAIN_SECONDS,
    }


def become_gateway(settings: Settings) -> NoReturn:
    """Turn this process into the gateway alone, beside a control plane that runs by itself. Needs only `run/` below
    the data directory. Raises Unavailable where the control plane has not made it.
    """
    run = settings.data / "run"
    try:
        write_json(run / "gateway.json", gateway_config(settings, link_token(settings.data)))
    except OSError as exc:
        raise Unavailable(f"{run} cannot be written: {exc.strerror}. Start the control plane first.") from exc
    os.execv(sys.executable, gateway_argv(settings))


def gateway_argv(settings: Settings) -> tuple[str, ...]:
    return (sys.executable, "-m", "spaces_platform.gateway", "--config", str(settings.data / "run" / "gateway.json"))


def environment(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """Environment of the processes: ours, with every setting spelled out, so that flags reach them too. Pure."""
    given = {f"SPACES_{f.name.upper()}": str(getattr(settings, f.name)) for f in dataclasses.fields(Settings)}
    return {**environ, **given, "PYTHONUNBUFFERED": "1"}


def programs(settings: Settings, environ: Mapping[str, str]) -> tuple[Program, ...]:
    """What runs, in the order it is started. Pure."""
    env, logs = environment(settings, environ), settings.data / "logs"
    control = (sys.executable, "-m", "spaces_platform", "control", "--data", str(settings.data))
    found = [
        # SIGINT tells the control plane to stop the apps as well; see `control`.
        Program("control", control, env, logs / "control.log", signal.SIGINT),
        Program("gateway", gateway_argv(settings), env, logs / "gateway.log"),
    ]
    if settings.queue == "celery":
        worker = (sys.executable, "-m", "spaces_platform.worker", "--data", str(settings.data))
        found.append(Program("worker", worker, env, logs / "worker.log"))
    return tuple(found)


class Child:
    """One program and its process, over all restarts."""

    def __init__(self, program: Program, data: Path) -> None:
        self.program, self._data = program, data
        self.process: subprocess.Popen[bytes] | None = None
        self.restarts = 0
        self.due: float | None = 0.0
        """When to start (monotonic); None while it runs or is not to run."""
        self._in_a_row = 0
        self._started = 0.0
        self._asked = 0.0
        """When it was asked to end (monotonic); 0: not yet."""

    def start(self) -> None:
        """In a session of its own, so that a Ctrl-C of the terminal reaches the supervisor alone."""
        with self.program.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.program.argv,
                env=dict(self.program.env),
                cwd=Path(spaces_platform.__file__).resolve().parent.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        write_mark(self._data, self.program.name, Mark.of(self.process.pid))
        self._started, self.due = time.monotonic(), None
        log.info("%s started, pid %d", self.program.name, self.process.pid)

    def look(self, now: float) -> int | None:
        """The exit code if it has ended since the last look; its restart is then planned."""
        if self.process is None or (code := self.process.poll()) is None:
            return None
        self.process = None
        if now - self._started >= STEADY_SECONDS:
            self._in_a_row = 0
        wait = BACK_OFF[min(self._in_a_row, len(BACK_OFF) - 1)]
        self._in_a_row += 1
        self.restarts += 1
        self.due = now + wait
        log.error(
            "%s ended with %s; it starts again in %.1f s. Its log: %s", self.program.name, code, wait, self.program.log
        )
        return code

    def ask(self) -> None:
        """Ask it to end, once: a second signal would mean more."""
        self.due = None
        if self.process is not None and not self._asked:
            self.process.send_signal(self.program.stop_signal)
            self._asked = time.monotonic()

    def stop(self, seconds: float, hurry: Callable[[], bool]) -> None:
        """See that it ends: by force `seconds` after it was asked, or at once when `hurry` says so."""
        self.ask()
        if self.process is None:
            return
        deadline = self._asked + seconds
        while self.process.poll() is None and time.monotonic() < deadline and not hurry():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.05)
        if self.process.poll() is None:
            log.warning("%s did not end within %.0f s and is killed", self.program.name, seconds)
            self.process.kill()
            self.process.wait()
        self.process = None

    def tail(self, lines: int = 12) -> list[str]:
        return tail(self.program.log, lines)

    def rotate(self) -> None:
        """Set a large log aside. The process goes on writing at the end of what is now an empty file (O_APPEND)."""
        try:
            if self.program.log.stat().st_size <= LOG_BYTES:
                return
        except FileNotFoundError:
            return
        with self.program.log.open("rb") as source, self.program.log.with_suffix(".log.1").open("wb") as kept:
            while chunk := source.read(1 << 20):
                kept.write(chunk)
        os.truncate(self.program.log, 0)


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a log, at most 32 KiB of it."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 32768))
            return file.read().decode("utf-8", "replace").splitlines()[-lines:]
    except FileNotFoundError:
        return []


class Supervisor:
    """Use: `Supervisor(settings).run(on_ready)`, once, in the main thread of a process (it handles the signals)."""

    def __init__(self, settings: Settings, environ: Mapping[str, str] | None = None) -> None:
        self.settings = settings
        self._environ = os.environ if environ is None else environ
        self._signals = 0
        self._asked_at = -math.inf
        self._children: tuple[Child, ...] = ()
        self._started_at = time.time()

    def run(self, on_ready: Callable[[Mapping[str, Any]], None]) -> None:
        """Start, say so, keep it going until SIGTERM, SIGINT or SIGHUP, stop all of it.

        `on_ready` gets the state that `spaces status` shows, once the platform answers through its public port.
        Raises Conflict (it runs already, the port is taken), StartFailed with the last log lines, Invalid, Unavailable.
        """
        settings = self.settings
        prepare(settings)
        lock = DataLock(settings.data)
        if not lock.acquire():
            raise Conflict(runs_already(settings.data))
        try:
            with self._log_file(), self._signal_wakeups() as wakeup:
                end_leftovers(settings.data)
                check_port(settings)
                write_json(settings.data / "run" / "gateway.json", gateway_config(settings, link_token(settings.data)))
                self._children = tuple(Child(p, settings.data) for p in programs(settings, self._environ))
                try:
                    self._until_ready(wakeup)
                    if not self._signals:
                        on_ready(self._write_state())
                    self._keep(wakeup)
                finally:
                    self._stop()
        finally:
            (settings.data / "run" / "supervisor.json").unlink(missing_ok=True)
            lock.release()

    def _until_ready(self, wakeup: socket.socket) -> None:
        for child in self._children:
            child.start()
        deadline = time.monotonic() + READY_SECONDS
        while not self._signals:
            for child in self._children:
                if (code := child.look(time.monotonic())) is not None:
                    raise StartFailed(_start_failure(child, f"ended with {describe_exit(code)}"))
            if answers(self.settings):
                return
            if time.monotonic() > deadline:
                slow = self._children[0]
                raise StartFailed(_start_failure(slow, f"does not answer after {READY_SECONDS:.0f} s"))
            _wait(wakeup, POLL_SECONDS)

    def _keep(self, wakeup: socket.socket) -> None:
        while not self._signals:
            now = time.monotonic()
            changed = False
            for child in self._children:
                changed |= child.look(now) is not None
                if child.due is not None and now >= child.due:
                    child.start()
                    changed = True
                child.rotate()
            if changed:
                self._write_state()
            due = min((c.due for c in self._children if c.due is not None), default=now + ROTATE_SECONDS)
            _wait(wakeup, max(0.0, due - time.monotonic()))

    def _stop(self) -> None:
        """The gateway first, so that no request meets an app that is being stopped; then the control plane and apps."""
        asked = self._signals
        children = {child.program.name: child for child in self._children}
        if "worker" in children:
            children["worker"].ask()
        for name, seconds in STOP_SECONDS.items():
            if name in children:
                children[name].stop(seconds, lambda: self._signals > max(1, asked))
                (self.settings.data / "run" / f"{name}.pid").unlink(missing_ok=True)
        log.info("stopped")

    def _write_state(self) -> dict[str, Any]:
        settings, mark = self.settings, Mark.of(os.getpid())
        state = {
            "pid": mark.pid,
            "start": mark.start,
            "started_at": self._started_at,
            "version": spaces_platform.__version__,
            "data": str(settings.data),
            "url": settings.url,
            "apps_domain": settings.domain,
            "host": settings.host,
            "port": settings.port,
            "admin_token": str(settings.data / "admin.token"),
            "processes": {
                c.program.name: {"pid": c.process.pid if c.process else None, "restarts": c.restarts}
                for c in self._children
            },
        }
        write_json(settings.data / "run" / "supervisor.json", state)
        return state

    @contextlib.contextmanager
    def _log_file(self) -> Iterator[None]:
        handler = RotatingFileHandler(self.settings.data / "logs" / "supervisor.log", maxBytes=1 << 20, backupCount=1)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
        try:
            yield
        finally:
            log.removeHandler(handler)
            handler.close()

    @contextlib.contextmanager
    def _signal_wakeups(self) -> Iterator[socket.socket]:
        """Signals count up and wake the loop; SIGCHLD only wakes it."""
        reading, writing = socket.socketpair()
        reading.setblocking(False)
        writing.setblocking(False)

        def stop(_number: int, _frame: object) -> None:
            # One Ctrl-C comes twice where a wrapper passes on what the whole group of the terminal has got already.
            if time.monotonic() - self._asked_at > ONE_ASK_SECONDS:
                self._asked_at = time.monotonic()
                self._signals += 1

        asked = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        before = {number: signal.signal(number, stop) for number in asked}
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda _n, _f: None)
        old = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        try:
            yield reading
        finally:
            signal.set_wakeup_fd(old)
            for number, handler in before.items():
                signal.signal(number, handler)
            reading.close()
            writing.close()


def _wait(wakeup: socket.socket, seconds: float) -> None:
    if select.select([wakeup], [], [], seconds)[0]:
        with contextlib.suppress(BlockingIOError):
            wakeup.recv(4096)


def _start_failure(child: Child, what: str) -> str:
    lines = "\n".join(f"  {line}" for line in child.tail())
    return (
        f"The platform did not start: its {child.program.name} process {what}. The end of {child.program.log}:\n{lines}"
    )


def describe_exit(code: int) -> str:
    """An exit code of subprocess in words."""
    if code >= 0:
        return f"exit code {code}"
    return f"signal {signal.Signals(-code).name}" if -code in set(signal.Signals) else f"signal {-code}"


def answers(settings: Settings) -> bool:
    """Whether the platform answers through its public port: gateway, socket, control plane and database."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "localhost", "") else settings.host
    connection = http.client.HTTPConnection("::1" if host == "::" else host, settings.port, timeout=2)
    try:
        connection.request("GET", "/readyz", headers={"Host": settings.platform_hosts[0]})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def check_port(settings: Settings) -> None:
    """Raises Conflict, naming who has the port, Invalid for an address that is not this machine's."""
    host = settings.host or "0.0.0.0"
    try:
        family, _, _, _, address = socket.getaddrinfo(host, settings.port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as exc:
        raise Invalid(f"The host {host!r} is not an address of this machine: {exc.strerror}.") from exc
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except PermissionError as exc:
            raise Invalid(f"Port {settings.port} needs root; choose one above 1023 with --port.") from exc
        except OSError as exc:
            who = listener_of(settings.port)
            raise Conflict(
                f"Port {settings.port} on {host} cannot be used: {exc.strerror}"
                + (f", by {who}. Stop it" if who else ". Stop what uses it")
                + f", or choose another port: --port {settings.port + 1}."
            ) from exc


def runs_already(data: Path) -> str:
    state = read_state(data) or {}
    where = f" at {state['url']} (pid {state['pid']})" if state else ""
    return (
        f"The platform runs already on {data}{where}. Stop it with `spaces down --data {data}`, or use another --data."
    )


def end_leftovers(data: Path) -> None:
    """End the processes of a supervisor that was killed. Their apps go on; the new control plane takes them up."""
    for name in STOP_SECONDS:
        mark = read_mark(data, name)
        if mark is None or not mark.is_alive():
            continue
        log.warning("%s (pid %d) was left by a supervisor that is gone; it is ended", name, mark.pid)
        end_process(mark, seconds=5.0)


def end_process(mark: Mark, seconds: float, number: signal.Signals = signal.SIGTERM) -> bool:
    """Ask a process to end, by force after `seconds`. Whether it ended by itself."""
    for sent, wait in ((number, seconds), (signal.SIGKILL, 5.0)):
        if not mark.is_alive():
            return True
        with contextlib.suppress(ProcessLookupError):
            os.kill(mark.pid, sent)
        deadline = time.monotonic() + wait
        while mark.is_alive() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        if not mark.is_alive():
            return sent == number
    raise Unavailable(
        f"Process {mark.pid} does not end, not even by SIGKILL: it hangs in the kernel. Restart the machine."
    )


def down(data: Path) -> bool:
    """Stop the platform on a data directory, apps included. Whether there was anything to stop."""
    state = read_state(data)
    if state is not None:
        mark = Mark(state["pid"], state["start"])
        if mark.is_alive():
            end_process(mark, seconds=STOP_SECONDS["gateway"] + STOP_SECONDS["control"] + 2.0)
            end_leftovers(data)
            return True
    found = any(mark is not None and mark.is_alive() for mark in (read_mark(data, n) for n in STOP_SECONDS))
    end_leftovers(data)
    return found


def detach(settings: Settings) -> dict[str, Any]:
    """Run a Supervisor in the background and return its state once the platform answers.

    The double fork gives it no terminal and init as its parent. Raises StartFailed with the reason and the log's end.
    """
    prepare(settings)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _become_daemon(settings, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        ready, _, _ = select.select([pipe], [], [], READY_SECONDS + 30.0)
        said = pipe.read() if ready else b""
    os.waitpid(child, 0)
    if not said:
        lines = "\n".join(f"  {line}" for line in tail(settings.data / "logs" / "supervisor.log", 12))
        raise StartFailed(f"The platform ended before it answered. The end of its log:\n{lines}")
    answer: dict[str, Any] = json.loads(said)
    if "error" in answer:
        raise (Conflict if answer["code"] == Conflict.code else StartFailed)(answer["error"])
    return answer


def _become_daemon(settings: Settings, report: int) -> None:
    """The rest of the life of a forked process; never returns."""
    code = 1
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        null = os.open(os.devnull, os.O_RDWR)
        output = os.open(settings.data / "logs" / "supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(null, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)

        def tell(value: Mapping[str, Any]) -> None:
            with os.fdopen(report, "w") as pipe:
                json.dump(value, pipe)

        try:
            Supervisor(settings).run(tell)
            code = 0
        except spaces_platform.errors.PlatformError as exc:
            with contextlib.suppress(OSError):
                tell({"error": exc.message, "code": exc.code})
    except BaseException:
        # Nothing above this process could report it: the log is its only voice.
        logging.basicConfig(stream=sys.stderr)
        log.exception("the supervisor failed")
    finally:
        os._exit(code)
