"""Apps that run are served while the control plane hangs, dies or starts; the gateway comes back by itself (I10).

And T37: deploys go through under load without one failed request, and what never gets ready never serves.
"""

from __future__ import annotations

import http.client
import signal
import time

import pytest

from tests.faults import apps
from tests.faults.system import STRETCH, System, until
from tests.faults.visitors import Crowd, Held


@pytest.fixture(scope="module")
def app(system: System) -> str:
    system.create("app")
    system.push("app", apps.python("v1"))
    system.wait_serving("app", "v1")
    return "app"


def crowd(system: System, name: str) -> Crowd:
    return Crowd(system.port, f"admin-{name}.localhost")


def held(system: System, name: str) -> Held:
    """A visitor whose request the gateway has reported."""
    visitor = Held(system.port, f"admin-{name}.localhost")
    until(lambda: system.status(name)["traffic"]["inFlight"] == 1, 15, "the request is reported")
    return visitor


def test_a_control_plane_that_hangs_or_dies_costs_visitors_nothing(system: System, app: str) -> None:
    with crowd(system, app).probe(60).websockets(4).download(2, 15) as visitors:
        system.signal("control", signal.SIGSTOP)
        time.sleep(2.0)  # visitors come while it hangs: the time is the test
        system.signal("control", signal.SIGCONT)
        system.wait_ready(20)
        system.kill("control")
        system.wait_ready(20)
        system.kill("control")
        system.wait_ready(20)
    assert visitors.outcome.sent > 100
    assert visitors.outcome.failed == []
    assert visitors.sockets.failed == []
    assert set(visitors.sockets.statuses) == {0}
    assert visitors.downloads.failed == []
    assert visitors.outcome.quantile(0.99) < 2.0 * STRETCH
    system.check()


def test_a_killed_gateway_is_back_within_seconds_and_routes_without_the_control_plane(system: System, app: str) -> None:
    system.signal("control", signal.SIGSTOP)
    try:
        system.kill("gateway")
        slack = max(0.0, system.up_seconds - 2)
        until(lambda: _answers(system, app), 5 + slack, "the gateway answers from its snapshot")
        for _ in range(20):
            assert system.get(app).text == "v1"
    finally:
        system.signal("control", signal.SIGCONT)
    system.wait_ready(20)
    system.check()


def test_what_a_killed_gateway_was_serving_is_not_in_flight_for_ever(system: System, app: str) -> None:
    """Otherwise such a Space would never sleep again."""
    visitor = held(system, app)
    system.kill("gateway")
    assert visitor.end() == "cut"
    system.wait_ready(20)
    until(lambda: system.status(app)["traffic"]["inFlight"] == 0, 30, "nothing is in flight")


@pytest.mark.parametrize("before", ["deploy", pytest.param("drain", marks=pytest.mark.soak)])
def test_a_request_older_than_the_control_plane_is_not_cut_by_a_deploy(system: System, before: str) -> None:
    """A control plane that starts knows of no request until the gateways say so, and must not guess there is none."""
    name = f"long-{before}"
    system.create(name)
    system.push(name, apps.python("old"))
    system.wait_serving(name, "old")
    visitor = held(system, name)
    if before == "drain":
        system.push(name, apps.python("new"))
        system.wait_serving(name, "new")
        time.sleep(6)  # a drain that has lasted for a while when the control plane dies
    system.kill("control")
    system.wait_ready(20)
    # Known again, or the Space would be put to sleep under a job that runs.
    until(lambda: system.status(name)["traffic"]["inFlight"] == 1, 5, "the new control plane is told of the request")
    if before == "deploy":
        system.push(name, apps.python("new"))
        system.wait_serving(name, "new")
    assert visitor.release() == "old"
    system.check()


def test_deploys_under_load_fail_nobody(system: System, app: str) -> None:
    """Six deploys; one never listens, one is misconfigured, one ignores SIGTERM, one crashes at once."""
    deploys = [
        ("v2", apps.python("v2", ignore_term=True)),
        ("bad-silent", apps.python("bad-silent", ready=False, startup_duration_timeout="3s")),
        ("bad-config", apps.python("bad-config", sdk="stattic")),
        ("v3", apps.python("v3", start_delay=0.5)),
        ("bad-crash", {**apps.python("bad-crash"), "app.py": "raise SystemExit('no luck')"}),
        ("v4", apps.python("v4")),
    ]
    with crowd(system, app).probe(100).websockets(10).download(3, 30) as visitors:
        for text, files in deploys:
            system.push(app, files)
            if text.startswith("bad"):
                # The old version goes on serving, and the owner sees the new one's error.
                until(lambda: system.status(app)["reason"], 40, f"{text} is refused")
            else:
                until(lambda t=text: t in visitors.outcome.texts, 30, f"{text} serves")
        # A socket of a replaced version is told to come again, and does: from v1, v2 and v3, and ends on v4.
        until(
            lambda: visitors.sockets.statuses.get(1012, 0) >= 20 and "v4" in visitors.sockets.texts,
            60,
            "sockets move on",
        )
    assert visitors.outcome.failed == []
    assert visitors.downloads.failed == []
    assert visitors.downloads.sent >= 6
    assert visitors.sockets.failed == []
    assert set(visitors.outcome.texts) <= {"v1", "v2", "v3", "v4"} >= set(visitors.sockets.texts)
    outcome = visitors.outcome
    print(f"{outcome.sent} requests, p50 {outcome.quantile(0.5):.4f} s, p99 {outcome.quantile(0.99):.4f} s")
    assert visitors.outcome.quantile(0.5) < 0.25 * STRETCH
    assert visitors.outcome.quantile(0.99) < 3.0 * STRETCH
    until(
        lambda: len(system.app_processes()) == len(system.rows("SELECT 1 FROM deployment WHERE live")),
        70,
        "old processes are gone",
    )
    system.check()


def test_a_version_is_not_stopped_before_its_sockets_are_told(system: System) -> None:
    """Nothing but WebSockets is open: no request holds the old version up while they are told one by one."""
    system.create("sockets")
    system.push("sockets", apps.python("w1"))
    system.wait_serving("sockets", "w1")
    with crowd(system, "sockets").websockets(10) as visitors:
        until(lambda: visitors.sockets.texts.get("w1", 0) >= 10, 60, "sockets talk")
        system.push("sockets", apps.python("w2"))
        until(lambda: visitors.sockets.statuses.get(1012, 0) >= 10, 30, "every socket is told")
        until(lambda: "w2" in visitors.sockets.texts, 60, "sockets move on")
    assert visitors.sockets.failed == []
    system.check()


def _answers(system: System, name: str) -> bool:
    try:
        return system.get(name).status == 200
    except (OSError, http.client.HTTPException):
        return False
