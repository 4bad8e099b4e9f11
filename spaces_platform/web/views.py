"""Values that templates show, made from rows. Reads; changes and decides nothing."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from sqlmodel import col, select

from spaces_platform.accounts import Access, Actor, access
from spaces_platform.models import Build, Deployment, Space
from spaces_platform.web import words

if TYPE_CHECKING:
    from spaces_platform.platform import Platform

PHASES = {
    "queued": "Waiting in line",
    "cloning": "Reading the commit",
    "resolving": "Resolving dependencies",
    "installing": "Installing",
    "building": "Building the site",
    "sealing": "Sealing the artifact",
    "starting": "Starting the app",
}
TAIL_LINES = 12
FAILED = ("BUILD_ERROR", "RUNTIME_ERROR", "CONFIG_ERROR")
WORKING = ("BUILDING", "APP_STARTING", "RUNNING_BUILDING", "RUNNING_APP_STARTING", "DELETING")
_TOOK = re.compile(r" {4}([a-z]+) took ([0-9.]{1,12}) s\Z")
_FOLLOWED = 256


@dataclass(frozen=True, slots=True)
class Step:
    """One named wait of a deploy. `state`: done | now | todo | failed."""

    label: str
    state: str
    text: str = ""
    seconds: float | None = None
    since: float | None = None


@dataclass(slots=True)
class _Followed:
    after: int = 0
    took: dict[str, float] = field(default_factory=dict)
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))


class BuildLogs:
    """Phase clocks and last lines of build logs, read incrementally: pages of many visitors cost one reading."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._lock = threading.Lock()
        self._known: OrderedDict[int, _Followed] = OrderedDict()

    def read(self, build_id: int) -> tuple[Mapping[str, float], Sequence[str]]:
        """(seconds by ended phase, the last lines)."""
        with self._lock:
            known = self._known.setdefault(build_id, _Followed())
            self._known.move_to_end(build_id)
            if len(self._known) > _FOLLOWED:
                self._known.popitem(last=False)
            for line in self._platform.logs.read(f"build/{build_id}", known.after):
                known.after = line.n
                if found := _TOOK.match(line.text):
                    if found[1] in PHASES:
                        known.took[found[1]] = float(found[2])
                elif text := words.log_text(line.text):
                    known.tail.append(text)
            return dict(known.took), tuple(known.tail)


@dataclass(frozen=True, slots=True)
class SpaceView:
    """A Space as its pages show it, to one actor."""

    row: Space
    access: Access
    app_url: str
    loopback_url: str
    git_url: str
    build: Build | None
    starting: Deployment | None
    live: Deployment | None
    failed_run: Deployment | None
    position: int | None
    now: float
    took: Mapping[str, float] = field(default_factory=dict)
    tail: Sequence[str] = ()
    starting_text: str = ""

    @property
    def id(self) -> str:
        return f"{self.row.owner}/{self.row.name}"

    @property
    def path(self) -> str:
        return f"/spaces/{quote(self.row.owner)}/{quote(self.row.name)}"

    @property
    def title(self) -> str:
        return words.clean(self.row.title, 80) or self.row.name

    @property
    def can_write(self) -> bool:
        return self.access >= Access.WRITE

    @property
    def can_admin(self) -> bool:
        return self.access >= Access.ADMIN

    @property
    def is_serving(self) -> bool:
        """Whether the app answers now, whatever became of the newest commit."""
        return self.row.routed is not None and self.row.stage != "DELETING"

    @property
    def cause(self) -> str:
        return words.split_message(self.row.message)[0]

    @property
    def fix(self) -> str:
        return words.split_message(self.row.message)[1]

    @property
    def evidence(self) -> Sequence[str]:
        return [words.log_text(line) for line in self.row.evidence[:12]]

    @property
    def steps(self) -> Sequence[Step]:
        return make_steps(self)

    @property
    def panel(self) -> str:
        """Which panel the App tab shows."""
        if self.is_serving:
            return "app"
        return _PANELS.get(self.row.stage, "app")

    @property
    def key(self) -> str:
        """Changes when the panel must be drawn anew; while an app serves, its frame is left alone."""
        return "app" if self.panel == "app" else f"{self.panel}-{self.row.stage}"

    @property
    def frame_path(self) -> str:
        """First path of the app, from the front matter's `base_path`."""
        base = str((self.row.card or {}).get("base_path") or "/")
        return base.lstrip("/") if base.startswith("/") and not base.startswith("//") else ""


_PANELS = {
    "BUILDING": "progress",
    "APP_STARTING": "progress",
    "SLEEPING": "sleeping",
    "PAUSED": "paused",
    "DELETING": "deleting",
    "NO_APP_FILE": "empty",
    "BUILD_ERROR": "failed",
    "RUNTIME_ERROR": "failed",
    "CONFIG_ERROR": "failed",
}


def make_steps(view: SpaceView) -> Sequence[Step]:
    """The named waits of the deploy that is under way, each with its own clock. Pure."""
    build = view.build
    building = build is not None and build.status in ("QUEUED", "RUNNING")
    if not building or build is None:
        since = view.starting.created_at if view.starting is not None else view.row.start_queued_at
        return [Step(PHASES["starting"], "now", view.starting_text, since=since or view.row.last_active_at)]
    order = [p for p in PHASES if p != "building" or p in (build.phase, *view.took)]
    at = order.index(build.phase) if build.phase in order else 0
    steps = []
    for n, phase in enumerate(order):
        if n > at:
            steps.append(Step(PHASES[phase], "todo"))
        elif n == at:
            text = f"place {view.position}" if phase == "queued" and view.position else words.clean(build.phase_text)
            steps.append(Step(PHASES[phase], "now", text, since=build.phase_at))
        elif phase == "queued" and build.started_at is not None:
            steps.append(Step(PHASES[phase], "done", seconds=max(0.0, build.started_at - build.created_at)))
        else:
            steps.append(Step(PHASES[phase], "done", seconds=view.took.get(phase)))
    return steps


class Views:
    """Reads what pages show."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.logs = BuildLogs(platform)

    def now(self) -> float:
        return self.platform.clock.now().timestamp()

    def space(self, space: Space, actor: Actor) -> SpaceView:
        platform = self.platform
        build = next(iter(self.builds(space, 1)), None)
        deployments = platform.deployments.of(space.id or 0)
        starting = next((d for d in deployments if d.status == "STARTING"), None)
        mine = access(actor, space)
        hosts = platform.directory.hosts(space.id or 0)
        took: Mapping[str, float] = {}
        tail: Sequence[str] = ()
        position = None
        if build is not None and build.status in ("QUEUED", "RUNNING"):
            took, tail = self.logs.read(build.id or 0)
            position = platform.builds.position(build) if build.status == "QUEUED" else None
        elif starting is not None:
            lines = platform.deployments.logs(starting.id or 0)[-TAIL_LINES:]
            tail = [words.log_text(line.text) for line in lines]
        return SpaceView(
            row=space,
            access=mine,
            app_url=platform.settings.app_url(hosts["primary"]) if "primary" in hosts else "",
            loopback_url=platform.settings.app_url(hosts["loopback"]) if "loopback" in hosts else "",
            git_url=f"{platform.settings.url}/spaces/{space.owner}/{space.name}",
            build=build,
            starting=starting,
            live=next((d for d in deployments if d.id == space.routed), None),
            failed_run=next((d for d in deployments if d.status == "FAILED"), None),
            position=position,
            now=self.now(),
            took=took,
            # What an app or a build prints is for those who may change it.
            tail=tail if mine >= Access.WRITE else (),
            starting_text=platform.deployments.describe_start(starting.id or 0) if starting is not None else "",
        )

    def builds(self, space: Space, limit: int) -> Sequence[Build]:
        """Newest first."""
        with self.platform.store.read() as db:
            query = select(Build).where(Build.space_id == space.id).order_by(col(Build.id).desc()).limit(limit)
            return db.exec(query).all()

    def list(
        self, actor: Actor, *, search: str, owner: str, sdk: str, stage: str, page: int
    ) -> tuple[list[Space], bool]:
        """(one page of Spaces, whether there are more)."""
        wanted = _STAGE_FILTER.get(stage)
        arguments: dict[str, Any] = {"search": search or None, "author": owner or None, "sdk": (sdk,) if sdk else ()}
        if wanted is None:
            found = list(self.platform.directory.list(actor, limit=PAGE + 1, offset=(page - 1) * PAGE, **arguments))
            return found[:PAGE], len(found) > PAGE
        matching: list[Space] = []
        for offset in range(0, SCAN, SCAN_STEP):
            batch = self.platform.directory.list(actor, limit=SCAN_STEP, offset=offset, **arguments)
            matching += [s for s in batch if s.stage in wanted]
            if len(batch) < SCAN_STEP or len(matching) > page * PAGE:
                break
        return matching[(page - 1) * PAGE : page * PAGE], len(matching) > page * PAGE


PAGE = 24
SCAN, SCAN_STEP = 4000, 400
"""Spaces looked through for a stage: it is not part of the list's own query."""
_STAGE_FILTER = {
    "running": frozenset({"RUNNING", "RUNNING_BUILDING", "RUNNING_APP_STARTING"}),
    "building": frozenset({"BUILDING", "APP_STARTING", "RUNNING_BUILDING", "RUNNING_APP_STARTING"}),
    "sleeping": frozenset({"SLEEPING"}),
    "paused": frozenset({"PAUSED"}),
    "failed": frozenset(FAILED),
}
STAGE_CHOICES = tuple(_STAGE_FILTER)
