"""What apps cannot reach, at each level this machine has; the levels that it does not have are skipped by name."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from spaces_platform.adapters.process import Level, ProcessSettings, selfcheck
from spaces_platform.adapters.process.sandbox import Tools
from spaces_platform.errors import Unavailable
from tests.process import apps
from tests.process.harness import SETTINGS, Machine, exited, ready, text

SYSTEM_PYTHON = Path("/usr/bin/python3")
"""An interpreter that every user may run, as the platform's own may be hidden in somebody's home."""

APART = [Level.BUBBLEWRAP_UID, Level.BUBBLEWRAP, Level.OWN_UID]
CANARY = "canary-77aa"

LOOK_AROUND = """
import json, os, sys
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
found, seen = [], 0
for name in os.listdir("/proc"):
    if name.isdigit() and int(name) != os.getpid():
        seen += 1
        for file in ("environ", "cmdline", "maps", "mem", "root/etc/passwd", "fd"):
            try:
                path = f"/proc/{name}/{file}"
                data = b"".join(os.readlink(path + "/" + f).encode() for f in os.listdir(path)) if file == "fd" else (
                    open(path, "rb").read(1 << 20))
                if os.environ["LOOK_FOR"].encode() in data:
                    found.append(path)
            except OSError:
                continue
for top, folders, files in os.walk(os.environ["LOOK_IN"]):
    for file in files:
        try:
            if os.environ["LOOK_FOR"].encode() in open(os.path.join(top, file), "rb").read():
                found.append(os.path.join(top, file))
        except OSError:
            continue
def tries(action):
    try:
        action()
        return "done"
    except OSError as error:
        return error.errno
def write(path):
    with open(path, "w") as file:
        file.write("x")
import ctypes, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *args):
    if getattr(libc, name)(*args) < 0:
        raise OSError(ctypes.get_errno(), name)
print(json.dumps({
    "uid": os.getuid(), "groups": os.getgroups(), "CapEff": int(status["CapEff"], 16),
    "CapPrm": int(status["CapPrm"], 16), "CapBnd": int(status["CapBnd"], 16), "CapAmb": int(status["CapAmb"], 16),
    "sees_data": os.path.exists(os.environ["LOOK_IN"] + "/run/platform.key"),
    "NoNewPrivs": status["NoNewPrivs"].strip(), "processes": seen, "found": found,
    "tries": {
        "outside": tries(lambda: write(os.environ["LOOK_IN"] + "/written")),
        "usr": tries(lambda: write("/usr/written")),
        "etc": tries(lambda: write("/etc/written")),
        "core_pattern": tries(lambda: write("/proc/sys/kernel/core_pattern")),
        "setuid": tries(lambda: os.setuid(0)),
        "mount": tries(lambda: call("mount", b"none", b"/tmp", b"tmpfs", 0, None)),
        "mknod": tries(lambda: os.mknod("device", 0o60600, os.makedev(8, 0))),
        "raw": tries(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)),
        "kill": tries(lambda: os.kill(int(os.environ["KILL"]), 9)),
        "chroot": tries(lambda: os.chroot("/")),
        "shadow": tries(lambda: open("/etc/shadow").read()),
    },
}), flush=True)
"""


def settings_at(level: Level, place: Machine) -> ProcessSettings:
    """Settings that insist on a level; skips where the machine does not have it."""
    settings = replace(SETTINGS, level=level)
    if level is Level.OWN_UID:  # every user must be able to run the interpreter
        settings = replace(settings, platform_python=SYSTEM_PYTHON.resolve())
    facts, reason = selfcheck.try_level(level, place.root, settings, selfcheck.installed())
    if facts is None:
        pytest.skip(f"{level}: {reason}")
    return settings


@pytest.mark.parametrize("level", APART)
def test_an_app_holds_no_privilege_and_finds_no_secret(place: Machine, level: Level) -> None:
    orchestrator = place.orchestrator(settings_at(level, place))
    victims = [place.spec(apps.server(), space_id=n, env={"SECRET": f"{CANARY}-{n}"}) for n in (2, 3)]
    for victim in victims:
        orchestrator.start(victim)
        ready(orchestrator, victim.id)
        folder = place.root / "run" / "deployments" / str(victim.id)
        (folder / "work" / "data.txt").write_text(CANARY)
    (place.root / "run" / "platform.key").write_text(CANARY)
    (place.root / "run" / "platform.key").chmod(0o600)
    with subprocess.Popen(["sleep", "60"], env={"SECRET": CANARY}) as bystander:
        env = {"LOOK_FOR": CANARY[:7] + CANARY[7:], "LOOK_IN": str(place.root), "KILL": str(bystander.pid)}
        spy = place.spec(LOOK_AROUND, space_id=9, env=env)
        orchestrator.start(spy)
        seen = exited(orchestrator, spy.id)
        assert bystander.poll() is None
        bystander.kill()
    assert seen.exit_code == 0, text(orchestrator, spy.id)
    facts = json.loads(text(orchestrator, spy.id))
    own = f"/deployments/{spy.id}/"
    assert [path for path in facts["found"] if own not in path and not path.startswith("/proc/1/")] == []
    assert {n: facts[n] for n in ("CapEff", "CapPrm", "CapAmb")} == dict.fromkeys(("CapEff", "CapPrm", "CapAmb"), 0)
    assert facts["NoNewPrivs"] == "1"
    assert "done" not in facts["tries"].values(), facts["tries"]
    if level is not Level.BUBBLEWRAP:
        assert facts["uid"] == SETTINGS.uid_base + 9
        assert facts["CapBnd"] == 0
        assert facts["groups"] == []
    if level is not Level.OWN_UID:
        assert facts["processes"] <= 2
        assert not facts["sees_data"]
    assert seen.isolation == str(level)


def test_two_spaces_have_two_users_and_one_space_has_one(place: Machine) -> None:
    orchestrator = place.orchestrator(settings_at(Level.BUBBLEWRAP_UID, place))
    uids = []
    for space_id in (4, 4, 5):
        spec = place.spec("import os; print(os.getuid(), os.getgid())", space_id=space_id)
        orchestrator.start(spec)
        exited(orchestrator, spec.id)
        uids.append(text(orchestrator, spec.id))
    base = SETTINGS.uid_base
    assert uids == [f"{base + 4} {base + 4}"] * 2 + [f"{base + 5} {base + 5}"]


def test_a_preloaded_library_never_meets_a_privileged_program(place: Machine) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    orchestrator = place.orchestrator(settings_at(Level.BUBBLEWRAP_UID, place))
    spec = place.spec("print('ran', flush=True)", env={"LD_PRELOAD": "/home/user/app/evil.so"})
    app = place.root / "apps" / spec.artifact_ref
    code = (
        "#include <stdio.h>\n#include <unistd.h>\n"
        '__attribute__((constructor)) void f() { printf("uid %d\\n", getuid()); }'
    )
    subprocess.run([compiler, "-shared", "-fPIC", "-xc", "-", "-o", app / "evil.so"], input=code.encode(), check=True)
    orchestrator.start(spec)
    exited(orchestrator, spec.id)
    lines = text(orchestrator, spec.id).splitlines()
    assert sorted(lines) == ["ran", f"uid {SETTINGS.uid_base + 1}"]


def test_the_ladder_falls_with_its_reasons_kept(place: Machine) -> None:
    tools = selfcheck.installed()
    place.root.joinpath("check").mkdir(mode=0o711)
    root = place.root / "check"
    none = Tools(bwrap=None, setpriv=None, prlimit=None)
    found = selfcheck.check(root, SETTINGS, none)
    assert found.level is Level.NONE
    assert "bubblewrap is not installed" in found.rejected[0]
    assert any("no protection against hostile code" in words for words in found.lacks)
    assert not found.safe_for_strangers
    broken = replace(tools, bwrap="/bin/false")
    found = selfcheck.check(root, SETTINGS, broken)
    assert found.level is not Level.BUBBLEWRAP_UID
    assert found.rejected[0].startswith("bubblewrap")


def test_a_sandbox_that_holds_nothing_is_not_believed(place: Machine) -> None:
    """A program that is called setpriv but only runs its command."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    fake = place.root / "setpriv"
    fake.write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n')
    fake.chmod(0o755)
    tools = replace(selfcheck.installed(), setpriv=str(fake))
    facts, reason = selfcheck.try_level(Level.OWN_UID, place.root, SETTINGS, tools)
    assert facts is None
    assert "not held" in reason


def test_the_answer_is_cached_until_something_changes(place: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    place.orchestrator().close()
    tried: list[Level] = []
    real = selfcheck.try_level

    def counted(level: Level, *rest: object) -> object:
        tried.append(level)
        return real(level, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(selfcheck, "try_level", counted)
    place.orchestrator().close()
    assert not tried
    place.orchestrator(replace(SETTINGS, uid_base=300000)).close()
    assert tried


def test_insisting_on_what_is_not_there_is_an_error(place: Machine) -> None:
    missing = Tools(bwrap=None, setpriv=None, prlimit=None)
    with pytest.raises(Unavailable, match="bubblewrap is not installed"):
        selfcheck.check(place.root, replace(SETTINGS, level=Level.BUBBLEWRAP), missing)


def test_an_ordinary_user_gets_the_same_life_of_apps(place: Machine) -> None:
    """Root runs it as nobody; an ordinary user runs all the other tests this way already."""
    if os.geteuid() != 0:
        pytest.skip("this is an ordinary user already")
    checkout = Path.cwd()
    nobody = pwd.getpwnam("nobody").pw_uid
    user = ["setpriv", "--reuid", str(nobody), "--regid", str(nobody), "--clear-groups", "--"]
    command = [*user, str(SYSTEM_PYTHON), "-m", "tests.process.as_user"]
    if subprocess.run([*user, SYSTEM_PYTHON, "-c", "import tests.process.as_user"], cwd=checkout).returncode:
        pytest.skip("no interpreter of at least 3.11 that everybody may run, or the checkout is private")
    with_place = {"HOME": str(place.root), "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=checkout, env=with_place, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads(done.stdout)
    assert facts["stopped"]
    assert facts["exit_code"] == 3
    assert facts["uid"] != 0
    assert facts["capabilities"] == 0
    if facts["level"] == "bubblewrap":
        assert not facts["finds"]
        assert facts["bomb_bounded"]
