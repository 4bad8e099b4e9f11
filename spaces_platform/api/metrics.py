"""Prometheus metrics of the control plane (the gateway has its own).

Owns names and meaning. Rows are counted when somebody asks; what only grows is counted from Events as they are written.
Invariant: a scrape costs a few indexed queries, however many Spaces sleep, and names no Space and no user.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from sqlmodel import col, func, select

from spaces_platform.models import Build, Event, Space

if TYPE_CHECKING:
    from spaces_platform.platform import Platform

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PAGE = 2000
_COUNTED = {
    "deployment.starting": ("spaces_starts", "App starts."),
    "space.woken": ("spaces_wakes", "Sleeping Spaces woken by a visit."),
    "deployment.failed": ("spaces_start_failures", "Deployments that failed."),
    "space.pushed": ("spaces_pushes", "Pushes and commits to main."),
    "space.created": ("spaces_created", "Spaces created."),
}
_ENDED = ("build.succeeded", "build.failed", "build.cancelled")


class Metrics:
    """One per app."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.registry = CollectorRegistry()
        self.build_seconds = Histogram(
            "spaces_build_seconds", "Time of ended builds.", ["status"], registry=self.registry,
            buckets=(0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800),
        )  # fmt: skip
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(_COUNTED, 0)
        self._seen: int | None = None
        self.registry.register(self)

    def render(self) -> bytes:
        """The exposition. Raises Unavailable where the database does not answer."""
        with self._lock:
            self._read_events()
        return generate_latest(self.registry)

    def describe(self) -> Iterator[Metric]:
        """Nothing: registering must not touch the database."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        began = time.monotonic()
        with self.platform.store.read() as db:
            stages = db.exec(
                select(Space.stage, func.count()).where(col(Space.purged_at).is_(None)).group_by(Space.stage)
            ).all()
            builds = db.exec(select(Build.status, func.count()).group_by(Build.status)).all()
            due = db.exec(select(func.count()).select_from(Space).where(col(Space.next_check_at) <= time.time())).one()
        latency = time.monotonic() - began
        yield _gauge("spaces_by_stage", "Spaces by stage.", "stage", stages)
        yield _gauge("spaces_builds", "Builds by status.", "status", builds)
        queued = dict(builds).get("QUEUED", 0)
        yield _gauge("spaces_queue_depth", "Work that waits.", "task", [("reconcile", due), ("build", queued)])
        yield GaugeMetricFamily("spaces_db_seconds", "Time of this scrape's queries.", value=latency)
        yield CounterMetricFamily(
            "spaces_requests", "Requests to apps, as reported by gateways.", value=self.platform.traffic.requests_total
        )
        for kind, (name, text) in _COUNTED.items():
            yield CounterMetricFamily(name, text, value=self._counts[kind])

    def _read_events(self) -> None:
        """Take up the Events since the last scrape; those from before this process are not counted."""
        with self.platform.store.read() as db:
            newest = int(db.exec(select(func.max(Event.id))).one() or 0)
            if self._seen is None:
                self._seen = newest
            while self._seen < newest:
                rows = db.exec(
                    select(Event).where(col(Event.id) > self._seen).order_by(col(Event.id)).limit(_PAGE)
                ).all()
                if not rows:
                    break
                for event in rows:
                    if event.kind in self._counts:
                        self._counts[event.kind] += 1
                ended = [int(e.data["build"]) for e in rows if e.kind in _ENDED]
                for build in db.exec(select(Build).where(col(Build.id).in_(ended))) if ended else ():
                    if build.ended_at is not None and build.started_at is not None:
                        self.build_seconds.labels(build.status).observe(build.ended_at - build.started_at)
                self._seen = rows[-1].id or newest


def _gauge(name: str, text: str, label: str, rows: object) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, count in rows:  # type: ignore[attr-defined]
        family.add_metric([str(value)], float(count))
    return family
