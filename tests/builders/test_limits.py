"""The groups of build steps, on folders as the kernel shows them: version 1 and 2, both of the engine's drivers.

How an engine with the systemd driver names and places them was recorded on Docker 26.1 with cgroup v2.
"""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from builders.confined import LimitHit
from builders.containers import client, limits
from builders.containers.limits import Engine, Steps
from builders.types import BuildLimits

LIMITS = BuildLimits(seconds=60, memory=64 << 20, disk=64 << 20, processes=20)
STEP = "lftrwe40fztxuipepnkc0up7j"
NESTED = f"system.slice:docker:{STEP}"


def unified(root: Path) -> Path:
    root.mkdir()
    (root / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    return root


def group(folder: Path, *files: str) -> Path:
    folder.mkdir(parents=True)
    for name in files or ("memory.max", "memory.swap.max", "pids.max", "cpu.max", "cpu.weight"):
        (folder / name).write_text("max\n")
    return folder


def values(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def test_builds_have_a_parent_that_holds_nothing_else(tmp_path: Path) -> None:
    """The systemd driver's own is the slice of all services: a limit on it would be one on the machine."""
    request = client.Request(tmp_path, tmp_path, tmp_path, "mark", cgroup_parent=limits.PARENT)
    line = client.argv("docker", request, {})
    assert f"{line[line.index('--cgroup-parent') + 1]}".strip("/") == Engine(tmp_path).all_builds.path
    assert "--cgroup-parent" not in client.argv("docker", client.Request(tmp_path, tmp_path, tmp_path, "m"), {})


def test_an_image_is_named_and_packed_only_where_that_is_free_or_needed(tmp_path: Path) -> None:
    request = client.Request(tmp_path, tmp_path, tmp_path, "mark", name="spaces-new:1-ab")
    line = client.argv("docker", request, {})
    assert line[line.index("--tag") + 1] == "spaces-new:1-ab"
    line = client.argv("docker", replace(request, packed=False), {})
    assert "--tag" not in line
    kind, name, *more = line[line.index("--output") + 1].split(",")
    assert (kind, name, set(more)) == (
        "type=image", "name=docker.io/library/spaces-new:1-ab", {"unpack=true", "compression=uncompressed"}
    )  # fmt: skip


def test_all_builds_together_are_limited_in_version_2(tmp_path: Path) -> None:
    root = unified(tmp_path / "cgroup")
    together = group(root / "spaces-builds")
    limits.limit_all(Engine(tmp_path, "systemd", cgroups=root), memory=100, processes=7, cpus=1.5)
    for folder in (root, together):
        assert (folder / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"
    found = values(together)
    assert (found["memory.max"], found["memory.swap.max"], found["pids.max"]) == ("100", "0", "7")
    assert (found["cpu.max"], found["cpu.weight"]) == ("150000 100000", "12")


@pytest.mark.parametrize(
    ("path", "place"),
    [
        (f"/spaces-builds/buildkit/{STEP}", f"spaces-builds/buildkit/{STEP}"),
        (f"/docker/buildkit/{STEP}", f"docker/buildkit/{STEP}"),
        pytest.param(NESTED, f"system.slice/{NESTED}", id="version 2: beside the daemon's"),
        pytest.param(NESTED, f"system.slice/docker.service/{NESTED}", id="below the daemon's"),
    ],
)
def test_a_step_is_limited_wherever_the_engine_has_put_it(tmp_path: Path, path: str, place: str) -> None:
    root = unified(tmp_path / "cgroup")
    engine = Engine(tmp_path, "systemd", cgroups=root)
    assert not engine.groups(path).limit(memory=LIMITS.memory, processes=LIMITS.processes), "it is not there yet"
    assert engine.groups(path).kill(), "nothing of others is killed for it"
    step = group(root / place)
    assert engine.groups(path).folder("memory") == step
    assert engine.groups(path).limit(memory=LIMITS.memory, processes=LIMITS.processes)
    found = values(step)
    assert (found["memory.max"], found["pids.max"]) == (str(LIMITS.memory), str(LIMITS.processes))


def test_in_version_1_it_is_found_by_its_controllers(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    for controller, file in (("memory", "memory.limit_in_bytes"), ("pids", "pids.max")):
        group(root / controller / "system.slice/docker.service" / NESTED, file)
    found = Engine(tmp_path, "systemd", cgroups=root).groups(NESTED)
    assert found.limit(memory=LIMITS.memory, processes=LIMITS.processes)
    assert (found.folder("pids") / "pids.max").read_text() == str(LIMITS.processes)
    assert (found.folder("memory") / "memory.limit_in_bytes").read_text() == str(LIMITS.memory)


def test_a_kernel_that_does_not_account_for_swap_limits_all_else(tmp_path: Path) -> None:
    root = unified(tmp_path / "cgroup")
    step = group(root / "docker/buildkit" / STEP, "memory.max", "pids.max")
    found = Engine(tmp_path, cgroups=root).groups(f"/docker/buildkit/{STEP}")
    assert found.limit(memory=LIMITS.memory, processes=LIMITS.processes)
    assert values(step) == {"memory.max": str(LIMITS.memory), "pids.max": str(LIMITS.processes)}


# --- the steps of one build ----------------------------------------------------------------------------------------
@pytest.fixture
def steps(tmp_path: Path) -> Steps:
    """Those of a build one step of which has begun: it is written down, and has no group yet."""
    if os.geteuid() != 0:
        pytest.skip("only root looks at an engine's steps")
    folder = tmp_path / "buildkit/executor" / STEP
    folder.mkdir(parents=True)
    config = {"process": {"env": ["NO_PROXY=mine"]}, "linux": {"cgroupsPath": NESTED}, "mounts": []}
    (folder / "config.json").write_text(json.dumps(config))
    engine = Engine(tmp_path, "systemd", unified(tmp_path / "cgroup"))
    return Steps(engine, "mine", LIMITS, reserve=0)


def test_a_step_whose_group_is_made_late_is_limited_then(steps: Steps) -> None:
    steps.check()
    group(steps.engine.cgroups / "system.slice" / NESTED)
    steps.check()
    step = steps.engine.cgroups / "spaces-builds/moved" / STEP
    assert (step / "pids.max").read_text() == str(LIMITS.processes)
    (step / "memory.events").write_text("low 0\nhigh 0\nmax 41\noom 1\noom_kill 1\noom_group_kill 0\n")
    with pytest.raises(LimitHit) as caught:
        steps.check()
    assert caught.value.kind == "memory"


def test_what_joins_its_group_later_is_moved_then(steps: Steps) -> None:
    given = group(steps.engine.cgroups / "system.slice" / NESTED)
    steps.check()
    moved = steps.engine.cgroups / "spaces-builds/moved" / STEP
    assert not (moved / "cgroup.procs").exists()
    (given / "cgroup.procs").write_text("4711\n")
    steps.check()
    assert (moved / "cgroup.procs").read_text() == "4711"


def test_the_disk_is_looked_at_where_it_is_seen(tmp_path: Path) -> None:
    """An engine elsewhere, or a containerd whose folder is not mounted here, ends no build."""
    free = Engine(tmp_path).free
    assert free is not None
    assert free > 0
    assert Engine(tmp_path, images=tmp_path / "nowhere").free is not None
    nowhere = Engine(tmp_path / "nowhere", cgroups=tmp_path)
    assert nowhere.free is None
    Steps(nowhere, "mine", LIMITS, reserve=1 << 60).check_disk()
    with pytest.raises(LimitHit):
        Steps(Engine(tmp_path), "mine", LIMITS, reserve=1 << 60).check_disk()


def test_a_step_that_has_settled_is_looked_at_less_often(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look takes the processor from apps; what is new is looked at each time."""
    now = time.monotonic()
    monkeypatch.setattr("builders.containers.limits.time.monotonic", lambda: now)
    group(steps.engine.cgroups / "system.slice" / NESTED)
    steps.check()
    now += limits.SETTLED_SECONDS + 1
    steps.check()
    events = steps.engine.cgroups / "spaces-builds/moved" / STEP / "memory.events"
    events.write_text("oom_kill 1\n")
    now += limits.SETTLED_POLL / 2
    steps.check()
    now += limits.SETTLED_POLL / 2
    with pytest.raises(LimitHit):
        steps.check()


def test_a_step_that_the_engine_began_in_the_right_place_stays_there(steps: Steps) -> None:
    config = steps.engine.executor / STEP / "config.json"
    config.write_text(config.read_text().replace(NESTED, f"/spaces-builds/buildkit/{STEP}"))
    given = group(steps.engine.cgroups / "spaces-builds/buildkit" / STEP)
    (given / "cgroup.procs").write_text("4711\n")
    steps.check()
    assert (given / "pids.max").read_text() == str(LIMITS.processes)
    assert not (steps.engine.cgroups / "spaces-builds/moved").exists()


def test_a_step_that_stays_without_limits_is_told_once(
    steps: Steps, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "FOUND_SECONDS", -1.0)
    with caplog.at_level(logging.WARNING, limits.__name__):
        steps.check()
        steps.check()
    assert [NESTED in record.getMessage() for record in caplog.records] == [True]
