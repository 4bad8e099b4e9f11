"""Who works on a Space: one pass at a time, by a claim on its row that ends by itself.

Each method is one compare-and-set statement, prepared once: a wake makes three of them, and SQLAlchemy takes longer to
build such a statement than SQLite to run it.
"""

from __future__ import annotations

from sqlalchemy import Table, bindparam, case, or_, update

from spaces_platform.models import Space
from spaces_platform.store import Store

CLAIM_SECONDS = 30.0

_space: Table = Space.__table__  # type: ignore[attr-defined]
_row = _space.c.id == bindparam("space")
_exists = _space.c.purged_at.is_(None)
_CLAIM = (
    update(_space)
    .where(_row, _exists, or_(_space.c.claim_token.is_(None), _space.c.claimed_until < bindparam("now")))
    .values(claim_token=bindparam("token"), claimed_until=bindparam("until"), next_check_at=bindparam("until"))
)
_asked = _space.c.next_check_at
_mine = update(_space).where(_row, _space.c.claim_token == bindparam("token"))
_free = {"claim_token": None, "claimed_until": 0.0}
_new = _asked != bindparam("until")
"""Somebody asked for a look since the claim."""
_RELEASE = _mine.values(
    **_free, next_check_at=case((_new & (_asked <= bindparam("at")), _asked), else_=bindparam("at"))
)
_RELEASE_FOR_GOOD = _mine.values(**_free, next_check_at=case((_new, _asked), else_=None))
_LOOK = update(_space).where(_row, _exists).values(next_check_at=bindparam("at"))


class Claims:
    def __init__(self, store: Store) -> None:
        self.store = store

    def take(self, space_id: int, token: str, now: float) -> float | None:
        """When the claim ends, or None where somebody else has it.

        The next look is set to that end: whoever claims and is killed leaves a row that the sweep comes back to.
        """
        until = now + CLAIM_SECONDS
        with self.store.write(alone=False) as tx:
            given = {"space": space_id, "token": token, "now": now, "until": until}
            return until if tx.connection().execute(_CLAIM, given).rowcount else None

    def release(self, space_id: int, token: str, until: float, check_at: float | None) -> None:
        """Give the claim back; keeps an earlier look that somebody asked for meanwhile."""
        with self.store.write(alone=False) as tx:
            given = {"space": space_id, "token": token, "until": until}
            if check_at is None:
                tx.connection().execute(_RELEASE_FOR_GOOD, given)
            else:
                tx.connection().execute(_RELEASE, {**given, "at": check_at})

    def look_later(self, space_id: int, at: float) -> None:
        with self.store.write(alone=False) as tx:
            tx.connection().execute(_LOOK, {"space": space_id, "at": at})
