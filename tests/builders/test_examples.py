"""Each example is built and started as the platform does it, and answers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import runtime_images
from builders import __main__ as shell
from builders.config import read_config
from builders.local_tree import LocalTree
from builders.plan import PLATFORM_PYTHON, make_plan
from builders.types import BuildError, BuildPlan
from builders.uv import index_settings
from builders.venv import VenvBuilder

from .conftest import Log

EXAMPLES = Path(__file__).parents[2] / "examples"


def plan_of(name: str, builder: VenvBuilder) -> tuple[LocalTree, BuildPlan]:
    tree = LocalTree(EXAMPLES / name)
    config = read_config(tree.read("README.md").decode(), [entry.path for entry in tree.entries()])
    assert config.warnings == ()
    plan = make_plan(tree, config, runtime_images.load(), available_pythons=builder.available_pythons)
    assert plan.warnings == ()
    return tree, plan


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> VenvBuilder:
    return VenvBuilder(tmp_path_factory.mktemp("examples"), index=index_settings(os.environ))


@contextmanager
def running(builder: VenvBuilder, ref: str, plan: BuildPlan, home: Path) -> Iterator[str]:
    """The app as the platform starts it: argv and variables of the plan, nothing inherited."""
    local = builder.resolve(ref)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]

    def filled(text: str) -> str:
        return text.replace("{PORT}", str(port)).replace(PLATFORM_PYTHON, sys.executable)

    search = f"{local.environment_dir}/bin:/usr/bin:/bin"
    env = {name: filled(value) for name, value in plan.run.env.items()} | {"PATH": search, "HOME": str(home)}
    if local.python_path:
        env["PYTHONPATH"] = str(local.python_path)
    argv = [filled(part) for part in plan.run.argv]
    if local.environment_dir:
        argv[0] = str(local.environment_dir / "bin" / argv[0])
    with (home / "log").open("w") as log:
        process = subprocess.Popen(
            argv, cwd=local.app_dir, env=env, stdout=log, stderr=subprocess.STDOUT, process_group=0
        )
    try:
        _wait(f"http://127.0.0.1:{port}/", process, home / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except (urllib.error.URLError, ConnectionError):
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(log.read_text()) from None
            time.sleep(0.05)
        else:
            return


def get(url: str, data: bytes | None = None) -> str:
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        text: str = answer.read().decode()
    return text


def test_static_example(builder: VenvBuilder, tmp_path: Path) -> None:
    tree, plan = plan_of("static-site", builder)
    artifact = builder.build(plan, tree, owner="ada", log=Log(), cancelled=lambda: False)
    with running(builder, artifact.ref, plan, tmp_path) as url:
        assert "Plain files" in get(f"{url}/")
        assert "--leaf" in get(f"{url}/style.css")


def test_docker_example_says_what_it_needs(builder: VenvBuilder) -> None:
    tree = LocalTree(EXAMPLES / "fastapi-docker")
    config = read_config(tree.read("README.md").decode(), [entry.path for entry in tree.entries()])
    plan = make_plan(tree, config, runtime_images.load())
    with pytest.raises(BuildError, match="needs a container engine"):
        builder.build(plan, tree, owner="ada", log=Log(), cancelled=lambda: False)


def test_shell_prints_a_plan_and_builds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.main([str(EXAMPLES / "gradio-hello"), "--dry-run"]) == 0
    assert "python app.py" in capsys.readouterr().out
    assert shell.main([str(EXAMPLES / "static-site"), "--into", str(tmp_path / "b"), "--json"]) == 0
    assert '"ref": "venv:local/' in capsys.readouterr().out
    (tmp_path / "bad").mkdir()
    assert shell.main([str(tmp_path / "bad"), "--dry-run"]) == 1
    assert "Missing configuration in README" in capsys.readouterr().err
