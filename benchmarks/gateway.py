"""The gateway beside nginx and configurable-http-proxy, on this machine, in one run.

    python -m benchmarks.gateway [--quick] [--beside CHECKOUT] [--only PART …]

Every proxy stands before the same upstream (nginx serving files) and is pinned to core 0; upstream and load share the
other cores. The peers are measured by turns, in short rounds whose order rotates, so that a busy machine disturbs all
alike. Two ratios are told: the median of the ratios of the single rounds, and that of the best round of each; the
nearer they are, the less was disturbed. How many requests a core can serve is told by the processor time of each, since
on two cores the load's own core is the limit of the quicker proxies, and neighbours take time from all; the rates by
the clock are told beside it. With `--beside`, the gateway of another checkout takes its turns as `beside`: what a
change is worth. A peer that is not installed is skipped and named. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks._gateway_peers import (
    HOST,
    configurable_http_proxy,
    free_port,
    gateway,
    nginx_app,
    nginx_proxy,
    others,
    pinned,
)

LOAD = Path(__file__).with_name("_gateway_load.py")
DOWNLOAD = 1 << 30
PARTS = ("throughput", "latency", "download", "websockets")


def by_turns(names: Iterable[str], rounds: int, measure: Callable[[str], float]) -> dict[str, list[float]]:
    """`measure` for each name, `rounds` times; each round begins with another name."""
    order = list(names)
    found: dict[str, list[float]] = {name: [] for name in order}
    for _ in range(rounds):
        for name in order:
            found[name].append(measure(name))
        order.append(order.pop(0))
    return found


def ratios(ours: list[float], theirs: list[float], best: Callable[[list[float]], float]) -> tuple[float, float]:
    """Of the best rounds of each, and the median of the rounds' own."""
    pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
    return round(best(ours) / best(theirs), 2), round(statistics.median(pairs), 2)


def wrk(port: int, seconds: float) -> float:
    argv = ["wrk", "-t1", "-c32", f"-d{seconds:.0f}s", "-H", f"Host: {HOST}", f"http://127.0.0.1:{port}/1k"]
    text = subprocess.run(pinned(others(), argv), capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in text or "Socket errors" in text:
        sys.exit(f"errors on port {port}:\n{text}")
    found = re.search(r"Requests/sec:\s+([0-9.]+)", text)
    return float(found[1]) if found else 0.0


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def throughput(peers: dict[str, tuple[int, int]], rounds: int, seconds: float) -> dict[str, Any]:
    """1 kB from each peer (its port and its process), as many as it can."""
    processor: dict[str, list[float]] = {name: [] for name in peers}

    def one(name: str) -> float:
        port, pid = peers[name]
        before = cpu_seconds(pid)
        rate = wrk(port, seconds)
        processor[name].append((cpu_seconds(pid) - before) / (rate * seconds) * 1e6)
        return rate

    rates = by_turns(peers, rounds, one)
    result: dict[str, Any] = {}
    for name, found in rates.items():
        print(f"1 kB keep-alive, {name:24} {max(found):8.0f} req/s  {min(processor[name]):6.1f} µs of processor each")
        if name != "gateway":
            result[f"of_{name}_best"], result[f"of_{name}"] = ratios(processor[name], processor["gateway"], min)
            result[f"rate_of_{name}_best"], result[f"rate_of_{name}"] = ratios(rates["gateway"], found, max)
            print(
                f"    gateway of {name}, requests by processor time: {result[f'of_{name}']}, best rounds "
                f"{result[f'of_{name}_best']}; by the clock: {result[f'rate_of_{name}']}, best rounds "
                f"{result[f'rate_of_{name}_best']}"
            )
    return result


def load(*argv: str) -> dict[str, Any]:
    text = subprocess.run(
        pinned(others(), [sys.executable, str(LOAD), *argv]), capture_output=True, text=True, check=True
    ).stdout
    found: dict[str, Any] = json.loads(text.splitlines()[-1])
    return found


def added_latency(ports: dict[str, int], rounds: int, seconds: float) -> dict[str, float]:
    """Through the gateway minus straight to the app, at 1 000 requests a second."""
    p99: dict[str, list[float]] = {name: [] for name in ports}

    def one(name: str) -> float:
        found = load("open-loop", HOST, str(ports[name]), "/1k", "1000", str(seconds))
        if found["errors"]:
            sys.exit(f"errors at 1000 requests a second: {found['errors']}")
        p99[name].append(found["p99_ms"])
        return float(found["p50_ms"])

    result = {}
    for what, found in (("p50_ms", by_turns(ports, rounds, one)), ("p99_ms", p99)):
        differences = [a - b for a, b in zip(found["gateway"], found["app"], strict=True)]
        result[what] = round(min(found["gateway"]) - min(found["app"]), 3)
        result[f"{what}_median"] = round(statistics.median(differences), 3)
    return result


def download(port: int) -> float:
    argv = [
        "curl",
        "-sf",
        "-H",
        f"Host: {HOST}",
        f"http://127.0.0.1:{port}/1g",
        "-o",
        "/dev/null",
        "-w",
        "%{time_total}",
    ]
    return float(subprocess.run(pinned(others(), argv), capture_output=True, text=True, check=True).stdout)


def resident(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 if found else 0


def idle_websockets(folder: Path, count: int) -> dict[str, float]:
    app = subprocess.Popen([sys.executable, str(LOAD), "socket-app"], stdout=subprocess.PIPE, text=True)
    if app.stdout is None:
        sys.exit("the app has no output")
    try:
        endpoint = f"127.0.0.1:{json.loads(app.stdout.readline())['port']}"
        port = free_port()
        with gateway(folder, port, endpoint, websockets_per_space=count) as process:
            before = resident(process.pid)
            argv = [sys.executable, str(LOAD), "idle-sockets", HOST, str(port), str(count)]
            with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as visitors:
                if visitors.stdout is None:
                    sys.exit("the visitors have no output")
                opened = json.loads(visitors.stdout.readline())["open"]
                after = resident(process.pid)
                visitors.communicate("")
        return {"open": opened, "kb_each": round((after - before) / 1000 / max(1, opened), 2)}
    finally:
        app.terminate()
        app.wait()


def version(argv: list[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True)
    return (done.stdout + done.stderr).strip().splitlines()[0]


def open_files(wanted: int) -> int:
    """Raise the limit of open files as far as is allowed; how many WebSockets fit (the gateway has two files each)."""
    needed = 2 * wanted + 1_024
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < needed:
        with contextlib.suppress(ValueError, OSError):  # root may
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, needed))
            return wanted
        needed = hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return min(wanted, (needed - 1_024) // 2)


def measure(quick: bool, folder: Path, parts: Iterable[str], beside: Path | None) -> dict[str, Any]:
    result: dict[str, Any] = {"benchmark": "gateway", "load_before": os.getloadavg()[0], "skipped": []}
    for tool in ("nginx", "wrk", "curl"):
        if shutil.which(tool) is None:
            result["skipped"].append(f"everything: {tool} is not installed")
            return result
    result["nginx"] = version(["nginx", "-v"])
    (folder / "www").mkdir()
    (folder / "www" / "1k").write_bytes(b"x" * 1_000)
    with (folder / "www" / "1g").open("wb") as file:
        file.truncate(DOWNLOAD)
    folder.chmod(0o755)
    with contextlib.ExitStack() as stack:
        peers, app = start(stack, folder, result, beside)
        if "throughput" in parts:
            result |= throughput(peers, 3 if quick else 16, 1.0)
        if "latency" in parts:
            ports = {"app": app, "gateway": peers["gateway"][0]}
            result["added_latency"] = added_latency(ports, 3 if quick else 20, 1.0)
            print(f"added at 1000 req/s: {result['added_latency']}")
        if "download" in parts:
            result |= downloads(
                {name: port for name, (port, _) in peers.items() if "http" not in name}, 2 if quick else 7
            )
    if "websockets" in parts:
        result["idle_websockets"] = idle_websockets(folder, open_files(1_000 if quick else 10_000))
        print(f"idle WebSockets: {result['idle_websockets']}")
    return result


def start(
    stack: contextlib.ExitStack, folder: Path, result: dict[str, Any], beside: Path | None
) -> tuple[dict[str, tuple[int, int]], int]:
    """Everything runs until the stack is left: each peer's port and process, and the app's port."""
    app, proxy, own, chp, other = (free_port() for _ in range(5))
    stack.enter_context(nginx_app(folder, app))
    peers = {
        "gateway": (own, stack.enter_context(gateway(folder, own, f"127.0.0.1:{app}")).pid),
        "nginx": (proxy, stack.enter_context(nginx_proxy(folder, proxy, app)).pid),
    }
    if beside is not None:
        peers["beside"] = (other, stack.enter_context(gateway(folder, other, f"127.0.0.1:{app}", root=beside)).pid)
    if shutil.which("configurable-http-proxy"):
        peers["configurable-http-proxy"] = (chp, stack.enter_context(configurable_http_proxy(chp, app)).pid)
        result["configurable-http-proxy"] = version(["configurable-http-proxy", "--version"])
    else:
        result["skipped"].append("configurable-http-proxy: not installed (npm install -g configurable-http-proxy)")
    return peers, app


def downloads(ports: dict[str, int], rounds: int) -> dict[str, float]:
    times = by_turns(ports, rounds, lambda name: download(ports[name]))
    result = {}
    for name, found in times.items():
        print(f"1 GB, {name:10} {min(found):.2f} s")
        if name != "gateway":
            result[f"download_of_{name}"], result[f"download_of_{name}_median"] = ratios(found, times["gateway"], min)
            print(
                f"    gateway of {name}: {result[f'download_of_{name}']}, median {result[f'download_of_{name}_median']}"
            )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="a smaller run, for trying it out")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS, help="these parts alone")
    parser.add_argument("--beside", type=Path, help="another checkout, whose gateway is measured as well")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="spaces-bench-") as folder:
        result = measure(given.quick, Path(folder), given.only, given.beside)
    for line in result["skipped"]:
        print(f"skipped: {line}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
