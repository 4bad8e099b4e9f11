"""T36: the disk of repositories, builds, apps, logs or the database is full: it is said, nothing breaks, and it heals.

Each part of the data directory is a small file system of its own, filled to the last byte and then freed.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults import apps
from tests.faults.system import System, until

RECOVERY_SECONDS = 90.0
FLOOR_MB = 8
PARTS = {"repos": 16, "artifacts": 320, "apps": 64, "logs": 4, "db": 8}
"""MiB of each. A build command is ended where less than 256 MiB would be left beside it."""


@contextmanager
def mounted(place: Path, megabytes: int) -> Iterator[None]:
    place.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0711", "tmpfs", place], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        # Lazily: a process that is just ending may still stand in it.
        subprocess.run(["umount", "-l", place], check=True)


@contextmanager
def full(place: Path, leave: int = 0) -> Iterator[None]:
    """Filled but for `leave` bytes, freed afterwards."""
    filler = place / "filler"
    try:
        with filler.open("wb", buffering=0) as file:
            size = 1 << 20
            while size:
                stat = os.statvfs(place)
                size = min(size, stat.f_bavail * stat.f_frsize - leave) if leave else size
                if size <= 0:
                    break
                try:
                    file.write(b"\xff" * size)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    size //= 2
        yield
    finally:
        filler.unlink()


@pytest.fixture(scope="module")
def system(folder: Path) -> Iterator[System]:
    if os.geteuid() != 0:
        pytest.skip("filling a file system needs root, to mount a small one")
    made = System(folder, disk_floor_mb=FLOOR_MB, database=f"sqlite:///{folder / 'd' / 'db' / 'spaces.db'}")
    with mounted(made.data, 64):
        try:
            with mounts(made.data):
                made.up()
                made.create("app")
                made.push("app", apps.static("v0"))
                made.wait_serving("app", "v0")
                try:
                    yield made
                finally:
                    made.down()
        finally:
            made.down()


@contextmanager
def mounts(data: Path) -> Iterator[None]:
    names = list(PARTS)

    def mount(rest: list[str]) -> Iterator[None]:
        if not rest:
            yield
            return
        with mounted(data / rest[0], PARTS[rest[0]]):
            yield from mount(rest[1:])

    yield from mount(names)


def serves(system: System, text: str) -> None:
    answer = system.get("app")
    assert (answer.status, text in answer.text) == (200, True), answer


def serving(system: System) -> str:
    return system.get("app").text.partition("<p>")[2].partition("</p>")[0]


def test_below_the_floor_pushes_and_builds_are_refused_and_apps_go_on(system: System) -> None:
    now = serving(system)
    with full(system.data, leave=(FLOOR_MB - 2) << 20):
        push = system.push_commit("app", system.commit("app", apps.static("floor")))
        assert not push.acked
        assert "disk" in push.said
        assert "admin" in push.said, "it does not say who can help"
        serves(system, now)
    system.push("app", apps.static("after floor"))
    system.wait_serving("app", "after floor", RECOVERY_SECONDS)
    system.check()


def test_repositories_on_a_full_disk(system: System) -> None:
    now = serving(system)
    noise = os.urandom(200_000)
    with full(system.data / "repos"):
        push = system.push_commit("app", system.commit("app", {**apps.static("repos"), "noise.bin": noise}))
        assert not push.acked
        assert "disk" in push.said.lower() or "space" in push.said.lower(), push.said
        status, answer = system.api(
            "POST", "/api/repos/create", {"type": "space", "name": "other", "sdk": "static", "init": False}, expect=None
        )
        assert status == 507, (status, answer)
        serves(system, now)
    system.push_commit("app", push.commit, check=True)
    system.wait_serving("app", "repos", RECOVERY_SECONDS)
    system.check()


def test_a_build_on_a_full_disk_fails_with_cause_and_fix(system: System) -> None:
    now = serving(system)
    # Above the floor when it begins; in git the files are small.
    with full(system.data / "artifacts", leave=(FLOOR_MB + 1) << 20):
        system.push("app", {**apps.static("artifacts"), **{f"zeros-{n}.bin": bytes(4 << 20) for n in range(4)}})
        status = until(lambda: told(system), 60, "the build's end is told")
        assert status["reason"] == "disk_full", status
        assert "disk is full" in status["message"], status
        assert "free some space" in status["message"], status
        serves(system, now)
    system.api("POST", "/api/spaces/admin/app/restart")
    system.wait_serving("app", "artifacts", RECOVERY_SECONDS)
    system.check()


def test_builds_are_refused_below_the_floor_of_the_disk_of_artifacts(system: System) -> None:
    now = serving(system)
    with full(system.data / "artifacts", leave=(FLOOR_MB - 1) << 20):
        system.push("app", apps.static("no room"))
        status = until(lambda: told(system), 60, "the build's end is told")
        assert (status["reason"], "nearly full" in status["message"]) == ("disk_full", True), status
        serves(system, now)
    system.api("POST", "/api/spaces/admin/app/restart")
    system.wait_serving("app", "no room", RECOVERY_SECONDS)


def test_an_app_that_has_no_room_to_start_starts_once_there_is(system: System) -> None:
    now = serving(system)
    system.excused.append("the disk is full")
    until(lambda: only_logs_are_left(system), 60, "earlier versions have left their room")
    with full(system.data / "apps"):
        system.push("app", {**apps.static("apps"), "noise.bin": os.urandom(200_000)})
        until(lambda: "disk is full" in (system.status("app")["message"] or ""), 60, "it is said")
        serves(system, now)
    system.wait_serving("app", "apps", RECOVERY_SECONDS)
    system.check()


def test_logs_on_a_full_disk_stop_neither_gateway_nor_builds_for_good(system: System) -> None:
    now = serving(system)
    gateway = system.pid("gateway")
    with full(system.data / "logs"):
        push = system.push_commit("app", system.commit("app", apps.static("logs")))
        assert push.acked, push.said
        until(lambda: told(system) or serving(system) == "logs", 60, "it is built, or it is said that it was not")
        assert serving(system) in (now, "logs")
        assert system.is_ready()
    if serving(system) != "logs":
        assert told(system)["reason"] == "disk_full"
        system.api("POST", "/api/spaces/admin/app/restart")
    system.wait_serving("app", "logs", RECOVERY_SECONDS)
    assert system.pid("gateway") == gateway
    system.check()


def test_a_database_on_a_full_disk_refuses_writes_and_loses_none(system: System) -> None:
    now = serving(system)
    system.excused.append("disk of the database is full")
    with full(system.data / "db"):
        until(lambda: write(system) == 507, 60, "a write is refused as what it is: 507")
        push = system.push_commit("app", system.commit("app", apps.static("db")))
        assert not push.acked or system.status("app")["head"] == push.commit
        assert system.api("GET", "/api/spaces/admin/app")["id"] == "admin/app"
        for _ in range(10):
            serves(system, now)
    until(lambda: write(system) == 200, RECOVERY_SECONDS, "writes go on", every=0.5)
    system.push_commit("app", push.commit, check=True)
    system.wait_serving("app", "db", RECOVERY_SECONDS)
    system.check()


def test_a_build_that_ends_while_its_end_cannot_be_written_is_not_lost(system: System) -> None:
    now = serving(system)
    system.push("app", apps.slow_build("kept", 2.0))
    until(lambda: (system.status("app")["build"] or {}).get("phase") == "building", 60, "it builds")
    with full(system.data / "db"):
        # First what the write-ahead log has room for, then not a byte.
        until(lambda: write(system) == 507, 60, "large writes are refused", every=0.0)
        until(lambda: write(system, 10) == 507, 60, "small writes are refused", every=0.0)
        log = system.data / "logs" / "control.log"
        lost = "the end of a build could not be recorded"
        # A checkpoint may have made room just for this row: then it is recorded, which is as good.
        until(lambda: lost in log.read_text() or told_or_built(system), 60, "the build ends")
        serves(system, now)
    system.wait_serving("app", "kept", RECOVERY_SECONDS)
    system.check()


def only_logs_are_left(system: System) -> bool:
    """Whether all deployments but the one that serves have ended and their files are deleted."""
    places = system.data / "apps"
    return len(list(places.glob("deployments/*/work"))) == 1 and not any((places / "trash").iterdir())


def told_or_built(system: System) -> bool:
    return (system.status("app")["build"] or {}).get("status") in ("SUCCEEDED", "FAILED")


def write(system: System, size: int = 50_000) -> int:
    value = {"key": "NOTE", "value": "n" * size}
    status, _ = system.api("POST", "/api/spaces/admin/app/variables", value, expect=None)
    return int(status)


def told(system: System) -> dict[str, str] | None:
    """The status once an error is on it."""
    status = system.status("app")
    build = status["build"] or {}
    return status if status["reason"] and build.get("commit") == status["head"] else None
