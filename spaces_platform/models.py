"""The tables. Rows are the truth of the platform; nothing here decides anything.

Times are unix seconds (float, UTC): the same number in SQLite, Postgres, JSON and arithmetic. Invariants that must hold
whatever the code does are constraints of the schema: one live build per plan, one live deployment and one candidate per
Space, one Space per host name, one deployment per GPU.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Column, Index, LargeBinary, UniqueConstraint, text
from sqlmodel import Field, SQLModel

_IDS_ONCE = {"sqlite_autoincrement": True}
"""An id names folders, processes and rows of gateways: it is never given again, also not after its row was deleted."""


class Account(SQLModel, table=True):
    """A user or an organisation: whatever may stand before the `/` of a Space."""

    id: int | None = Field(default=None, primary_key=True)
    name: str
    key: str = Field(unique=True)
    """Lower-case name: names differ by more than case."""
    kind: str = "user"
    """`user` | `org`."""
    fullname: str = ""
    email: str | None = None
    password_hash: str | None = None
    is_admin: bool = False
    disabled: bool = False
    created_at: float = 0.0


class Membership(SQLModel, table=True):
    org_id: int = Field(foreign_key="account.id", primary_key=True)
    user_id: int = Field(foreign_key="account.id", primary_key=True, index=True)
    role: str = "read"
    """`read` | `contributor` | `write` | `admin`."""


class Token(SQLModel, table=True):
    """An access token. Only its hash is stored."""

    id: int | None = Field(default=None, primary_key=True)
    user_id: int = Field(foreign_key="account.id", index=True)
    name: str
    hash: str = Field(unique=True)
    """SHA-256 of the token, hex; the token has 190 random bits, so no slow hash is needed."""
    last4: str = ""
    role: str = "read"
    """`read` | `write` | `fineGrained`."""
    scopes: list[dict[str, Any]] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    """Of a fine-grained one: [{"entity": "owner" or "owner/name", "permissions": ["repo.content.read", …]}]."""
    created_at: float = 0.0
    expires_at: float | None = None
    revoked_at: float | None = None
    last_used_at: float | None = None


class Session(SQLModel, table=True):
    """A browser's session: with the platform (space_id None), or with one private app."""

    hash: str = Field(primary_key=True)
    user_id: int = Field(foreign_key="account.id", index=True)
    space_id: int | None = Field(default=None, index=True)
    kind: str = "session"
    """`session` | `code` (one-time, exchanged for a session)."""
    expires_at: float = 0.0


class Space(SQLModel, table=True):
    __table_args__ = (
        UniqueConstraint("owner_id", "key"),
        Index("ix_space_due", "next_check_at"),
        Index("ix_space_route", "route_version"),
        Index("ix_space_gpu_queued_at", "gpu_queued_at"),
        _IDS_ONCE,
    )

    id: int | None = Field(default=None, primary_key=True)
    owner_id: int = Field(foreign_key="account.id", index=True)
    owner: str
    """Name of the owner, kept beside the id so that lists need no join."""
    name: str
    key: str
    """Lower-case name."""
    creator_id: int = Field(foreign_key="account.id")
    visibility: str = "public"
    """`public` | `private`."""
    sdk: str | None = None
    title: str = ""
    emoji: str = ""
    short_description: str = ""
    created_at: float = 0.0
    modified_at: float = 0.0
    purged_at: float | None = None
    """A purged Space is a tombstone: its row keeps the audit log and the gateways' tables whole."""

    # desired
    desired: str = "RUNNING"
    head: str | None = None
    hardware: str = "cpu-basic"
    sleep_after: int | None = None
    """Seconds; None: the platform's default; -1: never."""
    storage: str | None = None
    """Tier of its volume that was asked for; None: the platform's default."""
    drops_volume: bool = False
    """Its volume, with its snapshots, is to be removed before it starts again."""
    generation: int = 1
    salt: str = ""
    """Changed by a factory rebuild; part of the plan's id."""

    # what the head means: a projection of (head, salt), recomputed when they differ
    planned_for: str | None = None
    plan_id: str | None = None
    plan: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON))
    card: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    problem: str | None = None
    """`EMPTY` | `CONFIG_ERROR`."""

    # observed
    stage: str = Field(default="NO_APP_FILE", index=True)
    reason: str = ""
    """Stable code of an error stage (`resolver_conflict`)."""
    message: str = ""
    """For people: cause, then fix."""
    evidence: list[str] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    last_good: str | None = None
    last_active_at: float = 0.0
    slept_at: float | None = None
    start_queued_at: float | None = None
    gpu_queued_at: float | None = None
    """Since when its start waits for GPUs; 0: it waits for its own, which its version before still holds."""
    next_check_at: float | None = None
    claim_token: str | None = None
    claimed_until: float = 0.0
    routed: int | None = None
    """Deployment that the route points to."""
    unrouted: bool = False
    route_version: int = 0


class Host(SQLModel, table=True):
    """A host name that leads to a Space. Freed names are kept, so that nobody takes over old links at once."""

    host: str = Field(primary_key=True)
    space_id: int = Field(foreign_key="space.id", index=True)
    kind: str = "primary"
    """`primary` | `loopback` | `redirect` | `custom` (a verified Domain)."""
    released_at: float | None = None
    """When its Space was purged."""


class Domain(SQLModel, table=True):
    """Somebody's own domain that is to lead to a Space. It does while a Host row of kind `custom` says so.

    Several Spaces may ask for one domain; whose token its DNS holds gets the Host row, of which there is one.
    """

    __table_args__ = (UniqueConstraint("space_id", "name"),)

    id: int | None = Field(default=None, primary_key=True)
    space_id: int = Field(foreign_key="space.id", index=True)
    name: str = Field(index=True)
    """Lower-case, ASCII (A-labels), without a dot at its end."""
    token: str
    """What its DNS has to hold. Not secret: everybody can read it there."""
    created_at: float = 0.0
    verified_at: float | None = None
    """Since when it leads to the Space; None: pending."""
    checked_at: float | None = None
    problem: str = ""
    """Why the last look at its DNS did not verify it, for people."""


class Redirect(SQLModel, table=True):
    """A Space's former `owner/name`."""

    key: str = Field(primary_key=True)
    """Lower-case `owner/name`."""
    space_id: int = Field(foreign_key="space.id", index=True)


class Variable(SQLModel, table=True):
    space_id: int = Field(foreign_key="space.id", primary_key=True)
    key: str = Field(primary_key=True)
    value: str
    description: str = ""
    updated_at: float = 0.0


class Secret(SQLModel, table=True):
    """A secret, sealed; the value leaves the database only towards the app's environment."""

    space_id: int = Field(foreign_key="space.id", primary_key=True)
    key: str = Field(primary_key=True)
    sealed: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    description: str = ""
    updated_at: float = 0.0


class Build(SQLModel, table=True):
    __table_args__ = (
        Index(
            "uq_build_live",
            "space_id",
            "plan_id",
            unique=True,
            sqlite_where=text("status IN ('QUEUED', 'RUNNING')"),
            postgresql_where=text("status IN ('QUEUED', 'RUNNING')"),
        ),
        Index("ix_build_status", "status"),
        _IDS_ONCE,
    )

    id: int | None = Field(default=None, primary_key=True)
    space_id: int = Field(foreign_key="space.id", index=True)
    commit: str
    plan_id: str
    plan: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    generation: int = 1
    status: str = "QUEUED"
    artifact: str | None = Field(default=None, index=True)
    lock: str = ""
    reason: str = ""
    message: str = ""
    evidence: list[str] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    phase: str = "queued"
    phase_text: str = ""
    phase_at: float = 0.0
    created_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None
    cancel_requested: bool = False
    tries: int = 0
    claim_token: str | None = None
    claimed_until: float = 0.0


class Deployment(SQLModel, table=True):
    __table_args__ = (
        Index("uq_deployment_live", "space_id", unique=True, sqlite_where=text("live"), postgresql_where=text("live")),
        Index(
            "uq_deployment_candidate",
            "space_id",
            unique=True,
            sqlite_where=text("status = 'STARTING'"),
            postgresql_where=text("status = 'STARTING'"),
        ),
        Index("ix_deployment_status", "status"),
        _IDS_ONCE,
    )

    id: int | None = Field(default=None, primary_key=True)
    space_id: int = Field(foreign_key="space.id", index=True)
    build_id: int | None = None
    """The build that made the artifact."""
    first: bool = False
    """The first run of that build: its start is part of what the owner waits for, and told in the build's log."""
    commit: str = ""
    artifact: str
    plan: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    """The run plan it was started with."""
    generation: int = 1
    hardware: str = "cpu-basic"
    status: str = "STARTING"
    live: bool = False
    endpoint: str | None = None
    isolation: str = ""
    reason: str = ""
    message: str = ""
    evidence: list[str] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    fatal: bool = False
    exit_code: int | None = None
    created_at: float = 0.0
    deadline: float | None = None
    ready_at: float | None = None
    routed_at: float | None = None
    unrouted_at: float | None = None
    unrouted_version: int | None = None
    frozen_at: float | None = None
    """When it was frozen; None once it serves again."""
    ended_at: float | None = None


class GpuLease(SQLModel, table=True):
    """A GPU that a deployment has: there is one row per GPU at most. Ended when that deployment is seen to have ended,
    which may be after its row says FAILED, or is gone with its Space.
    """

    gpu: str = Field(primary_key=True)
    deployment_id: int = Field(index=True)
    space_id: int = Field(foreign_key="space.id")
    owner_id: int = Field(foreign_key="account.id")
    """Whose quota it counts against: the Space's owner when it was given."""
    since: float = 0.0


class Quota(SQLModel, table=True):
    """What one owner may have at once; owners without a row have what the settings say."""

    owner_id: int = Field(foreign_key="account.id", primary_key=True)
    gpus: int
    """-1: no limit."""
    updated_at: float = 0.0


class Event(SQLModel, table=True):
    """Append-only: what happened, when, by whom. Audit log, event feed and test assertion at once."""

    id: int | None = Field(default=None, primary_key=True)
    at: float
    kind: str = Field(index=True)
    space_id: int | None = Field(default=None, index=True)
    actor_id: int | None = None
    actor: str = ""
    data: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))


class Lease(SQLModel, table=True):
    """Who may work on a database that several machines reach, and until when if they do not say so again."""

    name: str = Field(primary_key=True)
    holder: str
    term: int
    """Higher for every holder: what an earlier one still writes is refused."""
    expires_at: float
    """By the clock of the database server."""


class Counter(SQLModel, table=True):
    """Monotonic numbers; `route` orders all changes that a gateway must see."""

    name: str = Field(primary_key=True)
    value: int = 0
