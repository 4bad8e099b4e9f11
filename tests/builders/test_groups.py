"""Control groups of the kernel that is here, and when builds stand back for apps."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from builders.containers.groups import CONTROLLERS, Groups
from builders.containers.processor import SHARES, STARVED, Turns, are_starved
from tests.process.harness import wait_for

FORKS = "while :; do sleep 0.01 & sleep 0.02; done"
BURNS = "while :; do :; done"


@pytest.fixture
def groups() -> Iterator[Groups]:
    """One of our own, with two below it."""
    root = Path("/sys/fs/cgroup")
    made = Groups(root, f"spaces-test-{secrets.token_hex(4)}", (root / "cgroup.controllers").exists())
    children = [made.child("a"), made.child("b")]
    try:
        for child in children:
            child.make()
    except OSError as error:
        pytest.skip(f"control groups cannot be made here: {error}")
    yield made
    for child in children:
        wait_for("it is empty", child.kill)
    for group in (*children, made):
        group.remove()
        assert not group.exists


def started(group: Groups, script: str) -> subprocess.Popen[bytes]:
    """A shell in that group from its first instruction on."""
    files = [group.folder(name) / "cgroup.procs" for name in CONTROLLERS if group.folder(name).is_dir()]
    joining = "; ".join(f"echo $$ > {file}" for file in files)
    return subprocess.Popen(["sh", "-c", f"{joining}; {script}"], process_group=0)


def test_processes_that_fork_are_moved_all_of_them(groups: Groups) -> None:
    first, second = groups.child("a"), groups.child("b")
    process = started(first, FORKS)
    try:
        wait_for("it forks", lambda: len(first._pids()) > 1)
        wait_for("all are moved", lambda: second.take(first))
        assert process.pid in second._pids()
        assert first._pids() == []
        assert second.limit(memory=64 << 20, processes=30)
    finally:
        wait_for("all are gone", second.kill)
        process.wait()
    # Both are gone: nothing to move, and nothing to move to.
    first.remove()
    assert second.take(first)
    second.remove()
    assert not second.limit(processes=30)


def test_a_group_that_is_gone_takes_nothing(groups: Groups) -> None:
    process = started(groups.child("a"), "sleep 60")
    try:
        wait_for("it is there", lambda: process.pid in groups.child("a")._pids())
        assert not groups.child("nowhere").take(groups.child("a"))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_who_runs_is_seen_and_counted(groups: Groups) -> None:
    group = groups.child("a")
    asleep = started(group, "sleep 60; :")
    try:
        wait_for("both are there", lambda: len(group._pids()) == 2)
        wait_for("both sleep", lambda: not group.is_runnable())
        before = groups.processor_seconds()
        burning = started(group, BURNS)
        try:
            wait_for("it runs", group.is_runnable)
            wait_for("it is counted", lambda: groups.processor_seconds() > before + 0.1)
        finally:
            burning.kill()
            burning.wait()
    finally:
        os.killpg(asleep.pid, signal.SIGKILL)
        asleep.wait()


def test_standing_back_and_having_a_weight(groups: Groups) -> None:
    group, idle = groups.child("a"), groups.child("a").folder("cpu") / "cpu.idle"
    weight = group.folder("cpu") / ("cpu.weight" if group.unified else "cpu.shares")
    given = SHARES * 100 // 1024 if group.unified else SHARES
    for back in (True, True, False, False, True):
        group.stand_back(back, SHARES)
        if idle.exists():
            assert int(idle.read_text()) == back
        if not (back and idle.exists()):
            assert int(weight.read_text()) == given


# --- when ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("processors", "wanted", "starved"),
    [
        (0.0, True, True),
        (STARVED - 0.01, True, True),
        (STARVED, True, False),
        (2.0, True, False),
        pytest.param(0.0, False, False, id="it waits for the network"),
    ],
)
def test_starved_is_who_wants_and_gets_next_to_nothing(processors: float, wanted: bool, starved: bool) -> None:
    assert are_starved(processors, wanted) is starved


def test_builds_are_looked_at_once_in_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = Groups(tmp_path, "builds", unified=False)
    for controller in CONTROLLERS:
        group.folder(controller).mkdir(parents=True)
    idle, usage = group.folder("cpu") / "cpu.idle", group.folder("cpuacct") / "cpuacct.usage"
    now = 100.0
    monkeypatch.setattr("builders.containers.processor.time.monotonic", lambda: now)
    turns, burning = Turns(group), subprocess.Popen(["sh", "-c", BURNS])
    (group.folder("pids") / "cgroup.procs").write_text(f"{burning.pid}\n")
    try:
        seen = []
        # (seconds that pass, seconds of processor that builds get in them)
        looks = (
            (0.0, 0.0),
            (0.9, 0.0),
            (0.2, 0.0),
            (1.0, 0.2),
            (1.0, 0.3),
            (0.5, 0.0),
            (0.6, 2.0),
            (60.0, 0.0),
            (1.0, 0.0),
        )
        for passed, got in looks:
            now += passed
            had = int(usage.read_text()) if usage.exists() else 0
            usage.write_text(str(had + int(got * 1e9)))
            idle.write_text("-")
            turns.check([group])
            seen.append(idle.read_text())
    finally:
        burning.kill()
        burning.wait()
    assert seen == ["-", "-", "0", "0", "1", "-", "1", "-", "0"]
    assert (group.folder("cpu") / "cpu.shares").read_text() == str(SHARES)
