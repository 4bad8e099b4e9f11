"""The composition root: settings in, a working Platform out. The only module that imports adapters."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import update
from sqlmodel import col, select

import runtime_images
from builders.types import Builder, BuilderUnavailable, BuildLimits
from builders.uv import index_settings
from builders.venv import LocalArtifact as Built
from builders.venv import VenvBuilder
from spaces_platform import build_inputs
from spaces_platform.accounts import Accounts
from spaces_platform.adapters.dns import DnsTxt
from spaces_platform.adapters.file_logs import FileLogStore
from spaces_platform.adapters.git import GitRepoStore, PushLimits
from spaces_platform.adapters.http_hub import HttpHub
from spaces_platform.adapters.process import LocalArtifact, ProcessOrchestrator
from spaces_platform.adapters.process.sandbox import Level
from spaces_platform.adapters.process.settings import ProcessSettings, network_environment
from spaces_platform.adapters.thread_queue import ThreadQueue
from spaces_platform.build_files import BuildFiles
from spaces_platform.builds import Builds
from spaces_platform.clock import SystemClock
from spaces_platform.deployments import Deployments
from spaces_platform.domains import Domains
from spaces_platform.errors import Invalid, PlatformError, Unavailable
from spaces_platform.frozen import FrozenApps, machine_memory
from spaces_platform.gpus import Gpus
from spaces_platform.hardware import NO_GPUS, Hardware, Machine, parse_gpus
from spaces_platform.housekeeping import HOUSEKEEPING_SECONDS, Housekeeping
from spaces_platform.hub import TOKEN, OwnHub, SpaceHub
from spaces_platform.lease import ControlLease
from spaces_platform.logs import AnnouncedLogs, LogFeed
from spaces_platform.models import Account, Build, Deployment, Space
from spaces_platform.ports import (
    Clock,
    Freezer,
    GpuHost,
    Isolation,
    LogStore,
    Orchestrator,
    Queue,
    RepoStore,
    RunStatus,
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
from spaces_platform.spaces import Spaces
from spaces_platform.storage import Storage
from spaces_platform.store import Store
from spaces_platform.sweep import Sweep
from spaces_platform.traffic import Traffic
from spaces_platform.volumes import SpaceVolumes

if TYPE_CHECKING:
    from spaces_platform.adapters.celery_app import CeleryConfig
    from spaces_platform.adapters.docker import DockerSettings
    from spaces_platform.adapters.redis_hints import RedisHints

log = logging.getLogger(__name__)

SWEEP_SECONDS = 1.0
LOST_BUILDS_SECONDS = 5.0
PRESSURE_SECONDS = 5.0
SLOW_SWEEP_SECONDS = 15.0
AUDIT_SECONDS = 600.0
DOMAIN_SECONDS = 30.0
CHANGED, GREW = "changed", "grew"
"""Words of workers: a Space's progress changed (its id), a log stream grew (its name)."""
STOP_SECONDS = 7.0
"""How long apps may take to end when the platform stops; less than the supervisor gives the control plane."""
BUILD_UID = 199999
"""As root, builds run as this user, just below those of the apps (`ProcessSettings.uid_base`)."""


@dataclass
class Platform:
    """Everything, wired. `start()` begins work, `close()` ends it."""

    settings: Settings
    clock: Clock
    store: Store
    vault: Vault
    repos: RepoStore
    builder: Builder
    orchestrator: Orchestrator
    logs: LogStore
    queue: Queue
    feed: RouteFeed
    log_feed: LogFeed
    traffic: Traffic
    routes: Routes
    accounts: Accounts
    spaces: Spaces
    builds: Builds
    deployments: Deployments
    reconciler: Reconciler
    sweep: Sweep
    frozen: FrozenApps
    housekeeping: Housekeeping
    domains: Domains
    isolation: Isolation
    hardware: Hardware
    gpus: Gpus
    quotas: Quotas
    volumes: SpaceVolumes
    lease: ControlLease | None = None
    """On a database that other machines reach too."""
    superseded: Callable[[], None] = lambda: None
    """Called once another control plane has taken the database over; whoever runs this one is to end it."""
    _stopping: threading.Event = field(default_factory=threading.Event)
    _sweeper: threading.Thread | None = None

    def start(self) -> None:
        """Bring the schema up to date, take up what an earlier process left, and begin to work."""
        self.recover()
        if self.lease is not None:
            keep = (self._stopping, self.superseded)
            threading.Thread(target=self.lease.keep, args=keep, name="lease", daemon=True).start()
        self.queue.start(self.run)
        self._sweeper = threading.Thread(target=self._sweep_forever, name="sweep", daemon=True)
        self._sweeper.start()
        threading.Thread(target=self._keep_house_forever, name="housekeeping", daemon=True).start()
        threading.Thread(target=self._look_up_domains_forever, name="domains", daemon=True).start()

    def recover(self) -> None:
        """Bring the schema up to date and take up what an earlier process left."""
        self.store.migrate()
        if self.lease is not None:
            self.lease.acquire(self._stopping)
        self._make_admin()
        self._drop_claims()
        self.sweep.recover()
        self.builds.requeue_lost()

    def close(self, *, stop_apps: bool = False) -> None:
        """End all work. `stop_apps`: also the apps; they are asleep when the platform starts again."""
        self._stopping.set()
        if self._sweeper is not None:
            self._sweeper.join(10)
        self.queue.close()
        self.builder.close()
        if stop_apps:
            for deployment_id in self.orchestrator.observe():
                self.orchestrator.stop(deployment_id, grace=STOP_SECONDS - 2)
            self._wait_for_apps()
            self.sweep.put_all_to_sleep()
        self.orchestrator.close()
        if self.lease is not None:
            self.lease.give_back()
        self.store.close()

    def _wait_for_apps(self) -> None:
        deadline = time.monotonic() + STOP_SECONDS
        while any(seen.status is not RunStatus.EXITED for seen in self.orchestrator.observe().values()):
            if time.monotonic() >= deadline:
                log.warning("some apps have not ended in %s s", STOP_SECONDS)
                return
            threading.Event().wait(0.02)

    def release_gpus(self) -> None:
        """Take back the GPUs of deployments that have ended."""
        self.gpus.release_ended(self.orchestrator.observe)

    def is_disk_free(self) -> bool:
        """Whether pushes may be taken: the disk of repositories and database is above the floor."""
        return shutil.disk_usage(self.settings.data).free >= self.settings.disk_floor_mb << 20

    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    def run(self, task: Task, id: int) -> None:
        """What a hint asks for; the same for a pool's thread and any other worker."""
        match task:
            case Task.RECONCILE:
                self.reconciler.reconcile(id)
            case Task.BUILD:
                self.builds.run_next()
            case Task.HOUSEKEEPING:
                self.housekeeping.run_if_due()

    def _make_admin(self) -> None:
        """See to it that there is an admin, and a file with a token of theirs that only the platform's own user reads.

        A missing file is made anew with a new token: after a kill between the two, and for whoever lost it.
        """
        path = self.settings.data / "admin.token"
        with self.store.read() as db:
            admin = db.exec(select(Account).where(col(Account.is_admin)).order_by(col(Account.id))).first()
        if admin is not None and path.exists():
            return
        if admin is None:
            admin = self.accounts.create_user(self.settings.admin, is_admin=True)
        token = self.accounts.create_token(admin.id or 0, "admin")
        fresh = path.with_suffix(".new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(token + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)

    def _drop_claims(self) -> None:
        """This process alone reconciles (it holds the data directory, and the lease of a shared database): older
        claims are of dead ones.

        Where builds are done by processes of their own, those live on; a dead one's claims end by themselves.
        """
        with self.store.write() as tx:
            tx.execute(
                update(Space)
                .where(col(Space.claim_token).is_not(None))
                .values(claim_token=None, claimed_until=0.0, next_check_at=self.clock.now().timestamp())
            )
            if self.settings.queue == "threads":
                tx.execute(update(Build).where(col(Build.status) == "RUNNING").values(claimed_until=0.0))

    def _sweep_forever(self) -> None:
        self._repeat(
            (SWEEP_SECONDS, self.sweep.hint_due),
            (SWEEP_SECONDS, self.reconciler.release_left),
            (SWEEP_SECONDS, self.sweep.record_pushes),
            (SWEEP_SECONDS, self.builds.requeue_unrecorded),
            (SWEEP_SECONDS, self.release_gpus),
            (LOST_BUILDS_SECONDS, self.builds.requeue_lost),
            (PRESSURE_SECONDS, self.frozen.relieve),
            (SLOW_SWEEP_SECONDS, self.sweep.stop_orphans),
            (AUDIT_SECONDS, self.sweep.find_lost_pushes),
        )

    def _keep_house_forever(self) -> None:
        # Not at once: a start has better things to do, and so have its first visitors.
        self._stopping.wait(HOUSEKEEPING_SECONDS)
        self._repeat((HOUSEKEEPING_SECONDS, lambda: self.queue.send(Task.HOUSEKEEPING, 0)))

    def _look_up_domains_forever(self) -> None:
        # A thread of its own: strangers' name servers may be slow, and the sweep must not be.
        self._repeat((DOMAIN_SECONDS, self.domains.verify_due))

    def _repeat(self, *steps: tuple[float, Callable[[], object]]) -> None:
        """Run each step once per its period until the platform closes."""
        due = [0.0 for _ in steps]
        while not self._stopping.is_set():
            for n, (period, step) in enumerate(steps):
                if time.monotonic() >= due[n]:
                    due[n] = time.monotonic() + period
                    try:
                        step()
                    except PlatformError as exc:
                        if not exc.retryable:
                            log.exception("step failed", extra={"step": getattr(step, "__name__", "")})
                        else:
                            log.warning("step put off: %s", exc, extra={"step": getattr(step, "__name__", "")})
                    except Exception:
                        # The sweep is what heals everything else; it goes on, and says that it could not.
                        log.exception("step failed", extra={"step": getattr(step, "__name__", "")})
            self._stopping.wait(max(SWEEP_SECONDS, min(due) - time.monotonic()))


def build_platform(settings: Settings) -> Platform:
    """Wire the platform that the settings describe. Starts nothing. Raises Invalid, Unavailable."""
    settings.data.mkdir(parents=True, exist_ok=True, mode=0o711)
    (settings.data / "run").mkdir(exist_ok=True, mode=0o700)
    clock = SystemClock()
    store = Store(settings.database_url)
    queue, hints = _queue(settings)
    builder, pythons = _builder(settings)
    orchestrator, isolation = _orchestrator(
        settings, clock, builder, lambda deployment_id: _deployment_changed(store, queue, deployment_id)
    )
    platform = assemble(
        settings, clock=clock, store=store, vault=Vault.load(settings.data / "keys"), repos=_repos(settings),
        builder=builder, orchestrator=orchestrator, logs=_logs(settings, clock), queue=queue,
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


@dataclass
class Worker:
    """What a process needs that does builds and small work for a control process."""

    builds: Builds
    housekeeping: Housekeeping
    queue: Queue
    store: Store

    def run(self, task: Task) -> None:
        """What a message asks for."""
        if task is Task.BUILD:
            self.builds.run_next()
        elif task is Task.HOUSEKEEPING:
            self.housekeeping.run_if_due()

    def close(self) -> None:
        """Send what waits, within bounds."""
        self.queue.close()
        self.builds.builder.close()
        self.store.close()


def build_worker(settings: Settings) -> Worker:
    """Wire what a worker process needs: no orchestrator, no sweep, no API. Raises Invalid, Unavailable."""
    clock = SystemClock()
    builder, _ = _builder(settings)
    return assemble_worker(
        settings, clock=clock, store=Store(settings.database_url), vault=Vault.load(settings.data / "keys"),
        repos=_repos(settings), builder=builder, logs=_logs(settings, clock),
    )  # fmt: skip


def assemble_worker(
    settings: Settings, *, clock: Clock, store: Store, vault: Vault, repos: RepoStore, builder: Builder, logs: LogStore
) -> Worker:
    """A worker on these adapters. What it does is heard by the control process, through Redis."""
    hints = _hints(settings)
    queue = _celery_queue(settings, hints, reconcilers=0)
    logs = AnnouncedLogs(logs, lambda stream: hints.tell(GREW, stream))
    feed = Told(lambda space_id: hints.tell(CHANGED, space_id))
    files = BuildFiles(settings.data / "builds")
    inputs = partial(build_inputs.gather, store, vault, _hubs(settings, store, repos))
    builds = Builds(store, clock, repos, builder, logs, queue, feed, settings.build_slots, inputs, files)
    builds.is_disk_free = lambda: may_build(settings, builder)
    return Worker(builds, Housekeeping(store, clock, repos, builder, logs, files), queue, store)


def may_build(settings: Settings, builder: Builder) -> bool:
    """Whether both the platform's disk and that of artifacts are above the floor that keeps apps and database alive."""
    try:
        free = min(shutil.disk_usage(settings.data).free, builder.free_disk())
    except BuilderUnavailable:
        return True  # the build itself says so, and is tried again
    return free >= settings.disk_floor_mb << 20


# --- one function per port: the setting names the adapter ---------------------------------------
def _repos(settings: Settings) -> RepoStore:
    limits = PushLimits(
        pack_bytes=settings.push_mb << 20, repo_bytes=settings.repo_mb << 20, file_bytes=settings.file_mb << 20
    )
    return GitRepoStore(settings.data / "repos", limits=limits)


def _queue(settings: Settings) -> tuple[Queue, RedisHints | None]:
    """The queue, and the channel by which workers of their own are heard, where there are such."""
    reconcilers = max(4, os.cpu_count() or 1)
    if settings.queue == "celery":
        hints = _hints(settings)
        return _celery_queue(settings, hints, reconcilers), hints
    pools = {Task.RECONCILE: reconcilers, Task.BUILD: settings.build_slots, Task.HOUSEKEEPING: 1}
    return ThreadQueue(pools), None


def _hints(settings: Settings) -> RedisHints:
    from spaces_platform.adapters.redis_hints import RedisHints

    return RedisHints(settings.redis, f"{settings.queue_prefix}:hints")


def _celery_queue(settings: Settings, hints: RedisHints, reconcilers: int) -> Queue:
    from spaces_platform.adapters.celery_app import make_app
    from spaces_platform.adapters.celery_queue import CeleryQueue

    return CeleryQueue(make_app(celery_config(settings)), hints, reconcilers=reconcilers)


def celery_config(settings: Settings) -> CeleryConfig:
    from spaces_platform.adapters.celery_app import CeleryConfig

    return CeleryConfig(settings.redis, settings.queue_prefix, settings.build_seconds)


def _logs(settings: Settings, clock: Clock) -> LogStore:
    return FileLogStore(settings.data / "logs", clock=clock)


def _hubs(settings: Settings, store: Store, repos: RepoStore) -> build_inputs.Hubs:
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

    def hubs(space: Space, secrets: Mapping[str, str]) -> SpaceHub:
        token = secrets.get(TOKEN, "")
        other = HttpHub(endpoint, token=token, ca_bundle=settings.ca_bundle, allow=allow) if endpoint else None
        return SpaceHub(OwnHub(store, repos, space.owner_id), other)

    return hubs


def _builder(settings: Settings) -> tuple[Builder, Callable[[], Sequence[str]]]:
    """The builder, and the Python versions it has at hand."""
    limits = BuildLimits(
        seconds=settings.build_seconds,
        memory=settings.build_memory_mb << 20,
        disk=settings.build_disk_mb << 20,
        processes=settings.build_processes,
        preload=settings.preload_mb << 20,
    )
    if settings.builder == "docker":
        return _docker_builder(settings, limits)
    builder = VenvBuilder(
        settings.data / "artifacts",
        limits=limits,
        index=index_settings(settings.passed_environment()),
        run_as=(BUILD_UID, BUILD_UID) if os.geteuid() == 0 and settings.isolation != "off" else None,
        hidden=[settings.data],
    )
    return builder, lambda: builder.available_pythons


def _docker_builder(settings: Settings, limits: BuildLimits) -> tuple[Builder, Callable[[], Sequence[str]]]:
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
    fence = BuildFence(build_fence(name_of(settings.data), docker_settings(settings)))

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


def _orchestrator(
    settings: Settings, clock: Clock, builder: Builder, changed: Callable[[int], None]
) -> tuple[Orchestrator, Isolation]:
    """The orchestrator, and how well it keeps apps apart here."""
    match settings.orchestrator:
        case "docker":
            return _docker(settings, clock, changed)
        case _:
            return _processes(settings, clock, builder, changed)


def _docker(settings: Settings, clock: Clock, changed: Callable[[int], None]) -> tuple[Orchestrator, Isolation]:
    from spaces_platform.adapters.docker import DockerOrchestrator

    orchestrator = DockerOrchestrator(
        settings.data / "containers", clock=clock, changed=changed, settings=docker_settings(settings)
    )
    found = orchestrator.isolation()
    if settings.isolation == "required" and not orchestrator.safe_for_strangers:
        orchestrator.close()
        raise Unavailable(f"isolation is required, but apps would run with: {found.words}. {'; '.join(found.lacks)}.")
    return orchestrator, found


def docker_settings(settings: Settings) -> DockerSettings:
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


def hardware_of(settings: Settings, orchestrator: Orchestrator | None = None) -> Hardware:
    """This machine, and the GPUs that the setting names or else the orchestrator has. Raises Invalid."""
    if settings.gpus:
        gpus = () if settings.gpus == NO_GPUS else parse_gpus(settings.gpus)
    else:
        gpus = tuple(orchestrator.gpus()) if isinstance(orchestrator, GpuHost) else ()
    return Hardware(settings, Machine(float(os.cpu_count() or 1), machine_memory().total), gpus)


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
    hardware = hardware_of(settings, orchestrator)
    gpus = Gpus(store, clock, queue, hardware, settings)
    logs = AnnouncedLogs(logs, log_feed.changed)
    accounts = Accounts(store, clock)
    storage = Storage(settings, volumes)
    space_volumes = SpaceVolumes(
        store, clock, storage, lambda: shutil.disk_usage(settings.data).free, settings.disk_floor_mb << 20
    )
    spaces = Spaces(store, clock, repos, queue, vault, settings, feed, hardware, storage)
    files = BuildFiles(settings.data / "builds")
    inputs = partial(build_inputs.gather, store, vault, _hubs(settings, store, repos))
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
        Routes(store, settings), accounts, spaces, builds, deployments, reconciler, sweep, frozen, housekeeping,
        Domains(store, clock, settings, feed, dns or DnsTxt(settings.dns)), isolation, hardware, gpus,
        Quotas(store, clock, queue, settings), space_volumes,
        None if store.is_sqlite else ControlLease(store, f"{socket.gethostname()}:{settings.data.resolve()}"),
    )  # fmt: skip
    builds.is_disk_free, builds.is_stopping = lambda: may_build(settings, builder), platform.is_stopping
    return platform


def _local(built: Built) -> LocalArtifact:
    """The builder's answer in the orchestrator's words."""
    extra = [built.python_prefix, *([built.python_path] if built.python_path is not None else [])]
    return LocalArtifact(built.app_dir, built.environment_dir, tuple(extra), built.hub_dir)


def _deployment_changed(store: Store, queue: Queue, deployment_id: int) -> None:
    with store.read() as db:
        space_id = db.exec(select(Deployment.space_id).where(Deployment.id == deployment_id)).first()
    if space_id is not None:
        queue.send(Task.RECONCILE, space_id)
