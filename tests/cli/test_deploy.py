"""`spaces deploy` end to end: real git, real platform, and the app asked over HTTP."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import ROOT, Place

STATIC = "---\ntitle: {}\nsdk: static\napp_file: index.html\n---\n"


def folder(place: Place, name: str, text: str, *, readme: bool = True) -> Path:
    made = place.root / name
    made.mkdir()
    (made / "index.html").write_text(f"<h1>{text}</h1>")
    if readme:
        (made / "README.md").write_text(STATIC.format(name))
    return made


def git(where: Path, *arguments: str) -> str:
    who = ("-c", "user.name=Ann", "-c", "user.email=ann@example.org")
    return subprocess.run(
        ["git", *who, *arguments], cwd=where, check=True, capture_output=True, text=True
    ).stdout.strip()


def events(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_static_example_is_deployed_and_answers(running: Place) -> None:
    where = running.root / "static-site"
    shutil.copytree(ROOT / "examples" / "static-site", where)
    done = running.spaces("deploy", str(where))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "remote:" in done.stdout
    assert f"Live: http://admin-static-site.localhost:{running.port}/" in done.stdout
    status, body = running.fetch(f"http://admin-static-site.localhost:{running.port}/")
    assert status == 200
    assert body == (where / "index.html").read_text()


def test_a_plain_folder_gets_its_front_matter_and_json_tells_every_step(running: Place) -> None:
    where = folder(running, "plain", "plain one", readme=False)
    done = running.spaces("deploy", str(where), "--json")
    told = events(done)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (where / "README.md").read_text().startswith("---\ntitle: plain\nsdk: static\napp_file: index.html\n")
    assert {"remote", "pushed", "log", "result"} <= {event["event"] for event in told}
    result = told[-1]
    assert result["event"] == "result"
    assert result["ok"]
    assert running.fetch(result["url"]) == (200, "<h1>plain one</h1>")

    unchanged = events(running.spaces("deploy", str(where), "--json"))
    assert [e["changed"] for e in unchanged if e["event"] == "pushed"] == [False]
    assert unchanged[-1]["commit"] == result["commit"]

    (where / "index.html").write_text("<h1>plain two</h1>")
    again = events(running.spaces("deploy", str(where), "--json"))
    assert again[-1]["commit"] != result["commit"]
    assert running.fetch(result["url"]) == (200, "<h1>plain two</h1>")
    log = running.spaces("info", "admin/plain", "--json")
    assert json.loads(log.stdout)["head"] == again[-1]["commit"]


def test_a_clean_repository_is_pushed_as_it_is_and_a_dirty_one_is_left_alone(running: Place) -> None:
    where = folder(running, "repo", "committed")
    (where / ".gitignore").write_text("private.txt\n")
    (where / "private.txt").write_text("not for others")
    git(where, "init", "-q", "-b", "work")
    git(where, "add", ".")
    git(where, "commit", "-q", "-m", "first")
    head = git(where, "rev-parse", "HEAD")
    config = (where / ".git" / "config").read_text()

    done = running.spaces("deploy", str(where), "--json")
    assert events(done)[-1]["commit"] == head, done.stdout + done.stderr

    (where / "index.html").write_text("<h1>dirty</h1>")
    dirty = running.spaces("deploy", str(where), "--json")
    result = events(dirty)[-1]
    assert result["ok"], dirty.stdout + dirty.stderr
    assert result["commit"] != head
    assert running.fetch(result["url"]) == (200, "<h1>dirty</h1>")
    assert running.fetch(result["url"] + "private.txt")[0] == 404
    assert git(where, "rev-parse", "HEAD") == head
    assert git(where, "status", "--porcelain") == "M index.html"
    assert (where / ".git" / "config").read_text() == config

    # The platform has a commit that this repository has not: it is not overwritten without being asked.
    git(where, "commit", "-q", "-a", "-m", "second")
    refused = running.spaces("deploy", str(where))
    assert refused.returncode == 1
    assert "has commits that this folder has not" in refused.stderr
    assert "--force" in refused.stderr
    forced = running.spaces("deploy", str(where), "--force", "--json")
    assert events(forced)[-1]["commit"] == git(where, "rev-parse", "HEAD")


def test_a_folder_inside_a_repository_is_pushed_alone_by_its_ignore_rules(running: Place) -> None:
    outer = running.root / "outer"
    outer.mkdir()
    git(outer, "init", "-q")
    (outer / ".gitignore").write_text("*.tmp\n")
    (outer / "elsewhere.txt").write_text("not part of the app")
    inner = outer / "inner"
    inner.mkdir()
    (inner / "index.html").write_text("inner")
    (inner / "README.md").write_text(STATIC.format("inner"))
    (inner / "scratch.tmp").write_text("ignored by the rules above")
    result = events(running.spaces("deploy", ".", "--json", cwd=inner))[-1]
    assert result["ok"], result
    assert result["space"] == "admin/inner"
    assert running.fetch(result["url"]) == (200, "inner")
    assert running.fetch(result["url"] + "scratch.tmp")[0] == 404
    assert running.fetch(result["url"] + "elsewhere.txt")[0] == 404


def test_a_refused_push_shows_the_platforms_reason(running: Place) -> None:
    where = folder(running, "large", "large")
    with (where / "model.bin").open("wb") as file:
        file.truncate(11 << 20)
    done = running.spaces("deploy", str(where))
    assert done.returncode == 1
    assert "The push was refused" in done.stderr
    assert "model.bin" in done.stdout + done.stderr


def test_a_bad_front_matter_ends_with_its_line_and_fix(running: Place) -> None:
    where = folder(running, "wrong", "wrong")
    (where / "README.md").write_text("---\ntitle: x\nsdk: static\npinned: perhaps\n---\n")
    done = running.spaces("deploy", str(where), "--json")
    assert done.returncode == 1
    result = events(done)[-1]
    assert not result["ok"]
    assert result["stage"] == "CONFIG_ERROR"
    assert "pinned" in result["error"] + " ".join(result["evidence"])


def test_the_token_is_in_no_argument_and_no_file(running: Place) -> None:
    """A git in front of the real one writes down what it is called with."""
    where = folder(running, "quiet", "quiet")
    tools, real = running.root / "tools", shutil.which("git")
    tools.mkdir()
    wrapper = tools / "git"
    wrapper.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {tools}/calls\nexec {real} "$@"\n')
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    done = running.spaces("deploy", str(where), PATH=f"{tools}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stdout + done.stderr
    calls = (tools / "calls").read_text()
    token = (running.data / "admin.token").read_text().strip()
    assert " push " in calls
    assert token not in calls
    assert "Authorization" not in calls


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("info", "admin/nothing-here"), 4, "There is no Space admin/nothing-here"),
        (("deploy", "/nowhere-at-all"), 2, "is not a folder"),
        (("info", "nonsense"), 2, "OWNER/NAME"),
        (("delete", "admin/nothing-here", "--yes"), 4, "There is no Space"),
        (("vars", "set", "--space", "admin/plain", "A=1", "B"), 2, "KEY"),
    ],
)
def test_errors_say_what_to_do_and_have_their_exit_code(
    running: Place, arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = running.spaces(*arguments)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("Error: ")
    assert said in done.stderr
    as_json = running.spaces(*arguments, "--json")
    assert as_json.returncode == code
    assert json.loads(as_json.stdout)["exit"] == code


def test_signing_in_keeps_the_token_for_its_owner_alone(running: Place) -> None:
    url, token = f"http://localhost:{running.port}", (running.data / "admin.token").read_text()
    bad = running.spaces("login", url, given="hf_" + "x" * 34)
    assert bad.returncode == 3
    done = running.spaces("login", url, "--json", given=token)
    assert done.returncode == 0, done.stderr
    path = Path(json.loads(done.stdout)["config"])
    assert json.loads(path.read_text()) == {"url": url, "token": token.strip()}
    assert path.stat().st_mode & 0o777 == 0o600
    # Without the data directory of the platform, what was kept is used.
    listed = running.spaces("list", "--json", SPACES_DATA=str(running.root / "other"))
    assert listed.returncode == 0, listed.stderr
    assert isinstance(json.loads(listed.stdout), list)
    path.unlink()
    nobody = running.spaces("list", SPACES_DATA=str(running.root / "other"))
    assert nobody.returncode == 3
    assert "spaces login" in nobody.stderr


def test_the_life_of_a_space_by_commands(running: Place) -> None:
    def run(*arguments: str, given: str = "") -> Any:
        done = running.spaces(*arguments, "--json", given=given)
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return json.loads(done.stdout.splitlines()[-1])

    assert run("create", "admin/life", "--sdk", "static", "--private")["id"] == "admin/life"
    where = folder(running, "life", "alive")
    result = run("deploy", str(where), "--to", "admin/life")
    assert result["ok"]
    assert run("vars", "set", "GREETING=hello", "--space", "admin/life")["set"] == ["GREETING"]
    assert run("secrets", "set", "KEY", "--space", "admin/life", given="s3cret\n")["set"] == ["KEY"]
    assert [(v["key"], v["value"]) for v in run("vars", "list", "admin/life")] == [("GREETING", "hello")]
    secrets = run("secrets", "list", "admin/life")
    assert [s["key"] for s in secrets] == ["KEY"]
    assert "s3cret" not in json.dumps(secrets)
    assert run("pause", "admin/life")["stage"] == "PAUSED"
    run("restart", "admin/life")
    assert "the app answered" in run("logs", "admin/life", "--build")["text"]
    assert f"http://localhost:{running.port}/login" in run("open", "admin/life")["url"]
    assert run("rename", "admin/life", "admin/afterlife")["to"] == "admin/afterlife"
    assert run("info", "admin/afterlife")["visibility"] == "private"
    assert run("delete", "admin/afterlife")["deleted"] == "admin/afterlife"
    token = run("tokens", "create", "ci", "--role", "read")
    assert token["token"].startswith("hf_")
    assert "ci" in [t["name"] for t in run("tokens", "list")]
    assert run("tokens", "revoke", "ci")["revoked"] == token["id"]
