"""Images from a registry: run by their content or not at all, whatever happens to the registry. T10 and T35."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import docker
import pytest

from spaces_platform.errors import Invalid, Unavailable
from spaces_platform.ports import DeploymentSpec
from tests.containers.harness import Place, exited, gone, ready, text
from tests.process import apps
from tests.process.harness import wait_for
from tests.services.engine import IMAGE, cli

SECONDS = 60.0


class Registry:
    """Debian's registry on a port of its own, which can be stopped, and come back with what it had."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.store = folder / "registry"
        self._config = folder / "registry.json"  # YAML reads JSON
        self._config.write_text(json.dumps({
            "version": 0.1, "log": {"level": "warn"}, "http": {"addr": self.address},
            "storage": {"filesystem": {"rootdirectory": str(self.store)}, "delete": {"enabled": True}},
        }))  # fmt: skip
        self._log = folder / "registry.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            argv = ["docker-registry", "serve", str(self._config)]
            self._process = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        wait_for("the registry answers", self._answers, SECONDS)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        host, port = self.address.split(":")
        try:
            socket.create_connection((host, int(port)), 1).close()
        except OSError:
            assert self._process is not None
            assert self._process.poll() is None, self._log.read_text()[-2000:]
            return False
        return True

    def blob(self, digest: str) -> Path:
        """The file of a blob."""
        kind, name = digest.split(":")
        return self.store / "docker" / "registry" / "v2" / "blobs" / kind / name[:2] / name / "data"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    if shutil.which("docker-registry") is None:
        pytest.skip("docker-registry is not installed (Debian package docker-registry)")
    made = Registry(tmp_path_factory.mktemp("registry"))
    made.start()
    yield made
    made.stop()


class Shelf:
    """Images pushed to a registry, none of which is left on the engine."""

    def __init__(self, url: str, registry: Registry) -> None:
        self.url, self.registry = url, registry
        self.client = docker.DockerClient(base_url=url, version="auto", timeout=120)
        self._made: list[str] = []

    def push(self, tag: str, says: str) -> str:
        """An image that prints a word, as the reference that a deployment has of it."""
        name = f"{self.registry.address}/app"
        container = self.client.containers.create(IMAGE, ["true"])
        try:
            image = container.commit(name, tag, changes=[f'CMD ["python3", "-S", "-c", "print({says!r}, flush=True)"]'])
        finally:
            container.remove()
        done = cli(self.url, "push", f"{name}:{tag}")
        assert done.returncode == 0, done.stderr
        digest = next(d for d in self.client.images.get(image.id).attrs["RepoDigests"] if d.startswith(name))
        self._made.append(digest)
        self.drop(digest, f"{name}:{tag}")
        return f"image:{digest}"

    def drop(self, *references: str) -> None:
        """Remove it from the engine."""
        for reference in references:
            cli(self.url, "image", "rm", "--force", reference)
        assert not self.has(references[0])

    def has(self, reference: str) -> bool:
        return cli(self.url, "image", "inspect", reference.removeprefix("image:")).returncode == 0

    def close(self) -> None:
        for reference in self._made:
            cli(self.url, "image", "rm", "--force", reference)
        self.client.close()


@pytest.fixture(scope="module")
def shelf(engine_url: str, registry: Registry) -> Iterator[Shelf]:
    made = Shelf(engine_url, registry)
    yield made
    made.close()


def stored(place: Place, reference: str) -> DeploymentSpec:
    """A deployment of the command that an image of a registry has."""
    return replace(place.spec(), artifact_ref=reference, argv=())


def start(orchestrator: object, spec: DeploymentSpec) -> None:
    """As the platform starts it: again, for as long as it is told to try again."""

    def tried() -> bool:
        try:
            orchestrator.start(spec)  # type: ignore[attr-defined]
        except Unavailable as error:
            if "is being fetched" not in str(error) and "again" not in str(error):
                raise
            return False
        return True

    wait_for("the image is fetched and started", tried, SECONDS)


def test_an_image_is_fetched_and_a_tag_that_moved_changes_nothing(place: Place, shelf: Shelf) -> None:
    orchestrator = place.orchestrator()
    reference = shelf.push("live", "mine")
    shelf.push("live", "swapped")
    spec = stored(place, reference)
    start(orchestrator, spec)
    exited(orchestrator, spec.id)
    assert text(orchestrator, spec.id) == "mine"


def test_a_registry_that_gives_other_content_runs_nothing(place: Place, shelf: Shelf, registry: Registry) -> None:
    orchestrator = place.orchestrator()
    good, other = shelf.push("good", "good"), shelf.push("other", "other")
    registry.blob(good.rpartition("@")[2]).write_bytes(registry.blob(other.rpartition("@")[2]).read_bytes())
    spec = stored(place, good)

    def refusal() -> str:
        with pytest.raises((Unavailable, Invalid)) as caught:
            orchestrator.start(spec)
        return "" if "is being fetched" in str(caught.value) else str(caught.value)

    # In the engine's words, or in containerd's.
    said = wait_for("the refusal", refusal, SECONDS)
    assert "verif" in said or "unexpected commit digest" in said
    assert spec.id not in orchestrator.observe()
    assert not shelf.has(good)


def test_an_image_that_the_registry_does_not_have_is_never_tried_again(place: Place, registry: Registry) -> None:
    orchestrator = place.orchestrator()
    spec = stored(place, f"image:{registry.address}/app@sha256:{'1' * 64}")

    def refused() -> bool:
        try:
            orchestrator.start(spec)
        except Unavailable:
            return False
        except Invalid as error:
            return "build it again" in str(error)
        raise AssertionError("started")

    wait_for("the refusal", refused, SECONDS)


def test_without_its_registry_what_runs_goes_on_and_what_is_here_wakes(
    place: Place, shelf: Shelf, registry: Registry
) -> None:
    orchestrator = place.orchestrator()
    here, away = shelf.push("here", "woken"), shelf.push("away", "fetched")
    first = stored(place, here)
    start(orchestrator, first)
    exited(orchestrator, first.id)
    running = place.spec(apps.server(), space_id=2)
    orchestrator.start(running)
    ready(orchestrator, running.id)
    registry.stop()

    again = stored(place, here)
    orchestrator.start(again)
    exited(orchestrator, again.id)
    assert text(orchestrator, again.id) == "woken"
    missing = stored(place, away)

    def told() -> str:
        with pytest.raises(Unavailable) as caught:
            orchestrator.start(missing)
        return "" if "is being fetched" in str(caught.value) else str(caught.value)

    assert "start its registry" in wait_for("it is told", told, SECONDS)
    assert orchestrator.observe()[running.id].endpoint
    ready(orchestrator, running.id)

    registry.start()
    start(orchestrator, missing)
    exited(orchestrator, missing.id)
    assert text(orchestrator, missing.id) == "fetched"
    orchestrator.stop(running.id)
    gone(orchestrator, running.id)


def test_an_image_that_was_pruned_while_its_app_slept_is_fetched_again(place: Place, shelf: Shelf) -> None:
    orchestrator = place.orchestrator()
    reference = shelf.push("pruned", "back")
    for _ in range(2):
        spec = stored(place, reference)
        start(orchestrator, spec)
        exited(orchestrator, spec.id)
        assert text(orchestrator, spec.id) == "back"
        orchestrator.stop(spec.id)
        orchestrator.forget(spec.id)
        wait_for("its container is gone", lambda: not place.containers(), SECONDS)
        shelf.drop(reference.removeprefix("image:"))
