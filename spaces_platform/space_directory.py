"""Finding Spaces: by name, id or host, as far as somebody may see them; and what is known of one that was found.

Owns: who gets to see that a Space exists, and how the refusal reads. Does not own: any change of one (`spaces`,
`space_settings`); it only reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import func
from sqlmodel import Session as Read
from sqlmodel import col, or_, select

from spaces_platform.accounts import Access, Actor, access
from spaces_platform.errors import Forbidden, RepoNotFound, Unauthenticated
from spaces_platform.lifecycle import Desired
from spaces_platform.models import Account, Event, Host, Redirect, Space
from spaces_platform.settings import Settings
from spaces_platform.store import Store


class SpaceDirectory:
    def __init__(self, store: Store, settings: Settings) -> None:
        self.store, self.settings = store, settings

    def find(self, owner: str, name: str, actor: Actor, needed: Access = Access.READ) -> Space:
        """The Space, also by a former name (compare `space.owner/name` with what was asked for).

        Raises RepoNotFound for what does not exist or must not be known to exist, Forbidden for what the actor may see
        but not do.
        """
        with self.store.read() as db:
            return find_space(db, owner, name, actor, needed)

    def by_id(self, space_id: int) -> Space:
        """Raises RepoNotFound."""
        with self.store.read() as db:
            space = db.get(Space, space_id)
        if space is None or space.purged_at is not None:
            raise RepoNotFound()
        return space

    def by_label(self, label: str, actor: Actor) -> Space:
        """By the first label of its app's host name. Raises RepoNotFound."""
        return self.by_host(f"{label}.{self.settings.domain}", actor)

    def by_host(self, name: str, actor: Actor) -> Space:
        """By any of its app's host names, with or without a port. Raises RepoNotFound."""
        with self.store.read() as db:
            host = db.get(Host, name.lower().partition(":")[0])
            space = db.get(Space, host.space_id) if host is not None else None
        if space is None or space.desired == Desired.DELETED or access(actor, space) < Access.READ:
            raise RepoNotFound()
        return space

    def list(
        self,
        actor: Actor,
        *,
        search: str | None = None,
        author: str | None = None,
        sdk: Sequence[str] = (),
        sort: str = "modified_at",
        limit: int = 50,
        offset: int = 0,
    ) -> Sequence[Space]:
        """What the actor may see, newest first."""
        where: list[Any] = [col(Space.purged_at).is_(None), col(Space.desired) != Desired.DELETED]
        if not actor.is_admin:
            orgs = [org for org, _ in actor.roles]
            where.append(or_(col(Space.visibility) == "public", col(Space.owner_id).in_([actor.id or -1, *orgs])))
        if search:
            pattern = "%" + search.lower().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
            text = func.lower(
                col(Space.owner) + "/" + col(Space.name) + " " + col(Space.title) + " " + col(Space.short_description)
            )
            where.append(text.like(pattern, escape="\\"))
        if author:
            where.append(func.lower(col(Space.owner)) == author.lower())
        if sdk:
            where.append(col(Space.sdk).in_(sdk))
        column = {"created_at": Space.created_at, "modified_at": Space.modified_at}.get(sort, Space.modified_at)
        query = (
            select(Space).where(*where).order_by(col(column).desc(), col(Space.id).desc()).limit(limit).offset(offset)
        )
        with self.store.read() as db:
            found = db.exec(query).all()
        # A fine-grained token may see less than its user.
        return [s for s in found if access(actor, s) >= Access.READ]

    def hosts(self, space_id: int) -> Mapping[str, str]:
        """Host names by kind: `primary`, and `loopback` where there is one."""
        with self.store.read() as db:
            rows = db.exec(select(Host).where(Host.space_id == space_id, col(Host.kind) != "redirect")).all()
        return {row.kind: row.host for row in rows}

    def events(self, space: Space, limit: int = 100) -> Sequence[Event]:
        """Newest first."""
        with self.store.read() as db:
            query = select(Event).where(Event.space_id == space.id).order_by(col(Event.id).desc()).limit(limit)
            return db.exec(query).all()


def repo_id(space_id: int) -> str:
    """What its repository is called in the RepoStore. Pure."""
    return f"spaces/{space_id}"


def find_space(db: Read, owner: str, name: str, actor: Actor, needed: Access = Access.READ) -> Space:
    """See SpaceDirectory.find."""
    key = f"{owner}/{name}".lower()
    where = (Account.key == owner.lower(), Space.key == name.lower())
    space = db.exec(select(Space).join(Account, col(Account.id) == Space.owner_id).where(*where)).first()
    if space is None:
        redirect = db.get(Redirect, key)
        space = db.get(Space, redirect.space_id) if redirect is not None else None
    if space is None or space.desired == Desired.DELETED or access(actor, space) < Access.READ:
        raise RepoNotFound()
    require(space, actor, needed)
    return space


def require(space: Space, actor: Actor, needed: Access) -> None:
    """Raises RepoNotFound to those who may not even see it, Unauthenticated to the anonymous, else Forbidden."""
    mine = access(actor, space)
    if mine >= needed:
        return
    if mine < Access.READ:
        raise RepoNotFound()
    if actor.is_anonymous:
        raise Unauthenticated("Sign in, or send a token, to do this.")
    verb = "change" if needed is Access.WRITE else "administer"
    raise Forbidden(
        f"You are signed in as {actor.name}, who may not {verb} {space.owner}/{space.name} with these credentials."
    )
