"""What stands before the app in the gateway's benchmark: the gateway, and its peers with the same work to do.

Owns: starting each on core 0 and ending it. Does not own: what is measured.
Fair to nginx: one worker as the gateway has one process, kept-alive connections to the app, the visitor's Host and the
same X-Forwarded-* fields sent on, no access log, and no answer spooled to disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HOST = "user-app.localhost"
_PASS_ON = (
    'proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host; '
    "proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Host $http_host; "
    "proxy_set_header X-Forwarded-Proto $scheme; proxy_max_temp_file_size 0;"
)


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
    """One worker and no master: the process that is started is the one that works."""
    config = folder / f"{name}.conf"
    config.write_text(
        f"daemon off; master_process off; pid {folder}/{name}.pid; error_log {folder}/{name}.err;\n"
        "events { worker_connections 8192; }\n"
        f"http {{ access_log off; sendfile on; keepalive_requests 100000000; {servers} }}\n"
    )
    return running(pinned(core, ["nginx", "-e", f"{folder}/{name}.err", "-c", str(config)]), port)


def nginx_app(folder: Path, port: int) -> contextlib.AbstractContextManager[Any]:
    """The app that all stand before: files."""
    server = f"server {{ listen 127.0.0.1:{port} backlog=4096; root {folder}/www; }}"
    return nginx(folder, "app", others(), port, server)


def nginx_proxy(folder: Path, port: int, app: int) -> contextlib.AbstractContextManager[Any]:
    servers = (
        f"upstream app {{ server 127.0.0.1:{app}; keepalive 64; keepalive_requests 100000000; }} "
        f"server {{ listen 127.0.0.1:{port}; location / {{ {_PASS_ON} }} }}"
    )
    return nginx(folder, "proxy", "0", port, servers)


def configurable_http_proxy(port: int, app: int) -> contextlib.AbstractContextManager[Any]:
    argv = ["configurable-http-proxy", "--ip", "127.0.0.1", "--port", str(port), "--api-port", str(free_port())]
    argv += ["--default-target", f"http://127.0.0.1:{app}", "--log-level", "error"]
    return running(pinned("0", argv), port, env={**os.environ, "CONFIGPROXY_AUTH_TOKEN": "bench"})


def gateway(
    folder: Path, port: int, endpoint: str, *, root: Path = ROOT, **settings: Any
) -> contextlib.AbstractContextManager[subprocess.Popen[Any]]:
    """The gateway of a checkout, with one route from a snapshot; its control plane is not there, which it must not
    mind."""
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
        **settings,
    }
    config.write_text(json.dumps(values))
    argv = [sys.executable, "-m", "spaces_platform.gateway", "--config", str(config)]
    return running(pinned("0", argv), port, cwd=root, stderr=subprocess.DEVNULL)
