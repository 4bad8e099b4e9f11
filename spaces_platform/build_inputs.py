"""What a build is given besides its plan: the Space's name, its variables, its secrets in the clear, and its hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sqlmodel import select

from builders.types import BuildInputs, Hub
from spaces_platform.models import Build, Secret, Space, Variable
from spaces_platform.secrets import Vault
from spaces_platform.store import Store

Hubs = Callable[[Space, Mapping[str, str]], Hub]
"""A Space and its secrets in the clear to what it may read by preload_from_hub."""


def gather(store: Store, vault: Vault, hubs: Hubs, build: Build) -> BuildInputs:
    """Raises SealBroken for a secret that cannot be opened."""
    with store.read() as db:
        space = db.get_one(Space, build.space_id)
        variables = db.exec(select(Variable).where(Variable.space_id == space.id)).all()
        secrets = db.exec(select(Secret).where(Secret.space_id == space.id)).all()
    opened = {row.key: vault.open(row.sealed, space_id=row.space_id, key=row.key) for row in secrets}
    return BuildInputs(
        space=f"{space.owner}/{space.name}",
        commit=build.commit,
        variables={row.key: row.value for row in variables},
        secrets=opened,
        hub=hubs(space, opened),
    )
