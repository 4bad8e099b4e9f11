"""`spaces doctor`: is this machine fit to run the platform, and if not, what to do.

Owns: which checks the settings call for, and showing them. Does not own: what is checked where it has an owner
(isolation: the process orchestrator). Invariant: a check changes nothing that outlives it, ends within its own limit,
and always answers. Facts are gathered by `check_…`; what they mean is judged by pure `judge_…`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from spaces_platform.cli.console import paint, say
from spaces_platform.cli.doctor import engine, machine, network, services
from spaces_platform.cli.doctor.check import Check
from spaces_platform.hardware import NO_GPUS
from spaces_platform.settings import Settings

Group = tuple[str, Callable[[], Check | list[Check]]]


def check_all(settings: Settings) -> list[Check]:
    """Every check that these settings call for, at once; one that fails to answer is a failed check, not an error."""
    groups = groups_of(settings)
    if settings.orchestrator == "docker":
        # Here and not in the checks' threads: of modules that import each other, one of two threads gets a half.
        with suppress(ImportError):
            importlib.import_module("spaces_platform.adapters.docker")
    with ThreadPoolExecutor(len(groups)) as pool:
        return [check for found in pool.map(lambda group: _guarded(*group), groups) for check in found]


def groups_of(settings: Settings) -> list[Group]:
    """What is checked, in the order it is shown. Pure; nothing is checked here."""
    s = settings
    groups: list[Group] = [
        ("python", machine.check_python),
        ("git", machine.check_git),
        ("data", lambda: machine.check_data(s.data)),
        ("disk", lambda: machine.check_disk(s.data, floor_mb=s.disk_floor_mb)),
        ("port", lambda: machine.check_port(s)),
        ("names", lambda: network.check_names(s)),
        ("package index", lambda: machine.check_index(s.ca_bundle if s.builder == "docker" else "")),
        ("open files", machine.check_open_files),
        ("clock", machine.check_clock),
    ]
    if s.builder == "venv":
        groups += [("uv", machine.check_uv)]
        groups += [("builds", lambda: machine.check_builds(s.data))] if s.isolation != "off" else []
    if s.orchestrator == "process":
        groups += [("isolation", machine.check_isolation), ("limits", machine.check_limits)]
    if s.url.startswith("https:"):
        groups += [("certificate", lambda: network.check_certificate(s))]
    if s.orchestrator == "docker":
        groups += [
            ("kernel", machine.check_kernel),
            (
                "engine",
                lambda: engine.check_engine(s.docker, s.container_runtime, s.base_image, gpus=s.gpus != NO_GPUS),
            ),
        ]
        if s.docker.startswith("unix:"):
            groups += [("packet filter", network.check_filter)]
            groups += [("build fences", lambda: network.check_build_fences(s.data))]
            groups += [("volumes", network.check_volumes)] if s.volume_mb else []
    if s.queue == "celery":
        groups += [("redis", lambda: services.check_redis(s.redis))]
    if s.database_url.startswith("postgres"):
        groups += [("postgres", lambda: services.check_postgres(s.database_url))]
    return groups


def _guarded(name: str, check: Callable[[], Check | list[Check]]) -> list[Check]:
    try:
        found = check()
    except Exception as exc:
        fix = "Report this: a check must not depend on what it finds."
        return [Check(name, "fail", f"the check itself failed: {type(exc).__name__}: {exc}", fix)]
    return found if isinstance(found, list) else [found]


def show(checks: list[Check]) -> None:
    marks = {"ok": paint("ok  ", "green"), "warn": paint("warn", "yellow"), "fail": paint("FAIL", "red")}
    width = max(len(check.name) for check in checks)
    for check in checks:
        say(f"{marks[check.level]}  {check.name:<{width}} {check.found}")
        if check.fix:
            say(f"{'':{width + 6}} {check.fix}", style="dim")
    bad = sum(check.level == "fail" for check in checks)
    say()
    say(
        "Everything that must work does." if not bad else f"{bad} of {len(checks)} checks failed.",
        style="red" if bad else "",
    )
