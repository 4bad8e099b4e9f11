"""Postgres is killed, restarted, away, short of connections, or fought for by two control planes (T28, T30, T32).

What was acknowledged is there; who asks meanwhile is told to come again; running apps do not notice.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlmodel import select

from spaces_platform.errors import Unavailable
from spaces_platform.models import Account
from spaces_platform.store import Store
from tests.faults import apps
from tests.faults.system import STRETCH, System, running, until
from tests.faults.visitors import Crowd
from tests.services import postgres
from tests.services.postgres import Cluster

START_SECONDS = 5.0
RECOVERY_SECONDS = 15.0
"""Of security-and-reliability.md, T28 and T30."""
NAMES = 4


# --- T28 --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("crashes", [4, pytest.param(20, marks=pytest.mark.soak)])
def test_no_acknowledged_row_is_lost_by_a_crash_of_the_server(crashes: int) -> None:
    with postgres.running(durable=True) as cluster:
        url = cluster.create("crashed")
        store = Store(url)
        store.migrate()
        writers = [Writer(url, n) for n in range(4)]
        for crash in range(crashes):
            for writer in writers:
                more = len(writer.acked) + 5
                until(lambda w=writer, more=more: len(w.acked) >= more, 20, "rows are written")
            if crash % 2:
                cluster.stop("immediate")
            else:
                cluster.kill()
            began = time.monotonic()
            cluster.start()
            took = time.monotonic() - began
            assert took <= START_SECONDS * STRETCH, f"the server started in {took:.1f} s"
        for writer in writers:
            writer.stop()
        with store.read() as db:
            there = set(db.exec(select(Account.name)))
        store.close()
    for writer in writers:
        assert not writer.errors, writer.errors[:3]
        assert writer.refused, "no write met a crash: this shows nothing"
        assert set(writer.acked) <= there


class Writer:
    """Writes rows one after another until it is stopped, and knows which were acknowledged."""

    def __init__(self, url: str, number: int) -> None:
        self.acked: list[str] = []
        self.refused = 0
        self.errors: list[Exception] = []
        self._store, self._number = Store(url), number
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def _write(self) -> None:
        count = 0
        while not self._stopping.is_set():
            # A name is used once: whether an unacknowledged row is there cannot be known.
            count += 1
            name = f"w{self._number}-{count}"
            try:
                with self._store.write() as tx:
                    tx.add(Account(name=name, key=name))
            except Unavailable:
                self.refused += 1
                self._stopping.wait(0.01)
            except Exception as error:
                self.errors.append(error)
                return
            else:
                self.acked.append(name)

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._store.close()


# --- T30 --------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with postgres.running() as made:
        yield made


@pytest.fixture(scope="module")
def system(cluster: Cluster, folder: Path) -> Iterator[System]:
    with running(folder, database=cluster.create("platform")) as made:
        made.create("app")
        made.push("app", apps.python("v1"))
        made.wait_serving("app", "v1")
        yield made


class Callers:
    """Users of the API, some of whom write; each answer must be quick and one that a client understands."""

    LIMIT_SECONDS = 20.0

    def __init__(self, system: System) -> None:
        self.system = system
        self.statuses: Counter[int] = Counter()
        self.bad: list[str] = []
        self.acked: dict[str, str] = {}
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(n,)) for n in range(NAMES)]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _call(self, number: int) -> None:
        headers = {"Authorization": f"Bearer {self.system.token}", "Content-Type": "application/json"}
        count = 0
        while not self._stopping.wait(0.05):
            count += 1
            key, value = f"NOTE_{number}", str(count)
            body = f'{{"key": "{key}", "value": "{value}"}}'.encode()
            asked = ("POST", "/api/spaces/admin/notes/variables", body) if count % 2 else ("GET", "/api/spaces", None)
            try:
                answer = self.system.request(asked[0], asked[1], headers=headers, body=asked[2], timeout=60)
            except (OSError, http.client.HTTPException) as error:
                self.bad.append(f"{asked[:2]}: {error!r}")
                continue
            self.statuses[answer.status] += 1
            fields = {name.lower(): text for name, text in answer.headers.items()}
            says_when = fields.get("retry-after", "").isdigit()
            if answer.status != 200 and not (answer.status == 503 and says_when):
                self.bad.append(f"{asked[:2]}: {answer.status} {fields} {answer.text[:300]}")
            if answer.seconds > self.LIMIT_SECONDS * STRETCH:
                self.bad.append(f"{asked[:2]}: after {answer.seconds:.1f} s")
            if answer.status == 200 and asked[2]:
                self.acked[key] = value

    def wait(self, status: int, seconds: float = RECOVERY_SECONDS) -> None:
        """Until so many more answers have the status that each caller got one."""
        before = self.statuses[status]
        until(lambda: self.statuses[status] >= before + 2 * NAMES, seconds, f"answers with {status}")


def starts(system: System) -> list[int]:
    return [row["id"] for row in system.rows("SELECT id FROM deployment ORDER BY id")]


@pytest.mark.parametrize(
    ("restarts", "away"),
    [(3, 3.0), pytest.param(5, 60.0, marks=[pytest.mark.soak, pytest.mark.timeout(600)])],
)
def test_a_restarting_postgres_is_503_for_the_api_and_nothing_for_visitors(
    system: System, cluster: Cluster, restarts: int, away: float
) -> None:
    if not system.rows("SELECT 1 FROM space WHERE name = 'notes'"):
        system.create("notes")
    deployments, processes, control = starts(system), system.app_processes(), system.pid("control")
    with Callers(system) as callers, Crowd(system.port, "admin-app.localhost").probe(40).websockets(2) as visitors:
        callers.wait(200)
        for _ in range(restarts):
            cluster.restart("immediate")
            callers.wait(200)
            assert system.wait_ready(RECOVERY_SECONDS) <= RECOVERY_SECONDS * STRETCH
        cluster.stop("immediate")
        began = time.monotonic()
        callers.wait(503)
        until(lambda: time.monotonic() - began > away, 60, "it is away for a while")
        assert not system.is_ready()
        cluster.start()
        system.wait_ready(RECOVERY_SECONDS)
        callers.wait(200)
    print(f"API: {dict(callers.statuses)}; visitors: {visitors.outcome.sent}")
    assert callers.bad == []
    assert visitors.outcome.failed == []
    assert visitors.sockets.failed == []
    assert set(visitors.outcome.texts) == {"v1"}
    # No doubled effects: nothing was started, and what was acknowledged was written.
    assert starts(system) == deployments
    assert system.app_processes() == processes
    assert system.pid("control") == control
    kept = {v["key"]: v for v in system.rows("SELECT key, value FROM variable")}
    for key, value in callers.acked.items():
        # A later one may be there whose answer was lost.
        assert int(kept[key]["value"]) >= int(value)
    system.check()


def test_builds_and_starts_outlast_a_restart(system: System, cluster: Cluster) -> None:
    system.create("built")
    system.push("built", apps.slow_build("built", 3.0))
    until(lambda: (system.status("built")["build"] or {}).get("phase") == "building", 20, "it builds")
    cluster.restart("immediate")
    system.wait_serving("built", "built", 60)
    assert len(system.rows("SELECT 1 FROM build b JOIN space s ON s.id = b.space_id WHERE s.name = 'built'")) == 1
    system.create("started")
    system.push("started", apps.python("started", start_delay=2.0))
    until(lambda: system.rows("SELECT 1 FROM deployment WHERE status = 'STARTING'"), 20, "it starts", every=0.01)
    cluster.restart("immediate")
    system.wait_serving("started", "started", 60)
    query = "SELECT 1 FROM deployment d JOIN space s ON s.id = d.space_id WHERE s.name = 'started'"
    assert len(system.rows(query)) == 1, "it was started twice"
    system.check()


def test_with_hardly_any_connections_nothing_hangs(system: System, cluster: Cluster) -> None:
    few = {"max_connections": 5, "superuser_reserved_connections": 1, "max_wal_senders": 0}
    with Callers(system) as callers, Crowd(system.port, "admin-app.localhost").probe(40) as visitors:
        callers.wait(200)
        cluster.stop("fast")
        cluster.configure({"fsync": "off", **few})
        cluster.start()
        callers.wait(200)
        seen = sum(callers.statuses.values())
        until(lambda: sum(callers.statuses.values()) > seen + 20 * NAMES, 30, "answers go on")
        cluster.stop("fast")
        cluster.configure({"fsync": "off"})
        cluster.start()
        system.wait_ready(RECOVERY_SECONDS)
        callers.wait(200)
    assert callers.bad == []
    assert visitors.outcome.failed == []
    system.check()


# --- T32 --------------------------------------------------------------------------------------------------------------
def test_a_stopped_control_plane_is_replaced_and_refused_when_it_goes_on(cluster: Cluster, folder: Path) -> None:
    """Two machines on one database: the lease decides, and changes hands once."""
    url = cluster.create("fought_for")
    one, two = System(folder / "one", database=url), System(folder / "two", database=url)
    try:
        one.up()
        refused = two.command("up", "--detach", "--port", str(two.port))
        assert refused.returncode == 1
        assert "Another control plane works on this database" in refused.stdout + refused.stderr
        stopped = one.pid("control")
        one.signal("control", signal.SIGSTOP)
        two.up()
        one.signal("control", signal.SIGCONT)
        # What it still wants to write is refused; soon it ends, and does not come back while the other one lives.
        until(lambda: write(one) and not alive(stopped), 30, "the stale control plane ends")
        assert two.is_ready()
        two.create("mine")
        assert [r["holder"] for r in two.rows("SELECT holder FROM lease")] == [holder(two)]
        assert not one.is_ready()
        two.down()
        # Released at its end: the other one takes over, by itself.
        one.wait_ready(60)
        assert [r["holder"] for r in one.rows("SELECT holder FROM lease")] == [holder(one)]
    finally:
        one.down()
        two.down()


def write(system: System) -> bool:
    """True; fails where a write is accepted."""
    try:
        new = {"type": "space", "name": "stale", "sdk": "static", "init": False}
        status, answer = system.api("POST", "/api/repos/create", new, expect=None)
    except (OSError, http.client.HTTPException):
        return True
    assert status in (502, 503), (status, answer)
    return True


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def holder(system: System) -> str:
    return f"{socket.gethostname()}:{system.data.resolve()}"
