"""T27 on the whole platform: clients push while the control plane is killed at random; nothing acknowledged is lost."""

from __future__ import annotations

import random
import threading
import time

import pytest

from tests.faults import apps
from tests.faults.system import System

KILLS = 2


@pytest.mark.parametrize(("clients", "seconds"), [(5, 5.0), pytest.param(10, 15.0, marks=pytest.mark.soak)])
def test_no_acknowledged_push_is_lost(system: System, clients: int, seconds: float) -> None:
    names = [f"p{clients}-{n}" for n in range(clients)]
    for name in names:
        system.create(name)
    last: dict[str, str] = {}
    enough = threading.Event()

    def push(name: str) -> None:
        count = 0
        while not enough.is_set():
            count += 1
            commit = system.commit(name, apps.static(f"{name} {count}"))
            if system.push_commit(name, commit).acked:
                last[name] = f"{name} {count}"

    threads = [threading.Thread(target=push, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    rng, kills, acked, began = random.Random(clients), 0, 0, time.monotonic()
    try:
        while kills < KILLS or acked < clients or time.monotonic() - began < seconds:
            assert time.monotonic() - began < 180, f"{kills} kills, {acked} pushes acknowledged: this shows nothing"
            system.wait_ready(20)
            # Pushes go on: the moment of the kill is the test. A slow machine is given more and more time between two.
            time.sleep(rng.uniform(0.5, 1.5) * (1 + kills / 4))
            system.kill("control")
            kills, acked = kills + 1, sum(p.acked for p in system.journal.pushes)
    finally:
        enough.set()
        for thread in threads:
            thread.join()
    # A control plane that was killed often is restarted later each time; a fresh supervisor starts it at once.
    system.kill("supervisor")
    system.up()
    for name in names:
        heads = {p.commit for p in system.journal.pushes if p.name == name}
        status = system.wait_up_to_date(name, 60)
        assert status["head"] in heads
        # What is stored is the newest acknowledged commit, or a later one whose answer was lost on its way.
        serving = int(system.get(name).text.partition("<p>")[2].partition("</p>")[0].rpartition(" ")[2])
        assert serving >= int(last.get(name, "x 0").rpartition(" ")[2])
    system.check()
