"""This machine: Python, programs, directory, disk, port, kernel, clock, and where packages come from."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from spaces_platform.cli.doctor.check import Check, Version, fail, has_fix, ok, version_of, warn
from spaces_platform.settings import Settings

GIT_FLOOR = (2, 31)
"""The first git that takes configuration from GIT_CONFIG_COUNT, which is how a token reaches it unseen."""
PYTHONS = ((3, 11), (3, 12), (3, 13), (3, 14))
INDEX_SECONDS = 10.0
DISK_WARN = 5 << 30
OPEN_FILES = 4096
CLOCK_EPOCH = 1_735_689_600
"""2025-01-01: a clock before it makes every certificate invalid."""
INODES = 20_000
"""Files of one environment, twice."""
TIMEX_BYTES = 256
"""At least sizeof(struct timex), which is 208 on 64-bit Linux; all zero means: only read."""
TIME_ERROR = 5
KERNEL_FLOOR = (5, 10, 0)
"""The oldest that kernel.org still kept up in 2025."""
KERNEL_HOLES: Mapping[str, tuple[Version, ...]] = {
    # Writes to files that can only be read, and so into images (Dirty Pipe).
    "CVE-2022-0847": ((5, 10, 102), (5, 15, 25), (5, 16, 11)),
    # Use after free in nf_tables, root from any process with a user namespace.
    "CVE-2024-1086": ((5, 10, 210), (5, 15, 149), (6, 1, 76), (6, 6, 15), (6, 7, 3)),
}


def check_python() -> Check:
    version = platform.python_version()
    found = f"{version} at {sys.executable}"
    if sys.version_info[:2] not in PYTHONS:
        return Check(
            "python", "warn", found, f"Tried with {', '.join(f'{a}.{b}' for a, b in PYTHONS)}; others may work."
        )
    return Check("python", "ok", found)


def check_git() -> Check:
    git = shutil.which("git")
    if git is None:
        return Check(
            "git", "fail", "not installed", "Install it: apt install git, dnf install git, or brew install git."
        )
    told = subprocess.run([git, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    return judge_git(told)


def judge_git(told: str) -> Check:
    """By the output of `git --version`. Pure."""
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", told)
    if found is None:
        return Check("git", "fail", f"answers {told.strip()!r}", "Install git.")
    version, floor = (int(found[1]), int(found[2])), ".".join(map(str, GIT_FLOOR))
    if version < GIT_FLOOR:
        fix = f"Version {floor} or later is needed; install it from your system's backports or git-scm.com."
        return Check("git", "fail", found[0], fix)
    return Check("git", "ok", found[0])


def check_uv() -> Check:
    from uv import find_uv_bin

    try:
        path = find_uv_bin()
    except FileNotFoundError:
        return Check("uv", "fail", "its program is not beside this Python", "Run `make setup`, or pip install uv.")
    told = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    return Check("uv", "ok", told.strip().removeprefix("uv "))


def check_builds(data: Path) -> list[Check]:
    """As whom builds run if root starts the platform from here; no check for others, whose builds are their own."""
    from builders.venv import who_builds
    from spaces_platform.wiring.choices import BUILD_UID

    if os.geteuid() != 0:
        return []
    place = next(one for one in (data.absolute(), *data.absolute().parents) if one.is_dir())
    _, fault = who_builds((BUILD_UID, BUILD_UID), place)
    if not fault:
        return [ok("builds", f"as uid {BUILD_UID}")]
    return [warn("builds", fault, "What packages run while they are built runs as root; choose another --data.")]


def check_isolation() -> Check:
    """What the process orchestrator's own probe shows here."""
    from spaces_platform.adapters.process import selfcheck
    from spaces_platform.adapters.process.settings import ProcessSettings

    with tempfile.TemporaryDirectory(prefix="spaces-doctor-") as temporary:
        os.chmod(temporary, 0o711)
        found = selfcheck.check(Path(temporary), ProcessSettings(), selfcheck.installed())
    if found.safe_for_strangers:
        return Check("isolation", "ok", f"{found.words}: {', '.join(found.holds)}")
    why = "; ".join(found.rejected)
    fix = "Run only code you trust, or install bubblewrap (apt install bubblewrap) and allow user namespaces."
    return Check("isolation", "warn", f"{found.words}" + (f" ({why})" if why else ""), fix)


def check_limits() -> Check:
    """What would hold apps to their limits if the platform were started from here."""
    from spaces_platform.adapters.process import cgroups

    found = cgroups.detect(f"spaces-doctor-{os.getpid()}-", settle=False)
    return judge_limits(found.holds, is_given=cgroups.is_given(), is_unified=cgroups.is_unified())


def judge_limits(holds: tuple[str, ...], *, is_given: bool, is_unified: bool) -> Check:
    """By the limits that control groups enforce. Pure."""
    if is_given:
        return ok("limits", "by a control group that systemd has left to the platform")
    watched = [name for name in ("memory", "processes") if name not in holds]
    if not watched:
        weight = "" if "cpu" in holds else "; processors by priority only"
        return ok("limits", f"{', '.join(holds)} by control groups{weight}")
    fix = "An app that is quick takes more for a moment. Run the platform as root"
    if is_unified:
        fix += ", or by systemd with Delegate=yes: systemd-run --user --scope -p Delegate=yes spaces up"
    return warn("limits", f"{' and '.join(watched)} of apps are looked at twice a second, not enforced", f"{fix}.")


def check_data(data: Path) -> Check:
    place = data
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK | os.X_OK):
        return Check(
            "data", "fail", f"{data} cannot be written", "Choose another directory with --data, or make it yours."
        )
    if place == data:
        token = data / "admin.token"
        if token.exists() and token.stat().st_mode & 0o077:
            return Check(
                "data", "fail", f"{token} can be read by others", f"Run: chmod 600 {token}, and make a new token."
            )
        if data.stat().st_mode & 0o066:
            return Check("data", "warn", f"{data} can be listed or written by others", f"Run: chmod 711 {data}")
    return Check("data", "ok", f"{data}" + ("" if place == data else " (will be made)"))


@dataclass(frozen=True, slots=True)
class DiskFacts:
    where: str
    free: int
    """Bytes."""
    inodes: int
    """Free ones; -1 where the file system does not count them."""
    files: int
    """Inodes in all."""


def check_disk(place: Path, name: str = "disk", floor_mb: int = 512) -> Check:
    while not place.exists():
        place = place.parent
    found = os.statvfs(place)
    inodes = found.f_favail if found.f_files else -1
    return judge_disk(name, DiskFacts(str(place), found.f_bavail * found.f_frsize, inodes, found.f_files), floor_mb)


def judge_disk(name: str, facts: DiskFacts, floor_mb: int) -> Check:
    found = f"{facts.free / 2**30:.1f} GiB free at {facts.where}"
    if facts.free < 2 * floor_mb << 20:
        return fail(name, found, f"Free some space: below {floor_mb} MiB pushes and builds are refused.")
    if 0 <= facts.inodes < max(INODES, facts.files // 50):
        return fail(
            name, f"{facts.inodes} inodes free at {facts.where}", "Remove old files, or make the file system anew."
        )
    if facts.free < DISK_WARN:
        return warn(name, found, "An environment with PyTorch takes about 5 GiB.")
    return ok(name, found)


def check_port(settings: Settings) -> Check:
    from spaces_platform.errors import Conflict
    from spaces_platform.presence import is_supervised, read_state
    from spaces_platform.supervisor import check_port as probe

    state = read_state(settings.data)
    if state is not None and is_supervised(settings.data):
        return Check("port", "ok", f"{state['port']}, used by the platform itself (pid {state['pid']})")
    try:
        probe(settings)
    except Conflict as exc:
        if listens(settings.data / "run" / "gateway.sock"):
            return Check("port", "ok", f"{settings.port}, used by the gateway of {settings.data}")
        return Check("port", "fail", exc.message)
    return Check("port", "ok", f"{settings.port} on {settings.host} is free")


def listens(path: Path) -> bool:
    """Whether a process answers on a unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def check_index(ca_bundle: str = "") -> Check:
    """Whether a package can be resolved, with the settings that builds will use."""
    from uv import find_uv_bin

    from builders.uv import index_settings

    env = {**os.environ, **index_settings(os.environ), "UV_HTTP_TIMEOUT": "8"}
    if ca_bundle:
        env["SSL_CERT_FILE"] = ca_bundle
    with tempfile.TemporaryDirectory(prefix="spaces-doctor-") as cache:
        argv = [
            find_uv_bin(),
            "pip",
            "compile",
            "--quiet",
            "--no-deps",
            "--cache-dir",
            cache,
            "--python",
            sys.executable,
            "-",
        ]
        began = time.monotonic()
        try:
            done = subprocess.run(
                argv, input="iniconfig\n", capture_output=True, text=True, env=env, timeout=INDEX_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return _no_index(f"no answer within {INDEX_SECONDS:.0f} s")
    if done.returncode:
        lines = [line.strip(" │├╰─▶×\t") for line in done.stderr.splitlines() if line.strip()]
        lines = [line for line in lines if not line.startswith("hint:")]
        return _no_index(lines[-1] if lines else f"uv ended with {done.returncode}")
    return Check("package index", "ok", f"answers after {time.monotonic() - began:.1f} s")


def _no_index(found: str) -> Check:
    fix = (
        "Set HTTPS_PROXY, SSL_CERT_FILE or UV_DEFAULT_INDEX as your network needs it; apps without packages still run."
    )
    return Check("package index", "fail", found, fix)


def check_open_files() -> Check:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{soft} (at most {hard})"
    if hard != resource.RLIM_INFINITY and hard < OPEN_FILES:
        fix = "Raise it (LimitNOFILE of systemd, or limits.conf): each visitor's connection takes two."
        return Check("open files", "warn", found, fix)
    return Check("open files", "ok", found)


def check_clock() -> Check:
    return judge_clock(time.time(), _is_disciplined())


def _is_disciplined() -> bool | None:
    """Whether the kernel's clock is kept by a time service; None where it does not say. adjtimex(2), read only."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    state = libc.adjtimex(ctypes.create_string_buffer(TIMEX_BYTES))
    return None if state < 0 else state != TIME_ERROR


def judge_clock(now: float, is_disciplined: bool | None) -> Check:
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < CLOCK_EPOCH:
        return fail("clock", shown, "Set the clock: with this one no certificate and no token is valid.")
    if is_disciplined is False:
        fix = "It may drift: install a time service (apt install chrony), or see that the host of this machine has one."
        return warn("clock", f"{shown}, kept by no time service", fix)
    return ok("clock", shown)


def check_kernel() -> Check:
    return judge_kernel(platform.system(), platform.release())


def judge_kernel(system: str, release: str) -> Check:
    """Of a machine that runs containers. Pure."""
    version = version_of(release)
    if system != "Linux" or version is None:
        return fail("kernel", f"{system} {release}", "Containers need a Linux machine.")
    if version < KERNEL_FLOOR:
        floor = ".".join(map(str, KERNEL_FLOOR[:2]))
        return warn(
            "kernel", release, f"{floor} is the oldest that is still kept up: upgrade, and restart the machine."
        )
    holes = ", ".join(cve for cve, fixed_in in KERNEL_HOLES.items() if not has_fix(version, fixed_in))
    if holes:
        fix = "Upgrade it and restart, or verify that your distribution has closed them in this version."
        return warn("kernel", f"{release}: older than the fix of {holes}", fix)
    return ok("kernel", release)
