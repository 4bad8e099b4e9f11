"""Runs deployments as containers of a Docker engine. Owns what is known of each and every change of it.

Containers outlive this process and, with live-restore, the engine; their labels and the files in known.py are all that
is needed to find them again. Invariants: nothing runs that is not labelled; a deployment is reported EXITED only when
its container has ended; while the engine is away, what was known last is what is told.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spaces_platform.adapters.process.record import empty
from spaces_platform.errors import Conflict, NotFound, PlatformError, Unavailable
from spaces_platform.ports import Clock, DeploymentSpec, Gpu, Isolation, LogLine, Observation, RunStatus

from . import cgroups, gpus, selfcheck
from .disks import Disks
from .engine import Engine
from .events import Follower
from .fence import Fence, fence_of
from .known import Known, marked
from .launch import Launcher
from .names import Names
from .network import INSTANCE, Networks, bridge_prefix
from .output import Output
from .settings import DockerSettings, instance_of
from .spec import DEPLOYMENT, Labels, cgroup_parent, exit_code
from .volumes import DockerVolumes
from .watcher import Watcher

log = logging.getLogger(__name__)
PERIOD = 30.0
"""Seconds between looks at what events do not tell: rules that somebody flushed, networks that nobody needs."""


class DockerOrchestrator:
    """The Orchestrator and Freezer ports for containers; `volumes` is the Volumes port. Safe to call from any thread.

    `changed(id)` is called, from a thread of this object, when a deployment becomes READY or EXITED, is gone after
    `stop`, or is seen listening in the wrong place.
    """

    def __init__(
        self, root: Path, *, clock: Clock, changed: Callable[[int], None], settings: DockerSettings | None = None
    ) -> None:
        """Check the isolation, then find every deployment that is still there. Raises Unavailable, Invalid."""
        self._settings = settings or DockerSettings()
        self._clock, self._changed = clock, changed
        self._root = root.resolve()
        self._deployments, self._trash = self._root / "deployments", self._root / "trash"
        for place in (self._root, self._deployments, self._trash):
            place.mkdir(parents=True, exist_ok=True)
            place.chmod(0o700)
        self.instance = instance_of(self._root)
        self._label = f"{INSTANCE}={self.instance}"
        self._engine = Engine(self._settings.url)
        self._facts = self._engine.facts()
        self._lock = threading.Lock()
        self._known: dict[int, Known] = {}
        self._leftovers: set[Known] = set()
        self._closed = False
        self._networks = Networks(self._engine, self.instance, self._settings.subnets, self._settings.idle_networks)
        self._disks = Disks(self._root)
        self.volumes = DockerVolumes(self._root / "volumes", self._disks, clock, in_use=self._uses_volume)
        self._fence = Fence(self.instance, fence_of(self._settings, (f"{bridge_prefix(self.instance)}+",)))
        self._names = Names(self._root / "resolv.conf")
        self._isolation = selfcheck.check(
            self._root, self._settings, self._facts, self._fence, self._disks, self._names
        )
        self._launcher = Launcher(
            self._engine, self._facts, self._settings, self._networks,
            self._disks if self._isolation.disks else None,
            self.volumes if self._isolation.disks else None,
            self._names if self._isolation.in_gvisor and not self._isolation.names_fault else None,
            self.instance, self._isolation.words,
        )  # fmt: skip
        self._watcher = Watcher(self._settings, self._became_ready, self._was_probed, self._listens_elsewhere)
        self._follower = Follower(self._engine, self._label, DEPLOYMENT, self._look, self._happened)
        self._adopt()
        self._follower.start()
        self._watcher.every(PERIOD, self._keep_true)

    # --- the port -----------------------------------------------------------------------------------------------------
    def start(self, spec: DeploymentSpec) -> None:
        """See the port. Returns when the engine has started the container."""
        with self._lock:
            if spec.id in self._known:
                return
            if any(left.id == spec.id for left in self._leftovers):
                raise Unavailable(f"{spec.space}: what its last start left is being removed; start it again")
            directory = self._deployments / str(spec.id)
            at = self._clock.now()
            seen = Observation(RunStatus.STARTING, started_at=at, probe="starting", isolation=self._isolation.words)
            output = Output(directory / "log", spec.resources.log_bytes)
            known = Known(spec.id, spec.space_id, spec.app_port, spec.base_path, directory, output, seen, starting=True)
            self._known[spec.id] = known
        try:
            state = self._launcher.launch(spec, known, at.timestamp())
        except BaseException:
            with self._lock:
                del self._known[spec.id]
                known.forgetting = True
            self._clear_up(known)
            raise
        with self._lock:
            known.starting = False
            known.seen = replace(known.seen, endpoint=f"{known.host}:{known.port}" if known.host else None)
            stopping = known.stopping
        if stopping:
            self.stop(spec.id, grace=0.0)
        self._watcher.watch(known)
        self._take(known, known.container, state)  # one that has ended already

    def observe(self) -> Mapping[int, Observation]:
        """See the port. Memory only: what is true is brought here by events."""
        with self._lock:
            return {known.id: known.seen for known in self._known.values() if not known.gone}

    def logs(self, deployment_id: int, after: int = 0) -> Sequence[LogLine]:
        """See the port. Where older lines were dropped, the first one says so."""
        with self._lock:
            known = self._known.get(deployment_id)
            container = known.container if known is not None and known.is_running else ""
        if known is None:
            return ()
        if container:
            known.output.fetch(self._engine, container)
        return known.output.read(after)

    def stop(self, deployment_id: int, grace: float = 10.0) -> None:
        """See the port. While the engine is away: Unavailable, and it is ended once the engine is back."""
        with self._lock:
            known = self._known.get(deployment_id)
            if known is None or known.gone:
                return
            first = not known.stopping
            known.stopping = True
            ended = not known.is_running
            known.gone = ended
            container = "" if known.starting else known.container
        if first:
            known.mark("stop", self._clock.now().timestamp() + max(grace, 0.0))
        if ended:
            self._clear_up(known)
        elif container and (first or grace <= 0):
            if grace <= 0:
                self._kill(known)
                return
            if known.in_gvisor:
                self._let_go(known)  # it takes no signal while it is held
            self._engine.kill(container, "SIGTERM")
            self._let_go(known)  # now that it has the signal
            self._watcher.later(lambda: self._kill(known), grace)

    def forget(self, deployment_id: int) -> None:
        """See the port. One that still runs is ended first, and removed then."""
        with self._lock:
            known = self._known.get(deployment_id)
            if known is None:
                return
            running = known.is_running
            if not running:
                del self._known[deployment_id]
            known.forgetting = True
        if running:
            known.mark("forget", 1)
            self.stop(deployment_id, grace=0)
        else:
            self._clear_up(known)

    def close(self, stop_all: bool = False) -> None:
        """See the port. `stop_all`: end and remove every container and network of this platform, for tests."""
        with self._lock:
            self._closed = True
        self._follower.close()
        self._watcher.close()
        if stop_all:
            self._remove_all()
        self._engine.close()

    # --- freezing -----------------------------------------------------------------------------------------------------
    def freeze(self, deployment_id: int) -> None:
        """See ports.Freezer."""
        known = self._of(deployment_id, RunStatus.READY)
        if known is None:
            return
        try:
            if known.in_gvisor or not cgroups.set_frozen(known.pid, known.container, True):
                self._engine.pause(known.container)
        except (NotFound, Conflict) as error:
            log.info("deployment %d is not frozen: %s", deployment_id, error)
            self._look_at(known)
            return
        self._move(known, RunStatus.READY, RunStatus.FROZEN)
        if known.stopping:  # since it was looked at: a signal would wait in it for ever
            self._let_go(known)

    def thaw(self, deployment_id: int) -> None:
        """See ports.Freezer."""
        known = self._of(deployment_id, RunStatus.FROZEN)
        if known is None:
            return
        try:
            if known.paused or known.in_gvisor or not cgroups.set_frozen(known.pid, known.container, False):
                self._engine.unpause(known.container)
        except (NotFound, Conflict) as error:
            log.info("deployment %d is not thawed: %s", deployment_id, error)
            self._look_at(known)
            return
        self._move(known, RunStatus.FROZEN, RunStatus.READY)

    def _let_go(self, known: Known) -> None:
        """Thaw what is to end. One that the engine has frozen it thaws itself, with the signal that it is asked for.

        Unless that is in gVisor, where the signal is refused.
        """
        container = known.container
        if not known.in_gvisor:
            cgroups.set_frozen(known.pid, container, False)
        elif container:
            with suppress(NotFound, Conflict):  # is not there, or not held
                self._engine.unpause(container)

    def _kill(self, known: Known) -> None:
        self._let_go(known)  # the engine waits for its end
        if container := known.container:
            self._engine.kill(container, "SIGKILL")

    def memory_in_use(self, deployment_id: int) -> int:
        """See ports.Freezer."""
        with self._lock:
            known = self._known.get(deployment_id)
            pid = known.pid if known is not None and known.is_running else 0
        return cgroups.memory_in_use(pid) if pid else 0

    # --- beyond the ports ---------------------------------------------------------------------------------------------
    def isolation(self) -> Isolation:
        """What isolation is true here, as the self-check found it."""
        return self._isolation.as_port()

    @property
    def safe_for_strangers(self) -> bool:
        """Whether code of people who are not trusted may run here."""
        return self._isolation.safe_for_strangers

    def gpus(self) -> Sequence[Gpu]:
        """The accelerators that deployments can have."""
        return gpus.inventory(self._facts)

    def persistent(self) -> DockerVolumes | None:
        """The Volumes port, where this machine can make sized disks."""
        return self.volumes if self._isolation.disks else None

    def purge(self, space_id: int) -> None:
        """Remove what a deleted Space still has here: its network. Of the absent: success."""
        self._networks.remove(space_id)

    # --- what is seen -------------------------------------------------------------------------------------------------
    def _of(self, deployment_id: int, status: RunStatus) -> Known | None:
        with self._lock:
            known = self._known.get(deployment_id)
            fits = known is not None and known.seen.status is status and known.container and not known.stopping
            return known if fits else None

    def _move(self, known: Known, before: RunStatus, after: RunStatus) -> None:
        with self._lock:
            if known.seen.status is before:
                known.seen = replace(known.seen, status=after)

    def _tell(self, known: Known) -> None:
        try:
            self._changed(known.id)
        except Exception:
            log.exception("the listener for deployment %d failed", known.id)

    def _was_probed(self, known: Known, words: str) -> None:
        with self._lock:
            if known.seen.status is RunStatus.STARTING:
                known.seen = replace(known.seen, probe=words)

    def _listens_elsewhere(self, known: Known, listening: tuple[str, ...]) -> None:
        with self._lock:
            if known.seen.status is not RunStatus.STARTING:
                return
            known.seen = replace(known.seen, listening=listening)
        self._tell(known)

    def _became_ready(self, known: Known, words: str, listening: tuple[str, ...]) -> None:
        at = self._clock.now()
        with self._lock:
            if known.seen.status is not RunStatus.STARTING:
                return
            known.seen = replace(known.seen, status=RunStatus.READY, ready_at=at, probe=words, listening=listening)
        known.mark("ready", at.timestamp())
        self._tell(known)

    def _happened(self, action: str, deployment: str, container: str) -> None:
        """One event of the engine."""
        with self._lock:
            known = self._known.get(int(deployment)) if deployment.isdigit() else None
            if known is None or known.container != container:
                return
        if action == "pause":
            known.paused = True
            self._move(known, RunStatus.READY, RunStatus.FROZEN)
        elif action == "unpause":
            known.paused = False
            self._move(known, RunStatus.FROZEN, RunStatus.READY)
        elif action == "kill":  # perhaps by somebody who does not know that it is frozen
            self._watcher.later(lambda: self._let_go(known))
        elif action in ("die", "destroy"):
            self._watcher.later(lambda: self._look_at(known))

    def _look_at(self, known: Known) -> None:
        """Bring what is known of one container up to what the engine says now."""
        container = known.container
        if not container:
            return
        try:
            state: Mapping[str, Any] = self._engine.inspect(container)["State"]
        except NotFound:
            state = {}
        except Unavailable as error:
            log.info("deployment %d could not be looked at: %s", known.id, error)
            return
        self._take(known, container, state)

    def _take(self, known: Known, container: str, state: Mapping[str, Any]) -> None:
        """What the engine says of a container."""
        if state.get("Running"):
            with self._lock:
                if not known.is_running:  # ended since it was asked
                    return
                known.pid, known.paused = int(state.get("Pid") or 0), bool(state.get("Paused"))
            frozen = cgroups.is_frozen(known.pid, container)
            frozen = known.paused if frozen is None or known.in_gvisor else frozen
            self._move(known, *((RunStatus.READY, RunStatus.FROZEN) if frozen else (RunStatus.FROZEN, RunStatus.READY)))
        elif state.get("Status") != "created":
            self._ended(known, container, state)

    def _ended(self, known: Known, container: str, state: Mapping[str, Any]) -> None:
        """A container has ended, or is not there any more: say how, and clear up what was asked to stop."""
        with self._lock:
            if known.gone or not known.is_running:
                return
        known.output.fetch(self._engine, container, last=True)
        code = exit_code(state)
        out_of_memory = bool(state.get("OOMKilled")) and code != 0
        words = str(state.get("Error") or "") if state else "its container was removed by somebody else"
        with self._lock:
            if known.gone or not known.is_running:
                return
            known.seen = replace(
                known.seen, status=RunStatus.EXITED, exit_code=code, out_of_memory=out_of_memory,
                probe=words or known.seen.probe, listening=(),
            )  # fmt: skip
            known.pid = 0
            known.gone = known.stopping
            if known.forgetting:
                self._known.pop(known.id, None)
        if known.gone:
            self._clear_up(known)
        self._tell(known)

    def _clear_up(self, known: Known) -> None:
        """Remove, off every caller's path, what a deployment that has ended still has here."""
        with self._lock:
            self._leftovers.add(known)
        self._watcher.later(lambda: self._clear(known))

    def _clear(self, known: Known) -> None:
        """Remove container and disk; the log stays, unless it is to be forgotten. What fails is tried again later."""
        try:
            # A stop and a forget may come at once: one undoes mounts that the other has listed.
            with known.clearing:
                if known not in self._leftovers:
                    return  # done meanwhile; its directory may be that of its next start
                forget = known.forgetting
                if known.container:
                    self._engine.remove(known.container)
                    with self._lock:
                        known.container = ""
                if forget:
                    known.output.close()
                self._disks.drop(known.directory)
                self.volumes.release(known.space_id)
                if forget:
                    self._throw_away(known.directory)
                with self._lock:
                    if forget == known.forgetting:
                        self._leftovers.discard(known)
        except (PlatformError, OSError) as error:
            log.warning("what deployment %d has left is not removed yet: %s", known.id, error)

    def _clear_leftovers(self) -> None:
        """Try again what could not be removed."""
        with self._lock:
            left = list(self._leftovers)
        for known in left:
            self._watcher.later(lambda known=known: self._clear(known))  # type: ignore[misc]

    def _throw_away(self, directory: Path) -> None:
        if directory.is_dir():
            directory.rename(self._trash / f"{directory.name}-{self._clock.now().timestamp():.6f}")
        empty(self._trash)

    def _uses_volume(self, space_id: int) -> bool:
        """Whether a container of the Space may have its volume open: one that has ended has not."""
        with self._lock:
            mine = [known for known in self._known.values() if known.space_id == space_id]
            return any(known.starting or (known.container and known.is_running) for known in mine)

    # --- finding again ------------------------------------------------------------------------------------------------
    def _adopt(self) -> None:
        """Take over what an earlier control plane left."""
        self._end_forgotten()
        self.volumes.recover()
        self._networks.load()
        containers = self._found()
        for number, (container, labels) in containers.items():
            self._known[number] = self._adopted(number, container, labels)
        for directory in self._deployments.iterdir():
            if directory.name.isdigit() and int(directory.name) not in containers:
                self._adopt_without_container(directory)
        for known in list(self._known.values()):
            self._look_at_adopted(known)
        self._watcher.later(lambda: empty(self._trash))

    def _end_forgotten(self) -> None:
        """End what runs in our control group and is no container of this engine.

        With live-restore, apps go on when the engine gets another directory, as it does where it begins to remap users
        or ceases to. Nobody would ever stop them, and they have their Space's volume.
        """
        for container, group in cgroups.running_below(cgroup_parent(self.instance, self._facts)).items():
            try:
                self._engine.inspect(container)
            except NotFound:
                log.warning("the engine knows nothing of container %s, which runs: it is ended", container[:12])
                if not cgroups.end(group):
                    log.warning("container %s does not end", container[:12])

    def _found(self) -> dict[int, tuple[str, Labels]]:
        """Deployment -> (container, labels) of all containers of this platform; half-made ones are removed."""
        found = {}
        for row in self._engine.containers(self._label):
            try:
                labels = Labels.parse(row.get("Labels") or {})
            except (KeyError, ValueError):
                continue  # a build's, or somebody borrowed our label: not a deployment of ours
            directory = self._deployments / str(labels.deployment)
            with self._lock:
                known = self._known.get(labels.deployment)
            if known is not None and known.starting:
                continue  # half-made by a start that is under way
            if row.get("State") == "created" and marked(directory, "started") is None:
                self._engine.remove(str(row["Id"]))
                continue
            found[labels.deployment] = (str(row["Id"]), labels)
        return found

    def _adopted(self, number: int, container: str, labels: Labels) -> Known:
        directory = self._deployments / str(number)
        directory.mkdir(exist_ok=True)
        facts = self._engine.inspect(container)
        networks = (facts.get("NetworkSettings") or {}).get("Networks") or {}
        host = next((str(n.get("IPAddress") or "") for n in networks.values()), "")
        ready = marked(directory, "ready")
        seen = Observation(
            RunStatus.READY if ready is not None else RunStatus.STARTING,
            endpoint=f"{host}:{labels.port}" if host else None,
            started_at=datetime.fromtimestamp(labels.started_at, UTC),
            ready_at=None if ready is None else datetime.fromtimestamp(ready, UTC),
            isolation=labels.isolation,
        )
        return Known(
            number, labels.space_id, labels.port, labels.base_path, directory,
            Output(directory / "log", labels.log_bytes), seen, container=container, host=host,
            pid=int((facts.get("State") or {}).get("Pid") or 0),
            in_gvisor=self._facts.is_gvisor(str((facts.get("HostConfig") or {}).get("Runtime") or "")),
            stopping=marked(directory, "stop") is not None, forgetting=marked(directory, "forget") is not None,
        )  # fmt: skip

    def _adopt_without_container(self, directory: Path) -> None:
        """A stopped one whose log is kept; one whose start was cut short; one whose container somebody removed."""
        stopped, forget = marked(directory, "stop") is not None, marked(directory, "forget") is not None
        self._disks.drop(directory)
        if forget or (not stopped and marked(directory, "started") is None):
            self._throw_away(directory)
            return
        seen = Observation(RunStatus.EXITED, probe="its container was removed by somebody else")
        output = Output(directory / "log", 1 << 20)
        self._known[int(directory.name)] = Known(
            int(directory.name), 0, 0, "/", directory, output, seen, stopping=stopped, gone=stopped
        )

    def _look_at_adopted(self, known: Known) -> None:
        self._look_at(known)
        if not known.is_running:
            return
        if known.stopping:
            left = (known.marked("stop") or 0.0) - self._clock.now().timestamp()
            self._let_go(known)
            self._watcher.later(lambda: self._kill(known), max(left, 0.0))
        if known.seen.status is RunStatus.STARTING:
            self._watcher.watch(known)

    def _look(self) -> None:
        """Look at everything: the events before now were not seen."""
        with self._lock:
            before = [known for known in self._known.values() if known.container and not known.starting]
        self._found()
        for known in before:
            self._look_at(known)
            if known.stopping and known.is_running:
                left = (known.marked("stop") or 0.0) - self._clock.now().timestamp()
                if left <= 0:
                    self._kill(known)
        self._clear_leftovers()
        if self._isolation.fence:
            self._fence.ensure()

    def _keep_true(self) -> None:
        """What events do not tell."""
        if not self._follower.connected.is_set():
            return
        self._clear_leftovers()
        if self._isolation.fence:
            self._fence.ensure()
        if self._isolation.in_gvisor:
            self._names.refresh()
        self._networks.trim(self._spaces_in_use)

    def _spaces_in_use(self) -> set[int]:
        with self._lock:
            return {known.space_id for known in self._known.values() if known.starting or known.container}

    def _remove_all(self) -> None:
        for known in self._known.values():
            self._let_go(known)
        for row in self._engine.containers(self._label):
            self._engine.remove(str(row["Id"]))
        for known in {*self._known.values(), *self._leftovers}:
            try:
                self._disks.drop(known.directory)
                self.volumes.release(known.space_id)
            except PlatformError as error:
                log.warning("deployment %d: %s", known.id, error)
        with self._lock:
            self._known = {}
        self.volumes.release_all()
        self._networks.load()
        for space_id in self._networks.all():
            self._networks.remove(space_id)
        self._fence.remove()
