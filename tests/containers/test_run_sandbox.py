"""What an app in a container is, can do and can find out: T01, and T07 for containers."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from spaces_platform.ports import DeploymentSpec
from tests.containers.harness import SMALL, Place, alive, exited, gone, ready, text
from tests.process import apps
from tests.process.harness import wait_for

TRY_EVERYTHING = """
import ctypes, json, os, resource, socket
libc = ctypes.CDLL(None, use_errno=True)
def tries(action):
    try:
        action()
        return "done"
    except OSError as error:
        return os.strerror(error.errno)
def call(number, *args):
    if libc.syscall(number, *args) < 0:
        raise OSError(ctypes.get_errno(), str(number))
def write(path):
    with open(path, "w") as file:
        file.write("x")
def lines(path):
    with open(path) as file:
        return file.read().splitlines()
def sockets():
    for top, folders, files in os.walk("/"):
        folders[:] = [f for f in folders if os.path.join(top, f) not in ("/proc", "/sys")]
        for name in files:
            try:
                if os.stat(os.path.join(top, name)).st_mode & 0o170000 == 0o140000:
                    yield os.path.join(top, name)
            except OSError:
                continue
status = dict(line.split(":", 1) for line in lines("/proc/self/status"))
CLONE_NEWUSER, CLONE_NEWNS = 0x10000000, 0x20000
print(json.dumps({
    "status": {name: status.get(name, "0").strip() for name in (
        "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")},
    "uid_map": lines("/proc/self/uid_map")[0].split(),
    "mounts": {line.split()[1]: line.split()[3].split(",") for line in lines("/proc/mounts")},
    "types": {line.split()[1]: line.split()[2] for line in lines("/proc/mounts")},
    "devices": sorted(os.listdir("/dev")),
    "sockets": list(sockets()),
    "tokens": [p for p in ("/var/run/secrets", "/run/secrets", "/var/run/docker.sock") if os.path.exists(p)],
    "processes": sorted(int(p) for p in os.listdir("/proc") if p.isdigit()),
    "init": lines("/proc/1/comm")[0],
    "core": resource.getrlimit(resource.RLIMIT_CORE),
    "hostname": os.uname().nodename,
    "written": {path: tries(lambda: write(path + "/canary")) for path in (
        "/", "/etc", "/usr/bin", "/var", "/sys/fs/cgroup", "/proc/sys/kernel",
        "/home/user", "/home/user/app", "/tmp", "/run", "/dev/shm")},
    "tries": {
        "setuid": tries(lambda: os.setuid(0)),
        "setgroups": tries(lambda: os.setgroups([0])),
        "chroot": tries(lambda: os.chroot("/tmp")),
        "mount": tries(lambda: call(165, b"none", b"/tmp", b"tmpfs", 0, None)),
        "unshare user": tries(lambda: call(272, CLONE_NEWUSER)),
        "unshare mount": tries(lambda: call(272, CLONE_NEWNS)),
        "add_key": tries(lambda: call(248, b"user", b"canary", b"x", 1, -3)),
        "keyctl": tries(lambda: call(250, 0, -3, 0)),
        "bpf": tries(lambda: call(321, 0, None, 0)),
        "perf": tries(lambda: call(298, None, 0, -1, -1, 0)),
        "userfaultfd": tries(lambda: call(323, 0)),
        "open_by_handle": tries(lambda: call(304, -1, None, 0)),
        "init_module": tries(lambda: call(175, None, 0, b"")),
        "kexec": tries(lambda: call(246, 0, 0, None, 0)),
        "reboot": tries(lambda: call(169, 0xfee1dead, 672274793, 0x89abcdef, None)),
        "settime": tries(lambda: call(227, 0, ctypes.c_char_p(bytes(16)))),
        "mknod": tries(lambda: os.mknod("/tmp/disk", 0o60600, os.makedev(8, 0))),
        "raw": tries(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)),
        "packet": tries(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)),
        "kmsg": tries(lambda: open("/dev/kmsg")),
        "kcore": tries(lambda: open("/proc/kcore", "rb").read(4) or call(-1)),
        "core_pattern": tries(lambda: write("/proc/sys/kernel/core_pattern")),
        "memory limit": tries(lambda: write("/sys/fs/cgroup/memory/memory.limit_in_bytes")),
        "memory limit v2": tries(lambda: write("/sys/fs/cgroup/memory.max")),
        "sysrq": tries(lambda: write("/proc/sysrq-trigger")),
        "shadow": tries(lambda: open("/etc/shadow")),
    },
}), flush=True)
"""
MAY = {"/home/user", "/home/user/app", "/tmp", "/dev/shm"}
"""Where an app may write."""
DEVICES = {"core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty",
           "urandom", "zero"}  # fmt: skip


@pytest.fixture
def report(place: Place) -> dict[str, Any]:
    orchestrator = place.orchestrator()
    spec = place.spec(TRY_EVERYTHING)
    orchestrator.start(spec)
    seen = exited(orchestrator, spec.id)
    assert seen.exit_code == 0, text(orchestrator, spec.id)
    found: dict[str, Any] = json.loads(text(orchestrator, spec.id))
    return found


def test_an_app_is_nobody_special_and_every_way_out_is_shut(report: dict[str, Any]) -> None:
    status = report["status"]
    assert (status["Uid"].split(), status["Gid"].split()) == (["1000"] * 4, ["1000"] * 4)
    assert {int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert set(report["devices"]) <= DEVICES
    assert (report["sockets"], report["tokens"]) == ([], [])
    # Its init and itself: nothing else of the machine is seen.
    assert report["init"] == "docker-init"
    assert len(report["processes"]) == 2
    assert report["core"] == [0, 0]
    assert report["hostname"] == "space-1"
    assert [name for name, said in report["tries"].items() if said == "done"] == []


def test_it_writes_where_spaces_promise_it_and_nowhere_else(report: dict[str, Any]) -> None:
    assert {path for path, said in report["written"].items() if said == "done"} == MAY
    assert "ro" in report["mounts"]["/"]
    # What it writes on has a size, and runs no program with somebody else's rights.
    for path in MAY - {"/home/user/app"}:
        assert {"nosuid", "nodev"} <= set(report["mounts"][path]), path
    for path in ("/proc/sys", "/sys"):
        assert "ro" in report["mounts"].get(path, ["ro"]), path


def test_what_is_not_so_is_said(place: Place, report: dict[str, Any]) -> None:
    """Two apps have one user id on the host, unless the engine remaps them: the admin is told."""
    found = place.orchestrator().isolation()
    remapped = report["uid_map"][1] != "0"
    assert any("user id 1000" in words for words in found.lacks) != remapped
    assert any("kernel" in words for words in found.lacks)
    assert "fenced network" in found.words
    assert "sized disk" in found.words


LOOK_AROUND = """
import json, os
mark = os.environ["LOOK_FOR"].encode()
found, looked = [], 0
def look(path):
    global looked
    try:
        with open(path, "rb", buffering=0, opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK)) as file:
            looked += 1
            for _ in range(64):
                data = file.read(1 << 18)
                if not data:
                    return
                if mark in data:
                    found.append(path)
                    return
    except (OSError, ValueError):
        return
for name in os.listdir("/proc"):
    if name.isdigit() and int(name) not in (1, os.getpid()):
        for file in ("environ", "cmdline", "maps", "root/home/user/data.txt"):
            look(f"/proc/{name}/{file}")
for top in ("/proc", "/sys", "/dev", "/run", "/tmp", "/home", "/var", "/etc", "/data", "/root", "/mnt", "/opt"):
    for folder, folders, files in os.walk(top):
        if top == "/proc":
            folders[:] = [f for f in folders if not f.isdigit() and f not in ("self", "thread-self")]
        if folder.count("/") > 6:
            folders[:] = []
        for name in files:
            if name not in ("kmsg", "trace_pipe", "zero", "random", "urandom", "full", "tty", "ptmx", "stdout"):
                look(os.path.join(folder, name))
print(json.dumps({"found": found, "looked": looked}), flush=True)
"""
KEEPS = "open('/home/user/data.txt', 'w').write(os.environ['SECRET'])"
HALVES = ("canary-of-", "somebody-else")
"""Apart, so that the spy does not find what it looks for in its own memory of this text."""


def keeper(place: Place, space_id: int) -> DeploymentSpec:
    """An app with a secret in its environment, its output, its disk and its volume."""
    keeps = f"{KEEPS}; open('/data/kept', 'w').write(os.environ['SECRET']); print(os.environ['SECRET'], flush=True)"
    env = {"SECRET": "".join(HALVES) + f"-{space_id}"}
    resources = replace(SMALL, volume=16 << 20)
    return place.spec(apps.server(keeps), space_id=space_id, env=env, resources=resources)


def test_an_app_finds_no_secret_of_another(place: Place) -> None:
    orchestrator = place.orchestrator()
    for space_id in (2, 3):
        spec = keeper(place, space_id)
        orchestrator.start(spec)
        ready(orchestrator, spec.id)
    argv = ("python3", "-S", "-c", LOOK_AROUND.replace('os.environ["LOOK_FOR"]', f"({HALVES[0]!r} + {HALVES[1]!r})"))
    spy = replace(place.spec(resources=replace(SMALL, volume=16 << 20), space_id=9), argv=argv)
    orchestrator.start(spy)
    exited(orchestrator, spy.id, 120)
    report = json.loads(text(orchestrator, spy.id))
    assert report["looked"] > 300
    assert report["found"] == []


def test_two_versions_of_one_space_share_its_volume_and_not_their_disks(place: Place) -> None:
    orchestrator = place.orchestrator()
    first = keeper(place, 5)
    orchestrator.start(first)
    ready(orchestrator, first.id)
    source = (
        "import os\nprint(os.path.exists('/home/user/data.txt'), open('/data/kept').read() == os.environ['SECRET'])\n"
    )
    second = place.spec(source, space_id=5, env=dict(first.env), resources=first.resources)
    orchestrator.start(second)
    exited(orchestrator, second.id)
    assert text(orchestrator, second.id) == "False True"


def test_an_app_that_ends_leaves_no_process(place: Place) -> None:
    """Children that left their session, and those of dead parents, end with the container."""
    orchestrator = place.orchestrator()
    spec = place.spec(
        "import os, time\nfor _ in range(8):\n    if os.fork() == 0:\n        os.setsid()\n        os.fork()\n"
        "        time.sleep(600)\ntime.sleep(1)\nprint('end', flush=True)\n"
    )
    orchestrator.start(spec)
    group = wait_for("its processes", lambda: len(members := place.members(spec.id)) > 8 and members)
    exited(orchestrator, spec.id)
    wait_for("all have ended", lambda: not alive(group), 60)


def test_an_app_that_holds_its_own_init_is_ended_all_the_same(place: Place) -> None:
    orchestrator = place.orchestrator()
    attach = "import ctypes; assert ctypes.CDLL(None).ptrace(16, 1, 0, 0) == 0, 'PTRACE_ATTACH'"
    spec = place.spec(apps.server(attach))
    orchestrator.start(spec)
    ready(orchestrator, spec.id)
    orchestrator.stop(spec.id, grace=0.2)
    gone(orchestrator, spec.id)
    wait_for("its container is gone", lambda: not place.containers(), 60)
