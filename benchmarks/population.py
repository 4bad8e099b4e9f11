"""What many sleeping Spaces cost: memory, idle processor time, one full sweep; how long a start takes with many known.

    python -m benchmarks.population [--spaces 10000] [--seconds 30]
    python -m benchmarks.population --start [--spaces 1000] [--rounds 5]

Memory is the sum of PSS (proc(5), smaps_rollup) of all platform processes; idle time is their user and system time
over the seconds of the measurement, while nobody visits. A full sweep is every step of the sweeper: what is due, lost
builds, orphaned processes, and the comparison of each repository's head with its row.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks._rig import Platform, until, workplace
from benchmarks._seed import seed
from spaces_platform.settings import Settings
from spaces_platform.wiring.assembly import build_platform

SETTLE_SECONDS = 5.0


def sweep_seconds(data: Path, rounds: int = 5) -> float:
    """One full sweep of a platform wired here, on the populated data; the median."""
    platform = build_platform(Settings.load(data=data))
    steps = (
        platform.sweep.hint_due,
        platform.builds.requeue_lost,
        platform.sweep.stop_orphans,
        platform.sweep.find_lost_pushes,
    )
    times = []
    try:
        for _ in range(rounds):
            began = time.monotonic()
            for step in steps:
                step()
            times.append(time.monotonic() - began)
    finally:
        platform.close()
    return statistics.median(times)


def many_asleep(spaces: int = 10_000, seconds: float = 30.0) -> list[dict[str, Any]]:
    with workplace() as folder:
        data = folder / "data"
        began = time.monotonic()
        seed(data, spaces)
        print(f"seeded {spaces} Spaces in {time.monotonic() - began:.1f} s")
        sweep = sweep_seconds(data)
        with Platform(folder) as platform:
            print(f"started in {platform.start_seconds:.2f} s")
            host = _all_routed(platform, spaces)
            time.sleep(SETTLE_SECONDS)  # the start's own work is not idling
            cpu, began = platform.cpu_seconds(), time.monotonic()
            time.sleep(seconds)
            idle = 100 * (platform.cpu_seconds() - cpu) / (time.monotonic() - began)
            memory = platform.memory_mb()
            print(f"processes: {platform.each()}; last Space is known as {host}")
        size = f"{spaces} sleeping Spaces"
        return [
            _row(f"{size}: memory of the whole platform", "MB", memory, 400.0),
            _row(f"{size}: idle processor time", "%", idle, 2.0),
            _row(f"{size}: one full sweep", "s", sweep, 1.0),
        ]


def _all_routed(platform: Platform, spaces: int) -> str:
    """Wait until the gateway knows the newest Space: a link previewer gets its card, and wakes nothing."""
    with platform.database() as db:
        (host,) = db.execute("SELECT host FROM host WHERE space_id = ? AND kind = 'primary'", (spaces,)).fetchone()
    until(lambda: platform.card(host) == 200, f"{host} in the gateway's table", 60)
    return str(host)


def start(spaces: int = 1000, rounds: int = 5) -> list[dict[str, Any]]:
    with workplace() as folder:
        seed(folder / "data", spaces)
        platform = Platform(folder)
        times = []
        for _ in range(rounds):
            times.append(platform.up())
            platform.down()
            print(f"  up --detach: {times[-1]:.2f} s")
        row = _row(f"`spaces up --detach` with {spaces} Spaces known", "s", min(times), 3.0)
        return [{**row, "median": round(statistics.median(times), 3), "runs": rounds}]


def _row(what: str, unit: str, value: float, target: float) -> dict[str, Any]:
    return {
        "what": what,
        "value": round(value, 3),
        "unit": unit,
        "target": f"<= {target:g}",
        "reached": value <= target,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--start", action="store_true")
    parser.add_argument("--spaces", type=int)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    if given.start:
        rows = start(given.spaces or 1000, given.rounds)
    else:
        rows = many_asleep(given.spaces or 10_000, given.seconds)
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
