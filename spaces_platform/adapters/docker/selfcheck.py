"""Which isolation really holds here: the parts that can be tried are tried before the first app is started.

Owns the verdict and its words; fence_trial.py and disks.py own the trials. Invariant: nothing is reported that was not
read from the engine or shown on this machine.
"""

from __future__ import annotations

import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from spaces_platform.errors import Invalid, PlatformError, Unavailable
from spaces_platform.ports import Isolation

from . import disks as disk_files
from . import fence as fence_rules
from . import fence_trial
from .disks import Disks
from .engine import EngineFacts, peer
from .fence import Fence
from .names import Names
from .settings import DockerSettings
from .snapshots import SNAPSHOTTER, Snapshots

log = logging.getLogger(__name__)
TRIAL_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found about an engine and this machine."""

    engine: EngineFacts
    runtime: str
    fence_fault: str = ""
    """Why apps are not kept from the host and from private addresses; empty where they are."""
    disk_fault: str = ""
    """Why what an app writes has no limit; empty where it has."""
    names_fault: str = ""
    """Why apps under gVisor resolve no names; empty where apps do."""

    @property
    def in_gvisor(self) -> bool:
        return self.engine.is_gvisor(self.runtime)

    @property
    def fence(self) -> bool:
        return not self.fence_fault

    @property
    def disks(self) -> bool:
        return not self.disk_fault

    @property
    def words(self) -> str:
        """The short form, for Observation.isolation."""
        parts = [self.runtime if self.runtime != "runc" else "container"]
        parts.append("fenced network" if self.fence else "open network")
        parts += ["user namespace"] if self.engine.uid_offset else []
        parts += ["sized disk"] if self.disks else []
        return ", ".join(parts)

    @property
    def safe_for_strangers(self) -> bool:
        """Whether code of people who are not trusted may run here."""
        return self.fence and (self.engine.seccomp or self.in_gvisor)

    def as_port(self) -> Isolation:
        holds, lacks = [], []
        for true, good, bad in (
            (True, "own file system, processes and network; no capabilities, no new privileges", ""),
            (self.engine.seccomp, "the engine's seccomp profile",
             "no seccomp profile: the engine was built or started without one; every system call is open to apps"),
            (bool(self.engine.uid_offset), "users of containers are nobody on the host (user namespace)",
             "all apps have the host's user id 1000; start dockerd with --userns-remap to map it away"),
            (self.fence, "no way to the host, private addresses and other Spaces; few ports outside",
             f"apps reach the host and the networks around it: {self.fence_fault}"),
            (self.disks, "a disk of fixed size", f"what an app writes has no limit: {self.disk_fault}"),
            (self.in_gvisor, "a kernel of its own for each app (gVisor)",
             "apps share the host's kernel; install gVisor and set container_runtime=runsc for hostile strangers"),
            (self.engine.live_restore, "apps go on while the engine restarts",
             "a restart of the engine ends all apps; start dockerd with --live-restore"),
        ):  # fmt: skip
            if true:
                holds.append(good)
            else:
                lacks.append(bad)
        if self.names_fault:
            lacks.append(f"apps resolve no names: {self.names_fault}")
        return Isolation("container", self.words, tuple(holds), tuple(lacks))


def check(
    root: Path, settings: DockerSettings, engine: EngineFacts, fence: Fence, disks: Disks, names: Names
) -> Findings:
    """Try the fence, a disk and, under gVisor, the names.

    Raises Invalid where a runtime is asked for that the engine does not have.
    """
    runtime = settings.runtime or engine.default_runtime
    if runtime not in engine.runtimes:
        known = ", ".join(engine.runtimes)
        raise Invalid(f"container_runtime {runtime!r} is not known to the engine, which has {known}; install it")
    found = Findings(
        engine, runtime, _try_fence(settings, fence), _try_disk(root, settings, engine, disks),
        (_elsewhere(settings.url, root) or names.refresh()) if engine.is_gvisor(runtime) else "",
    )  # fmt: skip
    for fault in (found.fence_fault, found.disk_fault, found.names_fault):
        if fault:
            log.warning("isolation of apps: %s", fault)
    return found


def _try_fence(settings: DockerSettings, fence: Fence) -> str:
    if not settings.fence:
        return "the fence is switched off"
    if fault := fence_rules.missing():
        return fault
    try:
        fence.ensure()
        return fence_trial.run(fence)
    except PlatformError as error:
        return error.message


def _try_disk(root: Path, settings: DockerSettings, engine: EngineFacts, disks: Disks) -> str:
    if not settings.disks:
        return "sized disks are switched off"
    if fault := layers_fault(engine):
        return fault
    if fault := disk_files.missing() or _elsewhere(settings.url, root):
        return fault
    with tempfile.TemporaryDirectory(dir=root, prefix="trial-") as made:
        place = Path(made)
        try:
            disks.make(place, TRIAL_BYTES, ("/home/user",), (), user=engine.on_host(settings.user))
        except (PlatformError, OSError) as error:
            return str(error)
        finally:
            _drop(disks, place)
    return ""


def layers_fault(engine: EngineFacts) -> str:
    """Why the folders of an image's layers cannot be had; empty where they can."""
    if engine.storage == "overlay2":
        return ""
    if engine.storage != SNAPSHOTTER:
        return f"the engine keeps images by {engine.storage}, not overlay2 or overlayfs"
    if engine.uid_offset:
        # https://github.com/moby/moby/issues/47377: layers keep the ids they had, and newer engines refuse to start.
        return "the engine keeps images in containerd, whose layers it cannot give to the users that it remaps"
    if not engine.containerd:
        return "the engine keeps images in containerd and does not say where that is; Docker 27 and later do"
    try:
        folder = Snapshots(engine.containerd, engine.namespace).folders(())[0]
    except PlatformError as error:
        return error.message
    if not Path(folder).parent.parent.is_dir():
        return f"containerd's snapshots are not seen here: {Path(folder).parent.parent}; mount that folder"
    return ""


def _drop(disks: Disks, place: Path) -> None:
    try:
        disks.drop(place)
    except (Unavailable, Invalid, OSError) as error:
        log.warning("the disk of the self-check stays at %s: %s", place, error)


def _elsewhere(url: str, root: Path) -> str:
    """Why the engine may not see what this process mounts; empty where it does."""
    if not url.startswith("unix:"):
        return "the engine is on another machine"
    pid = peer(url)
    try:
        same = pid > 0 and os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt")
    except OSError:
        same = False
    if same or is_shared(str(root), Path("/proc/self/mountinfo").read_text()):
        return ""
    return f"the engine does not see mounts below {root}; mount it there with propagation `rshared`"


def is_shared(path: str, mountinfo: str) -> bool:
    """Whether mounts made at a path are seen in the peers of the mount that it lies on. See mount_namespaces(7)."""
    best, shared = "", False
    for line in mountinfo.splitlines():
        fields = line.split()
        point = fields[4]
        if (path == point or path.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, shared = point, any(field.startswith("shared:") for field in fields[6 : fields.index("-")])
    return shared
