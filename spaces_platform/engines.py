"""Engines: how the two databases are connected to, and what their errors mean.

Owns every difference between the drivers of SQLite and Postgres. Does not own: transactions (store.py). The driver of
Postgres (psycopg) is imported by SQLAlchemy when a Postgres URL is given, and never otherwise.

Postgres connections are bounded in number, in the time to get one, in the time of a statement, of a lock, and of a
transaction whose client does nothing; each bound becomes an Unavailable that says to try again.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from sqlalchemy import URL, Engine, event, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlmodel import create_engine

from spaces_platform.errors import DiskFull, Invalid, PlatformError, Unavailable

BUSY_SECONDS = 30
"""How long a writer waits for another one: in this process, and for a SQLite writer of another process."""

CONNECT_SECONDS = 5
CONNECTIONS = 20
"""Most connections to Postgres that one process holds; its threads wait for one up to POOL_SECONDS."""
POOL_SECONDS = 10
IDLE_CONNECTION_SECONDS = 1800
STATEMENT_SECONDS = 30
LOCK_SECONDS = 20
IDLE_IN_TRANSACTION_SECONDS = 30
"""After so long the server ends a transaction whose client says nothing: one that is stopped holds up nobody longer."""

_POSTGRES = ("postgres", "postgresql", "postgresql+psycopg")
_BRIEFLY_AWAY = frozenset({"25006", "25P03", "25P04"})
"""SQLSTATEs outside the classes below: read-only (a standby being promoted), ended as idle or as too long."""
_AWAY = frozenset({"08", "40", "53", "55", "57", "58"})
"""Classes of SQLSTATE that pass by themselves: connection, rollback (deadlock, serialisation), resources, object in
use, operator intervention (shutdown, starting up, timeout), system. PostgreSQL documentation, appendix A."""


def parse_url(text: str) -> URL:
    """A database's URL with the driver that is used for it. Raises Invalid, without repeating a password."""
    try:
        url = make_url(text)
    except ArgumentError as exc:
        raise Invalid("database is not a URL, such as postgresql://user:password@host/name.") from exc
    if url.drivername in _POSTGRES:
        return url.set(drivername="postgresql+psycopg")
    if url.drivername == "sqlite":
        if url.database in (None, "", ":memory:"):
            raise Invalid("database names no file; it can be sqlite:///PATH")
        return url
    raise Invalid(f"database begins with {url.drivername}://; it can be sqlite:///PATH or postgresql://…")


def make_engine(url: URL) -> Engine:
    """Connects to nothing yet. Raises Unavailable where the driver is not installed."""
    if url.drivername == "sqlite":
        return _sqlite(url)
    try:
        return _postgres(url)
    except ModuleNotFoundError as exc:
        raise Unavailable(
            "Postgres needs the package psycopg, which this Python does not have. Install with `make single-host`, or "
            "pip install 'spaces-platform[single-host]'."
        ) from exc


def _sqlite(url: URL) -> Engine:
    engine = create_engine(
        url, connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False}, pool_size=16, max_overflow=32
    )

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _record: object) -> None:
        # The driver's own BEGIN is too late and too weak; transactions are begun below.
        connection.isolation_level = None
        # WAL lets readers go on while one writes; FULL makes a commit survive a power cut, NORMAL does not.
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            "temp_store=MEMORY",
            "cache_size=-8000",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        # A writer takes the lock first: a read that later turns into a write can fail with "database is locked".
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _postgres(url: URL) -> Engine:
    bounds = {
        "statement_timeout": STATEMENT_SECONDS,
        "lock_timeout": LOCK_SECONDS,
        "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION_SECONDS,
    }
    given = url.query.get("options", "")
    options = " ".join([str(given), *(f"-c {name}={seconds}s" for name, seconds in bounds.items())]).strip()
    engine = create_engine(
        url,
        isolation_level="READ COMMITTED",
        pool_pre_ping=True,
        pool_size=CONNECTIONS // 2,
        max_overflow=CONNECTIONS - CONNECTIONS // 2,
        pool_timeout=POOL_SECONDS,
        pool_recycle=IDLE_CONNECTION_SECONDS,
        connect_args={
            "connect_timeout": CONNECT_SECONDS,
            "application_name": url.query.get("application_name", "spaces"),
            "options": options,
            # A server that vanished without a word (its host lost power) is noticed.
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 15_000,
            # Prepared statements outlive a pooler's transaction and a migration's change of a table; plans are cheap.
            "prepare_threshold": None,
        },
    )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        # What is acknowledged must be on disk, whatever the server's default is; a stricter default is left alone.
        connection.execute(
            "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
        )
        connection.commit()

    @event.listens_for(engine, "before_cursor_execute", retval=True)
    def storable(
        _connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool
    ) -> tuple[str, Any]:
        # Text of Postgres holds no NUL, and apps print what they like. Many rows are a list, or (in one statement) a
        # dict like one row.
        rows = isinstance(parameters, list | tuple)
        return statement, [_without_nul(row) for row in parameters] if rows else _without_nul(parameters)

    return engine


def _without_nul(parameters: Any) -> Any:
    if not isinstance(parameters, dict) or not any(isinstance(v, str) and "\0" in v for v in parameters.values()):
        return parameters
    return {k: v.replace("\0", "\ufffd") if isinstance(v, str) else v for k, v in parameters.items()}


def meaning(exc: Exception) -> PlatformError | None:
    """What an error of the database means to whoever asked; None: it is an answer (IntegrityError) or a fault of ours.

    What Postgres says of itself (hosts, users, settings) is not for whoever sent the request: the log has it.
    """
    if isinstance(exc, PoolTimeout):
        return Unavailable("All connections to the database are in use; try again in a moment.")
    if not isinstance(exc, DBAPIError) or isinstance(exc, IntegrityError):
        return None
    state = getattr(exc.orig, "sqlstate", None) or ""
    if state == "53100" or (isinstance(exc.orig, sqlite3.Error) and _says_full(exc.orig)):
        return DiskFull("The disk of the database is full; free some space and try again.")
    if isinstance(exc.orig, sqlite3.OperationalError):
        return Unavailable(f"The database does not answer: {exc.orig}")
    if isinstance(exc, DataError):
        return Invalid("A value is larger than the database can hold.")
    if isinstance(exc, OperationalError) or exc.connection_invalidated or state[:2] in _AWAY or state in _BRIEFLY_AWAY:
        return Unavailable("The database does not answer; try again in a moment.")
    return None


def _says_full(error: sqlite3.Error) -> bool:
    return "full" in str(error).lower() or "no space left" in str(error).lower()
