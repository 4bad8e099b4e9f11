"""`python -m runtime_images`: the images of the catalogue, their Dockerfiles, and building them.

Owns: arguments and what is printed. Does not own: anything that decides or builds. Settings of the platform
(`SPACES_BASE_IMAGE`, `SPACES_DOCKER`, `SPACES_CA_BUNDLE`, `SPACES_APT_MIRROR`) are the defaults of the flags; where
they are not set, DOCKER_HOST and SSL_CERT_FILE. Standard output holds the result only.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from runtime_images import Catalogue, load
from runtime_images.base import SUITE, make_base
from runtime_images.engine import Engine, EngineError, Found, find_client
from runtime_images.network import Network, network
from runtime_images.recipes import Recipe, has_python_choice, make_recipe, read_file, status

BASE = "spaces/base:"
"""Images of this name are made here where the engine has none."""


@dataclass(frozen=True, slots=True)
class Row:
    """One image of `list`."""

    name: str
    ref: str
    version: str
    python: str
    accelerator: str
    base: str
    recipe: str
    status: str
    """`built`, `stale`, `missing`; `unknown` where the engine does not answer."""
    id: str = ""
    digests: tuple[str, ...] = ()
    created: str = ""
    size: int = 0


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        code: int = args.do(args, load())
    except (EngineError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return code


def _parser() -> argparse.ArgumentParser:
    environ = os.environ
    parser = argparse.ArgumentParser(prog="python -m runtime_images", description="The images that apps run on.")
    commands = parser.add_subparsers(required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--base", default=environ.get("SPACES_BASE_IMAGE") or BASE + SUITE, help="image to start from")
    common.add_argument("--python", default="", metavar="3.x", help="for another Python than the default")
    engine = argparse.ArgumentParser(add_help=False)
    default = environ.get("SPACES_DOCKER") or environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    engine.add_argument("--docker", default=default, metavar="URL", help="the engine")
    build = commands.add_parser("build", parents=[common, engine], help="build what is missing or stale")
    build.add_argument("names", nargs="*", metavar="NAME", help="images; none: all for CPUs")
    trusted = environ.get("SPACES_CA_BUNDLE") or environ.get("SSL_CERT_FILE", "")
    build.add_argument("--ca-bundle", default=trusted, metavar="FILE", help="certificates that builds trust")
    build.add_argument("--apt-mirror", default=environ.get("SPACES_APT_MIRROR", ""), metavar="URL", help="of Debian")
    build.add_argument("--index", default="", metavar="URL", help="Python package index")
    build.add_argument("--fresh", action="store_true", help="build all anew, with the packages of today")
    build.set_defaults(do=_build)
    shown = commands.add_parser("list", parents=[common, engine], help="the images, and whether the engine has them")
    shown.add_argument("--json", action="store_true", help="print JSON")
    shown.set_defaults(do=_list)
    text = commands.add_parser("dockerfile", parents=[common], help="print the Dockerfile of an image")
    text.add_argument("name", metavar="NAME")
    text.set_defaults(do=_dockerfile)
    return parser


def _build(args: argparse.Namespace, catalogue: Catalogue) -> int:
    names = args.names or [name for name in _chosen(args, catalogue) if catalogue.images[name].accelerator == "cpu"]
    recipes = [_recipe(args, catalogue, name) for name in names]
    ca = Path(args.ca_bundle).read_bytes() if args.ca_bundle else b""
    net = network(os.environ, index=args.index, ca=ca, apt_mirror=args.apt_mirror)
    engine = Engine(find_client(os.environ), args.docker, os.environ)
    for recipe in recipes:
        base_id = _base(engine, recipe, net)
        found = engine.find(recipe.ref)
        if args.fresh or found is None or status(recipe, found.labels, base_id) != "built":
            print(f"==> {recipe.ref}", file=sys.stderr)
            found = engine.build(recipe, net, base_id=base_id, fresh=args.fresh)
        print(f"{recipe.ref} {found.id}")
    return 0


def _base(engine: Engine, recipe: Recipe, net: Network) -> str:
    """The engine's id of a recipe's base, made here where it is ours and missing; empty where it is to be pulled."""
    found = engine.find(recipe.base)
    if found is None and recipe.base.startswith(BASE):
        print(f"==> {recipe.base}", file=sys.stderr)
        found = make_base(engine, recipe.base, recipe.base.removeprefix(BASE), net, os.environ)
    return found.id if found else ""


def _list(args: argparse.Namespace, catalogue: Catalogue) -> int:
    try:
        engine = Engine(find_client(os.environ), args.docker, os.environ)
        rows = [_row(_recipe(args, catalogue, name), engine) for name in _chosen(args, catalogue)]
    except EngineError as error:
        print(error, file=sys.stderr)
        rows = [_row(_recipe(args, catalogue, name), None) for name in _chosen(args, catalogue)]
    if args.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return 0
    for row in rows:
        size = f"{row.size / 1e6:.0f} MB" if row.size else ""
        print(f"{row.name:<14} {row.ref:<34} {row.status:<8} {size:>8}  {row.id.removeprefix('sha256:')[:12]}".rstrip())
    return 0


def _row(recipe: Recipe, engine: Engine | None) -> Row:
    image = recipe.image
    head = (image.name, recipe.ref, image.version, recipe.python, image.accelerator, recipe.base, recipe.id)
    if engine is None:
        return Row(*head, "unknown")
    found: Found | None = engine.find(recipe.ref)
    base = engine.find(recipe.base)
    state = status(recipe, found.labels if found else None, base.id if base else "")
    return Row(*head, state, found.id, found.digests, found.created, found.size) if found else Row(*head, state)


def _dockerfile(args: argparse.Namespace, catalogue: Catalogue) -> int:
    print(_recipe(args, catalogue, args.name).text, end="")
    return 0


def _chosen(args: argparse.Namespace, catalogue: Catalogue) -> list[str]:
    """The images that there are for the Python of the arguments."""
    return [
        name
        for name, image in catalogue.images.items()
        if args.python in ("", catalogue.python_default) or has_python_choice(read_file(image.dockerfile).decode())
    ]


def _recipe(args: argparse.Namespace, catalogue: Catalogue, name: str) -> Recipe:
    if name not in catalogue.images:
        raise ValueError(f"No image {name!r}. There are: {', '.join(catalogue.images)}.")
    return make_recipe(catalogue, name, base=args.base, python=args.python)


if __name__ == "__main__":
    sys.exit(main())
