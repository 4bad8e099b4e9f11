"""What the container builder knows of finished images, on disk.

    ROOT/records/<key>/record.json, sbom.json, Dockerfile      a finished image; the folder appears whole, by a rename
    ROOT/environments/<key>.json                               lock and system packages of an environment
    ROOT/scanned/<key>                                         layers in which a set of secrets was not found
    ROOT/scopes.key                                            what owners' cache scopes are derived with
    ROOT/work/<id>/                                            of a running build: context, Dockerfile; locked by it
    ROOT/locks/…

Owns: these files. Does not own: images (the engine), or what is in a record (`builder`). Invariant: a record is written
after its image is complete, scanned and tagged; so what a killed build leaves has no record.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from builders.layout import Lock, remove_tree, sync_folder, write_durably

_KEPT_ENVIRONMENTS = 500
_KEPT_LAYERS = 1000


@dataclass(frozen=True, slots=True)
class Record:
    """A finished image."""

    ref: str
    image: str
    """`sha256:…`: the engine's id."""
    tag: str
    owner: str
    space: str
    plan: str
    lock: str = ""
    size: int = 0
    built: int = 0
    """Unix seconds."""
    hub: str = ""
    """Key of the image with what it preloads from a hub; see hub_image.py."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is installed in an image, below the app."""

    lock: str = ""
    """Requirement lines."""
    status: str = ""
    """Debian's /var/lib/dpkg/status."""
    sbom: str = ""
    """What both mean, as CycloneDX JSON."""


class Records:
    """Safe to use from several threads and processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("records", "environments", "scanned", "work", "locks"):
            (root / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        self._key = _key_file(root / "scopes.key")
        self.sweep()

    def scope(self, *parts: str) -> str:
        """A name for a cache that nobody can guess who does not know this platform's key; equal parts, equal name."""
        text = json.dumps(parts).encode()
        return hmac.new(self._key, text, hashlib.sha256).hexdigest()[:32]

    @property
    def platform(self) -> str:
        """What this platform's images are known by; tells nothing of its key."""
        return self.scope("platform")

    # --- images ----------------------------------------------------------------------------------------------------
    def find(self, key: str) -> Record | None:
        try:
            data = json.loads((self.root / "records" / key / "record.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return Record(**data)

    def papers(self, key: str) -> tuple[str, str]:
        """SBOM and Dockerfile of a finished image."""
        folder = self.root / "records" / key
        return _text(folder / "sbom.json"), _text(folder / "Dockerfile")

    def add(self, key: str, record: Record, sbom: str, dockerfile: str) -> None:
        target = self.root / "records" / key
        draft = self.root / "work" / f"record-{secrets.token_hex(8)}"
        draft.mkdir(mode=0o700)
        (draft / "sbom.json").write_text(sbom, encoding="utf-8")
        (draft / "Dockerfile").write_text(dockerfile, encoding="utf-8")
        write_durably(draft / "record.json", asdict(record))
        remove_tree(target)  # of an image that the engine has lost
        draft.rename(target)
        sync_folder(target.parent)

    def all(self) -> Iterator[tuple[str, Record]]:
        for folder in sorted((self.root / "records").iterdir()):
            record = self.find(folder.name)
            if record is not None:
                yield folder.name, record

    def drop(self, key: str) -> None:
        remove_tree(self.root / "records" / key)

    # --- environments ----------------------------------------------------------------------------------------------
    def facts(self, key: str) -> Facts | None:
        path = self.root / "environments" / f"{key}.json"
        try:
            facts = Facts(**json.loads(path.read_text(encoding="utf-8")))
            os.utime(path)
        except FileNotFoundError:
            return None
        return facts

    def add_facts(self, key: str, facts: Facts) -> None:
        folder = self.root / "environments"
        draft = folder / f".{key}.{secrets.token_hex(4)}"
        draft.write_text(json.dumps(asdict(facts)), encoding="utf-8")
        draft.rename(folder / f"{key}.json")
        newest = sorted(folder.glob("*.json"), key=_changed, reverse=True)
        for old in newest[_KEPT_ENVIRONMENTS:]:
            old.unlink(missing_ok=True)

    # --- layers that were looked through -------------------------------------------------------------------------
    def scanned(self, secrets_key: str) -> set[str]:
        """Diff ids of layers in which the same values were looked for, and not found."""
        return set(_text(self.root / "scanned" / secrets_key).split())

    def add_scanned(self, secrets_key: str, layers: Iterable[str]) -> None:
        path = self.root / "scanned" / secrets_key
        known = _text(path).split()
        new = [layer for layer in layers if layer not in known]
        draft = path.with_name(f".{secrets.token_hex(8)}")
        draft.write_text("\n".join([*known, *new][-_KEPT_LAYERS:]))
        draft.rename(path)

    # --- running builds --------------------------------------------------------------------------------------------
    @contextmanager
    def alone(self, key: str, cancelled: Callable[[], bool], on_wait: Callable[[], None]) -> Iterator[None]:
        """One build of a key at a time, of all processes. Raises BuildCancelled while it waits."""
        lock = Lock(self.root / "locks" / f"build.{key}")
        try:
            lock.exclusive(cancelled, on_wait)
            yield
        finally:
            lock.close()

    def hub_lock(self, key: str) -> Lock:
        """Shared while a build stands upon that image, exclusive to make or remove it. The caller closes it."""
        return Lock(self.root / "locks" / f"hub.{key}")

    @contextmanager
    def work(self, key: str) -> Iterator[Path]:
        """A folder for a build that holds `alone`, gone afterwards. The same path each time: BuildKit then transfers
        only what changed since the build before."""
        folder = self.root / "work" / key
        remove_tree(folder)
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            remove_tree(folder)

    def sweep(self) -> None:
        """Remove what killed builds left. Safe beside running builds."""
        for folder in (self.root / "work").iterdir():
            lock = Lock(self.root / "locks" / f"build.{folder.name}")
            try:
                if lock.try_exclusive():
                    remove_tree(folder)
                    if folder.name.startswith("record-"):
                        lock.path.unlink(missing_ok=True)
            finally:
                lock.close()

    def free(self) -> int:
        return shutil.disk_usage(self.root).free


def key_of(*parts: str | list[str] | Mapping[str, Any]) -> str:
    """A name for a folder, from what tells one build from another."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:40]


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def _key_file(path: Path) -> bytes:
    """A random key of this installation, made once; of two that make it at once, one wins for both."""
    if not path.exists():
        draft = path.with_name(f".{secrets.token_hex(8)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(32))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_bytes()
