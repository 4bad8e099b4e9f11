"""Pages of what happened: commits, and the logs of builds and runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import Response

from spaces_platform.accounts import Access
from spaces_platform.errors import NotFound, RevisionNotFound
from spaces_platform.lifecycle import OPEN
from spaces_platform.models import Build, Deployment
from spaces_platform.ports import LogLine
from spaces_platform.web import words
from spaces_platform.web.lookup import Lookup
from spaces_platform.web.site import Call, Site
from spaces_platform.web.views import SpaceView

COMMITS = 30
TAIL = 400
"""Log lines in the page itself; the script and the API have the others."""
KEPT = 20


@dataclass(frozen=True, slots=True)
class ShownLog:
    """One log of the Logs tab. `source`: where its further lines come from."""

    heading: str
    source: str
    lines: list[str]
    skipped: int
    after: int
    is_open: bool


class HistoryPages:
    def __init__(self, site: Site, lookup: Lookup) -> None:
        self.site, self.lookup, self.platform = site, lookup, site.platform

    def add(self) -> None:
        self.site.get("/spaces/{owner}/{name}/commits", self.commits)
        self.site.get("/spaces/{owner}/{name}/commits/{rest:path}", self.commits)
        self.site.get("/spaces/{owner}/{name}/logs", self.logs)

    def commits(self, call: Call) -> Response:
        found = self.lookup.space(call)
        if isinstance(found, Response):
            return found
        try:
            place = self.lookup.place(found.row, str(call.request.path_params.get("rest", "")))
        except RevisionNotFound:
            if found.row.head is None:
                return self.site.page(call, "nofiles.html", space=found, tab="commits")
            raise
        page = max(1, call.number("page", 1))
        listed = place.repo.log(place.commit, limit=COMMITS + 1, skip=(page - 1) * COMMITS)
        return self.site.page(
            call, "commits.html", space=found, tab="commits", place=place, commits=listed[:COMMITS],
            more=len(listed) > COMMITS, page=page, serving=found.live.commit if found.live is not None else "",
        )  # fmt: skip

    def logs(self, call: Call) -> Response:
        found = self.lookup.space(call, Access.WRITE)
        if isinstance(found, Response):
            return found
        builds = self.lookup.views.builds(found.row, KEPT)
        runs = self.platform.deployments.of(found.row.id or 0, KEPT)
        chosen = self._chosen(call, builds, runs)
        return self.site.page(
            call, "logs.html", space=found, tab="logs", builds=builds, runs=runs, chosen=chosen,
            log=self._log(found, chosen) if chosen is not None else None,
        )  # fmt: skip

    def _chosen(self, call: Call, builds: Sequence[Build], runs: Sequence[Deployment]) -> Build | Deployment | None:
        """The log that is asked for; else the newest of what is going on. Raises NotFound."""
        asked: tuple[tuple[str, Sequence[Build | Deployment]], ...] = (("build", builds), ("run", runs))
        for name, rows in asked:
            if call.query(name):
                wanted = call.number(name)
                row = next((r for r in rows if r.id == wanted), None)
                if row is None:
                    raise NotFound(f"There is no {name} {wanted} of this Space, or it is too old to be listed.")
                return row
        build, run = next(iter(builds), None), next(iter(runs), None)
        if build is None or run is None:
            return build or run
        return build if build.created_at > run.created_at else run

    def _log(self, found: SpaceView, chosen: Build | Deployment) -> ShownLog:
        api = f"/api/platform{found.path}"
        if isinstance(chosen, Build):
            lines = self.platform.logs.read(f"build/{chosen.id}")
            is_open = chosen.status in ("QUEUED", "RUNNING")
            return _shown(f"Build {chosen.id}", f"{api}/builds/{chosen.id}/logs", list(lines), is_open)
        lines = self.platform.deployments.logs(chosen.id or 0)
        is_open = chosen.status in OPEN
        return _shown(f"Run {chosen.id}", f"{api}/deployments/{chosen.id}/logs", list(lines), is_open)


def _shown(heading: str, source: str, lines: list[LogLine], is_open: bool) -> ShownLog:
    shown = lines[-TAIL:]
    after = lines[-1].n if lines else 0
    return ShownLog(heading, source, [words.log_text(x.text) for x in shown], len(lines) - len(shown), after, is_open)
