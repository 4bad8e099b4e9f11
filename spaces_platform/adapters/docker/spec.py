"""From a DeploymentSpec to what the engine is told: pure functions, tested as golden files.

Owns the container's configuration and the labels it is found by again. Invariant: an app runs as an ordinary user
without capabilities, on a read-only root, with limits on everything it can use up; nothing an image says changes that.
Source of the keys: `POST /containers/create` of the Docker Engine API.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spaces_platform.errors import Invalid
from spaces_platform.ports import DeploymentSpec

from . import gvisor
from .engine import EngineFacts
from .network import INSTANCE, SPACE
from .settings import DockerSettings

DEPLOYMENT = "spaces.deployment"
HOME = "/home/user"
DATA = "/data"
RESOLV_CONF = "/etc/resolv.conf"
CA_BUNDLE = "/etc/spaces/ca.crt"
CA_VARIABLES = (
    "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT", "NODE_EXTRA_CA_CERTS", "GIT_SSL_CAINFO",
    "AWS_CA_BUNDLE",
)  # fmt: skip
"""Where programs look for the file with the certificates they trust."""
PYTHON = "python3"
"""Stands for `{PLATFORM_PYTHON}`: the interpreter of the image."""
NO_GPU = "void"
"""To NVIDIA's runtime: as if it were not there. (Container toolkit, `NVIDIA_VISIBLE_DEVICES`.)"""
OOM_SCORE = 500
"""Apps are ended before anything of the platform's, where the machine itself runs out of memory."""
CPU_PERIOD = 100_000
"""Microseconds within which an app may use its share of the processors; the kernel's own default."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What of an image's own configuration matters."""

    id: str
    workdir: str = ""
    volumes: tuple[str, ...] = ()
    """Paths that it declares as volumes: unlimited disk, if nothing of ours is put there."""
    has_command: bool = False
    layers: tuple[str, ...] = ()
    """Directories of its layers on the engine's disk, topmost first; empty where the engine keeps them otherwise."""
    diff_ids: tuple[str, ...] = ()
    """Digests of what its layers hold, lowest first."""


@dataclass(frozen=True, slots=True)
class Mount:
    source: str
    """On the host."""
    target: str
    read_only: bool = False

    def __str__(self) -> str:
        return f"{self.source}:{self.target}" + (":ro" if self.read_only else "")


@dataclass(frozen=True, slots=True)
class Labels:
    """What a container says of itself: enough to find its deployment again after a restart of the platform."""

    instance: str
    deployment: int
    space_id: int
    port: int
    base_path: str
    started_at: float
    """Unix seconds."""
    log_bytes: int
    isolation: str

    def as_dict(self) -> dict[str, str]:
        return {
            INSTANCE: self.instance,
            DEPLOYMENT: str(self.deployment),
            SPACE: str(self.space_id),
            "spaces.port": str(self.port),
            "spaces.base-path": self.base_path,
            "spaces.started-at": f"{self.started_at:.6f}",
            "spaces.log-bytes": str(self.log_bytes),
            "spaces.isolation": self.isolation,
        }

    @classmethod
    def parse(cls, labels: Mapping[str, str]) -> Labels:
        """Raises KeyError, ValueError for labels that this platform did not write."""
        return cls(
            labels[INSTANCE],
            int(labels[DEPLOYMENT]),
            int(labels[SPACE]),
            int(labels["spaces.port"]),
            labels["spaces.base-path"],
            float(labels["spaces.started-at"]),
            int(labels["spaces.log-bytes"]),
            labels["spaces.isolation"],
        )


def image_reference(artifact_ref: str) -> str:
    """What the engine knows an artifact by. Raises Invalid for what is no image named by its content."""
    scheme, _, reference = artifact_ref.partition(":")
    digest = reference.rpartition("@")[2]
    if scheme != "image" or not _DIGEST.match(digest) or reference.startswith(("@", "-")):
        raise Invalid(f"artifact {artifact_ref!r} is not an image with its digest; build the Space again")
    return reference


def image_facts(found: Mapping[str, Any]) -> ImageFacts:
    """From the answer to `GET /images/…/json`."""
    config = found.get("Config") or {}
    driver = found.get("GraphDriver") or {}
    data = (driver.get("Data") or {}) if driver.get("Name") == "overlay2" else {}
    layers = [str(data.get("UpperDir", "")), *str(data.get("LowerDir", "")).split(":")]
    return ImageFacts(
        id=str(found.get("Id", "")),
        workdir=str(config.get("WorkingDir") or ""),
        volumes=tuple(sorted(config.get("Volumes") or ())),
        has_command=bool(config.get("Entrypoint") or config.get("Cmd")),
        layers=tuple(layer for layer in layers if layer),
        diff_ids=tuple((found.get("RootFS") or {}).get("Layers") or ()),
    )


def writable_places(spec: DeploymentSpec, image: ImageFacts) -> tuple[str, ...]:
    """Directories that an app writes beside its code in, outermost only, as Spaces promise it.

    Images of our own recipes: the home. Users' own images also their work directory, the volumes they declare, /var and
    /run, where servers such as nginx expect what the Dockerfile made there. Raises Invalid for a place of the image's
    choice that would hide the system.
    """
    named = {_normal(path, spec) for path in (HOME, image.workdir, *image.volumes) if path.strip("/")}
    wanted = named if spec.argv else named | {"/var", "/run"}
    kept: list[str] = []
    for place in sorted(wanted, key=lambda p: (p.count("/"), p)):
        if spec.resources.volume and (place == DATA or place.startswith(f"{DATA}/")):
            continue  # the Space's own volume is there
        if not any(place == other or place.startswith(f"{other}/") for other in kept):
            kept.append(place)
    return tuple(kept)


_SYSTEM = frozenset({"bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "proc", "run", "sbin", "sys", "tmp", "usr"})


def _normal(path: str, spec: DeploymentSpec) -> str:
    parts = [part for part in path.split("/") if part and part != "."]
    if ".." in parts or any(c in path for c in ":\0\n,\\"):
        raise Invalid(f"{spec.space}: the image names the directory {path!r}; use a plain absolute path")
    if parts[0] in _SYSTEM and len(parts) == 1:
        raise Invalid(f"{spec.space}: the image works in or has a volume at {path!r}, a system directory; use /app")
    return "/" + "/".join(parts)


def container_spec(
    spec: DeploymentSpec,
    settings: DockerSettings,
    engine: EngineFacts,
    *,
    image: ImageFacts,
    labels: Labels,
    network: str,
    mounts: Sequence[Mount],
    cgroup_parent: str,
) -> dict[str, Any]:
    """The body of the create call. Raises Invalid for a spec that can never start.

    `mounts` hold the sized disk; where it has none, /tmp is memory and the container's own layer stays writable.
    """
    has_disk = any(mount.target == HOME for mount in mounts)
    argv = [_fill(word, spec) for word in spec.argv]
    env = environment(spec, settings)
    check(spec, image, argv, env)
    config: dict[str, Any] = {
        "Image": image.id,
        "User": f"{settings.user}:{settings.user}",
        "Env": [f"{name}={value}" for name, value in sorted(env.items())],
        "Labels": labels.as_dict(),
        "Hostname": f"space-{spec.space_id}",
        "StopSignal": "SIGTERM",
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": host_config(spec, settings, engine, network, mounts, cgroup_parent, has_disk=has_disk),
    }
    if argv:
        config |= {"Entrypoint": [], "Cmd": argv}
    return config


def host_config(
    spec: DeploymentSpec,
    settings: DockerSettings,
    engine: EngineFacts,
    network: str,
    mounts: Sequence[Mount],
    cgroup_parent: str,
    *,
    has_disk: bool,
) -> dict[str, Any]:
    """What the container may use of the host, which is as little as can be."""
    limits = spec.resources
    in_gvisor = engine.is_gvisor(settings.runtime)
    files = min(settings.open_files, engine.open_files or settings.open_files)
    binds = [*map(str, mounts)]
    if settings.ca_bundle:
        binds.append(str(Mount(settings.ca_bundle, CA_BUNDLE, read_only=True)))
    # The root of the container stays empty of writes; runtimes that are no runc share no memory limit with tmpfs.
    tmpfs = {}
    if not any(mount.target == "/run" for mount in mounts):  # the app's user does not write there, as on the Hub
        tmpfs["/run"] = f"rw,nosuid,nodev,noexec,size={16 * _MIB},mode=755"
    if not has_disk:
        tmpfs["/tmp"] = f"rw,nosuid,nodev,size={min(limits.disk, limits.memory // 2)},mode=1777"
    found: dict[str, Any] = {
        "NetworkMode": network,
        "Binds": binds,
        "Tmpfs": tmpfs,
        "ShmSize": max(limits.memory // 2, 16 * _MIB),
        "ReadonlyRootfs": has_disk,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "Privileged": False,
        "IpcMode": "private",
        "PidMode": "",
        "CgroupnsMode": "private",
        "CgroupParent": cgroup_parent,
        "Memory": limits.memory,
        "MemorySwap": limits.memory,
        # Not NanoCpus: that is refused where it is more than the machine has.
        "CpuPeriod": CPU_PERIOD,
        "CpuQuota": max(int(limits.cpus * CPU_PERIOD), 1000),
        "PidsLimit": gvisor.host_tasks(limits.processes) if in_gvisor else limits.processes,
        "Ulimits": [
            {"Name": "core", "Soft": 0, "Hard": 0},
            {"Name": "nofile", "Soft": files, "Hard": files},
            # Elsewhere it would count all apps together, which are one user of the host.
            *([{"Name": "nproc", "Soft": limits.processes, "Hard": limits.processes}] if in_gvisor else ()),
        ],
        "OomScoreAdj": OOM_SCORE,
        "Init": engine.init,
        "RestartPolicy": {"Name": "no"},
        "AutoRemove": False,
        "LogConfig": {
            "Type": "local",
            "Config": {"max-size": str(max(limits.log_bytes // 2, 64 << 10)), "max-file": "2", "compress": "false"},
        },
    }
    if settings.runtime:
        found["Runtime"] = settings.runtime
    if spec.gpus:
        found["DeviceRequests"] = device_requests(spec.gpus)
    return found


def device_requests(gpus: Sequence[str]) -> list[dict[str, Any]]:
    """What asks the engine for these GPUs (Engine API, DeviceRequest)."""
    return [{"Driver": "nvidia", "DeviceIDs": list(gpus), "Capabilities": [["gpu", "compute", "utility"]]}]


def environment(spec: DeploymentSpec, settings: DockerSettings) -> dict[str, str]:
    """The variables of the app. What the spec sets wins, except which port it must serve, the certificates and which
    GPUs it has: where NVIDIA's runtime is the engine's default, this variable, also of an image, is what gives them.
    """
    env = {
        "HOME": HOME, "USER": "user", "LOGNAME": "user", "LANG": "C.UTF-8", "TMPDIR": "/tmp", "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    env |= {name: _fill(value, spec) for name, value in spec.env.items()}
    if settings.ca_bundle:
        env |= dict.fromkeys(CA_VARIABLES, CA_BUNDLE)
    return {**env, "PORT": str(spec.app_port), "NVIDIA_VISIBLE_DEVICES": ",".join(spec.gpus) or NO_GPU}


def cgroup_parent(instance: str, engine: EngineFacts) -> str:
    """The group that holds all containers of one platform, in the form the engine's driver wants."""
    return f"spaces-{instance}.slice" if engine.cgroup_driver == "systemd" else f"/spaces-{instance}"


def check(spec: DeploymentSpec, image: ImageFacts, argv: Sequence[str], env: Mapping[str, str]) -> None:
    """Raises Invalid for what can never start."""
    if (argv and not argv[0]) or not (argv or image.has_command):
        raise Invalid(f"deployment {spec.id} of {spec.space} has no command to run; set CMD in the Dockerfile")
    if not spec.base_path.startswith("/") or any(c in spec.base_path for c in "\r\n\0 "):
        raise Invalid(f"deployment {spec.id} of {spec.space}: base_path must be a path that starts with '/'")
    if not 1 <= spec.app_port <= 65535:
        raise Invalid(f"{spec.space}: app_port {spec.app_port} is not between 1 and 65535")
    for name, value in env.items():
        if not _NAME.match(name):
            raise Invalid(f"{spec.space}: {name!r} cannot be the name of a variable; use letters, digits and '_'")
        if "\0" in value:
            raise Invalid(f"{spec.space}: the value of {name} holds a zero byte; remove it")
    if any("\0" in word for word in argv):
        raise Invalid(f"{spec.space}: the command holds a zero byte; remove it")
    if spec.resources.memory < 6 * _MIB:
        raise Invalid(f"{spec.space}: {spec.resources.memory} bytes of memory are too little for a container (6 MiB)")


def exit_code(state: Mapping[str, Any]) -> int | None:
    """The port's exit code from a container's `State`: a shell's and an init's 128+n mean the signal n."""
    code = state.get("ExitCode")
    if not isinstance(code, int) or code < 0 or code > 255:
        return None
    return -(code - 128) if 128 < code <= 128 + 64 else code


def _fill(text: str, spec: DeploymentSpec) -> str:
    return text.replace("{PORT}", str(spec.app_port)).replace("{PLATFORM_PYTHON}", PYTHON)
