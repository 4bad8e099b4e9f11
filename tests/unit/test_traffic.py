from __future__ import annotations

from spaces_platform.traffic import SAVE_SECONDS, STALE_SECONDS, SpaceTraffic, Traffic


def test_drained_needs_every_live_gateway_to_have_let_go() -> None:
    traffic = Traffic()
    traffic.report("a", 5, [SpaceTraffic(1, 7, in_flight=1)], now=100)
    traffic.report("b", 5, [], now=100)
    assert not traffic.is_drained(1, 7, 5, now=100), "a request runs on it"
    traffic.report("a", 5, [SpaceTraffic(1, 7, in_flight=0)], now=101)
    assert traffic.is_drained(1, 7, 5, now=101)
    assert not traffic.is_drained(1, 7, 6, now=101), "nobody applied version 6"
    traffic.report("a", 6, [], now=102)
    assert not traffic.is_drained(1, 7, 6, now=102), "b did not apply version 6"
    later = 101 + STALE_SECONDS
    traffic.seen("a", later)
    assert traffic.is_drained(1, 7, 6, now=later), "b is gone"


def test_a_websocket_that_was_not_told_to_come_again_keeps_its_deployment() -> None:
    traffic = Traffic()
    traffic.report("a", 6, [SpaceTraffic(1, 7, in_flight=0, attached=3, sockets=2)], now=100)
    assert not traffic.is_drained(1, 7, 6, now=100)
    # A heartbeat is attached as well, and ends with its app.
    assert traffic.report("a", 6, [SpaceTraffic(1, 7, in_flight=0, attached=1)], now=101) == {1}
    assert traffic.is_drained(1, 7, 6, now=101)


def test_without_a_gateway_nothing_is_known() -> None:
    traffic = Traffic()
    assert not traffic.is_known(0)
    assert not traffic.is_drained(1, 7, 0, now=0)
    traffic.seen("a", 10)
    assert not traffic.is_known(10), "it is there, and has not said what is in flight"
    traffic.report("a", 0, [], now=10)
    assert traffic.is_known(10 + STALE_SECONDS - 1)
    assert not traffic.is_known(10 + STALE_SECONDS)


def test_a_route_is_applied_once_every_live_gateway_has_it() -> None:
    traffic = Traffic()
    assert not traffic.is_applied(0, now=0), "there is no gateway"
    traffic.report("a", 5, [], now=100)
    assert traffic.is_applied(5, now=100)
    traffic.report("b", 4, [], now=101)
    assert not traffic.is_applied(5, now=101), "b leads elsewhere"
    later = 101 + STALE_SECONDS
    traffic.seen("a", later)
    assert traffic.is_applied(5, now=later), "b is gone"
    assert not traffic.is_applied(6, now=later)


def test_activity_is_now_while_requests_run_and_never_in_the_future() -> None:
    traffic = Traffic()
    traffic.report("a", 1, [SpaceTraffic(1, 7, in_flight=2, last_active=50)], now=100)
    assert traffic.last_active(1) == 100
    assert traffic.in_flight(1) == 2
    traffic.report("a", 1, [SpaceTraffic(1, 7, in_flight=0, attached=3, last_active=999)], now=110)
    assert traffic.last_active(1) == 110
    assert (traffic.in_flight(1), traffic.attached(1)) == (0, 3)
    assert traffic.take_unsaved() == {1: 110}
    assert traffic.take_unsaved() == {}


def test_activity_is_due_to_be_saved_only_now_and_then() -> None:
    traffic = Traffic()
    visit = SpaceTraffic(1, 7, in_flight=1)
    traffic.report("a", 1, [visit], now=100)
    traffic.saved(traffic.take_unsaved())
    traffic.report("a", 1, [visit], now=100 + SAVE_SECONDS - 1)
    assert traffic.take_unsaved() == {}
    assert traffic.last_active(1) == 100 + SAVE_SECONDS - 1
    traffic.report("a", 1, [visit], now=100 + SAVE_SECONDS)
    assert traffic.take_unsaved() == {1: 100 + SAVE_SECONDS}
    traffic.report("a", 1, [visit], now=100 + SAVE_SECONDS + 1)
    assert traffic.take_unsaved() == {1: 100 + SAVE_SECONDS + 1}, "what was taken could not be saved"


def test_a_full_report_voids_what_an_earlier_process_of_the_gateway_said() -> None:
    traffic = Traffic()
    traffic.report("a", 1, [SpaceTraffic(1, 7, in_flight=2), SpaceTraffic(2, 8, in_flight=1)], now=100)
    traffic.report("a", 1, [SpaceTraffic(2, 8, in_flight=1)], now=101, full=True)
    assert (traffic.in_flight(1), traffic.in_flight(2)) == (0, 1)
