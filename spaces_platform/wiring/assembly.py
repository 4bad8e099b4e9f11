"""The parts become one: from settings to a Platform or a Worker on the adapters that the settings name.

Owns: which use case is given what. Does not own: which adapter stands behind a port (`choices`), nor what is done with
the whole (`spaces_platform.platform`).
"""

from __future__ import annotations

import os
import shutil
import socket
from functools import partial
from typing import TYPE_CHECKING

from sqlalchemy import bindparam
from sqlmodel import select

import runtime_images
from builders.types import Builder
from spaces_platform import build_inputs
from spaces_platform.accounts import Accounts
from spaces_platform.build_files import BuildFiles
from spaces_platform.builds import Builds
from spaces_platform.clock import SystemClock
from spaces_platform.deployments import Deployments
from spaces_platform.domains import Domains
from spaces_platform.frozen import FrozenApps, machine_memory
from spaces_platform.gpus import Gpus
from spaces_platform.hardware import NO_GPUS, Hardware, Machine, parse_gpus
from spaces_platform.housekeeping import Housekeeping
from spaces_platform.lease import ControlLease
from spaces_platform.logs import AnnouncedLogs, LogFeed
from spaces_platform.models import Deployment
from spaces_platform.platform import Platform, Worker, may_build
from spaces_platform.ports import (
    Clock,
    Freezer,
    GpuHost,
    Isolation,
    LogStore,
    Orchestrator,
    Queue,
    RepoStore,
    Task,
    TxtRecords,
    VolumeHost,
    Volumes,
)
from spaces_platform.quotas import Quotas
from spaces_platform.reconciler import Planner, Reconciler
from spaces_platform.routing import RouteFeed, Routes, Told
from spaces_platform.secrets import Vault
from spaces_platform.settings import Settings
from spaces_platform.space_directory import SpaceDirectory
from spaces_platform.space_settings import SpaceSettings
from spaces_platform.space_writes import SpaceWrites
from spaces_platform.spaces import Spaces
from spaces_platform.storage import Storage
from spaces_platform.store import Store
from spaces_platform.sweep import Sweep
from spaces_platform.traffic import Traffic
from spaces_platform.volumes import SpaceVolumes
from spaces_platform.wiring import choices

if TYPE_CHECKING:
    from spaces_platform.adapters.redis_hints import RedisHints

CHANGED, GREW = "changed", "grew"
"""Words of workers: a Space's progress changed (its id), a log stream grew (its name)."""


def build_platform(settings: Settings) -> Platform:
    """Wire the platform that the settings describe. Starts nothing. Raises Invalid, Unavailable."""
    settings.data.mkdir(parents=True, exist_ok=True, mode=0o711)
    (settings.data / "run").mkdir(exist_ok=True, mode=0o700)
    clock = SystemClock()
    store = Store(settings.database_url)
    queue, hints = choices.queue(settings)
    builder, pythons = choices.builder(settings)
    orchestrator, isolation = choices.orchestrator(
        settings, clock, builder, lambda deployment_id: _deployment_changed(store, queue, deployment_id)
    )
    platform = assemble(
        settings, clock=clock, store=store, vault=Vault.load(settings.data / "keys"), repos=choices.repos(settings),
        builder=builder, orchestrator=orchestrator, logs=choices.logs(settings, clock), queue=queue,
        planner=Planner(runtime_images.load(), pythons, settings.builder == "docker"), isolation=isolation,
        volumes=orchestrator.persistent() if isinstance(orchestrator, VolumeHost) else None,
    )  # fmt: skip
    hear(platform, hints)
    return platform


def hear(platform: Platform, hints: RedisHints | None) -> None:
    """Let what workers tell be heard by those who follow it here."""
    if hints is not None:
        hints.on_id(CHANGED, platform.feed.changed)
        hints.on_name(GREW, platform.log_feed.changed)


def build_worker(settings: Settings) -> Worker:
    """Wire what a worker process needs: no orchestrator, no sweep, no API. Raises Invalid, Unavailable."""
    clock = SystemClock()
    builder, _ = choices.builder(settings)
    return assemble_worker(
        settings, clock=clock, store=Store(settings.database_url), vault=Vault.load(settings.data / "keys"),
        repos=choices.repos(settings), builder=builder, logs=choices.logs(settings, clock),
    )  # fmt: skip


def assemble_worker(
    settings: Settings, *, clock: Clock, store: Store, vault: Vault, repos: RepoStore, builder: Builder, logs: LogStore
) -> Worker:
    """A worker on these adapters. What it does is heard by the control process, through Redis."""
    queue, hints = choices.worker_queue(settings)
    logs = AnnouncedLogs(logs, lambda stream: hints.tell(GREW, stream))
    feed = Told(lambda space_id: hints.tell(CHANGED, space_id))
    files = BuildFiles(settings.data / "builds")
    inputs = partial(build_inputs.gather, store, vault, choices.hubs(settings, store, repos))
    builds = Builds(store, clock, repos, builder, logs, queue, feed, settings.build_slots, inputs, files)
    builds.is_disk_free = lambda: may_build(settings, builder)
    return Worker(builds, Housekeeping(store, clock, repos, builder, logs, files), queue, store)


def assemble(
    settings: Settings,
    *,
    clock: Clock,
    store: Store,
    vault: Vault,
    repos: RepoStore,
    builder: Builder,
    orchestrator: Orchestrator,
    logs: LogStore,
    queue: Queue,
    planner: Planner,
    isolation: Isolation,
    dns: TxtRecords | None = None,
    volumes: Volumes | None = None,
) -> Platform:
    """The platform on these adapters. Starts nothing."""
    feed, log_feed, traffic = RouteFeed(), LogFeed(), Traffic()
    hardware = _hardware(settings, orchestrator)
    gpus = Gpus(store, clock, queue, hardware, settings)
    logs = AnnouncedLogs(logs, log_feed.changed)
    accounts = Accounts(store, clock)
    storage = Storage(settings, volumes)
    space_volumes = SpaceVolumes(
        store, clock, storage, lambda: shutil.disk_usage(settings.data).free, settings.disk_floor_mb << 20
    )
    writes = SpaceWrites(store, clock, queue, feed)
    space_settings = SpaceSettings(store, clock, writes, vault, hardware, storage)
    spaces = Spaces(store, clock, repos, queue, settings, storage, writes, space_settings)
    files = BuildFiles(settings.data / "builds")
    inputs = partial(build_inputs.gather, store, vault, choices.hubs(settings, store, repos))
    builds = Builds(store, clock, repos, builder, logs, queue, feed, settings.build_slots, inputs, files)
    freezer = orchestrator if isinstance(orchestrator, Freezer) else None
    deployments = Deployments(store, clock, orchestrator, vault, settings, feed, logs, gpus, storage, freezer)
    frozen = FrozenApps(store, clock, orchestrator, freezer, queue, settings)
    reconciler = Reconciler(
        store, clock, repos, builds, deployments, traffic, queue, feed, settings, planner, frozen, gpus, space_volumes
    )
    housekeeping = Housekeeping(store, clock, repos, builder, logs, files)
    sweep = Sweep(store, clock, repos, orchestrator, traffic, queue, spaces.unrecorded)
    platform = Platform(
        settings, clock, store, vault, repos, builder, orchestrator, logs, queue, feed, log_feed, traffic,
        Routes(store, settings), accounts, SpaceDirectory(store, settings), space_settings, spaces, builds,
        deployments, reconciler, sweep, frozen, housekeeping,
        Domains(store, clock, settings, feed, dns or choices.dns(settings)), isolation, hardware, gpus,
        Quotas(store, clock, queue, settings), space_volumes,
        None if store.is_sqlite else ControlLease(store, f"{socket.gethostname()}:{settings.data.resolve()}"),
    )  # fmt: skip
    builds.is_disk_free, builds.is_stopping = lambda: may_build(settings, builder), platform.is_stopping
    return platform


def _hardware(settings: Settings, orchestrator: Orchestrator | None = None) -> Hardware:
    """This machine, and the GPUs that the setting names or else the orchestrator has. Raises Invalid."""
    if settings.gpus:
        gpus = () if settings.gpus == NO_GPUS else parse_gpus(settings.gpus)
    else:
        gpus = tuple(orchestrator.gpus()) if isinstance(orchestrator, GpuHost) else ()
    return Hardware(settings, Machine(float(os.cpu_count() or 1), machine_memory().total), gpus)


# Prepared once: the watcher of apps asks for every app that has started.
_SPACE_OF = select(Deployment.space_id).where(Deployment.id == bindparam("deployment"))


def _deployment_changed(store: Store, queue: Queue, deployment_id: int) -> None:
    with store.read() as db:
        space_id = db.execute(_SPACE_OF, {"deployment": deployment_id}).scalars().first()
    if space_id is not None:
        queue.send(Task.RECONCILE, space_id)
