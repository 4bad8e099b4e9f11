"""Builds without containers: virtual environments made by uv, shared between an owner's Spaces, and app snapshots.

Owns: VenvBuilder, the Builder of the embedded mode, and the artifacts it leaves on disk. Does not own: paths and locks
(`layout`), running commands safely (`confined`), what uv is told (`uv`), why a build failed (`diagnosis`).
Invariant: an environment is used only once its marker is durable, an app only once its folder has been
renamed into place; so a build that is killed at any moment leaves nothing that `exists`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from uv import find_uv_bin

import runtime_images
from builders import confined, preload, pythons, usage
from builders.environment import EnvironmentBuild
from builders.layout import Layout, Lock, Ref, owner_key, remove_tree, sync_folder, write_durably
from builders.types import (
    NO_INPUTS,
    Artifact,
    BuildCancelled,
    BuildError,
    BuildInputs,
    BuildLimits,
    BuildLog,
    BuildPlan,
    Hub,
    Phase,
    SourceTree,
)
from builders.work import Work

CACHE_BYTES = 20 << 30
"""Largest package cache of one owner."""


class ArtifactMissing(LookupError):
    """The artifact was never finished, or was removed: build it again."""


@dataclass(frozen=True, slots=True)
class LocalArtifact:
    """What a process orchestrator needs to start an artifact."""

    app_dir: Path
    """The app's files; the working directory. Read-only: copy what the app may change."""
    environment_dir: Path | None
    """The virtual environment; its `bin` goes first on PATH. None for a static site."""
    python: Path
    """The interpreter behind `python` in argv; the platform's own where there is no environment."""
    python_prefix: Path
    """The installation behind the environment; a sandbox must show it."""
    python_path: Path | None = None
    """For `{PLATFORM_PYTHON} -m runtime_images…`: what must be on PYTHONPATH."""
    hub_dir: Path | None = None
    """A layer of preload_from_hub: `home` is what the app is to find at `preload.CACHE`, with links into `cache`."""


class HubLayer:
    """What a build preloads from a hub, made or found as it is entered, held against removal until it is left.

    Raises BuildError, BuildCancelled on entering.
    """

    def __init__(self, entries: Sequence[str], hub: Hub | None, layout: Layout, owner: str, work: Work) -> None:
        self._entries, self._hub, self._layout, self._owner, self._work = entries, hub, layout, owner, work
        self.id = self.lock_text = ""
        self.size = 0
        self._lock: Lock | None = None

    def __enter__(self) -> HubLayer:
        if self._entries:
            layer = preload.resolve(self._entries, self._hub, self._work.budget.limits.preload, self._work.log)
            if layer.parts and self._hub is not None:
                self._use(layer, self._hub)
        return self

    def __exit__(self, *_error: object) -> None:
        if self._lock is not None:
            self._lock.close()

    def _use(self, layer: preload.Layer, hub: Hub) -> None:
        self.id = layer.id
        self.lock_text = preload.lock_text(layer)
        self._lock = self._layout.hub_lock(self._owner, self.id)
        try:
            self._lock.shared(self._work.budget.cancelled)
            if self._layout.hub(self._owner, self.id).is_dir():
                self._work.log.phase(Phase.INSTALLING, "nothing to preload: these files are there already")
            else:
                self._make(layer, hub)
        except BaseException:
            self._lock.close()
            raise

    def _make(self, layer: preload.Layer, hub: Hub) -> None:
        target, draft, budget = self._layout.hub(self._owner, self.id), self._work.temp / "hub", self._work.budget
        for name in ("cache", "home"):
            (draft / name).mkdir(parents=True)

        def check() -> None:
            if budget.cancelled():
                raise BuildCancelled
            if time.monotonic() > budget.deadline:
                raise self._work.explain([], None, confined.LimitHit("seconds", 0, budget.limits.seconds))

        target.parent.mkdir(exist_ok=True)
        have = [folder / "cache" for folder in target.parent.iterdir()]
        limit, log = budget.limits.preload, self._work.log
        self.size = preload.fetch(layer, hub, draft / "cache", limit=limit, log=log, check=check, have=have)
        preload.skeleton(draft / "cache", target / "cache", draft / "home")
        preload.sync(draft)
        try:
            draft.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another build of the same layer was first
                raise
        sync_folder(target.parent)


class VenvBuilder:
    """The Builder of machines without containers. Safe to use from several threads and processes at once.

    `root` is its folder; `index` the variables that say where packages come from (`uv.index_settings`); `run_as` the
    uid and gid of untrusted commands, where this process is root; `hidden` folders that builds must not see (needs
    bubblewrap). What could not be had is in `warnings`.
    """

    def __init__(
        self,
        root: Path,
        *,
        limits: BuildLimits | None = None,
        index: Mapping[str, str] | None = None,
        uv: str | None = None,
        run_as: pythons.Identity | None = None,
        hidden: Sequence[Path] = (),
        extra_pythons: Sequence[Path] = (),
    ) -> None:
        self.layout = Layout(root.resolve())
        self.layout.prepare()
        self.limits = limits or BuildLimits()
        self.index = dict(index or {})
        self.warnings: list[str] = []
        self._extra = tuple(extra_pythons)
        self._mark = "b" + hashlib.sha256(str(self.layout.root).encode()).hexdigest()[:16]
        self._finding = threading.Lock()
        self.run_as, fault = who_builds(run_as, self.layout.root, self._extra)
        self.warnings += [fault] if fault else []
        self.uv = self._runnable(uv or find_uv_bin())
        home = Path.home().resolve()
        hide = {self.layout.root, *(path.resolve() for path in hidden), *([home] if home != Path("/") else [])}
        self.sandbox = confined.detect(self.run_as, sorted(hide))
        usage.kill_leftovers(self._mark)
        self.layout.sweep()

    @property
    def isolation(self) -> str:
        """What holds builds apart from this machine, in words."""
        return self.sandbox.words

    @cached_property
    def interpreters(self) -> tuple[pythons.Interpreter, ...]:
        """Python installations at hand; found once, on first use."""
        with self._finding:
            return pythons.find(self.run_as, self._extra)

    @property
    def available_pythons(self) -> tuple[str, ...]:
        """Versions for `make_plan`: `3.11` and `3.11.7` of every interpreter."""
        return tuple(dict.fromkeys(name for one in self.interpreters for name in (one.minor, one.version)))

    # --- Builder ---------------------------------------------------------------------------------------------------
    def ref(self, plan: BuildPlan, owner: str) -> str:
        """The reference that a build of this plan for this owner has."""
        return str(Ref(owner_key(owner), plan.id))

    def exists(self, artifact_ref: str) -> bool:
        try:
            self.resolve(artifact_ref)
        except (ArtifactMissing, ValueError):
            return False
        return True

    def resolve(self, artifact_ref: str) -> LocalArtifact:
        """Where an artifact lies. Raises ArtifactMissing, or ValueError for a reference of another kind."""
        ref = Ref.parse(artifact_ref)
        record = self._record(ref)
        if not record["environment"]:
            return LocalArtifact(
                self.layout.app(ref) / "app",
                None,
                Path(sys.executable),
                Path(sys.base_prefix),
                runtime_images.PYTHON_PATH,
            )
        environment = self.layout.environment(ref.owner, record["environment"])
        if not self.layout.complete(ref.owner, record["environment"]):
            raise ArtifactMissing(f"the environment of {artifact_ref} is gone; build it again")
        hub = self.layout.hub(ref.owner, record["hub"]) if record.get("hub") else None
        if hub is not None and not hub.is_dir():
            raise ArtifactMissing(f"what {artifact_ref} preloads from a hub is gone; build it again")
        python = environment / "bin" / "python"
        prefix = Path(record["python_prefix"])
        return LocalArtifact(self.layout.app(ref) / "app", environment, python, prefix, hub_dir=hub)

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
            raise BuildError(
                "needs_container",
                f"{plan.needs_container[0]}.",
                "Use another sdk, remove packages.txt where the machine has those packages, or ask for a platform "
                "that builds containers.",
                plan.needs_container,
            )
        ref = Ref(owner_key(owner), plan.id)
        if self.exists(str(ref)):
            log.phase(Phase.SEALING, "already built")
            return Artifact(str(ref), self._record(ref)["lock"], 0, reused_environment=True)
        with self.layout.using_cache(ref.owner, cancelled), self.layout.temp() as temp:
            work = self._work(ref.owner, temp, log, cancelled)
            draft = temp / "artifact"
            self._export(plan, source, draft / "app", work)
            if not plan.environment.id:
                return self._place(ref, plan, draft, work, None, None)
            with (
                HubLayer(plan.preload, inputs.hub, self.layout, ref.owner, work) as hub,
                EnvironmentBuild(
                    plan.environment, self.layout, ref.owner, self.interpreters, work, source
                ) as environment,
            ):
                environment.ensure()
                return self._place(ref, plan, draft, work, environment, hub)

    def remove(self, artifact_ref: str) -> None:
        ref = Ref.parse(artifact_ref)
        try:
            record = self._record(ref)
        except ArtifactMissing:
            return
        with self.layout.temp() as temp:
            try:
                self.layout.app(ref).rename(temp / "gone")
            except FileNotFoundError:
                return
        environment, hub = record["environment"], record.get("hub", "")
        if environment:
            folders = (self.layout.marker(ref.owner, environment), self.layout.environment(ref.owner, environment))
            self._remove_unused(ref.owner, "environment", environment, folders)
        if hub:
            self._remove_unused(ref.owner, "hub", hub, (self.layout.hub(ref.owner, hub),))

    def prune(self) -> int:
        return self.trim_caches(CACHE_BYTES)

    def close(self) -> None:
        """Builds leave nothing behind that is not of use to the next start."""

    def free_disk(self) -> int:
        return shutil.disk_usage(self.layout.root).free

    def trim_caches(self, max_bytes: int) -> int:
        """Delete every package cache that is larger; the bytes freed. Reads all of them: once a day will do."""
        freed = 0
        for folder in self.layout.root.glob("owners/*/python/cache"):
            size = usage.disk([folder])
            if size > max_bytes and self.layout.drop_cache(folder.parent.parent.name):
                freed += size
        return freed

    # --- inside ----------------------------------------------------------------------------------------------------
    def _work(self, owner: str, temp: Path, log: BuildLog, cancelled: Callable[[], bool]) -> Work:
        python_dir = self.layout.python(owner)
        for folder in (python_dir, python_dir / "environments"):
            folder.mkdir(parents=True, exist_ok=True)
        for folder in (python_dir / "cache", python_dir / "interpreters"):
            if not folder.exists():
                folder.mkdir(exist_ok=True)
                if self.run_as:
                    os.chown(folder, *self.run_as)
        budget = confined.Budget(
            self.limits, time.monotonic() + self.limits.seconds, cancelled, (temp,), confined.new_mark(self._mark)
        )
        work = Work(temp, python_dir, self.uv, self.index, self.sandbox, budget, log)
        work.prepare()
        return work

    def _export(self, plan: BuildPlan, source: SourceTree, target: Path, work: Work) -> None:
        work.log.phase(Phase.CLONING)
        size = sum(entry.size for entry in source.entries())
        if size > self.limits.disk:
            raise work.explain([], None, confined.LimitHit("disk", size, self.limits.disk))
        target.mkdir(parents=True)
        source.export(target)
        for warning in plan.warnings:
            work.log.line(f"warning: {warning}")
        if not plan.build_command:
            return
        if plan.build_command[:1] == ("sh",) and "npm " in plan.build_command[-1] and not shutil.which("npm"):
            raise BuildError(
                "npm_missing",
                f"`{plan.build_command[-1]}` needs npm, which this machine does not have.",
                "Ask for Node.js to be installed, or commit the finished site and remove app_build_command.",
            )
        self._build_site(plan, target, work)

    def _build_site(self, plan: BuildPlan, target: Path, work: Work) -> None:
        """Run the site's own build, and keep only what it put out."""
        site = work.temp / "site"
        target.rename(site)
        work.give_tree(site)
        work.log.phase(Phase.BUILDING, plan.build_command[-1])
        cache = work.python_dir / "cache" / "npm"
        work.run(plan.build_command, cwd=site, writable=(site,), env={"CI": "true", "npm_config_cache": str(cache)})
        output = (site / plan.output_dir).resolve()
        if not output.is_relative_to(site.resolve()) or not output.is_dir():
            raise BuildError(
                "no_build_output",
                f"`{plan.build_command[-1]}` did not make the folder `{plan.output_dir or '.'}`.",
                "Set app_file to the page inside the folder that the build makes, for example dist/index.html.",
            )
        output.rename(target)
        for name in ("node_modules", ".git"):
            remove_tree(target / name)

    def _place(
        self,
        ref: Ref,
        plan: BuildPlan,
        draft: Path,
        work: Work,
        environment: EnvironmentBuild | None,
        hub: HubLayer | None,
    ) -> Artifact:
        work.log.phase(Phase.SEALING)
        if environment:
            self._compile_app(plan, draft / "app", work, environment)
        lock = (environment.lock_text if environment else "") + (hub.lock_text if hub else "")
        record = {
            "format": 1,
            "ref": str(ref),
            "sdk": plan.sdk,
            "tree": plan.tree_id,
            "argv": plan.run.argv,
            "env": dict(plan.run.env),
            "environment": plan.environment.id,
            "python_prefix": str(environment.interpreter_prefix) if environment else "",
            "hub": hub.id if hub else "",
            "lock": lock,
            "built": int(time.time()),
        }
        write_durably(draft / "artifact.json", record)
        size = usage.disk([draft])
        target = self.layout.app(ref)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            draft.rename(target)
        except OSError:
            if not self.exists(str(ref)):  # otherwise the same build ran twice, and the other one was first
                raise
        sync_folder(target.parent)
        reused = environment.reused if environment else False
        size += (environment.size if environment else 0) + (hub.size if hub else 0)
        return Artifact(str(ref), lock, size, reused)

    def _compile_app(self, plan: BuildPlan, app: Path, work: Work, environment: EnvironmentBuild) -> None:
        """Bytecode for the app's modules; not for a lone entry file, which Python compiles at every start anyway."""
        entry = next((part for part in plan.run.argv if part.endswith(".py")), "")
        modules = [path for path in app.rglob("*.py") if path != app / entry]
        if modules:
            work.give_tree(app)
            work.run(environment.seal_command(app), cwd=app, writable=(app,), quiet=True)

    def _record(self, ref: Ref) -> dict[str, str]:
        try:
            text = (self.layout.app(ref) / "artifact.json").read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise ArtifactMissing(f"{ref} does not exist; build it again") from error
        record: dict[str, str] = json.loads(text)
        return record

    def _remove_unused(self, owner: str, kind: str, id: str, places: Sequence[Path]) -> None:
        """Delete what no app of its owner uses any more, unless a build holds it just now. The first place goes first:
        without it nobody takes the others for whole."""
        lock = self.layout.hub_lock(owner, id) if kind == "hub" else self.layout.environment_lock(owner, id)
        try:
            if not lock.try_exclusive():
                return
            for record in self.layout.app(Ref(owner, "")).glob("*/artifact.json"):
                if json.loads(record.read_text(encoding="utf-8")).get(kind) == id:
                    return
            for place in places:
                if place.is_dir():
                    remove_tree(place)
                place.unlink(missing_ok=True)
        finally:
            lock.close()

    def _runnable(self, uv: str) -> str:
        """A place of uv where `run_as` can start it: a platform that root installed in its own home has it there."""
        if self.run_as is None or confined.can_run(uv, self.run_as):
            return uv
        return str(self.layout.program(Path(uv)))


def who_builds(
    run_as: pythons.Identity | None, root: Path, extra_pythons: Sequence[Path] = ()
) -> tuple[pythons.Identity | None, str]:
    """`run_as` where that user can enter the folder and start a Python; else None, this process's own, and why."""
    if run_as is None:
        return None, ""
    if os.geteuid() != 0:
        return None, f"Builds cannot run as uid {run_as[0]}: this process is not root."
    found = pythons.find(run_as, extra_pythons)
    if not found:
        return None, (
            f"Builds run as this process's own user: uid {run_as[0]} cannot start any Python of this machine "
            f"(tried {sys.base_prefix} and others; install one below /usr)."
        )
    if not confined.can_reach(found[0].path, root, run_as):
        return None, (
            f"Builds run as this process's own user: uid {run_as[0]} cannot enter {root} "
            f"(give its parent folders mode 711)."
        )
    return run_as, ""
