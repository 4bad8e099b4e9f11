"""preload_from_hub in containers: an image of the runtime and the fetched files, which the app's image is built upon.

Owns: making that image once for each owner, layer and runtime image, and telling which are still used. Does not own:
what is fetched (`builders.preload`), the app's image (`job`). Invariant: the image gets its name only once it is whole,
and keeps it while a build stands upon it or a record names it; no layer has anything of how the hub was reached.

It lies below the environment and the code, so all images that preload the same share its layer, and a push that changes
code, or requirements, fetches nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from builders import preload
from builders.containers import rules
from builders.layout import remove_tree
from builders.types import BuildPlan, Hub, Phase

if TYPE_CHECKING:
    from builders.containers.builder import DockerBuilder
    from builders.containers.job import Job
    from builders.containers.records import Records

HUB_TAGS = "spaces-hub"
"""Repository of these images. Their tags are derived with the platform's own key: no Dockerfile can guess one."""
HOME = "/home/user/"


class HubImage:
    """What one build preloads. Use `with hub.held(work):`, then `name`."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.key = self.name = self.lock_text = ""
        """All empty where nothing is preloaded."""

    @contextmanager
    def held(self, work: Path) -> Iterator[None]:
        """Make or find the image, and keep it. Raises BuildError, BuildCancelled, BuilderUnavailable."""
        job = self._job
        layer = self._layer(job.plan, job.inputs.hub)
        if not layer.parts or job.inputs.hub is None:
            yield
            return
        base = job.engine.image(job.options.images.run)
        runtime = base.id if base is not None else job.options.images.run
        self.key = _mine(job.records) + job.records.scope("hub", job.owner, layer.id, runtime)
        self.lock_text = preload.lock_text(layer)
        self.name = f"{HUB_TAGS}:{self.key}"
        lock = job.records.hub_lock(self.key)
        try:
            lock.shared(job.cancelled)
            if job.engine.image(self.name) is not None:
                job.log.phase(Phase.INSTALLING, "nothing to preload: these files are there already")
            while job.engine.image(self.name) is None:
                lock.exclusive(job.cancelled, self._tell_waiting)
                if job.engine.image(self.name) is None:
                    self._make(layer, job.inputs.hub, work)
                lock.shared(job.cancelled)
            yield
        finally:
            lock.close()

    def _layer(self, plan: BuildPlan, hub: Hub | None) -> preload.Layer:
        return preload.resolve(plan.preload, hub, self._job.options.limits.preload, self._job.log)

    def _tell_waiting(self) -> None:
        self._job.log.phase(Phase.INSTALLING, "waiting for the same files, which another build is fetching")

    def _make(self, layer: preload.Layer, hub: Hub, work: Path) -> None:
        job, home = self._job, work / "hub"
        cache = home / preload.CACHE
        cache.mkdir(parents=True)
        for folder in (home, *cache.parents[: len(Path(preload.CACHE).parts) - 1], cache):
            folder.chmod(0o755)
        preload.fetch(layer, hub, cache, limit=job.options.limits.preload, log=job.log, check=job.check)
        job.log.phase(Phase.INSTALLING, "writing the preloaded files as a layer")
        text = f"FROM {job.options.images.run}\nCOPY --chown=1000:1000 . {HOME}\n"
        job.build_plain(work, home, rules.Checked(text), {"spaces.hub": layer.id}, self.name)
        remove_tree(home)


def prune(builder: DockerBuilder) -> None:
    """Remove this platform's that no record has and no build holds. A layer goes with the last image upon it."""
    used = {record.hub for _, record in builder.records.all()}
    for name in builder.engine.names(HUB_TAGS):
        key = name.rpartition(":")[2]
        if not key.startswith(_mine(builder.records)):
            continue
        lock = builder.records.hub_lock(key)
        try:
            if key not in used and lock.try_exclusive():
                builder.engine.remove(name)
        finally:
            lock.close()


def _mine(records: Records) -> str:
    """What begins the tags of one platform: several may share an engine."""
    return f"{records.scope('hub')[:8]}-"
