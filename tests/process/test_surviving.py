"""Apps outlive the control plane; nothing outlives its deployment."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from spaces_platform.adapters.process import Level, ProcessOrchestrator, strays
from spaces_platform.adapters.process.shim import groups
from spaces_platform.ports import RunStatus
from tests.process import apps
from tests.process.harness import SETTINGS, Machine, exited, processes_with, ready, text, wait_for

CONTROL = """
import sys, time
from pathlib import Path
from tests.process.harness import Machine, ready
from spaces_platform.ports import DeploymentSpec
import json
machine = Machine(Path(sys.argv[1]))
orchestrator = machine.orchestrator()
for number, ref in json.loads(sys.argv[2]):
    orchestrator.start(DeploymentSpec(number, 1, "ada/app", ref, ("{PLATFORM_PYTHON}", "-S", "app.py")))
ready(orchestrator, 1)
print("up", flush=True)
time.sleep(600)
"""

DOUBLE_FORK = """
import os, signal, time
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    os._exit(0)
"""

LEVELS = [None, Level.NONE]
"""The best level of this machine, and the one where nothing but the shim holds the app's processes together."""


def shim_pid(place: Machine, number: int) -> int:
    pid = json.loads((place.root / "run" / "deployments" / str(number) / "shim.json").read_text())["pid"]
    assert isinstance(pid, int)
    return pid


def mark(orchestrator: ProcessOrchestrator, number: int) -> str:
    """What is in the environment of every process of a deployment."""
    return f"SPACES_RUN={orchestrator._ground.prefix}{number}"


def test_apps_survive_a_killed_control_plane_and_are_found_again(place: Machine) -> None:
    gate = socket.create_server(("127.0.0.1", 0))
    wait = f"import socket; socket.create_connection(('127.0.0.1', {gate.getsockname()[1]})).recv(1)"
    serving, slow = place.spec(apps.server()), place.spec(apps.server(wait))
    dying = place.spec("import time; time.sleep(0.6); raise SystemExit(7)")
    work = json.dumps([(s.id, s.artifact_ref) for s in (serving, slow, dying)])
    control = subprocess.Popen(
        [sys.executable, "-c", CONTROL, str(place.root), work], stdout=subprocess.PIPE, cwd=Path.cwd()
    )
    assert control.stdout is not None
    assert control.stdout.readline() == b"up\n"
    control.send_signal(signal.SIGKILL)
    control.wait()
    control.stdout.close()

    orchestrator = place.orchestrator()
    seen = orchestrator.observe()
    assert seen[serving.id].status is RunStatus.READY
    assert seen[serving.id].ready_at is not None
    assert httpx.get(f"http://{seen[serving.id].endpoint}/").text == "ok"
    assert seen[slow.id].status is RunStatus.STARTING
    assert exited(orchestrator, dying.id).exit_code == 7
    with gate, gate.accept()[0]:
        pass  # it goes on
    ready(orchestrator, slow.id)
    orchestrator.start(serving)
    assert orchestrator.observe()[serving.id].started_at == seen[serving.id].started_at

    again = place.orchestrator()
    assert again.observe()[dying.id].exit_code == 7
    orchestrator.close()
    again.close(stop_all=True, grace=0)
    assert not again.observe()
    wait_for("all of it is gone", lambda: not processes_with(str(place.root)), seconds=5)


def test_what_ended_while_nobody_looked_and_left_no_word_is_lost(place: Machine) -> None:
    spec = place.spec(apps.server())
    orchestrator = place.orchestrator()
    orchestrator.start(spec)
    ready(orchestrator, spec.id)
    orchestrator.close()
    os.kill(shim_pid(place, spec.id), signal.SIGKILL)
    found = place.orchestrator()
    seen = exited(found, spec.id)
    assert seen.exit_code is None
    wait_for("all of it is gone", lambda: not processes_with(mark(found, spec.id)), seconds=5)


def test_a_reused_pid_is_not_mistaken_for_the_shim(place: Machine) -> None:
    spec = place.spec(apps.server())
    orchestrator = place.orchestrator()
    orchestrator.start(spec)
    ready(orchestrator, spec.id)
    orchestrator.stop(spec.id)
    wait_for("it is gone", lambda: spec.id not in orchestrator.observe())
    orchestrator.close()
    folder = place.root / "run" / "deployments" / str(spec.id)
    for name in ("stop", "exit.json"):
        (folder / name).unlink()
    with subprocess.Popen(["sleep", "60"]) as stranger:
        try:
            facts = json.loads((folder / "shim.json").read_text())
            (folder / "shim.json").write_text(json.dumps({**facts, "pid": stranger.pid}))
            found = place.orchestrator()
            assert found.observe()[spec.id].status is RunStatus.EXITED
            found.stop(spec.id, grace=0)
            found.forget(spec.id)
            assert stranger.poll() is None
            found.close()
        finally:
            stranger.kill()


def test_a_stop_asked_for_before_a_restart_is_not_forgotten(place: Machine) -> None:
    spec = place.spec(apps.IGNORES_TERM)
    orchestrator = place.orchestrator()
    orchestrator.start(spec)
    ready(orchestrator, spec.id)
    orchestrator.stop(spec.id, grace=1.0)
    orchestrator.close()
    found = place.orchestrator()
    wait_for("it is gone", lambda: spec.id not in found.observe(), 60)
    wait_for("all of it is gone", lambda: not processes_with(mark(found, spec.id)), seconds=5)


def test_a_start_that_was_cut_short_leaves_nothing(place: Machine) -> None:
    folder = place.root / "run" / "deployments" / "77"
    folder.mkdir(parents=True)
    orchestrator = place.orchestrator()
    assert not orchestrator.observe()
    assert not folder.exists()


def test_a_shim_without_orders_starts_nothing(place: Machine) -> None:
    package = Path(sys.modules["spaces_platform.adapters.process"].__file__ or "").parent
    boot = "import sys; sys.path.append(sys.argv[1]); from shim.main import run; run()"
    for orders in (b"", b"\xfb\x05\x00\x00\x00half"):
        done = subprocess.run([sys.executable, "-I", "-S", "-c", boot, package], input=orders, timeout=10)
        assert done.returncode == 0


@pytest.mark.parametrize("level", LEVELS)
def test_when_the_shim_is_killed_the_app_goes_too(place: Machine, level: Level | None) -> None:
    orchestrator = place.orchestrator(replace(SETTINGS, level=level))
    spec = place.spec(apps.server(DOUBLE_FORK))
    orchestrator.start(spec)
    ready(orchestrator, spec.id)
    assert processes_with(mark(orchestrator, spec.id))
    os.kill(shim_pid(place, spec.id), signal.SIGKILL)
    seen = exited(orchestrator, spec.id)
    assert seen.exit_code is None
    wait_for("its children are gone", lambda: not processes_with(mark(orchestrator, spec.id)), 30)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("cgroups", [True, False])
def test_nobody_escapes_by_forking_twice(place: Machine, level: Level | None, cgroups: bool) -> None:
    orchestrator = place.orchestrator(replace(SETTINGS, level=level, cgroups=cgroups))
    running, ended = place.spec(apps.server(DOUBLE_FORK)), place.spec(DOUBLE_FORK)
    for spec in (running, ended):
        orchestrator.start(spec)
    ready(orchestrator, running.id)
    exited(orchestrator, ended.id)
    wait_for("its children are gone", lambda: not processes_with(mark(orchestrator, ended.id)), 30)
    assert processes_with(mark(orchestrator, running.id))
    orchestrator.stop(running.id)
    wait_for("it is gone", lambda: running.id not in orchestrator.observe(), 60)
    wait_for("all of it is gone", lambda: not processes_with(mark(orchestrator, running.id)), seconds=5)


@pytest.mark.parametrize("level", LEVELS)
def test_an_app_may_clean_up_when_it_is_asked_to_stop(place: Machine, level: Level | None) -> None:
    orchestrator = place.orchestrator(replace(SETTINGS, level=level))
    spec = place.spec(
        apps.server("import signal\ndef bye(*a):\n  print('bye', flush=True); os._exit(5)\nsignal.signal(15, bye)")
    )
    orchestrator.start(spec)
    ready(orchestrator, spec.id)
    orchestrator.stop(spec.id)
    wait_for("it is gone", lambda: spec.id not in orchestrator.observe(), 60)
    assert text(orchestrator, spec.id).splitlines()[-1] == "bye"


def test_what_a_hostile_app_leaves_is_removed(place: Machine) -> None:
    outside = place.root / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    orchestrator = place.orchestrator()
    spec = place.spec(
        f"""
import os
os.symlink({str(outside)!r}, "link")
os.mkdir("locked"); open("locked/file", "w").close(); os.chmod("locked", 0)
for _ in range(3000):
    os.mkdir("d"); os.chdir("d")
"""
    )
    orchestrator.start(spec)
    assert exited(orchestrator, spec.id).exit_code == 0, text(orchestrator, spec.id)
    orchestrator.stop(spec.id)
    orchestrator.forget(spec.id)
    assert not (place.root / "run" / "deployments" / str(spec.id)).exists()
    wait_for("the trash is empty", lambda: not list((place.root / "run" / "trash").iterdir()))
    assert (outside / "kept").exists()


def test_collecting_strays_leaves_live_deployments_alone(place: Machine) -> None:
    orchestrator = place.orchestrator()
    spec = place.spec(apps.server())
    orchestrator.start(spec)
    ready(orchestrator, spec.id)
    with subprocess.Popen(["sleep", "60"], env={"SPACES_RUN": f"{orchestrator._ground.prefix}4711"}) as stray:
        assert orchestrator.collect_strays() == 1
        assert stray.wait(5) == -signal.SIGKILL
    assert httpx.get(f"http://{orchestrator.observe()[spec.id].endpoint}/").text == "ok"


def test_strays_that_do_not_die_are_told_of(
    place: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    orchestrator = place.orchestrator()
    with subprocess.Popen(["sleep", "60"], env={"SPACES_RUN": f"{orchestrator._ground.prefix}4711"}) as stray:
        with monkeypatch.context() as stuck, caplog.at_level(logging.WARNING):
            stuck.setattr(groups, "kill", lambda pid: None)
            stuck.setattr(strays, "PATIENCE", 0.5)
            assert orchestrator.collect_strays() == 1
        assert [str(stray.pid) in record.getMessage() for record in caplog.records] == [True]
        assert orchestrator.collect_strays() == 1


def test_control_groups_are_gone_with_their_apps(place: Machine) -> None:
    orchestrator = place.orchestrator()
    ground = orchestrator._ground
    if not ground.cgroups.holds:
        pytest.skip("no writable control groups here")
    spec = place.spec(apps.server())
    orchestrator.start(spec)
    ready(orchestrator, spec.id)
    assert ground.cgroups.leftovers(ground.prefix)
    orchestrator.stop(spec.id)
    wait_for("it is gone", lambda: spec.id not in orchestrator.observe())
    assert not ground.cgroups.leftovers(ground.prefix)
