"""DockerBuilder: plans become container images, built by BuildKit within limits, scanned and recorded.

Owns: which images exist, and removing and pruning them. Does not own: one build from beginning to end (`job`), records
(`records`). Invariant: an image gets its tag, and a record, only after all else succeeded, so a build that is killed at
any moment leaves nothing that `exists`; nothing that has a record is pruned.

References: `image:sha256:<id>` in the engine, or `image:<registry>/<repository>@sha256:<digest>` where there is one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

from builders.containers import client, hub_image, layers, limits
from builders.containers.engine import NEW, TAGS, EngineApi
from builders.containers.job import PREFIX, Job, Silent
from builders.containers.options import Options
from builders.containers.records import Records
from builders.layout import owner_key
from builders.types import NO_INPUTS, Artifact, BuildError, BuildInputs, BuildLog, BuildPlan, Phase, SourceTree

LEFTOVER_SECONDS = 3600
"""Age from which an image without a record is what a killed build left."""
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_UNFINISHED = re.compile(rf"{NEW}:(\d+)-")


class DockerBuilder:
    """The Builder of machines with a Docker engine. Safe to use from several threads and processes at once.

    `root` is its folder. Raises ClientMissing where no docker command can use BuildKit.
    """

    def __init__(self, root: Path, options: Options) -> None:
        self.options = options
        self.records = Records(root)
        self.engine = EngineApi(options.engine)
        self.client = client.find(options.client)

    @cached_property
    def build_client(self) -> str:
        """What builds: the docker command itself, or its plug-in."""
        return client.plugin(self.client) or self.client

    @cached_property
    def machine(self) -> limits.Engine:
        """The engine's machine. Raises BuilderUnavailable."""
        info = self.engine.info()
        driver = str(info.get("CgroupDriver") or "cgroupfs")
        return limits.Engine(Path(str(info["DockerRootDir"])), driver, images=layers.store(info))

    @cached_property
    def platform(self) -> str:
        info = self.engine.info()
        names = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}
        return f"{info['OSType']}/{names.get(info['Architecture'], info['Architecture'])}"

    # --- Builder ---------------------------------------------------------------------------------------------------
    def exists(self, artifact_ref: str) -> bool:
        ref = _name(artifact_ref)
        if ref is None:
            return False
        image = self.engine.image(ref)
        if image is None:
            return "@" in ref and self.engine.in_registry(ref)
        return "@" in ref or any(tag.startswith(f"{TAGS}:") for tag in image.tags)

    def build(
        self,
        plan: BuildPlan,
        source: SourceTree,
        *,
        owner: str,
        log: BuildLog,
        cancelled: Callable[[], bool],
        inputs: BuildInputs = NO_INPUTS,
    ) -> Artifact:
        if plan.needs_container:
            raise BuildError("needs_container", f"{plan.needs_container[0]}.", "Plan it again.", plan.needs_container)
        job = Job(self, plan, source, owner_key(owner), inputs, log, cancelled)
        with self.records.alone(job.key, cancelled, job.tell_waiting):
            record = self.records.find(job.key)
            if record is not None and self.exists(record.ref):
                log.phase(Phase.SEALING, "already built")
                sbom_text, text = self.records.papers(job.key)
                return Artifact(record.ref, record.lock, 0, True, sbom_text, text)
            with self.records.work(job.key) as work:
                return job.build(work)

    def remove(self, artifact_ref: str) -> None:
        for key, record in list(self.records.all()):
            if record.ref == artifact_ref:
                self.records.drop(key)
        ref = _name(artifact_ref)
        image = self.engine.image(ref) if ref is not None else None
        if image is None:
            return
        for tag in image.tags:
            if tag.startswith(f"{TAGS}:") or (self.options.registry and tag.startswith(f"{self.options.registry}/")):
                self.engine.remove(tag)

    def prune(self) -> int:
        """Leftovers of killed builds, and BuildKit's cache beyond its bound. No image that has a record."""
        self.records.sweep()
        known = {record.image for _, record in self.records.all()}
        before = time.time() - LEFTOVER_SECONDS
        for id, tags, created in list(self.engine.built_by(self.records.platform)):
            for name in leftovers(id, tags, created, known=id in known, before=before):
                self.engine.remove(name)
        hub_image.prune(self)
        return self.engine.prune_cache(self.options.cache_bytes)

    def close(self) -> None:
        self.options.unfence()

    def free_disk(self) -> int:
        free, engine = self.records.free(), self.machine.free
        return free if engine is None else min(free, engine)

    def dockerfile(self, plan: BuildPlan, source: SourceTree, owner: str, inputs: BuildInputs = NO_INPUTS) -> str:
        """What BuildKit would be given. Raises BuildError."""
        job = Job(self, plan, source, owner_key(owner), inputs, Silent(), lambda: False)
        return job.text().text


def leftovers(id: str, tags: Sequence[str], created: float, *, known: bool, before: float) -> Sequence[str]:
    """What to remove of an image that was built here, so that nothing is left of a build that was killed. Pure.

    An image may be much older than the build that made it again, from BuildKit's cache: its name says when that began.
    """
    began = {tag: int(match[1]) for tag in tags if (match := _UNFINISHED.match(tag))}
    if any(at >= before for at in began.values()):
        return ()
    if known:
        return tuple(began)
    return (tags or (id,)) if created < before else ()


def _name(artifact_ref: str) -> str | None:
    """What the engine calls an artifact; None for a reference of another kind."""
    name = artifact_ref.removeprefix(PREFIX)
    if not artifact_ref.startswith(PREFIX):
        return None
    return name if _DIGEST.fullmatch(name) or _DIGEST.fullmatch(name.rpartition("@")[2]) else None
