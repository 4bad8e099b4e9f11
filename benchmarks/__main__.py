"""Everything that is measured, one after the other, as one table and one JSON line at the end. What `make bench` runs.

    python -m benchmarks [--quick] [--only NAME …]

Each measurement is a program of its own, so that none disturbs another; a row says what was reached, what is to be
reached, and the command that measures it. What could not be measured is named with its reason. The exit status is 1
where a measurement failed, not where a target was missed: a busy machine misses targets.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
Row = dict[str, Any]


@dataclass(frozen=True)
class Measurement:
    """A program whose last lines are JSON objects, and how they become rows."""

    name: str
    words: tuple[str, ...]
    quick: tuple[str, ...]
    rows: Callable[[list[Any]], list[Row]]

    def argv(self, quick: bool) -> list[str]:
        return ["python", "-m", *self.words, *(self.quick if quick else ())]


def gateway_rows(found: list[Any]) -> list[Row]:
    """The gateway's one object as rows."""
    result = found[-1]
    latency, sockets = result.get("added_latency") or {}, result.get("idle_websockets") or {}
    rows = [
        _row("gateway, 1 kB keep-alive, one core, of nginx", "ratio", result.get("of_nginx"), at_least=0.8),
        _row(
            "gateway, 1 kB keep-alive, one core, of configurable-http-proxy",
            "ratio",
            result.get("of_configurable-http-proxy"),
            at_least=5.0,
        ),
        _row("gateway, added latency at 1 000 req/s, p50", "ms", latency.get("p50_ms"), at_most=0.5),
        _row("gateway, added latency at 1 000 req/s, p99", "ms", latency.get("p99_ms"), at_most=3.0),
        _row("gateway, each of 10 000 idle WebSockets", "kB", sockets.get("kb_each"), at_most=30.0),
        _row("gateway, one 1 GB download, of nginx", "ratio", result.get("download_of_nginx"), at_least=1.0),
    ]
    peers = {name: result[name] for name in ("nginx", "configurable-http-proxy") if name in result}
    return [{**row, **({"peers": peers} if peers else {}), "skipped": result.get("skipped", [])} for row in rows]


def _row(what: str, unit: str, value: float | None, *, at_most: float = 0.0, at_least: float = 0.0) -> Row:
    reached = None if value is None else value <= at_most if at_most else value >= at_least
    target = f"<= {at_most:g}" if at_most else f">= {at_least:g}"
    return {"what": what, "value": value, "unit": unit, "target": target, "reached": reached}


def as_they_are(found: list[Any]) -> list[Row]:
    return list(found)


MEASUREMENTS = (
    Measurement("gateway", ("benchmarks.gateway",), ("--quick",), gateway_rows),
    Measurement("deploys", ("benchmarks.deploys",), ("--rounds", "2"), as_they_are),
    Measurement("platform", ("benchmarks.deploys", "--app", "plain"), ("--rounds", "3"), as_they_are),
    Measurement("wakes", ("benchmarks.wakes",), ("--wakes", "50", "--rounds", "2"), as_they_are),
    Measurement("asleep", ("benchmarks.population",), ("--spaces", "1000", "--seconds", "10"), as_they_are),
    Measurement("start", ("benchmarks.population", "--start"), ("--rounds", "3"), as_they_are),
    Measurement("containers", ("benchmarks.containers",), ("--rounds", "2", "--only", "code_only"), as_they_are),
)


def measure(one: Measurement, quick: bool) -> tuple[list[Row], str]:
    """Its rows, and why there are none. What it prints is passed on."""
    argv = one.argv(quick)
    print(f"== {' '.join(argv)}", flush=True)
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen([sys.executable, *argv[1:]], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    if process.stdout is None:
        raise RuntimeError("started without a pipe")
    found = []
    with process.stdout as output:
        for line in output:
            if line.startswith("{"):
                found.append(json.loads(line))
            else:
                print(line, end="", flush=True)
    if process.wait() or not found:
        return [], f"{' '.join(argv)} ended with {process.returncode}"
    return [{**row, "command": " ".join(argv), "load": round(os.getloadavg()[0], 2)} for row in one.rows(found)], ""


def show(rows: Iterable[Row]) -> None:
    for row in rows:
        word = {True: "reached", False: "MISSED", None: "skipped"}[row["reached"]]
        value = "-" if row["value"] is None else f"{row['value']:g}"
        print(f"{word:8} {value:>8} {row['unit']:<4} (to reach {row['target']:>7})  {row['what']}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller runs, to see that all of it works")
    parser.add_argument("--only", nargs="*", choices=[one.name for one in MEASUREMENTS], default=[])
    given = parser.parse_args()
    rows: list[Row] = []
    failed = []
    for one in MEASUREMENTS:
        if given.only and one.name not in given.only:
            continue
        made, problem = measure(one, given.quick)
        show(made)
        rows += made
        if problem:
            print(f"FAILED: {problem}")
            failed.append(problem)
    print("\n== all of it")
    show(rows)
    machine = {"cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()}
    missed = sum(row["reached"] is False for row in rows)
    print(json.dumps({"machine": machine, "rows": rows, "missed": missed, "failed": failed}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
