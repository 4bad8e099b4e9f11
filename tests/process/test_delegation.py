"""A group that systemd has left to the platform (Delegate=yes): taken into use, and no other is touched. Version 2."""

from __future__ import annotations

import json
import os
import pwd
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from spaces_platform.adapters.process import cgroups
from tests.process.harness import STRETCH

CONTROLLERS = "cpuset cpu io memory pids\n"


# --- on folders as the kernel shows them ---------------------------------------------------------------------------
def service(place: Path, *, delegated: bool, members: str = "") -> Path:
    """The group of a service, as it is at its start."""
    place.mkdir(parents=True)
    for name, text in (("cgroup.controllers", CONTROLLERS), ("cgroup.subtree_control", ""), ("cgroup.procs", members)):
        (place / name).write_text(text)
    if delegated:
        try:
            os.setxattr(place, "user.delegate", b"1")
        except OSError as error:
            pytest.skip(f"no extended attributes of users at {place}: {error}")
    return place


def test_a_delegated_group_passes_its_controllers_on(tmp_path: Path) -> None:
    """DelegateSubgroup= of systemd 254 has put the platform one below already."""
    group = service(tmp_path / "spaces.service", delegated=True)
    own = service(group / "main", delegated=False, members=f"{os.getpid()}\n")
    cgroups.settle_in(own)
    assert (group / "cgroup.subtree_control").read_text() == "+cpu", "memory and pids were written before it"
    assert (own / "cgroup.subtree_control").read_text() == ""


def test_members_go_into_one_below_and_where_they_stay_nothing_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "LEAVE_TRIES", 1)
    group = service(tmp_path / "spaces.service", delegated=True, members="4711\n")
    service(group / cgroups.LEAF, delegated=False)
    cgroups.settle_in(group)  # a folder's members do not leave it
    assert (group / cgroups.LEAF / "cgroup.procs").read_text() == "4711"
    assert (group / "cgroup.subtree_control").read_text() == ""


def test_a_group_that_is_not_delegated_is_left_alone(tmp_path: Path) -> None:
    group = service(tmp_path / "a.slice/session-1.scope", delegated=False, members="4711\n")
    cgroups.settle_in(group)
    assert sorted(path.name for path in group.iterdir()) == [
        "cgroup.controllers",
        "cgroup.procs",
        "cgroup.subtree_control",
    ]
    assert (group / "cgroup.subtree_control").read_text() == ""


# --- by systemd itself ---------------------------------------------------------------------------------------------
@pytest.fixture
def unit() -> Iterator[str]:
    """The name of a service that does not outlive the test."""
    if os.geteuid() != 0 or not Path("/run/systemd/system").is_dir() or not cgroups.is_unified():
        pytest.skip("needs root, systemd, and control groups of version 2 (make test-machine)")
    name = f"spaces-test-{secrets.token_hex(4)}"
    yield name
    subprocess.run(["systemctl", "kill", "--signal=KILL", name], check=False, capture_output=True)


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_apps_of_a_service_are_limited_by_the_kernel_and_leave_no_group(unit: str, user: str, tmp_path: Path) -> None:
    python = str(Path(sys.executable))
    tmp_path.chmod(0o755)
    if subprocess.run(["setpriv", "--reuid", user, "--clear-groups", python, "-c", "import tests.process.as_user"],
                      check=False, capture_output=True).returncode:  # fmt: skip
        pytest.skip(f"{user} may not read this checkout")
    before = apps()
    done = subprocess.run(
        ["systemd-run", "--quiet", "--wait", "--pipe", "--collect", f"--unit={unit}", "-p", "Delegate=yes",
         "-p", f"User={pwd.getpwnam(user).pw_uid}", f"--working-directory={Path.cwd()}", f"--setenv=HOME={tmp_path}",
         f"--setenv=TEST_STRETCH={STRETCH}", "--setenv=PYTHONDONTWRITEBYTECODE=1",
         python, "-m", "tests.process.as_user"],
        capture_output=True, text=True, timeout=120 * STRETCH, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads(done.stdout)
    assert facts["limits"]["memory"] == facts["limits"]["processes"] == facts["limits"]["cpu"] == "cgroup"
    assert (facts["out_of_memory"], facts["bomb_bounded"], facts["stopped"]) == (True, True, True)
    assert apps() == before


def apps() -> set[Path]:
    """Groups of apps of any platform."""
    return {path for path in Path("/sys/fs/cgroup").rglob("spaces-????????-*") if path.is_dir()}
