"""An app's own start: the command of its plan, in its own environment, until it answers. No platform around it.

What the platform adds is measured against this. The app gets the variables that the platform gives it, a home and a
folder of its own that are empty and fresh, as the platform does, and the same niceness; there is no sandbox, no uid
change, and it is asked every 2 ms.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._rig import Platform, free_port
from builders.layout import Layout, Ref
from spaces_platform.environment import make_environment
from spaces_platform.hardware import Hardware, Machine
from spaces_platform.models import Space
from spaces_platform.settings import Settings

ASK_SECONDS = 0.002


@dataclass(frozen=True)
class Ready:
    """What is started: a built app and the environment it runs in."""

    app: Path
    environment: Path
    argv: list[str]
    env: dict[str, str]
    lock: str
    """What its environment holds, as requirement lines."""


def built(platform: Platform, name: str) -> Ready:
    """The newest artifact of a Space."""
    with platform.database() as db:
        query = (
            "SELECT artifact FROM build WHERE artifact IS NOT NULL AND space_id = (SELECT id FROM space WHERE name = ?)"
        )
        (artifact,) = db.execute(f"{query} ORDER BY id DESC", (name,)).fetchone()
    layout, ref = Layout(platform.data / "artifacts"), Ref.parse(artifact)
    record: dict[str, Any] = json.loads((layout.app(ref) / "artifact.json").read_text())
    environment = layout.environment(ref.owner, record["environment"])
    return Ready(layout.app(ref) / "app", environment, record["argv"], record["env"], record["lock"])


def own_start(app: Ready, niceness: int = 0) -> float:
    """Seconds from the command's start to its first answer below 500."""
    with tempfile.TemporaryDirectory(prefix="own-start-") as folder:
        work, home, port = Path(folder, "work"), Path(folder, "home"), free_port()
        shutil.copytree(app.app, work)
        home.mkdir()
        env = {name: value.replace("{PORT}", str(port)) for name, value in _variables(app).items()}
        env |= {"PATH": f"{app.environment}/bin:/usr/local/bin:/usr/bin:/bin", "HOME": str(home), "PORT": str(port)}
        env |= {"LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1", "TMPDIR": folder}
        argv = [word.replace("{PORT}", str(port)) for word in app.argv]
        began = time.monotonic()
        process = subprocess.Popen(
            ["nice", "-n", str(niceness), *argv] if niceness else argv,
            cwd=work, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            while not _answers(port):
                if process.poll() is not None or time.monotonic() - began > 120:
                    raise RuntimeError(f"{argv} does not answer on {port} (exit {process.returncode})")
                time.sleep(ASK_SECONDS)
            return time.monotonic() - began
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _variables(app: Ready) -> dict[str, str]:
    """What the platform gives the app: some SDKs start differently where they see that they run in a Space."""
    space = Space(id=1, owner_id=1, owner="admin", name="own-start", key="own-start", creator_id=1, sdk="gradio")
    limits = Hardware(Settings(), Machine(1.0, 0)).resources("cpu-basic")
    given: dict[str, Any] = {"host": "own-start.localhost", "resources": limits, "plan": app.env}
    return make_environment(space, **given, variables={}, secrets={}, passed={})


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", "/")
        answer = connection.getresponse()
        answer.read(1)
        return answer.status < 500
    except (ConnectionRefusedError, ConnectionResetError):
        return False
    finally:
        connection.close()


def niceness(platform: Platform) -> int:
    """The niceness that the platform gives apps here; needs a running one."""
    return max(os.getpriority(os.PRIO_PROCESS, pid) for pid in platform.processes())
