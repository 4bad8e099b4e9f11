"""Bad repositories through the whole platform: pusher and page say what is wrong, and the old version serves."""

from __future__ import annotations

import pytest

from tests.faults import apps
from tests.faults.system import System, until

GOOD = "still here"
BOMB = "---\na: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(8)
)

Case = tuple[dict[str, str], str, list[str]]
"""Files, the stage (of a Space that serves nothing yet), and words that pusher and owner both must read."""

CASES: dict[str, Case] = {
    "no-front-matter": ({"README.md": "# Only text\n", "index.html": "x"}, "CONFIG_ERROR", ["README.md"]),
    "no-readme": ({"index.html": "x"}, "CONFIG_ERROR", ["README.md"]),
    "bad-yaml": ({"README.md": "---\ntitle: [1\nsdk: static\n---\n", "index.html": "x"}, "CONFIG_ERROR", ["line"]),
    "alias-bomb": ({"README.md": BOMB + "sdk: static\n---\n", "index.html": "x"}, "CONFIG_ERROR", ["alias"]),
    "bad-sdk": (apps.static("x", sdk="stattic"), "CONFIG_ERROR", ["sdk", "stattic", "static", "gradio", "line 3"]),
    "bad-color": (apps.static("x", colorFrom="mauve"), "CONFIG_ERROR", ["colorFrom", "mauve", "indigo"]),
    "missing-app-file": ({"README.md": apps.front()}, "NO_APP_FILE", ["index.html"]),
    "docker": ({"README.md": apps.front(sdk="docker"), "Dockerfile": "FROM x\n"}, "CONFIG_ERROR", ["docker"]),
    "huge-readme": (
        {"README.md": "---\n" + "#" * (2 << 20) + "\nsdk: static\n---\n", "index.html": "x"},
        "CONFIG_ERROR",
        [],
    ),
}


@pytest.fixture(scope="module")
def serving(system: System) -> str:
    system.create("serving")
    system.push("serving", apps.static(GOOD))
    system.wait_serving("serving", GOOD)
    return "serving"


@pytest.mark.parametrize("case", CASES)
def test_it_is_said_to_the_pusher_and_on_the_page_and_the_old_version_serves(
    system: System, serving: str, case: str
) -> None:
    files, stage, words = CASES[case]
    push = system.push(serving, files)
    remote = " ".join(
        line.removeprefix("remote:").strip() for line in push.said.splitlines() if line.startswith("remote:")
    )
    status = {}

    def judged() -> bool:
        status.update(system.status(serving))
        return status["head"] == push.commit and status["stage"] == stage

    until(judged, 20, f"{case} is {stage}; it is {status.get('stage')}: {status.get('message')}")
    for word in words:
        assert word in status["message"], status["message"]
        if case != "docker":
            assert word in remote, remote
    assert status["message"], "no word on what is wrong"
    assert system.get(serving).text.count(GOOD) == 1
    # And a good push after it is deployed as if nothing had been.
    system.push(serving, apps.static(GOOD, short_description=case))
    until(
        lambda: system.status(serving)["servingCommit"] == system.journal.pushes[-1].commit, 20, "the good one serves"
    )


def test_packages_txt_is_noted_and_does_not_hinder(system: System) -> None:
    system.create("packages")
    push = system.push("packages", {**apps.static("with packages"), "packages.txt": "ffmpeg\n"})
    assert push.acked
    system.wait_serving("packages", "with packages")


def test_an_oversized_file_is_refused_by_name_and_nothing_of_it_stays(system: System, serving: str) -> None:
    before = system.status(serving)["head"]
    commit = system.commit(serving, {**apps.static("big"), "model.bin": b"\0" * (11 << 20)})
    push = system.push_commit(serving, commit)
    assert not push.acked
    assert "model.bin" in push.said
    assert "LFS" in push.said
    assert system.status(serving)["head"] == before
    assert GOOD in system.get(serving).text


def test_the_platform_is_whole_after_all_of_it(system: System, serving: str) -> None:
    system.check()
