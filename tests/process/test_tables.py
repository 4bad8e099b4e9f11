"""Pure decisions as tables: command lines, environments, sockets, verdicts, control groups, the ladder."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from spaces_platform.adapters.process import Level, LocalArtifact, probe, selfcheck, sockets
from spaces_platform.adapters.process.cgroups import Cgroups
from spaces_platform.adapters.process.launch import Ground, interpreter, launch
from spaces_platform.adapters.process.sandbox import Tools, View, argv, script, wrappers
from spaces_platform.adapters.process.shim.output import shown as output_shown
from spaces_platform.ports import DeploymentSpec, Resources
from tests.process.harness import SETTINGS

TOOLS = Tools(bwrap="/usr/bin/bwrap", setpriv="/usr/bin/setpriv", prlimit="/usr/bin/prlimit")
VIEW = View(Path("/d/work"), Path("/d/home"), Path("/d/tmp"), 200001, (Path("/opt/py"), Path("/opt/py/lib")))


@pytest.mark.parametrize(
    ("level", "first", "contains", "lacks"),
    [
        (Level.BUBBLEWRAP_UID, "/usr/bin/bwrap", ["--reuid 200001", "--cap-drop ALL"], ["--unshare-user"]),
        (Level.BUBBLEWRAP, "/usr/bin/bwrap", ["--unshare-user", "--cap-drop ALL"], ["--reuid", "--cap-add"]),
        (Level.OWN_UID, "/usr/bin/setpriv", ["--reuid 200001", "--no-new-privs", "--clear-groups"], ["bwrap"]),
        (Level.NONE, "/usr/bin/setpriv", ["--no-new-privs"], ["bwrap", "--reuid"]),
    ],
)
def test_command_lines(level: Level, first: str, contains: list[str], lacks: list[str]) -> None:
    words = argv(level, TOOLS, VIEW, ("python", "app.py"))
    assert words[0] == first
    assert words[-5:] == ("/bin/sh", "-s", "--", "python", "app.py")
    line = " ".join(words)
    assert [part for part in contains if part not in line] == []
    assert [part for part in lacks if part in line] == []
    assert "--ro-bind /opt/py/lib" not in line


def test_without_any_tool_the_shell_is_left() -> None:
    assert argv(Level.NONE, Tools(None, None, None), VIEW, ("x",)) == ("/bin/sh", "-s", "--", "x")
    assert [wrappers(level) for level in Level] == [2, 2, 0, 0]


@pytest.mark.parametrize("value", ["", "it's", '"', "$(id)", "`id`", "a\nb", "\\", "é", "-n", "!x", "'; exit 1; '"])
def test_the_script_sets_any_value_and_nothing_else_happens(value: str) -> None:
    done = subprocess.run(
        ["/bin/sh", "-s", "--", "/usr/bin/printenv", "VALUE"],
        input=script({"VALUE": value}, "/"),
        capture_output=True,
        env={},
    )
    assert done.stdout.decode() == value + "\n"
    assert done.stderr == b""


def ground(level: Level = Level.NONE, groups: Cgroups | None = None) -> Ground:
    return Ground(SETTINGS, level, TOOLS, groups or Cgroups(), "spaces-0000-")


def spec(**env: str) -> DeploymentSpec:
    return DeploymentSpec(5, 7, "ada/app", "ref", ("{PLATFORM_PYTHON}", "--port={PORT}"), env)


def made(**env: str) -> str:
    orders = launch(spec(**env), LocalArtifact(Path("/a"), Path("/e")), Path("/d"), 4321, ground(), frozen=False)
    text = orders["script"]
    assert isinstance(text, bytes)
    return text.decode()


@pytest.mark.parametrize(
    ("env", "line"),
    [
        ({"A": "http://0.0.0.0:{PORT}/"}, "export A=http://0.0.0.0:4321/"),
        ({"PORT": "1"}, "export PORT=4321"),
        ({"HOME": "/root"}, "export HOME=/d/home"),
        ({"PATH": "/mine"}, "export PATH=/e/bin:/mine"),
        ({}, "export PATH=/e/bin:/usr/local/bin:/usr/bin:/bin"),
        ({}, "export VIRTUAL_ENV=/e"),
        ({}, "export SPACES_RUN=spaces-0000-5"),
        ({"SPACES_RUN": "spaces-0000-6"}, "export SPACES_RUN=spaces-0000-5"),
        ({"LANG": "de_DE.UTF-8"}, "export LANG=de_DE.UTF-8"),
    ],
)
def test_environments(env: dict[str, str], line: str) -> None:
    assert line in made(**env).splitlines()


def test_placeholders_in_the_command_are_filled() -> None:
    orders = launch(spec(), LocalArtifact(Path("/a")), Path("/d"), 4321, ground(), frozen=False)
    assert orders["argv"][-2:] == [str(SETTINGS.platform_python), "--port=4321"]


def test_what_a_group_enforces_is_not_watched_too() -> None:
    groups = Cgroups(memory="/m", pids="/p")
    orders = launch(spec(), LocalArtifact(Path("/a")), Path("/d"), 1, ground(groups=groups), frozen=False)
    assert (orders["watch"]["memory"], orders["watch"]["processes"], orders["nice"]) == (0, 0, 5)
    orders = launch(spec(), LocalArtifact(Path("/a")), Path("/d"), 1, ground(), frozen=False)
    assert orders["watch"]["memory"] == Resources().memory


def test_groups_of_both_versions() -> None:
    wanted = Resources(cpus=1.5, memory=1 << 30, processes=99)
    assert Cgroups(unified="/c", cpu="/c").groups("x", wanted) == (
        (
            "/c/x",
            (("memory.max", "1073741824"), ("memory.oom.group", "1"), ("pids.max", "99"), ("cpu.max", "150000 100000")),
        ),
    )
    assert Cgroups(memory="/m", cpu="/c").groups("x", wanted) == (
        ("/m/x", (("memory.limit_in_bytes", "1073741824"),)),
        ("/c/x", (("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "150000"))),
    )
    assert Cgroups().groups("x", wanted) == ()
    assert Cgroups(unified="/c").oom_events("x") == ("/c/x/memory.events", "oom_kill")
    assert Cgroups(pids="/p").oom_events("x") == ("", "")


@pytest.mark.parametrize(
    ("line", "address"),
    [
        ("0: 0100007F:1F90 00000000:0000 0A 0:0 0:0 0 1000 0 4242 1", "127.0.0.1:8080"),
        ("0: 00000000:1E93 00000000:0000 0A 0:0 0:0 0 1000 0 4242 1", "0.0.0.0:7827"),
        ("0: 00000000000000000000000001000000:0050 0:0 0A 0:0 0:0 0 0 0 4242 1", "[::1]:80"),
        ("0: 00000000000000000000000000000000:0050 0:0 0A 0:0 0:0 0 0 0 4242 1", "[::]:80"),
        ("0: 0100007F:1F90 0100007F:0000 01 0:0 0:0 0 1000 0 4242 1", None),
        ("", None),
    ],
)
def test_socket_tables(line: str, address: str | None) -> None:
    assert sockets.parse(line) == (None if address is None else ("4242", address))


@pytest.mark.parametrize(
    ("line", "ready", "words"),
    [
        (b"HTTP/1.1 200 OK\r\n", True, "HTTP 200"),
        (b"HTTP/1.0 404\r\n", True, "HTTP 404"),
        (b"HTTP/1.1 302 Found\r\n", True, "HTTP 302"),
        (b"HTTP/1.1 500 Oops\r\n", False, "HTTP 500"),
        (b"SSH-2.0-OpenSSH\r\n", False, "no HTTP answer: 'SSH-2.0-OpenSSH'"),
        (b"", False, "no HTTP answer"),
    ],
)
def test_verdicts(line: bytes, ready: bool, words: str) -> None:
    found = probe.verdict(line, "/")
    assert (found.connected, found.ready) == (True, ready)
    assert found.words.endswith(words)


@pytest.mark.parametrize(
    ("raw", "shown"), [(b"plain", b"plain"), (b"10%\r50%\r100%", b"100%"), (b"dos\r", b"dos"), (b"", b""), (b"\r", b"")]
)
def test_progress_bars_show_their_last_state(raw: bytes, shown: bytes) -> None:
    assert output_shown(raw) == shown


def test_the_ladder_of_each_kind_of_user() -> None:
    assert selfcheck.ladder(True) == (Level.BUBBLEWRAP_UID, Level.OWN_UID, Level.NONE)
    assert selfcheck.ladder(False) == (Level.BUBBLEWRAP, Level.NONE)


def test_every_installation_behind_an_interpreter_is_found(tmp_path: Path) -> None:
    for name in ("3.11.7", "env"):
        (tmp_path / name / "bin").mkdir(parents=True)
    (tmp_path / "3.11.7" / "bin" / "python3").touch()
    (tmp_path / "3.11").symlink_to("3.11.7")
    (tmp_path / "env" / "bin" / "python").symlink_to(tmp_path / "3.11" / "bin" / "python3")
    assert set(interpreter(tmp_path / "env" / "bin" / "python")) == {tmp_path / "3.11", tmp_path / "3.11.7"}


def test_shell_words_are_quoted_by_the_standard_library() -> None:
    assert shlex.quote("a'b") in script({"A": "a'b"}, "/").decode()
