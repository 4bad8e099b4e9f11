"""What `docker build --progress=plain` says, as steps, phases and lines.

Owns: reading that output, both of Docker 20.10's client and of buildx. Does not own: running it (`client`), or why a
step failed (`diagnosis`). Invariant: pure and total; memory is bounded whatever is printed; no line that a step printed
can pass for one of BuildKit's own, since BuildKit puts its number and time before each.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from builders import dockerfile, uv
from builders.types import BuildLog, Phase

_LINE = re.compile(r"#(?P<n>\d+) (?P<rest>.*)")
_OUTPUT = re.compile(r"\d+\.\d+ (?P<text>.*)|\d+\.\d+$")
_STEP = re.compile(r"\[(?:(?P<stage>[\w.-]+) +)?(?P<at>\d+)/(?P<of>\d+)\] (?P<what>.*)")
_INSIDE = re.compile(r"\[internal\] |sha256:|transferring |resolve |extracting |exporting |writing |naming |preparing ")
_OURS = re.compile(r"\s: (?P<kind>install|seal|site build|system packages)\b ?(?P<label>'(?:[^']|'\"'\"')*'|[\w.=+-]*)")
_EXIT = re.compile(r"(?:exit code: |returned a non-zero code: )(?P<code>\d+)")
_FAILED = re.compile(r"(?:failed to solve|ERROR|error)[^:]*: (?P<text>.*)")
KEPT_LINES = 400
LOOK_SECONDS = 0.5
MAX_STEPS = 2000
MAX_LINE = 4000
_SHOWN = 160


@dataclass(slots=True)
class Step:
    """One step of the Dockerfile."""

    name: str
    kind: str = ""
    """Of a generated Dockerfile: `install`, `seal`, `site build`, `system packages`."""
    cached: bool = False
    failed: bool = False
    stage: str = ""
    """The stage's name; empty where there is only one."""
    number: int = 0
    """Number of its instruction within its stage, as BuildKit counts."""
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_LINES))


@dataclass(slots=True)
class Progress:
    """Takes the output line by line; tells `log` what people should see."""

    log: BuildLog
    packages: Callable[[], int] = lambda: 0
    """How many packages are in place by now, for the numbers shown while they are installed."""
    steps: dict[str, Step] = field(default_factory=dict)
    errors: deque[str] = field(default_factory=lambda: deque(maxlen=20))
    """What BuildKit said itself, outside of any step."""
    exit_code: int | None = None
    """Of the command that failed."""
    _install: uv.Progress | None = None
    _label: str = ""
    _next_look: float = 0.0

    def line(self, text: str) -> None:
        """One line of output."""
        text = text.rstrip()[:MAX_LINE]
        match = _LINE.fullmatch(text)
        if match is None:
            if text and not text.startswith(("------", " > [", "Dockerfile:", "---")):
                self._own(text)
            return
        number, rest = match["n"], match["rest"]
        step = self.steps.get(number)
        output = _OUTPUT.fullmatch(rest)
        if step is not None and output is not None:
            said, end = _split(output["text"] or "", number)
            self._output(step, said)
            if end:
                self.line(f"#{number} {end}")
        elif step is not None and rest == "CACHED":
            step.cached = True
            self.log.line(f"cached: {_short(step.name)}")
        elif rest.startswith("ERROR"):
            self._error(step, rest)
        elif _STEP.match(rest):
            self._header(number, rest)
        elif rest.startswith(("exporting to ", "pushing ")):
            self.log.phase(Phase.SEALING, "writing the image")
        elif rest.startswith(("[internal]", "DONE", "CANCELED", "...")) or _INSIDE.match(rest):
            return

    def tick(self) -> None:
        """Now and then while a step runs: show how far an install is."""
        now = time.monotonic()
        if self._install is None or not self._install.total or self._install.finished or now < self._next_look:
            return
        self._next_look = now + LOOK_SECONDS
        placed = self.packages()
        if placed != self._install.placed:
            self._install.placed = placed
            self.log.phase(Phase.INSTALLING, self._install.words)

    @property
    def failed_step(self) -> Step | None:
        return next((step for step in self.steps.values() if step.failed), None)

    @property
    def reused(self) -> bool:
        """Whether no package was installed: every step that installs came from the cache."""
        installs = [step for step in self.steps.values() if step.kind == dockerfile.INSTALLING]
        return bool(installs) and all(step.cached for step in installs)

    # --- inside ----------------------------------------------------------------------------------------------------
    def _header(self, number: str, rest: str) -> None:
        if number in self.steps or len(self.steps) >= MAX_STEPS:
            return  # told again when BuildKit goes back to it
        match = _STEP.match(rest)
        step = self.steps[number] = Step(rest)
        if match is None or not match["what"].startswith(("RUN ", "COPY ", "ADD ")):
            return
        step.stage, step.number = match["stage"] or "", int(match["at"])
        ours = _OURS.search(match["what"]) if match["what"].startswith("RUN ") else None
        if ours is None:
            if not match["what"].startswith("COPY --from=environment"):
                self.log.phase(Phase.BUILDING, f"{match['at']}/{match['of']} {_short(match['what'])}")
            return
        step.kind, label = ours["kind"], ours["label"].strip("'")
        if step.kind == dockerfile.INSTALLING:
            self._install, self._label = uv.Progress(), label
            self.log.phase(Phase.RESOLVING, label)
        elif step.kind == dockerfile.SEALING:
            self.log.phase(Phase.SEALING, "start hook and lock")
        elif step.kind == dockerfile.SITE:
            self.log.phase(Phase.BUILDING, "the site")
        else:
            self.log.phase(Phase.INSTALLING, dockerfile.SYSTEM)

    def _output(self, step: Step, text: str) -> None:
        if not text.strip():
            return
        step.lines.append(text)
        self.log.line(text)
        if step.kind == dockerfile.INSTALLING and self._install is not None and self._install.line(text):
            words = self._install.words if self._install.total else self._label
            self.log.phase(Phase.INSTALLING if self._install.total else Phase.RESOLVING, words)

    def _error(self, step: Step | None, rest: str) -> None:
        if step is not None:
            step.failed = True
        self._own(rest)

    def _own(self, text: str) -> None:
        code = _EXIT.search(text)
        if code is not None:
            self.exit_code = int(code["code"])
        self.errors.append(text)


def _split(text: str, number: str) -> tuple[str, str]:
    """Output without a newline at its end has BuildKit's own next line right behind it."""
    match = re.fullmatch(rf"(.*?)#{number} (DONE \d+\.\d+s|ERROR.*|CANCELED)", text)
    return (match[1], match[2]) if match else (text, "")


def _short(text: str) -> str:
    text = re.sub(r"\s+", " ", re.sub(r" --mount=\S+", "", text))
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
