"""Short-lived signed words that let a browser's frame or a client into one private Space (`?__sign=…`).

Owns what they hold and how long they live. Invariant: one opens one Space for one user, and only until it expires.
"""

from __future__ import annotations

from spaces_platform.errors import Unauthenticated
from spaces_platform.secrets import SealBroken, Vault

SECONDS = 3600
_KEY = "__sign"
"""No secret of a Space can have this name, so no sealed secret is ever taken for a signed word."""


def sign(vault: Vault, user_id: int, space_id: int, now: float, seconds: int = SECONDS) -> str:
    return vault.seal(f"{user_id} {int(now + seconds)}", space_id=space_id, key=_KEY).decode("ascii")


def signed_user(vault: Vault, word: str, space_id: int, now: float) -> int:
    """The user it was made for. Raises Unauthenticated."""
    try:
        user_id, until = vault.open(word.encode("utf-8", "replace"), space_id=space_id, key=_KEY).split(" ")
    except (SealBroken, ValueError) as error:
        raise Unauthenticated("The signed link is not valid.") from error
    if int(until) <= now:
        raise Unauthenticated("The signed link has expired.")
    return int(user_id)
