"""The gateway beside nginx and configurable-http-proxy, on this machine, in one run.

    python benchmarks/gateway.py [--quick]

Every proxy stands before the same upstream (nginx serving files) and is pinned to core 0; upstream and load share the
other cores. Runs of the peers alternate, and each peer's best counts, so that a busy machine disturbs all alike. A
peer that is not installed is skipped and named. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOAD = Path(__file__).with_name("_gateway_load.py")
HOST = "user-app.localhost"
DOWNLOAD = 1 << 30


def pinned(core: str, argv: list[str]) -> list[str]:
    many = (os.cpu_count() or 1) > 1
    return ["taskset", "-c", core, *argv] if many and shutil.which("taskset") else argv


def others() -> str:
    last = (os.cpu_count() or 1) - 1
    return f"1-{last}" if last > 1 else "1"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_port(port: int, process: subprocess.Popen[Any]) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if process.poll() is not None:
            break
        time.sleep(0.05)
    sys.exit(f"nothing listens on port {port}: {process.args!r}")


@contextlib.contextmanager
def running(argv: list[str], port: int, **options: Any) -> Iterator[subprocess.Popen[Any]]:
    process = subprocess.Popen(argv, **options)
    try:
        wait_port(port, process)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def nginx(folder: Path, name: str, core: str, port: int, servers: str) -> contextlib.AbstractContextManager[Any]:
    config = folder / f"{name}.conf"
    config.write_text(
        f"worker_processes 1; daemon off; pid {folder}/{name}.pid; error_log {folder}/{name}.err;\n"
        "events { worker_connections 8192; }\n"
        f"http {{ access_log off; sendfile on; keepalive_requests 100000000; {servers} }}\n"
    )
    return running(pinned(core, ["nginx", "-e", f"{folder}/{name}.err", "-c", str(config)]), port)


def gateway(folder: Path, port: int, endpoint: str) -> contextlib.AbstractContextManager[subprocess.Popen[Any]]:
    """A gateway with one route, from a snapshot; its control plane is not there, which it must not mind."""
    entry = {
        "space": 1, "version": 1, "name": "user/app", "hosts": [HOST], "stage": "RUNNING", "deployment": 1,
        "endpoint": endpoint, "public": True,
    }  # fmt: skip
    snapshot, config = folder / f"routes-{port}.json", folder / f"gateway-{port}.json"
    snapshot.write_text(json.dumps({"version": 1, "entries": [entry]}))
    values = {
        "control": f"unix:{folder}/none.sock",
        "link_token": "x",
        "listen": [{"port": port}],
        "snapshot": str(snapshot),
    }
    config.write_text(json.dumps(values))
    argv = [sys.executable, "-m", "spaces_platform.gateway", "--config", str(config)]
    return running(pinned("0", argv), port, cwd=ROOT, stderr=subprocess.DEVNULL)


def wrk(port: int, seconds: float) -> float:
    argv = ["wrk", "-t1", "-c32", f"-d{seconds:.0f}s", "-H", f"Host: {HOST}", f"http://127.0.0.1:{port}/1k"]
    text = subprocess.run(pinned(others(), argv), capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in text or "Socket errors" in text:
        sys.exit(f"errors on port {port}:\n{text}")
    found = re.search(r"Requests/sec:\s+([0-9.]+)", text)
    return float(found[1]) if found else 0.0


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and its children so far."""
    total = 0.0
    children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    for one in [str(pid), *children]:
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def throughput(peers: dict[str, tuple[int, int]], rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    best: dict[str, dict[str, float]] = {name: {"rps": 0.0, "cpu_us": 1e9} for name in peers}
    for _ in range(rounds):
        for name, (port, pid) in peers.items():
            before = cpu_seconds(pid)
            rate = wrk(port, seconds)
            spent = (cpu_seconds(pid) - before) / (rate * seconds) * 1e6
            best[name]["rps"] = max(best[name]["rps"], rate)
            best[name]["cpu_us"] = min(best[name]["cpu_us"], spent)
    return best


def load(*argv: str) -> dict[str, Any]:
    text = subprocess.run(
        pinned(others(), [sys.executable, str(LOAD), *argv]), capture_output=True, text=True, check=True
    ).stdout
    found: dict[str, Any] = json.loads(text.splitlines()[-1])
    return found


def added_latency(direct: int, proxied: int, rounds: int, seconds: float) -> dict[str, float]:
    """Through the gateway minus straight to the app, at 1 000 requests a second; the best round of each."""
    best = {"direct": (1e9, 1e9), "proxied": (1e9, 1e9)}
    for _ in range(rounds):
        for name, port in (("direct", direct), ("proxied", proxied)):
            found = load("open-loop", HOST, str(port), "1000", str(seconds))
            if found["errors"]:
                sys.exit(f"errors at 1000 requests a second: {found}")
            best[name] = min(best[name][0], found["p50_ms"]), min(best[name][1], found["p99_ms"])
    return {
        "p50_ms": round(best["proxied"][0] - best["direct"][0], 3),
        "p99_ms": round(best["proxied"][1] - best["direct"][1], 3),
    }


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
        with gateway(folder, port, endpoint) as process:
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


def measure(quick: bool, folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = {"benchmark": "gateway", "skipped": []}
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
    up, proxy, own, chp = (free_port() for _ in range(4))
    rounds, seconds = (2, 1.0) if quick else (6, 2.0)
    with contextlib.ExitStack() as stack:
        server = f"server {{ listen 127.0.0.1:{up} backlog=4096; root {folder}/www; }}"
        stack.enter_context(nginx(folder, "upstream", others(), up, server))
        pass_on = 'proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection "";'
        server = f"upstream app {{ server 127.0.0.1:{up}; keepalive 64; }} server {{ listen 127.0.0.1:{proxy};"
        peer = stack.enter_context(nginx(folder, "proxy", "0", proxy, f"{server} location / {{ {pass_on} }} }}"))
        ours = stack.enter_context(gateway(folder, own, f"127.0.0.1:{up}"))
        peers = {"gateway": (own, ours.pid), "nginx": (proxy, peer.pid)}
        if shutil.which("configurable-http-proxy"):
            argv = ["configurable-http-proxy", "--ip", "127.0.0.1", "--port", str(chp), "--api-port", str(free_port())]
            argv += ["--default-target", f"http://127.0.0.1:{up}", "--log-level", "error"]
            environment = {**os.environ, "CONFIGPROXY_AUTH_TOKEN": "bench"}
            process = stack.enter_context(running(pinned("0", argv), chp, env=environment))
            peers["configurable-http-proxy"] = (chp, process.pid)
            result["configurable-http-proxy"] = version(["configurable-http-proxy", "--version"])
        else:
            result["skipped"].append("configurable-http-proxy: not installed (npm install -g configurable-http-proxy)")
        best = throughput(peers, rounds, seconds)
        for name, found in best.items():
            print(f"1 kB keep-alive, {name:24} {found['rps']:8.0f} req/s  {found['cpu_us']:6.1f} µs of processor each")
            if name != "gateway":
                result[f"of_{name}"] = round(best["gateway"]["rps"] / found["rps"], 2)
                result[f"processor_of_{name}"] = round(best["gateway"]["cpu_us"] / found["cpu_us"], 2)
        result["added_latency"] = added_latency(up, own, rounds, 2.0 if quick else 4.0)
        print(f"added at 1000 req/s: {result['added_latency']}")
        times = {"gateway": 1e9, "nginx": 1e9}
        for _ in range(rounds):
            for name, port in (("gateway", own), ("nginx", proxy)):
                times[name] = min(times[name], download(port))
        result["download_of_nginx"] = round(times["nginx"] / times["gateway"], 2)
        print(f"1 GB: gateway {times['gateway']:.2f} s, nginx {times['nginx']:.2f} s")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    wanted = 1_000 if quick else 10_000
    count = min(wanted, (hard - 512) // 2) if hard != resource.RLIM_INFINITY else wanted
    result["idle_websockets"] = idle_websockets(folder, count)
    print(f"idle WebSockets: {result['idle_websockets']}")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="a smaller run, for trying it out")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory(prefix="spaces-bench-") as folder:
        result = measure(quick, Path(folder))
    for line in result["skipped"]:
        print(f"skipped: {line}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
