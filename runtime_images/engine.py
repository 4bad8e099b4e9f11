"""The container engine, through the client of Docker that has BuildKit.

Owns: finding such a client, asking for images, building recipes, importing a root file system. Does not own: what is
built (`recipes`, `base`). Invariant: nothing is pulled, pushed or removed; secrets are files that only this user reads
and that are gone when the build ends.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from runtime_images.network import Network
from runtime_images.recipes import Recipe, build_argv

ASK_SECONDS = 30.0
BUILD_SECONDS = 3600.0


class EngineError(Exception):
    """The engine or its client cannot do what was asked; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Found:
    """An image that the engine has."""

    id: str
    """`sha256:…` of its configuration."""
    digests: tuple[str, ...]
    """`repository@sha256:…`, once it was pushed or pulled."""
    labels: Mapping[str, str]
    created: str
    size: int
    """Bytes, with the layers that it shares."""


def find_client(environ: Mapping[str, str]) -> str:
    """The first `docker` on PATH that builds with BuildKit. Raises EngineError.

    A client without the buildx plug-in (as of Docker 23 and later) answers and yet cannot build; it is passed over.
    """
    folders = environ.get("PATH", os.defpath).split(os.pathsep)
    paths = dict.fromkeys(found for folder in folders if (found := shutil.which("docker", path=folder)))
    for path in paths:
        asked = _run([path, "build", "--help"], {**environ, "DOCKER_BUILDKIT": "1"})
        if asked.returncode == 0 and b"--secret" in asked.stdout:
            return path
    tried = f" ({', '.join(paths)} cannot)" if paths else ""
    raise EngineError(
        f"No docker client here builds with BuildKit{tried}. On Debian: apt install docker.io; with Docker's own "
        "packages: apt install docker-buildx-plugin."
    )


class Engine:
    """One engine, by its client."""

    def __init__(self, client: str, url: str, environ: Mapping[str, str]) -> None:
        self.client = client
        self.url = url
        self._environ = {**environ, "DOCKER_HOST": url, "DOCKER_BUILDKIT": "1"}

    def find(self, ref: str) -> Found | None:
        """The image of a name, or None. Raises EngineError where the engine does not answer."""
        asked = _run([self.client, "image", "inspect", ref], self._environ)
        if asked.returncode == 0:
            return _found(json.loads(asked.stdout)[0])
        words = asked.stderr.decode(errors="replace").strip()
        if "No such image" in words:
            return None
        raise EngineError(f"The engine at {self.url} cannot be asked for {ref}: {words}. Does it run (docker info)?")

    def build(self, recipe: Recipe, network: Network, *, base_id: str, fresh: bool = False) -> Found:
        """Build and tag one recipe; the build's words go to standard error. Raises EngineError."""
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spaces-image-")))
            secrets = [(id, _secret(folder / id, content)) for id, content in network.secrets().items()]
            argv = build_argv(self.client, recipe, base_id=base_id, secrets=secrets, fresh=fresh)
            self._feed(argv, stack.enter_context(_spooled(recipe.text.encode())), f"{recipe.ref} was not built")
        found = self.find(recipe.ref)
        if found is None:
            raise EngineError(f"{recipe.ref} was built and yet is not there: was it removed meanwhile?")
        return found

    def import_tar(self, tar: IO[bytes], ref: str, changes: Iterable[str]) -> Found:
        """Make an image of one layer from a root file system. Raises EngineError."""
        argv = (self.client, "import", *(part for change in changes for part in ("--change", change)), "-", ref)
        self._feed(argv, tar, f"{ref} was not imported")
        found = self.find(ref)
        if found is None:
            raise EngineError(f"{ref} was imported and yet is not there: was it removed meanwhile?")
        return found

    def _feed(self, argv: tuple[str, ...], stdin: IO[bytes], failure: str) -> None:
        try:
            done = subprocess.run(argv, stdin=stdin, stdout=2, env=self._environ, timeout=BUILD_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise EngineError(f"{failure} within {BUILD_SECONDS:.0f} s.") from error
        if done.returncode:
            raise EngineError(f"{failure}: see the lines above (exit code {done.returncode}).")


def _found(data: dict[str, Any]) -> Found:
    labels = (data.get("Config") or {}).get("Labels") or {}
    return Found(data["Id"], tuple(data.get("RepoDigests") or ()), labels, data["Created"], data["Size"])


def _run(argv: list[str], environ: Mapping[str, str]) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(argv, capture_output=True, env=dict(environ), timeout=ASK_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"`{' '.join(argv)}` did not answer within {ASK_SECONDS:.0f} s.") from error


def _secret(path: Path, content: bytes) -> Path:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    return path


def _spooled(content: bytes) -> IO[bytes]:
    file = tempfile.TemporaryFile()  # noqa: SIM115 (closed by the caller)
    file.write(content)
    file.seek(0)
    return file
