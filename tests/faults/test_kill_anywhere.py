"""T26: SIGKILL of each process at each step of push > build > start > route > drain > stop > delete.

Starting again is the only repair: the supervisor does it, and where the supervisor itself is killed, `spaces up`. The
end state is that of an undisturbed run. The rows are ordered so that no process is killed often in a row: one that dies
again and again is restarted later each time, on purpose.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import apps
from tests.faults.system import System, until
from tests.faults.visitors import Held

READY_SECONDS = 5.0
RESUMED_SECONDS = 15.0
"""Of security-and-reliability.md, section 3: control process killed."""


def reach_push(system: System, name: str) -> Callable[[], None]:
    """A push whose objects are just being received; it is made again if it was not acknowledged."""
    system.create(name)
    while True:
        commit = system.commit(name, {**apps.static(f"{name} two"), "large.bin": os.urandom(9 << 20)})
        thread = threading.Thread(target=system.push_commit, args=(name, commit))
        thread.start()
        until(lambda t=thread: _receiving(system) or not t.is_alive(), 30, "git receives", every=0.001)
        if thread.is_alive():
            break  # else it was received before anybody looked

    def settle() -> None:
        thread.join()
        system.wait_ready(60)
        if not system.journal.pushes[-1].acked:
            system.push_commit(name, commit, check=True)

    return settle


def reach_build(system: System, name: str) -> Callable[[], None]:
    system.push(name, apps.slow_build(f"{name} two", 2.0))
    until(
        lambda: system.processes("sh -c", "echo working", str(system.data)) or _in_phase(system, name, "building"),
        20,
        "it builds",
    )
    return _nothing


def reach_start(system: System, name: str) -> Callable[[], None]:
    system.create(name)
    system.push(name, apps.python(f"{name} two", start_delay=2.0))
    until(lambda: _deployments(system, name, "STARTING") and _shim(system, name), 20, "it starts", every=0.01)
    return _nothing


def reach_route(system: System, name: str) -> Callable[[], None]:
    system.push(name, apps.static(f"{name} one"))
    system.wait_serving(name, f"{name} one")
    system.push(name, apps.static(f"{name} two"))
    until(lambda: len(_deployments(system, name, "READY")) == 2, 20, "the new one is ready", every=0.005)
    return _nothing


def reach_drain(system: System, name: str) -> Callable[[], None]:
    """Two versions, and a visitor whose request is still running on the old one."""
    system.create(name)
    system.push(name, apps.python(f"{name} one"))
    system.wait_serving(name, f"{name} one")
    visitor = Held(system.port, f"admin-{name}.localhost")
    until(lambda: system.status(name)["traffic"]["inFlight"] == 1, 30, "the request is reported")
    system.push(name, apps.python(f"{name} two"))
    until(lambda: any(not d["live"] for d in _deployments(system, name, "READY")), 20, "the old one drains", every=0.01)

    def settle() -> None:
        assert visitor.release() in (f"{name} one", "cut")

    return settle


def reach_sleep(system: System, name: str) -> Callable[[], None]:
    system.push(name, apps.static(f"{name} two"))
    system.wait_serving(name, f"{name} two")
    system.api("POST", f"/api/platform/spaces/admin/{name}/sleep")
    until(
        lambda: not _deployments(system, name, "READY") or system.status(name)["stage"] == "SLEEPING",
        20,
        "it stops",
        every=0.01,
    )
    return _nothing


def reach_run(system: System, name: str) -> Callable[[], None]:
    system.push(name, apps.static(f"{name} two"))
    system.wait_serving(name, f"{name} two")
    return _nothing


STEPS = {
    "push": reach_push, "build": reach_build, "start": reach_start, "route": reach_route, "drain": reach_drain,
    "sleep": reach_sleep, "run": reach_run,
}  # fmt: skip
ROLES = ("control", "gateway", "supervisor", "all", "child")
FAST = (
    ("push", "control"), ("build", "control"), ("drain", "gateway"), ("build", "supervisor"),
    ("start", "control"), ("start", "child"), ("run", "child"),
)  # fmt: skip
ELSEWHERE = (("route", "child"), ("build", "child"), ("push", "child"))
"""Routing has no process of its own; a killed build command has a test here, a killed git in tests/git."""
REST = tuple((step, role) for step in STEPS for role in ROLES if (step, role) not in (*FAST, *ELSEWHERE))


@pytest.mark.parametrize(("step", "role"), FAST, ids=[f"{step}-{role}" for step, role in FAST])
def test_starting_again_is_the_only_repair(system: System, step: str, role: str) -> None:
    kill_at(system, step, role)


@pytest.mark.soak
@pytest.mark.parametrize(("step", "role"), REST, ids=[f"{step}-{role}" for step, role in REST])
def test_every_other_step_and_process(system: System, step: str, role: str) -> None:
    kill_at(system, step, role)
    # A fresh supervisor forgets how often its children died.
    system.kill("supervisor")
    system.up()


def kill_at(system: System, step: str, role: str) -> None:
    name = f"{step}-{role}"
    if step in ("build", "route", "sleep", "run"):
        system.create(name)
    settle = STEPS[step](system, name)
    slack = max(0.0, system.up_seconds - 2.0)
    """What this machine takes longer to start a platform than an idle one does."""
    kill(system, name, step, role)
    if role in ("control", "gateway"):
        system.wait_ready(READY_SECONDS + slack)
    settle()
    system.wait_serving(name, f"{name} two", RESUMED_SECONDS + slack)
    end = system.wait_stage(name, "RUNNING", 10)
    assert end["servingCommit"] == end["head"] == system.journal.pushes[-1].commit
    assert end["deployment"]["isolation"], end
    system.check()


def kill(system: System, name: str, step: str, role: str) -> None:
    if role == "child":
        child = _child(system, name, step)
        system.journal.write("kill", role=role, pid=child)
        os.kill(child, signal.SIGKILL)
    elif role == "all":
        for each in ("supervisor", "control", "gateway"):
            system.kill(each)
        system.up()
    elif role == "supervisor":
        pid = system.kill(role)
        until(lambda: not Path(f"/proc/{pid}/fd").is_dir() or not os.listdir(f"/proc/{pid}/fd"), 30, "it is gone")
        system.up()
    else:
        system.kill(role)


def test_a_killed_build_command_is_said_and_a_restart_builds(system: System) -> None:
    """Nobody can tell an owner's command that was killed from one that kills itself: it is not tried again unasked."""
    system.create("killed")
    system.push("killed", apps.slow_build("killed two", 5.0))
    until(lambda: _building(system), 20, "its command runs")
    os.kill(_building(system)[0], signal.SIGKILL)
    failed = system.wait_stage("killed", "BUILD_ERROR", 15)
    assert "SIGKILL" in failed["message"]
    system.api("POST", "/api/spaces/admin/killed/restart")
    system.wait_serving("killed", "killed two", RESUMED_SECONDS)
    system.check()


@pytest.mark.parametrize("role", ["control", pytest.param("all", marks=pytest.mark.soak)])
def test_a_deletion_is_finished(system: System, role: str) -> None:
    system.push(f"gone-{role}", apps.static("gone"))
    system.wait_serving(f"gone-{role}", "gone")
    number = system.space_id(f"gone-{role}")
    system.api("DELETE", "/api/repos/delete", {"type": "space", "name": f"gone-{role}"})
    kill(system, f"gone-{role}", "delete", role)
    until(lambda: system.rows("SELECT 1 FROM space WHERE id = ? AND purged_at IS NOT NULL", number), 30, "it is purged")
    until(lambda: not (system.data / "repos" / "spaces" / f"{number}.git").exists(), 30, "the repository is gone")
    system.check()
    until(lambda: system.get(f"gone-{role}").status == 404, 30, "the gateway knows that it is gone")


def _child(system: System, name: str, step: str) -> int:
    """The process that does the step's own work: git, the build's command, or the app's shim."""
    if step == "push":
        found = _receiving(system)
    elif step == "build":
        found = _building(system)
    else:
        found = [_shim(system, name) or 0]
    assert found, f"no process to kill at {step}"
    return found[0]


def _receiving(system: System) -> list[int]:
    return system.processes("receive-pack", "--stateless-rpc", str(system.data))


def _building(system: System) -> list[int]:
    return system.processes("echo working", str(system.data))


def _deployments(system: System, name: str, status: str) -> list[dict[str, object]]:
    query = "SELECT d.* FROM deployment d JOIN space s ON s.id = d.space_id WHERE s.name = ? AND d.status = ?"
    return system.rows(query, name, status)


def _shim(system: System, name: str) -> int | None:
    query = "SELECT d.id FROM deployment d JOIN space s ON s.id = d.space_id WHERE s.name = ? ORDER BY d.id DESC"
    return system.shim(int(system.rows(query, name)[0]["id"]))


def _in_phase(system: System, name: str, phase: str) -> bool:
    build = system.status(name)["build"]
    return bool(build and build["phase"] == phase)


def _nothing() -> None:
    return None
