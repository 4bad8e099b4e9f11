"""Who somebody is and what they may do: users, organisations, tokens, sessions, and the one `can(…)`.

Tokens and session ids are stored as SHA-256 only and looked up by it; a revoked one is refused by the next request,
since nothing is cached here.
"""

from __future__ import annotations

import functools
import hashlib
import re
import secrets as random
import string
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError
from sqlalchemy import update
from sqlmodel import Session as Read
from sqlmodel import col, select

from spaces_platform.errors import Conflict, Forbidden, Invalid, NotFound, TooMany, Unauthenticated
from spaces_platform.models import Account, Event, Membership, Session, Space, Token
from spaces_platform.names import check_account_name
from spaces_platform.ports import Clock
from spaces_platform.store import Store, Transaction

ROLES = ("read", "contributor", "write", "admin")
TOKEN_ROLES = ("read", "write", "fineGrained")
USED_SECONDS = 3600.0
"""How exactly it is known when a token was last used: every use would be a write otherwise."""
SESSION_SECONDS = 30 * 86400
CODE_SECONDS = 60
FAILED_SIGN_INS = 10
"""Wrong passwords for one name, within FAILED_SECONDS, after which the name has to wait."""
FAILED_SECONDS = 300.0
HASHES_AT_ONCE = 2
"""A password hash takes 64 MiB and tens of milliseconds on purpose: a crowd of sign-ins waits in line for it."""
_ALPHABET = string.ascii_letters + string.digits


class Access(IntEnum):
    """What somebody may do with a Space; each includes the ones before."""

    NONE = 0
    READ = 1
    WRITE = 2
    ADMIN = 3
    """Delete, rename, change visibility."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Whoever makes a request. `id` None: anonymous."""

    id: int | None = None
    name: str = ""
    is_admin: bool = False
    via: str = "anonymous"
    """`token` | `session` | `anonymous` | `platform`."""
    token_id: int | None = None
    token_role: str = "write"
    token_name: str = ""
    scopes: tuple[dict[str, Any], ...] = ()
    roles: tuple[tuple[int, str], ...] = ()
    """(organisation id, role) of each membership."""

    @property
    def is_anonymous(self) -> bool:
        return self.id is None and self.via != "platform"

    def role_in(self, org_id: int) -> str | None:
        return dict(self.roles).get(org_id)


ANONYMOUS = Actor()
PLATFORM = Actor(name="platform", is_admin=True, via="platform")
"""The platform's own acts: reconciling, sleeping, recovering."""

_OF_ROLE = {"read": Access.READ, "contributor": Access.READ, "write": Access.WRITE, "admin": Access.ADMIN}


def access(actor: Actor, space: Space) -> Access:
    """What `actor` may do with `space`. The only place where this is decided."""
    base = Access.READ if space.visibility == "public" else Access.NONE
    if actor.is_anonymous:
        return base
    if actor.is_admin or actor.id == space.owner_id:
        mine = Access.ADMIN
    else:
        mine = _OF_ROLE.get(actor.role_in(space.owner_id) or "", Access.NONE)
        if mine is Access.READ and actor.role_in(space.owner_id) == "contributor" and actor.id == space.creator_id:
            mine = Access.ADMIN
    return max(base, min(mine, _token_limit(actor, space)))


def can(actor: Actor, needed: Access, space: Space) -> bool:
    return access(actor, space) >= needed


def may_create(actor: Actor, owner: Account) -> bool:
    """Whether `actor` may make a Space under `owner`."""
    if actor.is_anonymous or _token_limit_for(actor, owner.name, None) < Access.WRITE:
        return False
    return actor.is_admin or actor.id == owner.id or actor.role_in(owner.id or 0) in ("contributor", "write", "admin")


def _token_limit(actor: Actor, space: Space) -> Access:
    return _token_limit_for(actor, space.owner, space.name)


def _token_limit_for(actor: Actor, owner: str, name: str | None) -> Access:
    if actor.via != "token" or actor.token_role == "write":
        return Access.ADMIN
    if actor.token_role == "read":
        return Access.READ
    entities = {owner.lower()} | ({f"{owner}/{name}".lower()} if name else set())
    granted = {
        permission
        for scope in actor.scopes
        if str(scope.get("entity", "")).lower() in entities
        for permission in scope.get("permissions", ())
    }
    if "repo.write" in granted:
        return Access.ADMIN
    return Access.READ if granted & {"repo.content.read", "repo.read"} else Access.NONE


class Accounts:
    """Use cases around users, organisations, tokens and sessions."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.store, self.clock = store, clock
        self._hasher = PasswordHasher()
        self._hashing = threading.BoundedSemaphore(HASHES_AT_ONCE)
        self._failures: dict[str, list[float]] = {}
        self._failures_lock = threading.Lock()

    def now(self) -> float:
        return self.clock.now().timestamp()

    # --- accounts --------------------------------------------------------------------------------
    def create_user(
        self,
        name: str,
        *,
        password: str | None = None,
        email: str | None = None,
        fullname: str = "",
        is_admin: bool = False,
    ) -> Account:
        """Raises Invalid, Conflict."""
        user = self._new(name, "user", fullname)
        user.email, user.is_admin = email, is_admin
        user.password_hash = self._hash(password) if password else None
        return self._insert(user)

    def create_org(self, name: str, *, by: Actor, fullname: str = "") -> Account:
        """Make an organisation with `by` as its admin. Raises Invalid, Conflict, Unauthenticated."""
        if by.id is None:
            raise Unauthenticated("Sign in to create an organisation.")
        org = self._insert(self._new(name, "org", fullname))
        self.set_role(org.name, by.name, "admin", by=PLATFORM)
        return org

    def _new(self, name: str, kind: str, fullname: str) -> Account:
        check_account_name(name)
        return Account(name=name, key=name.lower(), kind=kind, fullname=fullname or name, created_at=self.now())

    def _insert(self, account: Account) -> Account:
        with self.store.write() as tx:
            if tx.exec(select(Account).where(Account.key == account.key)).first():
                raise Conflict(f"The name {account.name} is taken.")
            tx.add(account)
            tx.add(Event(at=self.now(), kind=f"{account.kind}.created", data={"name": account.name}))
        return account

    def find(self, name: str) -> Account:
        """An account by name, in any case. Raises NotFound."""
        with self.store.read() as db:
            return find_account(db, name)

    def set_role(self, org_name: str, user_name: str, role: str | None, *, by: Actor) -> None:
        """Give a role in an organisation, or (None) take it. Raises Forbidden, Invalid, NotFound."""
        if role is not None and role not in ROLES:
            raise Invalid(f"The role {role!r} is not one of {', '.join(ROLES)}.")
        with self.store.write() as tx:
            org, user = find_account(tx, org_name), find_account(tx, user_name)
            if org.kind != "org" or user.kind != "user":
                raise Invalid("Roles belong to users in organisations.")
            if not by.is_admin and by.role_in(org.id or 0) != "admin":
                raise Forbidden(f"Only an admin of {org.name} may change its members.")
            row = tx.get(Membership, (org.id, user.id))
            if row is not None:
                tx.delete(row)
                tx.flush()
            if role is not None:
                tx.add(Membership(org_id=org.id or 0, user_id=user.id or 0, role=role))
            self._record(tx, "org.role", by, {"org": org.name, "user": user.name, "role": role})

    def orgs_of(self, user_id: int) -> Sequence[tuple[Account, str]]:
        with self.store.read() as db:
            rows = db.exec(
                select(Account, Membership.role)
                .join(Membership, col(Membership.org_id) == Account.id)
                .where(Membership.user_id == user_id)
                .order_by(Account.key)
            )
            return list(rows)

    # --- tokens ----------------------------------------------------------------------------------
    def create_token(
        self,
        user_id: int,
        name: str,
        *,
        role: str = "write",
        scopes: Iterable[dict[str, Any]] = (),
        expires_at: float | None = None,
        by: Actor = PLATFORM,
    ) -> str:
        """A new token, returned once and never readable again. Raises Invalid."""
        if role not in TOKEN_ROLES:
            raise Invalid(f"The token role {role!r} is not one of {', '.join(TOKEN_ROLES)}.")
        if not re.fullmatch(r"[^\x00-\x1f\x7f]{1,100}", name):
            raise Invalid("A token needs a name of 1 to 100 printable characters.")
        token = "hf_" + "".join(random.choice(_ALPHABET) for _ in range(34))
        with self.store.write() as tx:
            tx.add(
                Token(
                    user_id=user_id, name=name, hash=digest(token), last4=token[-4:], role=role, scopes=list(scopes),
                    created_at=self.now(), expires_at=expires_at,
                )
            )  # fmt: skip
            self._record(tx, "token.created", by, {"name": name, "role": role, "user": user_id})
        return token

    def tokens(self, user_id: int) -> Sequence[Token]:
        with self.store.read() as db:
            where = (Token.user_id == user_id, col(Token.revoked_at).is_(None))
            return db.exec(select(Token).where(*where).order_by(col(Token.id))).all()

    def revoke_token(self, user_id: int, token_id: int, *, by: Actor) -> None:
        """From the next request on the token is refused. Raises NotFound."""
        with self.store.write() as tx:
            token = tx.get(Token, token_id)
            if token is None or token.user_id != user_id or token.revoked_at is not None:
                raise NotFound(f"There is no token {token_id}.")
            token.revoked_at = self.now()
            tx.add(token)
            self._record(tx, "token.revoked", by, {"name": token.name, "user": user_id})

    def actor_of_token(self, token: str) -> Actor:
        """Raises Unauthenticated with the text that the Hub's clients expect."""
        with self.store.read() as db:
            row = db.exec(select(Token).where(Token.hash == digest(token))).first()
            if (
                row is None
                or row.revoked_at is not None
                or (row.expires_at is not None and row.expires_at <= self.now())
            ):
                raise Unauthenticated()
            actor = self._actor(db, row.user_id, via="token", token=row)
        if self.now() - (row.last_used_at or 0.0) > USED_SECONDS:
            with self.store.write(alone=False) as tx:
                tx.execute(update(Token).where(col(Token.id) == row.id).values(last_used_at=self.now()))
        return actor

    # --- passwords and sessions ------------------------------------------------------------------
    def set_password(self, user_id: int, password: str) -> None:
        with self.store.write() as tx:
            user = tx.get(Account, user_id)
            if user is None:
                raise NotFound(f"There is no user {user_id}.")
            user.password_hash = self._hash(password)
            tx.add(user)

    def sign_in(self, name: str, password: str) -> Actor:
        """Raises Unauthenticated, as slowly for an unknown name as for a wrong one; TooMany after many failures."""
        key = name.lower()[:100]
        self._check_failures(key)
        with self.store.read() as db:
            user = db.exec(select(Account).where(Account.key == key, Account.kind == "user")).first()
        try:
            with self._hashing:
                self._hasher.verify(user.password_hash if user and user.password_hash else _nobody(), password[:1000])
        except (Argon2Error, InvalidHashError) as exc:
            self._count_failure(key)
            raise Unauthenticated("The name or the password is wrong.") from exc
        if user is None or user.id is None:
            raise Unauthenticated("The name or the password is wrong.")
        return self.actor_of_user(user.id)

    def _check_failures(self, key: str) -> None:
        with self._failures_lock:
            recent = [at for at in self._failures.get(key, []) if at > self.now() - FAILED_SECONDS]
            if len(recent) >= FAILED_SIGN_INS:
                raise TooMany("Too many wrong passwords for this name; wait five minutes, or sign in with a token.")

    def _count_failure(self, key: str) -> None:
        with self._failures_lock:
            while len(self._failures) >= 10_000:
                self._failures.pop(next(iter(self._failures)))
            self._failures[key] = [*self._failures.get(key, [])[-FAILED_SIGN_INS:], self.now()]

    def open_session(self, actor: Actor, *, space_id: int | None = None, kind: str = "session") -> str:
        """A session id for a cookie, or (kind `code`) a one-time code. Raises Unauthenticated for the anonymous."""
        if actor.id is None:
            raise Unauthenticated("Sign in first.")
        value = random.token_urlsafe(32)
        seconds = CODE_SECONDS if kind == "code" else SESSION_SECONDS
        with self.store.write() as tx:
            tx.add(
                Session(
                    hash=digest(value), user_id=actor.id, space_id=space_id, kind=kind, expires_at=self.now() + seconds
                )
            )
        return value

    def actor_of_session(self, value: str, *, space_id: int | None = None) -> Actor:
        """Raises Unauthenticated."""
        with self.store.read() as db:
            row = db.get(Session, digest(value))
            if row is None or row.kind != "session" or row.space_id != space_id or row.expires_at <= self.now():
                raise Unauthenticated("The session has ended; sign in again.")
            return self._actor(db, row.user_id, via="session")

    def exchange_code(self, code: str, *, space_id: int | None) -> str:
        """A session for one app (None: for the platform), once per code. Raises Unauthenticated."""
        with self.store.write() as tx:
            row = tx.get(Session, digest(code))
            if row is None or row.kind != "code" or row.space_id != space_id or row.expires_at <= self.now():
                raise Unauthenticated("The sign-in link has been used or has expired.")
            user_id = row.user_id
            tx.delete(row)
        return self.open_session(Actor(id=user_id, via="session"), space_id=space_id)

    def end_session(self, value: str) -> None:
        with self.store.write() as tx:
            row = tx.get(Session, digest(value))
            if row is not None:
                tx.delete(row)

    def actor_of_user(self, user_id: int) -> Actor:
        with self.store.read() as db:
            return self._actor(db, user_id, via="session")

    def _actor(self, db: Read, user_id: int, *, via: str, token: Token | None = None) -> Actor:
        user = db.get(Account, user_id)
        if user is None or user.disabled:
            raise Unauthenticated("This account is disabled.")
        memberships = db.exec(select(Membership).where(Membership.user_id == user_id)).all()
        return Actor(
            id=user.id,
            name=user.name,
            # An admin's read-only or fine-grained token is not an admin's.
            is_admin=user.is_admin and (token is None or token.role == "write"),
            via=via,
            token_id=token.id if token else None,
            token_role=token.role if token else "write",
            token_name=token.name if token else "",
            scopes=tuple(token.scopes) if token else (),
            roles=tuple((m.org_id, m.role) for m in memberships),
        )

    def _hash(self, password: str) -> str:
        if not 8 <= len(password) <= 1000:
            raise Invalid("A password has 8 to 1000 characters.")
        return self._hasher.hash(password)

    def _record(self, tx: Transaction, kind: str, by: Actor, data: dict[str, Any]) -> None:
        tx.add(Event(at=self.now(), kind=kind, actor_id=by.id, actor=by.name, data=data))


def find_account(db: Read, name: str) -> Account:
    """Raises NotFound."""
    row = db.exec(select(Account).where(Account.key == name.lower())).first()
    if row is None:
        raise NotFound(f"There is no user or organisation {name}.")
    return row


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


@functools.cache
def _nobody() -> str:
    """Verified against for unknown names, so that the time of an answer does not tell which names exist."""
    return PasswordHasher().hash("nobody has this password")
