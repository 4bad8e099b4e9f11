"""What the platform adds to a wake from frozen: first byte through the public port.

    python -m benchmarks.wakes [--wakes N] [--crowd N] [--rounds N]

Gateway, control plane and database are the real ones, each its own process; the orchestrator freezes and thaws in no
time, so that what is left is the way of a wake through the platform. Real containers: `benchmarks.containers`.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks._rig import ROOT, clean_environment, free_port, until, workplace

P99_MS = 100.0
CROWD_SECONDS = 1.0


class Place:
    """Real gateway and control plane beside a fake orchestrator: `benchmarks._wake_control` is the control plane."""

    def __init__(self, folder: Path, count: int) -> None:
        self.port, self._steer = free_port(), free_port()
        self._stack = contextlib.ExitStack()
        self._run(
            [sys.executable, "-m", "benchmarks._wake_control"]
            + [str(word) for word in (folder, self.port, self._steer, count)]
        )
        until(lambda: (folder / "ready").exists(), "the control plane")
        self.hosts = json.loads((folder / "ready").read_text())
        gateway = folder / "gateway.json"
        self._run([sys.executable, "-m", "spaces_platform.gateway", "--config", str(gateway)])
        until(lambda: first_byte(self.port, self.hosts[0], quiet=True), "the gateway")

    def _run(self, argv: list[str]) -> None:
        process = subprocess.Popen(argv, cwd=ROOT, env=clean_environment(), stdout=subprocess.DEVNULL)
        self._stack.callback(process.wait)
        self._stack.callback(process.terminate)

    def put_to_sleep(self, host: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._steer, timeout=60)
        connection.request("POST", f"/{host}")
        if connection.getresponse().status != 204:
            raise RuntimeError(f"{host} does not fall asleep")
        connection.close()

    def close(self) -> None:
        self._stack.close()


def first_byte(port: int, host: str, *, quiet: bool = False) -> float:
    """Seconds from before the connection until the first byte of a 200 of the app; `quiet`: 0.0 where it fails."""
    began = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", "/", headers={"Host": host})
        answer = connection.getresponse()
        took = time.perf_counter() - began
        answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{host} answered {answer.status}")
        return took
    except (OSError, RuntimeError):
        if quiet:
            return 0.0
        raise
    finally:
        connection.close()


def one_after_another(place: Place, wakes: int) -> list[float]:
    took = []
    for n in range(wakes):
        host = place.hosts[n % len(place.hosts)]
        place.put_to_sleep(host)
        took.append(first_byte(place.port, host))
    return took


def all_at_once(place: Place, crowd: int) -> float:
    """Seconds until the last of `crowd` sleeping apps has answered, all visited together."""
    hosts = place.hosts[:crowd]
    for host in hosts:
        place.put_to_sleep(host)
    start = threading.Barrier(len(hosts))

    def visit(host: str) -> float:
        start.wait()
        return first_byte(place.port, host)

    with ThreadPoolExecutor(len(hosts)) as pool:
        return max(pool.map(visit, hosts))


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def rows(took: Sequence[float], crowd: Sequence[float], count: int) -> Iterator[dict[str, Any]]:
    p99 = percentile(took, 0.99) * 1000
    yield {
        "what": "platform: wake from frozen, first byte, p99", "value": round(p99, 1), "unit": "ms",
        "target": f"<= {P99_MS:g}", "reached": p99 <= P99_MS, "wakes": len(took),
        "p50": round(statistics.median(took) * 1000, 1), "worst": round(max(took) * 1000, 1),
    }  # fmt: skip
    best = min(crowd)
    yield {
        "what": f"platform: {count} frozen apps visited together, the last one answers", "value": round(best, 3),
        "unit": "s", "target": f"<= {CROWD_SECONDS:g}", "reached": best <= CROWD_SECONDS,
        "rounds": [round(seconds, 3) for seconds in crowd],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wakes", type=int, default=200)
    parser.add_argument("--crowd", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=3, help="of the crowd")
    given = parser.parse_args()
    with workplace() as folder, contextlib.closing(Place(folder, given.crowd)) as place:
        took = one_after_another(place, given.wakes)
        crowd = [all_at_once(place, given.crowd) for _ in range(given.rounds)]
    for row in rows(took, crowd, given.crowd):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
