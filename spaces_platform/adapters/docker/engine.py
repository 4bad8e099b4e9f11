"""The Docker engine's HTTP API, as far as it is needed. Owns the client and turns its errors into the platform's.

Every method raises Unavailable where the engine does not answer, and NotFound, Conflict, Invalid or DiskFull for what
it answers; the words of the engine are kept. Source: https://docs.docker.com/reference/api/engine/ (1.40 and later).
"""

from __future__ import annotations

import re
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from docker.errors import APIError, DockerException, InvalidArgument
from docker.types import IPAMConfig, IPAMPool

from builders.containers.engine import connect
from spaces_platform.errors import Conflict, DiskFull, Invalid, NotFound, PlatformError, Unavailable

from .gvisor import is_gvisor

TIMEOUT = 60
"""Seconds that one call may take; a start on a loaded machine is the longest."""
PULL_SECONDS = 1800
BRIDGE = "com.docker.network.bridge.name"
"""The option of a network that says how the kernel is to call it."""
_FULL = ("no space left on device", "disk quota exceeded")
_REMAPPED = re.compile(r"/(\d+)\.(\d+)$")


@dataclass(frozen=True, slots=True)
class Owner:
    """A user and its group, as the host numbers them."""

    uid: int
    gid: int

    def __str__(self) -> str:
        return f"{self.uid}:{self.gid}"


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What is true of an engine, as far as running apps depends on it."""

    version: str = ""
    root: str = "/var/lib/docker"
    storage: str = "overlay2"
    containerd: str = ""
    """Socket of the containerd that keeps its images; empty where the engine does that itself."""
    namespace: str = ""
    """In which that one has what is the engine's."""
    cgroup_driver: str = "cgroupfs"
    cgroup_version: str = "2"
    runtimes: tuple[str, ...] = ("runc",)
    default_runtime: str = "runc"
    gvisor: frozenset[str] = frozenset()
    """Those of the runtimes that are gVisor."""
    seccomp: bool = True
    apparmor: bool = False
    live_restore: bool = True
    init: bool = True
    """Whether the engine has an init for containers (`docker-init`)."""
    open_files: int = 0
    """The engine's own limit of open files, which it may not be able to exceed for a container; 0 where unknown."""
    uid_offset: int = 0
    gid_offset: int = 0
    """Host ids of the containers' user and group 0 where the engine remaps users; 0 where it does not."""

    def is_gvisor(self, runtime: str) -> bool:
        """Whether containers of a runtime (empty: the default) run under gVisor."""
        return (runtime or self.default_runtime) in self.gvisor

    def on_host(self, user: int) -> Owner:
        """A container's user, whose group has the same number there, as the host knows it."""
        return Owner(self.uid_offset + user, self.gid_offset + user)


def facts_of(info: Mapping[str, Any]) -> EngineFacts:
    """From the answer to `GET /info`."""
    options = [str(option) for option in info.get("SecurityOptions") or ()]
    root = str(info.get("DockerRootDir", ""))
    remapped = _REMAPPED.search(root) if any("userns" in option for option in options) else None
    runtimes: Mapping[str, Any] = info.get("Runtimes") or {}
    in_containerd = ["driver-type", "io.containerd.snapshotter.v1"] in (info.get("DriverStatus") or ())
    containerd: Mapping[str, Any] = (info.get("Containerd") or {}) if in_containerd else {}
    return EngineFacts(
        version=str(info.get("ServerVersion", "")),
        root=root,
        storage=str(info.get("Driver", "")),
        containerd=str(containerd.get("Address", "")),
        namespace=str((containerd.get("Namespaces") or {}).get("Containers", "")),
        cgroup_driver=str(info.get("CgroupDriver", "")),
        cgroup_version=str(info.get("CgroupVersion", "1")),
        runtimes=tuple(sorted(runtimes)),
        default_runtime=str(info.get("DefaultRuntime", "")),
        gvisor=frozenset(name for name, found in runtimes.items() if is_gvisor(name, found or {})),
        seccomp=any("seccomp" in option and "unconfined" not in option for option in options),
        apparmor=any("apparmor" in option for option in options),
        live_restore=bool(info.get("LiveRestoreEnabled")),
        init=bool(info.get("InitBinary")),
        uid_offset=int(remapped[1]) if remapped else 0,
        gid_offset=int(remapped[2]) if remapped else 0,
    )


class Engine:
    """One engine. Safe to call from any thread."""

    def __init__(self, url: str) -> None:
        """Raises Unavailable where nothing answers."""
        self.url = url
        with self._asked("connect"):
            self._api: Any = connect(url, TIMEOUT)

    def close(self) -> None:
        self._api.close()

    def facts(self) -> EngineFacts:
        with self._asked("info"):
            found = facts_of(self._api.info())
        return replace(found, open_files=_open_files(peer(self.url)))

    # --- containers ---------------------------------------------------------------------------------------------------
    def create(self, name: str, config: Mapping[str, Any]) -> str:
        """The id of a new container. Raises NotFound where its image or network is not there, Conflict on the name."""
        with self._asked(f"create container {name}"):
            return str(self._api.create_container_from_config(dict(config), name)["Id"])

    def start(self, container: str) -> None:
        with self._asked(f"start container {container[:12]}"):
            self._api.start(container)

    def inspect(self, container: str) -> Mapping[str, Any]:
        with self._asked(f"inspect container {container[:12]}"):
            found: Mapping[str, Any] = self._api.inspect_container(container)
            return found

    def containers(self, label: str) -> Sequence[Mapping[str, Any]]:
        """All with a label (`name=value`), whatever their state."""
        with self._asked("list containers"):
            found: Sequence[Mapping[str, Any]] = self._api.containers(all=True, filters={"label": label})
            return found

    def kill(self, container: str, signal: str) -> None:
        """Send a signal; of a container that does not run: success."""
        with self._asked(f"signal container {container[:12]}"), _fine((404, 409)):
            self._api.kill(container, signal)

    def remove(self, container: str) -> None:
        """Remove it, running or not, with the volumes that its image made; of the absent: success."""
        with self._asked(f"remove container {container[:12]}"), _fine((404, 409)):
            self._api.remove_container(container, v=True, force=True)

    def pause(self, container: str) -> None:
        """Raises NotFound, Conflict (does not run, or is paused)."""
        with self._asked(f"pause container {container[:12]}"):
            self._api.pause(container)

    def unpause(self, container: str) -> None:
        """Raises NotFound, Conflict (is not paused)."""
        with self._asked(f"unpause container {container[:12]}"):
            self._api.unpause(container)

    def set_cpus(self, container: str, cpus: float) -> None:
        """Change how much processor time a running container may use."""
        with self._asked(f"update container {container[:12]}"), _fine((404, 409)):
            self._api.update_container(container, cpu_period=100_000, cpu_quota=max(int(cpus * 100_000), 1000))

    def output(self, container: str, since: float) -> Iterator[bytes]:
        """What the engine kept of a container's output from a time (unix seconds; 0: all), one message at a time.

        Each message is `<RFC 3339 time with nanoseconds> text`, ending in a newline where the line ends.
        """
        with self._asked(f"logs of container {container[:12]}"):
            yield from self._api.logs(
                container, stdout=True, stderr=True, stream=True, follow=False, timestamps=True, since=since or None
            )

    @contextmanager
    def events(self, label: str) -> Iterator[Iterator[Mapping[str, Any]]]:
        """Events of containers with a label, from now on and until the engine or `cut` ends them."""
        with self._asked("follow events"):
            stream = self._api.events(decode=True, filters={"type": "container", "label": label})
            try:
                yield stream
            finally:
                stream.close()

    # --- images and networks ------------------------------------------------------------------------------------------
    def image(self, reference: str) -> Mapping[str, Any]:
        """Raises NotFound."""
        with self._asked(f"inspect image {reference}"):
            found: Mapping[str, Any] = self._api.inspect_image(reference)
            return found

    def pull(self, reference: str) -> None:
        """Fetch an image by its digest; takes minutes. Raises NotFound where the registry does not have it.

        Unavailable where nothing came for TIMEOUT seconds, or all of it took longer than PULL_SECONDS.
        """
        what = f"fetch {reference}"
        deadline = time.monotonic() + PULL_SECONDS
        with self._asked(what):
            for step in self._api.pull(reference, stream=True, decode=True):
                if "error" in step:  # the answer had begun: its status says nothing
                    raise Unavailable(f"{what}: {step['error']}")
                if time.monotonic() > deadline:
                    raise Unavailable(f"{what}: not done within {PULL_SECONDS} seconds")

    def networks(self) -> Sequence[Mapping[str, Any]]:
        with self._asked("list networks"):
            found: Sequence[Mapping[str, Any]] = self._api.networks()
            return found

    def create_network(self, name: str, bridge: str, subnet: str, labels: Mapping[str, str]) -> str:
        """A bridge of its own whose containers do not reach each other. Raises Conflict (name), Invalid (subnet)."""
        options = {BRIDGE: bridge, "com.docker.network.bridge.enable_icc": "false"}
        pool = IPAMConfig(pool_configs=[IPAMPool(subnet=subnet)])
        with self._asked(f"create network {name}"):
            made = self._api.create_network(
                name, driver="bridge", options=options, ipam=pool, check_duplicate=True, labels=dict(labels)
            )
            return str(made["Id"])

    def remove_network(self, network: str) -> None:
        """Of the absent: success. Raises Conflict where a container is on it."""
        with self._asked(f"remove network {network[:12]}"), _fine((404,)):
            self._api.remove_network(network)

    @contextmanager
    def _asked(self, what: str) -> Iterator[None]:
        try:
            yield
        except (PlatformError, InvalidArgument):
            raise
        except APIError as error:
            raise _translated(what, error) from error
        except (DockerException, requests.exceptions.RequestException, OSError) as error:
            raise Unavailable(f"{what}: the Docker engine at {self.url} does not answer: {error}; start it") from error


def peer(url: str) -> int:
    """The process that listens on the engine's unix socket; 0 where it cannot be seen. See SO_PEERCRED in unix(7)."""
    parts = urlsplit(url)
    if parts.scheme != "unix":
        return 0
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        try:
            client.connect(parts.path)
            return int(struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])
        except OSError:
            return 0


def _open_files(pid: int) -> int:
    """The hard limit of a process, from /proc/PID/limits; 0 where it cannot be seen."""
    try:
        text = Path(f"/proc/{pid}/limits").read_text()
    except OSError:
        return 0
    line = next((line for line in text.splitlines() if line.startswith("Max open files")), "")
    hard = line.split()[-2] if line else ""
    return int(hard) if hard.isdigit() else 0


@contextmanager
def _fine(statuses: Sequence[int]) -> Iterator[None]:
    """Take these answers for success."""
    try:
        yield
    except APIError as error:
        if error.status_code not in statuses:
            raise


def _translated(what: str, error: APIError) -> PlatformError:
    said = str(error.explanation or error)
    words = f"{what}: {said}"
    if any(text in said for text in _FULL):
        return DiskFull(f"{words}; free some space on the engine's disk")
    if said.endswith("is not paused"):  # 500, in older engines
        return Conflict(words)
    kind: type[PlatformError] = {400: Invalid, 403: Invalid, 404: NotFound, 409: Conflict}.get(
        int(error.status_code or 500), Unavailable
    )
    return kind(words)
