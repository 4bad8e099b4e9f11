"""Reads git objects: a batch reader, raw tree parsing, and the SourceTree of a commit.

It owns how trees and blobs come out of a repository and how a tree is written to disk; it moves no ref and judges no
push. Invariant: nothing is ever written outside the given folder, whatever the tree holds; git never checks out.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import IO, NamedTuple

from builders.types import TreeEntry
from spaces_platform.adapters.git.process import CHUNK, GitAt, GitError, pipe
from spaces_platform.adapters.git.push_rules import LINK, TREE, PushLimits, TreeItem, link_problems, path_problem
from spaces_platform.errors import RevisionNotFound, TooLarge, Unprocessable

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\n"
_POINTER_BYTES = 1024
_FILE_MODES = {"100644": 0o644, "100664": 0o644, "100755": 0o755}

Materialise = Callable[[bytes], Iterator[bytes] | None]
"""Given the text of an LFS pointer, the content it stands for, or None to leave the pointer as it is."""


class ObjectHeader(NamedTuple):
    oid: str
    kind: str
    """`commit`, `tree`, `blob`, `tag`, or `missing`."""
    size: int


class ObjectReader:
    """Reads objects by id through one `git cat-file --batch`. Use `reading()`."""

    def __init__(self, requests: IO[bytes], answers: IO[bytes]) -> None:
        self._requests, self._answers = requests, answers

    def read(self, oid: str, limit: int = 64 << 20) -> tuple[str, bytes]:
        """Kind and content. Raises KeyError where there is no such object, TooLarge past `limit` bytes."""
        header = self._ask(oid)
        if header.kind == "missing":
            raise KeyError(oid)
        if header.size > limit:
            self._skip(header.size + 1)
            raise TooLarge(f"object {oid} has {header.size} bytes; the limit is {limit}")
        content = self._answers.read(header.size)
        self._skip(1)
        return header.kind, content

    def first(self, name: str, limit: int) -> tuple[str, bytes]:
        """Kind and first bytes of an object by id or name; `missing` and nothing where there is none."""
        header = self._ask(name)
        if header.kind == "missing":
            return "missing", b""
        content = self._answers.read(min(header.size, limit))
        self._skip(header.size - len(content) + 1)
        return header.kind, content

    def copy(self, oid: str, write: Callable[[bytes], object]) -> None:
        """Hand a blob's content over in chunks. Raises KeyError where there is no such object."""
        header = self._ask(oid)
        if header.kind == "missing":
            raise KeyError(oid)
        left = header.size
        while left:
            chunk = self._answers.read(min(left, CHUNK))
            if not chunk:
                raise GitError("cat-file", 0, f"ended within object {oid}")
            left -= len(chunk)
            write(chunk)
        self._skip(1)

    def _ask(self, oid: str) -> ObjectHeader:
        self._requests.write(oid.encode() + b"\n")
        self._requests.flush()
        return _header(self._answers.readline())

    def _skip(self, count: int) -> None:
        while count > 0:
            chunk = self._answers.read(min(count, CHUNK))
            if not chunk:
                raise GitError("cat-file", 0, "ended within an object")
            count -= len(chunk)


@contextmanager
def reading(at: GitAt) -> Iterator[ObjectReader]:
    """An ObjectReader for the block."""
    with at.process("cat-file", "--batch") as child:
        yield ObjectReader(pipe(child.stdin), pipe(child.stdout))


def headers(at: GitAt, names: Iterable[str]) -> list[ObjectHeader]:
    """Id, kind and size of objects by id or name, in order; a name must hold no newline."""
    given = "".join(f"{name}\n" for name in names).encode()
    return [_header(line) for line in at.run("cat-file", "--batch-check", "--buffer", given=given).splitlines()]


def all_headers(at: GitAt) -> list[ObjectHeader]:
    """Every object in the object directory: with a quarantine alone, what a push brought."""
    output = at.run("cat-file", "--batch-all-objects", "--unordered", "--batch-check", "--buffer", at_most=256 << 20)
    return [_header(line) for line in output.splitlines()]


def _header(line: bytes) -> ObjectHeader:
    words = line.split()
    if len(words) == 3 and words[2].isdigit():
        return ObjectHeader(words[0].decode(), words[1].decode(), int(words[2]))
    if line.endswith((b"missing", b"missing\n", b"ambiguous", b"ambiguous\n")):
        return ObjectHeader("", "missing", 0)
    raise GitError("cat-file", 0, f"unexpected answer {line[:80]!r}")


def parse_tree(raw: bytes) -> list[TreeItem]:
    """Entries of a raw tree object (format: `git help gitformat-pack`, tree objects; mode SP name NUL sha1)."""
    items, at, end = [], 0, len(raw)
    while at < end:
        space = raw.index(b" ", at)
        nul = raw.index(b"\0", space)
        items.append(TreeItem(raw[at:space].decode("ascii"), raw[space + 1 : nul], raw[nul + 1 : nul + 21].hex()))
        at = nul + 21
    return items


@dataclass(frozen=True)
class GitSourceTree:
    """The tree of one commit. A `builders.types.SourceTree`.

    Raises TooLarge or Unprocessable where the tree breaks the push rules: an old commit may, a pushed head cannot.
    """

    at: GitAt
    commit: str
    limits: PushLimits
    materialise: Materialise | None = None

    @cached_property
    def id(self) -> str:
        [header] = headers(self.at, [f"{self.commit}^{{tree}}"])
        if header.kind != "tree":
            raise RevisionNotFound(f"Invalid rev id: {self.commit}")
        return header.oid

    @cached_property
    def _entries(self) -> Mapping[str, TreeEntry]:
        found: dict[str, TreeEntry] = {}
        try:
            with self.at.process("ls-tree", "-r", "-l", "-z", "--full-tree", self.commit) as child:
                for record in _records(pipe(child.stdout), self.limits.files):
                    entry = _entry(record, self.limits)
                    found[entry.path] = entry
        except GitError as error:
            raise RevisionNotFound(f"Invalid rev id: {self.commit}") from error
        return dict(sorted(found.items()))

    def entries(self) -> Sequence[TreeEntry]:
        return tuple(self._entries.values())

    def read(self, path: str, limit: int = 1_000_000) -> bytes:
        if path_problem(path.encode("utf-8", "surrogateescape"), self.limits) is not None:
            raise FileNotFoundError(path)
        with reading(self.at) as objects:
            kind, content = objects.first(f"{self.commit}:{path}", limit)
        if kind != "blob":
            raise FileNotFoundError(path)
        return content

    def export(self, dest: Path) -> None:
        total = sum(entry.size for entry in self._entries.values())
        if total > self.limits.tree_bytes:
            raise TooLarge(f"the files of {self.commit[:10]} have {total} bytes; the limit is {self.limits.tree_bytes}")
        links: dict[str, str] = {}
        with reading(self.at) as objects, _Folder(dest) as folder:
            for entry in self._entries.values():
                if entry.mode == LINK:
                    links[entry.path] = objects.read(entry.oid, self.limits.path_bytes)[1].decode("utf-8", "strict")
                else:
                    folder.write(entry, partial(self._content, objects, entry))
            for problem in link_problems(links):
                raise Unprocessable(problem.text)
            for path, target in links.items():  # last: no file is ever written through one
                folder.link(path, target)

    def _content(self, objects: ObjectReader, entry: TreeEntry, write: Callable[[bytes], object]) -> None:
        if self.materialise is not None and entry.size <= _POINTER_BYTES:
            _, text = objects.read(entry.oid)
            chunks = self.materialise(text) if text.startswith(LFS_POINTER) else None
            for chunk in [text] if chunks is None else chunks:
                write(chunk)
        else:
            objects.copy(entry.oid, write)


class _Folder:
    """Writes below one folder by descriptors, so that no link and no renamed folder can lead it elsewhere."""

    def __init__(self, dest: Path) -> None:
        self._dest = dest
        self._names: list[str] = []
        self._fds: list[int] = []

    def __enter__(self) -> _Folder:
        self._fds.append(os.open(self._dest, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW))
        return self

    def __exit__(self, *_: object) -> None:
        while self._fds:
            os.close(self._fds.pop())

    def write(self, entry: TreeEntry, content: Callable[[Callable[[bytes], object]], None]) -> None:
        parent, name = self._enter(entry.path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with open(os.open(name, flags, 0o600, dir_fd=parent), "wb") as file:
            content(file.write)
            os.fchmod(file.fileno(), _FILE_MODES[entry.mode])

    def link(self, path: str, target: str) -> None:
        parent, name = self._enter(path)
        os.symlink(target, name, dir_fd=parent)

    def _enter(self, path: str) -> tuple[int, str]:
        """Descriptor of the path's folder, made where needed; folders of the last path are kept open."""
        *folders, name = path.split("/")
        same = 0
        while same < min(len(folders), len(self._names)) and folders[same] == self._names[same]:
            same += 1
        while len(self._names) > same:
            os.close(self._fds.pop())
            self._names.pop()
        for folder in folders[same:]:
            parent = self._fds[-1]
            try:
                os.mkdir(folder, 0o755, dir_fd=parent)
            except FileExistsError:
                if not stat.S_ISDIR(os.stat(folder, dir_fd=parent, follow_symlinks=False).st_mode):
                    raise
            self._fds.append(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent))
            self._names.append(folder)
        return self._fds[-1], name


def _records(stream: IO[bytes], at_most: int) -> Iterator[bytes]:
    """NUL-ended records, refused past `at_most`: a tree of a few objects can list 10^10 files."""
    rest, count = b"", 0
    while chunk := stream.read1(CHUNK):  # type: ignore[attr-defined]
        *whole, rest = (rest + chunk).split(b"\0")
        count += len(whole)
        if count > at_most:
            raise TooLarge(f"the tree has more than {at_most} files")
        yield from whole


def _entry(record: bytes, limits: PushLimits) -> TreeEntry:
    """One `<mode> <type> <oid> <size>TAB<path>` of `git ls-tree -l -z`."""
    meta, _, raw = record.partition(b"\t")
    mode, _kind, oid, size = meta.decode("ascii").split()
    problem = path_problem(raw, limits)
    if problem is not None:
        raise Unprocessable(problem.text)
    if mode != LINK and mode not in _FILE_MODES:
        raise Unprocessable(f"{raw.decode()}: entries of mode {mode} (submodules) are not supported")
    return TreeEntry(raw.decode(), "100644" if mode == "100664" else mode, oid, int(size))


__all__ = ["LFS_POINTER", "TREE", "GitSourceTree", "Materialise", "ObjectHeader", "ObjectReader"]
