"""What tests of container builds share: folders as apps, a builder on a real engine, and cleaning up after it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import docker
import pytest

import runtime_images
from builders.containers.builder import DockerBuilder
from builders.containers.engine import LABEL
from builders.containers.options import Options, make_options
from builders.local_tree import LocalTree
from builders.types import Artifact, BuildInputs, BuildLimits, BuildPlan
from spaces_platform.planning import plan_head
from tests.builders.conftest import Log, write

BASE = "spaces/base:bookworm"
DOCKER = {"README.md": "---\nsdk: docker\napp_port: 8080\n---\n"}
LIMITS = BuildLimits(seconds=120, memory=512 << 20, disk=512 << 20, processes=200)
INPUTS = BuildInputs("ada/app", "c0ffee")


def bare(catalogue: runtime_images.Catalogue) -> runtime_images.Catalogue:
    """SDKs that install nothing: no package index is needed."""
    sdks = {name: replace(sdk, packages=()) for name, sdk in catalogue.sdks.items()}
    return replace(catalogue, sdks=sdks)


class Builds:
    """A builder with a folder of its own on a shared engine."""

    def __init__(self, root: Path, url: str, **more: Any) -> None:
        ca = os.environ.get("SSL_CERT_FILE", "")
        # Many slots: what is set for all builds together is felt by everybody who shares the engine.
        options: dict[str, Any] = {"engine": url, "limits": LIMITS, "reserve": 64 << 20, "slots": 16, **more}
        options.setdefault("ca", Path(ca).read_bytes() if ca else b"")
        self.root = root
        self.options: Options = make_options(runtime_images.load(), {}, **options)
        self.builder = DockerBuilder(root / "images", self.options)
        self._apps = 0

    @cached_property
    def docker(self) -> docker.DockerClient:
        return docker.DockerClient(base_url=self.options.engine, version="auto", timeout=60)

    def plan(self, files: Mapping[str, str | bytes], salt: str = "") -> tuple[BuildPlan, LocalTree]:
        self._apps += 1
        tree = LocalTree(write(self.root / f"app{self._apps}", files))
        planned = plan_head(tree, bare(runtime_images.load()), ("3.11",), salt=salt, containers=True)
        assert planned.plan is not None, planned.message
        return planned.plan, tree

    def build(
        self,
        files: Mapping[str, str | bytes],
        *,
        log: Log | None = None,
        owner: str = "7",
        inputs: BuildInputs = INPUTS,
        salt: str = "",
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Artifact:
        plan, tree = self.plan(files, salt)
        return self.builder.build(plan, tree, owner=owner, log=log or Log(), cancelled=cancelled, inputs=inputs)

    def dockerfile(self, text: str, *, files: Mapping[str, str | bytes] | None = None, **more: Any) -> Artifact:
        """Build a Dockerfile on the Debian base."""
        return self.build({**DOCKER, "Dockerfile": f"FROM {BASE}\n{text}", **(files or {})}, **more)

    def inspect(self, artifact: Artifact) -> dict[str, Any]:
        found: dict[str, Any] = self.docker.api.inspect_image(artifact.ref.removeprefix("image:"))
        return found

    def run(self, artifact: Artifact, *command: str) -> str:
        """Output of a command in the image."""
        out = self.docker.containers.run(
            artifact.ref.removeprefix("image:"), list(command), entrypoint="", remove=True, stderr=True, network="none"
        )
        return str(out.decode())

    def close(self) -> None:
        for _, record in list(self.builder.records.all()):
            self.builder.remove(record.ref)
        if "docker" in self.__dict__:
            self.docker.close()


@contextmanager
def builds_on(root: Path, url: str, **more: Any) -> Iterator[Builds]:
    made = Builds(root, url, **more)
    try:
        yield made
    finally:
        made.close()


def ours(builds: Builds, key: str = LABEL) -> set[str]:
    """Ids of all images of the engine that a build made."""
    return {row["Id"] for row in builds.docker.api.images(filters={"label": key})}


def require_runtime_images(builds: Builds) -> None:
    for name in (builds.options.images.run, builds.options.images.build, builds.options.images.static):
        if builds.builder.engine.image(name) is None:
            pytest.skip(f"the runtime image {name} is missing: make base-images")


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread
