"""Users' Dockerfiles: how they are read, what is refused with which words, and what is built instead."""

from __future__ import annotations

import time
from typing import Any

import pytest

from builders.containers.parse import Unreadable, parse, replaced
from builders.containers.rules import DEFAULT_SOURCES, Allowed, Checked, check, line_of
from builders.types import BuildError

FROM = "FROM python:3.12-slim\n"


def allowed(**more: Any) -> Allowed:
    given = {"scope": "S", "variables": {"NAME": "value", "IMAGE": "debian"}, "secrets": frozenset({"TOKEN"})}
    return Allowed(**{**given, "sources": frozenset(DEFAULT_SOURCES.split(",")), **more})


def checked(text: str, **more: Any) -> Checked:
    return check(text, allowed(**more))


REFUSED = [
    # (name, text, line, words of the cause)
    ("frontend", "# syntax=evil/frontend:1\n" + FROM, 1, "another image as the builder"),
    ("frontend in capitals", "#   SYNTAX = evil/frontend\n" + FROM, 1, "another image as the builder"),
    ("frontend by digest", "# syntax=docker/dockerfile@sha256:00\n" + FROM, 1, "another image as the builder"),
    ("insecure", FROM + "RUN --security=insecure id\n", 2, "rights that no build gets"),
    ("host network", FROM + "RUN --network=host id\n", 2, "network that builds are fenced in"),
    ("ssh", FROM + "RUN --mount=type=ssh id\n", 2, "`ssh`"),
    ("cache source", FROM + "RUN --mount=type=cache,target=/c,source=../../x id\n", 2, "`source`"),
    ("cache from", FROM + "RUN --mount=type=cache,target=/c,from=other id\n", 2, "`from`"),
    ("cache id", FROM + "RUN --mount=type=cache,target=/c,id=$X id\n", 2, "no plain target"),
    ("device", FROM + "RUN --device=gpu id\n", 2, "no option `--device`"),
    ("mount twice", FROM + "RUN --mount=type=bind,type=ssh,target=/x id\n", 2, "twice"),
    ("mount from tenant", FROM + "RUN --mount=type=bind,from=spaces-app:x,target=/x id\n", 2, "not an image for"),
    ("add url", FROM + "ADD http://169.254.169.254/latest /x\n", 2, "ADD may not fetch"),
    ("add url in a list", FROM + 'ADD ["http://10.0.0.1/", "/x"]\n', 2, "ADD may not fetch"),
    ("add url in quotes", FROM + 'ADD http:"//"10.0.0.1/x /x\n', 2, "ADD may not fetch"),
    ("add url escaped", FROM + "ADD http:\\/\\/10.0.0.1/x /x\n", 2, "ADD may not fetch"),
    ("add by variable", FROM + "ADD $X /x\n", 2, "ADD may not fetch"),
    ("add git", FROM + "ADD git@10.0.0.1:x/y.git /x\n", 2, "ADD may not fetch"),
    ("tenant image", "FROM spaces-app:0123\n", 1, "not an image for Spaces"),
    ("preloaded files", "FROM spaces-hub:0123\n", 1, "not an image for Spaces"),
    ("tenant image with registry", "FROM 10.0.0.5:5000/spaces-app/7@sha256:" + "0" * 64 + "\n", 1, "not come from"),
    ("platform image", "FROM spaces/control-plane:1\n", 1, "not an image for Spaces"),
    ("local registry", "FROM localhost:5000/x\n", 1, "may not come from localhost:5000"),
    ("internal registry", "FROM registry.internal/x:1\n", 1, "may not come from registry.internal"),
    ("image id", f"FROM {'a' * 64}\n", 1, "not the name of an image"),
    ("image by variable", "ARG A=localhost:5000/x\nFROM ${A}\n", 2, "may not come from"),
    ("image by nested variable", "ARG A=${B:-x}y\nARG C='a b'\nFROM ${C}\n", 3, "too complicated"),
    ("image in quotes", 'FROM "python"\n', 1, "too complicated"),
    ("copy from tenant", FROM + "COPY --from=spaces-app:1 / /\n", 2, "not an image for Spaces"),
    ("copy from variable", FROM + "COPY --from=$X / /\n", 2, "not plain"),
    ("platform", "FROM --platform=linux/s390x python\n", 1, "another machine"),
    ("platform by variable", "FROM --platform=$EVIL python\n", 1, "another machine"),
    ("onbuild", FROM + "ONBUILD RUN id\n", 2, "builds of others"),
    ("heredoc", FROM + "RUN <<EOF\nid\nEOF\n", 2, "Here-documents"),
    ("heredoc for copy", FROM + "COPY <<'EOF' /x\nid\nEOF\n", 2, "Here-documents"),
    ("unknown", FROM + "RUM id\n", 2, "`RUM`"),
    ("nothing", FROM + "RUN \n", 2, "nothing after it"),
    ("no from", "RUN id\n", 1, "before FROM"),
    ("empty", "# nothing\n", 0, "no FROM"),
    ("control character", FROM + "RUN id\x00\n", 2, "control character"),
    ("carriage return inside", FROM + "RUN id\rADD http://10.0.0.1 /x\n", 2, "control character"),
    ("two escapes", FROM + "RUN id \\\\\nRUN x\n", 2, "read differently"),
    ("strange escape", "# escape=x\n" + FROM, 1, "escape character"),
    ("directive twice", "# escape=`\n# escape=\\\n" + FROM, 2, "twice"),
    ("flag in quotes", FROM + 'RUN --mount="type=ssh" id\n', 2, "cannot be read"),
    ("platform's own argument", FROM + "ARG SPACES_SCOPE=x\n", 2, "the platform's own"),
    ("platform's own variable", FROM + "ENV a=1 SPACES_SCOPE=x\n", 2, "the platform's own"),
    ("missing secret", FROM + "RUN --mount=type=secret,id=OTHER,required=true id\n", 2, "OTHER is not set"),
    ("many stages", FROM * 33, 33, "more than 32 stages"),
    ("many instructions", FROM + "RUN x\n" * 1000, 501, "more than 500 instructions"),
    ("large file", FROM + "# " + "x" * 300_000, 0, "larger than 256 KiB"),
    ("long line", FROM + "RUN " + "x" * 61_000 + "\n", 2, "longer than 60000"),
    ("long by continuation", FROM + "RUN x" + " \\\n xxxxxxxxxxxxxxxxxxxxxxxxxxx" * 3000 + "\n", 2000, "longer than"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "line", "words"), REFUSED, ids=[row[0] for row in REFUSED])
def test_refused_with_line_and_reason(name: str, text: str, line: int, words: str) -> None:
    with pytest.raises(BuildError) as caught:
        checked(text)
    assert caught.value.reason == "dockerfile_refused"
    assert words in caught.value.cause
    assert caught.value.fix
    if name == "long by continuation":
        return
    assert caught.value.cause.startswith(f"Dockerfile line {line}: ") == bool(line), caught.value.cause


COMMON = """\
# syntax=docker/dockerfile:1.7-labs
ARG VERSION=3.12
FROM python:${VERSION}-slim AS Build
ARG NAME
RUN --mount=type=cache,target=/root/.cache/pip \\
    # comments may stand here
    pip install wheel

FROM python:${VERSION}-slim
COPY --link --from=build /wheels /wheels
RUN --mount=type=bind,from=build,source=/w,target=/w --mount=type=secret,id=TOKEN,mode=0444,required=true \\
    --network=none cat /run/secrets/TOKEN
VOLUME /data
HEALTHCHECK --interval=5s CMD true
USER user
CMD ["python", "app.py"]
"""


def test_what_is_built_is_written_anew() -> None:
    found = checked(COMMON, mounts=("--mount=type=secret,id=CA",), arguments={"SSL_CERT_FILE": "/ca"})
    assert found.text.splitlines() == [
        "# Written anew from the Dockerfile of this Space.",
        "ARG VERSION=3.12",
        "FROM python:3.12-slim AS build",
        "ARG SPACES_SCOPE=S",
        "ARG SSL_CERT_FILE=/ca",
        "ARG NAME",
        "RUN --mount=type=secret,id=CA --mount=type=cache,target=/root/.cache/pip,id=S-root-.cache-pip "
        "pip install wheel",
        "FROM python:3.12-slim",
        "ARG SPACES_SCOPE=S",
        "ARG SSL_CERT_FILE=/ca",
        "COPY --from=build /wheels /wheels",
        "RUN --mount=type=secret,id=CA --mount=type=bind,from=build,source=/w,target=/w "
        "--mount=type=secret,id=TOKEN,mode=0444,required=true --network=none cat /run/secrets/TOKEN",
        "USER user",
        'CMD ["python", "app.py"]',
    ]
    assert found.images == ("python:3.12-slim",)
    assert found.arguments == {"NAME": "value"}
    assert [warning.split(":")[0] for warning in found.warnings] == [
        "Dockerfile",
        "Dockerfile line 13",
        "Dockerfile line 14",
    ]


@pytest.mark.parametrize(
    ("stage", "at", "line"), [("build", 2, 5), ("stage-1", 2, 10), ("stage-1", 3, 11), ("x", 1, 0), ("build", 9, 0)]
)
def test_steps_are_found_in_the_owners_file(stage: str, at: int, line: int) -> None:
    assert line_of(checked(COMMON), stage, at) == line


def test_checking_the_result_again_changes_nothing_but_the_platforms_own_lines() -> None:
    text = checked(COMMON).text
    bare = "".join(f"{line}\n" for line in text.splitlines() if "SPACES_SCOPE" not in line)
    again = checked(bare)
    assert again.text.replace("S-S-", "S-") == text


def test_every_use_of_an_image_is_told() -> None:
    text = (
        "ARG TAG=bookworm\nFROM debian:$TAG\nCOPY --from=busybox /bin/sh /x\n"
        "RUN --mount=type=bind,from=ghcr.io/a/b:1,target=/b id\nFROM scratch\nCOPY --from=0 /x /x\n"
    )
    assert checked(text).images == ("debian:bookworm", "busybox:latest", "ghcr.io/a/b:1")


def test_variables_go_where_they_are_declared_and_none_that_buildkit_obeys() -> None:
    text = "ARG IMAGE=alpine\nFROM ${IMAGE}\nARG BUILDKIT_SYNTAX\nARG http_proxy\nARG OTHER\n"
    given = {"IMAGE": "debian", "BUILDKIT_SYNTAX": "evil/frontend", "http_proxy": "http://evil", "UNUSED": "x"}
    found = checked(text, variables=given)
    assert found.images == ("debian:latest",)
    assert found.arguments == {"IMAGE": "debian"}


def test_a_variable_cannot_choose_what_the_file_could_not() -> None:
    with pytest.raises(BuildError, match="may not come from"):
        checked("ARG IMAGE=alpine\nFROM ${IMAGE}\n", variables={"IMAGE": "10.0.0.1:5000/x"})


def test_a_complicated_default_matters_only_where_it_names_an_image() -> None:
    assert checked("ARG WORDS=\"a b\" MORE='$x'\nFROM debian\nRUN echo $WORDS\n").images == ("debian:latest",)


def test_the_backtick_may_be_the_escape() -> None:
    found = checked("# escape=`\nFROM debian\nRUN a `\n  b\nRUN c \\\n")
    assert found.text.splitlines()[0] == "# escape=`"
    assert "RUN a   b" in found.text
    assert "RUN c \\" in found.text


def test_lines_are_joined_as_buildkit_joins_them() -> None:
    text = "FROM a\nRUN one \\  \n\n  # dropped\n  two\\\nthree\r\n"
    assert [(i.name, i.text, i.line) for i in parse(text).instructions] == [
        ("FROM", "a", 1),
        ("RUN", "one   twothree", 2),
    ]


@pytest.mark.parametrize(
    ("text", "done"),
    [
        ("$A", "1"),
        ("${A}x", "1x"),
        ("${B:-d}", "d"),
        ("${E:-d}", "d"),
        ("${E-d}", ""),
        ("${A:+y}", "y"),
        ("${B:+y}", ""),
    ],
)
def test_arguments_are_replaced(text: str, done: str) -> None:
    assert replaced(text, {"A": "1", "E": ""}, 1) == done


@pytest.mark.parametrize("text", ["${A:-${B}}", "\\$A", "'$A'", "${A", "$", "${A#x}", "$(id)"])
def test_what_is_not_plain_is_refused(text: str) -> None:
    with pytest.raises(Unreadable):
        replaced(text, {"A": "1"}, 1)


@pytest.mark.parametrize(
    "piece", ["RUN x \\\n", "#\n", "ARG A=$A\n", "RUN --mount=a,b,c x\n", "${A:-", "\\\n", "--from="]
)
def test_reading_takes_linear_time(piece: str) -> None:
    began = time.process_time()
    for text in (piece * 20_000, FROM + piece * 5000, FROM + "RUN " + piece * 5000):
        try:
            checked(text[:250_000])
        except BuildError as error:
            assert error.fix  # noqa: PT017
    assert time.process_time() - began < 3
