"""The platform with Celery, started by its one command: control plane, gateway and worker, on a real Redis."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from spaces_platform import presence, supervisor
from spaces_platform.settings import Settings
from tests.cli.conftest import Place, eventually
from tests.services.redis import RedisServer

SECONDS = 60.0


def celery(server: RedisServer) -> tuple[str, ...]:
    """Single-host mode, with processes in the place of containers."""
    parts = ("queue=celery", "builder=venv", "orchestrator=process")
    return ("--mode", "single-host", "--redis", server.url, *(word for part in parts for word in ("--set", part)))


def site(place: Place, text: str) -> Path:
    folder = place.root / "site"
    folder.mkdir(exist_ok=True)
    (folder / "index.html").write_text(text)
    (folder / "README.md").write_text("---\ntitle: site\nsdk: static\napp_file: index.html\n---\n")
    return folder


def push(place: Place, text: str) -> None:
    """Deploy it, and see it answer."""
    done = place.spaces("deploy", str(site(place, text)))
    assert done.returncode == 0, done.stdout + done.stderr + place.logs()
    assert place.fetch(f"http://admin-site.localhost:{place.port}/") == (200, text)


@pytest.mark.parametrize("queue", ["threads", "celery"])
def test_a_worker_runs_where_celery_builds(tmp_path: Path, queue: str) -> None:
    found = supervisor.programs(Settings(data=tmp_path, queue=queue), {})
    assert [p.name for p in found] == ["control", "gateway", *(["worker"] if queue == "celery" else [])]
    assert set(supervisor.STOP_SECONDS) >= {p.name for p in found}
    if queue == "celery":
        assert found[-1].argv[1:] == ("-m", "spaces_platform.worker", "--data", str(tmp_path))
        assert found[-1].env["SPACES_QUEUE"] == "celery"
        assert found[-1].stop_signal is signal.SIGTERM


def test_up_starts_a_worker_that_builds_what_is_pushed_and_down_ends_it(
    place: Place, redis_server: RedisServer
) -> None:
    state = place.up(*celery(redis_server))
    assert set(state["processes"]) == {"control", "gateway", "worker"}
    first = state["processes"]["worker"]["pid"]
    push(place, "one")
    assert '"worker started"' in (place.data / "logs" / "worker.log").read_text()

    os.kill(first, signal.SIGKILL)
    second = eventually(
        lambda: (pid := place.state()["processes"]["worker"]["pid"]) not in (None, first) and pid, SECONDS
    )
    push(place, "two")

    marks = [presence.read_mark(place.data, name) for name in supervisor.STOP_SECONDS]
    pool = children(second)
    assert len(pool) >= 2
    assert place.spaces("down").returncode == 0
    assert not [mark for mark in marks if mark is None or mark.is_alive()]
    eventually(lambda: not [pid for pid in pool if presence.start_time(pid)], SECONDS)


def test_a_worker_left_by_a_killed_supervisor_is_ended(place: Place, redis_server: RedisServer) -> None:
    state = place.up(*celery(redis_server))
    left = presence.read_mark(place.data, "worker")
    assert left is not None
    os.kill(state["pid"], signal.SIGKILL)
    eventually(lambda: not presence.start_time(state["pid"]), SECONDS)
    assert left.is_alive()
    again = place.up(*celery(redis_server))
    assert not left.is_alive()
    assert again["processes"]["worker"]["pid"] != left.pid


def test_pushes_are_taken_while_redis_is_away_and_built_when_it_is_back(
    place: Place, redis_server: RedisServer
) -> None:
    place.up(*celery(redis_server))
    push(place, "one")
    redis_server.kill()
    done = place.spaces("deploy", str(site(place, "two")), "--no-follow")
    assert done.returncode == 0, done.stdout + done.stderr
    assert place.fetch(f"http://admin-site.localhost:{place.port}/") == (200, "one")
    redis_server.start()
    eventually(lambda: place.fetch(f"http://admin-site.localhost:{place.port}/") == (200, "two"), SECONDS)


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
