"""Writes what the tests of this folder compare with: `python -m tests.images.record`.

Run it after a wanted change, with the version of each changed image raised in catalogue.toml; read the difference
before committing it.
"""

from __future__ import annotations

import json
from pathlib import Path

import runtime_images
from runtime_images.recipes import Recipe, make_recipe

GOLDEN = Path(__file__).parent / "golden"
BASE = "spaces/base:bookworm"


def recipes() -> list[Recipe]:
    """Every image for the default Python, and the Python ones once for another."""
    catalogue = runtime_images.load()
    found = [make_recipe(catalogue, name, base=BASE) for name in catalogue.images]
    return [*found, *(make_recipe(catalogue, name, base=BASE, python="3.12") for name in ("python", "python-build"))]


def golden_path(recipe: Recipe) -> Path:
    return GOLDEN / (recipe.ref.removeprefix("spaces/").replace(":", "-") + ".Dockerfile")


def main() -> None:
    for path in GOLDEN.glob("*"):
        path.unlink()
    for recipe in recipes():
        golden_path(recipe).write_text(recipe.text)
    ids = {recipe.ref: recipe.id for recipe in recipes()}
    (GOLDEN / "recipes.json").write_text(json.dumps(ids, indent=2) + "\n")


if __name__ == "__main__":
    main()
