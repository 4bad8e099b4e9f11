"""Seals secrets for the database, with keys that can be rotated.

The key ring is a file of Fernet keys, newest first, readable by its owner only (Fernet: AES-128-CBC with HMAC-SHA256,
https://github.com/fernet/spec). Each secret is bound to its Space and key: a sealed value copied into another row does
not open there.
"""

from __future__ import annotations

import hmac
import os
import threading
from collections.abc import Iterable
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from sqlalchemy import tuple_, update
from sqlmodel import col, select

from spaces_platform.errors import PlatformError
from spaces_platform.models import Secret
from spaces_platform.store import Store


class SealBroken(PlatformError):
    """A secret cannot be opened: its key is not on the key ring, or the row was altered."""

    code = "seal_broken"


class Vault:
    """Seals and opens. The newest key seals; every key on the ring opens. Thread-safe."""

    def __init__(self, keys: Iterable[bytes], path: Path | None = None) -> None:
        self._keys, self._path = list(keys), path
        self._ring = MultiFernet([Fernet(key) for key in self._keys])

    @classmethod
    def load(cls, path: Path) -> Vault:
        """Read the key ring, making one with a fresh key where there is none yet. Of several processes that find none,
        one makes it, and all read that one.
        """
        if not path.exists():
            _write(path, [Fernet.generate_key()], first=True)
        return cls((line.encode() for line in path.read_text().split()), path)

    def add_key(self) -> None:
        """Seal with a fresh key from now on. Older keys go on opening until `keep_newest`."""
        self._replace([Fernet.generate_key(), *self._keys])

    def keep_newest(self) -> None:
        """Drop all keys but the first; call it once every row is sealed with it."""
        self._replace(self._keys[:1])

    def _replace(self, keys: list[bytes]) -> None:
        # On disk first: a key that only memory knows would be lost together with all that it sealed.
        if self._path is not None:
            _write(self._path, keys)
        self._keys, self._ring = keys, MultiFernet([Fernet(key) for key in keys])

    def seal(self, value: str, *, space_id: int, key: str) -> bytes:
        return self._ring.encrypt(_bind(space_id, key) + value.encode())

    def open(self, sealed: bytes, *, space_id: int, key: str) -> str:
        """Raises SealBroken."""
        binding = _bind(space_id, key)
        try:
            plain = self._ring.decrypt(sealed)
        except InvalidToken as exc:
            raise SealBroken(f"The secret {key} of Space {space_id} cannot be opened; set it again.") from exc
        if not hmac.compare_digest(plain[: len(binding)], binding):
            raise SealBroken(f"The secret {key} of Space {space_id} belongs to another row; set it again.")
        return plain[len(binding) :].decode()

    def reseal(self, sealed: bytes) -> bytes:
        """The same secret, sealed with the newest key. Raises SealBroken."""
        try:
            return self._ring.rotate(sealed)
        except InvalidToken as exc:
            raise SealBroken() from exc


def _bind(space_id: int, key: str) -> bytes:
    return f"{space_id}\0{key}\0".encode()


def _write(path: Path, keys: list[bytes], *, first: bool = False) -> None:
    """Put the ring in its place, whole or not at all. `first`: only where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".new-{os.getpid()}-{threading.get_ident()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(b"\n".join(keys) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    if not first:
        os.replace(temporary, path)
        return
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass  # another process was faster: its ring counts
    finally:
        temporary.unlink()


def rotate(store: Store, vault: Vault) -> int:
    """Seal every secret with a fresh key and forget the older ones. Returns how many rows were sealed anew.

    Every secret can be read at every moment. After a kill the ring holds old and new keys: rotate again.
    """
    vault.add_key()
    resealed, last = 0, ("", 0)
    while True:
        with store.read() as db:
            after = tuple_(col(Secret.key), col(Secret.space_id)) > last
            rows = db.exec(select(Secret).where(after).order_by(Secret.key, col(Secret.space_id)).limit(200)).all()
        if not rows:
            vault.keep_newest()
            return resealed
        last = (rows[-1].key, rows[-1].space_id)
        with store.write() as tx:
            for row in rows:
                # Compared with what was read: a value that was set meanwhile is newer, and sealed with the new key.
                row_now = (col(Secret.space_id) == row.space_id, col(Secret.key) == row.key)
                tx.execute(
                    update(Secret)
                    .where(*row_now, col(Secret.sealed) == row.sealed)
                    .values(sealed=vault.reseal(row.sealed))
                )
                resealed += 1
