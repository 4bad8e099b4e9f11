"""`spaces doctor`: its judges as tables, and its checks against real services."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from spaces_platform.cli.doctor import Check, engine, groups_of, machine, network, services
from spaces_platform.cli.doctor.check import has_fix, version_of
from spaces_platform.settings import Settings
from tests.edge.servers import Postgres, Redis
from tests.services.engine import IMAGE

ENGINE = engine.EngineFacts(
    version="28.2.2",
    runc="1.3.3",
    cgroup="2",
    limits={"memory": True, "swap": True, "pids": True, "cpu": True},
    storage="overlay2",
    security=("seccomp", "userns"),
    live_restore=True,
    runtimes=("runc",),
    pools=(("10.200.0.0/13", 26),),
)
REDIS = services.RedisFacts("r:6379/0", "7.0.15", True, False, True, True, True, "noeviction", 1 << 28, 0.1)
POSTGRES = services.PostgresFacts("p:5432/spaces", 150016, "UTF8", 100, 3, False, True, "on", -0.2)
FILTER = network.FilterFacts("/usr/sbin/iptables", True, ("INPUT", "FORWARD", "DOCKER-USER"))


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("1.1.5+ds1", (1, 1, 5)),
        ("20.10.24+dfsg1", (20, 10, 24)),
        ("6.18.44-fc-v669", (6, 18, 44)),
        ("6.1", (6, 1, 0)),
        ("v1.4.0-rc.1", (1, 4, -1)),
        ("unknown", None),
    ],
)
def test_versions(text: str, version: tuple[int, int, int] | None) -> None:
    assert version_of(text) == version


@pytest.mark.parametrize(
    ("version", "has"),
    [
        ((1, 1, 15), False), ((1, 2, 7), False), ((1, 2, 8), True), ((1, 3, 2), False), ((1, 3, 3), True),
        ((1, 4, -1), False), ((1, 4, 0), True), ((2, 0, 0), True),
    ],
)  # fmt: skip
def test_a_fix_is_known_by_its_line_of_releases(version: tuple[int, int, int], has: bool) -> None:
    assert has_fix(version, engine.RUNC_HOLES[1].fixed_in) is has


def _engine(**changes: object) -> engine.EngineFacts:
    return replace(ENGINE, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("judge", "facts", "level", "words"),
    [
        (engine.judge_version, ENGINE, "ok", "28.2.2"),
        (engine.judge_version, _engine(version="19.03.15"), "fail", "20.10 or later"),
        (engine.judge_version, _engine(version=""), "fail", "tells no version"),
        (engine.judge_version, _engine(version="20.10.24+dfsg1"), "warn", "CVE-2024-23653"),
        (
            engine.judge_version,
            _engine(version="20.10.24", patched=frozenset(engine.ENGINE_HOLES[0].cves)),
            "ok",
            "20.10.24",
        ),
        (engine.judge_runc, ENGINE, "ok", "1.3.3"),
        (engine.judge_runc, _engine(runc=""), "warn", "runc --version"),
        (engine.judge_runc, _engine(runc="1.1.5"), "warn", "CVE-2024-21626, CVE-2025-31133"),
        # Debian closed one of them in the same number.
        (
            engine.judge_runc,
            _engine(runc="1.1.5+ds1", patched=frozenset({"CVE-2024-21626"})),
            "warn",
            "the fixes of CVE-2025-31133",
        ),
        (engine.judge_cgroups, ENGINE, "ok", "version 2"),
        (engine.judge_cgroups, _engine(cgroup="1"), "warn", "unified_cgroup_hierarchy"),
        (engine.judge_cgroups, _engine(limits={**ENGINE.limits, "swap": False}), "warn", "swapaccount=1"),
        (engine.judge_cgroups, _engine(limits={**ENGINE.limits, "pids": False}), "fail", "limits on pids"),
        (engine.judge_storage, _engine(storage="overlayfs", security=("seccomp",)), "ok", "overlayfs"),
        (engine.judge_storage, _engine(storage="overlayfs"), "fail", "containerd-snapshotter"),
        (engine.judge_storage, ENGINE, "ok", "overlay2"),
        (engine.judge_storage, _engine(storage="vfs"), "warn", "copies every layer"),
        (engine.judge_storage, _engine(storage="devicemapper"), "warn", "overlay2"),
        (engine.judge_seccomp, ENGINE, "ok", "on"),
        (engine.judge_seccomp, _engine(security=("apparmor",)), "fail", "CONFIG_SECCOMP"),
        (engine.judge_users, ENGINE, "ok", "userns-remap"),
        (engine.judge_users, _engine(security=("seccomp", "rootless")), "ok", "without root"),
        (engine.judge_users, _engine(security=("seccomp",)), "warn", "userns-remap"),
        (engine.judge_live_restore, ENGINE, "ok", "go on"),
        (engine.judge_live_restore, _engine(live_restore=False), "warn", '"live-restore": true'),
        (engine.judge_networks, ENGINE, "ok", "8192"),
        (engine.judge_networks, _engine(pools=()), "warn", "default-address-pools"),
        (engine.judge_networks, _engine(pools=(("172.17.0.0/16", 20),)), "warn", "16 in"),
    ],
)
def test_the_engine(
    judge: Callable[[engine.EngineFacts], Check], facts: engine.EngineFacts, level: str, words: str
) -> None:
    _expect(judge(facts), level, words)


@pytest.mark.parametrize(
    ("check", "level", "words"),
    [
        (engine.judge_trial("runsc", "", 0.84), "ok", "within 0.8 s"),
        (engine.judge_trial("runsc", "cannot run with network enabled in root network namespace", 1), "fail", "6.11"),
        (engine.judge_trial("runsc", "its container ends with 1", 1), "fail", "It said: its container ends with 1"),
        (engine.judge_runtime(ENGINE, "runsc"), "fail", "'runsc'"),
        (engine.judge_gpus(["Tesla T4", "NVIDIA L4", "Tesla T4"], True, ""), "ok", "1 x NVIDIA L4, 2 x Tesla T4"),
        (engine.judge_gpus(["Tesla T4"], True, None), "ok", "not tried"),
        (engine.judge_gpus(["Tesla T4"], True, "could not select device driver"), "fail", "select device driver"),
        (engine.judge_gpus(["Tesla T4"], False, ""), "warn", "nvidia-container-toolkit"),
        (engine.judge_no_answer("unix:///x", "Permission denied"), "fail", "as good as root"),
        (engine.judge_no_answer("unix:///x", "No such file"), "fail", "systemctl start docker"),
        (engine.judge_no_buildkit([]), "fail", "no docker program"),
        (engine.judge_no_buildkit(["/usr/bin/docker: no buildx"]), "fail", "docker-buildx-plugin"),
        (services.judge_no_redis("h:1/0", "NOAUTH Authentication required."), "fail", "SPACES_REDIS=" [:-1]),
        (services.judge_no_redis("h:1/0", "Connection refused"), "fail", "redis-server"),
        (services.judge_no_postgres("h", "FATAL:  password authentication failed"), "fail", "SPACES_DATABASE"),
        (services.judge_no_postgres("h", 'FATAL:  database "x" does not exist'), "fail", "createdb"),
        (services.judge_no_postgres("h", "Connection refused"), "fail", "apt install postgresql"),
        (network.judge_localhost(frozenset({"127.0.0.1"})), "ok", "this machine"),
        (network.judge_localhost(frozenset()), "warn", "127.64"),
        (network.judge_names("s.io", frozenset("1"), "a.io", frozenset("12")), "ok", "*.a.io"),
        (network.judge_names("s.io", frozenset(), "a.io", frozenset("1")), "fail", "s.io is not found"),
        (network.judge_names("s.io", frozenset("1"), "a.io", frozenset()), "fail", "wildcard record: *.a.io"),
        (network.judge_names("s.io", frozenset("1"), "a.io", frozenset("2")), "warn", "same machine"),
        (network.judge_certificate("s.io", 60.5, 90), "ok", "60 days"),
        (network.judge_certificate("s.io", 3.0, 90), "warn", "ends in 3 days"),
        (network.judge_certificate("s.io", 15.5, 365), "ok", "15 days"),
        (network.judge_certificate("s.io", 13.5, 365), "warn", "ends in 13 days"),
        # An authority of one's own may give them for a day: renewed in its last 8 hours.
        (network.judge_certificate("s.io", 0.3, 1), "ok", "7 hours left"),
        (network.judge_certificate("s.io", 0.1, 1), "warn", "ends in 2 hours"),
        (network.judge_untrusted("s.io", "self-signed certificate in chain"), "warn", "SPACES_CA_BUNDLE"),
        (network.judge_untrusted("s.io", "certificate has expired"), "fail", "expired"),
        (network.judge_filter(FILTER), "ok", "iptables"),
        (network.judge_filter(replace(FILTER, program=None)), "fail", "apt install iptables"),
        (network.judge_filter(replace(FILTER, is_root=False)), "warn", "without root"),
        (network.judge_filter(replace(FILTER, error="no tables")), "fail", "CAP_NET_ADMIN"),
        (network.judge_filter(replace(FILTER, forwards=False)), "fail", "ip_forward"),
        (network.judge_filter(replace(FILTER, chains=("INPUT",))), "fail", '"iptables": false'),
        (network.judge_volumes(network.VolumeFacts(True, True, True)), "ok", "loop"),
        (network.judge_volumes(network.VolumeFacts(False, True, True)), "warn", "SPACES_VOLUME_MB=0"),
        (network.judge_volumes(network.VolumeFacts(True, False, True)), "warn", "modprobe loop"),
        (network.judge_volumes(network.VolumeFacts(True, True, False)), "warn", "e2fsprogs"),
        (machine.judge_kernel("Linux", "6.1.0-18-amd64"), "warn", "CVE-2024-1086"),
        (machine.judge_kernel("Linux", "6.12.4"), "ok", "6.12.4"),
        (machine.judge_kernel("Linux", "4.19.0"), "warn", "5.10"),
        (machine.judge_kernel("Darwin", "23.1.0"), "fail", "Linux machine"),
        (machine.judge_clock(1_800_000_000, True), "ok", "2027"),
        (machine.judge_clock(1_800_000_000, False), "warn", "chrony"),
        (machine.judge_clock(1_800_000_000, None), "ok", "2027"),
        (machine.judge_clock(0, True), "fail", "no certificate"),
        (machine.judge_disk("disk", machine.DiskFacts("/", 50 << 30, 900_000, 1_000_000), 512), "ok", "50.0 GiB"),
        (machine.judge_disk("disk", machine.DiskFacts("/", 2 << 30, -1, 0), 512), "warn", "PyTorch"),
        (machine.judge_disk("disk", machine.DiskFacts("/", 900 << 20, -1, 0), 512), "fail", "below 512 MiB"),
        (machine.judge_disk("disk", machine.DiskFacts("/", 2 << 30, -1, 0), 2048), "fail", "below 2048 MiB"),
        (machine.judge_disk("disk", machine.DiskFacts("/", 50 << 30, 10, 1_000_000), 512), "fail", "10 inodes"),
    ],
    ids=lambda value: f"{value.name}-{value.found[:30]}" if isinstance(value, Check) else None,
)  # fmt: skip
def test_other_judges(check: Check, level: str, words: str) -> None:
    _expect(check, level, words)


@pytest.mark.parametrize(
    ("changes", "name", "level", "words"),
    [
        ({}, "redis", "ok", "7.0.15 at r:6379/0"),
        ({"version": "5.0.14"}, "redis", "fail", "Version 6"),
        ({}, "redis password", "ok", "asked for"),
        ({"open_to_all": True}, "redis password", "warn", "every program of this machine"),
        ({"open_to_all": True, "is_local": False}, "redis password", "fail", "requirepass"),
        ({}, "redis memory", "ok", "256 MiB"),
        ({"policy": "allkeys-lru"}, "redis memory", "fail", "noeviction"),
        ({"maxmemory": 0}, "redis memory", "warn", "maxmemory"),
        ({}, "redis disk", "ok", "append-only"),
        ({"aof": False}, "redis disk", "warn", "snapshots only"),
        ({"aof": False, "saves": False}, "redis disk", "warn", "appendonly yes"),
        ({"aof": False, "saves": None}, "redis disk", "warn", "does not say"),
        ({"last_write_ok": False}, "redis disk", "fail", "last write"),
        ({}, "redis clock", "ok", "within"),
        ({"skew": 9.0}, "redis clock", "fail", "9.0 s ahead"),
        ({"skew": -9.0}, "redis clock", "fail", "9.0 s behind"),
    ],
)
def test_redis_is_judged(changes: dict[str, object], name: str, level: str, words: str) -> None:
    found = {check.name: check for check in services.judge_redis(replace(REDIS, **changes))}  # type: ignore[arg-type]
    _expect(found[name], level, words)


@pytest.mark.parametrize(
    ("changes", "name", "level", "words"),
    [
        ({}, "postgres", "ok", "15.16 at p:5432/spaces"),
        ({"version": 120001}, "postgres", "fail", "Version 13"),
        ({"read_only": True}, "postgres", "fail", "primary"),
        ({}, "postgres encoding", "ok", "UTF8"),
        ({"encoding": "SQL_ASCII"}, "postgres encoding", "fail", "createdb -E UTF8"),
        ({}, "postgres connections", "ok", "3 of 100"),
        ({"used": 80}, "postgres connections", "warn", "pg_stat_activity"),
        ({"max_connections": 20}, "postgres connections", "fail", "max_connections"),
        ({}, "postgres durability", "ok", "fsync on"),
        ({"fsync": False}, "postgres durability", "fail", "fsync = on"),
        ({"synchronous_commit": "off"}, "postgres durability", "warn", "last pushes"),
        ({"skew": 30.0}, "postgres clock", "fail", "30.0 s ahead"),
    ],
)
def test_postgres_is_judged(changes: dict[str, object], name: str, level: str, words: str) -> None:
    facts = replace(POSTGRES, **changes)  # type: ignore[arg-type]
    found = {check.name: check for check in services.judge_postgres(facts)}
    _expect(found[name], level, words)


@pytest.mark.parametrize(
    ("holds", "is_given", "is_unified", "level", "words"),
    [
        (("memory", "processes", "cpu"), False, True, "ok", "memory, processes, cpu by control groups"),
        (("memory", "processes"), False, True, "ok", "processors by priority only"),
        ((), True, True, "ok", "systemd has left to the platform"),
        ((), False, True, "warn", "-p Delegate=yes"),
        (("memory",), False, False, "warn", "processes of apps are looked at"),
    ],
)
def test_limits_of_processes_are_judged(
    holds: tuple[str, ...], is_given: bool, is_unified: bool, level: str, words: str
) -> None:
    found = machine.judge_limits(holds, is_given=is_given, is_unified=is_unified)
    _expect(found, level, words)
    assert ("systemd-run" in found.fix) is (level == "warn" and is_unified), "no advice that cannot help"


def _expect(check: Check, level: str, words: str) -> None:
    assert check.level == level, check
    assert words in f"{check.found}\n{check.fix}", check
    assert bool(check.fix) is (level != "ok"), "what is not ok has a fix, and only that"


@pytest.mark.parametrize(
    ("settings", "more", "less"),
    [
        ({"isolation": "off"}, {"isolation", "uv"}, {"builds"}),
        ({}, {"isolation", "limits", "uv", "builds"}, {"engine", "redis", "postgres", "certificate", "packet filter"}),
        (
            {"mode": "single-host"},
            {"engine", "redis", "packet filter", "volumes"},
            {"isolation", "limits", "uv", "builds", "postgres"},
        ),
        ({"mode": "single-host", "docker": "tcp://10.0.0.1:2376"}, {"engine"}, {"packet filter", "volumes"}),
        ({"mode": "single-host", "volume_mb": 0}, {"engine"}, {"volumes"}),
        ({"database": "postgresql+psycopg://h/d"}, {"postgres"}, {"redis"}),
        ({"public_url": "https://spaces.example.org"}, {"certificate"}, {"engine"}),
    ],
)
def test_only_what_is_used_is_checked(settings: dict[str, object], more: set[str], less: set[str]) -> None:
    names = {name for name, _ in groups_of(Settings.load({}, **settings))}
    assert more <= names
    assert not less & names


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("redis://:secret@h:6380/2", "h:6380/2"),
        ("redis://user:secret@h/0", "h:6379/0"),
        ("unix:///run/r.sock?password=secret", "/run/r.sock"),
    ],
)
def test_no_password_is_shown(url: str, where: str) -> None:
    assert services.place(url) == where


# --- real services ------------------------------------------------------------------------------
def test_a_redis_as_it_should_be(redis_server: Redis) -> None:
    assert [check for check in services.check_redis(redis_server.url) if check.level != "ok"] == []


def test_a_careless_redis(careless_redis: Redis) -> None:
    levels = {check.name: check.level for check in services.check_redis(careless_redis.url)}
    assert levels == {
        "redis": "ok", "redis password": "warn", "redis memory": "fail", "redis disk": "warn", "redis clock": "ok",
    }  # fmt: skip


def test_a_wrong_password_is_named_and_not_shown(redis_server: Redis) -> None:
    (found,) = services.check_redis(f"redis://:guessed@127.0.0.1:{redis_server.port}/0")
    assert (found.level, "refuses the password" in found.found) == ("fail", True)
    assert "guessed" not in str(found)


def test_a_redis_that_is_not_there() -> None:
    (found,) = services.check_redis("redis://127.0.0.1:1/0")
    assert (found.name, found.level) == ("redis", "fail")


def test_a_postgres_as_it_should_be(postgres_server: Postgres) -> None:
    assert [check for check in services.check_postgres(postgres_server.url) if check.level != "ok"] == []


def test_a_postgres_without_the_database(postgres_server: Postgres) -> None:
    (found,) = services.check_postgres(f"{postgres_server.url}-missing")
    assert "createdb" in found.fix


def test_a_postgres_that_is_not_there() -> None:
    (found,) = services.check_postgres("postgresql+psycopg://u:hidden@127.0.0.1:1/d")
    assert found.level == "fail"
    assert "hidden" not in str(found)


@pytest.mark.containers
def test_the_engine_that_runs_here(engine_url: str) -> None:
    found = {check.name: check for check in engine.check_engine(engine_url, "runc", IMAGE)}
    assert {"engine", "runc", "cgroups", "storage", "seccomp", "buildkit", "networks", "runtime"} <= set(found)
    assert found["buildkit"].level == "ok", found["buildkit"]
    assert found["seccomp"].level == "ok"
    assert "starts and ends" in found["runtime"].found


@pytest.mark.containers
def test_checking_leaves_no_image_behind(engine_url: str) -> None:
    import docker

    client = docker.DockerClient(base_url=engine_url)
    before = {image.id for image in client.images.list(filters={"dangling": True})}
    assert engine.check_buildkit(engine_url).level == "ok"
    after = {image.id for image in client.images.list(filters={"dangling": True})}
    empty = [i for i in after - before if not client.images.get(i).attrs["Size"]]
    client.close()
    assert empty == []


def test_an_engine_that_is_not_there(tmp_path: Path) -> None:
    (found,) = engine.check_engine(f"unix://{tmp_path}/none.sock", "", "")
    assert (found.name, found.level) == ("engine", "fail")


def test_the_command_says_it_all_and_fails_where_something_fails(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "spaces_platform", "doctor", "--data", str(tmp_path), "--json"]
    argv += ["--mode", "single-host", "--set", "redis=redis://127.0.0.1:1/0", "--set", f"docker=unix://{tmp_path}/no"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    said = json.loads(done.stdout)
    levels = {check["name"]: check["level"] for check in said["checks"]}
    assert done.returncode == 1, done.stderr
    assert (said["ok"], levels["engine"], levels["redis"], levels["git"]) == (False, "fail", "fail", "ok")


@pytest.mark.skipif(os.geteuid() != 0, reason="others' builds are their own")
def test_as_whom_builds_run_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as private:  # as root's home is
        (found,) = machine.check_builds(Path(private, "data"))
        _expect(found, "warn", "cannot enter")
        Path(private).chmod(0o711)
        (found,) = machine.check_builds(Path(private, "data"))
        _expect(found, "ok", "as uid 199999")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert machine.check_builds(Path(private)) == []


def test_a_port_without_tls_is_told(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = Settings.load({}, data=tmp_path, public_url=f"https://127.0.0.1:{port}")
    _expect(network.check_certificate(settings), "fail", "docs/single-host.md")


@pytest.mark.parametrize(
    ("package", "ask"),
    [
        ("docker", lambda: [engine.gather("unix:///none.sock")]),
        ("redis", lambda: services.check_redis("redis://127.0.0.1:1/0")),
        ("psycopg", lambda: services.check_postgres("postgresql://127.0.0.1:1/none")),
    ],
)
def test_a_package_that_is_not_installed_is_told(
    package: str, ask: Callable[[], list[Check]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    (found,) = ask()
    _expect(found, "fail", f"the {package} package for Python is not installed")


def test_a_check_that_breaks_is_a_failed_check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken() -> Check:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(machine, "check_git", broken)
    from spaces_platform.cli.doctor import check_all

    found = {check.name: check for check in check_all(Settings(data=tmp_path))}
    assert found["git"].level == "fail"
    assert "ZeroDivisionError" in found["git"].found
