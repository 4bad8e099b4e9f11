"""What an image is made of: the Dockerfile with this image's values, the files it copies, and an id of both.

Owns: `make_recipe`, a pure function of the catalogue and this folder, and the words given to the engine's client. Does
not own: running them (`engine`). Invariant: equal recipes have equal ids on every machine; `text` builds the same image
with any BuildKit whose context is this folder.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime_images import HERE, Catalogue, Image, image_ref

RECIPE_LABEL = "spaces.image.recipe"
"""Label with the id of the recipe that an image was made by."""
BASE_LABEL = "spaces.image.base-id"
"""Label with the engine's id of the image it was made from; empty where the engine pulled it."""

_ARGUMENT = re.compile(r"^ARG ([A-Z_]+)=.*$", re.M)
_COPIED = re.compile(r"^COPY (?!--from)(.+)$", re.M)
Read = Callable[[str], bytes]


@dataclass(frozen=True, slots=True)
class Recipe:
    image: Image
    ref: str
    base: str
    python: str
    text: str
    """The Dockerfile."""
    id: str
    """Enters a label, so that an image of another recipe is seen to be stale."""


def read_file(path: str) -> bytes:
    """A file of this folder."""
    return (HERE / path).read_bytes()


def make_recipe(catalogue: Catalogue, name: str, *, base: str, python: str = "", read: Read = read_file) -> Recipe:
    """The recipe of one image. `base` is used where the catalogue names none for it.

    Raises KeyError for an unknown image, ValueError for a Python that the catalogue does not support.
    """
    image = catalogue.images[name]
    python = python or catalogue.python_default
    if python not in catalogue.pythons:
        raise ValueError(f"Python {python!r} is not one of {', '.join(catalogue.pythons)} (catalogue.toml).")
    text = read(image.dockerfile).decode()
    if python != catalogue.python_default and not has_python_choice(text):
        raise ValueError(f"{name} has one Python, which no app sees; leave the choice away.")
    used = image.base or base
    text = _filled(text, {"BASE": used, "PYTHON": python, "PYTHON_FROM": "apt" if python == image.apt_python else "uv"})
    digest = hashlib.sha256(text.encode())
    for path in copied(text):
        content = read(path)
        digest.update(f"\0{path}\0{len(content)}\0".encode() + content)
    digest.update(f"\0{image.target}".encode())
    return Recipe(image, image_ref(catalogue, name, python), used, python, text, digest.hexdigest()[:16])


def has_python_choice(dockerfile: str) -> bool:
    """Whether images of a Dockerfile are made for a Python of the app's choice."""
    return "ARG PYTHON=" in dockerfile


def copied(text: str) -> tuple[str, ...]:
    """Paths of the context that a Dockerfile copies, in order; the last word of each COPY is where they go."""
    return tuple(dict.fromkeys(path for line in _COPIED.findall(text) for path in line.split()[:-1]))


def _filled(text: str, values: Mapping[str, str]) -> str:
    return _ARGUMENT.sub(lambda m: f"ARG {m[1]}={values[m[1]]}" if m[1] in values else m[0], text)


def build_argv(
    client: str, recipe: Recipe, *, base_id: str, secrets: Sequence[tuple[str, Path]], fresh: bool
) -> tuple[str, ...]:
    """The command that builds a recipe whose text comes on standard input. `fresh`: without the build cache."""
    labels = {
        "org.opencontainers.image.title": recipe.image.repository,
        "org.opencontainers.image.version": recipe.image.version,
        "org.opencontainers.image.base.name": recipe.base,
        BASE_LABEL: base_id,
        RECIPE_LABEL: recipe.id,
    }
    return (
        *(client, "build", "--progress=plain", "--file=-", f"--target={recipe.image.target}", f"--tag={recipe.ref}"),
        *(f"--label={name}={value}" for name, value in labels.items()),
        *(f"--secret=id={id},src={path}" for id, path in secrets),
        *(("--no-cache",) if fresh else ()),
        str(HERE),
    )


def status(recipe: Recipe, labels: Mapping[str, str] | None, base_id: str) -> str:
    """`missing`, `stale` (made by another recipe or from another base), or `built`, by the labels of what is there."""
    if labels is None:
        return "missing"
    if labels.get(RECIPE_LABEL) != recipe.id:
        return "stale"
    return "stale" if base_id and labels.get(BASE_LABEL) != base_id else "built"
