"""One running build: its scratch folder, its budget, its log, and the commands it runs.

Owns: the environment that untrusted commands see, keeping the last lines for the explanation, and turning a failed
command into a BuildError. Does not own: which commands (`venv`, `environment`). Invariant: no variable of the
platform's own environment reaches a command unless it is in `index`.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from builders import confined, usage, uv
from builders.diagnosis import diagnose_build
from builders.types import BuildError, BuildLog

_KEPT = 400
"""Lines of a command's output that its explanation is looked for in."""


@dataclass(slots=True)
class Work:
    temp: Path
    """Of this build, gone after it; its commands cannot write here, only in folders they are given."""
    python_dir: Path
    """The owner's cache and environments: what commands may write."""
    uv: str
    index: Mapping[str, str]
    sandbox: confined.Sandbox
    budget: confined.Budget
    log: BuildLog
    visible: list[Path] = field(default_factory=list)

    @property
    def scratch(self) -> Path:
        """The commands' own folder: their home and /tmp."""
        return self.temp / "scratch"

    @property
    def inputs(self) -> Path:
        """Where requirement files are laid out for the commands."""
        return self.temp / "inputs"

    def prepare(self) -> None:
        """Make the folders, once, before anything untrusted runs."""
        self.inputs.mkdir()
        for folder in (self.scratch, self.scratch / "home", self.scratch / "tmp"):
            folder.mkdir(mode=0o700)
            self.give(folder)

    def give(self, path: Path) -> None:
        """Let the commands' user own a path."""
        if self.sandbox.run_as:
            os.chown(path, *self.sandbox.run_as, follow_symlinks=False)

    def give_tree(self, folder: Path) -> None:
        if not self.sandbox.run_as:
            return
        for base, folders, files in os.walk(folder):
            for name in (*folders, *files):
                self.give(Path(base, name))
        self.give(folder)

    def run(
        self,
        argv: Sequence[str],
        *,
        cwd: Path,
        writable: Sequence[Path] = (),
        env: Mapping[str, str] | None = None,
        quiet: bool = False,
        on_line: Callable[[str], None] | None = None,
        on_tick: Callable[[], None] = lambda: None,
        measure: bool = True,
    ) -> list[str]:
        """Run a command of this build; its last lines. Raises BuildError with the explanation, or BuildCancelled.

        `quiet` output is not shown; `on_line` sees every line beside the log; `measure` as for `confined.run`.
        """
        kept: deque[str] = deque(maxlen=_KEPT)

        def take(text: str) -> None:
            kept.append(text)
            if not quiet:
                self.log.line(text)
            if on_line:
                on_line(text)

        command = confined.Command(
            tuple(argv),
            cwd,
            {**self._env(), **(env or {})},
            (self.python_dir, *writable),
            self.scratch,
            (Path(self.uv), *self.visible),
        )
        try:
            code = confined.run(command, self.sandbox, self.budget, take, on_tick, measure=measure)
        except confined.LimitHit as hit:
            raise self.explain(list(kept), None, hit) from hit
        if code:
            raise self.explain(list(kept), code, None)
        return list(kept)

    def size(self, folder: Path) -> int:
        """Bytes below a folder, held against the limit. Raises BuildError."""
        used = usage.disk([folder])
        try:
            self.budget.check_used(used)
        except confined.LimitHit as hit:
            raise self.explain([], None, hit) from hit
        return used

    def explain(self, lines: Sequence[str], code: int | None, hit: confined.LimitHit | None) -> BuildError:
        found = diagnose_build(lines, code, hit.kind if hit else None, limit=hit.limit if hit else 0)
        return BuildError(found.reason, found.cause, found.fix, found.evidence)

    def _env(self) -> dict[str, str]:
        return {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.scratch / "home"),
            "TMPDIR": str(self.scratch / "tmp"),
            "LANG": "C.UTF-8",
            **uv.environment(self.index, self.python_dir / "cache", self.python_dir / "interpreters"),
        }
