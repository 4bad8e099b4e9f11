"""Which program builds: the docker command, or the plug-in that it would start; and how closely it is watched."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

import pytest

from builders.containers import client

BUILDX = {"Name": "buildx", "Path": "/usr/libexec/docker/cli-plugins/docker-buildx"}
COMPOSE = {"Name": "compose", "Path": "/usr/libexec/docker/cli-plugins/docker-compose"}


def docker(folder: Path, said: str, code: int = 0) -> str:
    """A docker command that says this."""
    path = folder / "docker"
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{said}\nEND\nexit {code}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("plugins", "found"),
    [
        ([COMPOSE, BUILDX], BUILDX["Path"]),
        ([COMPOSE], ""),
        ([], ""),
        (None, ""),
        ([{**BUILDX, "Err": "it does not start"}], ""),
    ],
)
def test_the_plugin_is_started_at_once_where_there_is_one(tmp_path: Path, plugins: object, found: str) -> None:
    """The engine is away, which the exit code says, and the client's own part is told all the same."""
    assert client.plugin(docker(tmp_path, json.dumps(plugins), 1)) == found


@pytest.mark.parametrize("said", ["", "no json", '{"Name": "buildx"}', "[1]", "[{}]"])
def test_a_command_that_says_something_else_builds_by_itself(
    tmp_path: Path, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert client.plugin(docker(tmp_path, said)) == ""
    assert client.plugin(str(tmp_path / "absent")) == ""
    assert len(caplog.records) == 2


def test_a_build_that_goes_on_in_silence_is_looked_at_less_often(tmp_path: Path) -> None:
    program = tmp_path / "docker"
    program.write_text(f"#!/bin/sh\necho begins\nexec sleep {client.QUIET_SECONDS + 3 * client.QUIET_POLL}\n")
    program.chmod(0o755)
    lines: list[str] = []
    looks: list[float] = []
    request = client.Request(tmp_path, tmp_path / "Dockerfile", tmp_path, "mark")
    began = time.monotonic()
    code, _ = client.run(
        str(program), "unix:///nowhere", request, lines.append, lambda: looks.append(time.monotonic() - began)
    )
    assert (code, lines) == (0, ["begins"])
    gaps = [(at, later - at) for at, later in itertools.pairwise(looks[:-1])]  # the last look is at its end
    assert min(gap for _, gap in gaps) < client.QUIET_POLL
    late = [gap for at, gap in gaps if at > client.QUIET_SECONDS + client.QUIET_POLL]
    assert late
    assert min(late) > client.QUIET_POLL * 0.9
