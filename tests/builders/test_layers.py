"""Layers in both image stores of Docker, as folders and archives: found, looked through, read for what they hold."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from builders.containers import layers, sbom, scan
from builders.containers.builder import leftovers
from builders.containers.engine import Image

SECRET = "s3cr3t-of-ada-0123456789"
NEEDLES = scan.needles({"TOKEN": SECRET})
ZSTD = b"\x28\xb5\x2f\xfd" + b"\0" * 600


def tar(files: dict[str, bytes | str | None]) -> bytes:
    """Name -> content, the target of a link, or None for a folder."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            if content is None:
                member.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
            else:
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    return out.getvalue()


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def image(id: str, *diff_ids: str, folders: tuple[Path, ...] = ()) -> Image:
    return Image(id, (), diff_ids, folders, 0, {})


def stored(content: Path, *blobs: bytes) -> None:
    for blob in blobs:
        path = content / layers._CONTENT / digest(blob).replace(":", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(blob)


def manifest(*blobs: bytes) -> bytes:
    return json.dumps({"layers": [{"digest": digest(blob)} for blob in blobs]}).encode()


def deadline() -> float:
    return time.monotonic() + 60


# --- where they lie ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("status", "own", "place"),
    [
        ([["Backing Filesystem", "extfs"]], True, "docker"),
        (None, False, "docker"),
        pytest.param([["driver-type", "io.containerd.snapshotter.v1"]], True, "docker/containerd/daemon", id="its own"),
        pytest.param([["driver-type", "io.containerd.snapshotter.v1"]], False, "system", id="of a service"),
    ],
)
def test_each_store_has_its_folder(tmp_path: Path, status: list[list[str]] | None, own: bool, place: str) -> None:
    if own:
        (tmp_path / "docker/containerd/daemon").mkdir(parents=True)
    info = {"DockerRootDir": str(tmp_path / "docker"), "DriverStatus": status}
    assert layers.store(info, tmp_path / "system") == tmp_path / place


def test_containerds_store_is_read_by_the_manifest_that_an_images_id_names(tmp_path: Path) -> None:
    first, second = tar({"a": b"1"}), gzip.compress(tar({"b": b"2"}))
    described = manifest(first, second)
    stored(tmp_path, first, second, described)
    found = layers.find(image(digest(described), "sha256:one", "sha256:two"), tmp_path)
    assert list(found) == ["sha256:one", "sha256:two"]
    assert [path.read_bytes() for path in found.values()] == [first, second]


def test_nothing_is_guessed(tmp_path: Path) -> None:
    first, second = tar({"a": b"1"}), tar({"b": b"2"})
    described = manifest(first, second)
    stored(tmp_path, first, described, b"[]", b"no json")

    def found(id: str, *diff_ids: str) -> dict[str, Path]:
        return layers.find(image(id, *diff_ids), tmp_path)

    assert found(digest(described), "sha256:one", "sha256:two") == {}, "one of them is not there"
    stored(tmp_path, second)
    assert found(digest(described), "sha256:one", "sha256:two")
    assert found(digest(described), "sha256:one") == {}, "another number of them"
    for id in (digest(b"another"), digest(b"[]"), digest(b"no json"), "sha256:../../x", "spaces/base:bookworm", ""):
        assert found(id, "sha256:one", "sha256:two") == {}


def test_the_folders_that_an_engine_names_are_taken(tmp_path: Path) -> None:
    found = layers.find(image("sha256:x", "sha256:one", folders=(tmp_path / "diff",)), tmp_path)
    assert found == {"sha256:one": tmp_path / "diff"}


# --- looking through them --------------------------------------------------------------------------------------------
HELD: list[tuple[dict[str, bytes | str | None], str]] = [
    ({"home/": None, "home/.env": f"one\n{SECRET}".encode()}, "home/.env, line 2"),
    ({f"d/{SECRET}": b""}, f"the name of d/{SECRET}"),
    ({f"d/{SECRET}": None}, f"the name of d/{SECRET}"),
    ({"link": SECRET}, "the link link"),
]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress], ids=["plain", "gzip", "bzip2"])
@pytest.mark.parametrize(("files", "place"), HELD)
def test_a_secret_is_found_in_an_archive(
    tmp_path: Path, files: dict[str, bytes | str | None], place: str, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "layer"
    path.write_bytes(pack(tar({"before": b"x" * 2000, **files})))
    assert scan.layer(path, NEEDLES, deadline()) == scan.Hit("TOKEN", place)
    path.write_bytes(pack(tar({"before": b"x" * 2000})))
    assert scan.layer(path, NEEDLES, deadline()) is None


@pytest.mark.parametrize(
    "data",
    [ZSTD, gzip.compress(tar({"a": SECRET.encode()}))[:40], b"", b"{}"],
    ids=["zstd", "cut off", "empty", "a manifest"],
)
def test_an_archive_that_cannot_be_read_is_not_a_clean_one(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "layer"
    path.write_bytes(data)
    with pytest.raises(scan.Unreadable):
        scan.layer(path, NEEDLES, deadline())


def test_looking_through_an_archive_ends_in_time(tmp_path: Path) -> None:
    path = tmp_path / "layer"
    path.write_bytes(tar({"a": b"1"}))
    with pytest.raises(scan.TooSlow):
        scan.layer(path, NEEDLES, time.monotonic() - 1)


def saved(*blobs: bytes, old: bool = False) -> tuple[bytes, list[str]]:
    """What `docker save` streams, until Docker 24 and since; and the diff ids."""
    diff_ids = [f"sha256:{number}" for number in range(len(blobs))]
    config = json.dumps({"rootfs": {"diff_ids": diff_ids}}).encode()
    names = [
        f"{n}/layer.tar" if old else digest(blob).replace("sha256:", "blobs/sha256/") for n, blob in enumerate(blobs)
    ]
    config_name = "abc.json" if old else digest(config).replace("sha256:", "blobs/sha256/")
    listed = json.dumps([{"Config": config_name, "Layers": names}]).encode()
    return tar({config_name: config, **dict(zip(names, blobs, strict=True)), "manifest.json": listed}), diff_ids


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_saved_image_is_looked_through_but_for_what_is_known(old: bool, pack: Callable[[bytes], bytes]) -> None:
    clean, bad = pack(tar({"a": b"1" * 3000})), pack(tar({"b": f"{SECRET}".encode()}))
    stream, diff_ids = saved(clean, bad, old=old)
    assert scan.archive(io.BytesIO(stream), set(), NEEDLES, deadline()) == scan.Hit("TOKEN", "b, line 1")
    assert scan.archive(io.BytesIO(stream), {diff_ids[1]}, NEEDLES, deadline()) is None
    assert scan.archive(io.BytesIO(saved(clean, old=old)[0]), set(), NEEDLES, deadline()) is None


def test_a_saved_image_with_a_new_layer_that_cannot_be_read_is_not_a_clean_one() -> None:
    stream, diff_ids = saved(ZSTD, tar({"a": b"1"}))
    with pytest.raises(scan.Unreadable):
        scan.archive(io.BytesIO(stream), set(), NEEDLES, deadline())
    assert scan.archive(io.BytesIO(stream), {diff_ids[0]}, NEEDLES, deadline()) is None


# --- what they hold --------------------------------------------------------------------------------------------------
INSTALLED: dict[str, bytes | str | None] = {
    "opt/env/lib/python3.11/site-packages/Flask-3.0.0.dist-info/METADATA": b"Name: Flask",
    "usr/lib/python3/dist-packages/attrs-23.1.dist-info": None,
    "home/other/six-1.16.0.dist-info/METADATA": b"in no folder of packages",
    "var/lib/dpkg/status": b"Package: bash\n",
}


@pytest.mark.parametrize("kind", ["folder", "plain", "gzip"])
def test_packages_are_read_in_folders_and_archives_alike(tmp_path: Path, kind: str) -> None:
    path, data = tmp_path / "layer", tar(INSTALLED)
    if kind == "folder":
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            archive.extractall(path, filter="data")
    else:
        path.write_bytes(gzip.compress(data) if kind == "gzip" else data)
    assert sbom.read_layer(path) == ("attrs==23.1\nflask==3.0.0\n", "Package: bash\n")


def test_of_an_archive_that_cannot_be_read_nothing_is_listed(tmp_path: Path) -> None:
    path = tmp_path / "layer"
    path.write_bytes(ZSTD)
    assert sbom.read_layer(path) == ("", "")


# --- what killed builds left -------------------------------------------------------------------------------------
APP, YOUNG, OLD = "spaces-app:ab", "spaces-new:950-ab", "spaces-new:100-cd"


@pytest.mark.parametrize(
    ("tags", "created", "known", "gone"),
    [
        pytest.param((APP,), 100, True, (), id="kept"),
        pytest.param((APP, OLD), 100, True, (OLD,), id="kept, and built again by a build that was killed"),
        pytest.param((APP, YOUNG), 100, True, (), id="being built again"),
        pytest.param((YOUNG,), 100, False, (), id="being built, of cached layers"),
        pytest.param((OLD,), 100, False, (OLD,), id="killed"),
        pytest.param((APP, "spaces-new:mine"), 100, True, (), id="somebody's own name"),
        pytest.param((), 100, False, ("id",), id="nameless"),
        pytest.param((), 950, False, (), id="nameless and young"),
        pytest.param((APP,), 100, False, (APP,), id="killed before its record"),
    ],
)
def test_only_what_killed_builds_left_is_removed(
    tags: tuple[str, ...], created: float, known: bool, gone: tuple[str, ...]
) -> None:
    assert tuple(leftovers("id", tags, created, known=known, before=900)) == gone
