"""All settings, frozen, read once. Nothing else reads the environment.

Each field can be set by the environment variable `SPACES_<NAME>` or by the flag of `spaces up` that has its name.
An unknown `SPACES_…` variable is an error, since a misspelt limit is a limit that does not hold.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from spaces_platform.errors import Invalid

PREFIX = "SPACES_"
STORAGE_TIERS = ("small", "medium", "large")
"""What storage a Space may ask for, in the Hub's words, smallest first."""
SMALLEST_VOLUME_MB = 16


def _home() -> Path:
    return Path.home() / ".spaces"


def _doc(default: Any, text: str) -> Any:
    """A field with its documentation, which docs/configuration.md is made from."""
    if callable(default):
        return field(default_factory=default, metadata={"doc": text})
    return field(default=default, metadata={"doc": text})


@dataclass(frozen=True, slots=True)
class Settings:
    mode: str = _doc(
        "embedded",
        "`embedded`: apps are processes, work is done by threads, nothing to install. `single-host`: containers built "
        "and run by a Docker engine, builds queued by Celery on Redis. Sets the defaults of `queue`, `builder` and "
        "`orchestrator`; each can still be set alone.",
    )
    data: Path = _doc(_home, "The one directory that holds everything.")
    host: str = _doc("127.0.0.1", "Address the platform listens on. `0.0.0.0` opens it to the network.")
    port: int = _doc(7860, "Port of the one public door: platform and apps.")
    public_url: str = _doc("", "Address of the platform as people type it. Default: `http://localhost:<port>`.")
    apps_domain: str = _doc("", "Domain below which apps get their host names. Default: `localhost`.")
    database: str = _doc("", "Database URL. Default: SQLite in the data directory.")
    trusted_proxies: str = _doc(
        "",
        "Networks (`127.0.0.1/32,10.0.0.5/32`) of the proxies in front, whose X-Forwarded-For and X-Forwarded-Proto "
        "are believed.",
    )
    tls_ask: str = _doc(
        "",
        "`host:port` where a proxy asks whether a name is to get a certificate: "
        "`GET /internal/tls/ask?domain=…`. Empty: nowhere.",
    )
    dns: str = _doc(
        "", "Name servers (`10.0.0.53,10.0.0.54:5353`) asked for the records of custom domains. Empty: the system's."
    )
    admin: str = _doc("admin", "Name of the first admin, made at the first start.")

    queue: str = _doc("threads", "Who builds: `threads` of the control plane, or `celery` workers.")
    builder: str = _doc("venv", "What a build makes: `venv`, a virtual environment in a folder, or `docker`, an image.")
    orchestrator: str = _doc("process", "What apps run as: `process` or `docker`.")
    redis: str = _doc("redis://127.0.0.1:6379/0", "Redis of the Celery queue and of live logs.")
    redis_prefix: str = _doc(
        "",
        "Begins every key and channel in Redis, so that platforms can share one. Empty: made from the data directory's "
        "path, which control plane and workers must then see under the same path.",
    )
    docker: str = _doc("unix:///var/run/docker.sock", "The Docker engine that builds and runs containers.")
    registry: str = _doc("", "`host:port` of a registry that images are pushed to. Empty: they stay in the engine.")
    container_runtime: str = _doc("", "Runtime of app containers, for example `runsc`. Empty: the engine's default.")
    image_sources: str = _doc(
        "docker.io,ghcr.io,quay.io,gcr.io,nvcr.io,mcr.microsoft.com,public.ecr.aws,registry.gitlab.com",
        "Registries that Dockerfiles of Spaces may take images from, besides the platform's runtime images.",
    )
    base_image: str = _doc("spaces/base:bookworm", "The Debian image that runtime images are made from.")
    apt_mirror: str = _doc("", "Mirror that builds take Debian packages from. Empty: as the base image has it.")
    ca_bundle: str = _doc(
        "", "File with the certificates that containers are to trust. Mounted, never copied into images."
    )
    app_subnets: str = _doc(
        "10.213.0.0/16",
        "Private addresses that no one else uses here; each running Space in a container has a network of 16 of them.",
    )
    egress_ports: str = _doc("80,443,8080", "Ports that containers may connect to on public addresses.")
    egress_allow: str = _doc(
        "", "Private addresses (`10.0.0.5:3128`, `10.1.0.0/16`) that containers may reach: proxies, mirrors."
    )

    hub_endpoint: str = _doc(
        "",
        "Address of the hub that `preload_from_hub` gets models and datasets from, as `https://huggingface.co`: "
        "anything that speaks its API. A Space's secret HF_TOKEN is shown to it, and to no other host. Asked by the "
        "platform itself, before the build's own steps. Empty: only Spaces of this platform can be preloaded.",
    )
    preload_mb: int = _doc(10240, "Most that `preload_from_hub` may fetch for one Space.")

    build_slots: int = _doc(2, "Builds that run at once.")
    start_slots: int = _doc(4, "Apps that start at once; further wakes wait in line.")
    sleep_after: int = _doc(
        1800, "Seconds without activity until an app sleeps, where its Space does not say. -1: never."
    )
    build_seconds: int = _doc(1800, "Longest build.")
    build_memory_mb: int = _doc(4096, "Memory of one build.")
    build_disk_mb: int = _doc(10240, "Disk one build may add.")
    build_processes: int = _doc(512, "Processes of one build.")
    build_cache_mb: int = _doc(20480, "What the container builder keeps of steps and downloads, least used first out.")
    build_cpus: float = _doc(2.0, "CPUs of all container builds together.")
    app_cpus: float = _doc(2.0, "CPUs of one app on cpu-basic.")
    app_memory_mb: int = _doc(2048, "Memory of one app on cpu-basic.")
    app_disk_mb: int = _doc(4096, "Disk one app may write.")
    app_processes: int = _doc(512, "Processes of one app.")
    volume_mb: int = _doc(
        1024,
        "Size of the persistent volume at `/data` that each Space in a container has unasked, static ones aside. "
        "0: only those that ask.",
    )
    volume_small_mb: int = _doc(4096, "Size of the volume of a Space that asks for storage `small`.")
    volume_medium_mb: int = _doc(16384, "The same for `medium`.")
    volume_large_mb: int = _doc(65536, "The same for `large`.")
    volume_most: str = _doc("large", "The largest storage that may be asked for: `small`, `medium`, `large` or `none`.")
    frozen_mb: int = _doc(
        -1, "Memory that frozen (idle, kept) containers may hold together. -1: a quarter of the machine's; 0: none."
    )
    frozen_seconds: int = _doc(86400, "How long an idle container stays frozen before it is stopped.")
    app_log_kb: int = _doc(4096, "Output kept of one run of an app.")
    gpus: str = _doc(
        "",
        "GPUs that Spaces can have, by model and id: `T4:GPU-5f2c9d1e,T4:GPU-77aa01bc`. Empty: those that the Docker "
        "engine can give; `none`: none.",
    )
    gpu_quota: int = _doc(-1, "GPUs that an owner without a quota of its own may use at once. -1: no limit.")
    push_mb: int = _doc(512, "Largest push.")
    repo_mb: int = _doc(2048, "Largest repository.")
    file_mb: int = _doc(10, "Largest file that is not in LFS.")
    spaces_per_owner: int = _doc(1000, "Spaces one owner may have.")
    disk_floor_mb: int = _doc(512, "Free disk below which pushes and builds are refused, so that running apps go on.")

    isolation: str = _doc(
        "auto",
        "`auto`: the best isolation that works here; `required`: refuse to run apps that are not isolated; `off`.",
    )
    hold_seconds: int = _doc(90, "How long a request waits for a waking app before it gets 503.")
    drain_seconds: int = _doc(60, "How long requests may go on running on a replaced app.")
    pass_environment: str = _doc(
        "HTTP_PROXY,HTTPS_PROXY,NO_PROXY,http_proxy,https_proxy,no_proxy,SSL_CERT_FILE,SSL_CERT_DIR,REQUESTS_CA_BUNDLE,"
        "CURL_CA_BUNDLE,NODE_EXTRA_CA_CERTS,PIP_INDEX_URL,PIP_EXTRA_INDEX_URL,PIP_CERT,UV_INDEX_URL,UV_DEFAULT_INDEX,"
        "UV_EXTRA_INDEX_URL,UV_INDEX,UV_FIND_LINKS,UV_NATIVE_TLS",
        "Names of the platform's own variables that builds and apps get: proxy, certificates, package index.",
    )
    log_level: str = _doc("INFO", "Level of the platform's own log.")

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, **given: Any) -> Settings:
        """Settings from the environment, overruled by `given` values that are not None. Raises Invalid."""
        environ = os.environ if environ is None else environ
        hints = typing.get_type_hints(cls)
        names = {f"{PREFIX}{f.name.upper()}": f.name for f in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for key, text in environ.items():
            if not key.startswith(PREFIX) or key in FOREIGN:
                continue
            if key not in names:
                close = difflib.get_close_matches(key, names, n=1)
                raise Invalid(f"Unknown setting {key}." + (f" Did you mean {close[0]}?" if close else ""))
            values[names[key]] = _parse(key, text, hints[names[key]])
        values.update({name: value for name, value in given.items() if value is not None})
        mode = values.get("mode", "embedded")
        if mode not in MODES:
            raise Invalid(f"mode {mode!r} is not one of {', '.join(MODES)}.")
        settings = cls(**{**MODES[mode], **values})
        settings.check()
        return settings

    def check(self) -> None:
        """Raises Invalid for values that cannot work together."""
        if not 1 <= self.port <= 65535:
            raise Invalid(f"port {self.port} is not between 1 and 65535.")
        if self.isolation not in ("auto", "required", "off"):
            raise Invalid(f"isolation {self.isolation!r} is not one of auto, required, off.")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise Invalid(f"{name} {getattr(self, name)!r} is not one of {', '.join(allowed)}.")
        if (self.builder == "docker") != (self.orchestrator == "docker"):
            raise Invalid("builder and orchestrator must both be `docker`, or neither: images run only in containers.")
        if self.gpu_quota < -1:
            raise Invalid(f"gpu_quota {self.gpu_quota} is not -1 (no limit), 0 (none) or more.")
        self._check_volumes()
        for name in ("build_slots", "start_slots"):
            if getattr(self, name) < 1:
                raise Invalid(f"{name} must be at least 1.")

    def _check_volumes(self) -> None:
        if self.volume_most not in ("none", *STORAGE_TIERS):
            raise Invalid(f"volume_most {self.volume_most!r} is not one of none, {', '.join(STORAGE_TIERS)}.")
        names = ["volume_mb", *(f"volume_{tier}_mb" for tier in STORAGE_TIERS)]
        least = 0
        for name in names:
            size = getattr(self, name)
            if size < SMALLEST_VOLUME_MB and not (name == "volume_mb" and size == 0):
                raise Invalid(f"{name} {size} is less than {SMALLEST_VOLUME_MB}, which a file system takes for itself.")
            if size < least:
                raise Invalid(f"{name} {size} is smaller than the one before it ({least}): {', '.join(names)} ascend.")
            least = size

    @property
    def url(self) -> str:
        """The platform's address, without a slash at its end."""
        return (self.public_url or f"http://localhost:{self.port}").rstrip("/")

    @property
    def domain(self) -> str:
        return (self.apps_domain or "localhost").lower()

    @property
    def has_loopback_addresses(self) -> bool:
        """Whether each Space also has an address of 127/8: only where `*.localhost` names are used, and without TLS,
        since nobody has a certificate for such an address.
        """
        return self.domain == "localhost" and self.url.startswith("http:")

    @property
    def proxies(self) -> list[str]:
        """Networks of the proxies that are believed."""
        return [network.strip() for network in self.trusted_proxies.split(",") if network.strip()]

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.data / 'spaces.db'}"

    @property
    def queue_prefix(self) -> str:
        """What begins every key and channel of this platform in Redis."""
        return self.redis_prefix or f"spaces-{hashlib.sha256(str(self.data.resolve()).encode()).hexdigest()[:12]}"

    @property
    def control_socket(self) -> Path:
        return self.data / "run" / "control.sock"

    @property
    def platform_hosts(self) -> tuple[str, ...]:
        """Host names that mean the platform itself."""
        own = urlsplit(self.url).hostname or "localhost"
        return tuple(dict.fromkeys((own, "localhost", "127.0.0.1", "[::1]", "::1")))

    def app_url(self, host: str) -> str:
        """Address of an app by one of its host names, ending in `/`."""
        parts = urlsplit(self.url)
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{host}{port}/"

    def passed_environment(self, environ: Mapping[str, str] | None = None) -> dict[str, str]:
        environ = os.environ if environ is None else environ
        return {name: environ[name] for name in self.pass_environment.split(",") if name and name in environ}


MODES: Mapping[str, Mapping[str, str]] = {
    "embedded": {},
    "single-host": {"queue": "celery", "builder": "docker", "orchestrator": "docker"},
}
"""What each mode sets where nothing else is said."""
CHOICES: Mapping[str, tuple[str, ...]] = {
    "queue": ("threads", "celery"),
    "builder": ("venv", "docker"),
    "orchestrator": ("process", "docker"),
}
FOREIGN = frozenset({"SPACES_ZERO_GPU", "SPACES_ZERO_DEVICE_API_URL", "SPACES_TOKEN", "SPACES_URL"})
"""Variables with our prefix that belong to the `spaces` package of app authors, or to the command line."""


def _parse(key: str, text: str, kind: Any) -> Any:
    if isinstance(kind, types.UnionType):
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    try:
        if kind is bool:
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.lower()]
        if kind is Path:
            return Path(text).expanduser()
        return kind(text)
    except (KeyError, ValueError) as exc:
        raise Invalid(f"{key}={text!r} is not a valid {kind.__name__}.") from exc
