"""Runs compose.yaml on a real engine, on ports, a network and a data directory of its own, and removes it all again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import runtime_images
from runtime_images.platform.__main__ import TARGETS, version
from tests.edge.servers import free_port
from tests.services.engine import cli, docker_cli

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "spaces-tests"
"""The images' names begin so, apart from those that a user of this machine made."""
RUNTIMES = ("static", "static-build", "python")
UP_SECONDS = 240
BUILD_SECONDS = 900


def compose_commands() -> list[list[str]]:
    """Every Compose that is here, or the one that TEST_COMPOSE names; 2 before 1.29. Skips where none is."""
    if named := os.environ.get("TEST_COMPOSE", "").split():
        return [named]
    known = ([docker_cli(), "compose"], ["docker-compose"])
    found = [command for command in known if shutil.which(command[0]) and _answers(command)]
    if not found:
        pytest.skip("Compose is not installed: apt install docker-compose")
    return found


def _answers(command: list[str]) -> bool:
    return subprocess.run([*command, "version"], capture_output=True, timeout=60).returncode == 0


@dataclass
class Composed:
    """The platform in containers."""

    engine: str
    data: Path
    env: dict[str, str]
    project: str
    port: int
    """Of TLS, on all addresses of this machine."""
    gateway: int
    command: list[str]

    def compose(self, *words: str, check: bool = True) -> str:
        """Run a command of Compose; its output. What a failed one said is shown."""
        argv = [*self.command, "--project-name", self.project, "--file", str(ROOT / "compose.yaml"), *words]
        done = subprocess.run(argv, env=self.env, capture_output=True, text=True, timeout=UP_SECONDS)
        if check and done.returncode:
            logs = "" if words[0] == "logs" else self.compose("logs", "--tail=30", check=False)
            raise AssertionError(f"{' '.join(argv)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}\n{logs[-6000:]}")
        return done.stdout

    def inside(self, service: str, *words: str, check: bool = True) -> str:
        return self.compose("exec", "-T", service, *words, check=check)

    def pid(self, service: str) -> int:
        """Of its first process, as the host numbers it."""
        container = self.compose("ps", "--quiet", service).strip()
        return int(cli(self.engine, "inspect", "--format", "{{.State.Pid}}", container).stdout)

    @property
    def root(self) -> Path:
        """Certificate of Caddy's own authority, as visitors have to trust it."""
        path = self.data / "test-root.crt"
        where = "/var/lib/caddy/caddy/pki/authorities/local/root.crt"
        path.write_text(self.compose("exec", "-T", "--user", "973", "caddy", "cat", where))
        return path

    def curl(self, host: str, path: str, *options: str) -> tuple[int, str]:
        """Exit code of curl, and what it printed."""
        argv = ["curl", "--silent", "--show-error", "--max-time", "100", "--noproxy", "*", "--cacert", str(self.root)]
        argv += ["--resolve", f"{host}:{self.port}:127.0.0.1", *options, f"https://{host}:{self.port}{path}"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout + done.stderr


@contextmanager
def images(engine: str) -> Iterator[list[str]]:
    """What `composed` and apps need, built on an engine. At the end nothing of it is left but what others share."""
    _build(engine, "runtime_images.platform", "--prefix", PREFIX)
    _build(engine, "runtime_images", "build", *RUNTIMES)
    ours = [f"{PREFIX}/{target}:{version()}" for target in TARGETS]
    catalogue = runtime_images.load()
    try:
        yield [*ours, *(runtime_images.image_ref(catalogue, name) for name in RUNTIMES)]
    finally:
        cli(engine, "image", "rm", *ours)


@contextmanager
def composed(engine: str, folder: Path) -> Iterator[Composed]:
    """All services up and healthy, on an engine that has the images. At the end nothing of it is left."""
    ask, gateway, plain, port, registry = (free_port() for _ in range(5))
    env = {
        # Compose 2 is a plugin of the client, which may lie in the user's own directory.
        **{name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_CONFIG") if name in os.environ},
        "DOCKER_HOST": engine,
        "SPACES_IMAGES": PREFIX, "SPACES_DATA": str(folder / "data"), "SPACES_NETWORK": f"172.30.{port % 256}",
        "SPACES_ENGINE_SOCKET": engine.removeprefix("unix://"), **_places(engine),
        "SPACES_PORT": str(gateway), "SPACES_ASK_PORT": str(ask), "SPACES_REGISTRY_PORT": str(registry),
        "SPACES_REGISTRY": f"127.0.0.1:{registry}",
        "SPACES_HTTP_PORT": str(plain), "SPACES_HTTPS_PORT": str(port),
        "SPACES_PUBLIC_URL": f"https://localhost:{port}", "SPACES_BUILD_SLOTS": "1",
    }  # fmt: skip
    made = Composed(engine, folder / "data", env, f"spaces-tests-{port}", port, gateway, compose_commands()[0])
    try:
        made.compose("up", "-d")
        yield made
    finally:
        _remove(made)


def _build(engine: str, module: str, *words: str) -> None:
    argv = [sys.executable, "-m", module, *words, "--docker", engine]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=BUILD_SECONDS)
    if done.returncode:
        pytest.skip(f"{' '.join(argv[1:4])} cannot build here: {done.stderr.strip()[-400:]}")


def _places(engine: str) -> dict[str, str]:
    """Where an engine has its data, and the containerd that has its images."""
    from builders.containers import layers
    from spaces_platform.adapters.docker.engine import facts_of

    info = json.loads(cli(engine, "info", "--format", "{{json .}}").stdout)
    found = {"SPACES_ENGINE_DATA": str(info["DockerRootDir"])}
    if containerd := facts_of(info).containerd:
        found |= {"SPACES_CONTAINERD": os.path.dirname(containerd), "SPACES_CONTAINERD_DATA": str(layers.store(info))}
    return found


def _remove(made: Composed) -> None:
    """All that the platform made on the engine and this machine, by its own means where it has them."""
    from spaces_platform.adapters.docker import DockerOrchestrator, DockerSettings
    from spaces_platform.adapters.docker.fence import Fence, FenceRules, build_fence
    from spaces_platform.adapters.docker.settings import instance_of
    from tests.process.harness import SystemClock

    made.compose("down", "--volumes", "--timeout", "40", check=False)
    settings = DockerSettings(url=made.engine, fence=False, disks=False)
    DockerOrchestrator(
        made.data / "containers", clock=SystemClock(), changed=lambda _: None, settings=settings
    ).close(stop_all=True)  # fmt: skip
    apps = instance_of(made.data / "containers")
    Fence(apps, FenceRules((f"sp{apps[:4]}-+",))).remove()
    build_fence(f"{instance_of(made.data)}b", settings).remove()
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for point in reversed([m for m in mounts if m == str(made.data) or m.startswith(f"{made.data}/")]):
        subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)
