"""One app's hunger is its own: memory, processes, disk; by control groups and by watching."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from spaces_platform.adapters.process import Level, ProcessOrchestrator
from spaces_platform.ports import RunStatus
from tests.process import apps
from tests.process.harness import SETTINGS, SMALL, Machine, exited, processes_with, ready, text, wait_for

BOMB = """
import os, time
forks = 0
while forks < 400:
    try:
        if os.fork() == 0:
            time.sleep(600)
        forks += 1
    except OSError:
        break
print("forked", forks, flush=True)
time.sleep(600)
"""

SHARED_MEMORY = """
import mmap, os, time
held = mmap.mmap(-1, 200 << 20)
for n in range(0, 200 << 20, 4096):
    held[n] = 1
time.sleep(600)
"""

MODES = {
    "cgroup": {},
    "watched": {"cgroups": False},
    "watched, no sandbox": {"cgroups": False, "level": Level.NONE},
}


@pytest.fixture(params=sorted(MODES))
def orchestrator(request: pytest.FixtureRequest, place: Machine) -> ProcessOrchestrator:
    made = place.orchestrator(replace(SETTINGS, **MODES[request.param]))  # type: ignore[arg-type]
    if request.param == "cgroup" and made.limits_enforced_by()["memory"] != "cgroup":
        pytest.skip("no writable control groups here")
    return made


@pytest.mark.parametrize("source", [apps.MEMORY_HOG, SHARED_MEMORY])
def test_a_memory_hog_is_ended_and_named_and_nobody_else_is(
    place: Machine, orchestrator: ProcessOrchestrator, source: str
) -> None:
    neighbour, hog = place.spec(apps.server()), place.spec(source, resources=replace(SMALL, memory=64 << 20))
    orchestrator.start(neighbour)
    ready(orchestrator, neighbour.id)
    orchestrator.start(hog)
    seen = exited(orchestrator, hog.id)
    assert seen.out_of_memory
    assert seen.exit_code == -9
    assert "out of memory: " in text(orchestrator, hog.id)
    assert "out of memory" in seen.probe
    assert orchestrator.observe()[neighbour.id].status is RunStatus.READY


def test_a_fork_bomb_is_bounded_and_leaves_nothing(place: Machine, orchestrator: ProcessOrchestrator) -> None:
    bomb = place.spec(BOMB, resources=replace(SMALL, processes=20))
    orchestrator.start(bomb)
    mark = f"SPACES_RUN={orchestrator._ground.prefix}{bomb.id}"

    def bounded() -> bool:
        ended = orchestrator.observe()[bomb.id].status is RunStatus.EXITED
        return ended or "forked" in text(orchestrator, bomb.id)

    wait_for("the bomb is bounded", bounded)
    if orchestrator.limits_enforced_by()["processes"] == "cgroup":
        assert len(processes_with(mark)) <= 20
    elif orchestrator.isolation().level is not Level.NONE:
        assert len(processes_with(mark)) <= 42
    else:  # nothing but the look, twice a second, bounds it here
        assert "too many processes" in exited(orchestrator, bomb.id).probe
    orchestrator.stop(bomb.id, grace=0)
    wait_for("it is gone", lambda: bomb.id not in orchestrator.observe(), 60)
    wait_for("all of it is gone", lambda: not processes_with(mark), seconds=5)


def test_writing_without_end_is_ended_and_named(place: Machine, orchestrator: ProcessOrchestrator) -> None:
    source = """
import itertools, time
for n in itertools.count():
    with open(f"file-{n % 24}", "wb") as file:
        file.write(bytes(1 << 20))
    time.sleep(0.01)
"""
    writer = place.spec(source, resources=replace(SMALL, disk=8 << 20))
    orchestrator.start(writer)
    seen = exited(orchestrator, writer.id)
    assert "disk limit" in seen.probe
    assert not seen.out_of_memory


def test_one_file_cannot_be_larger_than_the_disk_limit(place: Machine, orchestrator: ProcessOrchestrator) -> None:
    writer = place.spec(
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "with open('big', 'wb') as f: f.truncate(1 << 20); f.seek(9 << 20); f.write(b'x'); f.flush()",
        resources=replace(SMALL, disk=8 << 20),
    )
    orchestrator.start(writer)
    assert exited(orchestrator, writer.id).exit_code == 1
    assert "File too large" in text(orchestrator, writer.id)


def test_no_core_is_dumped_and_files_are_limited(place: Machine, orchestrator: ProcessOrchestrator) -> None:
    spec = place.spec("import resource as r; print(r.getrlimit(r.RLIMIT_CORE), r.getrlimit(r.RLIMIT_NOFILE)[0])")
    orchestrator.start(spec)
    exited(orchestrator, spec.id)
    core, _, files = text(orchestrator, spec.id).rpartition(" ")
    assert core == "(0, 0)"
    assert int(files) <= SETTINGS.open_files


def test_a_busy_app_gets_its_share_of_processors_and_no_more(place: Machine) -> None:
    orchestrator = place.orchestrator()
    if orchestrator.limits_enforced_by()["cpu"] != "cgroup":
        pytest.skip("no writable cpu control group here")
    spec = place.spec("while True: pass", resources=replace(SMALL, cpus=0.2))
    orchestrator.start(spec)
    folder = Path(orchestrator._ground.cgroups.cpu) / f"{orchestrator._ground.prefix}{spec.id}"

    def throttled() -> bool:
        rows = dict(line.split() for line in (folder / "cpu.stat").read_text().splitlines()) if folder.exists() else {}
        return int(rows.get("nr_throttled", 0)) > 3

    wait_for("it is held back", throttled)
