"""Which isolation really holds here: every level is tried by running a probe inside it, best first.

Owns the ladder, the probe and the cached answer; sandbox.py owns the command lines. Invariant: nothing is reported that
a probe has not shown on this machine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from spaces_platform.errors import Unavailable

from . import sandbox
from .launch import SYSTEM_PATH, interpreter
from .sandbox import Level, Tools, View
from .settings import ProcessSettings

VERSION = 2
"""Part of the fingerprint: raise it when the probe or the command lines change."""

PROBE = """
import json, os, sys
secret, canary, work = sys.argv[1:4]
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
def reads(path):
    try:
        open(path, "rb").read(); return True
    except OSError:
        return False
def writes(path):
    try:
        open(path, "w").close(); os.unlink(path); return True
    except OSError:
        return False
print(json.dumps({
    "uid": os.getuid(), "capabilities": int(status["CapEff"], 16),
    "no_new_privileges": status["NoNewPrivs"].strip() == "1",
    "reads_platform": reads(secret), "sees_processes": reads(f"/proc/{canary}/environ"),
    "works": writes("probe-file"), "sets_kernel": os.access("/proc/sys/kernel/core_pattern", os.W_OK),
}))
"""


@dataclass(frozen=True, slots=True)
class Isolation:
    """What is true of apps on this machine."""

    level: Level
    holds: tuple[str, ...]
    """For people: what is kept apart, as shown by the probe."""
    lacks: tuple[str, ...]
    """For people: what is not."""
    rejected: tuple[str, ...]
    """Better levels, each with why it does not work here."""

    @property
    def words(self) -> str:
        """The short form, for Observation.isolation."""
        return str(self.level) if self.level is not Level.NONE else "none: apps run as the platform's own user"

    @property
    def safe_for_strangers(self) -> bool:
        """Whether code of people who are not trusted may run here."""
        return self.level in (Level.BUBBLEWRAP_UID, Level.BUBBLEWRAP)


def installed() -> Tools:
    """The programs found on this machine."""
    path = f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}:/usr/sbin:/sbin"
    return Tools(
        bwrap=shutil.which("bwrap", path=path),
        setpriv=shutil.which("setpriv", path=path),
        prlimit=shutil.which("prlimit", path=path),
    )


def ladder(root: bool) -> tuple[Level, ...]:
    """The levels to try, best first."""
    return (Level.BUBBLEWRAP_UID, Level.OWN_UID, Level.NONE) if root else (Level.BUBBLEWRAP, Level.NONE)


def check(root: Path, settings: ProcessSettings, tools: Tools) -> Isolation:
    """The best level that works; the answer is kept in `root` until something it depends on changes.

    Raises Unavailable where `settings.level` names one that does not work.
    """
    cache = root / "isolation.json"
    fingerprint = _fingerprint(root, settings, tools)
    known = _cached(cache, fingerprint)
    if known is not None:
        return known
    rejected: list[str] = []
    levels = ladder(os.geteuid() == 0) if settings.level is None else (settings.level,)
    for level in levels:
        facts, reason = try_level(level, root, settings, tools)
        if facts is not None:
            found = _report(level, facts, tuple(rejected))
            text = json.dumps({"fingerprint": fingerprint, **asdict(found)}, indent=1)
            temporary = cache.with_suffix(".new")
            temporary.write_text(text + "\n")
            temporary.replace(cache)
            return found
        rejected.append(f"{level}: {reason}")
    reasons = "; ".join(rejected)
    raise Unavailable(
        f"no wanted isolation level works on this machine ({reasons}); install bubblewrap or ask for less"
    )


def try_level(
    level: Level, root: Path, settings: ProcessSettings, tools: Tools
) -> tuple[dict[str, object] | None, str]:
    """Run the probe at one level: (what it saw, "") or (None, why the level does not work)."""
    if level in (Level.BUBBLEWRAP_UID, Level.BUBBLEWRAP) and not tools.bwrap:
        return None, "bubblewrap is not installed"
    if level in (Level.BUBBLEWRAP_UID, Level.OWN_UID) and (not tools.setpriv or os.geteuid() != 0):
        return None, "needs root and the program setpriv (util-linux)"
    if level is Level.BUBBLEWRAP and os.geteuid() == 0:
        return None, "as root it leaves apps the user id 0, which owns /proc/sys; an own uid is needed"
    with tempfile.TemporaryDirectory(dir=root, prefix="isolation-") as made:
        place = Path(made)
        place.chmod(0o711)
        uid = settings.uid_base if level in (Level.BUBBLEWRAP_UID, Level.OWN_UID) else None
        for name in ("work", "home", "tmp"):
            (place / name).mkdir(mode=0o700)
            if uid is not None:
                os.chown(place / name, uid, uid)
        secret = place / "secret"
        secret.touch(mode=0o600)
        python = settings.platform_python
        view = View(place / "work", place / "home", place / "tmp", uid, tuple(interpreter(python)))
        app = (str(python), "-I", "-S", "-c", PROBE, str(secret), str(os.getpid()), str(view.work))
        facts, reason = _run(sandbox.argv(level, tools, view, app), sandbox.directory(level, view))
        return (facts, "") if facts is not None and _held(facts, level, uid) else (None, reason or f"not held: {facts}")


def _run(argv: tuple[str, ...], directory: str) -> tuple[dict[str, object] | None, str]:
    try:
        done = subprocess.run(
            argv,
            input=sandbox.script({"PATH": SYSTEM_PATH}, directory),
            capture_output=True,
            timeout=15,
            cwd="/",
            env={"PATH": SYSTEM_PATH, "LANG": "C.UTF-8"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, str(error)
    if done.returncode:
        return None, " ".join(done.stderr.decode("utf-8", "replace").split())[-300:] or f"exit code {done.returncode}"
    return json.loads(done.stdout), ""


def _held(facts: dict[str, object], level: Level, uid: int | None) -> bool:
    """Whether the probe was kept to what the level promises, and could still do its work."""
    if level is Level.NONE:
        return bool(facts["works"])
    escaped = any(facts[n] for n in ("reads_platform", "sees_processes", "sets_kernel", "capabilities"))
    return bool(facts["works"] and facts["no_new_privileges"] and not escaped and uid in (None, facts["uid"]))


def _report(level: Level, facts: dict[str, object], rejected: tuple[str, ...]) -> Isolation:
    holds, lacks = [], []
    for true, good, bad in (
        (not facts["capabilities"], "no capabilities", "apps hold the platform's capabilities"),
        (facts["no_new_privileges"], "no new privileges", "set-user-id programs work for apps"),
        (
            level in (Level.BUBBLEWRAP_UID, Level.OWN_UID),
            "a user id of its own per Space",
            "no protection against hostile code by user id: apps run as the platform's user",
        ),
        (not facts["reads_platform"], "the platform's files are out of reach", "apps can read the platform's files"),
        (not facts["sees_processes"], "other processes are out of reach", "apps can read other processes' secrets"),
        (
            level in (Level.BUBBLEWRAP_UID, Level.BUBBLEWRAP),
            "own file system, processes and temporary directory",
            "one file system and one process table for all apps",
        ),
        (False, "", "the host's network is shared: apps reach whatever this machine reaches, each other included"),
    ):
        if true:
            holds.append(good)
        else:
            lacks.append(bad)
    return Isolation(level, tuple(holds), tuple(lacks), rejected)


def _fingerprint(root: Path, settings: ProcessSettings, tools: Tools) -> str:
    parts: list[object] = [VERSION, str(root), os.geteuid(), os.uname().release, str(settings.platform_python)]
    parts += [sys.version, settings.uid_base, settings.level]
    for program in (tools.bwrap, tools.setpriv, tools.prlimit, str(settings.platform_python)):
        status = os.stat(program) if program else None
        parts.append((program, status.st_mtime_ns, status.st_size, status.st_mode) if status else program)
    for place in ("user/max_user_namespaces", "kernel/unprivileged_userns_clone",
                  "kernel/apparmor_restrict_unprivileged_userns"):  # fmt: skip
        path = Path("/proc/sys", place)
        parts.append(path.read_text().strip() if path.exists() else "")
    return repr(parts)


def _cached(path: Path, fingerprint: str) -> Isolation | None:
    try:
        known = json.loads(path.read_text())
        if known.pop("fingerprint") != fingerprint:
            return None
        lists = {name: tuple(known[name]) for name in ("holds", "lacks", "rejected")}
        return Isolation(Level(known["level"]), **lists)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
