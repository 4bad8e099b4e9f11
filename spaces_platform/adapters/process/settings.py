"""Settings of the process orchestrator: every figure an admin may change, with its unit. Values only."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .sandbox import Level

PASSED_ON = (
    "http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
)  # fmt: skip
"""Variables of the platform that an app needs to reach the network, and the only ones it may get."""


def network_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that apps may have."""
    return {name: environ[name] for name in PASSED_ON if name in environ}


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    """How processes are run."""

    level: Level | None = None
    """Insist on one level of isolation (Unavailable where it does not work); None takes the best that works."""
    cgroups: bool = True
    """Use control groups where they are writable; else limits are watched."""
    port_first: int = 20000
    port_last: int = 29999
    uid_base: int = 200000
    """As root, the apps of Space n run as this user id plus n."""
    platform_env: Mapping[str, str] = field(default_factory=dict)
    """Given to every app; see `network_environment`."""
    read_only_paths: tuple[Path, ...] = ()
    """Places outside /usr that every app may read (`/opt/cuda`)."""
    platform_python: Path = Path(os.path.realpath(sys.executable))
    """Stands for `{PLATFORM_PYTHON}` in argv and environment values."""
    copy_limit: int = 64 << 20
    """Bytes; a larger app is shown read-only instead of copied, where the level can do that."""
    log_rate: int = 1 << 20
    """Bytes per second of an app's output that are kept, at most an eighth of its log."""
    open_files: int = 65536
    file_size: int = 4 << 30
    """Bytes of the largest single file an app may write."""
    connect_interval: float = 0.01
    connect_interval_late: float = 0.25
    """Seconds between connects to a starting app, at first and after 30 seconds; longer while many start at once."""
    http_timeout: float = 5.0
    listening_after: float = 3.0
    """Seconds an app may listen somewhere else before Observation.listening says so."""
