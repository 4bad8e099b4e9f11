"""Who may do what: the whole matrix of roles, token roles and visibilities; tokens and sessions on a real database."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from spaces_platform.accounts import ANONYMOUS, Access, Accounts, Actor, access, digest
from spaces_platform.errors import Conflict, Forbidden, Invalid, NotFound, TooMany, Unauthenticated
from spaces_platform.models import Space
from spaces_platform.store import Store
from tests.services import databases

A = Access


class Hands:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.at = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.at


@pytest.fixture
def clock() -> Hands:
    return Hands()


@pytest.fixture
def accounts(tmp_path: Path, clock: Hands) -> Iterator[Accounts]:
    store = Store(databases.url_of(tmp_path))
    store.migrate()
    yield Accounts(store, clock)
    store.close()


def space(visibility: str, owner_id: int = 1, creator_id: int = 1) -> Space:
    return Space(
        id=1, owner_id=owner_id, owner="acme", name="demo", key="demo", creator_id=creator_id, visibility=visibility
    )


def user(id: int, **more: object) -> Actor:
    return Actor(id=id, name=f"u{id}", via="session", **more)  # type: ignore[arg-type]


def token(id: int, role: str, scopes: tuple[dict[str, object], ...] = (), **more: object) -> Actor:
    return Actor(id=id, name=f"u{id}", via="token", token_role=role, scopes=scopes, **more)  # type: ignore[arg-type]


def grants(entity: str, *permissions: str) -> tuple[dict[str, object], ...]:
    return ({"entity": entity, "permissions": list(permissions)},)


MATRIX = [
    # actor, public, private
    ("anonymous", ANONYMOUS, A.READ, A.NONE),
    ("stranger", user(9), A.READ, A.NONE),
    ("owner", user(1), A.ADMIN, A.ADMIN),
    ("platform admin", user(9, is_admin=True), A.ADMIN, A.ADMIN),
    ("org read", user(9, roles=((1, "read"),)), A.READ, A.READ),
    ("org contributor", user(9, roles=((1, "contributor"),)), A.READ, A.READ),
    ("org write", user(9, roles=((1, "write"),)), A.WRITE, A.WRITE),
    ("org admin", user(9, roles=((1, "admin"),)), A.ADMIN, A.ADMIN),
    ("admin of another org", user(9, roles=((2, "admin"),)), A.READ, A.NONE),
    ("owner, write token", token(1, "write"), A.ADMIN, A.ADMIN),
    ("owner, read token", token(1, "read"), A.READ, A.READ),
    ("owner, fine-grained without scopes", token(1, "fineGrained"), A.READ, A.NONE),
    ("owner, fine-grained for this", token(1, "fineGrained", grants("acme/demo", "repo.write")), A.ADMIN, A.ADMIN),
    ("owner, fine-grained for the owner", token(1, "fineGrained", grants("ACME", "repo.write")), A.ADMIN, A.ADMIN),
    ("owner, fine-grained read", token(1, "fineGrained", grants("acme/demo", "repo.content.read")), A.READ, A.READ),
    ("owner, fine-grained for another", token(1, "fineGrained", grants("acme/other", "repo.write")), A.READ, A.NONE),
    ("stranger, fine-grained for this", token(9, "fineGrained", grants("acme/demo", "repo.write")), A.READ, A.NONE),
]


@pytest.mark.parametrize(("actor", "public", "private"), [row[1:] for row in MATRIX], ids=[row[0] for row in MATRIX])
def test_access(actor: Actor, public: Access, private: Access) -> None:
    assert access(actor, space("public")) is public
    assert access(actor, space("private")) is private


def test_a_contributor_rules_what_they_made() -> None:
    contributor = user(9, roles=((1, "contributor"),))
    assert access(contributor, space("private", creator_id=9)) is A.ADMIN


def test_tokens_are_stored_hashed_and_work_until_revoked_or_expired(accounts: Accounts, clock: Hands) -> None:
    alice = accounts.create_user("Alice")
    laptop = accounts.create_token(alice.id or 0, "laptop")
    brief = accounts.create_token(alice.id or 0, "brief", expires_at=clock.now().timestamp() + 60)
    assert laptop.startswith("hf_")
    assert len(laptop) >= 33
    assert accounts.actor_of_token(laptop).name == "Alice"
    clock.at += timedelta(seconds=61)
    with pytest.raises(Unauthenticated, match="Invalid credentials in Authorization header"):
        accounts.actor_of_token(brief)
    accounts.revoke_token(alice.id or 0, accounts.tokens(alice.id or 0)[0].id or 0, by=user(alice.id or 0))
    with pytest.raises(Unauthenticated):
        accounts.actor_of_token(laptop)
    stored = databases.everything_in(accounts.store)
    assert laptop not in stored
    assert digest(laptop) in stored


def test_an_admins_weak_token_is_not_an_admins(accounts: Accounts) -> None:
    root = accounts.create_user("root1", is_admin=True)
    assert accounts.actor_of_token(accounts.create_token(root.id or 0, "full")).is_admin
    assert not accounts.actor_of_token(accounts.create_token(root.id or 0, "look", role="read")).is_admin


def test_names_are_one_whatever_their_case(accounts: Accounts) -> None:
    accounts.create_user("Alice")
    with pytest.raises(Conflict):
        accounts.create_user("alice")
    assert accounts.find("ALICE").name == "Alice"


def test_roles_are_given_by_admins_only(accounts: Accounts) -> None:
    alice, bob = accounts.create_user("alice"), accounts.create_user("bob")
    accounts.create_org("acme", by=accounts.actor_of_user(alice.id or 0))
    with pytest.raises(Forbidden):
        accounts.set_role("acme", "bob", "admin", by=accounts.actor_of_user(bob.id or 0))
    accounts.set_role("acme", "bob", "write", by=accounts.actor_of_user(alice.id or 0))
    assert [(org.name, role) for org, role in accounts.orgs_of(bob.id or 0)] == [("acme", "write")]
    with pytest.raises(Invalid):
        accounts.set_role("acme", "bob", "king", by=accounts.actor_of_user(alice.id or 0))
    with pytest.raises(NotFound):
        accounts.set_role("acme", "carol", "read", by=accounts.actor_of_user(alice.id or 0))


def test_passwords(accounts: Accounts) -> None:
    accounts.create_user("alice", password="correct horse")
    assert accounts.sign_in("ALICE", "correct horse").name == "alice"
    for name, password in (("alice", "wrong"), ("nobody", "correct horse"), ("alice", "")):
        with pytest.raises(Unauthenticated):
            accounts.sign_in(name, password)


def test_guessing_a_password_has_an_end_and_the_name_recovers(accounts: Accounts, clock: Hands) -> None:
    accounts.create_user("alice", password="correct horse")
    accounts.create_user("bob", password="another one")
    for _ in range(10):
        with pytest.raises(Unauthenticated):
            accounts.sign_in("Alice", "guess")
    with pytest.raises(TooMany):
        accounts.sign_in("alice", "correct horse")
    assert accounts.sign_in("bob", "another one").name == "bob"
    clock.at += timedelta(seconds=301)
    assert accounts.sign_in("alice", "correct horse").name == "alice"


def test_a_code_opens_one_session_of_one_app(accounts: Accounts, clock: Hands) -> None:
    alice = accounts.create_user("alice")
    actor = accounts.actor_of_user(alice.id or 0)
    code = accounts.open_session(actor, space_id=5, kind="code")
    with pytest.raises(Unauthenticated):
        accounts.exchange_code(code, space_id=6)
    session = accounts.exchange_code(code, space_id=5)
    with pytest.raises(Unauthenticated):
        accounts.exchange_code(code, space_id=5)
    assert accounts.actor_of_session(session, space_id=5).name == "alice"
    for other in (None, 6):
        with pytest.raises(Unauthenticated):
            accounts.actor_of_session(session, space_id=other)
    clock.at += timedelta(days=31)
    with pytest.raises(Unauthenticated):
        accounts.actor_of_session(session, space_id=5)
