"""Follows a deploy to its end: the URL, or the reason.

Owns: the verdict on a Space's status for one commit (pure), and showing phases and log lines while waiting. Does not
own: the push, or what the platform does. Invariant: success is said of the pushed commit only, never of an older
version that still serves.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from spaces_platform.cli.console import FAILED, Failure, emit, is_live, note, say

if TYPE_CHECKING:
    from spaces_platform.cli.client import Client

STEADY_SECONDS = 3.0
"""How long a stage must hold without proof that it speaks of our commit, before it is believed."""
UNREACHED_SECONDS = 20.0
"""How long an app may run without a gateway that leads to it: one that has just started may look for the platform."""
POLL_SECONDS = (0.15, 1.0)
"""First and last interval of looking; it grows while nothing changes."""
TAIL = 6
UNREACHABLE_SECONDS = 60.0
PHASE_TOOK = re.compile(r"\s+(\w+) took ([\d.]+) s$")
PHASE_BEGINS = re.compile(r"--> \w+|=====")
"""How a build's log tells its phases."""
BUILD_PHASES = ("cloning", "resolving", "installing", "building", "sealing")
_FAILED = {"BUILD_ERROR": "build", "RUNTIME_ERROR": "deployment", "CONFIG_ERROR": "", "NO_APP_FILE": ""}


@dataclass(frozen=True, slots=True)
class Verdict:
    ok: bool
    stage: str
    wake: bool = False
    """It is built and asleep: a visit is all that is missing."""


def verdict(
    status: Mapping[str, Any], commit: str, steady: float, old: Collection[tuple[str, int]] = ()
) -> Verdict | None:
    """What a status says about this commit; None: not decided yet. Pure.

    `steady`: seconds since the status last changed; `old`: what ended before, as (kind, id). A stage is
    written a moment after the head, so a failure or a success counts at once only where the build or deployment it is
    about names the commit, else when it holds.
    """
    stage = str(status["stage"])
    if status.get("head") != commit:
        # Somebody pushed again: that is another deploy, and its outcome is not ours to claim.
        return Verdict(False, "SUPERSEDED") if steady >= STEADY_SECONDS else None
    if stage == "RUNNING" and (status.get("servingCommit") == commit or steady >= STEADY_SECONDS):
        # The address is given once it answers.
        if status["reachable"]:
            return Verdict(True, stage)
        return Verdict(False, "UNREACHED") if steady >= UNREACHED_SECONDS else None
    if stage in _FAILED:
        proven = any(failed not in old for failed in failures(status, commit) if failed[0] == _FAILED[stage])
        return Verdict(False, stage) if proven or steady >= STEADY_SECONDS else None
    if stage in ("PAUSED", "DELETING") and steady >= STEADY_SECONDS / 3:
        return Verdict(False, stage)
    if stage == "SLEEPING" and steady >= STEADY_SECONDS / 3:
        return Verdict(True, stage, wake=True)
    return None


def failures(status: Mapping[str, Any], commit: str) -> frozenset[tuple[str, int]]:
    """The failed build and deployment of this commit that a status names, as (kind, id). Pure."""
    named = ((kind, status.get(kind) or {}) for kind in ("build", "deployment"))
    return frozenset((k, a["id"]) for k, a in named if a.get("commit") == commit and a.get("status") == "FAILED")


def failure(status: Mapping[str, Any], stage: str) -> Failure:
    """Why a deploy did not succeed, for people. Pure."""
    name, serving = status.get("name"), status.get("servingCommit")
    fixed = {
        "SUPERSEDED": ("Another push came after this one.", f"See how it goes: spaces logs -f {name}"),
        "PAUSED": ("The Space is paused: the push is kept, and nothing is built.", f"Run `spaces restart {name}`."),
        "UNREACHED": (
            "The app runs, but no gateway leads to it yet.",
            f"See whether the gateway runs: spaces doctor. Then: spaces info {name}",
        ),
        "DELETING": ("The Space is being deleted.", ""),
    }
    message, fix = fixed.get(stage) or (str(status.get("message") or stage), "")
    if not fix and "\n" in message:
        message, _, fix = message.partition("\n")
    kept = f"The version before goes on serving ({serving[:8]})." if serving else ""
    return Failure(
        message, "\n  ".join(part for part in (fix, kept) if part), code=FAILED, stage=stage,
        reason=status.get("reason"), evidence=list(status.get("evidence") or ()), page=status.get("page"),
    )  # fmt: skip


class View(Protocol):
    """Where a deploy in progress is shown."""

    def phase(self, phase: str, text: str) -> None: ...

    def log(self, line: str) -> None: ...

    def close(self, ok: bool) -> None: ...


class JsonView:
    """One JSON value per event."""

    def phase(self, phase: str, text: str) -> None:
        emit({"event": "phase", "phase": phase, "text": text})

    def log(self, line: str) -> None:
        emit({"event": "log", "line": line})

    def close(self, ok: bool) -> None:
        pass


class PlainView:
    """One line per phase and per log line: for logs of other programs, and terminals that cannot draw."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._phase = ""

    def phase(self, phase: str, text: str) -> None:
        if phase != self._phase:
            say(f"[{time.monotonic() - self._began:6.1f} s] {text}")
            self._phase = phase

    def log(self, line: str) -> None:
        say(f"    {line}")

    def close(self, ok: bool) -> None:
        pass


class LiveView:
    """Finished phases with their time, the running one with its clock, and the last log lines."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.spinner import Spinner

        self._console = Console()
        self._phase, self._text, self._since = "", "", time.monotonic()
        self._tail: list[str] = []
        self._spinner = Spinner("dots")
        self._live = Live(console=self._console, refresh_per_second=10, transient=True, get_renderable=self._draw)
        self._live.start()

    def phase(self, phase: str, text: str) -> None:
        if phase != self._phase:
            self._finish()
            self._phase, self._since = phase, time.monotonic()
        self._text = text

    def log(self, line: str) -> None:
        took = PHASE_TOOK.match(line)
        if took:
            # The log knows the time to the millisecond, and the phases that were over between two looks.
            self._print(took[1], float(took[2]))
        elif not PHASE_BEGINS.match(line):
            self._tail = [*self._tail, line][-TAIL:]

    def close(self, ok: bool) -> None:
        if ok:
            self._finish()
        self._phase, self._tail = "", []
        self._live.stop()

    def _finish(self) -> None:
        if self._phase and self._phase not in BUILD_PHASES:
            self._print(self._text, time.monotonic() - self._since)

    def _print(self, text: str, seconds: float) -> None:
        from rich.text import Text

        self._live.console.print(Text.assemble(("✓ ", "green"), f"{text:<48} ", (f"{seconds:6.1f} s", "dim")))

    def _draw(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        if not self._phase:
            return Text("")
        self._spinner.update(
            text=Text.assemble(f"{self._text:<48} ", (f"{time.monotonic() - self._since:6.1f} s", "dim"))
        )
        width = self._console.width - 4
        return Group(self._spinner, *(Text(f"  {line[:width]}", style="dim") for line in self._tail))


def make_view(as_json: bool) -> View:
    return JsonView() if as_json else LiveView() if is_live() else PlainView()


def follow(
    client: Client,
    space: str,
    commit: str,
    view: View,
    *,
    timeout: float | None = None,
    old: Collection[tuple[str, int]] = (),
) -> Mapping[str, Any]:
    """Wait until this commit serves; returns the Space's status then. Raises Failure with reason, fix and evidence."""
    logs = _Logs(client, space, view.log, old)
    began = changed = time.monotonic()
    before: Any = None
    woken = False
    wait = POLL_SECONDS[0]
    while True:
        status = _status(client, space)
        now = time.monotonic()
        # Traffic counters move without saying anything about the deploy.
        seen = {key: value for key, value in status.items() if key != "traffic"}
        wait = POLL_SECONDS[0] if seen != before else min(POLL_SECONDS[1], wait * 1.1)
        if seen != before:
            before, changed = seen, now
        _show(status, commit, view)
        logs.read(status, commit)
        outcome = verdict(status, commit, now - changed, old)
        if outcome is not None and outcome.wake:
            if not woken:
                client.post(f"/api/platform/spaces/{space}/wake")
                woken, changed = True, now
        elif outcome is not None:
            if outcome.ok:
                return status
            raise failure(status, outcome.stage)
        if timeout is not None and now - began > timeout:
            raise Failure(
                f"{space} does not serve this commit after {timeout:.0f} s; its stage is {status['stage']}.",
                f"The deploy goes on: spaces logs -f {space}", stage=status["stage"], page=status.get("page"),
            )  # fmt: skip
        time.sleep(wait)


def retry(client: Client, space: str, status: Mapping[str, Any]) -> frozenset[tuple[str, int]]:
    """Bring up a Space whose head is there already; returns what `follow` is to disregard: all that ended before."""
    stage = str(status["stage"])
    if stage in ("BUILD_ERROR", "RUNTIME_ERROR"):
        client.post(f"/api/spaces/{space}/restart")
    elif stage == "SLEEPING":
        client.post(f"/api/platform/spaces/{space}/wake")
    return settled(status)


def settled(status: Mapping[str, Any]) -> frozenset[tuple[str, int]]:
    """The build and the deployment that a status names, unless they are still on their way. Pure."""
    named = ((kind, status.get(kind)) for kind in ("build", "deployment"))
    return frozenset((k, a["id"]) for k, a in named if a and a["status"] not in ("QUEUED", "RUNNING", "STARTING"))


def _status(client: Client, space: str) -> Mapping[str, Any]:
    """The status; a platform that restarts meanwhile is waited for."""
    deadline = time.monotonic() + UNREACHABLE_SECONDS
    while True:
        try:
            status: Mapping[str, Any] = client.get(f"/api/platform/spaces/{space}")
            return status
        except Failure as exc:
            if exc.data.get("status") not in (0, 502, 503, 504) or time.monotonic() > deadline:
                raise
        time.sleep(POLL_SECONDS[1])


def _show(status: Mapping[str, Any], commit: str, view: View) -> None:
    progress = status.get("progress")
    if progress and status.get("head") == commit:
        view.phase(str(progress["phase"]), str(progress["text"] or progress["phase"]))


class _Logs:
    """New lines of the build of our commit, then of its start."""

    def __init__(
        self, client: Client, space: str, show: Callable[[str], None], old: Collection[tuple[str, int]]
    ) -> None:
        self._client, self._space, self._show, self._old = client, space, show, old
        self._seen: dict[str, int] = {}

    def read(self, status: Mapping[str, Any], commit: str) -> None:
        for kind in ("build", "deployment"):
            about = status.get(kind)
            if about and about.get("commit") == commit and (kind, about["id"]) not in self._old:
                self._read(f"/api/platform/spaces/{self._space}/{kind}s/{about['id']}/logs")

    def _read(self, path: str) -> None:
        after = self._seen.get(path, 0)
        try:
            lines = self._client.get(path, after=after)["lines"]
        except Failure as exc:
            # What is lost is a look at the log; the verdict comes from the status.
            note(f"The log cannot be read now: {exc.message}")
            return
        for line in lines:
            self._seen[path] = max(self._seen.get(path, 0), int(line["n"]))
            self._show(str(line["text"]))
