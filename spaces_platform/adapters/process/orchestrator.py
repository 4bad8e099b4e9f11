"""Runs deployments as processes of this machine. Owns what is known of each and every change of it.

Each app has a shim (shim/main.py) in a session of its own that outlives this process; everything needed to find it
again is under `root/deployments`. Invariants: nothing runs that is not recorded; a deployment is reported EXITED only
when no process of it is left; two live deployments never have one port.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import marshal
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, cast

from spaces_platform.errors import DiskFull, Invalid, PlatformError, Unavailable
from spaces_platform.ports import Clock, DeploymentSpec, LogLine, Observation, RunStatus

from . import cgroups, selfcheck
from .artifact import LocalArtifact
from .launch import Ground, launch
from .ports import PortRange
from .record import Ending, Record, empty
from .sandbox import Level
from .selfcheck import Isolation
from .settings import ProcessSettings
from .strays import end_strays
from .watcher import Known, Watcher

log = logging.getLogger(__name__)
_BOOT = "import sys; sys.path.append(sys.argv[1]); from shim.main import run; run()"
SPARE_DELAY = 2.0
"""Seconds after a start in which the new app needs the processor more than the next shim does."""
DROPPED = "[spaces] older output was dropped"


class ProcessOrchestrator:
    """The Orchestrator port for processes. Safe to call from any thread.

    `changed(id)` is called, from a thread of this object, when a deployment becomes READY or EXITED, is gone after
    `stop`, or is seen listening in the wrong place. `resolve_artifact` raises a PlatformError, or LookupError /
    FileNotFoundError for a reference that names nothing.
    """

    def __init__(
        self,
        root: Path,
        *,
        resolve_artifact: Callable[[str], LocalArtifact],
        clock: Clock,
        changed: Callable[[int], None],
        settings: ProcessSettings | None = None,
    ) -> None:
        """Check the isolation, then find every deployment that is still there. Raises Unavailable."""
        self._settings = settings or ProcessSettings()
        self._resolve, self._clock = resolve_artifact, clock
        self._root = root.resolve()
        self._deployments = self._root / "deployments"
        self._deployments.mkdir(parents=True, exist_ok=True)
        self._trash = self._root / "trash"
        self._trash.mkdir(exist_ok=True)
        for place, mode in ((self._root, 0o711), (self._deployments, 0o711), (self._trash, 0o700)):
            place.chmod(mode)
        tools = selfcheck.installed()
        self._isolation = selfcheck.check(self._root, self._settings, tools)
        prefix = f"spaces-{hashlib.sha256(str(self._root).encode()).hexdigest()[:8]}-"
        groups = cgroups.detect(prefix) if self._settings.cgroups else cgroups.Cgroups()
        self._ground = Ground(self._settings, self._isolation.level, tools, groups, prefix)
        self._ports = PortRange(self._settings.port_first, self._settings.port_last)
        self._lock = threading.Lock()
        self._known: dict[int, Known] = {}
        self._sizes: dict[str, bool] = {}
        self._spare: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._watcher = Watcher(self._settings, clock, changed, self._ended)
        self._adopt()

    # --- the port -----------------------------------------------------------------------------------------------------
    def start(self, spec: DeploymentSpec) -> None:
        """See the port. Returns when the shim has its orders; a failing sandbox or copy shows as EXITED, with a log."""
        with self._lock:
            if spec.id in self._known:
                return
            port = self._ports.take()
            record = Record(self._deployments / str(spec.id))
            at = self._clock.now()
            seen = Observation(
                RunStatus.STARTING,
                endpoint=f"127.0.0.1:{port}",
                started_at=at,
                probe="starting",
                isolation=self._isolation.words,
            )
            known = self._known[spec.id] = Known(spec.id, record, port, spec.base_path, seen)
        try:
            orders = self._orders(spec, record.path, port)
            record.create(
                {"space_id": spec.space_id, "space": spec.space, "artifact": spec.artifact_ref, "port": port,
                 "base_path": spec.base_path, "started_at": at.timestamp(), "isolation": self._isolation.words}
            )  # fmt: skip
            known.process = self._start_shim(record, orders)
        except BaseException as error:
            self._discard(record)
            with self._lock:
                del self._known[spec.id]
                self._ports.release(port)
            raise _translated(error, spec) from error
        self._watcher.watch(known, known.process.pid)

    def observe(self) -> Mapping[int, Observation]:
        """See the port. Memory only: what is true is brought here by events."""
        with self._lock:
            return {known.id: known.seen for known in self._known.values() if not known.gone}

    def logs(self, deployment_id: int, after: int = 0) -> Sequence[LogLine]:
        """See the port. Where older lines were dropped, the first one says so."""
        with self._lock:
            known = self._known.get(deployment_id)
        if known is None:
            return ()
        with known.reading:
            rows = known.reader.read(after, DROPPED)
        return [LogLine(n, datetime.fromtimestamp(at, UTC), text) for n, at, text in rows]

    def stop(self, deployment_id: int, grace: float = 10.0) -> None:
        """See the port."""
        with self._lock:
            known = self._known.get(deployment_id)
            if known is None or known.gone:
                return
            if known.seen.status is RunStatus.EXITED:
                _kept(known.record.mark, "stop", 0)
                known.gone = True
                return
            known.stopping = True
        _kept(known.record.mark, "stop", max(grace, 0.0))
        shim = known.record.shim()
        if shim is not None:
            _signal(shim, signal.SIGTERM)

    def forget(self, deployment_id: int) -> None:
        """See the port. One that still runs is ended first, and removed then."""
        with self._lock:
            known = self._known.get(deployment_id)
            if known is None:
                return
            running = known.seen.status is not RunStatus.EXITED
            if not running:
                del self._known[deployment_id]
        if running:
            known.forgetting = True
            _kept(known.record.mark, "forget", 1)
            self.stop(deployment_id, grace=0)
        else:
            self._discard(known.record)

    # --- beyond the port ----------------------------------------------------------------------------------------------
    def isolation(self) -> Isolation:
        """What isolation is true here, for people and for decisions about strangers' code."""
        return self._isolation

    def limits_enforced_by(self) -> Mapping[str, str]:
        """Limit -> `cgroup`, `watched` or `nice`."""
        holds = self._ground.cgroups.holds
        found = {name: "cgroup" if name in holds else "watched" for name in ("memory", "processes")}
        return {**found, "cpu": "cgroup" if "cpu" in holds else "nice", "disk": "watched"}

    def close(self, stop_all: bool = False, grace: float = 5.0) -> None:
        """End this object. Apps go on, unless `stop_all`: then this waits until all are gone (grace + 10 s at most)."""
        if stop_all:
            for deployment_id in list(self.observe()):
                self.stop(deployment_id, grace)
            with self._lock:
                left = [known for known in self._known.values() if not known.gone]
            for known in left:
                known.ended.wait(grace + 10)
        with self._lock:
            spare, self._spare, self._closed = self._spare, None, True
        if spare is not None:
            _end_spare(spare)
        self._watcher.close()

    def collect_strays(self) -> int:
        """End processes and remove groups of deployments that have no shim any more; how many deployments that were."""
        return end_strays(self._ground.prefix, self._ground.cgroups, self._alive)

    def _alive(self, deployment_id: int) -> bool:
        known = self._known.get(deployment_id)
        return known is not None and known.seen.status is not RunStatus.EXITED

    # --- start --------------------------------------------------------------------------------------------------------
    def _orders(self, spec: DeploymentSpec, state: Path, port: int) -> bytes:
        try:
            artifact = self._resolve(spec.artifact_ref)
        except (LookupError, FileNotFoundError) as error:
            raise Invalid(f"{spec.space}: artifact {spec.artifact_ref} is not there; build it again") from error
        frozen = self._isolation.level in (Level.BUBBLEWRAP_UID, Level.BUBBLEWRAP) and self._too_large(artifact.app_dir)
        return marshal.dumps(launch(spec, artifact, state, port, self._ground, frozen=frozen))

    def _too_large(self, app: Path) -> bool:
        """Whether an app is too large to copy at each start; looked up once, as artifacts never change."""
        known = self._sizes.get(str(app))
        if known is None:
            total = 0
            for directory, _, names in os.walk(app):
                total += sum(os.lstat(f"{directory}/{name}").st_size + 4096 for name in names)
                if total > self._settings.copy_limit:
                    break
            known = self._sizes[str(app)] = total > self._settings.copy_limit
        return known

    def _start_shim(self, record: Record, orders: bytes) -> subprocess.Popen[bytes]:
        """Take a shim, record it, then give it its orders: a shim without orders ends and has started nothing."""
        with self._lock:
            process, self._spare = self._spare, None
        if process is None or process.poll() is not None:
            process = _new_shim()
        try:
            record.set_shim(process.pid)
            with cast(IO[bytes], process.stdin) as pipe:
                pipe.write(orders)
        except BaseException:
            process.kill()
            process.wait()
            raise
        self._watcher.later(self._make_spare, SPARE_DELAY)
        return process

    def _make_spare(self) -> None:
        """Have one shim ready that only waits for orders: its interpreter's start is off the next app's path."""
        made: subprocess.Popen[bytes] | None = _new_shim()
        with self._lock:
            if self._spare is None and not self._closed:
                self._spare, made = made, None
        if made is not None:
            _end_spare(made)

    # --- events -------------------------------------------------------------------------------------------------------
    def _ended(self, known: Known) -> None:
        """The shim of `known` is gone: find out how it ended, and make sure that nothing of it is left."""
        ending = known.record.ending()
        if ending is None:
            end_strays(self._ground.prefix, self._ground.cgroups, lambda _: False, only=known.id)
            ending = Ending(None, words="its shim was killed; the app was ended with it")
            _kept(known.record.set_ending, ending)
        forget = known.forgetting or known.record.marked("forget") is not None
        with self._lock:
            known.seen = _exited(known.seen, ending)
            known.gone = known.stopping or known.record.marked("stop") is not None
            self._ports.release(known.port)
            if forget:
                self._known.pop(known.id, None)
        if forget:
            self._discard(known.record)
        else:
            known.record.shed(self._trash)
            self._watcher.later(lambda: empty(self._trash))
        known.ended.set()

    def _discard(self, record: Record) -> None:
        """Out of sight at once; its files are deleted behind the scenes, and by the next start at the latest."""
        record.discard(self._trash)
        self._watcher.later(lambda: empty(self._trash))

    def _adopt(self) -> None:
        """Take over what an earlier control plane left."""
        for path in self._deployments.iterdir():
            if not path.name.isdigit():
                continue
            record = Record(path)
            facts = record.facts()
            port, started = facts.get("port"), facts.get("started_at")
            if not isinstance(port, int) or not isinstance(started, float):
                self._discard(record)  # killed while it was made: nothing of it ever ran
                continue
            ready = record.marked("ready")
            seen = Observation(
                RunStatus.READY if ready is not None else RunStatus.STARTING,
                endpoint=f"127.0.0.1:{port}",
                started_at=datetime.fromtimestamp(started, UTC),
                ready_at=None if ready is None else datetime.fromtimestamp(ready, UTC),
                isolation=str(facts.get("isolation", "")),
            )
            known = Known(int(path.name), record, port, str(facts.get("base_path", "/")), seen)
            self._known[known.id] = known
            shim = record.shim()
            if shim is None:
                self._ended(known)
            else:
                self._ports.reserve(port)
                self._watcher.watch(known, shim)
        self.collect_strays()
        self._watcher.later(lambda: empty(self._trash))
        self._watcher.later(self._make_spare)


def _exited(seen: Observation, ending: Ending) -> Observation:
    return replace(
        seen,
        status=RunStatus.EXITED,
        exit_code=ending.code,
        out_of_memory=ending.out_of_memory,
        hindrance=ending.hindrance,
        probe=ending.words or seen.probe,
        listening=(),
    )


def _new_shim() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _BOOT, os.path.dirname(os.path.abspath(__file__))],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"LANG": "C.UTF-8"},
        cwd="/",
        start_new_session=True,
    )


def _end_spare(process: subprocess.Popen[bytes]) -> None:
    cast(IO[bytes], process.stdin).close()
    process.wait()


def _kept(write: Callable[..., None], *values: object) -> None:
    """Write to the record where there is room; memory knows, and only a restart on a full disk would ask again."""
    try:
        write(*values)
    except OSError as error:
        log.warning("a deployment's record could not be written: %s", error)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _translated(error: BaseException, spec: DeploymentSpec) -> BaseException:
    if isinstance(error, PlatformError) or not isinstance(error, OSError):
        return error
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"{spec.space}: cannot start, the disk is full; free some space")
    return Unavailable(f"{spec.space}: cannot start a process now: {error}; try again")
