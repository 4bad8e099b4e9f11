"""Real Redis and Postgres for these tests, from Debian's packages, on free ports, ended by their own process."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

START_SECONDS = 60.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def until(condition: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
    """Wait for a condition; fails with its name at the deadline."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@contextmanager
def running(
    argv: list[str], port: int, log: Path, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A server until the end of the block; its log is shown where it does not come up."""
    with log.open("wb") as output:
        process = subprocess.Popen(argv, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=env)
    try:
        until(lambda: listens(port) or process.poll() is not None, f"{argv[0]} on port {port}")
        assert process.poll() is None, log.read_text(errors="replace")[-2000:]
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def program(name: str, package: str, *folders: str) -> str:
    found = shutil.which(name, path=os.pathsep.join((*os.get_exec_path(), "/usr/sbin", *folders)))
    if found is None:
        pytest.skip(f"{name} is not installed: apt install {package}")
    return found


@dataclass(frozen=True)
class Redis:
    port: int
    password: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        return (
            f"redis://:{self.password}@127.0.0.1:{self.port}/0" if self.password else f"redis://127.0.0.1:{self.port}/0"
        )


@contextmanager
def redis(folder: Path, *options: str, password: str = "") -> Iterator[Redis]:
    port = free_port()
    argv = [program("redis-server", "redis-server"), "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)]
    argv += ["--requirepass", password] if password else []
    with running([*argv, *options], port, folder / "redis.log"):
        yield Redis(port, password)


@dataclass(frozen=True)
class Postgres:
    port: int
    password: str = field(repr=False)

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://spaces:{self.password}@127.0.0.1:{self.port}/spaces"


@contextmanager
def postgres(folder: Path) -> Iterator[Postgres]:
    """A cluster with the role and database `spaces`. Its programs refuse root, so as root they run as `postgres`,
    who must be able to come to `folder`.
    """
    binaries = sorted(str(p) for p in Path("/usr/lib/postgresql").glob("*/bin"))
    initdb = program("initdb", "postgresql", *binaries)
    server = Path(initdb).with_name("postgres")
    password, port = secrets.token_urlsafe(12), free_port()
    (folder / "password").write_text(password)
    prefix: list[str] = []
    if os.geteuid() == 0:
        prefix = [program("setpriv", "util-linux"), "--reuid", "postgres", "--regid", "postgres", "--clear-groups"]
        folder.chmod(0o755)
        for part in (folder, folder / "password"):
            shutil.chown(part, "postgres", "postgres")
    data = folder / "data"
    init = [initdb, "-D", str(data), "-U", "spaces", "-A", "scram-sha-256", "-E", "UTF8", "--no-sync", "--locale=C"]
    subprocess.run([*prefix, *init, f"--pwfile={folder / 'password'}"], check=True, capture_output=True, timeout=60)
    argv = [
        *prefix,
        str(server),
        "-D",
        str(data),
        "-p",
        str(port),
        "-k",
        str(folder),
        "-c",
        "listen_addresses=127.0.0.1",
    ]
    with running(argv, port, folder / "postgres.log"):
        made = Postgres(port, password)
        import psycopg

        # It listens a moment before it takes connections.
        login = f"host=127.0.0.1 port={port} user=spaces password={password} dbname=postgres"
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                with psycopg.connect(login, autocommit=True) as connection:
                    connection.execute("CREATE DATABASE spaces")
                break
            except psycopg.OperationalError:
                assert time.monotonic() < end, (folder / "postgres.log").read_text(errors="replace")[-2000:]
                time.sleep(0.05)
        yield made
