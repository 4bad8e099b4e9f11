"""How images are built on a machine: the values that the platform's settings become."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from builders import dockerfile
from builders.containers import rules
from builders.types import BuildLimits
from runtime_images import Catalogue, image_ref
from runtime_images.network import network

_PROXY = re.compile(r"(?:HTTP|HTTPS|FTP|NO|ALL)_PROXY", re.I)
_LOOPBACK = re.compile(r"://(?:[^/@]*@)?(?:127\.|localhost\b|\[::1\])")


@dataclass(frozen=True, slots=True)
class Options:
    """How images are built here."""

    images: dockerfile.Images
    engine: str = "unix:///var/run/docker.sock"
    client: str = ""
    """The docker command; found where empty."""
    registry: str = ""
    """`host:port`; empty: images stay in the engine."""
    limits: BuildLimits = field(default_factory=BuildLimits)
    slots: int = 2
    """Builds that run at once, for the limits of all together."""
    cpus: float = 2.0
    """Of all builds together."""
    reserve: int = 512 << 20
    """Bytes that must stay free on the engine's disk."""
    cache_bytes: int = 20 << 30
    """What BuildKit may keep of steps and downloads."""
    sources: frozenset[str] = frozenset(rules.DEFAULT_SOURCES.split(","))
    """Registries that users' Dockerfiles may take images from."""
    network: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """The secrets `network` and `ca` of runtime_images/network.py."""
    proxies: Mapping[str, str] = field(default_factory=dict, repr=False)
    fence: Callable[[], AbstractContextManager[object]] = nullcontext
    """Sees to it that build steps reach no internal network. Entered by every build; what it raises ends it."""
    unfence: Callable[[], None] = lambda: None
    """Called once nothing is built here any more."""


def make_options(
    catalogue: Catalogue, environ: Mapping[str, str], *, ca: bytes = b"", apt_mirror: str = "", **more: Any
) -> Options:
    """Options for the shipped runtime images. `environ`: the platform's own index, proxies and the like.

    An address of this machine (`file:`, a folder, its loopback) means nothing inside a build and is left out. Raises
    ValueError for a mirror that is no address.
    """
    usable = {name: value for name, value in environ.items() if not _is_local(value)}
    found = network(usable, ca=ca, apt_mirror=apt_mirror)
    images = dockerfile.Images(
        run=image_ref(catalogue, "python"),
        build=image_ref(catalogue, "python-build"),
        static=image_ref(catalogue, "static"),
        site=image_ref(catalogue, "static-build"),
        python=catalogue.python_default,
    )
    proxies = {name: value for name, value in usable.items() if _PROXY.fullmatch(name)}
    return Options(images=images, network=found.secrets(), proxies=proxies, **more)


def _is_local(value: str) -> bool:
    return any(word.startswith(("file:", "/")) or _LOOPBACK.search(word) is not None for word in value.split())
