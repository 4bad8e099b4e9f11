"""Makes git objects and packs from bytes: blobs, edited trees, commits.

It owns the object formats and the edits of a tree in memory; it reads old trees through a callback and stores nothing.
Invariant: what comes out is a valid pack of exactly the new objects. Formats: `git help gitformat-pack`.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from spaces_platform.adapters.git.objects import parse_tree
from spaces_platform.adapters.git.push_rules import TREE
from spaces_platform.errors import EntryNotFound, Unprocessable
from spaces_platform.ports import FileChange

EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
_KINDS = {"commit": 1, "tree": 2, "blob": 3}
_FILE = "100644"
_EXECUTABLE = "100755"


@dataclass
class NewObjects:
    """Objects to be packed, each once."""

    _objects: dict[str, tuple[str, bytes]] = field(default_factory=dict)

    def add(self, kind: str, content: bytes) -> str:
        oid = hashlib.sha1(b"%s %d\0" % (kind.encode(), len(content)) + content, usedforsecurity=False).hexdigest()
        self._objects[oid] = (kind, content)
        return oid

    def pack(self) -> Iterator[bytes]:
        """A version 2 pack without deltas, in pieces."""
        digest = hashlib.sha1(usedforsecurity=False)
        head = b"PACK" + (2).to_bytes(4, "big") + len(self._objects).to_bytes(4, "big")
        digest.update(head)
        yield head
        for kind, content in self._objects.values():
            piece = _entry_head(_KINDS[kind], len(content)) + zlib.compress(content, 1)
            digest.update(piece)
            yield piece
        yield digest.digest()


def _entry_head(kind: int, size: int) -> bytes:
    """Type and size: 4 bits of the size in the first byte, 7 in each that follows, low ones first."""
    head, byte = bytearray(), (kind << 4) | (size & 15)
    size >>= 4
    while size:
        head.append(byte | 0x80)
        byte, size = size & 0x7F, size >> 7
    head.append(byte)
    return bytes(head)


@dataclass
class _Folder:
    oid: str | None
    """The tree it was read from; None for a new one."""
    entries: dict[bytes, tuple[str, str] | _Folder]
    """Name -> (mode, id), or a folder that was opened."""


class TreeEdit:
    """Applies changes, in order, to a tree."""

    def __init__(self, root: str | None, load: Callable[[str], bytes]) -> None:
        """`load` gives the raw content of a tree object."""
        self._load = load
        self._root = _Folder(None, {}) if root is None else self._open(root)

    def apply(self, change: FileChange, objects: NewObjects) -> None:
        """Raises EntryNotFound (deleting the absent), Unprocessable (a file where a folder is, or the other way)."""
        path = change.path.rstrip("/") if change.content is None else change.path
        *folders, name = [part.encode() for part in path.split("/")]
        if change.content is None:
            self._delete(path, folders, name, only_folder=change.path.endswith("/"))
            return
        parent = self._root
        for at, part in enumerate(folders):
            inner = self._enter(parent, part, create=True)
            if inner is None:
                above = b"/".join(folders[: at + 1]).decode()
                raise Unprocessable(f"{path}: {above} is a file; delete it in the same commit first.")
            parent = inner
        known = parent.entries.get(name)
        if isinstance(known, _Folder) or (known is not None and known[0] == TREE):
            raise Unprocessable(f"{path} is a folder; delete it in the same commit first.")
        mode = _EXECUTABLE if known is not None and known[0] == _EXECUTABLE else _FILE
        parent.entries[name] = (mode, objects.add("blob", change.content))

    def write(self, objects: NewObjects) -> str:
        """The id of the edited tree, its new trees added to `objects`."""
        return self._write(self._root, objects) or objects.add("tree", b"")

    def _delete(self, path: str, folders: Sequence[bytes], name: bytes, *, only_folder: bool) -> None:
        parent: _Folder | None = self._root
        trail = []
        for part in folders:
            trail.append((parent, part))
            parent = None if parent is None else self._enter(parent, part, create=False)
        known = None if parent is None else parent.entries.get(name)
        is_folder = isinstance(known, _Folder) or (known is not None and known[0] == TREE)
        if parent is None or known is None or (only_folder and not is_folder):
            raise EntryNotFound(f"Entry not found: {path} is not in the repository.")
        del parent.entries[name]
        for above, part in reversed(trail):  # a folder without files is none
            below = None if above is None else above.entries.get(part)
            if above is not None and isinstance(below, _Folder) and not below.entries:
                del above.entries[part]

    def _open(self, oid: str) -> _Folder:
        return _Folder(oid, {item.name: (item.mode, item.oid) for item in parse_tree(self._load(oid))})

    def _enter(self, parent: _Folder, name: bytes, *, create: bool) -> _Folder | None:
        known = parent.entries.get(name)
        if isinstance(known, _Folder):
            return known
        if known is None and create:
            inner = _Folder(None, {})
        elif known is not None and known[0] == TREE:
            inner = self._open(known[1])
        else:
            return None
        parent.entries[name] = inner
        return inner

    def _write(self, folder: _Folder, objects: NewObjects) -> str | None:
        """The folder's id, or None where nothing is in it."""
        lines = []
        for name, entry in folder.entries.items():
            mode, oid = (TREE, self._write(entry, objects)) if isinstance(entry, _Folder) else entry
            if oid is not None:
                # git sorts a folder as if its name ended in a slash
                lines.append((name + b"/" if mode == TREE else name, mode.encode() + b" " + name + b"\0", oid))
        if not lines:
            return None
        raw = b"".join(head + bytes.fromhex(oid) for _, head, oid in sorted(lines))
        return objects.add("tree", raw)


def commit_text(tree: str, parent: str | None, *, message: str, author: str, email: str, at: int) -> bytes:
    """A raw commit object; `at` is seconds since 1970, told as UTC."""
    who = f"{_plain(author) or 'unknown'} <{_plain(email)}> {at} +0000"
    parents = f"parent {parent}\n" if parent else ""
    text = message.replace("\0", "").strip() or "Update"
    return f"tree {tree}\n{parents}author {who}\ncommitter {who}\n\n{text}\n".encode("utf-8", "replace")


def _plain(name: str) -> str:
    """A name as git allows it: one line, without `<` and `>`, and not framed by marks that git strips."""
    return "".join(c for c in name if c.isprintable() and c not in "<>").strip(" .,:;\"'\\")
