"""Connections to Postgres: their bounds, and what each error of a real server means. (SQLite's are in test_store.)"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlmodel import select

from spaces_platform import engines
from spaces_platform.engines import parse_url
from spaces_platform.errors import DiskFull, Invalid, PlatformError, Unavailable
from spaces_platform.models import Account
from spaces_platform.store import Store
from tests.services import databases, postgres


@pytest.fixture
def url(tmp_path: Path) -> str:
    return databases.on_postgres(tmp_path)


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    made = Store(url)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgres://u:p@h/d", "postgresql+psycopg://u:p@h/d"),
        ("postgresql://u@h:5433/d?sslmode=require", "postgresql+psycopg://u@h:5433/d?sslmode=require"),
        ("postgresql+psycopg://h/d", "postgresql+psycopg://h/d"),
        ("sqlite:////x/spaces.db", "sqlite:////x/spaces.db"),
    ],
)
def test_urls_as_people_have_them(given: str, used: str) -> None:
    assert parse_url(given).render_as_string(hide_password=False) == used


@pytest.mark.parametrize(
    "given", ["mysql://u:s3cret@h/d", "postgresql+asyncpg://u:s3cret@h/d", "s3cret", "", "sqlite://"]
)
def test_other_urls_are_refused_without_their_password(given: str) -> None:
    with pytest.raises(Invalid) as refused:
        parse_url(given)
    assert "s3cret" not in str(refused.value)


def test_the_driver_of_postgres_is_not_loaded_where_it_is_not_used() -> None:
    program = (
        "import sys, spaces_platform.wiring.assembly; from spaces_platform.store import Store; "
        "Store('sqlite:///x.db').close(); print([m for m in sys.modules if m.startswith('psycopg')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_every_connection_is_bounded_and_durable(url: str, store: Store) -> None:
    name = url.rpartition("/")[2]
    databases.cluster().sql(f"ALTER DATABASE \"{name}\" SET synchronous_commit = 'off'")
    with store.read() as db:
        shown = {
            name: db.execute(text(f"SHOW {name}")).scalar_one()
            for name in (
                "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "synchronous_commit",
                "application_name",
            )
        }  # fmt: skip
    assert shown == {
        "statement_timeout": "30s", "lock_timeout": "20s", "idle_in_transaction_session_timeout": "30s",
        "synchronous_commit": "on", "application_name": "spaces",
    }  # fmt: skip


def raised(code: str) -> str:
    """A statement that fails with a SQLSTATE, raised by the server itself."""
    return f"DO $$ BEGIN RAISE EXCEPTION 'told by the server' USING ERRCODE = '{code}'; END $$"


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        pytest.param(raised("40P01"), Unavailable, id="deadlock"),
        pytest.param(raised("40001"), Unavailable, id="serialisation"),
        pytest.param(raised("53300"), Unavailable, id="too many connections"),
        pytest.param(raised("57P01"), Unavailable, id="shut down by an admin"),
        pytest.param(raised("57P03"), Unavailable, id="starting up"),
        pytest.param(raised("25006"), Unavailable, id="read-only: a standby"),
        pytest.param(raised("53100"), DiskFull, id="disk full"),
        pytest.param("SET LOCAL statement_timeout = '20ms'; SELECT pg_sleep(20)", Unavailable, id="statement timeout"),
        pytest.param("SELECT 99999999999::integer", Invalid, id="too large a number"),
        pytest.param("INSERT INTO counter (name, value) VALUES ('route', 1)", IntegrityError, id="an answer"),
    ],
)
def test_what_an_error_means(store: Store, statement: str, expected: type[Exception]) -> None:
    def fail() -> None:
        with store.write() as tx:
            for each in [statement] if statement.startswith("DO") else statement.split(";"):
                tx.execute(text(each))

    with pytest.raises(expected) as failed:
        fail()
    if isinstance(failed.value, PlatformError):
        assert "told by the server" not in str(failed.value), "what the server says is for the log"
    with store.read() as db:
        db.execute(text("SELECT 1"))


def test_a_lock_that_is_not_given_is_waited_for_so_long(
    store: Store, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "LOCK_SECONDS", 0.02)
    hurried = Store(url)
    with hurried.read() as db:
        assert db.execute(text("SHOW lock_timeout")).scalar_one() == "20ms"
    with store.write(), pytest.raises(Unavailable), hurried.write():
        pass
    hurried.close()


def test_connections_that_were_cut_are_made_again(store: Store) -> None:
    with store.read() as db:
        db.execute(text("SELECT 1"))
    cut_all()
    with store.read() as db:
        assert db.execute(text("SELECT 1")).scalar_one() == 1


def test_a_transaction_that_was_cut_is_unavailable_and_leaves_nothing(store: Store) -> None:
    def fail() -> None:
        with store.write() as tx:
            tx.add(Account(name="a", key="a"))
            tx.flush()
            cut_all()

    with pytest.raises(Unavailable):
        fail()
    with store.read() as db:
        assert db.exec(select(Account)).all() == []


def cut_all() -> None:
    databases.cluster().sql(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = 'spaces'"
    )


def test_more_threads_than_connections_are_told_to_come_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "CONNECTIONS", 2)
    monkeypatch.setattr(engines, "POOL_SECONDS", 0.1)
    small = Store(url)
    with small.read() as one, small.read() as two:
        one.execute(text("SELECT 1"))
        two.execute(text("SELECT 1"))
        with pytest.raises(Unavailable, match="connections"), small.read() as three:
            three.execute(text("SELECT 1"))
    small.close()


def test_neither_errors_nor_logs_show_the_password(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    assert postgres.PASSWORD in url
    wrong = f"{postgres.PASSWORD}-wrong"
    for broken in (url.replace(postgres.PASSWORD, wrong), url + "-missing", url.replace("127.0.0.1", "127.0.0.99")):
        store = Store(broken)
        with pytest.raises(Unavailable) as failed:
            store.migrate()
        store.close()
        assert postgres.PASSWORD not in f"{failed.value} {failed.value!r} {caplog.text} {store.engine!r}"
    assert "the database failed" in caplog.text


def test_text_of_apps_may_hold_what_postgres_cannot(store: Store) -> None:
    with store.write() as tx:
        tx.add_all([Account(name=f"n\0ul{n}", key=f"k{n}") for n in range(3)])
        tx.add(Account(name="\0", key="one"))
    with store.read() as db:
        names = sorted(db.exec(select(Account.name)))
    assert names == ["n\ufffdul0", "n\ufffdul1", "n\ufffdul2", "\ufffd"]
