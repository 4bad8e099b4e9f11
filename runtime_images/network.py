"""Where an image build finds packages: index, mirror, proxies, certificates, as two BuildKit secrets.

Owns: the names and the texts of the secrets that every RUN which needs the network mounts and sources. Does not own:
handing them to BuildKit (`engine`). Invariant: pure; secrets are on a tmpfs during one step and in no layer, no build
argument and no cache key, so another mirror neither rebuilds an image nor can be read from one.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

CA = "/run/secrets/ca"
"""Where a step sees the certificates, all of them in one PEM file."""
CA_VARIABLES = (
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "PIP_CERT",
    "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
    "npm_config_cafile",
)
"""What OpenSSL and uv, requests, curl, pip, git, Node and npm read."""
_PASSED = (
    "HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY http_proxy https_proxy all_proxy no_proxy "
    "PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST PIP_DEFAULT_TIMEOUT "
    "UV_DEFAULT_INDEX UV_INDEX UV_INDEX_URL UV_EXTRA_INDEX_URL UV_INSECURE_HOST UV_HTTP_TIMEOUT "
    "UV_PYTHON_INSTALL_MIRROR npm_config_registry"
)
PASSED = tuple(_PASSED.split())
"""Names of the environment that builds may see."""
MOUNTS = "--mount=type=secret,id=network --mount=type=secret,id=ca,mode=0444"
"""Flags of a RUN that needs the network."""
SOURCE = "if [ -f /run/secrets/network ]; then . /run/secrets/network; fi;"
"""First words of such a RUN; without the secret the image's own settings hold."""

_APT = "/dev/shm/apt.conf"
_SOURCES = "/dev/shm/sources.list"
"""A tmpfs in every container, also in those of BuildKit."""


@dataclass(frozen=True, slots=True)
class Network:
    variables: Mapping[str, str] = field(default_factory=dict)
    """Those of PASSED that are set."""
    ca: bytes = b""
    """PEM certificates; empty: those of the image."""
    apt_mirror: str = ""
    """URL of a Debian (or Ubuntu) mirror, and after a space that of Debian's security archive where it has one."""

    def secrets(self) -> dict[str, bytes]:
        """Contents of the secrets by id; `ca` is left out where there is none."""
        found = {"network": script(self).encode()}
        return {**found, "ca": self.ca} if self.ca else found


def network(environ: Mapping[str, str], *, index: str = "", ca: bytes = b"", apt_mirror: str = "") -> Network:
    """The network of an environment; `index` is a Python package index and wins over that of the environment.

    Raises ValueError for a mirror that is not one or two http(s) URLs.
    """
    variables = {name: environ[name] for name in PASSED if environ.get(name)}
    if index:
        variables = {name: value for name, value in variables.items() if name != "UV_INDEX_URL"}
        variables |= {"PIP_INDEX_URL": index, "UV_DEFAULT_INDEX": index}
    urls = apt_mirror.split()
    if len(urls) > 2 or not all(url.startswith(("http://", "https://")) for url in urls):
        raise ValueError(
            f"apt mirror {apt_mirror!r} is not an http(s) URL: give that of a Debian mirror, and after a space "
            "that of its security archive."
        )
    return Network(variables, ca, apt_mirror)


def script(network: Network) -> str:
    """What a step sources: exports, and apt's configuration written to the tmpfs."""
    exports = dict(network.variables)
    conf: list[str] = []
    if network.ca:
        exports |= dict.fromkeys(CA_VARIABLES, CA)
        conf.append(f'Acquire::https::CAInfo "{CA}";')
    lines = [f"export {name}={shlex.quote(value)}" for name, value in sorted(exports.items())]
    if network.apt_mirror:
        conf += [f'Dir::Etc::SourceList "{_SOURCES}";', 'Dir::Etc::SourceParts "/dev/null";']
        lines += _write_sources(network.apt_mirror.split())
    if conf:
        lines += [*_write(_APT, conf), f"export APT_CONFIG={_APT}"]
    return "".join(f"{line}\n" for line in lines)


def _write_sources(urls: list[str]) -> list[str]:
    """Shell that writes sources for the release that the image is of."""
    main, suites = urls[0].rstrip("/"), ("$VERSION_CODENAME", "$VERSION_CODENAME-updates")
    debian = [f"deb {main} {suite} main" for suite in suites]
    debian += [f"deb {url.rstrip('/')} $VERSION_CODENAME-security main" for url in urls[1:]]
    ubuntu = [f"deb {main} {suite} main universe" for suite in (*suites, "$VERSION_CODENAME-security")]
    return [
        ". /etc/os-release",
        'if [ "$ID" = ubuntu ]; then',
        *_write(_SOURCES, ubuntu, expand=True),
        "else",
        *_write(_SOURCES, debian, expand=True),
        "fi",
    ]


def _write(path: str, lines: list[str], expand: bool = False) -> list[str]:
    """Shell that writes lines to a file; `expand` puts in the value of $VERSION_CODENAME."""
    quoted = [shlex.quote(line) for line in lines]
    if expand:
        quoted = [text.replace("$VERSION_CODENAME", "'\"$VERSION_CODENAME\"'") for text in quoted]
    return [f"printf '%s\\n' {' '.join(quoted)} > {path}"]
