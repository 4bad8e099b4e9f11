"""The isolation ladder as values: which levels exist and which command line each one is.

Owns argv and the sandbox's file layout; runs nothing (selfcheck.py does). Invariant: no secret and nothing the app's
owner chose is in these command lines except the app's own argv at the end: the app's environment is read from standard
input by a shell that has already lost its privileges, so that a hostile `LD_PRELOAD` never meets a privileged program,
and no value shows in /proc/PID/cmdline.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

HOME = "/home/user"
WORK = "/home/user/app"
"""Where an app sees itself inside bubblewrap; the same place as on the Hub."""


class Level(StrEnum):
    """How well apps are kept apart, best first."""

    BUBBLEWRAP_UID = "bubblewrap, own uid"
    BUBBLEWRAP = "bubblewrap"
    OWN_UID = "own uid"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Tools:
    """The programs a sandbox is made of; None where not installed."""

    bwrap: str | None
    setpriv: str | None
    prlimit: str | None
    sh: str = "/bin/sh"


@dataclass(frozen=True, slots=True)
class View:
    """What one app gets to see."""

    work: Path
    home: Path
    tmp: Path
    uid: int | None
    """Its own user id, at the levels that have one."""
    read_only: tuple[Path, ...] = ()
    """Outside /usr; each appears in its own place."""
    frozen_app: Path | None = None
    """The shared app directory, where it is too large to be copied: shown read-only in place of `work`."""
    processes: int = 0
    """RLIMIT_NPROC, set where it counts for this app alone; 0 to leave it."""


SYSTEM_ETC = (
    "alternatives", "fonts", "group", "hosts", "ld.so.cache", "localtime", "mime.types", "nsswitch.conf", "passwd",
    "pki", "resolv.conf", "services", "ssl",
)  # fmt: skip
"""What programs read of /etc; nothing of it is secret or writable. Each costs a mount at every start."""


def wrappers(level: Level) -> int:
    """How many processes of the sandbox stand between the shim's child and the app."""
    return 2 if level in (Level.BUBBLEWRAP_UID, Level.BUBBLEWRAP) else 0


def argv(level: Level, tools: Tools, view: View, app: Sequence[str]) -> tuple[str, ...]:
    """The whole command line that runs `app` at a level. The environment follows on standard input (`script`)."""
    outer: tuple[str, ...] = ()
    if level in (Level.BUBBLEWRAP_UID, Level.BUBBLEWRAP):
        outer = (*_bwrap(level, tools, view), "--")
    return (*outer, *_privileges(level, tools, view), *_process_limit(tools, view), tools.sh, "-s", "--", *app)


def directory(level: Level, view: View) -> str:
    """Where the app starts, as it sees it."""
    if level in (Level.BUBBLEWRAP_UID, Level.BUBBLEWRAP):
        return WORK
    return str(view.frozen_app or view.work)


def places(level: Level, view: View) -> dict[str, str]:
    """HOME and TMPDIR as the app sees them."""
    if level in (Level.BUBBLEWRAP_UID, Level.BUBBLEWRAP):
        return {"HOME": HOME, "TMPDIR": "/tmp"}
    return {"HOME": str(view.home), "TMPDIR": str(view.tmp)}


def script(env: Mapping[str, str], start: str) -> bytes:
    """Shell text that goes to the directory `start`, sets `env` and becomes the program in its arguments.

    It goes there itself, with the rights of the app: its directories are closed even to a root without capabilities.
    """
    lines = [f"cd {shlex.quote(start)} || exit 126"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in env.items()]
    return ("\n".join([*lines, 'exec "$@" </dev/null', ""])).encode("utf-8", "surrogateescape")


def _bwrap(level: Level, tools: Tools, view: View) -> tuple[str, ...]:
    words = [
        tools.bwrap or "bwrap", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try",
        "--hostname", "localhost", "--die-with-parent", "--new-session",
        "--ro-bind", "/usr", "/usr",
    ]  # fmt: skip
    if level is Level.BUBBLEWRAP:
        words[1:1] = ["--unshare-user", "--disable-userns"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        place = Path("/", name)
        if place.is_symlink():
            words += ["--symlink", str(place.readlink()), str(place)]
        elif place.is_dir():
            words += ["--ro-bind", str(place), str(place)]
    # Made here, for all to read: bubblewrap gives a parent that it makes itself the mode of what it first puts there.
    words += ["--perms", "0755", "--dir", "/etc"]
    for name in SYSTEM_ETC:
        words += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    words += ["--proc", "/proc", "--dev", "/dev", "--perms", "1777", "--tmpfs", "/dev/shm"]
    words += ["--bind", str(view.tmp), "/tmp", "--dir", "/home", "--bind", str(view.home), HOME]
    words += ["--bind", str(view.work), WORK] if view.frozen_app is None else ["--ro-bind", str(view.frozen_app), WORK]
    # After /tmp and the home: a data directory may lie below either.
    shown = _outermost(view.read_only)
    for parent in _parents(shown):  # bubblewrap makes the parents of a private source private too
        words += ["--perms", "0755", "--dir", parent]
    for path in shown:
        words += ["--ro-bind", str(path), str(path)]
    words += ["--remount-ro", "/dev", "--remount-ro", "/", "--cap-drop", "ALL"]
    if level is Level.BUBBLEWRAP_UID:
        for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"):
            words += ["--cap-add", capability]
    return tuple(words)


def _privileges(level: Level, tools: Tools, view: View) -> tuple[str, ...]:
    if level in (Level.BUBBLEWRAP_UID, Level.OWN_UID):
        return (
            tools.setpriv or "setpriv", "--reuid", str(view.uid), "--regid", str(view.uid), "--clear-groups",
            "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--pdeathsig", "KILL", "--",
        )  # fmt: skip
    if level is Level.NONE and tools.setpriv:
        return (tools.setpriv, "--no-new-privs", "--pdeathsig", "KILL", "--")
    return ()


def _process_limit(tools: Tools, view: View) -> tuple[str, ...]:
    return (tools.prlimit, f"--nproc={view.processes}", "--") if view.processes and tools.prlimit else ()


def _outermost(paths: Sequence[Path]) -> list[Path]:
    """Without /usr and what another one of them holds already; order is stable."""
    kept: list[Path] = []
    for path in sorted(set(paths), key=lambda p: (len(p.parts), str(p))):
        if not any(path.is_relative_to(k) for k in (Path("/usr"), *kept)):
            kept.append(path)
    return kept


def _parents(paths: Sequence[Path]) -> list[str]:
    """Every directory above the paths, the root left out, outermost first."""
    found = {parent for path in paths for parent in path.parents if parent != Path("/")}
    return [str(p) for p in sorted(found, key=lambda p: (len(p.parts), str(p)))]
