"""The Dockerfiles of plans: golden files, and that no text of a repository becomes an instruction."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from builders.config import read_config
from builders.containers.parse import parse
from builders.dockerfile import Images, render
from builders.local_tree import LocalTree
from builders.plan import make_plan
from builders.types import BuildError, BuildPlan

from .conftest import write
from .test_plan import CASES as PLANS
from .test_plan import CATALOGUE, PYTHONS, front

GOLDEN = Path(__file__).parent / "golden" / "dockerfiles"
IMAGES = Images("spaces/run:1", "spaces/build:1", "spaces/static:1", "spaces/site:1", "3.11")
CASES = {name: files for name, files in PLANS.items() if name != "docker"} | {
    "static-packages-txt": {
        "README.md": front(sdk="static", app_file="out/a.html", app_build_command="make 'the site'"),
        "packages.txt": "pandoc\n",
    },
    "gradio-quotes": {
        "README.md": front(sdk="gradio"), "app.py": "x",
        "requirements.txt": "six ; python_version >= '3'\n--find-links https://example.org/$HOME/`id`\n",
    },
}  # fmt: skip


def plan_of(root: Path, files: Mapping[str, str | bytes]) -> BuildPlan:
    tree = LocalTree(write(root, files))
    config = read_config(tree.read("README.md").decode(), [entry.path for entry in tree.entries()])
    return make_plan(tree, config, CATALOGUE, available_pythons=PYTHONS, containers=True)


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str, tmp_path: Path) -> None:
    """`UPDATE_GOLDEN=1 pytest tests/builders/test_dockerfiles.py` writes them; read the difference."""
    found = render(plan_of(tmp_path, CASES[name]), IMAGES, "scope", compile_app=name == "gradio-all")
    path = GOLDEN / f"{name}.Dockerfile"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(found)
    assert found == path.read_text()


@pytest.mark.parametrize("name", CASES)
def test_every_line_is_an_instruction_that_was_meant(name: str, tmp_path: Path) -> None:
    text = render(plan_of(tmp_path, CASES[name]), IMAGES, "scope")
    names = [instruction.name for instruction in parse(text).instructions]
    assert set(names) <= {"FROM", "ARG", "ENV", "USER", "RUN", "COPY", "EXPOSE", "CMD"}
    assert names[-1] == "CMD"
    assert names.count("FROM") == text.count("\nFROM ") + text.startswith("FROM ")


HOSTILE = [
    "six\x0bRUN id",
    "six \\\x0cFROM evil",
    "six\x85RUN id",
    "six\u2028RUN id",
    "a'\n; id; '",
    "' \\\nRUN id #",
    "$(id)",
    "`id`",
    "# syntax=evil/frontend",
    "six # comment\\",
    '-r "x\'y".txt',
]


@pytest.mark.parametrize("line", HOSTILE)
def test_requirements_never_become_instructions_or_commands(line: str, tmp_path: Path) -> None:
    files = {"README.md": front(sdk="gradio"), "app.py": "x", "requirements.txt": f"{line}\n"}
    plain = render(plan_of(tmp_path / "a", {**files, "requirements.txt": "six\n"}), IMAGES, "scope")
    try:
        text = render(plan_of(tmp_path / "b", files), IMAGES, "scope")
    except BuildError as error:
        assert error.reason == "bad_requirement"  # noqa: PT017
        return
    assert [i.name for i in parse(text).instructions] == [i.name for i in parse(plain).instructions]
    # What a shell makes of it: the requirement file of the repository, and nothing else.
    run = next(i.text for i in parse(text).instructions if "uv pip install" in i.text)
    written = re.search(r"mkdir -p .*?> \S+", run)
    assert written is not None
    script = written[0].replace("/tmp/spaces", str(tmp_path / "out"))
    done = subprocess.run(["sh", "-euc", script], capture_output=True, text=True, timeout=10)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    bare = re.sub(r"(^|\s)#.*", "", line.replace("\\", " "))  # without comments and continuations
    assert (tmp_path / "out/0/requirements.txt").read_text().replace("\\", " ").split() == bare.split()


def test_long_requirement_files_are_written_in_parts(tmp_path: Path) -> None:
    lines = [f"package-{n}==1.0 --hash=sha256:{'0' * 64}" for n in range(2000)]
    files = {"README.md": front(sdk="gradio"), "app.py": "x", "requirements.txt": "\n".join(lines) + "\n"}
    text = render(plan_of(tmp_path, files), IMAGES, "scope")
    runs = [instruction for instruction in parse(text).instructions if "printf" in instruction.text]
    assert len(runs) > 3
    assert all(len(instruction.text) < 65_000 for instruction in runs)
    assert all(line in text for line in lines)
    assert text.count(">> /tmp/spaces/0/requirements.txt") == len(runs) - 1


@pytest.mark.parametrize(
    "name", ["ffmpeg -o Dpkg::Pre-Invoke::=id", "--allow-x", "a;id", "a$(id)", "FFMPEG", "../x.deb", "a" * 200, "a/b"]
)
def test_packages_txt_holds_names_only(name: str, tmp_path: Path) -> None:
    files = {"README.md": front(sdk="gradio"), "app.py": "x", "packages.txt": f"curl\n{name}\n"}
    with pytest.raises(BuildError) as caught:
        plan_of(tmp_path, files)
    assert caught.value.reason == "bad_system_package"


def test_system_packages_are_part_of_the_environment(tmp_path: Path) -> None:
    files = {"README.md": front(sdk="gradio"), "app.py": "x"}
    plain = plan_of(tmp_path / "a", files)
    first = plan_of(tmp_path / "b", {**files, "packages.txt": "# tools\nffmpeg libgl1\nffmpeg\n"})
    second = plan_of(tmp_path / "c", {**files, "packages.txt": "ffmpeg\n"})
    assert first.environment.system == ("ffmpeg", "libgl1")
    assert not first.needs_container
    assert len({plain.environment.id, first.environment.id, second.environment.id}) == 3


def test_another_python_is_fetched_and_taken_along(tmp_path: Path) -> None:
    files = {"README.md": front(sdk="gradio", python_version='"3.12"'), "app.py": "x"}
    text = render(plan_of(tmp_path, files), IMAGES, "scope")
    assert "uv venv --quiet --no-project --python 3.12 /opt/env" in text
    assert "COPY --from=environment --chown=0:0 /opt/python /opt/python" in text


def test_a_site_in_a_strange_folder_is_refused(tmp_path: Path) -> None:
    files = {"README.md": front(sdk="static", app_file="'a$HOME/index.html'", app_build_command="make")}
    with pytest.raises(BuildError) as caught:
        render(plan_of(tmp_path, files), IMAGES, "scope")
    assert caught.value.reason == "bad_path"
