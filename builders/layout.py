"""Where the venv builder keeps things, and who may touch them when.

    ROOT/owners/<owner>/python/cache                what was downloaded; written by this owner's builds only
    ROOT/owners/<owner>/python/environments/<id>    a virtual environment
    ROOT/owners/<owner>/complete/<id>.json          its marker: written last, and where no build can write
    ROOT/owners/<owner>/apps/<plan id>/             app/ and artifact.json; appears whole, by a rename
    ROOT/owners/<owner>/hub/<id>/                   a layer of preload_from_hub: cache/, and home/ with links to it
    ROOT/locks/…                                    one file per environment, locked while it is built
    ROOT/temp/<id>/                                 one per running build, locked by it

Owns: paths, file locks, atomic writes and cleaning up after a killed build. Does not own: what is in an environment.
A build's own commands may write below `cache`, into their environment and into a scratch folder; what the platform
itself writes or trusts lies in folders that they cannot write. An owner's builds trust each other, through the cache.
Invariant: locks are held by the kernel for the process that has the file open, so a killed build holds none.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builders.types import BuildCancelled

_ID = re.compile(r"[0-9a-f]{40}")
_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,95}")
_WAIT = 0.05


@dataclass(frozen=True, slots=True)
class Ref:
    """A reference to an artifact, `venv:<owner>/<plan id>`."""

    owner: str
    plan_id: str

    def __str__(self) -> str:
        return f"venv:{self.owner}/{self.plan_id}"

    @classmethod
    def parse(cls, text: str) -> Ref:
        """Raises ValueError for anything else."""
        owner, _, plan_id = text.removeprefix("venv:").partition("/")
        if not text.startswith("venv:") or not _OWNER.fullmatch(owner) or not _ID.fullmatch(plan_id):
            raise ValueError(f"not a reference to a local artifact: {text!r}")
        return cls(owner, plan_id)


def owner_key(owner: str) -> str:
    """An owner's name as one safe folder name; distinct owners give distinct names, also where case does not count."""
    if _OWNER.fullmatch(owner) and owner == owner.lower() and not owner.startswith("x-"):
        return owner
    return "x-" + hashlib.sha256(owner.encode("utf-8", "surrogatepass")).hexdigest()[:40]


@dataclass(frozen=True, slots=True)
class Layout:
    root: Path

    def python(self, owner: str) -> Path:
        return self.root / "owners" / owner / "python"

    def cache(self, owner: str) -> Path:
        return self.python(owner) / "cache"

    def environment(self, owner: str, id: str) -> Path:
        return self.python(owner) / "environments" / id

    def app(self, ref: Ref) -> Path:
        return self.root / "owners" / ref.owner / "apps" / ref.plan_id

    def hub(self, owner: str, id: str) -> Path:
        return self.root / "owners" / owner / "hub" / id

    def hub_lock(self, owner: str, id: str) -> Lock:
        """Shared while a build uses the layer, exclusive to remove it. The caller closes it."""
        return Lock(self.root / "locks" / f"hub.{owner}.{id}")

    def prepare(self) -> None:
        for name in ("owners", "locks", "temp"):
            (self.root / name).mkdir(parents=True, exist_ok=True)

    def program(self, source: Path) -> Path:
        """A copy of a program that every user may run; made where it is missing, and older ones removed."""
        about = source.stat()
        folder = self.root / "programs"
        made = folder / f"{source.name}-{about.st_size}-{about.st_mtime_ns}"
        lock = Lock(self.root / "locks" / "programs")
        try:
            lock.exclusive(lambda: False, lambda: None)
            if not made.exists():
                folder.mkdir(exist_ok=True)
                folder.chmod(0o755)
                draft = folder / "draft"
                shutil.copyfile(source, draft)
                draft.chmod(0o755)
                draft.rename(made)
                for older in folder.iterdir():
                    if older != made:
                        older.unlink()
        finally:
            lock.close()
        return made

    def marker(self, owner: str, id: str) -> Path:
        return self.root / "owners" / owner / "complete" / f"{id}.json"

    def complete(self, owner: str, id: str) -> bool:
        return self.marker(owner, id).is_file() and self.environment(owner, id).is_dir()

    def environment_lock(self, owner: str, id: str) -> Lock:
        """The caller closes it."""
        return Lock(self.root / "locks" / f"environment.{owner}.{id}")

    @contextmanager
    def temp(self) -> Iterator[Path]:
        """A fresh folder, gone afterwards; a later start removes it where this process is killed."""
        name = uuid.uuid4().hex
        lock = Lock(self.root / "locks" / f"temp.{name}")
        folder = self.root / "temp" / name
        try:
            lock.try_exclusive()
            folder.mkdir(mode=0o711)
            yield folder
        finally:
            remove_tree(folder)
            lock.path.unlink(missing_ok=True)
            lock.close()

    def sweep(self) -> list[Path]:
        """Remove what killed builds left; what was removed. Safe beside running builds."""
        removed = []
        for folder in (self.root / "temp").iterdir():
            removed += self._sweep_one(folder, f"temp.{folder.name}")
        for folder in self.root.glob("owners/*/python/environments/*"):
            owner = folder.parent.parent.parent.name
            if not self.complete(owner, folder.name):
                removed += self._sweep_one(folder, f"environment.{owner}.{folder.name}", owner)
        return removed

    def _sweep_one(self, folder: Path, lock_name: str, owner: str = "") -> list[Path]:
        lock = Lock(self.root / "locks" / lock_name)
        try:
            # The marker is looked at again under the lock: a build may just have finished.
            if not lock.try_exclusive() or (owner and self.complete(owner, folder.name)):
                return []
            remove_tree(folder)
            if not owner:
                lock.path.unlink(missing_ok=True)
            return [folder]
        finally:
            lock.close()

    @contextmanager
    def using_cache(self, owner: str, cancelled: Callable[[], bool]) -> Iterator[None]:
        """Held while a build may read the owner's cache."""
        lock = Lock(self.root / "locks" / f"cache.{owner}")
        try:
            lock.shared(cancelled)
            yield
        finally:
            lock.close()

    def drop_cache(self, owner: str) -> bool:
        """Delete an owner's cache, unless a build uses it. Environments keep what they have of it."""
        lock = Lock(self.root / "locks" / f"cache.{owner}")
        try:
            if not lock.try_exclusive():
                return False
            remove_tree(self.cache(owner))
            return True
        finally:
            lock.close()


class Lock:
    """A file lock; shared or exclusive, between threads as well as processes (flock(2))."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def try_exclusive(self) -> bool:
        return self._try(fcntl.LOCK_EX)

    def shared_now(self) -> bool:
        return self._try(fcntl.LOCK_SH)

    def shared(self, cancelled: Callable[[], bool]) -> None:
        self._wait(fcntl.LOCK_SH, cancelled, lambda: None)

    def exclusive(self, cancelled: Callable[[], bool], on_wait: Callable[[], None]) -> None:
        """Wait for it; `on_wait` is called once where there is something to wait for. Raises BuildCancelled."""
        self._wait(fcntl.LOCK_EX, cancelled, on_wait)

    def close(self) -> None:
        os.close(self._fd)

    def _try(self, how: int) -> bool:
        try:
            fcntl.flock(self._fd, how | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _wait(self, how: int, cancelled: Callable[[], bool], on_wait: Callable[[], None]) -> None:
        told = False
        while not self._try(how):
            if cancelled():
                raise BuildCancelled
            if not told:
                on_wait()
                told = True
            time.sleep(_WAIT)


def write_durably(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file so that it is whole or absent, also after a power cut."""
    draft = path.with_name(path.name + ".new")
    with draft.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_tree(folder: Path) -> None:
    """Delete a folder with everything in it, also where a build took away its own permissions."""
    if not folder.exists():
        return
    try:
        shutil.rmtree(folder)
    except PermissionError:
        for base, folders, _ in os.walk(folder):
            for name in (base, *(os.path.join(base, one) for one in folders)):
                if not os.path.islink(name):
                    os.chmod(name, 0o700)
        shutil.rmtree(folder)
