"""What a build is given besides its plan: the Space's name, its variables, and its secrets in the clear."""

from __future__ import annotations

from sqlmodel import select

from builders.types import BuildInputs
from spaces_platform.models import Build, Secret, Space, Variable
from spaces_platform.secrets import Vault
from spaces_platform.store import Store


def gather(store: Store, vault: Vault, build: Build) -> BuildInputs:
    """Raises SealBroken for a secret that cannot be opened."""
    with store.read() as db:
        space = db.get_one(Space, build.space_id)
        variables = db.exec(select(Variable).where(Variable.space_id == space.id)).all()
        secrets = db.exec(select(Secret).where(Secret.space_id == space.id)).all()
    return BuildInputs(
        space=f"{space.owner}/{space.name}",
        commit=build.commit,
        variables={row.key: row.value for row in variables},
        secrets={row.key: vault.open(row.sealed, space_id=row.space_id, key=row.key) for row in secrets},
    )
