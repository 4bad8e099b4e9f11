"""T19: a crowd visits sleeping Spaces at once: everybody is answered, each Space is started once, a few at a time."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults import apps
from tests.faults.system import System, running, until
from tests.faults.visitors import fetch

SLOTS = 3


@pytest.fixture(scope="module")
def system(folder: Path) -> Iterator[System]:
    with running(folder, start_slots=SLOTS) as made:
        yield made


@pytest.mark.parametrize(
    ("spaces", "visitors"), [(16, 160), pytest.param(50, 500, marks=[pytest.mark.soak, pytest.mark.timeout(600)])]
)
def test_everybody_is_answered_and_every_space_starts_once(system: System, spaces: int, visitors: int) -> None:
    names = [f"s{visitors}-{n}" for n in range(spaces)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: asleep(system, name), names))
    started = {name: starts(system, name) for name in names}
    watch = Watch(system)
    with watch:
        answers = asyncio.run(storm(system, names, visitors))
    failed = [a for a in answers if a is not None and a[1] != 200]
    assert not failed, failed[:5]
    assert sum(a is None for a in answers) == visitors // 10
    assert all(text == name for name, _, text in filter(None, answers)), "somebody read another Space's page"
    assert {name: starts(system, name) - started[name] for name in names} == dict.fromkeys(names, 1)
    assert 1 <= watch.most <= SLOTS
    assert watch.in_line, "nobody was told a place in the line"
    system.check()


def asleep(system: System, name: str) -> None:
    """A built Space that has not run yet: put to sleep before its build is done."""
    system.create(name)
    system.push(name, apps.static(name))
    system.api("POST", f"/api/platform/spaces/admin/{name}/sleep")
    until(lambda: at_rest(system, name), 60, f"{name} sleeps", every=0.1)


def at_rest(system: System, name: str) -> bool:
    query = "SELECT 1 FROM space WHERE name = ? AND stage = 'SLEEPING' AND routed IS NULL"
    ended = (
        "SELECT 1 FROM deployment d JOIN space s ON s.id = d.space_id "
        "WHERE s.name = ? AND d.status IN ('STARTING', 'READY', 'STOPPING')"
    )
    return bool(system.rows(query, name)) and not system.rows(ended, name)


def starts(system: System, name: str) -> int:
    return len(system.rows("SELECT d.id FROM deployment d JOIN space s ON s.id = d.space_id WHERE s.name = ?", name))


async def storm(system: System, names: list[str], visitors: int) -> list[tuple[str, int, str] | None]:
    """All within two seconds, one in ten leaves before it is answered (None)."""
    rng = random.Random(7)

    async def visit(n: int) -> tuple[str, int, str] | None:
        name = names[n % len(names)]
        host = f"admin-{name}.localhost:{system.port}"
        await asyncio.sleep(rng.uniform(0, 2))
        if n % 10 == 9:
            await leave(system.port, host)
            return None
        for _ in range(20):
            status, fields, body = await fetch(system.port, host, timeout=100)
            if status != 503:
                break
            # Past the limit of held requests: the answer says when to come again.
            await asyncio.sleep(int(fields["retry-after"]))
        return name, status, body.decode().partition("<p>")[2].partition("</p>")[0] or body.decode()[:200]

    return await asyncio.gather(*(visit(n) for n in range(visitors)))


async def leave(port: int, host: str) -> None:
    """Ask, and be gone before the answer."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    await writer.drain()
    await asyncio.sleep(0.2)
    writer.transport.abort()


class Watch:
    """How many start at once, and who is told a place in the line, while it is open."""

    def __init__(self, system: System) -> None:
        self.system, self.most, self.in_line = system, 0, False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stopping.wait(0.05):
            self.most = max(self.most, len(self.system.rows("SELECT 1 FROM deployment WHERE status = 'STARTING'")))
            line = "SELECT message FROM space WHERE start_queued_at IS NOT NULL AND message LIKE '%number % in line%'"
            self.in_line = self.in_line or bool(self.system.rows(line))
