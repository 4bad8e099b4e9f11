"""`python -m runtime_images` without an engine: finding a client, what is printed, what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import runtime_images
from runtime_images.engine import EngineError, find_client

NOWHERE = "unix:///nonexistent/docker.sock"


def command(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("SPACES_")} | environ
    return subprocess.run(
        [sys.executable, "-m", "runtime_images", *words],
        capture_output=True, text=True, timeout=60, cwd=runtime_images.PYTHON_PATH, env=env,
    )  # fmt: skip


def client(folder: Path, help_text: str, code: int = 0) -> str:
    """A program named docker that knows `build --help` only."""
    folder.mkdir()
    path = folder / "docker"
    path.write_text(
        f'#!/bin/sh\nif [ "$1 $2 $DOCKER_BUILDKIT" = "build --help 1" ]; then echo "{help_text}"; fi\nexit {code}\n'
    )
    path.chmod(0o755)
    return str(path)


def test_a_client_that_cannot_use_buildkit_is_passed_over(tmp_path: Path) -> None:
    client(tmp_path / "without-plugin", "ERROR: BuildKit is enabled but the buildx component is missing", code=1)
    client(tmp_path / "old", "Usage: docker build  --tag list")
    good = client(tmp_path / "good", "Usage: docker build  --secret stringArray")
    path = os.pathsep.join(str(tmp_path / name) for name in ("without-plugin", "old", "good"))
    assert find_client({"PATH": path + os.pathsep + "/bin"}) == good


def test_no_client_that_can(tmp_path: Path) -> None:
    bad = client(tmp_path / "bad", "Usage: docker build", code=1)
    with pytest.raises(EngineError, match=r"apt install docker\.io") as caught:
        find_client({"PATH": str(tmp_path / "bad")})
    assert bad in str(caught.value)


def test_no_client_at_all(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"No docker client here builds with BuildKit\. "):
        find_client({"PATH": str(tmp_path)})


def test_dockerfile_is_the_golden_one() -> None:
    done = command("dockerfile", "static")
    golden = Path(__file__).parent / "golden" / f"runtime-static-{runtime_images.load().images['static'].version}"
    assert done.stdout == Path(f"{golden}.Dockerfile").read_text()


def test_the_base_is_a_flag_or_the_setting() -> None:
    assert "ARG BASE=debian:bookworm-slim\n" in command("dockerfile", "python", "--base", "debian:bookworm-slim").stdout
    assert "ARG BASE=corp/base:1\n" in command("dockerfile", "python", SPACES_BASE_IMAGE="corp/base:1").stdout
    assert "ARG BASE=nvidia/cuda" in command("dockerfile", "cuda", SPACES_BASE_IMAGE="corp/base:1").stdout


def test_list_without_an_engine_is_the_catalogue(tmp_path: Path) -> None:
    done = command("list", "--json", PATH=str(tmp_path))
    rows = json.loads(done.stdout)
    assert [row["name"] for row in rows] == list(runtime_images.load().images)
    assert {row["status"] for row in rows} == {"unknown"}
    assert "apt install docker.io" in done.stderr
    assert done.returncode == 0


def test_list_for_another_python_has_the_images_that_depend_on_it(tmp_path: Path) -> None:
    rows = json.loads(command("list", "--json", "--python", "3.12", PATH=str(tmp_path)).stdout)
    assert {row["ref"].rsplit("-", 1)[1] for row in rows} == {"py3.12"}
    assert not [row for row in rows if row["name"].startswith("static")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dockerfile", "fortran"], "No image 'fortran'. There are: python,"),
        (["build", "fortran"], "No image 'fortran'"),
        (["build", "python", "--python", "2.7"], "Python '2.7' is not one of 3.10"),
        (["build", "python", "--apt-mirror", "ftp://x"], "apt mirror 'ftp://x' is not an http(s) URL"),
        (["build", "python", "--ca-bundle", "/nonexistent/ca.pem"], "/nonexistent/ca.pem"),
    ],
)
def test_refusals_name_what_is_wrong(words: list[str], said: str) -> None:
    done = command(*words)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert (done.returncode, done.stdout) == (1, "")


def test_an_engine_that_does_not_answer_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    client(folder, "--secret")
    (folder / "docker").write_text(
        '#!/bin/sh\n[ "$1" = build ] && echo --secret && exit\necho "Cannot connect to $DOCKER_HOST" >&2\nexit 1\n'
    )
    done = command("build", "static", "--docker", NOWHERE, PATH=f"{folder}:/bin")
    assert done.returncode == 1
    assert f"The engine at {NOWHERE} cannot be asked for" in done.stderr
    assert f"Cannot connect to {NOWHERE}" in done.stderr
