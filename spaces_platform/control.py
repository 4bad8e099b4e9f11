"""The control plane's process: the wired platform and its HTTP app on a unix socket.

Owns: the process's log, its signals, and the order start > serve > close. Does not own: anything it serves. Invariant:
one control plane per data directory, held by a kernel lock, and per database (lease.py). SIGTERM ends this process and
leaves the apps running, to be taken up by the next one; SIGINT stops the apps as well. Either ends open streams at
once; requests may finish.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import uvicorn
import uvloop
from fastapi import FastAPI

from spaces_platform.api.app import create_app
from spaces_platform.errors import Conflict, PlatformError, Unavailable
from spaces_platform.json_lines import log_json_lines
from spaces_platform.settings import Settings
from spaces_platform.slices import take_long_slices
from spaces_platform.wiring.assembly import build_platform

log = logging.getLogger("spaces.control")

GRACEFUL_SECONDS = 2
"""How long requests may go on after the signal; event streams are cut then."""
WAIT_FOR_LOCK_SECONDS = 5.0
"""A control plane that is just ending may hold the directory for a moment."""


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers, which would end the process before the platform is closed."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def main(arguments: Sequence[str]) -> int:
    """Serve until a signal. Exit code 1 with one line on stderr where it cannot start."""
    parser = argparse.ArgumentParser(prog="python -m spaces_platform control")
    parser.add_argument("--data", type=Path, default=None, help="data directory [SPACES_DATA, ~/.spaces]")
    data = parser.parse_args(arguments).data
    log_json_lines()
    try:
        settings = Settings.load(data=data)
        logging.getLogger().setLevel(settings.log_level.upper())
        for noisy in ("httpx", "alembic"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        if settings.orchestrator != "process":  # apps that it starts itself would inherit it
            take_long_slices()
        return _run(settings)
    except PlatformError as exc:
        print(f"Error: {exc.message}", file=sys.stderr)
        return 1


def _run(settings: Settings) -> int:
    began = time.monotonic()
    (settings.data / "run").mkdir(parents=True, exist_ok=True, mode=0o700)
    with _held(settings.data / "run" / "control.lock"):
        platform = build_platform(settings)
        # As by SIGTERM: its apps run on until the other one has looked at them.
        platform.superseded = lambda: os.kill(os.getpid(), signal.SIGTERM)
        stop_apps = False
        try:
            platform.start()
            log.info(
                "started", extra={"seconds": round(time.monotonic() - began, 3), "socket": str(settings.control_socket)}
            )
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                stop_apps = runner.run(serve(settings, create_app(platform)))
        except KeyboardInterrupt:
            # SIGINT before the loop took the signals over.
            stop_apps = True
        finally:
            platform.close(stop_apps=stop_apps)
            settings.control_socket.unlink(missing_ok=True)
    log.info("ended", extra={"stopped_apps": stop_apps})
    return 0


async def serve(settings: Settings, app: FastAPI) -> bool:
    """Serve until SIGTERM or SIGINT. Whether apps are to be stopped."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        http="httptools",
        ws="none",
        # What is forwarded is read where it is needed, and believed only there.
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=GRACEFUL_SECONDS,
        server_header=False,
    )
    server = _Server(config)
    seen: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        server.force_exit = bool(seen)
        seen.append(number)
        server.should_exit = True
        app.state.streams.stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    await server.serve(sockets=[bind(settings.control_socket)])
    return signal.SIGINT in seen


def bind(path: Path) -> socket.socket:
    """A listening socket that only the platform's own user can open, in the place of what a killed process left.

    Raises Unavailable.
    """
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(fresh))
    except OSError as error:
        listener.close()
        raise Unavailable(f"Cannot listen on {path}: {error}. A socket's path has at most 107 bytes.") from error
    finally:
        os.umask(before)
    listener.listen(2048)
    fresh.replace(path)
    return listener


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + WAIT_FOR_LOCK_SECONDS
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Conflict(f"Another control plane works on {path.parent.parent}; stop it first.") from None
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)
