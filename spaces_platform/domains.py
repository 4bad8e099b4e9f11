"""Domains of people's own that lead to a Space: added, proved by a record in their DNS, removed.

A domain is pending until the TXT records of `_spaces.<domain>` hold its token, and leads to its Space from then on.
Invariants: a domain leads to one Space (the primary key of `Host`); nobody gets one whose DNS does not say so; a claim
that is not proved keeps nobody else from proving theirs. Where two have claimed a domain, its DNS decides: it moves to
the Space whose token is there, from one whose token is gone.
"""

from __future__ import annotations

import logging
import secrets as random
import threading
from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, update
from sqlmodel import Session as Read
from sqlmodel import col, or_, select
from sqlmodel.sql.expression import SelectOfScalar

from spaces_platform.accounts import PLATFORM, Access, Actor
from spaces_platform.errors import Conflict, NotFound, PlatformError, RepoNotFound, TooMany, Unavailable
from spaces_platform.lifecycle import Desired
from spaces_platform.models import Domain, Event, Host, Space
from spaces_platform.names import check_domain
from spaces_platform.ports import Clock, TxtRecords
from spaces_platform.routing import RouteFeed
from spaces_platform.settings import Settings
from spaces_platform.space_directory import require
from spaces_platform.store import Store, Transaction

log = logging.getLogger(__name__)

MAX_DOMAINS = 20
"""Of one Space."""
CHALLENGE = "_spaces"
"""Label below the domain: its records stand beside none that mean something to others (RFC 8552)."""
PREFIX = "spaces-verification="
LOOK_SECONDS = 60.0
"""How often pending domains are looked up by themselves, at first; a day later hourly, a month later no more."""
LOOKS_AT_ONCE = 20
PAUSE_SECONDS = 2.0
ASKED_AT_ONCE = 4
"""Threads of the API that may wait for name servers, which can take seconds and belong to strangers."""
DAY = 86_400.0


class Domains:
    def __init__(self, store: Store, clock: Clock, settings: Settings, feed: RouteFeed, dns: TxtRecords) -> None:
        self.store, self.clock, self.settings, self.feed, self.dns = store, clock, settings, feed, dns
        self._asking = threading.BoundedSemaphore(ASKED_AT_ONCE)

    def now(self) -> float:
        return self.clock.now().timestamp()

    def of(self, space: Space, actor: Actor) -> Sequence[Domain]:
        """Raises Forbidden."""
        require(space, actor, Access.ADMIN)
        with self.store.read() as db:
            return db.exec(select(Domain).where(Domain.space_id == space.id).order_by(Domain.name)).all()

    def add(self, space: Space, actor: Actor, text: str) -> Domain:
        """Claim a domain for a Space; it stays pending until `verify` finds its record. Adding it again is success.

        Raises Forbidden, Invalid, Conflict (the Space has too many).
        """
        require(space, actor, Access.ADMIN)
        name = check_domain(text, reserved(self.settings))
        with self.store.write() as tx:
            known = tx.exec(_claim(space, name)).first()
            if known is not None:
                return known
            count = tx.exec(select(func.count()).select_from(Domain).where(Domain.space_id == space.id)).one()
            if count >= MAX_DOMAINS:
                raise Conflict(f"{space.owner}/{space.name} has {MAX_DOMAINS} domains, the most a Space may have.")
            token = PREFIX + random.token_hex(16)
            made = Domain(space_id=space.id or 0, name=name, token=token, created_at=self.now())
            tx.add(made)
            self._tell(tx, space, actor, "domain.added", name)
        return made

    def remove(self, space: Space, actor: Actor, text: str) -> None:
        """End it at once: no request reaches the Space by it any more. Raises Forbidden, NotFound."""
        require(space, actor, Access.ADMIN)
        with self.store.write() as tx:
            found = self._named(tx, space, text)
            tx.delete(found)
            host = tx.get(Host, found.name)
            if host is not None and host.space_id == space.id and host.kind == "custom":
                tx.delete(host)
                self._reroute(tx, space.id or 0)
            self._tell(tx, space, actor, "domain.removed", found.name)

    def verify(self, space: Space, actor: Actor, name: str) -> Domain:
        """Look at its DNS now; the row says what came of it.

        Raises Forbidden, NotFound, Conflict (another Space's claim is as good), TooMany, Unavailable.
        """
        require(space, actor, Access.ADMIN)
        with self.store.read() as db:
            found = self._named(db, space, name)
        if found.checked_at is not None and self.now() - found.checked_at < PAUSE_SECONDS:
            raise TooMany(f"{found.name} was looked up a moment ago; wait {PAUSE_SECONDS:.0f} s.")
        if not self._asking.acquire(blocking=False):
            raise TooMany("Too many domains are being looked up; try again in a few seconds.")
        try:
            return self._verify(found, actor)
        finally:
            self._asking.release()

    def verify_due(self) -> None:
        """Look at the pending domains whose turn it is, the longest waiting first."""
        now, age = self.now(), func.coalesce(Domain.checked_at, 0.0)
        recent, older = col(Domain.created_at) > now - DAY, col(Domain.created_at) > now - 30 * DAY
        due = or_(recent & (age < now - LOOK_SECONDS), older & (age < now - 60 * LOOK_SECONDS))
        query = select(Domain).where(col(Domain.verified_at).is_(None), due).order_by(age).limit(LOOKS_AT_ONCE)
        with self.store.read() as db:
            pending = db.exec(query).all()
        for domain in pending:
            try:
                self._verify(domain, PLATFORM)
            except PlatformError as exc:
                log.info("domain not verified", extra={"domain": domain.name, "why": exc.message})

    # --- inside ----------------------------------------------------------------------------------
    def _named(self, db: Read, space: Space, text: str) -> Domain:
        """By its ASCII form or as people write it. Raises NotFound."""
        found = db.exec(_claim(space, text.strip().lower())).first()
        if found is None:
            found = db.exec(_claim(space, check_domain(text, reserved(self.settings)))).first()
        if found is None:
            raise NotFound(f"{space.owner}/{space.name} has no domain {text[:260]!r}.")
        return found

    def _verify(self, domain: Domain, actor: Actor) -> Domain:
        """Outside any transaction it asks the DNS, then writes what that means."""
        where = challenge(domain.name)
        try:
            records = self.dns.txt(where)
        except Unavailable as exc:
            self._note(domain, exc.message)
            raise
        if domain.token not in records:
            if domain.verified_at is None:
                self._note(domain, f"There is no TXT record {domain.token!r} at {where} yet.")
            return self._fresh(domain)
        try:
            with self.store.write() as tx:
                self._take(tx, domain, actor, records)
        except Conflict as exc:
            self._note(domain, exc.message)
            raise
        return self._fresh(domain)

    def _take(self, tx: Transaction, domain: Domain, actor: Actor, records: frozenset[str]) -> None:
        """Give the domain to its Space. Raises Conflict where another Space's claim is as good."""
        row, space = tx.get(Domain, domain.id), tx.get(Space, domain.space_id)
        if row is None or space is None or space.desired == Desired.DELETED:
            raise RepoNotFound()
        host = tx.get(Host, row.name)
        if host is not None and host.space_id != space.id:
            self._release(tx, host, records)
        now = self.now()
        if row.verified_at is None:
            tx.merge(Host(host=row.name, space_id=space.id or 0, kind="custom"))
            row.verified_at = now
            self._reroute(tx, space.id or 0)
            self._tell(tx, space, actor, "domain.verified", row.name)
        row.checked_at, row.problem = now, ""
        tx.add(row)

    def _release(self, tx: Transaction, host: Host, records: frozenset[str]) -> None:
        """Take a domain from the Space that has it, if its DNS no longer names that one. Raises Conflict."""
        holder = tx.get(Space, host.space_id)
        claim = tx.exec(select(Domain).where(Domain.space_id == host.space_id, Domain.name == host.host)).first()
        alive = holder is not None and holder.desired != Desired.DELETED and host.kind == "custom"
        if host.kind != "custom" or (alive and claim is not None and claim.token in records):
            raise Conflict(
                f"{host.host} leads to another Space, whose record is still at {challenge(host.host)}; "
                "remove that record first."
            )
        if claim is not None:
            claim.verified_at, claim.problem = None, "The domain's DNS names another Space now."
            claim.checked_at = self.now()
            tx.add(claim)
        tx.delete(host)
        tx.flush()
        if holder is not None:
            self._reroute(tx, holder.id or 0)
            self._tell(tx, holder, PLATFORM, "domain.lost", host.host)

    def _reroute(self, tx: Transaction, space_id: int) -> None:
        tx.execute(update(Space).where(col(Space.id) == space_id).values(route_version=tx.next_version()))
        tx.after_commit(lambda: self.feed.changed(space_id))

    def _note(self, domain: Domain, problem: str) -> None:
        with self.store.write() as tx:
            values: dict[str, Any] = {"checked_at": self.now(), "problem": problem[:300]}
            tx.execute(update(Domain).where(col(Domain.id) == domain.id).values(**values))

    def _tell(self, tx: Transaction, space: Space, actor: Actor, kind: str, name: str) -> None:
        tx.add(
            Event(at=self.now(), kind=kind, space_id=space.id, actor_id=actor.id, actor=actor.name,
                  data={"domain": name})
        )  # fmt: skip

    def _fresh(self, domain: Domain) -> Domain:
        with self.store.read() as db:
            found = db.get(Domain, domain.id)
        if found is None:
            raise NotFound(f"The domain {domain.name} was removed meanwhile.")
        return found


def _claim(space: Space, name: str) -> SelectOfScalar[Domain]:
    return select(Domain).where(Domain.space_id == space.id, Domain.name == name)


def reserved(settings: Settings) -> tuple[str, ...]:
    """Names that are nobody's own here, with all below them. Pure."""
    return (*(name for name in settings.platform_hosts if "." in name and ":" not in name), settings.domain)


def challenge(name: str) -> str:
    """Where the record of a domain's owner is looked up. Pure."""
    return f"{CHALLENGE}.{name}"
