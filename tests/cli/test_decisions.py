"""The command line's pure decisions, as tables."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spaces_platform.cli.console import Failure
from spaces_platform.cli.deploy import space_of_remote
from spaces_platform.cli.doctor.machine import judge_git
from spaces_platform.cli.folder import Guess, front_matter, guess, has_front_matter
from spaces_platform.cli.follow import Verdict, failure, verdict
from spaces_platform.cli.push import Target, git_environment, refusal, snapshot
from spaces_platform.cli.space_commands import parse_pairs

OURS, THEIRS = "a" * 40, "b" * 40


def status(stage: str, **more: Any) -> dict[str, Any]:
    return {"name": "o/n", "stage": stage, "head": OURS, "servingCommit": None, "reachable": True, **more}


FAILED_BUILD = {"id": 7, "commit": OURS, "status": "FAILED"}


@pytest.mark.parametrize(
    ("seen", "steady", "expected"),
    [
        (status("BUILDING"), 99, None),
        (status("RUNNING_BUILDING", servingCommit=THEIRS), 99, None),
        (status("RUNNING", servingCommit=OURS), 0, Verdict(True, "RUNNING")),
        # The old version still serves, and the stage has not caught up with the head.
        (status("RUNNING", servingCommit=THEIRS), 0, None),
        # Another commit with the same content needs no new deployment.
        (status("RUNNING", servingCommit=THEIRS), 3, Verdict(True, "RUNNING")),
        # It runs, and the gateway has not heard of it: nobody is to be sent there.
        (status("RUNNING", servingCommit=OURS, reachable=False), 0, None),
        (status("RUNNING", servingCommit=THEIRS, reachable=False), 3, None),
        (status("RUNNING", servingCommit=OURS, reachable=False), 20, Verdict(False, "UNREACHED")),
        (status("BUILD_ERROR", build=FAILED_BUILD), 0, Verdict(False, "BUILD_ERROR")),
        # A failure of the push before this one.
        (status("BUILD_ERROR", build={**FAILED_BUILD, "commit": THEIRS}), 0, None),
        (status("BUILD_ERROR", build={**FAILED_BUILD, "commit": THEIRS}), 3, Verdict(False, "BUILD_ERROR")),
        (status("RUNTIME_ERROR", deployment=FAILED_BUILD), 0, Verdict(False, "RUNTIME_ERROR")),
        (status("RUNTIME_ERROR", build=FAILED_BUILD), 0, None),
        (status("CONFIG_ERROR"), 0, None),
        (status("CONFIG_ERROR"), 3, Verdict(False, "CONFIG_ERROR")),
        (status("PAUSED"), 1, Verdict(False, "PAUSED")),
        (status("SLEEPING"), 1, Verdict(True, "SLEEPING", wake=True)),
        ({**status("RUNNING", servingCommit=THEIRS), "head": THEIRS}, 0, None),
        ({**status("RUNNING", servingCommit=THEIRS), "head": THEIRS}, 3, Verdict(False, "SUPERSEDED")),
    ],
)
def test_verdict(seen: dict[str, Any], steady: float, expected: Verdict | None) -> None:
    assert verdict(seen, OURS, steady) == expected


def test_a_failure_that_was_there_before_a_retry_is_not_its_outcome() -> None:
    seen = status("BUILD_ERROR", build=FAILED_BUILD)
    assert verdict(seen, OURS, 0, old={("build", 7)}) is None
    assert verdict(seen, OURS, 0, old={("build", 6)}) == Verdict(False, "BUILD_ERROR")


def test_a_failed_deploy_says_that_the_old_version_serves() -> None:
    told = failure(
        status("BUILD_ERROR", servingCommit=THEIRS, message="No such package.", evidence=["line"]), "BUILD_ERROR"
    )
    assert told.message == "No such package."
    assert "goes on serving (bbbbbbbb)" in told.fix
    assert told.data["evidence"] == ["line"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"app.py": "import gradio as gr"}, ("gradio", "app.py")),
        ({"app.py": "import os\nfrom dash import Dash"}, ("dash", "app.py")),
        (
            {"streamlit_app.py": "import streamlit as st", "helper.py": "import gradio"},
            ("streamlit", "streamlit_app.py"),
        ),
        ({"zz.py": "    import streamlit"}, ("streamlit", "zz.py")),
        ({"app.py": "import gradio_client"}, None),
        ({"index.html": ""}, ("static", "index.html")),
        ({"Dockerfile": "", "app.py": "import gradio"}, ("docker", "")),
        ({"notes.txt": ""}, None),
        ({}, None),
    ],
)
def test_guess(files: dict[str, str], expected: tuple[str, str] | None) -> None:
    found = guess(files, files.__getitem__)
    assert (None if found is None else (found.sdk, found.app_file)) == expected


@pytest.mark.parametrize("title", ["app", "my app", "a: b", "'quoted'", "#1", "123", "日本", "", "---", "yes"])
def test_the_front_matter_we_write_is_one_we_accept(title: str) -> None:
    from builders.config import read_config

    text = front_matter(title, Guess("static", "index.html", ""))
    assert has_front_matter(text)
    config = read_config(text + "# text\n", ["README.md", "index.html"])
    assert config.sdk == "static"
    assert config.title
    assert config.warnings == ()


@pytest.mark.parametrize(
    ("remote", "expected"),
    [
        ("http://localhost:7860/spaces/ann/app", "ann/app"),
        ("http://ann:hf_x@localhost:7860/spaces/ann/app.git", "ann/app"),
        ("http://localhost:7861/spaces/ann/app", None),
        ("https://github.com/ann/app", None),
        ("git@localhost:spaces/ann/app", None),
        ("http://localhost:7860/datasets/ann/app", None),
    ],
)
def test_space_of_remote(remote: str, expected: str | None) -> None:
    assert space_of_remote(remote, "http://localhost:7860") == expected


@pytest.mark.parametrize(
    ("lines", "message", "fix"),
    [
        (["! [rejected] x -> main (non-fast-forward)"], "has commits that this folder has not", "--force"),
        (
            ["remote: app.bin is too large.", "remote: Use LFS.", "! [remote rejected] (pre-receive)"],
            "app.bin is too",
            "LFS",
        ),
        (["fatal: unable to access 'http://x/': Failed to connect"], "Failed to connect", ""),
        ([], "exit code 128", ""),
    ],
)
def test_refusal(lines: list[str], message: str, fix: str) -> None:
    told = refusal(lines, 128)
    assert message in told.message
    assert fix in told.fix


def test_git_gets_the_token_for_one_address_and_nothing_of_another_repository() -> None:
    env = git_environment(
        {"PATH": "/bin", "GIT_DIR": "/else", "GIT_CONFIG_COUNT": "9", "GIT_CONFIG_KEY_0": "x"},
        Target("https://spaces.example.org/spaces/a/b", "ann", "hf_secret"),
    )
    given = {env[f"GIT_CONFIG_KEY_{n}"]: env[f"GIT_CONFIG_VALUE_{n}"] for n in range(int(env["GIT_CONFIG_COUNT"]))}
    assert "GIT_DIR" not in env
    assert given["credential.helper"] == ""
    assert given["http.https://spaces.example.org/.extraHeader"].startswith("Authorization: Basic ")
    assert not any("extraHeader" in key and "spaces.example.org" not in key for key in given)


def test_a_snapshot_leaves_secrets_and_made_files_out(tmp_path: Path) -> None:
    folder = tmp_path / "app"
    for name in ("app.py", ".env", ".venv/bin/python", "__pycache__/app.pyc", "data/.gitignore", "data/x.bin"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    (folder / "data" / ".gitignore").write_text("*.bin\n")
    bare = tmp_path / "snap.git"
    commit = snapshot(folder, bare, Target("http://localhost:1/spaces/a/b", "ann", None), None, "message")
    assert commit is not None
    listed = subprocess.run(
        ["git", "--git-dir", str(bare), "ls-tree", "-r", "--name-only", commit],
        capture_output=True,
        text=True,
        check=True,
    )
    assert listed.stdout.split() == ["app.py", "data/.gitignore"]


def test_an_empty_folder_is_not_pushed(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    with pytest.raises(Failure, match="nothing to push"):
        snapshot(tmp_path / "app", tmp_path / "s.git", Target("http://localhost:1/x", "ann", None), None, "message")


@pytest.mark.parametrize(
    ("told", "level"),
    [("git version 2.39.5\n", "ok"), ("git version 2.30.2", "fail"), ("git version 3.0", "ok"), ("nonsense", "fail"),
     ("git version 2.47.1.windows.2", "ok")],
)  # fmt: skip
def test_judge_git(told: str, level: str) -> None:
    found = judge_git(told)
    assert found.level == level
    assert bool(found.fix) == (level == "fail")


def test_pairs_of_words_and_of_a_file() -> None:
    text = "# comment\nexport A=1\nB='two words'\n\nC=x=y\n"
    assert parse_pairs(["D=4", "A=5"], text) == {"A": "5", "B": "two words", "C": "x=y", "D": "4"}
    with pytest.raises(Failure, match="Line 1"):
        parse_pairs([], "no pair")
    with pytest.raises(Failure, match="Nothing to set"):
        parse_pairs([], "")


def test_help_imports_neither_the_platform_nor_an_http_client() -> None:
    code = (
        "import sys, spaces_platform.cli.main as m\n"
        "heavy = {'httpx', 'fastapi', 'sqlmodel', 'sqlalchemy', 'uvicorn', 'rich.live'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
