"""Every class of failure is explained from the log of a real one (see record.py)."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import pytest

from builders import diagnosis_rules as rules
from builders.config import KEYS
from builders.diagnosis import Explanation, as_mapping, diagnose_build, diagnose_run

RECORDED = Path(__file__).parent / "recorded"

TABLE = [
    ("build-conflict", "resolver_conflict", ["flask==2.0.0", "click==7.0", "click>=7.1.2"], "click==7.0"),
    ("build-conflict-sdk", "resolver_conflict", ["gradio", "huggingface-hub==0.20.0"], "huggingface-hub==0.20.0"),
    ("build-not-found", "package_not_found", ["`cv2`"], "opencv-python-headless"),
    ("build-not-found-unknown", "package_not_found", ["no-such-package-by-anyone"], "spelling"),
    ("build-no-version", "version_not_found", ["six==99.0"], "release"),
    ("build-sdist-fails", "missing_header", ["pkg-config --exists mysqlclient"], "wheel"),
    ("build-sdist-deprecated", "package_renamed", ["sklearn"], "scikit-learn"),
    ("build-sdist-pkg-resources", "missing_pkg_resources", ["pkg_resources"], "setuptools<81"),
    ("build-python-too-new", "python_version", ["distutils"], "python_version"),
    ("build-requires-python", "python_version", ["gradio==6.31.0", ">=3.10", "3.9"], "python_version"),
    ("build-bad-line", "bad_requirement", ["requirements.txt"], "one package per line"),
    ("build-bad-specifier", "bad_requirement", ["requirements.txt"], "single `=`"),
    ("build-index-down", "index_unreachable", ["index"], "network"),
    ("build-git-missing", "git_requirement", ["git"], "address"),
    ("build-npm-no-script", "site_build_failed", ['Missing script: "build"'], "package.json"),
    ("run-missing-module", "missing_module", ["`sklearn", "app.py, line 1"], "`scikit-learn` to requirements.txt"),
    ("run-missing-module-cv2", "missing_module", ["`cv2`"], "opencv-python-headless"),
    ("run-missing-own-module", "missing_module", ["`src"], "Push the folder `src`"),
    ("run-missing-pkg-resources", "missing_module", ["pkg_resources"], "setuptools<81"),
    ("run-missing-system-library", "missing_system_library", ["libGL", "app.py, line 1"], "opencv-python-headless"),
    ("run-syntax-error", "syntax_error", ["app.py, line 1", "invalid syntax"], "line"),
    ("run-indentation", "syntax_error", ["app.py, line 2", "indented block"], "line"),
    ("run-import-error", "import_error", ["`escape`", "`flask`"], "Pin"),
    ("run-hf-folder", "hf_folder", ["gradio"], "sdk_version"),
    ("run-exception", "exception", ["ZeroDivisionError", "app.py, line 2"], "traceback"),
    ("run-recursion", "exception", ["RecursionError"], "traceback"),
    ("run-exit-code", "exit_code", ["3"], "sys.exit"),
    ("run-ended", "app_ended", ["by itself"], "server"),
    ("run-port-in-use", "port_in_use", ["app.py, line 3"], "PORT"),
    ("run-port-in-use-gradio", "port_in_use", ["app.py, line 5"], "server_port"),
    ("run-permission", "permission_denied", ["/data"], "$HOME"),
    ("run-read-only", "permission_denied", ["/usr/cache.txt"], "$TMPDIR"),
    ("run-no-file", "missing_file", ["model/weights.bin"], "Push it"),
    ("run-no-secret", "missing_variable", ["OPENAI_API_KEY"], "settings"),
    ("run-no-name", "network_error", ["network"], "address"),
    ("run-disk-full", "disk_full", ["app.py, line 3"], "disk"),
    ("run-out-of-memory", "out_of_memory", ["app.py, line 5"], "memory"),
    ("run-cuda", "no_gpu", ["GPU", "app.py, line 2"], "hardware"),
    ("run-streamlit-bare", "wrong_sdk", ["Streamlit"], "sdk: streamlit"),
]


def explain(name: str) -> tuple[Explanation, list[str]]:
    facts, *lines = (RECORDED / f"{name}.log").read_text().splitlines()
    code = json.loads(facts)["exit_code"]
    if name.startswith("build-"):
        return diagnose_build(lines, code), lines
    return diagnose_run(exit_code=code, log_lines=lines), lines


@pytest.mark.parametrize(("name", "reason", "cause", "fix"), TABLE)
def test_recorded(name: str, reason: str, cause: list[str], fix: str) -> None:
    found, lines = explain(name)
    assert found.reason == reason
    assert all(words in found.cause for words in cause), found.cause
    assert fix in found.fix
    assert "{" not in found.cause + found.fix.replace('{"', "")
    assert "\n" not in found.cause + found.fix
    assert found.evidence
    assert all(any(shown in line for line in lines) for shown in found.evidence)


def test_every_recording_is_in_the_table() -> None:
    assert {path.stem for path in RECORDED.glob("*.log")} == {name for name, *_ in TABLE}


def test_recordings_name_no_machine() -> None:
    for path in RECORDED.glob("*.log"):
        for place in (str(Path.home()) + "/", sys.base_prefix, str(Path.cwd()), "/tmp/"):
            assert place not in path.read_text().replace(".tmp", "") or place in ("/usr", "/"), (path.name, place)


PORTS = [
    ({"listening": ["0.0.0.0:8000"], "port": 7860}, "wrong_port", "0.0.0.0:8000", "PORT"),
    ({"listening": ["0.0.0.0:8000"], "port": 7860, "sdk": "gradio"}, "wrong_port", "port 7860", "server_port"),
    ({"listening": ["127.0.0.1:7860"], "port": 7860, "sdk": "dash"}, "loopback_only", "127.0.0.1:7860", "0.0.0.0"),
    ({"listening": ["[::1]:7860"], "port": 7860}, "loopback_only", "[::1]:7860", "0.0.0.0"),
    (
        {"listening": ["127.0.0.1:7860", "0.0.0.0:7860"], "timed_out": True, "seconds": 30},
        "not_answering",
        "30",
        "startup",
    ),
    ({"listening": [], "timed_out": True, "seconds": 60, "sdk": "gradio"}, "not_listening", "60 seconds", "launch()"),
    ({"listening": ["0.0.0.0:17860"], "port": 7860}, "wrong_port", "17860", "PORT"),
    ({"out_of_memory": True, "exit_code": -9}, "out_of_memory", "memory", "hardware"),
    ({"exit_code": -9}, "killed", "SIGKILL", "memory"),
    ({"exit_code": 137}, "killed", "SIGKILL", "memory"),
    ({"exit_code": -11}, "killed", "SIGSEGV", "package"),
    ({"exit_code": 134}, "killed", "SIGABRT", "package"),
    ({"exit_code": -77}, "killed", "signal 77", "package"),
    ({"exit_code": 127}, "command_not_found", "command", "requirements.txt"),
    ({"exited": True}, "exit_code", "ended", "log"),
    ({"exit_code": 0, "sdk": "gradio"}, "app_ended", "by itself", "launch()"),
]


@pytest.mark.parametrize(("facts", "reason", "cause", "fix"), PORTS)
def test_facts(facts: dict[str, object], reason: str, cause: str, fix: str) -> None:
    found = diagnose_run(**facts)  # type: ignore[arg-type]
    assert found.reason == reason
    assert cause in found.cause
    assert fix in found.fix


@pytest.mark.parametrize("kind", rules.LIMITS)
def test_limits(kind: str) -> None:
    found = diagnose_build(["last words"], None, kind, limit=512 << 20)
    assert found.reason == rules.LIMITS[kind][0]
    assert "{" not in found.cause
    assert found.evidence == ("last words",)


def test_missing_module_of_the_app_itself() -> None:
    lines = ["ModuleNotFoundError: No module named 'prompts'"]
    found = diagnose_run(exit_code=1, log_lines=lines, paths=["app.py", "code/prompts.py"])
    assert "`code/prompts.py` is in the repository" in found.fix
    assert "Add `prompts`" in diagnose_run(exit_code=1, log_lines=lines).fix
    tk = diagnose_run(exit_code=1, log_lines=["ModuleNotFoundError: No module named '_tkinter'"])
    assert "belongs to Python" in tk.fix


def test_older_words_of_uv() -> None:
    lines = [
        "  × No solution found when resolving dependencies:",
        "  ╰─▶ Because flask==2.0.0 depends on click>=7.1.2 and you require",
        "      flask==2.0.0, we can conclude that you require click>=7.1.2.",
        "      And because you require click==7.0, we can conclude that your",
        "      requirements are unsatisfiable.",
    ]
    assert "click==7.0" in diagnose_build(lines, 1).cause


def test_last_known_line_wins_over_earlier_noise() -> None:
    lines = ["OSError: [Errno 98] Address already in use", "retrying", "MemoryError"]
    assert diagnose_run(exit_code=1, log_lines=lines).reason == "out_of_memory"


@pytest.mark.parametrize(
    "lines", [[], [""], ["{x} {0} %s"], ["x" * 1_000_000] * 3, ["\x00\x1b[31m"], ["No solution found"]]
)
def test_total_and_quick(lines: list[str]) -> None:
    began = time.process_time()
    assert diagnose_build(lines, 1).cause
    assert diagnose_run(exit_code=1, log_lines=lines).cause
    assert diagnose_run(log_lines=lines).cause
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    "word", ["a.", "lib", "Because ", 'File "', "Error", "No module named '", "pkg-config --exists "]
)
def test_hostile_logs_take_linear_time(word: str) -> None:
    began = time.process_time()
    diagnose_run(exit_code=1, log_lines=[word * 500] * 400)
    diagnose_build([word * 500] * 400, 1)
    assert time.process_time() - began < 3


def test_every_reason_is_documented() -> None:
    text = Path("docs/errors.md").read_text()
    documented = set(re.findall(r"^\| `(\w+)` \|", text, re.M))
    assert documented >= set(rules.REASONS)
    used = {rule.reason for rule in (*rules.BUILD_RULES, *rules.RUN_RULES)} | {
        limit[0] for limit in rules.LIMITS.values()
    }
    raised = set(re.findall(r'BuildError\(\s*"(\w+)"', "".join(p.read_text() for p in Path("builders").glob("*.py"))))
    assert set(rules.REASONS) >= used | raised
    assert all(rules.REASONS.values())


def test_every_key_is_documented() -> None:
    documented = set(re.findall(r"^\| `(\w+)` \|", Path("docs/errors.md").read_text(), re.M))
    assert documented >= {key.name for key in KEYS}


def test_as_mapping_is_json() -> None:
    found = diagnose_run(exit_code=3, log_lines=["bye"])
    assert json.loads(json.dumps(as_mapping(found)))["evidence"] == ["bye"]
