"""The lease of the control plane on a shared database (T32): one works, and a stale one is refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlmodel import select

from spaces_platform.errors import Conflict, Superseded, Unavailable
from spaces_platform.lease import ControlLease
from spaces_platform.models import Account, Lease
from spaces_platform.store import Store
from tests.services import databases

SHORT = 1.0
LONG = 600.0


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[list[Store]]:
    """Of two machines."""
    url = databases.on_postgres(tmp_path)
    made = [Store(url), Store(url)]
    yield made
    for store in made:
        store.close()


def take(store: Store, holder: str, seconds: float = LONG) -> ControlLease:
    lease = ControlLease(store, holder, seconds=seconds)
    lease.acquire(threading.Event())
    return lease


def write(store: Store, name: str) -> None:
    with store.write() as tx:
        tx.add(Account(name=name, key=name))


def test_a_second_control_plane_is_refused_while_the_first_renews(stores: list[Store]) -> None:
    first = take(stores[0], "a")
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(0.05):
            first.renew()

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(Conflict, match="Another control plane works on this database: a"):
            take(stores[1], "b")
    finally:
        ended.set()
        thread.join()
    write(stores[0], "still")


def test_a_stopped_holder_is_replaced_and_refused_as_stale(stores: list[Store]) -> None:
    """What SIGSTOP for longer than the lease does: the old holder goes on as if nothing had been."""
    stale = take(stores[0], "a", SHORT)
    write(stores[0], "before")
    take(stores[1], "b")  # waits for the end of the first
    with pytest.raises(Superseded):
        write(stores[0], "stale")
    with pytest.raises(Superseded), stores[0].write(alone=False) as tx:
        tx.execute(text("UPDATE account SET disabled = true"))
    with pytest.raises(Superseded):
        stale.renew()
    with pytest.raises(Superseded):
        stale.release()
    write(stores[1], "after")
    with stores[1].read() as db:
        assert {a.name for a in db.exec(select(Account)) if not a.disabled} == {"before", "after"}
        assert [row.holder for row in db.exec(select(Lease))] == ["b"]


def test_a_writer_that_waited_for_the_lock_is_refused_too(stores: list[Store]) -> None:
    """It checked nothing before it waited: the lease was taken by the one that it waited for."""
    take(stores[0], "a")
    waits, errors = threading.Event(), []

    def late() -> None:
        waits.set()
        try:
            write(stores[0], "late")
        except Superseded as error:
            errors.append(error)

    thread = threading.Thread(target=late)
    with stores[1].write() as tx:
        thread.start()
        waits.wait()
        deadline = time.monotonic() + 60
        while not databases.cluster().sql("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"):
            assert time.monotonic() < deadline, "the other writer does not wait"
        row = tx.get(Lease, "control")
        assert row is not None
        row.term, row.holder = row.term + 1, "b"
        tx.add(row)
    thread.join()
    assert len(errors) == 1


def test_the_same_machine_starts_again_at_once_with_a_higher_term(stores: list[Store]) -> None:
    take(stores[0], "a")
    began = time.monotonic()
    take(stores[1], "a")
    assert time.monotonic() - began < LONG / 10
    assert stores[1].term == (stores[0].term or 0) + 1
    with pytest.raises(Superseded):
        write(stores[0], "killed before")


def test_a_lease_given_back_is_free_at_once(stores: list[Store]) -> None:
    take(stores[0], "a").release()
    take(stores[1], "b")
    write(stores[1], "on")


def test_no_clock_but_the_servers_counts(stores: list[Store], monkeypatch: pytest.MonkeyPatch) -> None:
    take(stores[0], "a")
    for shift in (-600.0, 600.0):
        now = time.time()
        monkeypatch.setattr(time, "time", lambda now=now, shift=shift: now + shift)
        stopping = threading.Event()
        stopping.set()
        with pytest.raises(Conflict):
            ControlLease(stores[1], "b").acquire(stopping)
    write(stores[0], "still")


def test_a_stop_ends_the_waiting(stores: list[Store]) -> None:
    take(stores[0], "a")
    stopping = threading.Event()
    threading.Timer(0.2, stopping.set).start()
    with pytest.raises(Conflict):
        ControlLease(stores[1], "b").acquire(stopping)


def test_superseded_is_told_as_unavailable() -> None:
    assert issubclass(Superseded, Unavailable)
    assert Superseded.retryable
