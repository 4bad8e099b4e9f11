"""A platform of its own for a measurement: started by the command line, used over HTTP and git, measured by /proc.

Owns: starting and ending it, pushing, following a Space, and what its processes use. Does not own: what is measured.
Invariant: everything lies in one temporary folder, and nothing of it runs once the `with` block is left.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

ROOT = Path(__file__).resolve().parent.parent
TICKS = os.sysconf("SC_CLK_TCK")
WAIT_SECONDS = 600.0


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def clean_environment() -> dict[str, str]:
    """This process's environment as `spaces up` should see it: bytecode is used, and no setting is inherited."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("SPACES_", "PYTHONDONTWRITE"))}


def until(done: Callable[[], Any], what: str, seconds: float = WAIT_SECONDS, pause: float = 0.01) -> Any:
    """Ask until the answer is true; the answer. Raises TimeoutError, naming what never came."""
    end = time.monotonic() + seconds
    while not (answer := done()):
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(pause)
    return answer


@dataclass(frozen=True)
class Live:
    """One push, from the git command's start to the first answer of the pushed version through the public port."""

    seconds: float
    push: float
    """Of which the git command itself."""


class Platform:
    """`with Platform() as platform`. `data` may hold a populated database already."""

    def __init__(self, folder: Path, *, settings: dict[str, str] | None = None) -> None:
        self.folder, self.data, self.port = folder, folder / "data", free_port()
        self.start_seconds = 0.0
        self._settings = settings or {}
        self._client = httpx.Client(timeout=httpx.Timeout(60.0))

    def __enter__(self) -> Platform:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self.down()

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "spaces_platform", *words, "--data", str(self.data)]

    def up(self) -> float:
        """`spaces up --detach`; how long it took."""
        extra = [word for name, value in self._settings.items() for word in ("--set", f"{name}={value}")]
        began = time.monotonic()
        done = subprocess.run(
            [*self.command("up", "--detach", "--port", str(self.port)), *extra],
            env=clean_environment(), cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        self.start_seconds = time.monotonic() - began
        if done.returncode:
            raise RuntimeError(f"the platform did not start: {done.stdout}{done.stderr}")
        return self.start_seconds

    def down(self) -> None:
        subprocess.run(self.command("down"), env=clean_environment(), cwd=ROOT, capture_output=True, check=True)

    # --- use ---------------------------------------------------------------------------------------------------------
    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def token(self) -> str:
        return (self.data / "admin.token").read_text().strip()

    def api(self, method: str, path: str, **kwargs: Any) -> Any:
        answer = self._client.request(method, self.url + path, headers=self._auth, **kwargs)
        answer.raise_for_status()
        return answer.json()

    def text(self, path: str) -> str:
        answer = self._client.get(self.url + path, headers=self._auth)
        answer.raise_for_status()
        return answer.text

    @property
    def _auth(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def status(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.api("GET", f"/api/platform/spaces/admin/{name}")
        return found

    def follow(self, name: str, done: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first status for which `done` holds, as soon as the platform's event stream tells it."""
        url = f"{self.url}/api/platform/spaces/admin/{name}/events"
        with self._client.stream("GET", url, headers=self._auth, timeout=WAIT_SECONDS) as answer:
            for line in answer.iter_lines():
                if not line.startswith("data:"):
                    continue
                status: dict[str, Any] = json.loads(line[5:])
                if done(status):
                    return status
                if status["stage"] in ("CONFIG_ERROR", "BUILD_ERROR", "RUNTIME_ERROR", "NO_APP_FILE"):
                    raise RuntimeError(f"{name}: {status['stage']}: {status['message']}")
        raise RuntimeError(f"{name}: the event stream ended")

    def get(self, name: str, path: str = "/", timeout: float = 120.0) -> httpx.Response:
        """A visit of the app through the public port."""
        host = urlsplit(self.status(name)["urls"]["browser"]).netloc
        return self._client.get(self.url + path, headers={"Host": host}, timeout=timeout)

    def visit(self, host: str, timeout: float = 120.0) -> int:
        """The status code at the first byte of an answer for a client that takes anything."""
        with self._client.stream("GET", self.url + "/", headers={"Host": host}, timeout=timeout) as answer:
            next(answer.iter_raw(), b"")
            return answer.status_code

    def card(self, host: str) -> int:
        """The status that a link previewer gets, which wakes nothing."""
        headers = {"Host": host, "User-Agent": "Twitterbot/1.0"}
        return self._client.get(self.url + "/", headers=headers).status_code

    def host(self, name: str) -> str:
        return urlsplit(str(self.status(name)["urls"]["browser"])).netloc

    def push_until_live(self, repo: Repo, name: str, marker: str) -> Live:
        """Push, and ask the app until an answer holds `marker`."""
        began = time.monotonic()
        repo.push(f"http://x:{self.token}@127.0.0.1:{self.port}/spaces/admin/{name}")
        pushed = time.monotonic()
        commit = repo.head()
        status = self.follow(name, lambda s: s["servingCommit"] == commit)
        host = urlsplit(status["urls"]["browser"]).netloc
        until(lambda: marker in self._client.get(self.url + "/", headers={"Host": host}).text, f"{marker} of {name}")
        return Live(time.monotonic() - began, pushed - began)

    def settle(self, name: str) -> None:
        """Wait until nothing of the Space moves: one deployment, built, the one before it gone."""
        until(lambda: self.status(name)["stage"] == "RUNNING" and self._open(name) == 1, f"{name} settled", 60)

    def sleep(self, name: str) -> None:
        """Put it to sleep, and wait until nothing of it runs."""
        self.api("POST", f"/api/platform/spaces/admin/{name}/sleep")
        until(lambda: self.status(name)["stage"] == "SLEEPING" and not self._open(name), f"{name} asleep", 60)

    def _open(self, name: str) -> int:
        """Deployments that have not ended."""
        query = (
            "SELECT count(*) FROM deployment d JOIN space s ON s.id = d.space_id"
            " WHERE s.name = ? AND d.status IN ('STARTING', 'READY', 'STOPPING')"
        )
        with self.database() as db:
            return int(db.execute(query, (name,)).fetchone()[0])

    @contextlib.contextmanager
    def database(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(f"file:{self.data / 'spaces.db'}?mode=ro", uri=True)
        try:
            yield connection
        finally:
            connection.close()

    def build_log(self, name: str) -> list[str]:
        with self.database() as db:
            row = db.execute(
                "SELECT b.id FROM build b JOIN space s ON s.id = b.space_id WHERE s.name = ? ORDER BY b.id DESC",
                (name,),
            ).fetchone()
        if row is None:
            return []
        return [
            line["text"] for line in self.api("GET", f"/api/platform/spaces/admin/{name}/builds/{row[0]}/logs")["lines"]
        ]

    # --- measure -----------------------------------------------------------------------------------------------------
    def processes(self) -> list[int]:
        """Supervisor, control plane, gateway, and what they keep running for themselves (no app may run)."""
        state = json.loads((self.data / "run" / "supervisor.json").read_text())
        found, left = [], [int(state["pid"])]
        while left:
            pid = left.pop()
            found.append(pid)
            left += [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
            for thread in Path(f"/proc/{pid}/task").iterdir():
                if thread.name != str(pid):
                    left += [int(child) for child in (thread / "children").read_text().split()]
        return found

    def memory_mb(self) -> float:
        """Sum of PSS of all platform processes (proc(5), smaps_rollup)."""
        return sum(_pss_kb(pid) for pid in self.processes()) / 1024

    def each(self) -> str:
        """Every process with its memory and processor time so far, for people."""
        words = []
        for pid in self.processes():
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            name = next((a.decode() for a in argv[1:] if not a.startswith(b"-")), "?")[:40]
            words.append(f"{name} {_pss_kb(pid) / 1024:.0f} MB {_cpu(pid):.2f} s")
        return ", ".join(words)

    def cpu_seconds(self) -> float:
        return sum(_cpu(pid) for pid in self.processes())


def _pss_kb(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise RuntimeError(f"no Pss of {pid}")


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class Repo:
    """A local repository that is pushed from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self._git("init", "-q", "-b", "main")

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, encoding="utf-8")

    def copy(self, source: Path) -> None:
        shutil.copytree(source, self.folder, dirs_exist_ok=True)

    def commit(self) -> None:
        self._git("add", "-A")
        self._git("commit", "-q", "-m", "Change")

    def head(self) -> str:
        return self._git("rev-parse", "HEAD").strip()

    def push(self, url: str) -> None:
        self._git("push", "-q", url, "main")

    def _git(self, *words: str) -> str:
        who = ["-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "credential.helper="]
        env = {"PATH": os.environ["PATH"], "HOME": str(self.folder.parent), "GIT_TERMINAL_PROMPT": "0"}
        done = subprocess.run(["git", *who, *words], cwd=self.folder, env=env, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"git {words[0]}: {done.stderr}")
        return done.stdout


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A temporary folder that apps of any user may be reached through. SIGTERM ends what runs in it, too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix="spaces-bench-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
