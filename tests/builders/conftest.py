"""What the builder's tests share: folders as trees, a log that is kept, and packages that misbehave."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

import runtime_images
from builders import usage
from builders.config import read_config
from builders.local_tree import LocalTree
from builders.plan import make_plan
from builders.types import Artifact, BuildLimits, BuildPlan, Phase
from builders.uv import index_settings
from builders.venv import VenvBuilder

GRADIO = "---\nsdk: gradio\n---\n"

BACKEND = """
import base64, hashlib, os, sys, zipfile

def _out():
    {body}

def build_wheel(folder, config_settings=None, metadata_directory=None):
    out = _out() or ""
    name = "{name}-1-py3-none-any.whl"
    files = {{
        "{name}.py": "OUT = " + repr(out),
        "{name}-1.dist-info/METADATA": "Metadata-Version: 2.1\\nName: {name}\\nVersion: 1\\n",
        "{name}-1.dist-info/WHEEL": "Wheel-Version: 1.0\\nGenerator: t\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    }}
    record = "".join(path + ",,\\n" for path in files) + "{name}-1.dist-info/RECORD,,\\n"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        for path, text in {{**files, "{name}-1.dist-info/RECORD": record}}.items():
            wheel.writestr(path, text)
    return name
"""


class Log:
    """Keeps everything."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.phases: list[tuple[Phase, str]] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    def phase(self, phase: Phase, text: str = "") -> None:
        self.phases.append((phase, text))

    def said(self, text: str) -> bool:
        return any(text in words for _, words in self.phases)


def write(root: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def package(name: str, body: str = "return ''") -> dict[str, str]:
    """Files of a local package `./name` that is built by its own code: no index is needed. `body` runs at build."""
    return {
        f"{name}/pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        f'[project]\nname = "{name}"\nversion = "1"\n',
        f"{name}/backend.py": BACKEND.format(name=name, body=body.replace("\n", "\n    ")),
    }


class App:
    """A folder, its plan, and building it."""

    def __init__(self, root: Path, files: Mapping[str, str | bytes], sdk_packages: tuple[str, ...] = ()) -> None:
        write(root, {"README.md": GRADIO, "app.py": "print('hi')\n", **files})
        self.tree = LocalTree(root)
        self._packages = sdk_packages

    def plan(self, builder: VenvBuilder, salt: str = "") -> BuildPlan:
        text = (runtime_images.HERE / "catalogue.toml").read_text()
        for line in ('packages = ["gradio[oauth]{version}", "spaces"]',):
            text = text.replace(line, f"packages = {list(self._packages)!r}")
        paths = [entry.path for entry in self.tree.entries()]
        config = read_config(self.tree.read("README.md").decode(), paths)
        return make_plan(
            self.tree, config, runtime_images.parse(text), available_pythons=builder.available_pythons, salt=salt
        )

    def build(
        self,
        builder: VenvBuilder,
        log: Log | None = None,
        owner: str = "ada",
        salt: str = "",
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Artifact:
        return builder.build(self.plan(builder, salt), self.tree, owner=owner, log=log or Log(), cancelled=cancelled)


@pytest.fixture
def make_builder(tmp_path: Path) -> Callable[..., VenvBuilder]:
    def make(root: Path | None = None, **limits: float) -> VenvBuilder:
        return VenvBuilder(
            root or tmp_path / "builds",
            limits=BuildLimits(**limits) if limits else None,  # type: ignore[arg-type]
            index=index_settings(os.environ),
        )

    return make


def marked_processes(builder: VenvBuilder) -> list[int]:
    """Processes that builds of this builder's folder left behind."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and (usage._mark(int(name)) or "").startswith(builder._mark):
            found.append(int(name))
    return found
