"""The docker command line as a client of BuildKit: finding one that can, and running it to its end.

Owns: which client is used, its argv and environment, streaming its output, and ending it when a build is cancelled
or a limit is hit. Does not own: what is built (`builder`), what RUN steps may use (`limits`). Invariant: the client
sees no variable of the platform's environment and no stored login of the platform's user; secrets are handed over as
open files in memory, so that no command line, no environment and no disk has them.

https://docs.docker.com/build/buildkit/
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from runtime_images.engine import EngineError, find_client

log = logging.getLogger(__name__)
MARK = "NO_PROXY"
"""A predefined build argument: every RUN step has it in its environment, and it enters no cache key. A name that cannot
resolve is put into it, by which the step of a running container is known to be this build's."""
POLL = 0.05
QUIET_SECONDS = 2.0
"""After the last output: by then what it told of has begun, and a build that goes on is looked at less often. Each look
takes a processor from whoever visits an app at that moment."""
QUIET_POLL = 0.25
MAX_OUTPUT = 64 << 20
MAX_LINE = 8000
_KILL_SECONDS = 10.0
_ASK_SECONDS = 10.0
_SETPRIV = shutil.which("setpriv")
"""Ends the client when the worker that started it is killed."""


class ClientMissing(RuntimeError):
    """No docker command on this machine can use BuildKit."""


def find(named: str = "") -> str:
    """The docker command that builds with BuildKit: `named`, or the first of this machine. Raises ClientMissing."""
    if named:
        return named
    try:
        return find_client(os.environ)
    except EngineError as error:
        raise ClientMissing(str(error)) from error


def plugin(docker: str) -> str:
    """The plug-in (buildx) that a docker command builds with; empty for one that builds by itself.

    A build that starts it at once does not wait for the command in between, which takes 0.15 s of the processor.
    """
    try:
        asked = [docker, "--host", "unix:///nowhere", "info", "--format", "{{json .ClientInfo.Plugins}}"]
        answer = subprocess.run(asked, stdin=subprocess.DEVNULL, capture_output=True, timeout=_ASK_SECONDS).stdout
        rows = json.loads(answer) or ()
        return next((row["Path"] for row in rows if row["Name"] == "buildx" and not row.get("Err")), "")
    except (OSError, subprocess.TimeoutExpired, ValueError, LookupError, TypeError) as error:
        log.warning("whether %s has plug-ins is not known, it is used as it is: %s", docker, error)
        return ""


@dataclass(frozen=True, slots=True)
class Request:
    """One `docker build`."""

    context: Path
    dockerfile: Path
    home: Path
    """An empty folder: the client's own settings."""
    mark: str
    target: str = ""
    args: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    name: str = ""
    """Of the image."""
    packed: bool = True
    """False: containerd's store is to keep new layers as they are, since compressing them takes longer than a build."""
    tar_output: bool = False
    """Write the target's files to standard output instead of making an image."""
    proxies: Mapping[str, str] = field(default_factory=dict)
    """Predefined build arguments (HTTP_PROXY, …): in every RUN step's environment, in no layer and no cache key."""
    cgroup_parent: str = ""
    """The control group that RUN steps are put below; empty: the engine's own choice."""


def argv(client: str, request: Request, secret_files: Mapping[str, int]) -> list[str]:
    """The command line, of a docker command or its plug-in. Pure; holds names of secrets, never a value."""
    line = [client, "build", "--progress=plain", "--file", str(request.dockerfile)]
    if request.target:
        line += ["--target", request.target]
    if request.tar_output:
        line += ["--output", "type=tar,dest=-"]
    if request.cgroup_parent:
        line += ["--cgroup-parent", request.cgroup_parent]
    if request.name and request.packed:
        line += ["--tag", request.name]
    elif request.name:
        line += ["--output", f"type=image,name=docker.io/library/{request.name},unpack=true,compression=uncompressed"]
    for name, value in request.labels.items():
        line += ["--label", f"{name}={value}"]
    # One mark in both spellings: tools read either.
    proxies = dict(request.proxies)
    for name in (MARK, MARK.lower()):
        proxies[name] = ",".join(part for part in (proxies.get(name, ""), request.mark) if part)
    for name, value in {**request.args, **proxies}.items():
        line += ["--build-arg", f"{name}={value}"]
    for name, fd in secret_files.items():
        line += ["--secret", f"id={name},src=/proc/self/fd/{fd}"]
    return [*line, str(request.context)]


def run(
    client: str,
    engine: str,
    request: Request,
    on_line: Callable[[str], None],
    check: Callable[[], None],
    *,
    max_stdout: int = 0,
) -> tuple[int, bytes]:
    """Run to the end; the exit status, and up to `max_stdout` bytes of standard output.

    `check` is called as often as `poll_seconds` says; what it raises ends the build and comes through. Raises OSError.
    """
    with _files(request.secrets) as files:
        guard = [_SETPRIV, "--pdeathsig", "KILL"] if _SETPRIV else []
        process = subprocess.Popen(
            [*guard, *argv(client, request, files)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if request.tar_output else subprocess.STDOUT,
            env=_environment(request.home, engine),
            pass_fds=tuple(files.values()),
            process_group=0,
        )
    try:
        kept = _follow(process, request.tar_output, on_line, check, max_stdout)
        return process.wait(), kept
    finally:
        _end(process)


def poll_seconds(silent: float) -> float:
    """Between two looks at a build whose last output is `silent` seconds old. Pure."""
    return POLL if silent < QUIET_SECONDS else QUIET_POLL


def _environment(home: Path, engine: str) -> dict[str, str]:
    return {
        "DOCKER_HOST": engine,
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(home),
        "DOCKER_CONFIG": str(home),
        "DOCKER_BUILDKIT": "1",
        "BUILDX_NO_DEFAULT_ATTESTATIONS": "1",
        "BUILDKIT_PROGRESS": "plain",
        "BUILDKIT_COLORS": "",
        "NO_COLOR": "1",
    }


@contextmanager
def _files(secrets: Mapping[str, bytes]) -> Iterator[dict[str, int]]:
    """Each value as an open file in memory. Closed once the client has been started: it holds its own copies."""
    files: dict[str, int] = {}
    try:
        for name, value in secrets.items():
            fd = files[name] = os.memfd_create("secret", os.MFD_CLOEXEC)
            view = memoryview(value)
            while view:
                view = view[os.write(fd, view) :]
        yield files
    finally:
        for fd in files.values():
            os.close(fd)


def _follow(
    process: subprocess.Popen[bytes],
    split: bool,
    on_line: Callable[[str], None],
    check: Callable[[], None],
    max_stdout: int,
) -> bytes:
    lines, kept = _Lines(on_line), bytearray()
    with selectors.DefaultSelector() as selector:
        for pipe, is_text in ((process.stderr, True), (process.stdout, not split)):
            if pipe is not None:
                os.set_blocking(pipe.fileno(), False)
                selector.register(pipe, selectors.EVENT_READ, is_text)
        checked, heard = 0.0, time.monotonic()
        while selector.get_map():
            for key, _ in selector.select(poll_seconds(time.monotonic() - heard)):
                heard = time.monotonic()
                data = os.read(key.fd, 1 << 16)
                if not data:
                    selector.unregister(key.fileobj)
                elif key.data:
                    lines.feed(data)
                elif len(kept) < max_stdout:
                    kept += data[: max_stdout - len(kept)]
            if time.monotonic() - checked >= POLL:
                check()
                checked = time.monotonic()
    lines.end()
    return bytes(kept)


def _end(process: subprocess.Popen[bytes]) -> None:
    """The client's end is the session's: BuildKit then stops what it runs for it."""
    if process.poll() is None:
        process.kill()
        process.wait(_KILL_SECONDS)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


@dataclass(slots=True)
class _Lines:
    """Bytes to lines, bounded."""

    on_line: Callable[[str], None]
    rest: bytes = b""
    total: int = 0
    told: bool = False

    def feed(self, data: bytes) -> None:
        self.total += len(data)
        if self.total > MAX_OUTPUT:
            if not self.told:
                self.on_line(f"[output is longer than {MAX_OUTPUT >> 20} MiB; the rest is not kept]")
            self.told = True
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


def secret_bytes(values: Mapping[str, str]) -> dict[str, bytes]:
    return {name: value.encode("utf-8", "surrogateescape") for name, value in values.items()}


def masked(text: str, needles: Sequence[str]) -> str:
    """A line without the values that must not be read in it. Longest first: one may be part of another."""
    for needle in needles:
        if needle in text:
            text = text.replace(needle, "***")
    return text
