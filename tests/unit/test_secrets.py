from __future__ import annotations

from pathlib import Path

import pytest
from sqlmodel import select

from spaces_platform.models import Account, Secret, Space
from spaces_platform.secrets import SealBroken, Vault, rotate
from spaces_platform.store import Store
from tests.services import databases


def test_a_sealed_secret_opens_only_in_its_own_row(tmp_path: Path) -> None:
    vault = Vault.load(tmp_path / "keys")
    sealed = vault.seal("s3cret", space_id=1, key="TOKEN")
    assert b"s3cret" not in sealed
    assert vault.open(sealed, space_id=1, key="TOKEN") == "s3cret"
    for space_id, key in ((2, "TOKEN"), (1, "OTHER"), (11, "TOKEN")):
        with pytest.raises(SealBroken):
            vault.open(sealed, space_id=space_id, key=key)
    with pytest.raises(SealBroken):
        vault.open(sealed[:-2] + b"xx", space_id=1, key="TOKEN")


def test_keys_rotate_without_a_moment_in_which_a_secret_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    store = Store(databases.url_of(tmp_path))
    store.migrate()
    vault = Vault.load(path)
    stolen = Vault.load(path)
    with store.write() as tx:
        tx.add(Account(id=1, name="a", key="a"))
        tx.add(Space(id=1, owner_id=1, owner="a", name="s", key="s", creator_id=1))
        tx.flush()
        for n in range(450):
            tx.add(Secret(space_id=1, key=f"K{n}", sealed=vault.seal(f"v{n}", space_id=1, key=f"K{n}")))
    assert rotate(store, vault) == 450
    with store.read() as db:
        rows = db.exec(select(Secret)).all()
    for opener in (vault, Vault.load(path)):
        opened = {r.key: opener.open(r.sealed, space_id=1, key=r.key) for r in rows}
        assert opened == {f"K{n}": f"v{n}" for n in range(450)}
    with pytest.raises(SealBroken):
        stolen.open(rows[0].sealed, space_id=1, key=rows[0].key)
    assert len(path.read_text().split()) == 1
    store.close()


def test_a_rotation_that_was_killed_leaves_everything_readable(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    before = Vault.load(path).seal("v", space_id=1, key="K")
    Vault.load(path).add_key()
    again = Vault.load(path)
    assert again.open(before, space_id=1, key="K") == "v"
    assert Vault.load(path).open(again.reseal(before), space_id=1, key="K") == "v"


def test_the_key_ring_is_its_owners_only(tmp_path: Path) -> None:
    Vault.load(tmp_path / "keys")
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o600
