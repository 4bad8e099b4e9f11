"""A real Postgres from Debian's package, in a directory of its own, on a unix socket and a free port.

Owns: the cluster's life (made, started, stopped, crashed), and making databases in it. Does not own: what is in them
(databases.py). The server runs as an unprivileged user (it refuses root) and is a child of the test run.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

PASSWORD = "a-p4ssword-that-must-not-be-logged"
USER = "spaces"
_QUICK = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "on"}
"""Without fsync a crash of the machine may lose data; a crash of the server (every test here) does not."""


def programs() -> Path | None:
    """The newest server's programs, where Debian puts them."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    return max(found, key=lambda path: int(path.parent.name), default=None)


def why_not() -> str | None:
    """The reason to skip a test that needs Postgres; None: it can run."""
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "psycopg is not installed: make single-host"
    if programs() is None:
        return "Postgres is not installed: apt install postgresql"
    if os.geteuid() == 0 and _user() is None:
        return "Postgres refuses to run as root, and there is no user postgres or nobody"
    return None


def _user() -> pwd.struct_passwd | None:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    return None


class Cluster:
    """One server with an empty `template1`. `start()` first; `remove()` at the end."""

    def __init__(self, *, durable: bool = False, **settings: object) -> None:
        """`durable`: with fsync, as in service. `settings`: of postgresql.conf."""
        bin_directory = programs()
        assert bin_directory is not None
        self.bin = bin_directory
        self.root = Path(tempfile.mkdtemp(prefix="spaces-pg-"))
        self.data = self.root / "data"
        self._server: subprocess.Popen[bytes] | None = None
        self._as = _user() if os.geteuid() == 0 else None
        if self._as is not None:
            os.chown(self.root, self._as.pw_uid, self._as.pw_gid)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        (self.root / "password").write_text(PASSWORD)
        (self.root / "password").chmod(0o644)
        self._run(
            "initdb", "--pgdata", str(self.data), "--username", USER, "--auth", "scram-sha-256", "--pwfile",
            str(self.root / "password"), "--encoding", "UTF8", "--locale", "C.UTF-8", "--no-sync",
        )  # fmt: skip
        self.configure({**({} if durable else _QUICK), **settings})

    def configure(self, settings: Mapping[str, object]) -> None:
        """Take effect at the next start."""
        fixed = {
            "listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": self.root,
            "max_connections": 100, "logging_collector": "off",
        }  # fmt: skip
        lines = [f"{name} = '{value}'\n" for name, value in {**fixed, **settings}.items()]
        (self.data / "postgresql.auto.conf").write_text("".join(lines))

    def _who(self) -> dict[str, Any]:
        if self._as is None:
            return {}
        return {"user": self._as.pw_uid, "group": self._as.pw_gid, "extra_groups": []}

    def _run(self, program: str, *arguments: str) -> None:
        with tempfile.TemporaryFile("w+") as output:
            argv = [str(self.bin / program), *arguments]
            done = subprocess.run(argv, cwd="/", stdout=output, stderr=output, timeout=90, check=False, **self._who())
            output.seek(0)
            said = output.read()
        assert done.returncode == 0, f"{program}: {said}"

    def log(self) -> str:
        path = self.root / "log"
        return path.read_text(errors="replace")[-3000:] if path.exists() else ""

    def start(self) -> Cluster:
        """Returns once it takes connections."""
        with (self.root / "log").open("a") as log:
            argv = [str(self.bin / "postgres"), "-D", str(self.data)]
            self._server = subprocess.Popen(
                argv, cwd="/", stdout=log, stderr=log, start_new_session=True, **self._who()
            )
        deadline = time.monotonic() + 60
        # The last line of the server's own file says so as soon as it is true.
        while "ready" not in self._pid_file():
            assert self._server.poll() is None, f"the server ended: {self.log()}"
            assert time.monotonic() < deadline, f"the server does not start: {self.log()}"
            time.sleep(0.01)
        return self

    def _pid_file(self) -> str:
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return ""
        mine = self._server is not None and lines[:1] == [str(self._server.pid)]
        return lines[-1] if mine else ""

    def stop(self, mode: str = "immediate") -> None:
        """`immediate`: as by a crash, the server recovers at its next start; `fast`: cut everybody off, and end well.

        Stopping the stopped is success.
        """
        if self._server is None:
            return
        self._server.send_signal({"immediate": signal.SIGQUIT, "fast": signal.SIGINT}[mode])
        self._server.wait(60)
        self._server = None

    def restart(self, mode: str = "immediate") -> None:
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """SIGKILL the postmaster; its children end themselves as soon as they notice."""
        assert self._server is not None
        pid = self._server.pid
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        self._server.kill()
        self._server.wait()
        self._server = None
        deadline = time.monotonic() + 30
        # A new server refuses the data directory while one of them has the shared memory.
        while any(_lives(child) for child in children):
            assert time.monotonic() < deadline, "the server's processes go on"
            time.sleep(0.01)

    def url(self, database: str = "postgres", *, user: str = USER, password: str = PASSWORD) -> str:
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"

    def sql(self, statement: str, *values: object, database: str = "postgres") -> list[tuple[Any, ...]]:
        """One statement of the superuser on a connection of its own, outside a transaction."""
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True, connect_timeout=10) as connection:
            done = connection.execute(statement, values or None)  # type: ignore[call-overload]
            return list(done.fetchall()) if done.description is not None else []

    def create(self, name: str, template: str = "template1") -> str:
        """A new database, a copy of `template`; its URL."""
        self.sql(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.url(name)

    def drop(self, name: str) -> None:
        """Dropping the absent is success; whoever is connected is cut off."""
        self.sql(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.root, ignore_errors=True)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextlib.contextmanager
def running(**settings: Any) -> Iterator[Cluster]:
    """A server for a test, or skip it with the reason."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    cluster = Cluster(**settings)
    try:
        yield cluster.start()
    finally:
        cluster.remove()
