"""The platform as one object: everything that was wired, its loops, and how its life begins and ends.

Owns: the order of start and end, taking up what an earlier process left, what is done again and again and how often,
and what a hint leads to, here and in a worker's process. Does not own: which technologies it runs on (`wiring`), the
process around it (`control`, `worker`).
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import update
from sqlmodel import col, select

from builders.types import Builder, BuilderUnavailable
from spaces_platform.accounts import Accounts
from spaces_platform.builds import Builds
from spaces_platform.deployments import Deployments
from spaces_platform.domains import Domains
from spaces_platform.errors import PlatformError
from spaces_platform.frozen import FrozenApps
from spaces_platform.gpus import Gpus
from spaces_platform.hardware import Hardware
from spaces_platform.housekeeping import HOUSEKEEPING_SECONDS, Housekeeping
from spaces_platform.lease import ControlLease
from spaces_platform.logs import LogFeed
from spaces_platform.models import Account, Build, Space
from spaces_platform.ports import Clock, Isolation, LogStore, Orchestrator, Queue, RepoStore, RunStatus, Task
from spaces_platform.quotas import Quotas
from spaces_platform.reconciler import Reconciler
from spaces_platform.routing import RouteFeed, Routes
from spaces_platform.secrets import Vault
from spaces_platform.settings import Settings
from spaces_platform.space_directory import SpaceDirectory
from spaces_platform.space_settings import SpaceSettings
from spaces_platform.spaces import Spaces
from spaces_platform.store import Store
from spaces_platform.sweep import Sweep
from spaces_platform.traffic import Traffic
from spaces_platform.volumes import SpaceVolumes

log = logging.getLogger(__name__)

SWEEP_SECONDS = 1.0
LOST_BUILDS_SECONDS = 5.0
PRESSURE_SECONDS = 5.0
SLOW_SWEEP_SECONDS = 15.0
AUDIT_SECONDS = 600.0
DOMAIN_SECONDS = 30.0
STOP_SECONDS = 7.0
"""How long apps may take to end when the platform stops; less than the supervisor gives the control plane."""


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
    directory: SpaceDirectory
    space_settings: SpaceSettings
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
            (SWEEP_SECONDS if self.gpus.hardware.gpus else SLOW_SWEEP_SECONDS, self.release_gpus),
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


def may_build(settings: Settings, builder: Builder) -> bool:
    """Whether both the platform's disk and that of artifacts are above the floor that keeps apps and database alive."""
    try:
        free = min(shutil.disk_usage(settings.data).free, builder.free_disk())
    except BuilderUnavailable:
        return True  # the build itself says so, and is tried again
    return free >= settings.disk_floor_mb << 20
