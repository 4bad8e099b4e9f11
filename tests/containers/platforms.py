"""The real platform in single-host mode: containers on a real engine, builds by Celery's workers, a real Redis.

Owns: what differs from tests/faults/system.py, which does the rest. Apps are users' own Dockerfiles on the platform's
Python image, so that nothing is installed.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import docker
from pip._internal.models.index import PyPI

import runtime_images
from spaces_platform.adapters.docker import cgroups
from spaces_platform.adapters.docker.network import INSTANCE
from spaces_platform.adapters.docker.settings import instance_of
from spaces_platform.adapters.docker.spec import DEPLOYMENT
from tests.faults import apps
from tests.faults.system import System

PORT = 8080
PYTHON = runtime_images.image_ref(runtime_images.load(), "python")
DOCKERFILE = f'FROM {PYTHON}\nENV PORT={PORT}\nCOPY . .\nCMD ["python3", "app.py"]\n'


def python(text: str, **given: Any) -> dict[str, str]:
    """The program of tests/faults/apps.py, listening where a container must."""
    files = {name: content for name, content in apps.python(text, **given).items() if not name.startswith("base/")}
    app = files["app.py"].replace('"127.0.0.1"', '"0.0.0.0"')
    front = apps.front(**{"sdk": "docker", "app_port": PORT, **{k: v for k, v in given.items() if k in _FRONT}})
    return {**files, "app.py": app, "README.md": front, "Dockerfile": DOCKERFILE}


_FRONT = {"startup_duration_timeout"}

_KEEPER = """
import http.server, os
class Keeper(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        verb, _, word = self.path.strip("/").partition("/")
        if verb == "write":
            with open("/data/word", "w") as file:
                file.write(word)
        if verb == "read":
            body = open("/data/word").read() if os.path.exists("/data/word") else "nothing"
        elif verb == "size":
            found = os.statvfs("/data")
            body = str(found.f_blocks * found.f_frsize >> 20)
        else:
            body = TEXT
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body.encode())
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("", int(os.environ["PORT"])), Keeper).serve_forever()
"""


def keeper(text: str) -> dict[str, str]:
    """An app that says `text`, and keeps a word at /data: `/write/WORD`, `/read`, and `/size` of it in MiB."""
    return {**python(text), "app.py": f"TEXT = {text!r}\n{_KEEPER}"}


class ContainerSystem(System):
    """`up()` starts single-host mode on an engine and a Redis that are there."""

    def __init__(self, folder: Path, engine: str, redis: str, **settings: object) -> None:
        network = {"ca_bundle": os.environ.get("SSL_CERT_FILE", ""), "egress_allow": ",".join(private_indexes())}
        super().__init__(
            folder,
            **{"mode": "single-host", "docker": engine, "redis": redis, "app_subnets": "10.214.0.0/16",
               "pass_environment": "",  # containers have Pythons of their own
               **network, **settings},
        )  # fmt: skip
        self.engine = docker.DockerClient(base_url=engine, version="auto", timeout=60)
        self.label = f"{INSTANCE}={instance_of(self.data / 'containers')}"

    def containers(self) -> dict[int, Any]:
        """Deployment id -> its container, whatever state it is in."""
        found = self.engine.containers.list(all=True, filters={"label": self.label}, ignore_removed=True)
        return {int(c.labels[DEPLOYMENT]): c for c in found}

    def app_processes(self) -> dict[int, list[int]]:
        return {number: [c.attrs["State"]["Pid"]] for number, c in self.containers().items() if c.status != "exited"}

    def frozen(self, name: str) -> bool:
        row = self.rows("SELECT d.id FROM deployment d WHERE space_id = ? ORDER BY id DESC", self.space_id(name))[0]
        container = self.containers().get(row["id"])
        if container is None:
            return False
        state = container.attrs["State"]  # paused: by the engine, under gVisor
        return bool(state["Paused"] or cgroups.is_frozen(state["Pid"], container.id))

    def remove_all(self) -> None:
        """Whatever the platform left in the engine."""
        for container in self.containers().values():
            container.remove(force=True)
        for network in self.engine.networks.list(filters={"label": self.label}):
            network.remove()
        self.engine.close()


def private_indexes() -> list[str]:
    """Addresses of the package index that are not public: an admin allows those by name."""
    found = []
    for url in (os.environ.get("PIP_INDEX_URL", ""), os.environ.get("UV_DEFAULT_INDEX", ""), PyPI.simple_url):
        host = urlsplit(url).hostname
        if host is None:
            continue
        try:
            addresses = {str(info[4][0]) for info in socket.getaddrinfo(host, 443, socket.AF_INET)}
        except OSError:
            continue
        found += sorted(one for one in addresses if not ipaddress.ip_address(one).is_global)
    return list(dict.fromkeys(found))
