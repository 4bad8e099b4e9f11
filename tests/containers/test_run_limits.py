"""What an app in a container can use up: its own share and no more. T02 to T05 for containers."""

from __future__ import annotations

import json
import shutil
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from spaces_platform.adapters.docker import DockerOrchestrator
from spaces_platform.ports import Observation, RunStatus
from tests.containers.harness import SMALL, Place, alive, exited, gone, ran, ready, text
from tests.process import apps
from tests.process.harness import wait_for

SECONDS = 60.0
MIB = 1 << 20


def get(orchestrator: DockerOrchestrator, number: int) -> str:
    """What an app answers."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{orchestrator.observe()[number].endpoint}/", timeout=SECONDS) as answer:
        return str(answer.read().decode())


@contextmanager
def neighbour(place: Place, orchestrator: DockerOrchestrator) -> Iterator[None]:
    """Another app, which answers all the while and is never restarted."""
    spec = place.spec(apps.server(), space_id=99)
    orchestrator.start(spec)
    before = ready(orchestrator, spec.id)
    answers, over, failed = 0, threading.Event(), []

    def visit() -> None:
        nonlocal answers
        while not over.wait(0.05):
            try:
                assert get(orchestrator, spec.id) == "ok"
                answers += 1
            except (OSError, AssertionError) as error:
                failed.append(error)

    visitor = threading.Thread(target=visit)
    visitor.start()
    try:
        yield
        wait_for("the neighbour answers", lambda: answers > 10 or failed, SECONDS)
    finally:
        over.set()
        visitor.join()
    assert failed == []
    assert orchestrator.observe()[spec.id].started_at == before.started_at
    assert orchestrator.observe()[spec.id].status is RunStatus.READY


def group_value(folder: Path, name: str, other: str = "") -> int:
    """A number of a control group; `other` is the file's name in version 2."""
    path = folder / name
    return int((path if path.exists() else folder / other).read_text().split()[0])


# --- T02: processes --------------------------------------------------------------------------------------------------
BOMB = """
import os
print("lit", flush=True)
while True:
    try:
        os.fork()
    except OSError:
        pass
"""


def test_a_fork_bomb_fills_its_own_share_and_ends_when_told(place: Place) -> None:
    orchestrator = place.orchestrator()
    with neighbour(place, orchestrator):
        spec = place.spec(BOMB, resources=replace(SMALL, processes=48, cpus=0.5))
        orchestrator.start(spec)
        group = place.cgroup(spec.id, "pids")
        wait_for("the bomb has gone off", lambda: group_value(group, "pids.current") >= 48, SECONDS)
        processes = place.members(spec.id)
        assert group_value(group, "pids.current") == group_value(group, "pids.max") == 48
        wait_for("it was refused more", lambda: (group / "pids.events").read_text().split()[1] != "0", SECONDS)
    orchestrator.stop(spec.id, grace=0.5)
    gone(orchestrator, spec.id)
    wait_for("all its processes have ended", lambda: not alive(processes), SECONDS)


# --- T03: memory -----------------------------------------------------------------------------------------------------
TIGHT = replace(SMALL, memory=64 * MIB)


def hogged(place: Place) -> Observation:
    """What is seen of an app that took all the memory it could, beside another that went on."""
    orchestrator = place.orchestrator()
    with neighbour(place, orchestrator):
        spec = place.spec(apps.MEMORY_HOG, resources=TIGHT)
        orchestrator.start(spec)
        return exited(orchestrator, spec.id)


def test_a_memory_hog_is_ended_alone_and_that_is_named(place: Place) -> None:
    seen = hogged(place)
    assert (seen.out_of_memory, seen.exit_code) == (True, -9)


def test_there_is_no_swap_to_hide_in(place: Place) -> None:
    orchestrator = place.orchestrator()
    spec = place.spec(apps.server(), resources=TIGHT)
    orchestrator.start(spec)
    ready(orchestrator, spec.id)
    group = place.cgroup(spec.id, "memory")
    assert group_value(group, "memory.limit_in_bytes", "memory.max") == 64 * MIB
    swap = group / "memory.memsw.limit_in_bytes"
    if swap.exists():
        assert int(swap.read_text()) == 64 * MIB
    elif (group / "memory.swap.max").exists():
        assert (group / "memory.swap.max").read_text().strip() == "0"
    config = place.containers()[spec.id]["HostConfig"]
    assert config["MemorySwap"] == config["Memory"]


FILL = """
import os
def fill(path):
    size = 0
    try:
        with open(path, "wb", buffering=0) as file:
            while size < 1 << 30:
                size += file.write(bytes(1 << 20))
    except OSError as error:
        return [size, os.strerror(error.errno)]
    return [size, ""]
"""


def test_memory_that_looks_like_a_disk_counts_and_ends(place: Place) -> None:
    """/dev/shm is memory: it is full before the app is killed for it."""
    orchestrator = place.orchestrator()
    size, said = json.loads(
        ran(place, orchestrator, f"import json{FILL}print(json.dumps(fill('/dev/shm/x')))", resources=TIGHT)
    )
    assert said == "No space left on device"
    assert size <= 32 * MIB


def test_files_written_through_the_page_cache_kill_nobody(place: Place) -> None:
    orchestrator = place.orchestrator()
    source = f"{FILL}\nfor n in range(3):\n    fill('x')\n    os.unlink('x')\nprint('alive')"
    assert ran(place, orchestrator, source, resources=replace(TIGHT, disk=128 * MIB)) == "alive"


def test_a_child_that_is_killed_for_memory_does_not_make_a_good_end_bad(place: Place) -> None:
    orchestrator = place.orchestrator()
    hog = json.dumps(apps.MEMORY_HOG)
    source = f"import subprocess, sys\nprint(subprocess.run([sys.executable, '-S', '-c', {hog}]).returncode)"
    spec = place.spec(source, resources=TIGHT)
    orchestrator.start(spec)
    seen = exited(orchestrator, spec.id)
    assert text(orchestrator, spec.id) == "-9"
    assert (seen.exit_code, seen.out_of_memory) == (0, False)


# --- T04: disk and output --------------------------------------------------------------------------------------------
FULL = """
import json, os
report = {{}}
for folder in {folders}:
    report[folder] = fill(folder + "/zeros")
    os.unlink(folder + "/zeros")
files = 0
try:
    os.mkdir("many")
    while files < 1_000_000:
        os.close(os.open(f"many/{{files}}", os.O_CREAT | os.O_WRONLY))
        files += 1
except OSError as error:
    report["files"] = [files, os.strerror(error.errno)]
print(json.dumps(report), flush=True)
"""


def test_a_full_disk_is_the_apps_own(place: Place) -> None:
    orchestrator = place.orchestrator()
    folders = ["/home/user", "/home/user/app", "/tmp", "/data"]
    resources = replace(SMALL, disk=48 * MIB, volume=24 * MIB)
    with neighbour(place, orchestrator):
        before = shutil.disk_usage(place.root).used
        report = json.loads(ran(place, orchestrator, FILL + FULL.format(folders=folders), resources=resources))
        grown = shutil.disk_usage(place.root).used - before
    for folder in folders:
        size, said = report[folder]
        assert said == "No space left on device", folder
        assert 8 * MIB < size < (24 if folder == "/data" else 48) * MIB, folder
    files, said = report["files"]
    assert said == "No space left on device"
    assert 1000 < files < 100_000
    # The machine is shared by others while tests run: this only shows that no app's writes are unlimited.
    assert grown < 512 * MIB


def test_an_app_that_starts_on_a_full_machine_is_put_off_with_the_reason(place: Place) -> None:
    orchestrator = place.orchestrator()
    spec = place.spec(apps.server(), resources=replace(SMALL, disk=1 << 60))
    with pytest.raises(Exception, match="disk could not be made") as caught:
        orchestrator.start(spec)
    assert getattr(caught.value, "retryable", False)
    assert orchestrator.observe() == {}
    wait_for("nothing of it is left", lambda: not (place.root / "containers/deployments" / str(spec.id)).exists())


FLOOD = """
import os, sys
line = b"x" * 99 + b"\\n"
block = line * 640
print("first", flush=True)
for _ in range({blocks}):
    os.write(1, block)
print("last", flush=True)
"""


def test_a_flood_of_output_is_cut_with_a_mark_and_costs_a_bounded_disk(place: Place) -> None:
    """64 MB of output where 256 kB are kept."""
    orchestrator = place.orchestrator()
    with neighbour(place, orchestrator):
        spec = place.spec(FLOOD.format(blocks=1000))
        orchestrator.start(spec)
        wait_for("it is read while it is written", lambda: orchestrator.logs(spec.id), SECONDS)
        exited(orchestrator, spec.id, 120)
    lines = orchestrator.logs(spec.id)
    assert lines[-1].text == "last"
    assert any("dropped" in line.text for line in lines)
    assert [line.n for line in lines] == list(range(lines[0].n, lines[0].n + len(lines)))
    kept = sum(path.stat().st_size for path in (place.root / "containers/deployments" / str(spec.id) / "log").iterdir())
    assert kept < 4 * SMALL.log_bytes
    folder = Path(place.containers()[spec.id]["LogPath"] or engine_log(place, spec.id))
    assert sum(path.stat().st_size for path in folder.parent.glob("*") if path.is_file()) < 4 * SMALL.log_bytes


def engine_log(place: Place, deployment: int) -> str:
    """Where the engine's `local` driver keeps a container's output."""
    root = place.facts().root
    return f"{root}/containers/{place.containers()[deployment]['Id']}/local-logs/container.log"


# --- T05: processor --------------------------------------------------------------------------------------------------
SPIN = """
import os, threading
for _ in range(3):
    if os.fork() == 0:
        break
"""


def cpu_seconds(place: Place, deployment: int) -> float:
    group = place.cgroup(deployment, "cpuacct")
    if (group / "cpuacct.usage").exists():
        return int((group / "cpuacct.usage").read_text()) / 1e9
    return int((group / "cpu.stat").read_text().split()[1]) / 1e6


def test_a_miner_gets_its_share_of_the_processors_and_no_more(place: Place) -> None:
    orchestrator = place.orchestrator()
    with neighbour(place, orchestrator):
        spec = place.spec(f"{SPIN}while True: pass", resources=replace(SMALL, cpus=0.5))
        orchestrator.start(spec)
        group = place.cgroup(spec.id, "cpu")
        words = (group / "cpu.stat").read_text
        wait_for("it was held back", lambda: int(words().split("nr_throttled")[1].split()[0]) > 10, SECONDS)
        before, began = cpu_seconds(place, spec.id), time.monotonic()
        wait_for("it spins", lambda: cpu_seconds(place, spec.id) - before > 0.5, SECONDS)
        # Quotas are of 0.1 s each: the one under way is not counted exactly.
        assert cpu_seconds(place, spec.id) - before <= 0.5 * (time.monotonic() - began) + 0.1


# --- ends, explained -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("import sys; sys.exit(0)", 0),
        ("import sys; sys.exit(42)", 42),
        ("raise SystemExit('no luck')", 1),
        ("import os; os.abort()", -6),
        ("import ctypes; ctypes.string_at(0)", -11),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -15),
    ],
)
def test_how_it_ended_is_known(place: Place, source: str, code: int) -> None:
    orchestrator = place.orchestrator()
    spec = place.spec(source)
    orchestrator.start(spec)
    seen = exited(orchestrator, spec.id)
    assert (seen.exit_code, seen.out_of_memory) == (code, False)


@pytest.mark.parametrize(("command", "code"), [("no-such-program", 127), ("/etc/passwd", 126)])
def test_a_command_that_cannot_be_run_is_named(place: Place, command: str, code: int) -> None:
    orchestrator = place.orchestrator()
    spec = replace(place.spec(), argv=(command,))
    orchestrator.start(spec)
    assert exited(orchestrator, spec.id).exit_code == code
    assert command in text(orchestrator, spec.id)
