"""The database: schema, transactions, hints, concurrent writers, and what a kill leaves (T28), on either database."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import func
from sqlalchemy.exc import IntegrityError
from sqlmodel import SQLModel, col, select, update

from spaces_platform.errors import Invalid, Unavailable
from spaces_platform.models import Account, Build, Counter, Deployment, Space
from spaces_platform.store import Store
from tests.services import databases


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(databases.url_of(tmp_path))
    made.migrate()
    yield made
    made.close()


def a_space(store: Store) -> None:
    with store.write() as tx:
        tx.add(Account(id=1, name="a", key="a"))
        tx.flush()
        tx.add(Space(id=1, owner_id=1, owner="a", name="s", key="s", creator_id=1))


def test_the_migrations_make_exactly_the_models(store: Store) -> None:
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "render_as_batch": True})
        assert compare_metadata(context, SQLModel.metadata) == []


def test_migrating_again_changes_nothing(store: Store) -> None:
    a_space(store)
    store.migrate()
    with store.read() as db:
        assert db.get(Space, 1) is not None


def test_nobody_hears_of_what_was_rolled_back(store: Store) -> None:
    heard: list[str] = []

    def fail() -> None:
        with store.write() as tx:
            tx.add(Account(name="a", key="a"))
            tx.after_commit(lambda: heard.append("a"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with store.write() as tx:
        tx.add(Account(name="b", key="b"))
        tx.after_commit(lambda: heard.append("b"))
        assert heard == []
    assert heard == ["b"]
    with store.read() as db:
        assert [a.name for a in db.exec(select(Account))] == ["b"]


@pytest.mark.parametrize(
    "rows",
    [
        [Build(space_id=1, commit="c", plan_id="p", plan={}), Build(space_id=1, commit="d", plan_id="p", plan={})],
        [
            Deployment(space_id=1, artifact="a", plan={}, status="READY", live=True),
            Deployment(space_id=1, artifact="b", plan={}, status="READY", live=True),
        ],
        [Deployment(space_id=1, artifact="a", plan={}), Deployment(space_id=1, artifact="b", plan={})],
    ],
    ids=["two live builds of a plan", "two live deployments", "two candidates"],
)
def test_what_must_never_be_is_refused_by_the_schema(store: Store, rows: list[SQLModel]) -> None:
    a_space(store)
    with pytest.raises(IntegrityError), store.write() as tx:
        tx.add_all(rows)


def test_writers_wait_for_each_other_and_versions_never_repeat(store: Store) -> None:
    seen: list[int] = []

    def write() -> None:
        for _ in range(25):
            with store.write() as tx:
                seen.append(tx.next_version())

    threads = [threading.Thread(target=write) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == list(range(1, 151))
    assert seen == sorted(seen), "a version became visible before a smaller one"


class Meeting:
    """Two who wait for each other at a point, but not for ever: a lock that holds keeps the second away from it."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(2)

    def wait(self) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            self._barrier.wait(0.3)


def two_processes(store: Store, work: Callable[[Store, int], object]) -> list[object]:
    """Results or errors of the same work done at once by two processes: each has a Store of its own."""

    def one(n: int) -> object:
        own = Store(store.url)
        try:
            return work(own, n)
        except Unavailable as error:
            return error
        finally:
            own.close()

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, range(2)))


def test_what_a_writer_counted_stays_true_until_it_commits(store: Store) -> None:
    """The last free slot is taken once, whoever counted it: of start slots, builds, Spaces per owner."""
    meeting = Meeting()

    def take(own: Store, n: int) -> int:
        with own.write() as tx:
            taken = tx.exec(select(func.count()).select_from(Account)).one()
            meeting.wait()
            if taken == 0:
                tx.add(Account(name=f"u{n}", key=f"u{n}"))
            return taken

    assert sorted(map(str, two_processes(store, take))) == ["0", "1"]


def test_what_a_writer_read_is_not_overwritten(store: Store) -> None:
    """`generation + 1` by two at once is plus two."""
    a_space(store)
    meeting = Meeting()

    def raise_it(own: Store, _: int) -> None:
        with own.write() as tx:
            row = tx.get(Space, 1)
            assert row is not None
            meeting.wait()
            row.generation += 1
            tx.add(row)

    assert two_processes(store, raise_it) == [None, None]
    with store.read() as db:
        space = db.get(Space, 1)
    assert space is not None
    assert space.generation == Space.model_fields["generation"].default + 2


def test_writers_of_the_same_rows_in_another_order_do_not_deadlock(store: Store) -> None:
    with store.write() as tx:
        tx.add_all([Account(id=n, name=f"u{n}", key=f"u{n}") for n in (1, 2)])
    meeting = Meeting()

    def both(own: Store, n: int) -> None:
        order = (1, 2) if n else (2, 1)
        with own.write() as tx:
            for id in order:
                tx.execute(update(Account).where(col(Account.id) == id).values(fullname=str(n)))
                meeting.wait()

    assert two_processes(store, both) == [None, None]
    with store.read() as db:
        assert len(set(db.exec(select(Account.fullname)))) == 1


def test_a_claim_by_one_statement_is_one_processs(store: Store) -> None:
    a_space(store)

    def claim(own: Store, n: int) -> int:
        query = update(Space).where(col(Space.id) == 1, col(Space.claim_token).is_(None)).values(claim_token=str(n))
        with own.write(alone=False) as tx:
            return int(tx.execute(query).rowcount)  # type: ignore[attr-defined]

    assert sorted(map(str, two_processes(store, claim))) == ["0", "1"]


def test_a_reader_sees_one_moment(store: Store) -> None:
    a_space(store)
    with store.read() as db:
        before = db.exec(select(func.count()).select_from(Account)).one()
        with store.write() as tx:
            tx.add(Account(id=2, name="b", key="b"))
        assert db.exec(select(func.count()).select_from(Account)).one() == before == 1


def test_processes_that_start_at_once_migrate_once(tmp_path: Path) -> None:
    # A SQLite file has one process that migrates: its data directory is locked (control.py).
    count = 3 if databases.ON_POSTGRES else 1
    with databases.empty(tmp_path) as url:
        program = "import sys; from spaces_platform.store import Store; Store(sys.argv[1]).migrate()"
        argv = [sys.executable, "-c", program, url]
        started = [subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) for _ in range(count)]
        for process in started:
            _, said = process.communicate(timeout=100)
            assert process.returncode == 0, said
        store = Store(url)
        with store.read() as db:
            assert len(db.exec(select(Counter)).all()) == 1
        store.close()


def test_a_wrong_url_is_refused_without_its_password() -> None:
    with pytest.raises(Invalid, match="mysql") as refused:
        Store("mysql://me:s3cret@db/x")
    assert "s3cret" not in str(refused.value)


def test_a_database_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable), Store(f"sqlite:///{tmp_path / 'no' / 'such' / 'place.db'}").read() as db:
        db.exec(select(Counter)).all()


WRITER = """
import sys
from spaces_platform.models import Account
from spaces_platform.store import Store
store = Store(sys.argv[1])
n = int(sys.argv[2])
while True:
    with store.write() as tx:
        tx.add(Account(name=f"u{n}", key=f"u{n}"))
    print(n, flush=True)
    n += 1
"""


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path, store: Store) -> None:
    """Ten writers are killed in the middle of their writing: every row they told of is there, and the file is whole."""
    acknowledged = 0
    for round_ in range(10):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, store.url, str(acknowledged)], stdout=subprocess.PIPE, text=True
        )
        if child.stdout is None:
            raise AssertionError("the writer has no output")
        for _ in range(3 + round_):
            acknowledged = int(child.stdout.readline()) + 1
        child.send_signal(signal.SIGKILL)
        for line in child.stdout:
            acknowledged = int(line) + 1
        child.wait()
        child.stdout.close()
        with store.read() as db:
            names = {a.name for a in db.exec(select(Account))}
            assert names >= {f"u{n}" for n in range(acknowledged)}
        databases.check(store.url)
        # A row may be there that its writer had no time to tell of.
        acknowledged = len(names)
