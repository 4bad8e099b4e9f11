"""`spaces run --docker`: an app's folder as the platform would build and start it, without a platform."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

from builders.containers.builder import DockerBuilder
from builders.containers.options import make_options
from builders.local_tree import LocalTree
from builders.types import BuildInputs
from runtime_images import load
from spaces_platform.cli.run_docker import run_argv
from spaces_platform.planning import plan_head
from tests.builders.conftest import Log, write
from tests.containers.builds import Builds, in_thread, require_runtime_images
from tests.containers.test_build_images import wait_until

SITE = {"README.md": "---\nsdk: static\n---\n", "index.html": "<h1>from a container</h1>"}
DEADLINE = 60


def test_the_command_line_takes_rights_away_and_names_the_port(tmp_path: Path) -> None:
    planned = plan_head(LocalTree(write(tmp_path, SITE)), load(), ("3.11",), containers=True)
    assert planned.plan is not None
    line = run_argv("docker", "unix:///x.sock", "name", "sha256:1", planned.plan, 0)
    assert line[:5] == ["docker", "--host", "unix:///x.sock", "run", "--rm"]
    assert f"--publish 127.0.0.1::{planned.plan.run.app_port} " in " ".join(line)
    for words in ("--cap-drop ALL", "--security-opt no-new-privileges", "--user 1000:1000", "--pids-limit 512"):
        assert words in " ".join(line)
    assert line[-1] == "sha256:1"
    assert "127.0.0.1:8123:" in " ".join(run_argv("docker", "e", "n", "i", planned.plan, 8123))


def test_a_folder_is_built_served_and_its_container_ended(engine_url: str, tmp_path: Path) -> None:
    builds = Builds(tmp_path, engine_url)
    require_runtime_images(builds)
    builds.close()
    app = write(tmp_path / "app", SITE)
    env = {**os.environ, "SPACES_DOCKER": engine_url, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    process = subprocess.Popen(
        [sys.executable, "-m", "spaces_platform.cli.main", "run", "--docker", str(app)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, start_new_session=True,
    )  # fmt: skip
    lines: list[str] = []
    ended = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        lines.extend(iter(process.stdout.readline, ""))
        ended.set()

    def live() -> str:
        found = re.search(r"Live:\S* (http://\S+)", "".join(lines))
        return found[1] if found else ""

    in_thread(read)
    try:
        wait_until(lambda: live() or ended.is_set(), DEADLINE)
        assert live(), lines
        with urllib.request.urlopen(live(), timeout=10) as answer:
            assert b"from a container" in answer.read()
    finally:
        os.kill(process.pid, signal.SIGINT)
        code = process.wait(DEADLINE)
    assert code == 0, lines
    builder = DockerBuilder(tmp_path / "cache/spaces/run-docker", make_options(load(), {}, engine=engine_url))
    kept = [record for _, record in builder.records.all()]
    assert len(kept) == 1
    assert not Builds(tmp_path / "b", engine_url).docker.containers.list(all=True, filters={"ancestor": kept[0].image})
    builder.remove(kept[0].ref)


def test_the_dockerfile_of_a_build_makes_the_same_elsewhere(engine_url: str, tmp_path: Path) -> None:
    """Kept beside the build and downloaded, in a checkout, with nothing but docker."""
    builds = Builds(tmp_path, engine_url)
    require_runtime_images(builds)
    try:
        files = {"README.md": "---\nsdk: gradio\n---\n", "app.py": "print('here')\n"}
        artifact = builds.build(files, inputs=BuildInputs("ada/app", "c"), log=Log())
        place = write(tmp_path / "checkout", files)
        (tmp_path / "Dockerfile").write_text(artifact.dockerfile)
        env = {"PATH": os.environ["PATH"], "DOCKER_BUILDKIT": "1", "HOME": str(tmp_path)}
        command = [
            builds.builder.client,
            "-H",
            engine_url,
            "build",
            "-q",
            "-f",
            str(tmp_path / "Dockerfile"),
            str(place),
        ]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        elsewhere = builds.docker.api.inspect_image(done.stdout.strip())
        assert elsewhere["RootFS"]["Layers"] == builds.inspect(artifact)["RootFS"]["Layers"]
        assert elsewhere["Config"]["Cmd"] == builds.inspect(artifact)["Config"]["Cmd"]
        builds.docker.api.remove_image(done.stdout.strip())
    finally:
        builds.close()
