"""`python -m runtime_images.platform`: build the images of the platform itself, for compose.yaml.

Owns: arguments and the build's command line. Does not own: the engine's client and where packages come from (`engine`,
`network`). Settings of the platform (`SPACES_BASE_IMAGE`, `SPACES_DOCKER`, `SPACES_CA_BUNDLE`, `SPACES_APT_MIRROR`) are
the defaults of the flags.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

from runtime_images.base import SUITE, make_base
from runtime_images.engine import BUILD_SECONDS, Engine, EngineError, find_client
from runtime_images.network import Network, network

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ("redis", "postgres", "registry", "caddy", "platform")
OURS = "spaces/base:"
"""Bases of this name are made here where the engine has none."""


def version() -> str:
    """Of the source that the images are made from."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def build_argv(
    client: str, target: str, *, base: str, prefix: str, tag: str, secrets: Sequence[tuple[str, Path]]
) -> tuple[str, ...]:
    """The command that builds one target from the repository. Pure."""
    argv = [client, "build", "--file", str(ROOT / "runtime_images/platform/Dockerfile"), "--target", target]
    argv += ["--tag", f"{prefix}/{target}:{tag}", "--build-arg", f"BASE={base}"]
    argv += [part for name, path in secrets for part in ("--secret", f"id={name},src={path}")]
    return (*argv, str(ROOT))


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        ca = Path(args.ca_bundle).read_bytes() if args.ca_bundle else b""
        net = network(os.environ, ca=ca, apt_mirror=args.apt_mirror)
        engine = Engine(find_client(os.environ), args.docker, os.environ)
        if engine.find(args.base) is None and args.base.startswith(OURS):
            print(f"==> {args.base}", file=sys.stderr)
            make_base(engine, args.base, args.base.removeprefix(OURS), net, os.environ)
        for target in args.targets or TARGETS:
            print(f"==> {args.prefix}/{target}:{args.tag}", file=sys.stderr)
            _build(engine, target, args, net)
    except (EngineError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _build(engine: Engine, target: str, args: argparse.Namespace, net: Network) -> None:
    with tempfile.TemporaryDirectory(prefix="spaces-image-") as folder:
        secrets = []
        for name, content in net.secrets().items():
            path = Path(folder) / name
            path.touch(mode=0o600)
            path.write_bytes(content)
            secrets.append((name, path))
        argv = build_argv(
            engine.client, target, base=args.base, prefix=args.prefix, tag=args.tag, secrets=secrets
        )  # fmt: skip
        env = {**os.environ, "DOCKER_HOST": engine.url, "DOCKER_BUILDKIT": "1"}
        try:
            done = subprocess.run(argv, stdout=2, env=env, timeout=BUILD_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise EngineError(f"{target} was not built within {BUILD_SECONDS:.0f} s.") from error
    if done.returncode:
        raise EngineError(f"{target} was not built: see the lines above (exit code {done.returncode}).")


def _parser() -> argparse.ArgumentParser:
    environ = os.environ
    parser = argparse.ArgumentParser(prog="python -m runtime_images.platform", description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"some of {', '.join(TARGETS)}; none: all")
    parser.add_argument("--base", default=environ.get("SPACES_BASE_IMAGE") or OURS + SUITE, help="image to start from")
    parser.add_argument("--prefix", default="spaces", help="what stands before the images' names")
    parser.add_argument("--tag", default=version(), help="the images' tag")
    default = environ.get("SPACES_DOCKER") or environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    parser.add_argument("--docker", default=default, metavar="URL", help="the engine")
    trusted = environ.get("SPACES_CA_BUNDLE") or environ.get("SSL_CERT_FILE", "")
    parser.add_argument("--ca-bundle", default=trusted, metavar="FILE", help="certificates that builds trust")
    parser.add_argument("--apt-mirror", default=environ.get("SPACES_APT_MIRROR", ""), metavar="URL", help="of Debian")
    return parser


if __name__ == "__main__":
    sys.exit(main())
