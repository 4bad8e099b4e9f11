"""Which program builds: the docker command, or the plug-in that it would start."""

from __future__ import annotations

import json
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
