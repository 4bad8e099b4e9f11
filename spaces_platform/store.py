"""The database: transactions and their rules, the same on SQLite and Postgres.

A write transaction is short, makes no call outside the database, and tells others of its change only after the commit
(`Transaction.after_commit`), so that nobody hears of a row that does not exist.

**Writers are alone.** What a use case reads in a write transaction stays true until its commit: counts (free start
slots, Spaces per owner), places in a line, `generation + 1`, "not there yet, so insert". SQLite has one writer by
nature. On Postgres a write transaction takes an advisory lock first, exclusively, at READ COMMITTED: every statement
after it sees all that was committed before, there is nothing to retry, and there are no deadlocks, since whoever holds
any row's lock holds this one. The price is one commit at a time (hundreds a second), which is what route versions cost
anyway: their order of commit is their order. `write(alone=False)` is for a single compare-and-set statement on one row,
which needs nobody to be away: on Postgres those take the lock shared, and commit beside each other.

**Readers see one moment.** SQLite gives a snapshot; on Postgres reads are REPEATABLE READ and READ ONLY, which never
fails or blocks.

**A stale control plane is refused.** On a database that several machines reach, the control plane holds a lease with a
term (lease.py), and every write of its process checks the term under the lock.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import inspect, text
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session

from spaces_platform.engines import BUSY_SECONDS, make_engine, meaning, parse_url
from spaces_platform.errors import Superseded, Unavailable

log = logging.getLogger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations"
WRITER_LOCK = 0x53504143_45530001
"""Key of the advisory lock of writers."""
MIGRATION_LOCK = 0x53504143_45530002
_NEXT_VERSION = text("UPDATE counter SET value = value + 1 WHERE name = 'route' RETURNING value")
COMPLAIN_SECONDS = 5.0
"""An error of the database is logged at most this often: an outage is one event, not one per request."""


def newest_revision() -> str:
    """Of the migrations: their files are numbered, `0001_first_tables.py` is revision `0001`."""
    return max(path.name.partition("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*_*.py"))


class Transaction(Session):
    """A SQLModel session that also keeps what is to be told after its commit."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._hints: list[Callable[[], None]] = []

    def after_commit(self, hint: Callable[[], None]) -> None:
        """Call `hint` once the commit is durable; never if it is rolled back."""
        self._hints.append(hint)

    def next_version(self) -> int:
        """The next route version. Holds the counter's row until commit, so versions become visible in order."""
        with self.no_autoflush:  # no row depends on it: what changed so far is written once, with the version
            return int(self.execute(_NEXT_VERSION).scalar_one())

    def server_time(self) -> float:
        """Unix seconds by the clock of the Postgres server, which all that use it share."""
        return float(self.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())


class Store:
    """All access to the database goes through `read()` and `write()`."""

    def __init__(self, url: str) -> None:
        """Connects to nothing yet. Raises Invalid for a URL that cannot be used."""
        self.url = url
        parsed = parse_url(url)
        self.is_sqlite = parsed.drivername == "sqlite"
        self.engine = make_engine(parsed)
        self.term: int | None = None
        """Of the lease that this process's writes depend on; None: they depend on none."""
        # Waiting here is fair and costs neither polling (SQLite's busy handler) nor a connection (Postgres's lock).
        self._writer = threading.Lock()
        self._complained = -COMPLAIN_SECONDS

    def migrate(self) -> None:
        """Bring the schema to the newest version. Safe to call at every start, and by several processes at once."""
        with self._translated():
            if self._revision() == newest_revision():
                return
            # Imported only where it has work to do: a quarter of a second of every start otherwise.
            from alembic import command
            from alembic.config import Config

            config = Config()
            config.set_main_option("script_location", str(MIGRATIONS))
            config.attributes["engine"] = self.engine
            config.attributes["lock"] = None if self.is_sqlite else MIGRATION_LOCK
            command.upgrade(config, "head")

    def _revision(self) -> str | None:
        """Of the schema as it is, where alembic keeps it."""
        with self.engine.connect() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return None
            revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
        return None if revision is None else str(revision)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A consistent read-only view. Raises Unavailable where the database does not answer."""
        with self._translated(), Session(self.engine, expire_on_commit=False) as session:
            if not self.is_sqlite:
                snapshot = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
                session.connection(execution_options=snapshot)
            yield session

    @contextmanager
    def write(self, *, alone: bool = True) -> Iterator[Transaction]:
        """One transaction: committed at the end of the block, rolled back on any exception.

        `alone` False: the block is one UPDATE of one row that decides by its own WHERE (and inserts that follow from
        it); nothing read in it may be relied on.

        Raises Unavailable (also where the commit's outcome is not known), Superseded, DiskFull; IntegrityError passes
        through, it is an answer.
        """
        with (
            self._turn(alone),
            self._translated(),
            Transaction(self.engine, expire_on_commit=False) as session,
        ):
            session.connection(execution_options={"writes": True})
            if not self.is_sqlite:
                self._lock(session, alone)
            yield session
            session.commit()
        for hint in session._hints:
            hint()

    @contextmanager
    def _turn(self, alone: bool) -> Iterator[None]:
        """Of this process's writers, one goes to the database at a time."""
        if not alone and not self.is_sqlite:
            yield
            return
        if not self._writer.acquire(timeout=BUSY_SECONDS):
            raise Unavailable("The database has too much to write; try again in a moment.")
        try:
            yield
        finally:
            self._writer.release()

    def _lock(self, session: Session, alone: bool) -> None:
        function = "pg_advisory_xact_lock" if alone else "pg_advisory_xact_lock_shared"
        session.execute(text(f"SELECT {function}({WRITER_LOCK})"))
        if self.term is None:
            return
        # A statement of its own: one that waits for the lock sees what was there before it waited.
        term = session.execute(text("SELECT term FROM lease WHERE name = 'control'")).scalar_one_or_none()
        if term != self.term:
            raise Superseded(f"Another control plane took the database over (term {term}; ours was {self.term}).")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as exc:
            error = meaning(exc)
            if error is None:
                raise
            if error.retryable and time.monotonic() - self._complained >= COMPLAIN_SECONDS:
                self._complained = time.monotonic()
                log.warning("the database failed: %s", getattr(exc, "orig", None) or exc)
            raise error from exc

    def close(self) -> None:
        self.engine.dispose()
