"""The control plane as a process: its socket, its lock, its signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.conftest import until

ROOT = Path(__file__).parents[2]


class Control:
    """One control process."""

    def __init__(self, data: Path) -> None:
        self.data, self.socket = data, data / "run" / "control.sock"
        environ = {k: v for k, v in os.environ.items() if not k.startswith("SPACES_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "spaces_platform", "control", "--data", str(data)],
            cwd=ROOT, env={**environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def client(self) -> httpx.Client:
        token = until((self.data / "admin.token").exists, 60) and (self.data / "admin.token").read_text().strip()
        transport = httpx.HTTPTransport(uds=str(self.socket))
        headers = {"authorization": f"Bearer {token}"}
        return httpx.Client(transport=transport, base_url="http://localhost:7860", headers=headers, timeout=20)

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, list[dict[str, Any]]]:
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=30)
        return self.process.returncode, [json.loads(line) for line in said.splitlines()]


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "d"
    # A control plane that is told to end leaves its apps running; a test leaves nothing.
    for record in tmp_path.glob("d/apps/deployments/*/shim.json"):
        with suppress(ProcessLookupError):
            os.kill(json.loads(record.read_text())["pid"], signal.SIGKILL)


def test_it_serves_privately_refuses_a_second_and_ends_with_open_streams(data: Path) -> None:
    control = Control(data)
    try:
        until(control.socket.exists, 60)
        assert control.socket.stat().st_mode & 0o777 == 0o600
        client = control.client()
        assert client.get("/api/whoami-v2").json()["name"] == "admin"
        body = {"name": "app", "type": "space", "sdk": "static"}
        assert client.post("/api/repos/create", json=body).status_code == 200
        second = Control(data)
        _, said = second.process.communicate(timeout=60)
        assert second.process.returncode == 1
        assert str(data) in said
        with client.stream("GET", "/api/platform/spaces/admin/app/events") as stream:
            lines = stream.iter_lines()
            next(lines)
            began = time.monotonic()
            status, log = control.end()
            assert time.monotonic() - began < 20
            for _ in lines:
                pass
        assert status == 0
        assert {"at", "level", "logger", "message"} <= set(log[0])
        assert not control.socket.exists()
    finally:
        if control.process.poll() is None:
            control.process.kill()
