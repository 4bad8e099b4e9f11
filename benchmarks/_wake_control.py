"""The control plane of `benchmarks.wakes`: all of it real but builder and orchestrator.

    python -m benchmarks._wake_control FOLDER GATEWAY_PORT STEER_PORT COUNT

Makes COUNT Spaces, writes the gateway's configuration and then FOLDER/ready, a list of their hosts. `POST /HOST` on
STEER_PORT puts one to sleep and answers 204 once it is frozen.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import uvloop

import runtime_images
from benchmarks._rig import until
from spaces_platform.accounts import Actor
from spaces_platform.adapters.file_logs import FileLogStore
from spaces_platform.adapters.git import GitRepoStore
from spaces_platform.adapters.thread_queue import ThreadQueue
from spaces_platform.api.app import create_app
from spaces_platform.clock import SystemClock
from spaces_platform.control import serve
from spaces_platform.platform import Platform
from spaces_platform.ports import Isolation, Observation, Task
from spaces_platform.reconciler import Planner
from spaces_platform.secrets import Vault
from spaces_platform.settings import Settings
from spaces_platform.spaces import NewSpace
from spaces_platform.store import Store
from spaces_platform.supervisor import gateway_config, link_token
from spaces_platform.wiring.assembly import assemble
from tests.fakes.builder import FakeBuilder
from tests.fakes.orchestrator import FakeOrchestrator, Script


class App(BaseHTTPRequestHandler):
    """What every app is."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        """Quiet: a line per request would be measured."""


class ServedApps(FakeOrchestrator):
    """Its apps answer: all at one address."""

    address = ""

    def observe(self) -> dict[int, Observation]:
        return {n: replace(seen, endpoint=self.address) for n, seen in super().observe().items()}


def build(folder: Path, port: int) -> Platform:
    settings = Settings.load(data=folder, port=port)
    clock, store = SystemClock(), Store(settings.database_url)
    queue = ThreadQueue({Task.RECONCILE: 4, Task.BUILD: 2})
    apps = ServedApps(clock, script=lambda _spec: Script(ready=True))
    server = ThreadingHTTPServer(("127.0.0.1", 0), App)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    apps.address = f"127.0.0.1:{server.server_port}"
    (folder / "run").mkdir(exist_ok=True, mode=0o700)
    return assemble(
        settings, clock=clock, store=store, vault=Vault.load(folder / "keys"), repos=GitRepoStore(folder / "repos"),
        builder=FakeBuilder(), orchestrator=apps, logs=FileLogStore(folder / "logs", clock), queue=queue,
        planner=Planner(runtime_images.load(), lambda: ("3.11",)), isolation=Isolation("none", "no apps run"),
    )  # fmt: skip


def steer(platform: Platform, admin: Actor, port: int) -> None:
    """Serve `POST /HOST`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            space = platform.directory.by_host(self.path[1:], admin)
            platform.spaces.sleep(space, admin)
            until(lambda: platform.deployments.of(space.id or 0, 1)[0].status == "FROZEN", "frozen", 30)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    threading.Thread(target=ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever, daemon=True).start()


def main() -> None:
    folder, port, steer_port, count = Path(sys.argv[1]), *(int(word) for word in sys.argv[2:5])
    platform = build(folder, port)
    platform.start()
    admin = platform.accounts.actor_of_token((folder / "admin.token").read_text().strip())
    files = {"README.md": b"---\nsdk: static\n---\n", "index.html": b"ok"}
    spaces = [
        platform.spaces.create(admin, NewSpace("admin", f"s{n}", sdk="static", files=files)) for n in range(count)
    ]
    until(lambda: all(platform.directory.by_id(s.id or 0).stage == "RUNNING" for s in spaces), "all run", 120)
    steer(platform, admin, steer_port)
    config = gateway_config(platform.settings, link_token(folder))
    (folder / "gateway.json").write_text(json.dumps(config))
    hosts = [platform.directory.hosts(s.id or 0)["primary"] for s in spaces]
    ready = folder / "ready.new"
    ready.write_text(json.dumps(hosts))
    ready.rename(folder / "ready")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(platform.settings, create_app(platform)))
    platform.close()


if __name__ == "__main__":
    main()
