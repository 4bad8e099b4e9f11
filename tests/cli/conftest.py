"""A real platform for the command line's tests: supervisor, control plane and gateway on a free port."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from spaces_platform import presence, supervisor
from tests.services import databases

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(what: Callable[[], Any], seconds: float = 60.0) -> Any:
    """The first true answer; fails the test where there is none in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := what():
            return value
        time.sleep(0.05)
    pytest.fail(f"not within {seconds:.0f} s: {getattr(what, '__name__', what)}")


@dataclass
class Place:
    """A data directory, a port, and the command run on them."""

    root: Path
    port: int = field(default_factory=free_port)

    @property
    def data(self) -> Path:
        return self.root / "data"

    def environment(self, **extra: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("SPACES_")}
        home = {"SPACES_DATA": str(self.data), "XDG_CONFIG_HOME": str(self.root / "config"), "HOME": str(self.root)}
        if databases.ON_POSTGRES:
            home["SPACES_DATABASE"] = databases.url_of(self.data)
        return {**kept, **home, "PYTHONPATH": str(ROOT), **extra}

    def spaces(
        self, *arguments: str, given: str = "", cwd: Path | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "spaces_platform", *arguments]
        return subprocess.run(
            argv, env=self.environment(**env), cwd=cwd or self.root, input=given, capture_output=True, text=True,
            timeout=150, check=False,
        )  # fmt: skip

    def up(self, *arguments: str) -> dict[str, Any]:
        done = self.spaces("up", "--detach", "--port", str(self.port), "--json", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr + self.logs()
        state: dict[str, Any] = json.loads(done.stdout)
        return state

    def state(self) -> dict[str, Any]:
        return presence.read_state(self.data) or {}

    def logs(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in sorted((self.data / "logs").glob("*.log")))

    def fetch(self, url: str) -> tuple[int, str]:
        """GET an app's address as a browser on this machine would: `*.localhost` is the loopback."""
        parts = urlsplit(url)
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{parts.path or '/'}", headers={"Host": parts.netloc, "Accept": "*/*"}
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as exc:
            return exc.code, exc.read().decode()

    def end(self) -> None:
        """Whatever a test left: nothing of it stays."""
        self.spaces("down")
        for name in supervisor.STOP_SECONDS:
            mark = presence.read_mark(self.data, name)
            if mark is not None and mark.is_alive():
                os.kill(mark.pid, signal.SIGKILL)
        shutil.rmtree(self.root, ignore_errors=True)


def new_place() -> Place:
    # Apps run as users of their own where the platform is root: they must get through to their files.
    root = Path(tempfile.mkdtemp(prefix="spaces-cli-"))
    root.chmod(0o711)
    return Place(root)


@pytest.fixture
def place() -> Iterator[Place]:
    """A directory without a platform yet."""
    made = new_place()
    yield made
    made.end()


@pytest.fixture(scope="session")
def running() -> Iterator[Place]:
    """One platform for all tests that do not break it."""
    made = new_place()
    made.up()
    yield made
    made.end()
