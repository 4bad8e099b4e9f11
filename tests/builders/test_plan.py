"""Plans: golden files, and what may and may not change an id."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import pytest

import runtime_images
from builders.config import read_config
from builders.local_tree import LocalTree
from builders.plan import make_plan
from builders.requirements_files import collect
from builders.types import BuildError, BuildPlan

from .conftest import write

GOLDEN = Path(__file__).parent / "golden"
CATALOGUE = runtime_images.parse(
    """
[python]
default = "3.11"
supported = ["3.10", "3.11", "3.12"]
[sdk.gradio]
version = "6.0.0"
packages = ["gradio[oauth]{version}", "spaces"]
[[sdk.gradio.compat]]
below = "5.0"
add = ["huggingface_hub<1"]
reason = "old"
[sdk.streamlit]
version = "1.60.0"
packages = ["streamlit{version}"]
[sdk.dash]
version = "4.0.0"
packages = ["dash{version}"]
[sdk.static]
version = ""
packages = []
[sdk.docker]
version = ""
packages = []
"""
)
PYTHONS = ("3.11", "3.11.7", "3.12", "3.12.1")


def plan_of(
    root: Path, files: Mapping[str, str | bytes], salt: str = "", pythons: tuple[str, ...] = PYTHONS
) -> BuildPlan:
    tree = LocalTree(write(root, files))
    paths = [entry.path for entry in tree.entries()]
    config = read_config(tree.read("README.md").decode(), paths)
    return make_plan(tree, config, CATALOGUE, available_pythons=pythons, salt=salt)


def front(**keys: str) -> str:
    return "---\n" + "".join(f"{key}: {value}\n" for key, value in keys.items()) + "---\n# body\n"


PROJECT = '[project]\nname = "a"\nversion = "1"\ndependencies = ["six>=1"]\n'
CASES: dict[str, dict[str, str | bytes]] = {
    "gradio-plain": {"README.md": front(sdk="gradio"), "app.py": "x"},
    "gradio-all": {
        "README.md": front(sdk="gradio", sdk_version='"5.9.1"', python_version='"3.12"', app_file="src/main.py",
                           base_path="/x", startup_duration_timeout="1h"),
        "src/main.py": "x",
        "pre-requirements.txt": "setuptools<81\n",
        "requirements.txt": "# wanted\npandas==2.2.3   # pinned\n\n-r more/extra.txt\ngradio>=4\n",
        "more/extra.txt": "six\n-c limits.txt\n",
        "more/limits.txt": "numpy<2\n",
    },
    "gradio-old": {
        "README.md": front(sdk="gradio", sdk_version="4.44.1"), "app.py": "x", "requirements.txt": "gradio==4.0\n",
    },
    "gradio-own-pin": {"README.md": front(sdk="gradio"), "app.py": "x", "requirements.txt": "gradio[mcp]==5.1\n"},
    "gradio-pyproject": {
        "README.md": front(sdk="gradio"), "app.py": "x",
        "pyproject.toml": PROJECT + "[tool.ruff]\nline-length = 1\n",
    },
    "gradio-uv-lock": {
        "README.md": front(sdk="gradio"), "app.py": "x",
        "pyproject.toml": PROJECT, "uv.lock": "version = 1\n",
    },
    "gradio-local-package": {
        "README.md": front(sdk="gradio"), "app.py": "x", "requirements.txt": "-e ./own\n", "own/pyproject.toml": "",
    },
    "gradio-packages-txt": {
        "README.md": front(sdk="gradio"), "app.py": "x", "packages.txt": "# none\nffmpeg\nlibgl1\n",
    },
    "streamlit": {"README.md": front(sdk="streamlit"), "streamlit_app.py": "x"},
    "dash": {"README.md": front(sdk="dash"), "app.py": "x", "requirements.txt": "pandas\n"},
    "static": {"README.md": front(sdk="static"), "index.html": "x"},
    "static-in-folder": {"README.md": front(sdk="static", app_file="docs/start.html"), "docs/start.html": "x"},
    "static-built": {
        "README.md": front(sdk="static", app_file="dist/index.html", app_build_command="npm run build"),
        "package.json": "{}", "package-lock.json": "{}",
    },
    "docker": {"README.md": front(sdk="docker", app_port="8080"), "Dockerfile": "FROM scratch\n"},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str, tmp_path: Path) -> None:
    """`UPDATE_GOLDEN=1 pytest tests/builders/test_plan.py` writes them; read the difference."""
    found = json.dumps(asdict(plan_of(tmp_path, CASES[name])), indent=2, sort_keys=True) + "\n"
    path = GOLDEN / f"{name}.json"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(found)
    assert found == path.read_text()


BASE = {"README.md": front(sdk="gradio"), "app.py": "one", "requirements.txt": "six==1.17\n"}
SAME_ENVIRONMENT: dict[str, dict[str, str]] = {
    "code": {"app.py": "two"},
    "readme body": {"README.md": front(sdk="gradio") + "more words"},
    "cosmetic keys": {"README.md": front(sdk="gradio", title="New", emoji="🚀", pinned="true", tags="[a]")},
    "start keys": {"README.md": front(sdk="gradio", base_path="/x", startup_duration_timeout="1h")},
    "default version written out": {"README.md": front(sdk="gradio", sdk_version="6.0.0")},
    "comments": {"requirements.txt": "# why\n\nsix==1.17   # this\n"},
    "line ends": {"requirements.txt": "six==1.17\r\n"},
    "tool settings": {"pyproject.toml": "[tool.ruff]\n"},
    "other files": {"data/x.csv": "1"},
}
OTHER_ENVIRONMENT: dict[str, dict[str, str]] = {
    "requirement": {"requirements.txt": "six==1.16\n"},
    "pre-requirements": {"pre-requirements.txt": "six\n"},
    "sdk version": {"README.md": front(sdk="gradio", sdk_version="5.0.0")},
    "python": {"README.md": front(sdk="gradio", python_version='"3.12"')},
    "sdk": {"README.md": front(sdk="dash")},
}


@pytest.mark.parametrize("name", SAME_ENVIRONMENT)
def test_environment_is_kept(name: str, tmp_path: Path) -> None:
    before = plan_of(tmp_path / "a", BASE)
    after = plan_of(tmp_path / "b", {**BASE, **SAME_ENVIRONMENT[name]})
    assert after.environment.id == before.environment.id
    assert after.id != before.id


@pytest.mark.parametrize("name", OTHER_ENVIRONMENT)
def test_environment_changes(name: str, tmp_path: Path) -> None:
    before = plan_of(tmp_path / "a", BASE)
    after = plan_of(tmp_path / "b", {**BASE, **OTHER_ENVIRONMENT[name]})
    assert after.environment.id != before.environment.id
    assert after.id != before.id


def test_same_inputs_same_ids_wherever_the_folder_is(tmp_path: Path) -> None:
    assert plan_of(tmp_path / "a", BASE) == plan_of(tmp_path / "b", BASE)


def test_salt_enters_both_ids(tmp_path: Path) -> None:
    plain, salted = plan_of(tmp_path / "a", BASE), plan_of(tmp_path / "b", BASE, salt="2")
    assert plain.id != salted.id
    assert plain.environment.id != salted.environment.id


def test_a_local_package_ties_the_environment_to_the_tree(tmp_path: Path) -> None:
    files = CASES["gradio-local-package"]
    before = plan_of(tmp_path / "a", files)
    after = plan_of(tmp_path / "b", {**files, "own/code.py": "new"})
    assert before.environment.needs_tree
    assert before.environment.id != after.environment.id


@pytest.mark.parametrize(
    ("asked", "pythons", "python", "warned"),
    [
        ("", PYTHONS, "3.11", ""),
        ("", ("3.12", "3.13"), "3.12", ""),
        ("", (), "3.11", ""),
        ('"3.12"', PYTHONS, "3.12", ""),
        ('"3.11.7"', PYTHONS, "3.11.7", ""),
        ('"3.11.2"', PYTHONS, "3.11", "not at hand"),
        ('"3.9"', PYTHONS, "3.9", "not installed"),
    ],
)
def test_python_is_chosen(asked: str, pythons: tuple[str, ...], python: str, warned: str, tmp_path: Path) -> None:
    keys = {"sdk": "gradio", **({"python_version": asked} if asked else {})}
    plan = plan_of(tmp_path, {"README.md": front(**keys), "app.py": "x"}, pythons=pythons)
    assert plan.environment.python == python
    assert warned in " ".join(plan.warnings)
    assert bool(warned) == bool(plan.warnings)


def test_readme_wins_over_a_pin_and_says_so(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, CASES["gradio-old"])
    [step] = plan.environment.steps
    assert step.files == {"requirements.txt": "gradio\n"}
    assert "gradio[oauth]==4.44.1" in step.requirements
    assert "huggingface_hub<1" in step.requirements
    assert "README.md wins" in plan.warnings[0]


def test_includes_stay_inside_and_end() -> None:
    texts = {
        "requirements.txt": "-r ../secret.txt\n-r requirements.txt\n-r a.txt\nsix\n",
        "a.txt": "-r requirements.txt\n",
    }
    files = collect("requirements.txt", texts.get)
    assert files.texts == {"requirements.txt": "-r requirements.txt\n-r a.txt\nsix\n", "a.txt": "-r requirements.txt\n"}
    assert "leaves the repository" in files.warnings[0]
    many = {f"{n}.txt": f"-r {n + 1}.txt\n" for n in range(100)}
    assert len(collect("0.txt", many.get).texts) == 20


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"requirements.txt": b"\x80abc"}, "requirements_encoding"),
        ({"pyproject.toml": "[project"}, "bad_pyproject"),
        ({"pyproject.toml": "[project]\ndependencies = 3\n"}, "bad_pyproject"),
        ({"requirements.txt": b"#" * 1_100_000}, "requirements_too_large"),
    ],
)
def test_unreadable_requirements(files: dict[str, str | bytes], reason: str, tmp_path: Path) -> None:
    with pytest.raises(BuildError) as caught:
        plan_of(tmp_path, {"README.md": front(sdk="gradio"), "app.py": "x", **files})
    assert caught.value.reason == reason


def test_utf16_requirements_are_read(tmp_path: Path) -> None:
    encoded = "six\r\n".encode("utf-16")
    files: dict[str, str | bytes] = {"README.md": front(sdk="gradio"), "app.py": "x", "requirements.txt": encoded}
    assert plan_of(tmp_path, files).environment.steps[0].files == {"requirements.txt": "six\n"}


def test_shipped_catalogue_is_complete() -> None:
    catalogue = runtime_images.load()
    assert set(catalogue.sdks) == {"gradio", "streamlit", "dash", "static", "docker"}
    assert catalogue.python_default in catalogue.pythons
