"""A Docker engine for tests: the one that answers already, or, as root, one of our own; and a small image on it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

import runtime_images

ROOT = Path(__file__).resolve().parents[2]
FLAGS = tuple(os.environ.get("TEST_ENGINE_FLAGS", "").split())
"""Of engines of our own; the tests have one then even where another answers. `--userns-remap=default`: all tests of
containers where the engine remaps users."""
SOCKETS = () if FLAGS else ("/var/run/docker.sock",)
BASE = "spaces/base:bookworm"
DOCKERFILE = f"""\
FROM {BASE}
RUN apt-get update && apt-get install -y --no-install-recommends python3-minimal libpython3-stdlib
RUN useradd --uid 1000 --create-home user && mkdir /home/user/app && chown 1000:1000 /home/user/app
WORKDIR /home/user/app
CMD []
"""
START_SECONDS = 120
"""How long an engine may take to start; after a crash it first waits for what is left of the one before."""
IMAGES_SECONDS = 900
"""How long a machine that has nothing may take to make all images."""
IMAGE = f"spaces-tests/python:{hashlib.sha256(DOCKERFILE.encode()).hexdigest()[:12]}"


def answers(socket: str) -> bool:
    """Whether an engine of at least 20.10 answers on a unix socket."""
    docker = pytest.importorskip("docker", reason="the Python package docker is not installed: make setup")
    if not os.access(socket, os.R_OK | os.W_OK):
        return False
    try:
        client = docker.APIClient(base_url=f"unix://{socket}", version="auto", timeout=10)
    except docker.errors.DockerException:
        return False
    client.close()
    return True


@contextmanager
def own_engine(place: Path, *flags: str) -> Iterator[Engine]:
    """A dockerd with directories, socket and bridge of its own, ended by its pid."""
    engine = Engine(place, flags)
    engine.start()
    try:
        yield engine
    finally:
        engine.end()


class Engine:
    """One dockerd that tests may stop and start."""

    def __init__(self, place: Path, flags: tuple[str, ...] = ()) -> None:
        self.place, self.flags = place, (*(flag for flag in FLAGS if _goes_with(flag, flags)), *flags)
        self.url = f"unix://{place}/docker.sock"
        self.name = f"tests-{hashlib.sha256(str(place).encode()).hexdigest()[:12]}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers; one that gives up is started again, as a service manager does."""
        deadline = time.monotonic() + START_SECONDS
        self.place.chmod(0o711)  # remapped users get to its files
        self._spawn()
        while not answers(self.url.removeprefix("unix://")):
            if time.monotonic() > deadline:
                raise AssertionError("dockerd does not start:\n" + (self.place / "dockerd.log").read_text()[-3000:])
            if self._process is not None and self._process.poll() is not None:
                self._spawn()
            threading.Event().wait(0.1)

    def _spawn(self) -> None:
        with (self.place / "dockerd.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["dockerd", "--data-root", f"{self.place}/data", "--exec-root", f"{self.place}/exec",
                 "--pidfile", f"{self.place}/docker.pid", "--host", self.url,
                 # Where the machine has a containerd of its own, this engine keeps apart from the one that uses it.
                 "--containerd-namespace", self.name, "--containerd-plugins-namespace", f"{self.name}-plugins",
                 *self.flags],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def stop(self) -> None:
        """End the daemon as an upgrade does; with live-restore its containers go on."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
            self._process = None

    def kill(self) -> None:
        """End the daemon as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(60)
            self._process = None

    def end(self) -> None:
        """End the daemon, its containerd, and whatever runs below it."""
        self.stop()
        for pid in below(str(self.place)):
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for point in reversed([m for m in mounts if m.startswith(f"{self.place}/")]):
            subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)


def _goes_with(flag: str, flags: Sequence[str]) -> bool:
    """Engines that remap users do not keep images in containerd: https://github.com/moby/moby/issues/47377."""
    remaps = any(one.startswith("--userns-remap") for one in (*FLAGS, *flags))
    return not (remaps and flag == "--feature=containerd-snapshotter=true")


def below(place: str) -> list[int]:
    """Processes whose command line names a directory: containerd and its shims."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"containerd" in words[0] and any(word.decode(errors="replace").startswith(place) for word in words):
                found.append(int(name))
    return found


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test that needs an engine may wait until one has been started and has all images."""
    first = next((item for item in items if "engine_url" in getattr(item, "fixturenames", ())), None)
    if first is not None:
        first.add_marker(pytest.mark.timeout(IMAGES_SECONDS + START_SECONDS + 300))


@pytest.fixture(scope="session")
def engine_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """URL of an engine that has the images; skips where there is none and none can be started."""
    for socket in SOCKETS:
        if answers(socket):
            prepare(f"unix://{socket}")
            yield f"unix://{socket}"
            return
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        pytest.skip("no Docker engine answers, and none can be started: needs root and the package docker.io")
    place = tempfile.mkdtemp(prefix="dockerd-")
    # At the very end: images have so many files that deleting them takes longer than a test may.
    request.config.add_cleanup(lambda: subprocess.run(["rm", "-rf", place], check=False))
    engine = Engine(Path(place), ("--live-restore", "--default-address-pool=base=10.212.0.0/16,size=26"))
    try:
        try:
            engine.start()
        except AssertionError as error:
            pytest.skip(f"no Docker engine answers, and none can run here: {error}")
        prepare(engine.url)
        yield engine.url
    finally:
        engine.end()


def prepare(url: str) -> None:
    """See to it that the engine has the runtime images and IMAGE: made once, with the Debian base below them.

    Skips where the base cannot be made; where a runtime image cannot, warns, and the tests that need it are skipped.
    """
    catalogue = runtime_images.load()
    wanted = [name for name, image in catalogue.images.items() if image.accelerator == "cpu"]
    missing = [name for name in wanted if not has_image(url, runtime_images.image_ref(catalogue, name))]
    fault = build_images(url, missing) if missing or not has_image(url, BASE) else ""
    if not has_image(url, BASE):
        pytest.skip(f"the engine has no image {BASE}, and it cannot be made: {fault}")
    if fault:
        warnings.warn(f"some runtime images are missing, their tests are skipped: {fault}", stacklevel=2)
    if not has_image(url, IMAGE):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "Dockerfile").write_text(DOCKERFILE)
            done = cli(url, "build", "--tag", IMAGE, folder)
        if done.returncode:
            pytest.skip(f"the test image cannot be built: {done.stderr.strip()[-300:]}")


def has_image(url: str, ref: str) -> bool:
    return cli(url, "image", "inspect", ref).returncode == 0


def build_images(url: str, names: list[str]) -> str:
    """Build runtime images, and the base below them; why that failed, or nothing."""
    index = os.environ.get("PIP_INDEX_URL") or pip_index()
    env = {**os.environ, **({"PIP_INDEX_URL": index} if index else {})}
    argv = [sys.executable, "-m", "runtime_images", "build", "--docker", url, *names]
    try:
        done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=IMAGES_SECONDS)
    except subprocess.TimeoutExpired:
        return f"{' '.join(names)}: not built within {IMAGES_SECONDS} s"
    return done.stderr.strip()[-600:] if done.returncode else ""


def pip_index() -> str:
    """The package index of pip's own configuration, which builds do not read; empty where it has none."""
    argv = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60).stdout.strip()


def docker_cli() -> str:
    """Debian's client where it is: it builds with the engine's own BuildKit, without a plugin."""
    found = next((p for p in ("/usr/bin/docker", shutil.which("docker")) if p and os.access(p, os.X_OK)), None)
    if found is None:
        pytest.skip("the docker command is not installed: apt install docker.io")
    return found


def cli(url: str, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "DOCKER_BUILDKIT": "1"}
    return subprocess.run([docker_cli(), "-H", url, *words], capture_output=True, text=True, timeout=600, env=env)


def copy_image(source: str, target: str, *images: str) -> None:
    """Put images of one engine on another; without a name: the test image."""
    command = [docker_cli(), "-H", source, "save", *(images or (IMAGE,))]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as saved:
        subprocess.run([docker_cli(), "-H", target, "load"], stdin=saved.stdout, check=True, capture_output=True)
