"""Building one dependency environment, once.

Owns: the order of steps (lock, venv, install, bytecode, lock file, marker) and telling how far it is. Does not own: the
commands' text (`uv`) or how they are run (`work`). Invariant: whoever holds the exclusive lock is the only one who
writes the folder; whoever leaves `ensure` holds the shared lock on a complete environment, until it is closed.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType

import runtime_images
from builders import uv
from builders.layout import Layout, remove_tree, write_durably
from builders.pythons import Interpreter
from builders.types import BuildError, EnvironmentPlan, InstallStep, Phase, SourceTree
from builders.work import Work

_SEAL = runtime_images.SEAL.read_text(encoding="utf-8")


class EnvironmentBuild:
    """One environment while a build makes or uses it. A context manager: leaving it releases the lock."""

    def __init__(
        self,
        plan: EnvironmentPlan,
        layout: Layout,
        owner: str,
        interpreters: tuple[Interpreter, ...],
        work: Work,
        source: SourceTree,
    ) -> None:
        self.plan, self.layout, self.owner, self.work, self.source = plan, layout, owner, work, source
        self.folder = layout.environment(owner, plan.id)
        self.reused = True
        self.size = 0
        self._interpreters = interpreters
        self._lock = layout.environment_lock(owner, plan.id)

    def __enter__(self) -> EnvironmentBuild:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.close()

    @property
    def complete(self) -> bool:
        return self.layout.complete(self.owner, self.plan.id)

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def lock_text(self) -> str:
        """What is installed, as requirement lines."""
        return str(self._marker()["lock"])

    @property
    def interpreter_prefix(self) -> Path:
        return Path(self._marker()["prefix"])

    def ensure(self) -> None:
        """Make the environment unless it is complete. Raises BuildError, BuildCancelled."""
        cancelled = self.work.budget.cancelled
        held = self._lock.shared_now()
        while not (held and self.complete):
            self._lock.exclusive(cancelled, self._tell_waiting)
            if not self.complete:
                self._make()
                self.reused = False
            self._lock.shared(cancelled)
            held = True
        self.work.visible.append(self.interpreter_prefix)
        if self.reused:
            self.work.log.phase(Phase.INSTALLING, "nothing to install: these packages are there already")

    def seal_command(self, folder: Path, cache: Path | None = None, hook: Path | None = None) -> tuple[str, ...]:
        """Puts the start hook in place as well: as the environment's own user, who alone may trust what lies there."""
        extra = (*([str(cache)] if cache else []), *([hook.read_text("utf-8")] if hook else []))
        return (str(self.python), "-I", "-S", "-c", _SEAL, str(folder), *extra)

    def _tell_waiting(self) -> None:
        self.work.log.phase(Phase.INSTALLING, "waiting for the same environment, which another build is making")

    def _make(self) -> None:
        self.layout.marker(self.owner, self.plan.id).unlink(missing_ok=True)
        remove_tree(self.folder)
        self.folder.mkdir()
        self.work.give(self.folder)
        self.work.budget.measured = (self.work.temp, self.folder)
        interpreter = self._interpreter()
        if interpreter:
            self.work.visible.append(interpreter.prefix)
        self.work.log.phase(Phase.RESOLVING, f"Python {interpreter.version if interpreter else self.plan.python}")
        try:
            self._venv(interpreter)
            for number, step in enumerate(self.plan.steps):
                self._install(step, self.work.inputs / str(number))
            self._seal(interpreter)
        except BaseException:
            remove_tree(self.folder)
            raise

    def _interpreter(self) -> Interpreter | None:
        wanted = self.plan.python
        return next((one for one in self._interpreters if wanted in (one.version, one.minor)), None)

    def _venv(self, interpreter: Interpreter | None) -> None:
        asked = str(interpreter.path) if interpreter else self.plan.python
        try:
            self.work.run(uv.venv(self.work.uv, asked, self.folder), cwd=self.work.scratch, measure=False)
        except BuildError as error:
            if interpreter:
                raise
            at_hand = ", ".join(sorted({one.minor for one in self._interpreters}))
            raise BuildError(
                "python_not_available",
                f"Python {self.plan.python} is not on this machine and could not be fetched.",
                f"Set python_version to one that is there ({at_hand}), or have it installed.",
                error.evidence,
            ) from error

    def _install(self, step: InstallStep, folder: Path) -> None:
        files = self._write_files(step, folder)
        if step.kind == "project":
            self.work.run(
                uv.export(self.work.uv, self.folder, "locked-requirements.txt"), cwd=folder, writable=(folder,)
            )
            files = ("locked-requirements.txt",)
        self.work.log.phase(Phase.RESOLVING, step.label)
        progress = uv.Progress(before=self._placed())

        def show() -> None:
            phase = Phase.INSTALLING if progress.total else Phase.RESOLVING
            self.work.log.phase(phase, progress.words if progress.total else step.label)

        def on_line(text: str) -> None:
            if progress.line(text):
                show()

        def on_tick() -> None:
            placed = self._placed() - progress.before
            if progress.total and placed != progress.placed:
                progress.placed = placed
                show()

        command = uv.install(self.work.uv, self.folder, files, step.requirements)
        self.work.run(command, cwd=folder, writable=(folder,), on_line=on_line, on_tick=on_tick)

    def _write_files(self, step: InstallStep, folder: Path) -> tuple[str, ...]:
        """Put the step's files where the command runs; those to name on its command line."""
        folder.mkdir(parents=True)
        if self.plan.needs_tree:
            self.source.export(folder)
        for name, text in step.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.write_text(text, encoding="utf-8")
        self.work.give_tree(folder)
        return tuple(step.files)[:1]

    def _seal(self, interpreter: Interpreter | None) -> None:
        self.work.log.phase(Phase.SEALING, "compiling bytecode")
        for site in self.folder.glob("lib/python3.*/site-packages"):
            command = self.seal_command(site, self.work.python_dir / "cache", runtime_images.START_HOOK)
            self.work.run(command, cwd=self.work.scratch, measure=False)
        frozen = self.work.run(uv.freeze(self.work.uv, self.folder), cwd=self.work.scratch, quiet=True, measure=False)
        self.size = self.work.size(self.folder)
        prefix = interpreter.prefix if interpreter else self.python.resolve().parent.parent
        lock = "".join(f"{line}\n" for line in frozen if not line.startswith(("Using ", "warning")))
        marker = self.layout.marker(self.owner, self.plan.id)
        marker.parent.mkdir(exist_ok=True)
        write_durably(marker, {"lock": lock, "python": self.plan.python, "prefix": str(prefix)})

    def _placed(self) -> int:
        return sum(1 for _ in self.folder.glob("lib/python3.*/site-packages/*.dist-info"))

    def _marker(self) -> dict[str, str]:
        marker: dict[str, str] = json.loads(self.layout.marker(self.owner, self.plan.id).read_text(encoding="utf-8"))
        return marker
