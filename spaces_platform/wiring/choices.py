"""Which adapter stands behind each port: one function per port, in which the setting names the adapter.

Owns: what the platform's settings say to an adapter. Does not own: how the parts are put together (`assembly`). What
only the modes with Celery or containers need is imported where it is chosen: the others do not have it installed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Network
from typing import TYPE_CHECKING

from builders.types import Builder, BuildLimits
from builders.uv import index_settings
from builders.venv import LocalArtifact as Built
from builders.venv import VenvBuilder
from spaces_platform.adapters.dns import DnsTxt
from spaces_platform.adapters.file_logs import FileLogStore
from spaces_platform.adapters.git import GitRepoStore, PushLimits
from spaces_platform.adapters.http_hub import HttpHub
from spaces_platform.adapters.process import LocalArtifact, ProcessOrchestrator
from spaces_platform.adapters.process.sandbox import Level
from spaces_platform.adapters.process.settings import ProcessSettings, network_environment
from spaces_platform.adapters.thread_queue import ThreadQueue
from spaces_platform.build_inputs import Hubs
from spaces_platform.errors import Invalid, Unavailable
from spaces_platform.hub import TOKEN, OwnHub, SpaceHub
from spaces_platform.models import Space
from spaces_platform.ports import Clock, Isolation, LogStore, Orchestrator, Queue, RepoStore, Task, TxtRecords
from spaces_platform.settings import Settings
from spaces_platform.store import Store
from spaces_platform.wiring import containers

if TYPE_CHECKING:
    from spaces_platform.adapters.celery_app import CeleryConfig
    from spaces_platform.adapters.redis_hints import RedisHints

log = logging.getLogger(__name__)
BUILD_UID = 199999
"""As root, builds run as this user, just below those of the apps (`ProcessSettings.uid_base`)."""


def repos(settings: Settings) -> RepoStore:
    """Bare repositories, within the settings' bounds on pushes."""
    limits = PushLimits(
        pack_bytes=settings.push_mb << 20, repo_bytes=settings.repo_mb << 20, file_bytes=settings.file_mb << 20
    )
    return GitRepoStore(settings.data / "repos", limits=limits)


def queue(settings: Settings) -> tuple[Queue, RedisHints | None]:
    """The queue, and the channel by which workers of their own are heard, where there are such."""
    reconcilers = max(4, os.cpu_count() or 1)
    if settings.queue == "celery":
        hints = _hints(settings)
        return _celery_queue(settings, hints, reconcilers), hints
    pools = {Task.RECONCILE: reconcilers, Task.BUILD: settings.build_slots, Task.HOUSEKEEPING: 1}
    return ThreadQueue(pools), None


def worker_queue(settings: Settings) -> tuple[Queue, RedisHints]:
    """The queue of a worker's process, and the channel by which it is heard."""
    hints = _hints(settings)
    return _celery_queue(settings, hints, reconcilers=0), hints


def _hints(settings: Settings) -> RedisHints:
    from spaces_platform.adapters.redis_hints import RedisHints

    return RedisHints(settings.redis, f"{settings.queue_prefix}:hints")


def _celery_queue(settings: Settings, hints: RedisHints, reconcilers: int) -> Queue:
    from spaces_platform.adapters.celery_app import make_app
    from spaces_platform.adapters.celery_queue import CeleryQueue

    return CeleryQueue(make_app(celery_config(settings)), hints, reconcilers=reconcilers)


def celery_config(settings: Settings) -> CeleryConfig:
    """What the platform's settings say to Celery, in the control plane and in workers."""
    from spaces_platform.adapters.celery_app import CeleryConfig

    return CeleryConfig(settings.redis, settings.queue_prefix, settings.build_seconds)


def logs(settings: Settings, clock: Clock) -> LogStore:
    """The same files with and without workers: each append holds a lock of the kernel."""
    return FileLogStore(settings.data / "logs", clock=clock)


def dns(settings: Settings) -> TxtRecords:
    """The name servers that prove people's own domains."""
    return DnsTxt(settings.dns)


def hubs(settings: Settings, store: Store, repos: RepoStore) -> Hubs:
    """What each Space may read by preload_from_hub. Raises Invalid."""
    endpoint = settings.hub_endpoint
    allow = []
    try:
        if endpoint:
            HttpHub(endpoint)
        for one in filter(None, (one.strip() for one in settings.egress_allow.split(","))):
            network, _, port = one.partition(":")
            allow.append((IPv4Network(network), int(port or 0)))
    except ValueError as exc:
        raise Invalid(f"hub_endpoint or egress_allow: {exc}.") from exc

    def of(space: Space, secrets: Mapping[str, str]) -> SpaceHub:
        token = secrets.get(TOKEN, "")
        other = HttpHub(endpoint, token=token, ca_bundle=settings.ca_bundle, allow=allow) if endpoint else None
        return SpaceHub(OwnHub(store, repos, space.owner_id), other)

    return of


def builder(settings: Settings) -> tuple[Builder, Callable[[], Sequence[str]]]:
    """The builder, and the Python versions it has at hand. Raises Invalid, Unavailable."""
    limits = BuildLimits(
        seconds=settings.build_seconds,
        memory=settings.build_memory_mb << 20,
        disk=settings.build_disk_mb << 20,
        processes=settings.build_processes,
        preload=settings.preload_mb << 20,
    )
    if settings.builder == "docker":
        return containers.builder(settings, limits)
    venvs = VenvBuilder(
        settings.data / "artifacts",
        limits=limits,
        index=index_settings(settings.passed_environment()),
        run_as=(BUILD_UID, BUILD_UID) if os.geteuid() == 0 and settings.isolation != "off" else None,
        hidden=[settings.data],
    )
    for warning in venvs.warnings:
        log.warning("%s", warning)
    return venvs, lambda: venvs.available_pythons


def orchestrator(
    settings: Settings, clock: Clock, builder: Builder, changed: Callable[[int], None]
) -> tuple[Orchestrator, Isolation]:
    """The orchestrator, and how well it keeps apps apart here. Raises Invalid, Unavailable."""
    match settings.orchestrator:
        case "docker":
            return containers.orchestrator(settings, clock, changed)
        case _:
            return _processes(settings, clock, builder, changed)


def _processes(
    settings: Settings, clock: Clock, builder: Builder, changed: Callable[[int], None]
) -> tuple[Orchestrator, Isolation]:
    assert isinstance(builder, VenvBuilder)  # noqa: S101 - Settings.check sees to it
    venvs = builder
    orchestrator = ProcessOrchestrator(
        settings.data / "apps",
        resolve_artifact=lambda ref: _local(venvs.resolve(ref)),
        clock=clock,
        changed=changed,
        settings=ProcessSettings(
            level=Level.NONE if settings.isolation == "off" else None,
            platform_env=network_environment(settings.passed_environment()),
        ),
    )
    found = orchestrator.isolation()
    if settings.isolation == "required" and not found.safe_for_strangers:
        raise Unavailable(f"isolation is required, but apps would run with: {found.words}. Install bubblewrap.")
    return orchestrator, Isolation(str(found.level), found.words, found.holds, found.lacks)


def _local(built: Built) -> LocalArtifact:
    """The builder's answer in the orchestrator's words."""
    extra = [built.python_prefix, *([built.python_path] if built.python_path is not None else [])]
    return LocalArtifact(built.app_dir, built.environment_dir, tuple(extra), built.hub_dir)
