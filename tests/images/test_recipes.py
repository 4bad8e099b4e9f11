"""Dockerfiles with their values, recipe ids, and the words given to the engine's client."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import runtime_images
from runtime_images import recipes
from runtime_images.network import MOUNTS, SOURCE, network
from runtime_images.recipes import BASE_LABEL, RECIPE_LABEL, Recipe, build_argv, copied, make_recipe, read_file, status

from . import record

CATALOGUE = runtime_images.load()
DOCKERFILES = ("python/Dockerfile", "static/Dockerfile")
RECIPE = make_recipe(CATALOGUE, "python", base="debian:bookworm-slim")


def steps(text: str) -> list[str]:
    """The RUN instructions, each with its continuation lines."""
    return re.findall(r"^RUN (?:.*\\\n)*.*$", text, re.M)


@pytest.mark.parametrize("recipe", record.recipes(), ids=lambda recipe: recipe.ref)
def test_golden(recipe: Recipe) -> None:
    assert recipe.text == record.golden_path(recipe).read_text(), "if wanted: python -m tests.images.record"


@pytest.mark.parametrize("recipe", record.recipes(), ids=lambda recipe: recipe.ref)
def test_a_changed_image_has_a_new_version(recipe: Recipe) -> None:
    known = json.loads((record.GOLDEN / "recipes.json").read_text())
    assert known.get(recipe.ref) == recipe.id, (
        f"what {recipe.ref} is made of has changed: raise the version of image.{recipe.image.name} in catalogue.toml, "
        "then python -m tests.images.record"
    )


@pytest.mark.parametrize("path", DOCKERFILES)
def test_dockerfiles_are_for_the_engines_own_frontend(path: str) -> None:
    text = read_file(path).decode()
    assert not re.search(r"^#\s*syntax\s*=", text, re.M | re.I)
    assert "<<" not in text
    assert "COPY --link" not in text


@pytest.mark.parametrize("path", DOCKERFILES)
def test_every_step_with_a_network_takes_it_from_the_secrets(path: str) -> None:
    asked = [step for step in steps(read_file(path).decode()) if re.search(r"apt-get|pip install|uv python", step)]
    assert len(asked) >= 3
    for step in asked:
        assert MOUNTS in step
        assert SOURCE in step


@pytest.mark.parametrize("path", DOCKERFILES)
def test_every_image_ends_as_a_user_that_is_not_root(path: str) -> None:
    for stage in re.split(r"^FROM .* AS ", read_file(path).decode(), flags=re.M)[1:]:
        name, users = stage.split()[0], re.findall(r"^USER (.*)$", stage, re.M)
        if name in ("run", "build"):
            assert users[-1] == "1000:1000", name


@pytest.mark.parametrize("path", DOCKERFILES)
def test_lists_and_logs_of_apt_are_removed_in_the_step_that_makes_them(path: str) -> None:
    text = read_file(path).decode().split(" AS tools", 1)[1].split("\nFROM ", 1)[1]  # tools is in no image
    installing = [step for step in steps(text) if "apt-get" in step]
    assert installing
    for step in installing:
        assert "rm -rf /var/lib/apt/lists/* /var/cache/apt/*" in step


@pytest.mark.parametrize(
    ("name", "python", "lines"),
    [
        ("python", "", ["ARG BASE=b:1", "ARG PYTHON=3.11", "ARG PYTHON_FROM=apt"]),
        ("python-build", "3.13", ["ARG BASE=b:1", "ARG PYTHON=3.13", "ARG PYTHON_FROM=uv"]),
        ("static", "", ["ARG BASE=b:1"]),
        ("cuda", "", ["ARG BASE=nvidia/cuda:12.6.3-cudnn-runtime-ubuntu22.04", "ARG PYTHON_FROM=uv"]),
        ("cuda-build", "3.10", ["ARG BASE=nvidia/cuda:12.6.3-cudnn-devel-ubuntu22.04", "ARG PYTHON=3.10"]),
    ],
)
def test_values_are_put_into_the_text(name: str, python: str, lines: list[str]) -> None:
    recipe = make_recipe(CATALOGUE, name, base="b:1", python=python)
    found = set(re.findall(r"^ARG .*$", recipe.text, re.M))
    assert set(lines) <= found
    names = [line.split("=")[0] for line in found]
    assert len(names) == len(set(names)), f"one argument, two values: {found}"


def test_python_of_the_base_is_not_asked_of_uv_and_the_other_way_round() -> None:
    for recipe in record.recipes():
        if recipe.image.apt_python:
            assert ("ARG PYTHON_FROM=apt" in recipe.text) == (recipe.python == recipe.image.apt_python)


@pytest.mark.parametrize(
    ("name", "python", "words"),
    [("python", "2.7", "'2.7' is not one of"), ("python", "3.11\nRUN x", "not one of"), ("static", "3.12", "static")],
)
def test_pythons_that_are_refused(name: str, python: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_recipe(CATALOGUE, name, base="b", python=python)


def changed(path: str) -> str:
    """The id of the python image where one file has another content."""

    def read(asked: str) -> bytes:
        return read_file(asked) + (b"\n# changed\n" if asked == path else b"")

    return make_recipe(CATALOGUE, "python", base="debian:bookworm-slim", read=read).id


@pytest.mark.parametrize("path", ["python/Dockerfile", "python/uv.txt", "python/start_hook.py"])
def test_what_an_image_is_made_of_enters_its_id(path: str) -> None:
    assert changed(path) != RECIPE.id


@pytest.mark.parametrize("path", ["static/server.py", "catalogue.toml", "README.md"])
def test_what_it_is_not_made_of_does_not(path: str) -> None:
    assert changed(path) == RECIPE.id


def test_base_python_and_target_enter_the_id() -> None:
    ids = [
        RECIPE.id,
        make_recipe(CATALOGUE, "python", base="debian:trixie-slim").id,
        make_recipe(CATALOGUE, "python", base="debian:bookworm-slim", python="3.12").id,
        make_recipe(CATALOGUE, "python-build", base="debian:bookworm-slim").id,
    ]
    assert len(set(ids)) == 4


def test_copied_files() -> None:
    text = "COPY a/b.txt c.py /x/\nCOPY --from=tools /y /z\n  COPY no /n\nCOPY a/b.txt /again\n"
    assert copied(text) == ("a/b.txt", "c.py")


def test_build_argv() -> None:
    assert build_argv("/d", RECIPE, base_id="sha256:b", secrets=[("network", Path("/t/n"))], fresh=False) == (
        "/d", "build", "--progress=plain", "--file=-", "--target=run", f"--tag={RECIPE.ref}",
        "--label=org.opencontainers.image.title=spaces/runtime-python",
        f"--label=org.opencontainers.image.version={RECIPE.image.version}",
        "--label=org.opencontainers.image.base.name=debian:bookworm-slim",
        "--label=spaces.image.base-id=sha256:b",
        f"--label=spaces.image.recipe={RECIPE.id}",
        "--secret=id=network,src=/t/n",
        str(runtime_images.HERE),
    )  # fmt: skip


def test_a_fresh_build_uses_no_cache() -> None:
    assert "--no-cache" in build_argv("/d", RECIPE, base_id="", secrets=[], fresh=True)


def test_no_address_and_no_certificate_is_in_the_words_of_a_build() -> None:
    told = network({"HTTPS_PROXY": "http://MARK"}, index="https://MARK/simple", ca=b"MARK", apt_mirror="http://MARK")
    secrets = [(id, Path("/t") / id) for id in told.secrets()]
    assert [id for id, _ in secrets] == ["network", "ca"]
    assert "MARK" not in " ".join(build_argv("/d", RECIPE, base_id="", secrets=secrets, fresh=True)) + RECIPE.text


@pytest.mark.parametrize(
    ("labels", "base_id", "expected"),
    [
        (None, "sha256:b", "missing"),
        ({}, "sha256:b", "stale"),
        ({RECIPE_LABEL: "another", BASE_LABEL: "sha256:b"}, "sha256:b", "stale"),
        ({RECIPE_LABEL: RECIPE.id, BASE_LABEL: "sha256:a"}, "sha256:b", "stale"),
        ({RECIPE_LABEL: RECIPE.id, BASE_LABEL: "sha256:b"}, "sha256:b", "built"),
        # the base is not here (it was pulled by BuildKit, or removed since): the recipe alone decides
        ({RECIPE_LABEL: RECIPE.id, BASE_LABEL: ""}, "", "built"),
        ({RECIPE_LABEL: RECIPE.id, BASE_LABEL: "sha256:b"}, "", "built"),
    ],
)
def test_status(labels: dict[str, str] | None, base_id: str, expected: str) -> None:
    assert status(RECIPE, labels, base_id) == expected


def test_all_files_that_are_copied_are_shipped() -> None:
    for path in DOCKERFILES:
        for name in copied(read_file(path).decode()):
            assert recipes.read_file(name)
