"""What a Space runs on: SDK releases, Python versions, images, and the runtime contract (README.md beside this file).

Owns: the typed view of catalogue.toml. Does not own: how anything is installed or started (builders, orchestrators).
Invariant: imports nothing of this project and nothing but the standard library.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PYTHON_PATH = HERE.parent
"""What must be on PYTHONPATH for `python -m runtime_images.static.server`."""
START_HOOK = HERE / "python" / "start_hook.py"
"""Put into every Python environment; see its own words."""
SEAL = HERE / "python" / "seal.py"
"""Run by every Python environment once it is installed; see its own words."""


@dataclass(frozen=True, slots=True)
class Compat:
    """Extra requirements for old releases of an SDK."""

    below: str
    add: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Sdk:
    name: str
    version: str
    """Used where README.md names none."""
    packages: tuple[str, ...]
    """Requirements; `{version}` becomes `==<version>`, or nothing where the app pins the SDK itself."""
    compat: tuple[Compat, ...] = ()


@dataclass(frozen=True, slots=True)
class Image:
    """One image that apps run on, or that their environments are made in."""

    name: str
    repository: str
    version: str
    dockerfile: str
    """Path below this folder, which is its build context."""
    target: str
    base: str = ""
    """What it starts from; empty: the base_image setting."""
    accelerator: str = "cpu"
    """`cpu` or `cuda`."""
    sdks: tuple[str, ...] = ()
    """The SDKs whose apps run on it."""
    build_image: str = ""
    """Name of the image that environments for this one are made in."""
    apt_python: str = ""
    """The Python (`3.x`) that its base has as a package; every other one is fetched by uv."""
    torch: str = ""
    """PyTorch's name of the wheels for this hardware (`UV_TORCH_BACKEND`)."""
    cuda: str = ""
    compute: tuple[str, ...] = ()
    """CUDA compute capabilities that its CUDA release has code for."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    python_default: str
    pythons: tuple[str, ...]
    """Supported, oldest first."""
    sdks: Mapping[str, Sdk]
    images: Mapping[str, Image]


def parse(text: str) -> Catalogue:
    """The catalogue in a TOML text. Raises KeyError, TypeError or TOMLDecodeError on a malformed one."""
    data = tomllib.loads(text)
    sdks = {
        name: Sdk(
            name,
            row["version"],
            tuple(row["packages"]),
            tuple(Compat(c["below"], tuple(c["add"]), c["reason"]) for c in row.get("compat", ())),
        )
        for name, row in data["sdk"].items()
    }
    images = {name: _image(name, row) for name, row in data.get("image", {}).items()}
    return Catalogue(data["python"]["default"], tuple(data["python"]["supported"]), sdks, images)


def image_ref(catalogue: Catalogue, name: str, python: str = "") -> str:
    """The tag of a runtime image, for a Python (`3.x`) other than the default where one is named.

    Raises KeyError where the catalogue has no such image.
    """
    image = catalogue.images[name]
    suffix = f"-py{python}" if python and python != catalogue.python_default else ""
    return f"{image.repository}:{image.version}{suffix}"


def image_for(catalogue: Catalogue, sdk: str, accelerator: str = "cpu") -> Image:
    """The image that apps of an SDK run on. Raises LookupError where there is none."""
    for image in catalogue.images.values():
        if sdk in image.sdks and image.accelerator == accelerator:
            return image
    raise LookupError(f"no runtime image for {sdk} on {accelerator}")


def _image(name: str, row: Mapping[str, Any]) -> Image:
    """One [image.*] table. Raises TypeError where a field is missing or unknown."""
    fields: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in row.items()}
    return Image(name=name, **fields)


@cache
def load() -> Catalogue:
    """The catalogue this release ships."""
    return parse((HERE / "catalogue.toml").read_text(encoding="utf-8"))
