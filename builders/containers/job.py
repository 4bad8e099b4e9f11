"""One build of one image, from the source tree to the record.

Owns: the order (export, Dockerfile, images to build upon, BuildKit, facts, secrets, tag, record), and what of it is
shared between whom. Does not own: the Dockerfile's text (`dockerfile`, `rules`), the client (`client`), limits
(`limits`), the scan (`scan`), why a build failed (`diagnosis`). Invariant: the tag and the record come last; no line
and no error that leaves here holds the value of a secret.
"""

from __future__ import annotations

import logging
import secrets as random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from builders import confined, dockerfile
from builders.confined import LimitHit
from builders.containers import client, layers, limits, rules, sbom, scan
from builders.containers.engine import LABEL, NEW, PLATFORM_LABEL, TAGS, Image, tar_files
from builders.containers.hub_image import HubImage
from builders.containers.progress import Progress
from builders.containers.records import Facts, Record, key_of
from builders.diagnosis import diagnose_build
from builders.types import (
    Artifact,
    BuildCancelled,
    BuildError,
    BuilderUnavailable,
    BuildInputs,
    BuildLog,
    BuildPlan,
    Phase,
    SourceTree,
)
from runtime_images.network import CA_VARIABLES

if TYPE_CHECKING:
    from builders.containers.builder import DockerBuilder

log = logging.getLogger(__name__)
PREFIX = "image:"
COMPILE_FROM = 200_000
"""Bytes of modules beside the entry file from which compiling them at build is quicker than at every start."""
SCAN_SECONDS = 120.0
FACTS_BYTES = 8 << 20
KILLED = 137
"""Exit code of a step that was ended by SIGKILL: by the kernel, for memory, since nobody else kills one."""
NO_FORK = ("Cannot fork", "fork: retry: Resource temporarily unavailable", "can't start new thread")
CA_SECRET = "SPACES_CA"
CA_FILE = f"/run/secrets/{CA_SECRET}"
"""Where a step of a user's Dockerfile sees the platform's certificates. Not where its image has its own: a package that
writes those could not be installed."""


class Job:
    """One build."""

    def __init__(
        self,
        builder: DockerBuilder,
        plan: BuildPlan,
        source: SourceTree,
        owner: str,
        inputs: BuildInputs,
        log: BuildLog,
        cancelled: Callable[[], bool],
    ) -> None:
        self.builder, self.options, self.records, self.engine = (
            builder,
            builder.options,
            builder.records,
            builder.engine,
        )
        self.plan, self.source, self.owner, self.inputs, self.cancelled = plan, source, owner, inputs, cancelled
        self.is_own = plan.sdk == "docker"
        given = {**inputs.variables} if self.is_own else {}
        given_secrets = [self.records.scope(name, value) for name, value in sorted(inputs.secrets.items())]
        self.key = key_of(owner, inputs.space, plan.id, given, {"secrets": given_secrets if self.is_own else []})
        # An owner's Spaces share what is installed, as they do without containers; a Dockerfile's steps may have seen a
        # secret, which enters no cache key, so they are the Space's own.
        self.scope = self.records.scope(owner, plan.salt, *((inputs.space,) if self.is_own else ()))
        self.masks = scan.masks(inputs.secrets.values())
        self.log = _Masked(log, self.masks)
        self.mark = f"b{random.token_hex(12)}.invalid"
        self.deadline = time.monotonic() + self.options.limits.seconds
        self.hub = HubImage(self)
        self.steps = limits.Steps(builder.machine, self.mark, self.options.limits, self.options.reserve)

    def tell_waiting(self) -> None:
        self.log.phase(Phase.BUILDING, "waiting for the same build, which is under way")

    def build(self, work: Path) -> Artifact:
        """Raises BuildError, BuildCancelled, BuilderUnavailable."""
        try:
            self.log.phase(Phase.CLONING)
            with self.hub.held(work), self.options.fence():
                return self._build(work)
        except LimitHit as hit:
            raise self._explain([], None, hit) from hit

    def _build(self, work: Path) -> Artifact:
        text = self.text()
        for warning in (*self.plan.warnings, *text.warnings):
            self.log.line(f"warning: {warning}")
        self._export(work)
        self._pull(text.images)
        self._bound()
        self._write(work, text.text)
        progress = Progress(self.log, self.steps.packages)
        with self._image(work, text, progress) as image:
            facts = self._facts(work, text, image)
            self.log.phase(Phase.SEALING, "looking for secrets")
            self._scan(image)
            ref, tag = self._keep(image)
        name, commit = self.inputs.space or self.owner, self.inputs.commit or self.plan.tree_id
        document = sbom.of_image(facts.sbom, name, commit)
        record = Record(
            ref, image.id, tag, self.owner, self.inputs.space, self.plan.id, facts.lock + self.hub.lock_text,
            image.size, int(time.time()), self.hub.key,
        )  # fmt: skip
        self.records.add(self.key, record, document, text.text)
        return Artifact(ref, record.lock, image.size, progress.reused, document, text.text)

    def build_plain(self, work: Path, context: Path, text: rules.Checked, labels: dict[str, str], name: str) -> None:
        """An image of the platform's own making, without network, secrets and arguments."""
        folder = work / "plain"
        folder.mkdir()
        (folder / "Dockerfile").write_text(text.text)
        request = client.Request(
            context, folder / "Dockerfile", self._home(work), self.mark, labels=labels, name=name,
            cgroup_parent=limits.PARENT, packed=self._packed,
        )  # fmt: skip
        self._buildkit(request, Progress(Silent()), text)

    @staticmethod
    def _home(work: Path) -> Path:
        (work / "home").mkdir(exist_ok=True)
        return work / "home"

    # --- what is built ---------------------------------------------------------------------------------------------
    def text(self) -> rules.Checked:
        if not self.is_own:
            entry = next((part for part in self.plan.run.argv if part.endswith(".py")), "")
            modules = sum(e.size for e in self.source.entries() if e.path.endswith(".py") and e.path != entry)
            compile_app = self.plan.sdk != "static" and modules >= COMPILE_FROM
            images = replace(self.options.images, run=self.hub.name) if self.hub.name else self.options.images
            return rules.Checked(dockerfile.render(self.plan, images, self.scope, compile_app=compile_app))
        own = self.source.read("Dockerfile", 1 << 20)
        has_ca = "ca" in self.options.network
        allowed = rules.Allowed(
            scope=self.scope,
            variables=self.inputs.variables,
            secrets=frozenset(self.inputs.secrets),
            sources=self.options.sources,
            mounts=(f"--mount=type=secret,id={CA_SECRET},mode=0444",) if has_ca else (),
            arguments=dict.fromkeys(CA_VARIABLES, CA_FILE) if has_ca else {},
            platform=self.builder.platform,
        )
        return rules.check(own.decode("utf-8", "surrogateescape"), allowed)

    def _export(self, work: Path) -> None:
        size = sum(entry.size for entry in self.source.entries())
        if size > self.options.limits.disk:
            raise LimitHit("disk", size, self.options.limits.disk)
        (work / "context").mkdir()
        self.source.export(work / "context")

    def _write(self, work: Path, text: str) -> None:
        folder = work / "dockerfile"
        folder.mkdir()
        (folder / "Dockerfile").write_text(text, encoding="utf-8", errors="surrogateescape")
        if not self.is_own:
            # Wins over a .dockerignore in the repository, which is meant for the owner's own builds: all files are app.
            (folder / "Dockerfile.dockerignore").write_text("")

    def _pull(self, images: Sequence[str]) -> None:
        """See to it that the engine has what is built upon, and that it asks for nothing by itself."""
        for name in images:
            image = self.engine.image(name)
            if image is None:
                self.log.phase(Phase.BUILDING, f"pulling {name}")
                repository, _, tag = name.rpartition("@") if "@" in name else name.rpartition(":")
                self.engine.pull(repository, tag)
                image = self.engine.image(name)
            if image is not None and image.config.get("OnBuild"):
                raise BuildError(
                    "dockerfile_refused",
                    f"The image {name} has ONBUILD instructions, which would act in this build unseen.",
                    "Choose an image without them.",
                )
            self.check()

    # --- BuildKit --------------------------------------------------------------------------------------------------
    def _bound(self) -> None:
        if self.builder.machine.is_ours:
            bounds, slots = self.options.limits, self.options.slots
            limits.limit_all(
                self.builder.machine,
                memory=bounds.memory * slots,
                processes=bounds.processes * slots,
                cpus=self.options.cpus,
            )

    @contextmanager
    def _image(self, work: Path, text: rules.Checked, progress: Progress) -> Iterator[Image]:
        """Build an image. It has a name until the block is left; the engine may remove it then, unless it got another.

        Its id is asked for by that name: what `--iidfile` says is the id in one of Docker's image stores only.
        """
        name = f"{NEW}:{int(time.time())}-{random.token_hex(8)}"
        request = self._request(work, text, "" if self.is_own else dockerfile.APP_TARGET, name=name)
        self._buildkit(request, progress, text)
        try:
            image = self.engine.image(name)
            if image is None:
                raise BuilderUnavailable(f"The container engine lost the image {name} that it built just now.")
            yield image
        finally:
            try:
                self.engine.remove(name)
            except BuilderUnavailable as error:
                log.warning("the name %s of an image is left to the next pruning: %s", name, error)

    def _request(self, work: Path, text: rules.Checked, target: str, **more: object) -> client.Request:
        network = dict(self.options.network)
        if self.is_own:
            network = {CA_SECRET: network["ca"]} if "ca" in network else {}
        return client.Request(
            context=work / "context",
            dockerfile=work / "dockerfile" / "Dockerfile",
            home=self._home(work),
            mark=self.mark,
            target=target,
            args=text.arguments,
            labels=self._labels(),
            secrets={**(client.secret_bytes(self.inputs.secrets) if self.is_own else {}), **network},
            proxies=self.options.proxies,
            cgroup_parent=limits.PARENT,
            packed=self._packed,
            **more,  # type: ignore[arg-type]
        )

    @property
    def _packed(self) -> bool:
        """What goes to a registry is to be small; in the engine's own store nothing is compressed anyway."""
        return bool(self.options.registry) or not self.builder.machine.in_containerd

    def _labels(self) -> dict[str, str]:
        """https://github.com/opencontainers/image-spec/blob/main/annotations.md"""
        return {
            "org.opencontainers.image.revision": self.inputs.commit,
            "org.opencontainers.image.title": self.inputs.space,
            "spaces.plan": self.plan.id,
            "spaces.space": self.inputs.space,
            "spaces.owner": self.owner,
            LABEL: self.key,
            PLATFORM_LABEL: self.records.platform,
        }

    def _buildkit(self, request: client.Request, progress: Progress, text: rules.Checked, max_stdout: int = 0) -> bytes:
        def check() -> None:
            self.check()
            self.steps.check()
            progress.tick()

        try:
            code, output = client.run(
                self.builder.build_client, self.options.engine, request, progress.line, check, max_stdout=max_stdout
            )
        except BaseException as error:
            self.steps.kill()
            if isinstance(error, LimitHit):
                failed = progress.failed_step
                raise self._explain(list(failed.lines) if failed else [], None, error) from error
            raise
        if code:
            raise self._failed(progress, text)
        return output

    def check(self) -> None:
        if self.cancelled():
            raise BuildCancelled
        if time.monotonic() > self.deadline:
            raise LimitHit("seconds", self.options.limits.seconds, self.options.limits.seconds)

    def _failed(self, progress: Progress, text: rules.Checked) -> Exception:
        step, errors = progress.failed_step, list(progress.errors)
        if step is None and any("Cannot connect to the Docker daemon" in line for line in errors):
            return BuilderUnavailable(f"The container engine does not answer: {errors[-1]}")
        for line in errors:
            self.log.line(line)
        lines = [*(step.lines if step is not None else ()), *errors]
        found = self._explain(lines, progress.exit_code, self._known_limit(lines, progress.exit_code))
        number = rules.line_of(text, step.stage, step.number) if step is not None and self.is_own else 0
        if not number:
            return found
        where = f"Dockerfile line {number}: "
        return BuildError(found.reason, where + found.cause, found.fix, found.evidence)

    def _known_limit(self, lines: Sequence[str], code: int | None) -> LimitHit | None:
        """The limit that a step hit and ended by, quicker than it was looked at."""
        bounds = self.options.limits
        if not self.builder.machine.is_ours:
            return None
        if code == KILLED:
            return LimitHit("memory", bounds.memory, bounds.memory)
        if any(line.endswith(NO_FORK) for line in lines):
            return LimitHit("processes", bounds.processes, bounds.processes)
        return None

    def _explain(self, lines: Sequence[str], code: int | None, hit: LimitHit | None) -> BuildError:
        found = diagnose_build(lines, code, hit.kind if hit else None, limit=hit.limit if hit else 0)
        words = [client.masked(text, self.masks) for text in (found.cause, found.fix, *found.evidence)]
        return BuildError(found.reason, words[0], words[1], words[2:])

    # --- facts -----------------------------------------------------------------------------------------------------
    def _facts(self, work: Path, text: rules.Checked, image: Image) -> Facts:
        """What is installed below the app: read once for each environment."""
        if self.is_own:
            return self._layer_facts(image)
        bases = self.options.images
        environment = self.plan.environment
        key = key_of(self.scope, environment.id, list(environment.system), bases.run, bases.build, bases.static)
        known = self.records.facts(key)
        if known is not None:
            return known
        request = self._request(work, text, dockerfile.FACTS_TARGET, tar_output=True)
        archive = self._buildkit(request, Progress(Silent()), text, FACTS_BYTES)
        files = tar_files(archive, ("lock.txt", "status"))
        facts = _facts(files.get("lock.txt", ""), files.get("status", ""))
        self.records.add_facts(key, facts)
        return facts

    def _layer_facts(self, image: Image) -> Facts:
        """Of a Dockerfile of the owner's: what its layers show, where the engine's disk can be read."""
        locks: dict[str, None] = {}
        status = ""
        for layer, place in self._places(image).items():
            key = key_of("layer", layer)
            facts = self.records.facts(key)
            if facts is None:
                facts = Facts(*sbom.read_layer(place))
                self.records.add_facts(key, facts)
            locks.update(dict.fromkeys(facts.lock.splitlines()))
            status = facts.status or status
        return _facts("".join(f"{line}\n" for line in sorted(locks)), status)

    # --- after it --------------------------------------------------------------------------------------------------
    def _scan(self, image: Image) -> None:
        """Raises BuildError where one of the Space's own secrets is in the image."""
        looked_for = scan.needles(self.inputs.secrets)
        short = scan.unchecked(self.inputs.secrets)
        if short:
            self.log.line(f"not looked for, since shorter than {scan.SHORTEST} characters: {', '.join(short)}")
        if not looked_for:
            return
        deadline = time.monotonic() + SCAN_SECONDS
        known = self.records.scanned(self._secrets_key())
        names = (self.hub.name or self.options.images.run, self.options.images.static)
        bases = [self.engine.image(name) for name in names]
        skip = known | {layer for base in bases if base is not None for layer in base.layers}
        try:
            hit = self._hit(image, looked_for, skip, deadline)
        except scan.TooSlow as slow:
            raise BuildError(
                "secret_scan_timeout",
                f"Looking for secrets in the image took longer than {SCAN_SECONDS:.0f} seconds.",
                "Make the image smaller, or restart the Space to try again.",
            ) from slow
        if hit is not None:
            place = scan.without(hit.place, looked_for)
            raise BuildError(
                "secret_in_image",
                f"The value of the secret {hit.name} is in the image: {place}.",
                "Read it from the environment when the app runs, or from /run/secrets within one RUN; if it is in the "
                "repository, change the secret.",
                [f"{hit.name}: {place}"],
            )
        self.records.add_scanned(self._secrets_key(), image.layers)

    def _hit(self, image: Image, looked_for: list[scan.Needle], skip: set[str], deadline: float) -> scan.Hit | None:
        config = scan.text(repr(image.config), "the image's configuration", looked_for)
        hit = config or scan.text(repr(self.engine.history(image.id)), "the image's history", looked_for)
        new = [layer for layer in image.layers if layer not in skip]
        if hit is not None or not new:
            return hit
        places = self._places(image)
        if not places:
            return self._readable("image", lambda: scan.archive(self.engine.save(image.id), skip, looked_for, deadline))
        for layer in new:
            hit = self._readable(layer, partial(scan.layer, places[layer], looked_for, deadline))
            if hit is not None:
                return hit
        return None

    def _readable(self, what: str, look: Callable[[], scan.Hit | None]) -> scan.Hit | None:
        """What cannot be looked through is told: no build here makes such a layer, an image built upon may have one."""
        try:
            return look()
        except scan.Unreadable:
            self.log.line(f"warning: not looked through for secrets, since its compression is not known here: {what}")
            return None

    def _places(self, image: Image) -> dict[str, Path]:
        """Where its layers lie, if the engine's disk can be read."""
        machine = self.builder.machine
        return layers.find(image, machine.store) if machine.is_ours else {}

    def _secrets_key(self) -> str:
        """The same for the same values: names layers that were looked through for them."""
        return self.records.scope("secrets", *(part for pair in sorted(self.inputs.secrets.items()) for part in pair))

    def _keep(self, image: Image) -> tuple[str, str]:
        """Give the image the tag that keeps it; its reference and the tag."""
        tag = random.token_hex(16)
        self.engine.tag(image.id, TAGS, tag)
        if not self.options.registry:
            return f"{PREFIX}{image.id}", f"{TAGS}:{tag}"
        self.log.phase(Phase.SEALING, "pushing the image")
        repository = f"{self.options.registry}/{TAGS}/{self.owner}"
        self.engine.tag(image.id, repository, tag)
        return f"{PREFIX}{repository}@{self.engine.push(repository, tag)}", f"{TAGS}:{tag}"


def _facts(lock: str, status: str) -> Facts:
    return Facts(lock, status, sbom.of_environment(lock, status))


class Silent:
    """A log for builds that nobody reads."""

    def line(self, text: str) -> None: ...

    def phase(self, phase: Phase, text: str = "") -> None: ...


@dataclass(slots=True)
class _Masked:
    """A log without the values of secrets."""

    log: BuildLog
    needles: Sequence[str]

    def line(self, text: str) -> None:
        self.log.line(client.masked(text, self.needles)[: confined.MAX_LINE])

    def phase(self, phase: Phase, text: str = "") -> None:
        self.log.phase(phase, client.masked(text, self.needles))
