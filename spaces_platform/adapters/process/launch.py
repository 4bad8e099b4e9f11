"""From a DeploymentSpec to what the shim is told: a pure function, no effects.

Owns the app's environment and the marshalled launch. Invariant: the app's environment holds what its spec says, what
this module adds, and nothing of the platform's own.
"""

from __future__ import annotations

import re
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builders import preload
from spaces_platform.errors import Invalid
from spaces_platform.ports import DeploymentSpec

from . import sandbox
from .artifact import LocalArtifact
from .cgroups import Cgroups
from .sandbox import Level, Tools, View
from .settings import ProcessSettings

SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
RUN_VARIABLE = "SPACES_RUN"
"""Marks every process of one deployment, so that survivors of a lost shim are found where nothing better holds them."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


@dataclass(frozen=True, slots=True)
class Ground:
    """What is true of this machine and platform."""

    settings: ProcessSettings
    level: Level
    tools: Tools
    cgroups: Cgroups
    prefix: str
    """Names this platform's groups and processes among those of others: `spaces-1a2b3c4d-`."""


def launch(
    spec: DeploymentSpec, artifact: LocalArtifact, state: Path, port: int, ground: Ground, *, frozen: bool
) -> dict[str, Any]:
    """The launch of one deployment, ready to be marshalled. Raises Invalid for a spec that can never start.

    `frozen`: the app is too large to copy and is shown in its shared place, read-only.
    """
    settings, level, uid = ground.settings, ground.level, _uid(spec, ground)
    limits, name = spec.resources, f"{ground.prefix}{spec.id}"
    holds = ground.cgroups.holds
    view = View(
        work=state / "work",
        home=state / "home",
        tmp=state / "tmp",
        uid=uid,
        read_only=read_only_paths(artifact, settings),
        frozen_app=artifact.app_dir if frozen else None,
        processes=0 if "processes" in holds else _nproc(level, limits.processes),
    )
    env = environment(spec, artifact, settings, port, sandbox.places(level, view), frozen=frozen)
    env[RUN_VARIABLE] = name
    argv = tuple(_fill(word, port, settings) for word in spec.argv)
    _check(spec, argv, env)
    return {
        "state": str(state),
        "argv": list(sandbox.argv(level, ground.tools, view, argv)),
        "env": {"PATH": SYSTEM_PATH, "LANG": "C.UTF-8"},
        "script": sandbox.script(env, sandbox.directory(level, view)),
        "uid": uid,
        "directories": [(str(path), 0o700) for path in (view.work, view.home, *_hub_folders(artifact, view), view.tmp)],
        "copies": _copies(artifact, view, frozen=frozen),
        "cgroups": [(path, list(values)) for path, values in ground.cgroups.groups(name, limits)],
        "oom_events": ground.cgroups.oom_events(name),
        "memory": limits.memory,
        "watch": {
            "memory": 0 if "memory" in holds else limits.memory,
            "processes": 0 if "processes" in holds else limits.processes,
            "disk": limits.disk,
        },
        "watched_directories": [str(view.work), str(view.home), str(view.tmp)],
        "rlimits": [
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_NOFILE, settings.open_files),
            (resource.RLIMIT_FSIZE, min(settings.file_size, limits.disk)),
        ],
        "nice": 0 if "cpu" in holds else 5,
        "log_bytes": limits.log_bytes,
        "log_rate": min(settings.log_rate, limits.log_bytes // 8),  # a flood must not wipe out its own marks at once
        "subreaper": not sandbox.wrappers(level),
        "wrappers": sandbox.wrappers(level),
        "shell_codes": bool(sandbox.wrappers(level)),
    }


def _copies(artifact: LocalArtifact, view: View, *, frozen: bool) -> list[tuple[str, str]]:
    """(source, target) of what the app gets as its own."""
    copies = [] if frozen else [(str(artifact.app_dir), str(view.work))]
    if artifact.hub_dir is not None:
        copies.append((str(artifact.hub_dir / "home"), str(_hub_folders(artifact, view)[-1])))
    return copies


def _hub_folders(artifact: LocalArtifact, view: View) -> list[Path]:
    """The folders on the way to the hub's cache in the app's home, where it has one, and the cache itself."""
    cache = view.home / preload.CACHE
    return [*reversed(cache.parents[: len(Path(preload.CACHE).parts) - 1]), cache] if artifact.hub_dir else []


def environment(
    spec: DeploymentSpec,
    artifact: LocalArtifact,
    settings: ProcessSettings,
    port: int,
    places: Mapping[str, str],
    *,
    frozen: bool,
) -> dict[str, str]:
    """All variables of the app. What the spec sets wins, except where the app lives and which port it must serve."""
    path = spec.env.get("PATH") or SYSTEM_PATH
    env = {**settings.platform_env, "LANG": "C.UTF-8", "USER": "user", "LOGNAME": "user", "PYTHONUNBUFFERED": "1"}
    if frozen:
        env["PYTHONDONTWRITEBYTECODE"] = "1"
    env |= {name: _fill(value, port, settings) for name, value in spec.env.items()}
    env["PATH"] = f"{artifact.environment_dir}/bin:{path}" if artifact.environment_dir else path
    if artifact.environment_dir:
        env["VIRTUAL_ENV"] = str(artifact.environment_dir)
    else:
        # It is served by the platform's own code, which {PLATFORM_PYTHON} must find.
        env["PYTHONPATH"] = ":".join(str(path) for path in artifact.read_only_paths)
    return {**env, **places, "PORT": str(port)}


def read_only_paths(artifact: LocalArtifact, settings: ProcessSettings) -> tuple[Path, ...]:
    """Everything outside /usr that the app reads: its environment, the interpreters behind it, extra paths."""
    found = [*artifact.read_only_paths, *settings.read_only_paths, *interpreter(settings.platform_python)]
    if artifact.hub_dir is not None:
        found.append(artifact.hub_dir)
    if artifact.environment_dir is not None:
        found += [artifact.environment_dir, *interpreter(artifact.environment_dir / "bin" / "python")]
    return tuple(dict.fromkeys(found))


def interpreter(python: Path) -> Sequence[Path]:
    """The installations an interpreter is reached through: one per link on the way to the binary."""
    found: list[Path] = []
    for _ in range(8):
        if not python.is_symlink():
            break
        python = python.parent / python.readlink()
        found.append(_installation(python))
    return tuple(dict.fromkeys([*found, _installation(python.resolve())]))


def _installation(python: Path) -> Path:
    """`/opt/py/3.11` of `/opt/py/3.11/bin/python3`."""
    return python.parent.parent if python.parent.name == "bin" else python.parent


def _uid(spec: DeploymentSpec, ground: Ground) -> int | None:
    own = ground.level in (Level.BUBBLEWRAP_UID, Level.OWN_UID)
    return ground.settings.uid_base + spec.space_id if own else None


def _nproc(level: Level, processes: int) -> int:
    """RLIMIT_NPROC counts per user: useless where all apps share one; doubled at an own uid, for a swap."""
    if level is Level.BUBBLEWRAP:
        return processes
    return 0 if level is Level.NONE else 2 * processes


def _fill(text: str, port: int, settings: ProcessSettings) -> str:
    return text.replace("{PORT}", str(port)).replace("{PLATFORM_PYTHON}", str(settings.platform_python))


def _check(spec: DeploymentSpec, argv: Sequence[str], env: Mapping[str, str]) -> None:
    if not argv or not argv[0]:
        raise Invalid(f"deployment {spec.id} of {spec.space} has no command to run; set one in its plan")
    if not spec.base_path.startswith("/") or any(c in spec.base_path for c in "\r\n\0 "):
        raise Invalid(f"deployment {spec.id} of {spec.space}: base_path must be a path that starts with '/'")
    for name, value in env.items():
        if not _NAME.match(name):
            raise Invalid(f"{spec.space}: {name!r} cannot be the name of a variable; use letters, digits and '_'")
        if "\0" in value:
            raise Invalid(f"{spec.space}: the value of {name} holds a zero byte; remove it")
    if any("\0" in word for word in argv):
        raise Invalid(f"{spec.space}: the command holds a zero byte; remove it")
