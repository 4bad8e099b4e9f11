"""The Docker engine: is it there, is it safe enough for strangers' code, and will it keep apps running.

`gather` asks the engine once; every judge is a pure function of what it answered.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spaces_platform.cli.doctor.check import Check, Version, fail, has_fix, ok, version_of, warn

ENGINE_SECONDS = 5
BUILD_SECONDS = 20.0
TRIAL_SECONDS = 20
ENGINE_FLOOR = (20, 10, 0)
"""The first engine whose own BuildKit has secret mounts and whose API (1.41) speaks of cgroup v2."""
NETWORKS = 256
"""Fewer networks than this in the engine's address pools are soon used up: each awake Space has one."""
CHANGELOG_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Hole:
    """A way out of a container or a build that was closed in `fixed_in`, one release for each line."""

    cves: tuple[str, ...]
    fixed_in: tuple[Version, ...]


RUNC_HOLES = (
    # GHSA-xr7r-f8xq-vfvv
    Hole(("CVE-2024-21626",), ((1, 1, 12),)),
    # GHSA-9493-h29p-rfm2, GHSA-qw9x-cqr3-wc7r, GHSA-cgrx-mc8f-2prm
    Hole(("CVE-2025-31133", "CVE-2025-52565", "CVE-2025-52881"), ((1, 2, 8), (1, 3, 3), (1, 4, 0))),
)
ENGINE_HOLES = (
    # The engine's own BuildKit; moby's notes of 24.0.9 and 25.0.2.
    Hole(("CVE-2024-23651", "CVE-2024-23652", "CVE-2024-23653"), ((24, 0, 9), (25, 0, 2))),
)


@dataclass(frozen=True, slots=True)
class EngineFacts:
    version: str
    runc: str = ""
    patched: frozenset[str] = frozenset()
    """CVEs that the distribution says it has closed in its packages of this engine and of runc."""
    cgroup: str = ""
    """`1` | `2`."""
    limits: Mapping[str, bool] = field(default_factory=dict)
    """Which limits the kernel gives the engine: memory, swap, pids, cpu."""
    storage: str = ""
    security: tuple[str, ...] = ()
    live_restore: bool = False
    runtimes: tuple[str, ...] = ()
    pools: tuple[tuple[str, int], ...] = ()
    """Address pools: base network, prefix length of each network cut from it."""
    root: str = ""
    is_local: bool = True


# --- effects ------------------------------------------------------------------------------------
def check_engine(url: str, runtime: str, image: str, *, gpus: bool = True) -> list[Check]:
    """Every check of the engine at `url`; one failed check where it does not answer.

    `image`: for trials; `gpus`: whether Spaces may have those of this machine.
    """
    facts = gather(url)
    if isinstance(facts, Check):
        return [facts]
    checks = [*judge_all(facts, runtime), check_buildkit(url)]
    if runtime in facts.runtimes:
        checks.append(check_runtime(url, runtime, image))
    if gpus and facts.is_local:
        checks += check_gpus(url, facts.runtimes, image)
    if facts.is_local and os.path.isdir(facts.root):
        from spaces_platform.cli.doctor.machine import check_disk

        checks.append(check_disk(Path(facts.root), "engine disk"))
    return checks


def gather(url: str) -> EngineFacts | Check:
    """What the engine says of itself, or why it does not answer."""
    try:
        import docker
    except ImportError:
        return fail("engine", "the docker package for Python is not installed", "Run `make single-host`.")
    from docker.errors import DockerException
    from requests.exceptions import RequestException

    try:
        client = docker.DockerClient(base_url=url, timeout=ENGINE_SECONDS)
        try:
            return facts_of(
                client.version(), client.info(), url, _patched() if url.startswith("unix:") else frozenset()
            )
        finally:
            client.close()
    except (DockerException, RequestException, OSError) as exc:
        return judge_no_answer(url, str(exc))


def facts_of(version: Mapping[str, Any], info: Mapping[str, Any], url: str, patched: frozenset[str]) -> EngineFacts:
    """From the engine's answers to GET /version and GET /info (Engine API 1.41). Pure."""
    parts = {part.get("Name"): str(part.get("Version", "")) for part in version.get("Components") or ()}
    limits = {"memory": "MemoryLimit", "swap": "SwapLimit", "pids": "PidsLimit", "cpu": "CpuCfsQuota"}
    return EngineFacts(
        version=str(version.get("Version", "")),
        runc=parts.get("runc", ""),
        patched=patched,
        cgroup=str(info.get("CgroupVersion") or "1"),
        limits={name: bool(info.get(key)) for name, key in limits.items()},
        storage=str(info.get("Driver", "")),
        security=tuple(option.partition(",")[0].removeprefix("name=") for option in info.get("SecurityOptions") or ()),
        live_restore=bool(info.get("LiveRestoreEnabled")),
        runtimes=tuple(sorted(info.get("Runtimes") or ())),
        pools=tuple((str(pool["Base"]), int(pool["Size"])) for pool in info.get("DefaultAddressPools") or ()),
        root=str(info.get("DockerRootDir", "")),
        is_local=url.startswith("unix:"),
    )


def _patched() -> frozenset[str]:
    """CVEs that Debian's changelogs of the installed engine and runc name: fixes come back to old version numbers."""
    found: set[str] = set()
    for package in ("runc", "docker.io", "docker-ce", "containerd.io"):
        path = Path(f"/usr/share/doc/{package}/changelog.Debian.gz")
        if path.is_file():
            with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
                found.update(re.findall(r"CVE-\d{4}-\d{4,7}", file.read(CHANGELOG_BYTES)))
    return frozenset(found)


def check_buildkit(url: str) -> Check:
    """Whether an empty image can be built by BuildKit. Its result goes nowhere, so nothing is left behind."""
    tried: list[str] = []
    for program in docker_programs():
        env = {**os.environ, "DOCKER_HOST": url, "DOCKER_BUILDKIT": "1"}
        argv = [program, "build", "--quiet", "--output", "type=tar,dest=/dev/null", "-"]
        try:
            done = subprocess.run(
                argv, input=b"FROM scratch\n", capture_output=True, timeout=BUILD_SECONDS, env=env, check=False
            )
        except subprocess.TimeoutExpired:
            tried.append(f"{program}: no answer within {BUILD_SECONDS:.0f} s")
            continue
        if done.returncode == 0:
            return ok("buildkit", f"answers through {program}")
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        tried.append(f"{program}: {lines[-1] if lines else f'exit code {done.returncode}'}")
    return judge_no_buildkit(tried)


def check_runtime(url: str, runtime: str, image: str) -> Check:
    """Whether a container of a runtime starts and ends, with a network as apps have one. Nothing of it is left."""
    began = time.monotonic()
    error = trial(url, image, {"Runtime": runtime})
    if error is None:
        return ok("runtime", f"{runtime}, not tried: there is no image {image} yet")
    return judge_trial(runtime, error, time.monotonic() - began)


def check_gpus(url: str, runtimes: Collection[str], image: str) -> list[Check]:
    """Whether a container can have all GPUs of this machine at once; no check where it has none."""
    from spaces_platform.adapters.docker import gpus, spec
    from spaces_platform.errors import Unavailable

    try:
        found = gpus.listed()
    except Unavailable as exc:
        fix = "The driver and the kernel's part of it must be of one version: install it anew, and restart the machine."
        return [fail("gpus", str(exc), fix)]
    if not found:
        return []
    can = gpus.can_give(runtimes)
    error = trial(url, image, {"DeviceRequests": spec.device_requests([gpu.id for gpu in found])}) if can else ""
    return [judge_gpus([gpu.model for gpu in found], can, error)]


def trial(url: str, image: str, host: Mapping[str, Any]) -> str | None:
    """What kept a container with this of a host configuration from starting and ending well; "" if nothing did.

    None where there is no image. Nothing of the container is left.
    """
    import docker
    from docker.errors import DockerException, ImageNotFound
    from requests.exceptions import RequestException

    from spaces_platform.adapters.docker import cgroups, spec
    from spaces_platform.adapters.docker.engine import facts_of as app_facts

    with closing(docker.APIClient(base_url=url, version="auto", timeout=TRIAL_SECONDS)) as client:
        parent = spec.cgroup_parent("doctor", app_facts(client.info()))
        given = {**host, "CgroupParent": parent, "NetworkMode": "bridge"}
        made = ""
        try:
            made = client.create_container_from_config({"Image": image, "Cmd": ["true"], "HostConfig": given})["Id"]
            client.start(made)
            code = int(client.wait(made, timeout=TRIAL_SECONDS)["StatusCode"])
            return f"its container ends with {code}" if code else ""
        except ImageNotFound:
            return None
        except (DockerException, RequestException) as exc:
            return str(getattr(exc, "explanation", None) or exc)
        finally:
            if made:
                client.remove_container(made, force=True, v=True)
                cgroups.end_leftovers(parent, made)
            cgroups.remove_empty(parent)


def docker_programs() -> Sequence[str]:
    """Every `docker` on the search path: the first is not always one that can build."""
    found = (shutil.which("docker", path=folder) for folder in os.get_exec_path())
    return tuple(dict.fromkeys(program for program in found if program))


# --- judges -------------------------------------------------------------------------------------
def judge_all(facts: EngineFacts, runtime: str) -> list[Check]:
    return [
        judge_version(facts),
        judge_runc(facts),
        judge_cgroups(facts),
        judge_storage(facts),
        judge_seccomp(facts),
        judge_users(facts),
        judge_live_restore(facts),
        judge_networks(facts),
        *([judge_runtime(facts, runtime)] if runtime and runtime not in facts.runtimes else []),
    ]


def judge_no_answer(url: str, error: str) -> Check:
    if "Permission denied" in error:
        fix = "Run the platform as root, or let its user use the socket (which is as good as root on this machine)."
        return fail("engine", f"{url} may not be used: permission denied", fix)
    fix = "Start it (systemctl start docker), install it (apt install docker.io), or set SPACES_DOCKER to its address."
    return fail("engine", f"no answer from {url}: {error[:200]}", fix)


def judge_version(facts: EngineFacts) -> Check:
    version = version_of(facts.version)
    if version is None or version < ENGINE_FLOOR:
        floor = ".".join(map(str, ENGINE_FLOOR[:2]))
        return fail("engine", facts.version or "tells no version", f"Version {floor} or later is needed.")
    return _judge_holes("engine", facts.version, version, ENGINE_HOLES, facts.patched, "the engine")


def judge_runc(facts: EngineFacts) -> Check:
    version = version_of(facts.runc)
    if version is None:
        fix = "The engine does not say; verify that its runtime is up to date: runc --version."
        return warn("runc", "version unknown", fix)
    return _judge_holes("runc", facts.runc, version, RUNC_HOLES, facts.patched, "runc")


def _judge_holes(
    name: str, text: str, version: Version, holes: tuple[Hole, ...], patched: frozenset[str], what: str
) -> Check:
    """Distributions close holes without a new version number, so an old number says `verify`, not `broken`."""
    open_holes = [hole for hole in holes if not has_fix(version, hole.fixed_in)]
    cves = [cve for hole in open_holes for cve in hole.cves if cve not in patched]
    if not cves:
        return ok(name, text)
    first = {cve: hole.fixed_in for hole in open_holes for cve in hole.cves}
    releases = ", ".join(dict.fromkeys(".".join(map(str, v)) for cve in cves for v in first[cve]))
    fix = (
        f"Code in a container or a build may get out by them. Upgrade {what} to {releases} or later, or verify that "
        "your distribution has closed them in this version; until then let in only people you trust."
    )
    return warn(name, f"{text}: older than the fixes of {', '.join(cves)}", fix)


def judge_cgroups(facts: EngineFacts) -> Check:
    found = f"version {facts.cgroup}"
    missing = [name for name, has in facts.limits.items() if not has and name != "swap"]
    if missing:
        fix = "Without them one app can take the machine. Turn the controllers on in the kernel (cgroup_enable=memory)."
        return fail("cgroups", f"{found}, without limits on {', '.join(missing)}", fix)
    if not facts.limits.get("swap", True):
        fix = "An app over its memory swaps instead of ending. Boot with swapaccount=1, or turn swap off."
        return warn("cgroups", f"{found}, without a limit on swap", fix)
    if facts.cgroup == "1":
        fix = "It works, but is going away: boot with systemd.unified_cgroup_hierarchy=1."
        return warn("cgroups", found, fix)
    return ok("cgroups", found)


def judge_storage(facts: EngineFacts) -> Check:
    if facts.storage == "overlayfs" and "userns" in facts.security:
        # https://github.com/moby/moby/issues/47377; from version 29 the engine refuses it itself.
        fix = (
            'Builds may fail, and apps have no sized disk. Set "features": {"containerd-snapshotter": false} in '
            "/etc/docker/daemon.json and restart the engine; images are built anew."
        )
        return fail("storage", "containerd's image store does not work with remapped users", fix)
    if facts.storage in ("overlay2", "overlayfs", "btrfs", "zfs"):
        return ok("storage", facts.storage)
    what = "copies every layer whole" if facts.storage == "vfs" else "is slow, or no longer maintained"
    fix = 'Put the engine\'s directory on ext4 or xfs, and set "storage-driver": "overlay2" in /etc/docker/daemon.json.'
    return warn("storage", f"{facts.storage or 'unknown'} {what}", fix)


def judge_seccomp(facts: EngineFacts) -> Check:
    if "seccomp" in facts.security:
        more = [name for name in ("apparmor", "selinux") if name in facts.security]
        return ok("seccomp", " and ".join(["on", *more]))
    fix = "Apps could call all of the kernel. Use a kernel with CONFIG_SECCOMP and an engine built with it."
    return fail("seccomp", "off", fix)


def judge_users(facts: EngineFacts) -> Check:
    if "rootless" in facts.security:
        return ok("users", "the engine runs without root")
    if "userns" in facts.security:
        return ok("users", "containers have users of their own (userns-remap)")
    fix = (
        "Apps do not run as root, so this is a second wall, not the first. To have it, set "
        '"userns-remap": "default" in /etc/docker/daemon.json before the first image is built.'
    )
    return warn("users", "root in a container is root of this machine", fix)


def judge_live_restore(facts: EngineFacts) -> Check:
    if facts.live_restore:
        return ok("live-restore", "apps go on when the engine is restarted")
    fix = 'Set "live-restore": true in /etc/docker/daemon.json and run systemctl reload docker.'
    return warn("live-restore", "off: a restart of the engine ends every app", fix)


def judge_networks(facts: EngineFacts) -> Check:
    count = sum(1 << max(0, size - int(base.rpartition("/")[2] or 0)) for base, size in facts.pools)
    if count >= NETWORKS:
        return ok("networks", f"{count} in the engine's address pools")
    found = f"{count} in the engine's address pools" if count else "the engine's own pools, about 30"
    pool = '"default-address-pools": [{"base": "10.200.0.0/13", "size": 26}]'
    return warn("networks", found, f"Each awake Space has one. Set {pool} in /etc/docker/daemon.json, and restart it.")


def judge_trial(runtime: str, error: str, seconds: float) -> Check:
    if not error:
        return ok("runtime", f"{runtime}: a container starts and ends within {seconds:.1f} s")
    if "root network namespace" in error:  # google/gvisor issue 10704
        fix = "This gVisor is older than the kernel: since Linux 6.11, a release of August 2024 or later is needed."
    else:
        fix = (
            f"No app starts with it. Set it right, or take it out of SPACES_CONTAINER_RUNTIME. It said: {error[-300:]}"
        )
    return fail("runtime", f"{runtime} starts no container", fix)


def judge_gpus(models: Sequence[str], can: bool, error: str | None) -> Check:
    """`can`: the engine has what gives them; `error`: of a container that got all of them, None if not tried."""
    found = ", ".join(f"{count} x {model}" for model, count in sorted(Counter(models).items()))
    if not can:
        fix = "Install NVIDIA's container toolkit (nvidia-container-toolkit), and restart the engine."
        return warn("gpus", f"{found}, which the engine cannot give to containers: no Space has one", fix)
    if error:
        fix = f"Spaces on GPU hardware do not start. Set the container toolkit right. It said: {error[-300:]}"
        return fail("gpus", f"{found}: a container that is given them does not start", fix)
    return ok("gpus", found if error == "" else f"{found}, not tried: there is no image yet")


def judge_runtime(facts: EngineFacts, runtime: str) -> Check:
    known = ", ".join(facts.runtimes)
    fix = (
        f"Install it and name it in /etc/docker/daemon.json, or set SPACES_CONTAINER_RUNTIME to one of these: {known}."
    )
    return fail("runtime", f"the engine has no runtime {runtime!r}", fix)


def judge_no_buildkit(tried: Sequence[str]) -> Check:
    if not tried:
        fix = "Builds go through it: apt install docker.io, or docker-ce-cli with docker-buildx-plugin."
        return fail("buildkit", "no docker program on the search path", fix)
    fix = "Install what the program misses: docker-buildx-plugin for a client of version 23 or later."
    return fail("buildkit", "; ".join(line[:200] for line in tried), fix)
