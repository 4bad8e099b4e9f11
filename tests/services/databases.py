"""Which database the tests run on: SQLite files, or (TEST_DATABASE=postgres) databases of one Postgres.

A test asks by the data directory that it uses: `url_of(data)` is the same database each time, made with all tables when
it is first asked for. `copy` begins a test with what another one prepared. What a test made is dropped at its end.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import SQLModel

from spaces_platform.store import Store
from tests.services import postgres

CHOICE = os.environ.get("TEST_DATABASE", "sqlite")
ON_POSTGRES = CHOICE == "postgres"

sqlite_only = pytest.mark.skipif(ON_POSTGRES, reason="about SQLite itself")
not_on_postgres = pytest.mark.skipif(ON_POSTGRES, reason="in a network of its own, where the tests' Postgres is not")
_EMPTY = "made_by_migrations"


class _Server:
    """The one cluster of this test run, started when it is first needed."""

    def __init__(self) -> None:
        self.cluster: postgres.Cluster | None = None
        self.made: list[str] = []

    def get(self) -> postgres.Cluster:
        if self.cluster is None:
            reason = postgres.why_not()
            if reason is not None:
                # Asked for by name, it must not be skipped unseen.
                assert not ON_POSTGRES, f"TEST_DATABASE=postgres: {reason}"
                pytest.skip(reason)
            self.cluster = postgres.Cluster().start()
            store = Store(self.cluster.create(_EMPTY))
            store.migrate()
            store.close()
        return self.cluster

    def name_of(self, data: Path) -> str:
        return "t_" + hashlib.sha256(str(data.resolve()).encode()).hexdigest()[:16]

    def create(self, data: Path, template: str = _EMPTY) -> str:
        name, cluster = self.name_of(data), self.get()
        if name not in self.made:
            cluster.create(name, template)
            self.made.append(name)
        return cluster.url(name)

    def drop_all_but(self, kept: list[str]) -> None:
        for name in [name for name in self.made if name not in kept]:
            self.get().drop(name)
            self.made.remove(name)


_server = _Server()


def url_of(data: Path) -> str:
    """The database of a data directory. Its tables may still have to be made (`Store.migrate`)."""
    return _server.create(data) if ON_POSTGRES else f"sqlite:///{data / 'spaces.db'}"


def on_postgres(data: Path) -> str:
    """As `url_of`, of tests that are about Postgres; skips where there is none."""
    return _server.create(data)


def cluster() -> postgres.Cluster:
    """The one that `on_postgres` and `url_of` use; skips where there is none."""
    return _server.get()


@contextlib.contextmanager
def empty(data: Path) -> Iterator[str]:
    """The URL of a database without tables."""
    if not ON_POSTGRES:
        yield f"sqlite:///{data / 'empty.db'}"
        return
    yield _server.get().create("without_tables")
    _server.get().drop("without_tables")


def copy(source: Path, data: Path) -> None:
    """Begin with the database of another data directory, to which nothing is connected."""
    if ON_POSTGRES:
        _server.create(data, _server.name_of(source))
        return
    with sqlite3.connect(source / "spaces.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    shutil.copy(source / "spaces.db", data / "spaces.db")


def rows(url: str, query: str, *values: object) -> list[dict[str, Any]]:
    """Rows of a platform's database, read beside it; `?` stands for a value, and JSON stays text."""
    if url.startswith("sqlite"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"), timeout=30)
        connection.row_factory = sqlite3.Row
        try:
            return [dict(row) for row in connection.execute(query, values)]
        finally:
            connection.close()
    import psycopg
    from psycopg.rows import dict_row

    with psycopg.connect(url, row_factory=dict_row) as server:
        found = server.execute(query.replace("%", "%%").replace("?", "%s"), values).fetchall()  # type: ignore[call-overload]
    return [{k: json.dumps(v) if isinstance(v, dict | list) else v for k, v in row.items()} for row in found]


def check(url: str) -> None:
    """The database is whole, as far as it can tell (Postgres checks references itself)."""
    if url.startswith("sqlite"):
        assert rows(url, "PRAGMA integrity_check") == [{"integrity_check": "ok"}]
        assert rows(url, "PRAGMA foreign_key_check") == []


def everything_in(store: Store) -> str:
    """All rows of all tables, as text."""
    with store.read() as db:
        return repr([db.execute(table.select()).all() for table in SQLModel.metadata.sorted_tables])


def make_quick(store: Store) -> None:
    """Durability is tested elsewhere; here it would only cost time (Postgres runs without fsync in tests)."""
    from sqlalchemy import event

    if store.is_sqlite:
        event.listen(store.engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))


@pytest.fixture(autouse=True)
def _databases_end() -> Iterator[None]:
    """Drop what a test made; what fixtures of a wider scope made before it stays."""
    kept = list(_server.made)
    yield
    _server.drop_all_but(kept)


@pytest.fixture(autouse=True, scope="session")
def _server_ends() -> Iterator[None]:
    yield
    if _server.cluster is not None:
        _server.cluster.remove()
