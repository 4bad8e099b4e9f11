"""The benchmarks' own parts: rows from what was measured, and a seeded database that the platform takes for its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import MEASUREMENTS, Measurement, as_they_are, gateway_rows, measure
from benchmarks._seed import seed
from benchmarks.deploys import Pairs
from spaces_platform.settings import Settings
from spaces_platform.wiring.assembly import build_platform

GOOD: dict[str, Any] = {
    "nginx": "1.22",
    "skipped": [],
    "of_nginx": 0.9,
    "of_configurable-http-proxy": 6.0,
    "added_latency": {"p50_ms": 0.2, "p99_ms": 1.0},
    "download_of_nginx": 1.1,
    "idle_websockets": {"open": 10000, "kb_each": 9.0},
}


@pytest.mark.parametrize(
    ("change", "reached"),
    [
        ({}, [True] * 6),
        ({"of_nginx": 0.79}, [False, True, True, True, True, True]),
        ({"added_latency": {"p50_ms": 0.6, "p99_ms": 3.0}}, [True, True, False, True, True, True]),
        ({"of_configurable-http-proxy": None}, [True, None, True, True, True, True]),
        ({"idle_websockets": {"open": 10000, "kb_each": 31.0}}, [True, True, True, True, False, True]),
    ],
)
def test_gateway_rows_say_what_was_reached(change: dict[str, Any], reached: list[bool | None]) -> None:
    assert [row["reached"] for row in gateway_rows([{**GOOD, **change}])] == reached


def test_the_best_of_each_counts_and_the_median_is_told() -> None:
    pairs = Pairs()
    for ours, bare in ((5.0, 4.0), (4.5, 4.2), (9.0, 4.1)):
        pairs.add(ours, bare)
    row = pairs.row("x", 0.4, "y")
    assert (row["value"], row["median"], row["reached"]) == (0.5, 1.0, False)


def test_a_measurement_that_fails_is_named() -> None:
    rows, problem = measure(Measurement("x", ("benchmarks.no_such_program",), (), as_they_are), quick=False)
    assert rows == []
    assert "no_such_program" in problem


def test_every_measurement_is_a_program_that_exists() -> None:
    for one in MEASUREMENTS:
        assert Path(__file__).parents[2].joinpath(*one.words[0].split(".")).with_suffix(".py").is_file()


def test_a_seeded_platform_holds_sleeping_spaces_with_true_repositories(tmp_path: Path) -> None:
    seed(tmp_path / "data", 7)
    platform = build_platform(Settings.load(data=tmp_path / "data"))
    try:
        entries = platform.routes.after(0)
        assert [(e["space"], e["stage"], e["wakeable"]) for e in entries] == [
            (n, "SLEEPING", True) for n in range(1, 8)
        ]
        assert all(len(e["hosts"]) == 2 for e in entries)
        platform.recover()
        assert platform.sweep.hint_due() == 0  # what sleeps is not due
        assert platform.sweep.find_lost_pushes() == 0  # every row's head is its repository's
    finally:
        platform.close()
