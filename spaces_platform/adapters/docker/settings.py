"""Settings of the Docker orchestrator: every figure an admin may change, with its unit. Values only."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class DockerSettings:
    """How containers are run."""

    url: str = "unix:///var/run/docker.sock"
    runtime: str = ""
    """For example `runsc`; empty for the engine's default."""
    ca_bundle: str = ""
    """File on the host with the certificates that apps are to trust; empty to leave them the image's own."""
    subnets: str = "10.213.0.0/16"
    """What the networks of the Spaces are cut from, 16 addresses each."""
    idle_networks: int = 64
    """Networks of Spaces without a container that are kept, so that a wake need not make one."""
    egress_ports: tuple[int, ...] = (80, 443, 8080)
    """TCP ports that apps may connect to on public addresses."""
    egress_allow: tuple[str, ...] = ()
    """`10.0.0.5:3128`, `10.1.0.0/16`: what else they may reach."""
    fence: bool = True
    """Keep apps from the host and from private addresses by packet filter rules; needs root."""
    disks: bool = True
    """Give each app a disk of fixed size; needs root on the machine of the engine."""
    user: int = 1000
    """User and group id inside every container, as on the Hub."""
    open_files: int = 65536
    connect_interval: float = 0.01
    connect_interval_late: float = 0.25
    """Seconds between connects to a starting app, at first and after 30 seconds; longer while many start at once."""
    http_timeout: float = 5.0
    listening_after: float = 3.0
    """Seconds an app may listen somewhere else before Observation.listening says so."""


def instance_of(root: Path) -> str:
    """What tells one platform's containers, networks and rules from another's on the same engine: 8 hex digits."""
    return hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:8]
