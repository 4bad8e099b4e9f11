"""Names, addresses and packets: do visitors find the apps, and can apps be fenced in.

Owns names, the public certificate, forwarding and the packet filter. Judges are pure; `check_…` gather within SECONDS.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from spaces_platform.cli.doctor.check import Check, fail, ok, warn
from spaces_platform.settings import Settings

SECONDS = 5.0
RENEW_DAYS, RENEW_PART = 14, 1 / 6
"""Proxies renew a certificate when a third of its time is left, which is a month of 90 days: with less than this left,
and less than this part of its time (authorities of one's own give some of a day), renewing fails."""


# --- names --------------------------------------------------------------------------------------
def check_names(settings: Settings) -> Check:
    """Whether the platform's own name and that of any app lead to the same machine."""
    if settings.domain == "localhost":
        return judge_localhost(addresses("name-check.localhost"))
    label = f"spaces-check-{secrets.token_hex(4)}"
    host = urlsplit(settings.url).hostname or "localhost"
    with ThreadPoolExecutor(2) as pool:
        own, app = pool.map(addresses, (host, f"{label}.{settings.domain}"))
    return judge_names(host, own, settings.domain, app)


def addresses(host: str) -> frozenset[str]:
    """What the system's resolver says; empty for a name that it does not know."""
    try:
        return frozenset(str(found[4][0]) for found in socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM))
    except (socket.gaierror, UnicodeError):
        return frozenset()


def judge_localhost(found: frozenset[str]) -> Check:
    if found:
        return ok("names", "*.localhost is this machine")
    fix = "Browsers know it by themselves. Without TLS, each app also has an address of 127.64.0.0/10 for others."
    return warn("names", "*.localhost is unknown to this machine's resolver", fix)


def judge_names(host: str, own: frozenset[str], domain: str, app: frozenset[str]) -> Check:
    if not own:
        return fail(
            "names", f"{host} is not found", f"Make an A (and AAAA) record of {host} with this machine's address."
        )
    if not app:
        fix = f"Make a wildcard record: *.{domain} with the same address as {host}. Every app has a name below it."
        return fail("names", f"names below {domain} are not found", fix)
    if not own & app:
        fix = f"Point *.{domain} and {host} to the same machine, unless a load balancer of yours does that behind them."
        return warn("names", f"{host} is {_some(own)}, *.{domain} is {_some(app)}", fix)
    return ok("names", f"{host} and *.{domain} are {_some(own)}")


def _some(found: frozenset[str]) -> str:
    return ", ".join(sorted(found)[:3])


# --- the certificate ----------------------------------------------------------------------------
def check_certificate(settings: Settings) -> Check:
    """Whether a browser would believe the platform's own address."""
    parts = urlsplit(settings.url)
    host, port = parts.hostname or "localhost", parts.port or 443
    try:
        with (
            socket.create_connection((host, port), timeout=SECONDS) as plain,
            ssl.create_default_context().wrap_socket(plain, server_hostname=host) as secured,
        ):
            shown = secured.getpeercert() or {}
    except ssl.SSLCertVerificationError as exc:
        return judge_untrusted(host, exc.verify_message)
    except OSError as exc:
        fix = "Start the proxy that holds the certificates, and open port 443 to it; see docs/single-host.md."
        return fail("certificate", f"no TLS at {host}:{port}: {exc}", fix)
    begin, end = (ssl.cert_time_to_seconds(str(shown[key])) for key in ("notBefore", "notAfter"))
    return judge_certificate(host, (end - time.time()) / 86400, (end - begin) / 86400)


def judge_untrusted(host: str, reason: str) -> Check:
    if "self-signed" in reason or "self signed" in reason or "issuer" in reason:
        fix = (
            "Give its authority's certificate to this machine, to visitors' and to SPACES_CA_BUNDLE, or have one of a "
            "public authority: SPACES_TLS=acme, without SPACES_ACME_CA."
        )
        return warn("certificate", f"of {host} is from an authority that this machine does not know", fix)
    return fail("certificate", f"of {host}: {reason}", "See the proxy's log for why it has no better one.")


def judge_certificate(host: str, days: float, of: float) -> Check:
    """By the days that are left of the days it is valid for. Pure."""
    left = f"{int(days)} days" if days >= 2 else f"{max(0, int(days * 24))} hours"
    if days < min(RENEW_DAYS, of * RENEW_PART):
        fix = "It should have been renewed: see the proxy's log; ports 80 and 443 must be open to the authority."
        return warn("certificate", f"of {host} ends in {left}", fix)
    return ok("certificate", f"of {host}, {left} left")


# --- packets ------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class FilterFacts:
    program: str | None
    is_root: bool
    chains: tuple[str, ...] = ()
    error: str = ""
    forwards: bool = True
    """net.ipv4.ip_forward."""


def check_filter() -> Check:
    program = shutil.which("iptables", path=os.pathsep.join((*os.get_exec_path(), "/usr/sbin", "/sbin")))
    is_root = os.geteuid() == 0
    forward = Path("/proc/sys/net/ipv4/ip_forward")
    forwards = not forward.exists() or forward.read_text().strip() == "1"
    if program is None or not is_root:
        return judge_filter(FilterFacts(program, is_root, forwards=forwards))
    done = subprocess.run([program, "-w", "3", "-S"], capture_output=True, text=True, timeout=SECONDS + 3, check=False)
    chains = chains_of(done.stdout.splitlines())
    return judge_filter(FilterFacts(program, is_root, chains, done.stderr.strip() if done.returncode else "", forwards))


def chains_of(lines: Sequence[str]) -> tuple[str, ...]:
    """Names of the chains in the output of `iptables -S`. Pure."""
    return tuple(line.split()[1] for line in lines if line.startswith(("-N ", "-P ")))


def judge_filter(facts: FilterFacts) -> Check:
    name = "packet filter"
    if facts.program is None:
        return fail(name, "iptables is not installed", "Apps cannot be fenced in without it: apt install iptables")
    if not facts.is_root:
        return warn(name, "cannot be seen without root", "Run `spaces doctor` as the user that runs the platform.")
    if facts.error:
        fix = "The kernel needs ip_tables or nf_tables, and the process CAP_NET_ADMIN."
        return fail(name, f"iptables does not answer: {facts.error[:160]}", fix)
    if not facts.forwards:
        return fail(name, "net.ipv4.ip_forward is 0", "Containers have no network: sysctl -w net.ipv4.ip_forward=1")
    if "DOCKER-USER" not in facts.chains:
        fix = 'The engine must keep them: remove "iptables": false from /etc/docker/daemon.json, and restart it.'
        return fail(name, "the engine's chain DOCKER-USER is missing", fix)
    return ok(name, "iptables, with the engine's chains")


def check_build_fences(data: Path) -> list[Check]:
    from spaces_platform.adapters.docker import build_fences

    if check_filter().level != "ok":
        return []  # said there
    return judge_build_fences(build_fences.name_of(data), build_fences.standing(), build_fences.held())


def judge_build_fences(mine: str, standing: Sequence[str], held: Collection[str]) -> list[Check]:
    """Pure."""
    name = "build fences"
    stale = [one for one in standing if one not in held and one != mine]
    others = [one for one in standing if one in held and one != mine]
    if stale:
        text = f"left by platforms that are gone: {', '.join(stale)}; builds reach only what these allow as well"
        return [warn(name, text, "They are taken down when a platform with containers starts on this machine.")]
    if others:
        fix = "Give them an engine each, or the same egress_allow and egress_ports."
        return [warn(name, f"{len(others)} other platforms build on this engine: all fences must allow it", fix)]
    return [ok(name, "none but this platform's own")]


# --- volumes ------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class VolumeFacts:
    is_root: bool
    has_loop: bool
    has_mkfs: bool


def check_volumes() -> Check:
    paths = os.pathsep.join((*os.get_exec_path(), "/usr/sbin", "/sbin"))
    has_mkfs = shutil.which("mkfs.ext4", path=paths) is not None
    return judge_volumes(VolumeFacts(os.geteuid() == 0, Path("/dev/loop-control").exists(), has_mkfs))


def judge_volumes(facts: VolumeFacts) -> Check:
    if facts.is_root and facts.has_loop and facts.has_mkfs:
        return ok("volumes", "sized file systems on loop devices")
    if not facts.is_root:
        return warn("volumes", "without root there are none", "Run the platform as root, or set SPACES_VOLUME_MB=0.")
    if not facts.has_loop:
        return warn("volumes", "no loop devices: there are none", "Load the kernel's loop module: modprobe loop")
    return warn("volumes", "mkfs.ext4 is missing: there are none", "Install it: apt install e2fsprogs")
