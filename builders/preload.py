"""preload_from_hub: files of a hub, laid out as huggingface_hub's cache has them, as a layer of their own.

Owns: what one entry means (`parse`), turning entries into commits and files (`resolve`), the layer's content id, and
writing it (`fetch`). Does not own: how a hub is reached and with whose rights (the `Hub` that is given), where layers
are kept (the builders). Invariant: `fetch` writes below its folder only, whatever a hub names its files; a file has its
name only once its size, and its checksum where its id is one, were found right.

Layout: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from builders.types import BuildError, BuildLog, Hub, HubFile, HubMissing, HubRepo, Phase

KINDS: Mapping[str, str] = {"models/": "model", "datasets/": "dataset", "spaces/": "space"}
"""What may stand before `owner/name`; a model is meant where nothing does."""
CACHE = ".cache/huggingface/hub"
"""Where apps look for it, from their home."""
FORMAT = 1
"""Enters every layer's id; raised when the same files would be written differently."""
MAX_FILES = 10_000
RESERVE = 512 << 20
"""Bytes that must stay free on the disk."""
TICK_SECONDS = 5.0
"""A large file's progress is told this often."""
_PATH_LENGTH = 1000
_NAME = re.compile(r"[A-Za-z0-9._-]{1,96}")
_BLOB = re.compile(r"[A-Za-z0-9_-]{1,128}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the list."""

    kind: str
    """`model`, `dataset` or `space`."""
    repo: str
    files: tuple[str, ...] = ()
    """Empty for all of them."""
    commit: str = ""
    """Empty for the newest."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one entry came to: a commit, and the files that are wanted of it."""

    repo: HubRepo
    paths: tuple[str, ...]
    is_main: bool
    """Whether the commit is what `main` was; otherwise it was named."""

    @property
    def folder(self) -> str:
        return f"{self.repo.kind}s--{self.repo.name.replace('/', '--')}"

    @property
    def size(self) -> int:
        return sum(self.repo.files[path].size for path in self.paths)


@dataclass(frozen=True, slots=True)
class Layer:
    """All that is to be in the cache. Equal layers have equal ids."""

    parts: tuple[Part, ...]

    @property
    def id(self) -> str:
        content = sorted([p.folder, p.repo.commit, sorted(p.paths), self.main_of(p)] for p in self.parts)
        return hashlib.sha256(json.dumps([FORMAT, content]).encode()).hexdigest()[:40]

    @property
    def size(self) -> int:
        """Bytes, as far as the hub told them."""
        return sum(part.size for part in self.parts)

    @property
    def words(self) -> tuple[str, ...]:
        """For records and logs: what exactly is in it."""
        return tuple(f"{p.repo.kind} {p.repo.name}@{p.repo.commit} ({len(p.paths)} files)" for p in self.parts)

    def main_of(self, part: Part) -> str:
        """The commit that `main` of a repository stands for: an app that asks for no commit finds the files as well."""
        same = [other for other in self.parts if other.folder == part.folder]
        return next((other for other in same if other.is_main), same[0]).repo.commit


def parse(text: str) -> Entry:
    """`[spaces/|datasets/|models/]owner/name [file1,file2 [commit]]`. Raises ValueError, saying what is wrong."""
    words = text.split()
    if not 1 <= len(words) <= 3:
        raise ValueError("is not `repo`, `repo file1,file2` or `repo file1,file2 commit`")
    kind, name = "model", words[0]
    prefix = f"{name.partition('/')[0]}/"
    if name.count("/") == 2 and prefix in KINDS:
        kind, name = KINDS[prefix], name.removeprefix(prefix)
    parts = name.split("/")
    # As huggingface_hub has it: its cache could not tell `a--b` from `a/b`.
    if len(parts) > 2 or not all(
        _NAME.fullmatch(p) and p.strip("-.") and "--" not in p and ".." not in p for p in parts
    ):
        raise ValueError("does not begin with the name of a repository, like openai-community/gpt2")
    files = tuple(dict.fromkeys(words[1].split(","))) if len(words) > 1 else ()
    if not all(_is_safe(path) for path in files):
        raise ValueError("names a file that is not a path inside its repository")
    commit = words[2] if len(words) > 2 else ""
    if commit and not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise ValueError("names a commit that is not 40 hexadecimal digits")
    return Entry(kind, name, files, commit)


def resolve(entries: Iterable[str], hub: Hub | None, limit: int, log: BuildLog) -> Layer:
    """Ask the hub which commits and files are meant. `limit`: bytes, all together.

    What no hub of this platform could have is left out with a line in the log. Raises BuildError.
    """
    parts: list[Part] = []
    for text in entries:
        entry = parse(text)
        try:
            if hub is None:
                raise HubMissing("nothing is fetched from a hub here")
            repo = hub.find(entry.kind, entry.repo, entry.commit or "main")
        except HubMissing as missing:
            log.line(f"warning: preload_from_hub: {entry.repo} is left out: {missing}.")
            continue
        parts.append(Part(repo, _chosen(repo, entry), not entry.commit))
        log.line(f"{entry.kind} {entry.repo} is at {repo.commit[:12]}: {len(parts[-1].paths)} files")
    layer = Layer(tuple(parts))
    if sum(len(part.paths) for part in parts) > MAX_FILES:
        raise _too_large(f"preload_from_hub comes to more than {MAX_FILES} files")
    if layer.size > limit:
        raise _too_large(f"preload_from_hub comes to {size_words(layer.size)}, and {size_words(limit)} are possible")
    return layer


def fetch(
    layer: Layer,
    hub: Hub,
    target: Path,
    *,
    limit: int,
    log: BuildLog,
    check: Callable[[], None],
    have: Sequence[Path] = (),
) -> int:
    """Write the layer into `target`, an existing empty folder; the bytes that came over the network.

    `check` is called between blocks, and what it raises comes through. `have`: folders of layers that are there
    already, from which equal files are linked. Raises BuildError; then the folder is to be thrown away.
    """
    if shutil.disk_usage(target).free - layer.size < RESERVE:
        raise BuildError(
            "disk_full",
            f"preload_from_hub comes to {size_words(layer.size)}, and the platform's disk has not that much left.",
            "Ask the admin to free some space, or name only the files that the app reads.",
        )
    job = _Fetch(hub, target, limit, log, check, have, sum(len(part.paths) for part in layer.parts))
    for part in layer.parts:
        for path in part.paths:
            job.file(part, path)
        refs = target / part.folder / "refs"
        _folder(refs, target)
        _write(refs / "main", layer.main_of(part).encode())
    return job.fetched


def lock_text(layer: Layer) -> str:
    """For the lock of a build, as comments."""
    return "".join(f"# preloaded: {words}\n" for words in layer.words)


def sync(folder: Path) -> None:
    """See to it that a finished layer outlives a power cut: its name will say that it is whole."""
    for base, _, files in os.walk(folder, topdown=False):
        for path in (*(Path(base, name) for name in files), Path(base)):
            if not path.is_symlink():
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)


class _Fetch:
    def __init__(
        self,
        hub: Hub,
        target: Path,
        limit: int,
        log: BuildLog,
        check: Callable[[], None],
        have: Sequence[Path],
        count: int,
    ) -> None:
        self.hub, self.target, self.limit, self.log, self.check = hub, target, limit, log, check
        self.have, self.count = have, count
        self.number = self.fetched = self.total = 0

    def file(self, part: Part, path: str) -> None:
        """One file: its content under `blobs`, its name under `snapshots`."""
        self.check()
        self.number += 1
        known = part.repo.files[path]
        name = f"{part.repo.name} {path}"
        self.log.phase(Phase.INSTALLING, f"{self.number}/{self.count} {name} ({size_words(known.size)})")
        blobs, pointer = self.target / part.folder / "blobs", self.target / part.folder / "snapshots"
        pointer = pointer / part.repo.commit / path
        for folder in (blobs, pointer.parent):
            _folder(folder, self.target)
        if pointer.is_symlink():
            return  # two entries name it
        blob = blobs / _blob_name(known.etag)
        if not self._have(part.folder, blob, known):
            with self.hub.open(part.repo, path) as (etag, chunks):
                blob = blobs / _blob_name(etag or known.etag or f"{part.repo.commit} {path}")
                if not blob.exists():
                    self._download(blob, HubFile(known.size, etag or known.etag), chunks, name)
        self.total += blob.stat().st_size
        self._check_total()
        os.symlink(os.path.relpath(blob, pointer.parent), pointer)

    def _have(self, folder: str, blob: Path, known: HubFile) -> bool:
        """Whether it is here under what the hub listed as its id, or can be taken from another layer."""
        if not known.etag or blob.exists():
            return bool(known.etag)
        for place in self.have:
            other = place / folder / "blobs" / blob.name
            try:
                if other.stat().st_size == known.size:
                    os.link(other, blob)
                    return True
            except FileNotFoundError:
                continue  # it has none such, or is being removed
        return False

    def _download(self, blob: Path, known: HubFile, chunks: Iterator[bytes], name: str) -> None:
        digest = _digest(known)
        done, told = 0, time.monotonic()
        draft = blob.with_name(f"{blob.name}.incomplete")
        with draft.open("wb") as file:
            for chunk in chunks:
                self.check()
                done += len(chunk)
                self.fetched += len(chunk)
                self._check_total(done)
                if known.size >= 0 and done > known.size:
                    raise _damaged(name, f"more than the {known.size} bytes that the hub announced")
                file.write(chunk)
                digest.update(chunk)
                if time.monotonic() - told >= TICK_SECONDS:
                    told = time.monotonic()
                    of = f" of {size_words(known.size)}" if known.size >= 0 else ""
                    self.log.phase(Phase.INSTALLING, f"{self.number}/{self.count} {name}: {size_words(done)}{of}")
        if known.size >= 0 and done != known.size:
            raise _damaged(name, f"{done} bytes instead of the {known.size} that the hub announced")
        if digest.name and digest.hexdigest() != known.etag:
            raise _damaged(name, "with another checksum than the hub announced")
        draft.chmod(0o644)
        draft.rename(blob)

    def _check_total(self, more: int = 0) -> None:
        if self.total + more > self.limit:
            raise _too_large(f"preload_from_hub comes to more than the {size_words(self.limit)} that are possible")


class _NoDigest:
    name = ""

    def update(self, _data: bytes) -> None: ...

    def hexdigest(self) -> str:
        return ""


def _digest(file: HubFile) -> hashlib._Hash | _NoDigest:
    """What the id of a file is the checksum of: git's for small files, SHA-256 for large ones, else nothing known."""
    if re.fullmatch(r"[0-9a-f]{64}", file.etag):
        return hashlib.sha256()
    if re.fullmatch(r"[0-9a-f]{40}", file.etag) and file.size >= 0:
        return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    return _NoDigest()


def skeleton(layer: Path, place: Path, target: Path) -> None:
    """The layer again, in `target`, with links to its files in place of them: an app that gets a copy of that may
    write everything but the files, which are shared. `place`: where the layer will be found."""
    for base, _, files in os.walk(layer):
        inner = Path(base).relative_to(layer)
        _folder(target / inner, target)
        for name in files:
            source, to = Path(base, name), target / inner / name
            if source.is_symlink():
                os.symlink(os.readlink(source), to)
            elif inner.name == "blobs":
                os.symlink(place / inner / name, to)
            else:
                _write(to, source.read_bytes())


def _chosen(repo: HubRepo, entry: Entry) -> tuple[str, ...]:
    if not entry.files:
        unsafe = next((path for path in repo.files if not _is_safe(path)), None)
        if unsafe is not None:
            raise BuildError(
                "hub_bad_path",
                f"{repo.name} has a file that cannot be kept under its name: {unsafe[:100]!r}.",
                "Name the files to fetch in preload_from_hub.",
            )
        return tuple(sorted(repo.files))
    for path in entry.files:
        if path not in repo.files:
            near = _near(path, repo.files)
            raise BuildError(
                "hub_file_not_found",
                f"preload_from_hub: {repo.name} has no file {path} at {repo.commit[:12]}.",
                f"Did you mean {near}?" if near else "Correct its name, or leave the files out to get all.",
                sorted(repo.files)[:20],
            )
    return entry.files


def _near(path: str, files: Iterable[str]) -> str:
    name = path.rpartition("/")[2].lower()
    return next((other for other in sorted(files) if other.rpartition("/")[2].lower() == name), "")


def _is_safe(path: str) -> bool:
    parts = path.split("/")
    return (
        0 < len(path) <= _PATH_LENGTH
        and all(part not in ("", ".", "..") and len(part.encode("utf-8", "replace")) <= 255 for part in parts)
        and not any(ord(c) < 32 or c in "\\\x7f" or 0xD800 <= ord(c) < 0xE000 for c in path)
    )


def _blob_name(etag: str) -> str:
    return etag if _BLOB.fullmatch(etag) else hashlib.sha256(etag.encode("utf-8", "replace")).hexdigest()


def _folder(path: Path, root: Path) -> None:
    """Make a folder and those between it and the root, for all to read whatever the umask is."""
    if path == root or path.is_dir():
        return
    _folder(path.parent, root)
    path.mkdir()
    path.chmod(0o755)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    path.chmod(0o644)


def no_repo(name: str, where: str, private: str) -> BuildError:
    """For hubs: nobody is told which of the two it is."""
    return BuildError(
        "hub_repo_not_found",
        f"preload_from_hub: there is no {name} {where}, or it is a private one {private}.",
        "Correct the name in README.md, or see to it that it may be read.",
    )


def no_revision(name: str, revision: str) -> BuildError:
    what = "has no files yet" if revision == "main" else f"has no commit {revision}"
    return BuildError(
        "hub_revision_not_found",
        f"preload_from_hub: {name} {what}.",
        "Correct the commit in README.md, or leave it out to get the newest.",
    )


def no_file(name: str, path: str) -> BuildError:
    return BuildError(
        "hub_file_not_found",
        f"preload_from_hub: {name} has no file {path}, although it was listed.",
        "Restart the Space to try again.",
    )


def _damaged(name: str, how: str) -> BuildError:
    return BuildError(
        "hub_damaged", f"preload_from_hub: {name} came {how}.", "Restart the Space to try again.", [name[:200]]
    )


def _too_large(cause: str) -> BuildError:
    return BuildError(
        "hub_too_large",
        f"{cause}.",
        "Name only the files that the app reads, or ask the platform's admin for a larger preload_mb.",
    )


def size_words(size: int) -> str:
    """Bytes for people; a hub that does not tell a size gives -1."""
    if size < 0:
        return "size unknown"
    for unit, step in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= step:
            return f"{size / step:.1f} {unit}"
    return f"{size} bytes"
