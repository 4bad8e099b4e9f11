"""Start, stop and survival of the platform's processes, with the real ones."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from spaces_platform import presence, supervisor
from spaces_platform.settings import Settings
from tests.cli.conftest import Place, eventually
from tests.services import databases


def test_up_returns_when_the_platform_answers(running: Place) -> None:
    status, _ = running.fetch(f"http://localhost:{running.port}/readyz")
    assert status == 200
    assert (running.data / "admin.token").stat().st_mode & 0o777 == 0o600
    assert running.data.stat().st_mode & 0o777 == 0o711
    assert (running.data / "run").stat().st_mode & 0o777 == 0o700
    assert (running.data / "run" / "link.token").stat().st_mode & 0o777 == 0o600


def test_status_tells_scripts_and_people(running: Place) -> None:
    value = json.loads(running.spaces("status", "--json").stdout)
    assert value["running"]
    assert value["ready"]
    assert set(value["processes"]) == {"control", "gateway"}
    assert all(presence.start_time(p["pid"]) for p in value["processes"].values())
    shown = running.spaces("status")
    assert shown.returncode == 0
    assert f"http://localhost:{running.port} answers" in shown.stdout


def test_a_second_up_says_it_runs_already(running: Place) -> None:
    again = running.spaces("up", "--detach", "--port", str(running.port + 1))
    assert again.returncode == 1
    assert "runs already" in again.stderr
    assert f"spaces down --data {running.data}" in again.stderr


@pytest.mark.parametrize("name", ["control", "gateway"])
def test_a_killed_process_starts_again(running: Place, name: str) -> None:
    before = running.state()["processes"][name]["pid"]
    os.kill(before, signal.SIGKILL)
    eventually(lambda: running.state()["processes"][name]["pid"] not in (None, before))
    assert running.state()["processes"][name]["restarts"] >= 1
    eventually(lambda: running.spaces("status").returncode == 0)


def test_a_port_in_use_is_named_with_its_user(place: Place) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", place.port))
        other.listen()
        done = place.spaces("up", "--detach", "--port", str(place.port))
    assert done.returncode == 1
    assert f"Port {place.port}" in done.stderr
    assert f"(pid {os.getpid()})" in done.stderr
    assert f"--port {place.port + 1}" in done.stderr
    assert place.spaces("status").returncode == 1


@databases.sqlite_only
def test_a_start_that_fails_says_why(place: Place) -> None:
    place.data.mkdir(parents=True)
    (place.data / "spaces.db").write_bytes(b"this is no database" * 100)
    done = place.spaces("up", "--detach", "--port", str(place.port))
    assert done.returncode == 1
    assert "control process ended with exit code" in done.stderr
    assert "not a database" in done.stderr
    assert not presence.is_supervised(place.data)


def test_the_next_up_takes_over_from_a_killed_supervisor_and_ctrl_c_stops_all(place: Place) -> None:
    first = place.up()
    os.kill(first["pid"], signal.SIGKILL)
    eventually(lambda: presence.start_time(first["pid"]) is None)
    left = {name: presence.read_mark(place.data, name) for name in ("control", "gateway")}
    assert all(mark is not None and mark.is_alive() for mark in left.values()), "the children should have lived on"
    assert not json.loads(place.spaces("status", "--json").stdout)["running"]

    argv = [sys.executable, "-m", "spaces_platform", "up", "--port", str(place.port)]
    with subprocess.Popen(argv, env=place.environment(), stdout=subprocess.PIPE, text=True) as second:
        assert second.stdout is not None
        assert f"http://localhost:{place.port}" in second.stdout.readline()
        assert not any(mark is not None and mark.is_alive() for mark in left.values())
        now = [presence.read_mark(place.data, name) for name in ("control", "gateway")]
        second.send_signal(signal.SIGINT)
        assert second.wait(60) == 0
    assert not any(mark is not None and mark.is_alive() for mark in now)
    assert not presence.is_supervised(place.data)


def test_one_ctrl_c_that_comes_twice_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the terminal's group and from a wrapper. Two would kill the control plane, and leave its apps running."""
    now = 100.0
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: now)
    made = supervisor.Supervisor(Settings(data=tmp_path))
    counted = []
    with made._signal_wakeups():
        for passed in (0.0, 0.1, 0.8, 0.2):
            now += passed
            os.kill(os.getpid(), signal.SIGINT)
            counted.append(made._signals)
    assert counted == [1, 1, 1, 2]


def test_down_without_a_platform_is_no_error(place: Place) -> None:
    done = place.spaces("down", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"stopped": False, "data": str(place.data)}


# --- pure ----------------------------------------------------------------------------------------------------
def test_flags_reach_the_control_plane_by_its_environment(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, port=9000, build_slots=7)
    env = supervisor.environment(settings, {"PATH": "/bin", "SPACES_PORT": "1"})
    again = Settings.load({k: v for k, v in env.items() if k.startswith("SPACES_")})
    assert again == settings
    assert env["PATH"] == "/bin"


@pytest.mark.parametrize(
    ("host", "loopback"), [("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False), ("192.0.2.7", False)]
)
def test_only_a_loopback_host_binds_loopback_only(tmp_path: Path, host: str, loopback: bool) -> None:
    config = supervisor.gateway_config(Settings(data=tmp_path, host=host), "t")
    assert config["listen"] == [{"host": host, "port": 7860, "loopback_only": loopback}]


def test_the_gateway_takes_the_configuration(tmp_path: Path) -> None:
    from spaces_platform.gateway.config import parse

    settings = Settings(data=tmp_path, public_url="https://apps.example.org", apps_domain="apps.example.org")
    config = parse(supervisor.gateway_config(settings, "secret"))
    assert config.scheme == "https"
    assert config.platform_origin == "https://apps.example.org"
    assert config.control == f"unix:{tmp_path}/run/control.sock"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ()),
        ({"mode": "single-host"}, ("celery", "redis", "docker")),
        ({"mode": "single-host", "queue": "threads"}, ("docker",)),
        ({"database": "postgresql://db/spaces"}, ("psycopg",)),
    ],
)
def test_what_must_be_installed_is_named(given: dict[str, str], expected: tuple[str, ...]) -> None:
    settings = Settings.load({}, **given)
    assert supervisor.missing_packages(settings, lambda _: False) == expected
    assert supervisor.missing_packages(settings, lambda _: True) == ()


def test_a_too_long_data_directory_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(supervisor.Invalid, match="too long a path"):
        supervisor.prepare(Settings(data=tmp_path / ("d" * 100)))


def test_a_large_log_is_set_aside_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LOG_BYTES", 10)
    path = tmp_path / "x.log"
    child = supervisor.Child(supervisor.Program("x", (), {}, path), tmp_path)
    with path.open("ab") as writer:
        writer.write(b"0123456789abc\n")
        writer.flush()
        child.rotate()
        writer.write(b"next\n")
    assert path.read_bytes() == b"next\n"
    assert path.with_suffix(".log.1").read_bytes() == b"0123456789abc\n"


def test_a_pid_given_to_another_process_is_not_ours() -> None:
    here = presence.Mark.of(os.getpid())
    assert here.is_alive()
    assert not presence.Mark(here.pid, "1").is_alive()
    assert presence.listener_of(1) == ""
