"""A folder on disk as a SourceTree, with the ids git would give it.

Owns: which files of a folder belong to the app, and their git blob and tree ids. Does not own: repositories (the
platform reads those through git). Invariant: nothing outside the folder is read or named; a link that leaves it is
refused. Git is asked only for the ignore rules, and only inside a work tree.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from builders.types import BuildError, TreeEntry

_SKIPPED = {
    ".git",
    ".hg",
    ".svn",
    "__pycache__",
    ".venv",
    "venv",
    "node_modules",
    ".DS_Store",
    ".mypy_cache",
    ".ruff_cache",
}


class LocalTree:
    """The files of a folder, read once when first asked for. Raises BuildError for a link that leaves the folder."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve(strict=True)
        self._entries: tuple[TreeEntry, ...] | None = None

    @property
    def id(self) -> str:
        return _tree_id([(entry.path.split("/"), entry) for entry in self.entries()])

    def entries(self) -> Sequence[TreeEntry]:
        if self._entries is None:
            names = sorted(self._names())
            self._entries = tuple(entry for name in names if (entry := self._entry(name)) is not None)
        return self._entries

    def read(self, path: str, limit: int = 1_000_000) -> bytes:
        entry = next((entry for entry in self.entries() if entry.path == path), None)
        if entry is None:
            raise FileNotFoundError(path)
        with (self.root / path).open("rb") as file:
            return file.read(limit)

    def export(self, dest: Path) -> None:
        for entry in self.entries():
            source, target = self.root / entry.path, dest / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            if entry.mode == "120000":
                target.symlink_to(os.readlink(source))
            else:
                shutil.copyfile(source, target, follow_symlinks=False)
                target.chmod(0o755 if entry.mode == "100755" else 0o644)

    def _names(self) -> list[str]:
        if (self.root / ".git").exists():
            listed = subprocess.run(
                ["git", "-C", str(self.root), "ls-files", "-z", "-co", "--exclude-standard"],
                capture_output=True,
                timeout=30,
                check=False,
            )
            if listed.returncode == 0:
                return [os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]
        names = []
        for folder, folders, files in os.walk(self.root):
            links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
            folders[:] = [name for name in folders if name not in _SKIPPED and name not in links]
            base = os.path.relpath(folder, self.root)
            names += [os.path.normpath(os.path.join(base, name)) for name in files + links if name not in _SKIPPED]
        return names

    def _entry(self, name: str) -> TreeEntry | None:
        path = self.root / name
        try:
            info = path.lstat()
        except FileNotFoundError:
            return None
        posix = PurePosixPath(name).as_posix()
        if stat.S_ISLNK(info.st_mode):
            target = os.fsencode(os.readlink(path))
            resolved = os.path.normpath(os.path.join(os.path.dirname(path), os.fsdecode(target)))
            if os.path.isabs(target) or not Path(resolved).is_relative_to(self.root):
                raise BuildError(
                    "link_outside",
                    f"`{posix}` is a link that leaves the folder.",
                    "Replace it by the file it points to.",
                )
            return TreeEntry(posix, "120000", _blob_id(target), len(target))
        if not stat.S_ISREG(info.st_mode):
            return None
        mode = "100755" if info.st_mode & stat.S_IXUSR else "100644"
        return TreeEntry(posix, mode, _file_id(path, info.st_size), info.st_size)


def _blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _file_id(path: Path, size: int) -> str:
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _tree_id(entries: Sequence[tuple[list[str], TreeEntry]]) -> str:
    """The git tree id: entries sorted by name, folders as if their name ended in `/`."""
    rows: list[tuple[bytes, bytes]] = []
    folders: dict[str, list[tuple[list[str], TreeEntry]]] = {}
    for parts, entry in entries:
        if len(parts) == 1:
            name = os.fsencode(parts[0])
            rows.append((name, entry.mode.encode() + b" " + name + b"\0" + bytes.fromhex(entry.oid)))
        else:
            folders.setdefault(parts[0], []).append((parts[1:], entry))
    for folder, inside in folders.items():
        name = os.fsencode(folder)
        rows.append((name + b"/", b"40000 " + name + b"\0" + bytes.fromhex(_tree_id(inside))))
    data = b"".join(row for _, row in sorted(rows))
    return hashlib.sha1(b"tree %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
