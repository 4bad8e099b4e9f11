"""The adapters that need a container engine: builder and orchestrator, and what keeps build steps from networks inside.

Owns: what the platform's settings say to them, and refusing where the setting asks for more than this machine gives.
They are imported where they are made: without containers their packages need not be installed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import runtime_images
from builders.types import Builder, BuildLimits
from spaces_platform.errors import Invalid, PlatformError, Unavailable
from spaces_platform.ports import Clock, Isolation, Orchestrator
from spaces_platform.settings import Settings

if TYPE_CHECKING:
    from spaces_platform.adapters.docker import DockerSettings

log = logging.getLogger(__name__)


def builder(settings: Settings, limits: BuildLimits) -> tuple[Builder, Callable[[], Sequence[str]]]:
    """Images by BuildKit, and the Python versions they can have. Raises Invalid, Unavailable."""
    from builders.containers.builder import DockerBuilder
    from builders.containers.client import ClientMissing
    from builders.containers.options import make_options

    catalogue = runtime_images.load()
    try:
        options = make_options(
            catalogue,
            settings.passed_environment(),
            ca=Path(settings.ca_bundle).read_bytes() if settings.ca_bundle else b"",
            apt_mirror=settings.apt_mirror,
            engine=settings.docker,
            registry=settings.registry,
            limits=limits,
            slots=settings.build_slots,
            cpus=settings.build_cpus,
            reserve=settings.disk_floor_mb << 20,
            cache_bytes=settings.build_cache_mb << 20,
            sources=frozenset(name.strip() for name in settings.image_sources.split(",") if name.strip()),
            **_build_fence(settings),
        )
        return DockerBuilder(settings.data / "images", options), lambda: (catalogue.python_default,)
    except (ClientMissing, OSError, ValueError) as exc:
        raise Unavailable(f"Container builds cannot work here: {exc}") from exc


def _build_fence(settings: Settings) -> dict[str, Any]:
    """What keeps build steps from internal networks: put up anew by every build, and taken down in the end."""
    from spaces_platform.adapters.docker.build_fences import BuildFence, name_of, remove_stale
    from spaces_platform.adapters.docker.fence import build_fence

    if settings.isolation == "off":
        return {}
    if os.geteuid() != 0:
        if settings.isolation == "required":
            raise Unavailable("isolation is required, but only root can keep builds from internal networks.")
        log.warning("builds are not kept from internal networks: the platform is not root")
        return {}
    fence = BuildFence(build_fence(name_of(settings.data), _docker_settings(settings)))

    def take_down(step: Callable[[], object]) -> object:
        """What is left of it narrows what builds reach, and no more: no reason not to start, or not to stop."""
        try:
            return step()
        except PlatformError as exc:
            log.warning("a fence around builds is left: %s", exc)
            return []

    if names := take_down(remove_stale):
        log.info("fences of platforms that are gone are taken down", extra={"fences": names})
    return {"fence": fence.building, "unfence": lambda: take_down(fence.release)}


def orchestrator(settings: Settings, clock: Clock, changed: Callable[[int], None]) -> tuple[Orchestrator, Isolation]:
    """Apps as containers, and how well they are kept apart. Raises Invalid, Unavailable."""
    from spaces_platform.adapters.docker import DockerOrchestrator

    docker = DockerOrchestrator(
        settings.data / "containers", clock=clock, changed=changed, settings=_docker_settings(settings)
    )
    found = docker.isolation()
    if settings.isolation == "required" and not docker.safe_for_strangers:
        docker.close()
        raise Unavailable(f"isolation is required, but apps would run with: {found.words}. {'; '.join(found.lacks)}.")
    return docker, found


def _docker_settings(settings: Settings) -> DockerSettings:
    """What the platform's settings say to the Docker adapter. Raises Invalid."""
    from spaces_platform.adapters.docker import DockerSettings

    ports = [port.strip() for port in settings.egress_ports.split(",") if port.strip()]
    if not all(port.isdecimal() for port in ports):
        raise Invalid(f"egress_ports {settings.egress_ports!r} is not a list of ports like 80,443")
    return DockerSettings(
        url=settings.docker,
        runtime=settings.container_runtime,
        ca_bundle=settings.ca_bundle,
        subnets=settings.app_subnets,
        egress_ports=tuple(map(int, ports)),
        egress_allow=tuple(one.strip() for one in settings.egress_allow.split(",") if one.strip()),
        fence=settings.isolation != "off",
    )
