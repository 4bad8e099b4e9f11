"""Images: what is in them, what is built again and what is not, and who may reuse whose steps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from builders.types import BuildCancelled, BuildError, BuildInputs
from tests.builders.conftest import Log
from tests.containers.builds import BASE, DOCKER, Builds, builds_on, in_thread, ours, require_runtime_images
from tests.process.harness import STRETCH

ROOT = Path(__file__).resolve().parents[2]
GRADIO = {"README.md": "---\nsdk: gradio\n---\n", "app.py": "print('one')\n"}


@pytest.fixture
def builds(engine_url: str, tmp_path: Path) -> Iterator[Builds]:
    with builds_on(tmp_path, engine_url) as made:
        yield made


# --- what is in an image -------------------------------------------------------------------------------------------
def test_a_dockerfile_is_built_with_labels_and_files(builds: Builds) -> None:
    log = Log()
    artifact = builds.dockerfile("COPY . /app\nRUN echo made > /made\n", files={"a.txt": "hello"}, log=log)
    assert artifact.ref.startswith("image:sha256:")
    assert builds.builder.exists(artifact.ref)
    labels = builds.inspect(artifact)["Config"]["Labels"]
    assert labels["org.opencontainers.image.revision"] == "c0ffee"
    assert labels["spaces.space"] == "ada/app"
    assert len(labels["spaces.plan"]) == 40
    assert builds.run(artifact, "cat", "/app/a.txt", "/made") == "hellomade\n"
    assert "echo made > /made" in artifact.dockerfile
    assert log.said("3/3 RUN echo made")


def test_the_python_sdks_get_environment_app_and_hook(builds: Builds) -> None:
    require_runtime_images(builds)
    log = Log()
    artifact = builds.build({**GRADIO, "lib/a.py": "x = 1\n", ".dockerignore": "lib\n"}, log=log)
    script = "import sys, os; print(sys.prefix, os.getuid(), os.getcwd(), sys.modules['spaces.reloading'].__name__)"
    found = builds.run(artifact, "python", "-c", script).split()
    assert found == ["/opt/env", "1000", "/home/user/app", "spaces.reloading"]
    # The repository's .dockerignore is for the owner's own builds: the whole tree is the app.
    assert builds.run(artifact, "cat", "lib/a.py") == "x = 1\n"
    document = json.loads(artifact.sbom)
    assert document["metadata"]["component"]["name"] == "ada/app"
    assert any(row["purl"].startswith("pkg:deb/debian/python3.11@") for row in document["components"])


def test_a_dockerignore_holds_for_dockerfiles(builds: Builds) -> None:
    files = {".dockerignore": "private\n", "private/key": "k", "public": "p"}
    artifact = builds.dockerfile("COPY . /app\n", files=files)
    assert sorted(builds.run(artifact, "ls", "-A", "/app").split()) == [
        ".dockerignore",
        "Dockerfile",
        "README.md",
        "public",
    ]


def test_variables_are_build_arguments_where_they_are_declared(builds: Builds) -> None:
    inputs = BuildInputs("ada/app", "c", {"GREETING": "hi there", "OTHER": "x", "BUILDKIT_SYNTAX": "evil/image"})
    artifact = builds.dockerfile(
        "ARG GREETING=none\nARG UNSET=default\nARG BUILDKIT_SYNTAX\nRUN echo $GREETING $UNSET $OTHER > /said\n",
        inputs=inputs,
    )
    assert builds.run(artifact, "cat", "/said") == "hi there default\n"


def test_a_package_of_the_repository_is_installed_and_locked(builds: Builds) -> None:
    require_runtime_images(builds)
    from tests.builders.conftest import package

    artifact = builds.build({**GRADIO, "requirements.txt": "./own\n", **package("own", "return 'built'")})
    assert builds.run(artifact, "python", "-c", "import own; print(own.OUT)") == "built\n"
    assert "own" in artifact.lock


def test_a_static_site_is_served_from_its_image(builds: Builds) -> None:
    require_runtime_images(builds)
    artifact = builds.build({"README.md": "---\nsdk: static\n---\n", "index.html": "<p>hello</p>"})
    script = "import runtime_images.static.server as s; print(open('index.html').read())"
    assert builds.run(artifact, "python3", "-c", script) == "<p>hello</p>\n"


# --- what is built again, and by whom ------------------------------------------------------------------------------
def test_the_same_plan_is_built_once(builds: Builds) -> None:
    first = builds.dockerfile("RUN date +%N > /when\n")
    before = ours(builds)
    again = builds.dockerfile("RUN date +%N > /when\n")
    assert (again.ref, again.reused_environment) == (first.ref, True)
    assert again.sbom == first.sbom
    assert ours(builds) == before


def test_the_same_plan_at_once_gives_one_image(builds: Builds) -> None:
    refs: list[str] = []
    workers = [
        in_thread(lambda: refs.append(builds.dockerfile("RUN sleep 0.5; date +%N > /when\n").ref)) for _ in range(3)
    ]
    for worker in workers:
        worker.join(60)
    assert len(refs) == 3
    assert len(set(refs)) == 1


def test_a_push_of_code_installs_nothing_also_for_another_space_of_the_owner(builds: Builds) -> None:
    require_runtime_images(builds)
    first = builds.build(GRADIO)
    log = Log()
    second = builds.build({**GRADIO, "app.py": "print('two')\n"}, log=log)
    other = builds.build({**GRADIO, "app.py": "print('3')\n"}, inputs=BuildInputs("ada/other", "c"))
    assert second.reused_environment
    assert other.reused_environment
    assert len({first.ref, second.ref, other.ref}) == 3
    layers = [builds.inspect(one)["RootFS"]["Layers"] for one in (first, second, other)]
    assert layers[0][:-1] == layers[1][:-1] == layers[2][:-1]
    stranger = builds.build({**GRADIO, "app.py": "print('two')\n"}, owner="8", inputs=BuildInputs("eve/app", "c"))
    assert not stranger.reused_environment


def test_a_factory_rebuild_reuses_nothing(builds: Builds) -> None:
    text = "RUN cat /proc/sys/kernel/random/uuid > /when\n"
    first = builds.run(builds.dockerfile(text), "cat", "/when")
    second = builds.run(builds.dockerfile(text + "COPY . /app\n"), "cat", "/when")
    rebuilt = builds.run(builds.dockerfile(text, salt="2"), "cat", "/when")
    assert first == second
    assert rebuilt != first


def test_no_step_and_no_cache_of_another_space_is_ever_reused(builds: Builds) -> None:
    """T09: a secret enters no cache key, so an equal Dockerfile could be given a poisoned step."""
    text = (
        "RUN --mount=type=secret,id=SETUP --mount=type=cache,id=pip,target=/cache "
        "cat /cache/seed 2>/dev/null; sh /run/secrets/SETUP; cat /cache/seed > /result\n"
    )

    def result(owner: str, space: str, script: str) -> str:
        inputs = BuildInputs(space, "c", secrets={"SETUP": script})
        return builds.run(builds.dockerfile(text, owner=owner, inputs=inputs), "cat", "/result")

    assert result("8", "eve/app", "echo trojan > /cache/seed") == "trojan\n"
    assert result("7", "ada/app", "[ -e /cache/seed ] || echo clean > /cache/seed") == "clean\n"
    assert result("7", "ada/other", "[ -e /cache/seed ] || echo own > /cache/seed") == "own\n"


# --- killed and cancelled ------------------------------------------------------------------------------------------
def test_a_cancelled_build_ends_its_steps_and_leaves_nothing(builds: Builds) -> None:
    before, cancel, log = ours(builds), threading.Event(), Log()
    caught: list[BaseException] = []

    def work() -> None:
        try:
            builds.dockerfile("RUN sleep 4711 & sleep 4711\n", log=log, cancelled=cancel.is_set)
        except BuildCancelled as error:
            caught.append(error)

    thread = in_thread(work)
    wait_until(lambda: sleepers("4711") == 2, 30)
    cancel.set()
    thread.join(15)
    assert caught
    assert sleepers("4711") == 0
    assert ours(builds) == before
    assert not list((builds.root / "images" / "work").iterdir())


def test_a_worker_that_is_killed_leaves_nothing_that_exists(builds: Builds, engine_url: str) -> None:
    before = ours(builds)
    files = {**DOCKER, "Dockerfile": f"FROM {BASE}\nRUN sleep 4712\n"}
    code = (
        "import json, sys\nfrom pathlib import Path\nfrom tests.containers.builds import Builds\n"
        "root, url, files = sys.argv[1:]\nBuilds(Path(root), url).build(json.loads(files))\n"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", code, str(builds.root), engine_url, json.dumps(files)], cwd=ROOT, start_new_session=True
    )
    try:
        wait_until(lambda: sleepers("4712") == 1, 30)
    finally:
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
    wait_until(lambda: sleepers("4712") == 0, 15)
    assert ours(builds) == before
    assert list((builds.root / "images" / "work").iterdir())
    builds.builder.records.sweep()
    assert not list((builds.root / "images" / "work").iterdir())
    assert not list(builds.builder.records.all())


# --- removing ------------------------------------------------------------------------------------------------------
def test_removed_is_gone_and_removing_the_absent_is_success(builds: Builds) -> None:
    artifact = builds.dockerfile("RUN echo 1 > /x\n")
    builds.builder.remove(artifact.ref)
    assert not builds.builder.exists(artifact.ref)
    builds.builder.remove(artifact.ref)
    assert not builds.builder.exists("venv:7/" + "0" * 40)
    assert not builds.builder.exists("image:sha256:" + "0" * 64)
    assert not builds.builder.exists("image:spaces/base:bookworm")
    assert builds.dockerfile("RUN echo 1 > /x\n").ref


def test_pruning_takes_what_killed_builds_left_and_nothing_that_has_a_record(
    builds: Builds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = builds.dockerfile("RUN echo kept > /x\n")
    left = builds.dockerfile("RUN echo left > /x\n")
    [key] = [key for key, record in builds.builder.records.all() if record.ref == left.ref]
    builds.builder.records.drop(key)
    monkeypatch.setattr("builders.containers.builder.LEFTOVER_SECONDS", -60)
    with builds_on(tmp_path / "other", builds.options.engine) as another:
        monkeypatch.setattr(another.builder.engine, "prune_cache", lambda _keep: 0)
        another.builder.prune()
        assert builds.builder.exists(left.ref), "it is for its own platform to remove"
    monkeypatch.setattr(builds.builder.engine, "prune_cache", lambda _keep: 0)
    builds.builder.prune()
    assert builds.builder.exists(kept.ref)
    assert not builds.builder.exists(left.ref)


def test_an_engine_that_is_away_is_not_a_missing_image(tmp_path: Path) -> None:
    from builders.types import BuilderUnavailable

    away = Builds(tmp_path, f"unix://{tmp_path}/no.sock")
    with pytest.raises(BuilderUnavailable):
        away.builder.exists("image:sha256:" + "0" * 64)
    with pytest.raises(BuilderUnavailable):
        away.build({**DOCKER, "Dockerfile": f"FROM {BASE}\n"})


def test_an_app_that_cannot_be_built_says_why(builds: Builds) -> None:
    with pytest.raises(BuildError) as caught:
        builds.dockerfile("WORKDIR /x\nENV A=1\nRUN true \\\n && echo working \\\n && exit 3\n")
    assert caught.value.reason == "step_failed"
    assert caught.value.cause.startswith("Dockerfile line 4: ")
    assert "exit code 3" in caught.value.cause


def sleepers(seconds: str) -> int:
    """Processes of this machine that sleep so long."""
    count = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                count += (entry / "cmdline").read_bytes() == f"sleep\0{seconds}\0".encode()
            except OSError:
                continue
    return count


def wait_until(true: object, seconds: float) -> None:
    assert callable(true)
    deadline = time.monotonic() + seconds * STRETCH
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
