"""What the builder asks of a Docker engine, beside building.

Owns: the calls to the engine's API, and turning its failures into BuilderUnavailable or BuildError. Does not own: which
images are kept (`builder`). Invariant: no call waits longer than its timeout; nothing is retried here.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.utils import version_lt

from builders.types import BuildError, BuilderUnavailable

TIMEOUT = 60
PULL_SECONDS = 600
PRUNE_SECONDS = 900
NEWEST_API = "1.47"
"""The version of the engine's API that what is asked here was written for. Docker 29 still speaks 1.44."""
TAGS = "spaces-app"
"""Repository of the tags that keep finished images. Tags are random, so that no Dockerfile can name another's image."""
NEW = "spaces-new"
"""Repository of the names that images have until all of their build has succeeded. Their tags begin with the time."""
LABEL = "spaces.build"
"""On every image that was built here: its key."""
PLATFORM_LABEL = "spaces.platform"
"""On them as well: whose it is. Several platforms may share an engine."""


@dataclass(frozen=True, slots=True)
class Image:
    """What `docker image inspect` says."""

    id: str
    tags: tuple[str, ...]
    layers: tuple[str, ...]
    """Diff ids, lowest first."""
    folders: tuple[Path, ...]
    """Where the layers lie on the engine's disk, lowest first; empty where that is not known."""
    size: int
    config: Mapping[str, Any]
    digests: tuple[str, ...] = ()
    created: str = ""


def connect(url: str, timeout: float) -> Any:
    """A client that speaks the newest version of the API that both the engine and NEWEST_API know.

    docker-py by itself takes the engine's, and so would send newer engines words that they understand in another way.
    Raises DockerException.
    """
    client = docker.APIClient(base_url=url, version="auto", timeout=timeout)
    if version_lt(NEWEST_API, client.api_version):
        client.close()
        client = docker.APIClient(base_url=url, version=NEWEST_API, timeout=timeout)
    if url.startswith("unix:"):
        client.trust_env = False  # no proxy is between us and a socket; each call would look for one
    return client


class EngineApi:
    """Thread-safe: docker-py's client keeps a pool of connections."""

    def __init__(self, url: str) -> None:
        self.url = url

    @cached_property
    def _api(self) -> Any:
        with _failures("connecting to the container engine"):
            return connect(self.url, TIMEOUT)

    def info(self) -> Mapping[str, Any]:
        with _failures("asking the container engine about itself"):
            info: Mapping[str, Any] = self._api.info()
        return info

    def image(self, ref: str) -> Image | None:
        """An image that the engine has; None where it has not. Raises BuilderUnavailable."""
        with _failures(f"looking for the image {ref}"):
            try:
                return _image(self._api.inspect_image(ref))
            except (ImageNotFound, NotFound):
                return None

    def in_registry(self, ref: str) -> bool:
        """Whether a registry has it. Raises BuilderUnavailable."""
        with _failures(f"asking the registry for {ref}"):
            try:
                self._api.inspect_distribution(ref)
            except (ImageNotFound, NotFound):
                return False
        return True

    def history(self, ref: str) -> list[Mapping[str, Any]]:
        with _failures(f"reading the history of {ref}"):
            return list(self._api.history(ref))

    def tag(self, image: str, repository: str, tag: str) -> None:
        with _failures(f"tagging {image}"):
            self._api.tag(image, repository, tag)

    def remove(self, ref: str) -> bool:
        """Remove a tag, or an image by its id. False where it is in use; the absent is success."""
        with _failures(f"removing the image {ref}"):
            try:
                self._api.remove_image(ref)
            except (ImageNotFound, NotFound):
                return True
            except APIError as error:
                if error.status_code == 409:
                    return False
                raise
        return True

    def built_by(self, platform: str) -> Iterator[tuple[str, Sequence[str], int]]:
        """Id, tags and creation time of every image that this platform built."""
        label = f"{PLATFORM_LABEL}={platform}"
        with _failures("listing images"):
            rows = self._api.images(filters={"label": label, "dangling": False})
            rows += self._api.images(filters={"label": label, "dangling": True})
        for row in rows:
            tags = tuple(tag for tag in row.get("RepoTags") or () if tag != "<none>:<none>")
            yield row["Id"], tags, int(row["Created"])

    def names(self, repository: str) -> list[str]:
        """`repository:tag` of every image that has such a name."""
        with _failures(f"listing the images of {repository}"):
            rows = self._api.images(name=repository)
        tags = [tag for row in rows for tag in row.get("RepoTags") or ()]
        return [tag for tag in tags if tag.startswith(f"{repository}:")]

    def save(self, ref: str) -> IO[bytes]:
        """The image as `docker save` streams it."""
        with _failures(f"reading the image {ref}"):
            return io.BufferedReader(_Stream(self._api.get_image(ref)))

    def pull(self, repository: str, tag: str) -> None:
        """Without any login. Raises BuildError where there is no such image."""
        try:
            self._api.pull(repository, tag=tag, auth_config={}, stream=False)
        except (APIError, requests.RequestException) as error:
            said = str(getattr(error, "explanation", "") or error)
            if any(words in said for words in ("connection refused", "no such host", "i/o timeout", "Timeout")):
                raise BuildError(
                    "registry_unreachable",
                    f"The registry that has {repository} does not answer.",
                    "Try again; if it stays so, the platform's network needs a look.",
                    [said[:300]],
                ) from error
            raise BuildError(
                "image_not_found",
                f"There is no image {repository}:{tag} that the platform may pull.",
                "Check its name and tag in FROM; it must be public.",
                [said[:300]],
            ) from error

    def push(self, repository: str, tag: str) -> str:
        """Push and return the digest. Raises BuilderUnavailable."""
        name = f"{repository}:{tag}"
        with _failures(f"pushing {name}"):
            for row in self._api.push(repository, tag=tag, stream=True, decode=True):
                if "error" in row:
                    raise BuilderUnavailable(f"pushing {name} failed: {row['error']}")
                digest = (row.get("aux") or {}).get("Digest")
                if digest:
                    return str(digest)
        # Engines that keep images in containerd say it of the image alone.
        image = self.image(name)
        known = [one.rpartition("@") for one in (image.digests if image is not None else ())]
        found = [digest for pushed, _, digest in known if pushed == repository]
        if len(found) != 1:
            raise BuilderUnavailable(f"pushing {name} gave no digest")
        return found[0]

    def prune_cache(self, keep_bytes: int) -> int:
        """Drop what BuildKit has not used for longest, until its cache is that small. Bytes freed."""
        # A client of its own, since this takes minutes: the engine gives up when who asked has gone.
        with _failures("pruning the build cache"), closing(connect(self.url, PRUNE_SECONDS)) as api:
            return int(api.prune_builds(keep_storage=keep_bytes, all=True).get("SpaceReclaimed") or 0)


def _image(data: Mapping[str, Any]) -> Image:
    layers = tuple(data.get("RootFS", {}).get("Layers") or ())
    return Image(
        id=data["Id"],
        tags=tuple(data.get("RepoTags") or ()),
        layers=layers,
        folders=_folders(data.get("GraphDriver") or {}, len(layers)),
        size=int(data.get("Size") or 0),
        config=data.get("Config") or {},
        digests=tuple(data.get("RepoDigests") or ()),
        created=str(data.get("Created") or ""),
    )


def _folders(driver: Mapping[str, Any], count: int) -> tuple[Path, ...]:
    """overlay2 names the highest layer alone, and the others below it from high to low."""
    data = driver.get("Data") or {}
    if driver.get("Name") != "overlay2" or not data.get("UpperDir"):
        return ()
    lower = [part for part in str(data.get("LowerDir") or "").split(":") if part]
    folders = tuple(Path(part) for part in reversed([str(data["UpperDir"]), *lower]))
    return folders if len(folders) == count else ()


@contextmanager
def _failures(doing: str) -> Iterator[None]:
    try:
        yield
    except (DockerException, requests.RequestException, OSError) as error:
        raise BuilderUnavailable(f"The container engine failed at {doing}: {error}") from error


class _Stream(io.RawIOBase):
    """An iterator of chunks as a file."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks, self._rest = iter(chunks), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = next(self._chunks, b"")
        n = min(len(buffer), len(self._rest))
        buffer[:n] = self._rest[:n]
        self._rest = self._rest[n:]
        return n


def tar_files(data: bytes, names: Sequence[str]) -> dict[str, str]:
    """Regular files of a small archive, as text; links and everything else are left out."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isreg() else None
            if file is not None and member.name in names:
                found[member.name] = file.read().decode("utf-8", "replace")
    return found
