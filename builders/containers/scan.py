"""Looks for a Space's own secret values in what a build left: new layers, and the image's configuration.

Owns: which values can be looked for, searching files, and naming the place. Does not own: which layers are new
(`builder`). Invariant: reads only, follows no link, and ends within its deadline; a secret's value is in no result.

Found is a value as it was given, and as base64 of it; not one that was compressed, encrypted or cut to pieces.
"""

from __future__ import annotations

import base64
import io
import json
import os
import stat
import tarfile
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

SHORTEST = 8
"""Bytes of the shortest value looked for: `true` or `8080` is in every image."""
_CHUNK = 4 << 20
_DOCUMENT = 1 << 20
"""Bytes up to which a file of a saved image may be one that says what the others are."""


class TooSlow(Exception):
    """The deadline passed before everything was read."""


class Unreadable(Exception):
    """A layer is compressed in a way that is not known here (zstd)."""


@dataclass(frozen=True, slots=True)
class Needle:
    name: str
    """Name of the secret."""
    value: bytes


@dataclass(frozen=True, slots=True)
class Hit:
    name: str
    place: str
    """`home/user/app/.env, line 3`, or a part of the image's configuration."""


def without(place: str, looked_for: Sequence[Needle]) -> str:
    """A place for people: a value may be part of a file's name."""
    for needle in looked_for:
        place = place.replace(needle.value.decode("utf-8", "surrogateescape"), "***")
    return place


def needles(secrets: Mapping[str, str]) -> list[Needle]:
    """What to look for. Values that are too short are left out: `unchecked` names them."""
    found = []
    for name, text in secrets.items():
        value = text.strip().encode("utf-8", "surrogateescape")
        if len(value) < SHORTEST:
            continue
        found += [Needle(name, one) for one in (value, *_base64(value))]
    return found


def unchecked(secrets: Mapping[str, str]) -> list[str]:
    return sorted(name for name, text in secrets.items() if len(text.strip().encode("utf-8", "replace")) < SHORTEST)


def _base64(value: bytes) -> list[bytes]:
    """The part of its base64 text that does not depend on what stands before and after it, at all three offsets."""
    found = []
    for before in range(3):
        text = base64.b64encode(b"\0" * before + value).rstrip(b"=")
        inner = text[(before * 8 + 5) // 6 :]
        tail = (before + len(value)) % 3
        inner = inner[:-1] if tail else inner
        if len(inner) >= 12:
            found.append(inner)
    return found


def text(content: str, place: str, looked_for: Sequence[Needle]) -> Hit | None:
    """In a text of ours: configuration, history."""
    data = content.encode("utf-8", "surrogateescape")
    return next((Hit(needle.name, place) for needle in looked_for if needle.value in data), None)


def folder(root: Path, looked_for: Sequence[Needle], deadline: float) -> Hit | None:
    """In every file below a layer's folder. Raises TooSlow, OSError."""
    waiting = [str(root)]
    while waiting:
        base = waiting.pop()
        with os.scandir(base) as entries:
            for entry in entries:
                place = os.path.relpath(entry.path, root)
                hit = text(entry.name, f"the name of {place}", looked_for)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif entry.is_symlink():
                    hit = hit or text(os.readlink(entry.path), f"the link {place}", looked_for)
                elif hit is None and entry.is_file(follow_symlinks=False):
                    hit = _file(entry.path, place, looked_for, deadline)
                if hit is not None:
                    return hit
        _check(deadline)
    return None


def _file(path: str, place: str, looked_for: Sequence[Needle], deadline: float) -> Hit | None:
    # Opened without following: the folder is the engine's own, and what a tenant put there is looked at, never obeyed.
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        return stream(file, place, looked_for, deadline)


def stream(file: IO[bytes], place: str, looked_for: Sequence[Needle], deadline: float) -> Hit | None:
    """In one file, a chunk at a time. Raises TooSlow."""
    overlap = max((len(needle.value) for needle in looked_for), default=1) - 1
    rest, lines = b"", 1
    while chunk := file.read(_CHUNK):
        data = rest + chunk
        for needle in looked_for:
            at = data.find(needle.value)
            if at >= 0:
                line = lines + data.count(b"\n", 0, at)
                return Hit(needle.name, f"{place}, line {line}")
        keep = min(overlap, len(data))
        lines += data.count(b"\n", 0, len(data) - keep)
        rest = data[len(data) - keep :]
        if len(chunk) == _CHUNK:
            _check(deadline)
    return None


def layer(place: Path, looked_for: Sequence[Needle], deadline: float) -> Hit | None:
    """In one layer, a folder or an archive. Raises TooSlow, Unreadable, OSError."""
    if place.is_dir():
        return folder(place, looked_for, deadline)
    with place.open("rb") as content:
        return _layer(content, looked_for, deadline)


def archive(saved: IO[bytes], skip: set[str], looked_for: Sequence[Needle], deadline: float) -> Hit | None:
    """In the layers of a `docker save` stream, but for those of the diff ids in `skip`. Raises TooSlow, Unreadable.

    Slower than `layer`, since all layers pass by: for engines whose disk cannot be read. The list that says which
    layer is which comes last, so hits are kept until then.
    """
    hits: dict[str, Hit | None] = {}
    small: dict[str, bytes] = {}
    with tarfile.open(fileobj=saved, mode="r|") as outer:
        for member in outer:
            content = outer.extractfile(member) if member.isfile() else None
            if content is None:
                continue
            if member.size <= _DOCUMENT:
                small[member.name] = content.read()
                content = io.BytesIO(small[member.name])
            with suppress(Unreadable):  # whether it is a layer is not known yet
                hits[member.name] = _layer(content, looked_for, deadline)
            _check(deadline)
    manifest = json.loads(small["manifest.json"])[0]
    diff_ids = json.loads(small[manifest["Config"]])["rootfs"]["diff_ids"]
    new = [name for name, diff_id in zip(manifest["Layers"], diff_ids, strict=True) if diff_id not in skip]
    hit = next((hits[name] for name in new if hits.get(name) is not None), None)
    if hit is None and not all(name in hits for name in new):
        raise Unreadable
    return hit


def _layer(content: IO[bytes], looked_for: Sequence[Needle], deadline: float) -> Hit | None:
    """In an archive, compressed or not. Raises Unreadable for one that is none, or compressed in another way."""
    try:
        with tarfile.open(fileobj=content, mode="r|*") as inner:
            for member in inner:
                hit = text(member.name, f"the name of {member.name}", looked_for)
                if member.issym():
                    hit = hit or text(member.linkname, f"the link {member.name}", looked_for)
                file = inner.extractfile(member) if hit is None and member.isfile() else None
                hit = stream(file, member.name, looked_for, deadline) if file is not None else hit
                if hit is not None:
                    return hit
                _check(deadline)
    except (tarfile.ReadError, zlib.error, EOFError) as error:
        raise Unreadable from error
    return None


def _check(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise TooSlow


def masks(secrets: Iterable[str]) -> list[str]:
    """What must not be read in a log: every value, and every line of one that has several. Longest first."""
    found = {
        part for value in secrets for part in (value, value.strip(), *value.splitlines()) if len(part.strip()) >= 4
    }
    return sorted(found, key=len, reverse=True)
