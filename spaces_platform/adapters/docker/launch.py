"""Starts one deployment: image, disk, volume, network, container, in that order.

Owns the order and the undoing of a half-made start; spec.py owns what the container is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spaces_platform.errors import Conflict, Invalid, NotFound, Unavailable
from spaces_platform.ports import DeploymentSpec

from . import cgroups
from . import spec as pure
from .disks import Disks
from .engine import Engine, EngineFacts
from .images import Images
from .known import Known
from .names import Names
from .network import Networks
from .settings import DockerSettings
from .snapshots import Snapshots
from .spec import ImageFacts, Labels, Mount
from .volumes import DockerVolumes


class Launcher:
    """`disks` and `volumes` are None where this machine cannot have them, `names` where apps need none of ours."""

    def __init__(
        self,
        engine: Engine,
        facts: EngineFacts,
        settings: DockerSettings,
        networks: Networks,
        disks: Disks | None,
        volumes: DockerVolumes | None,
        names: Names | None,
        instance: str,
        isolation: str,
    ) -> None:
        self._engine, self._facts, self._settings, self._networks = engine, facts, settings, networks
        self._disks, self._volumes, self._names = disks, volumes, names
        self._instance, self._isolation = instance, isolation
        self._parent = pure.cgroup_parent(instance, facts)
        self._user = facts.on_host(settings.user)
        in_containerd = facts.containerd and disks is not None
        self._images = Images(engine, Snapshots(facts.containerd, facts.namespace) if in_containerd else None)

    def launch(self, spec: DeploymentSpec, known: Known, at: float) -> Mapping[str, Any]:
        """Start it and fill in `known`; the container's state. What was made before an error the caller discards.

        Raises Invalid, Unavailable, DiskFull.
        """
        image = self._images.facts(spec)
        pure.check(spec, image, spec.argv, spec.env)
        known.directory.mkdir(exist_ok=True)
        mounts = self._mounts(spec, image, known)
        if self._names is not None:
            mounts.append(Mount(str(self._names.path), pure.RESOLV_CONF, read_only=True))
        labels = Labels(
            self._instance, spec.id, spec.space_id, spec.app_port, spec.base_path, at, spec.resources.log_bytes,
            self._isolation,
        )  # fmt: skip
        for attempt in (1, 2):
            network = self._networks.ensure(spec.space_id)
            try:
                self._create(spec, known, image, labels, network, mounts)
                break
            except NotFound as error:
                self._networks.lost(spec.space_id)  # somebody pruned it
                if attempt == 2 or "network" not in str(error):
                    self._look_again(spec)
                    raise Invalid(f"{spec.space}: {error}; build it again") from error
        facts = self._engine.inspect(known.container)
        known.mark("started", at)
        known.pid = int(facts["State"].get("Pid") or 0)
        known.in_gvisor = self._facts.is_gvisor(str(facts["HostConfig"].get("Runtime") or ""))
        networks = (facts.get("NetworkSettings") or {}).get("Networks") or {}
        known.host = str((networks.get(network) or {}).get("IPAddress") or "")
        state: Mapping[str, Any] = facts["State"]
        return state

    def _mounts(self, spec: DeploymentSpec, image: ImageFacts, known: Known) -> list[Mount]:
        places = pure.writable_places(spec, image)
        if self._disks is None:
            return []
        try:
            mounts = self._disks.make(known.directory, spec.resources.disk, places, image.layers, user=self._user)
        except FileNotFoundError as error:
            self._look_again(spec)
            raise Invalid(f"{spec.space}: a layer of its image is gone ({error.filename}); build it again") from error
        if spec.resources.volume and self._volumes is not None:
            mounts.append(Mount(self._volumes.attach(spec.space_id, spec.resources.volume, self._user), pure.DATA))
        return mounts

    def _look_again(self, spec: DeploymentSpec) -> None:
        """Something of an image that was there is gone. Raises where the image itself is, or was until now."""
        self._images.forget()
        if not self._images.is_here(spec):
            self._images.facts(spec)
            raise Unavailable(f"{spec.space}: its image was removed and is there again; start it again")

    def _create(
        self, spec: DeploymentSpec, known: Known, image: ImageFacts, labels: Labels, network: str, mounts: list[Mount]
    ) -> None:
        name = f"spaces-{self._instance}-d{spec.id}"
        config = pure.container_spec(
            spec, self._settings, self._facts, image=image, labels=labels, network=network, mounts=mounts,
            cgroup_parent=self._parent,
        )  # fmt: skip
        try:
            known.container = self._engine.create(name, config)
        except Conflict:
            self._engine.remove(name)  # of a start that was cut short: no deployment is known by this id
            known.container = self._engine.create(name, config)
        try:
            self._engine.start(known.container)
        except BaseException:
            container, known.container = known.container, ""
            self._engine.remove(container)
            # The engine takes a runtime that failed for one that has left nothing. gVisor's processes wait on.
            cgroups.end_leftovers(self._parent, container)
            raise
