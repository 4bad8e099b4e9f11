"""What a hostile build cannot do: keep secrets in an image, use more than it may, reach what is not its own."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from builders.containers.groups import Groups
from builders.types import BuildCancelled, BuildError, BuildInputs
from tests.builders.conftest import Log
from tests.containers.builds import BASE, LIMITS, Builds, builds_on, in_thread, ours
from tests.containers.test_build_images import wait_until
from tests.process.harness import STRETCH
from tests.services.engine import cli

SECRET = "s3cr3t-of-ada-0123456789"
GIVEN = BuildInputs("ada/app", "c", secrets={"TOKEN": SECRET, "SHORT": "abc"})
MOUNT = "RUN --mount=type=secret,id=TOKEN,required=true"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="limits and fences are put up by root")


@pytest.fixture
def builds(engine_url: str, tmp_path: Path) -> Iterator[Builds]:
    with builds_on(tmp_path, engine_url) as made:
        yield made


def refused(builds: Builds, text: str, inputs: BuildInputs = GIVEN) -> BuildError:
    log = Log()
    with pytest.raises(BuildError) as caught:
        builds.dockerfile(text, inputs=inputs, log=log)
    shown = " ".join([*log.lines, caught.value.cause, caught.value.fix, *caught.value.evidence])
    assert SECRET not in shown
    return caught.value


# --- secrets -------------------------------------------------------------------------------------------------------
def test_a_secret_is_a_file_in_one_step_and_nowhere_else(builds: Builds) -> None:
    log = Log()
    seen: list[str] = []
    stop = threading.Event()
    watcher = in_thread(lambda: watch_command_lines(seen, stop))
    artifact = builds.dockerfile(
        f"{MOUNT} wc -c < /run/secrets/TOKEN > /size && cat /run/secrets/TOKEN && sleep 0.3\n"
        "RUN ls -A /run/secrets > /left 2>&1 || true\n",
        inputs=GIVEN,
        log=log,
    )
    stop.set()
    watcher.join(5)
    assert builds.run(artifact, "cat", "/size") == f"{len(SECRET)}\n"
    assert "***" in log.lines
    assert any("docker" in line and "build" in line for line in seen)
    assert not [line for line in seen if SECRET in line]
    said = [*log.lines, artifact.dockerfile, artifact.sbom, str(builds.inspect(artifact))]
    said.append(str(builds.docker.api.history(artifact.ref.removeprefix("image:"))))
    assert SECRET not in " ".join(said)
    kept = [path for path in (builds.root / "images").rglob("*") if path.is_file()]
    assert kept
    assert not [path for path in kept if SECRET.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (f"{MOUNT} (echo one; cat /run/secrets/TOKEN) > /home/.env\n", "home/.env, line 2"),
        (f"{MOUNT} base64 -w0 < /run/secrets/TOKEN > /kept\n", "kept, line 1"),
        (f'{MOUNT} mkdir /d && touch "/d/$(cat /run/secrets/TOKEN)"\n', "the name of d/***"),
        (f'{MOUNT} ln -s "$(cat /run/secrets/TOKEN)" /link\n', "the link link"),
        (f"{MOUNT} cp /run/secrets/TOKEN /gone\nRUN rm /gone\n", "gone, line 1"),
        (f"{MOUNT} head -c 6000000 /dev/zero > /big && cat /run/secrets/TOKEN >> /big\n", "big, line 1"),
        (f"ENV KEY={SECRET}\n", "the image's configuration"),
        (f"RUN echo {SECRET} | wc -c\n", "the image's history"),
    ],
)
def test_a_secret_in_the_image_fails_the_build_with_its_place(builds: Builds, text: str, place: str) -> None:
    before = ours(builds)
    error = refused(builds, text)
    assert error.reason == "secret_in_image"
    assert f"TOKEN is in the image: {place}" in error.cause
    assert not list(builds.builder.records.all())
    assert not [id for id in ours(builds) - before if builds.docker.api.inspect_image(id)["RepoTags"]]


def test_a_secret_in_the_repository_is_found_by_file_and_line(builds: Builds) -> None:
    with pytest.raises(BuildError) as caught:
        builds.dockerfile("COPY . /app\n", files={"config.py": f"a = 1\nKEY = '{SECRET}'\n"}, inputs=GIVEN)
    assert "app/config.py, line 2" in caught.value.cause


def test_layers_are_looked_through_without_the_engines_disk_as_well(
    builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(builds.builder.machine), "is_ours", property(lambda _self: False))
    error = refused(builds, f"{MOUNT} (echo one; cat /run/secrets/TOKEN) > /kept\n")
    assert "kept, line 2" in error.cause
    assert builds.dockerfile("RUN echo fine\n", inputs=GIVEN).ref


def test_a_layer_is_looked_through_once_for_the_same_secrets(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    from builders.containers import scan

    looked: list[Path] = []
    real = scan.layer

    def counting(root: Path, needles: list[scan.Needle], deadline: float) -> scan.Hit | None:
        looked.append(root)
        return real(root, needles, deadline)

    monkeypatch.setattr(scan, "layer", counting)
    builds.dockerfile("RUN echo below > /below\nCOPY . /app\n", files={"a": "1"}, inputs=GIVEN)
    first = len(looked)
    builds.dockerfile("RUN echo below > /below\nCOPY . /app\n", files={"a": "2"}, inputs=GIVEN)
    assert (first, len(looked)) == (2, 3)
    # A changed value was never looked for: everything is read again.
    changed = replace(GIVEN, secrets={"TOKEN": "another-secret-value"})
    builds.dockerfile("RUN echo below > /below\nCOPY . /app\n", files={"a": "2"}, inputs=changed)
    assert len(looked) == 5


# --- limits --------------------------------------------------------------------------------------------------------
HOGS = {
    "memory": ("RUN head -c 3G /dev/zero | tail | sleep 5\n", "out_of_memory", "256 MiB"),
    "processes": ("RUN for i in $(seq 400); do sleep 4713 & done; wait\n", "too_many_processes", "60 processes"),
    "disk": ("RUN for i in $(seq 99); do head -c 9M /dev/zero > /f$i; done; sleep 60\n", "disk_limit", "128 MiB"),
    "cache": (
        "RUN --mount=type=cache,target=/c for i in $(seq 99); do head -c 9M /dev/zero > /c/f$i; done; sleep 60\n",
        "disk_limit",
        "128 MiB",
    ),
    "time": ("RUN sleep 4713 & sleep 4713\n", "build_timeout", "8 seconds"),
}


@as_root
@pytest.mark.parametrize("name", HOGS)
def test_a_limit_ends_the_build_and_is_named(name: str, engine_url: str, tmp_path: Path) -> None:
    text, reason, words = HOGS[name]
    seconds = 8 if name == "time" else int(60 * STRETCH)
    limits = replace(LIMITS, seconds=seconds, memory=256 << 20, disk=128 << 20, processes=60)
    with builds_on(tmp_path, engine_url, limits=limits) as builds:
        began = time.monotonic()
        error = refused(builds, text)
        assert (error.reason, words in error.cause) == (reason, True), error.cause
        assert time.monotonic() - began < 30 * STRETCH
        wait_until(lambda: not steps(), 10)


@as_root
def test_all_builds_together_are_bounded(engine_url: str, tmp_path: Path) -> None:
    over = threading.Event()
    with builds_on(tmp_path, engine_url, cpus=1.5, slots=9) as builds:
        groups = builds.builder.machine.all_builds

        def limited() -> list[int]:
            """Members of the groups below that have the limit of a single build."""
            file = "memory.max" if groups.unified else "memory.limit_in_bytes"
            found: list[int] = []
            for path in groups.folder("memory").glob(f"*/*/{file}"):
                with suppress(OSError):  # of another build, which has ended
                    if path.read_text().strip() == str(LIMITS.memory):
                        found += map(int, (path.parent / "cgroup.procs").read_text().split())
            return found

        def build() -> None:
            with pytest.raises(BuildCancelled):
                builds.dockerfile("RUN sleep 4713\n", cancelled=over.is_set)

        worker = in_thread(build)
        try:
            wait_until(lambda: set(limited()) & set(map(int, steps())), 30)
        finally:
            over.set()
            worker.join(60)
        if groups.unified:
            assert read(groups.folder("memory") / "memory.max") == 9 * LIMITS.memory
            assert (groups.folder("cpu") / "cpu.max").read_text().split() == ["150000", "100000"]
        else:
            assert read(groups.folder("memory") / "memory.limit_in_bytes") == 9 * LIMITS.memory
            assert read(groups.folder("cpu") / "cpu.cfs_quota_us") == 150_000
        assert read(groups.folder("pids") / "pids.max") == 9 * LIMITS.processes


@as_root
def test_builds_give_way_to_apps_and_are_not_starved(engine_url: str, tmp_path: Path) -> None:
    """With a weight where the kernel has no idle groups; else idle, until others leave it nothing."""
    over = threading.Event()
    with builds_on(tmp_path, engine_url, cpus=float(os.cpu_count() or 1)) as builds:
        groups = builds.builder.machine.all_builds
        idle = groups.folder("cpu") / "cpu.idle"

        def build() -> None:
            with pytest.raises(BuildCancelled):
                builds.dockerfile("RUN while :; do :; done\n", cancelled=over.is_set)

        worker = in_thread(build)
        others: list[subprocess.Popen[bytes]] = []
        try:
            uses(groups, 0.5)
            if not idle.exists():
                weight = "cpu.weight" if groups.unified else "cpu.shares"
                assert read(groups.folder("cpu") / weight) < 100
                return
            wait_until(lambda: read(idle) == 1, 30)
            others = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(os.cpu_count() or 1)]
            wait_until(lambda: read(idle) == 0, 30)
            uses(groups, 0.5)
        finally:
            for one in others:
                one.kill()
                one.wait()
            over.set()
            worker.join(60)


# --- hostile Dockerfiles that no text shows ------------------------------------------------------------------------
def test_an_image_with_onbuild_is_not_built_upon(builds: Builds, tmp_path: Path) -> None:
    place = tmp_path / "base"
    place.mkdir()
    (place / "Dockerfile").write_text(f"FROM {BASE}\nONBUILD RUN echo mine\n")
    name = "builder-tests/onbuild:1"
    done = cli(builds.options.engine, "build", "-q", "-t", name, str(place))
    assert done.returncode == 0, done.stderr
    try:
        with pytest.raises(BuildError, match="ONBUILD"):
            builds.build({"README.md": "---\nsdk: docker\n---\n", "Dockerfile": f"FROM {name}\n"})
    finally:
        builds.docker.api.remove_image(name)


@pytest.mark.parametrize(
    "mount",
    [
        "type=bind,source=/var/run,target=/x",
        "type=bind,source=../../../../../../../../var/run,target=/x",
        "type=bind,from=scratch,source=/,target=/x",
    ],
)
def test_no_mount_shows_the_host(mount: str, builds: Builds) -> None:
    """T08: sources lie in the app's own tree, whatever they are called."""
    text = f"RUN --mount={mount} if [ -e /x/docker.sock ]; then echo LEAK; fi; ls -A /x || true\n"
    log = Log()
    try:
        builds.dockerfile(text, files={"sub/file": "mine"}, log=log)
    except BuildError as error:
        assert error.reason in ("copy_missing", "image_not_found", "registry_unreachable"), error.cause  # noqa: PT017
    assert "LEAK" not in log.lines


def test_an_image_that_is_not_there_is_named(builds: Builds) -> None:
    with pytest.raises(BuildError) as caught:
        builds.build({"README.md": "---\nsdk: docker\n---\n", "Dockerfile": "FROM no-such-thing-by-anyone:1\n"})
    assert caught.value.reason in ("image_not_found", "registry_unreachable")
    assert "no-such-thing-by-anyone" in caught.value.cause


def watch_command_lines(seen: list[str], stop: threading.Event) -> None:
    known: set[str] = set()
    while not stop.wait(0.01):
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                except OSError:
                    continue
                line = text.replace(b"\0", b" ").decode(errors="replace")
                if line not in known and int(entry.name) != os.getpid():
                    known.add(line)
                    seen.append(line)


def steps() -> list[str]:
    """Processes of the hogs above that are left."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if b"sleep\x004713" in line:
            found.append(entry.name)
    return found


def uses(groups: Groups, seconds: float) -> None:
    """Wait until they have had that much more of the processors."""
    before = groups.processor_seconds()
    wait_until(lambda: groups.processor_seconds() > before + seconds, 60)


def read(path: Path) -> int:
    return int(path.read_text())
