"""What single-host mode needs beside the platform, for a measurement: a Redis, and an engine that answers."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

ENGINE = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")


class Missing(RuntimeError):
    """Something that a measurement needs is not on this machine; the message names it."""


@contextlib.contextmanager
def redis(folder: Path, port: int) -> Iterator[str]:
    """A Redis without persistence on loopback; its URL."""
    server = shutil.which("redis-server")
    if server is None:
        raise Missing("redis-server (Debian: apt install redis-server)")
    argv = [
        server,
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
        str(folder),
    ]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _until_listening(port, process)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(10)


def _until_listening(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 10
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    raise Missing(f"a redis-server that starts (it ended with {process.poll()})")


def docker(*words: str, timeout: float = 600.0) -> str:
    """The output of the engine's command-line client. Raises Missing, or RuntimeError with what it said."""
    client = next((path for path in ("/usr/bin/docker", shutil.which("docker")) if path and os.path.exists(path)), None)
    if client is None:
        raise Missing("a docker client (Debian: apt install docker.io)")
    env = {**os.environ, "DOCKER_HOST": ENGINE, "DOCKER_BUILDKIT": "1"}
    done = subprocess.run([client, *words], env=env, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        raise RuntimeError(f"docker {' '.join(words[:2])}: {done.stderr.strip()[-800:]}")
    return done.stdout


def need_engine() -> str:
    """The engine's version. Raises Missing where none answers."""
    try:
        return str(json.loads(docker("version", "--format", "{{json .Server.Version}}")))
    except RuntimeError as error:
        raise Missing(f"a Docker engine at {ENGINE}: {error}") from error
