"""uv as text: the commands it is given and the progress it reports.

Owns: argv and environment of every uv call, and reading its plain output. Does not own: running it (`confined`).
Invariant: pure. Commands: https://docs.astral.sh/uv/reference/cli/
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_PASSED = (
    "UV_DEFAULT_INDEX UV_INDEX UV_INDEX_URL UV_EXTRA_INDEX_URL UV_FIND_LINKS UV_NO_INDEX UV_OFFLINE "
    "UV_INSECURE_HOST UV_NATIVE_TLS UV_SYSTEM_CERTS UV_HTTP_TIMEOUT UV_HTTP_RETRIES "
    "UV_CONCURRENT_DOWNLOADS UV_PYTHON_DOWNLOADS UV_PYTHON_INSTALL_MIRROR SSL_CERT_FILE SSL_CERT_DIR "
    "REQUESTS_CA_BUNDLE CURL_CA_BUNDLE NODE_EXTRA_CA_CERTS HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY "
    "http_proxy https_proxy all_proxy no_proxy npm_config_registry"
)
PASSED = tuple(_PASSED.split())
"""Names of the platform's environment that a build may see: where packages come from, and nothing else."""
_FROM_PIP = {
    "PIP_INDEX_URL": "UV_DEFAULT_INDEX",
    "PIP_EXTRA_INDEX_URL": "UV_EXTRA_INDEX_URL",
    "PIP_FIND_LINKS": "UV_FIND_LINKS",
}


def index_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that says where packages come from; pip's variables are translated for uv."""
    settings = {name: environ[name] for name in PASSED if environ.get(name)}
    for pip, name in _FROM_PIP.items():
        replaced = name in settings or (name == "UV_DEFAULT_INDEX" and "UV_INDEX_URL" in settings)
        if environ.get(pip) and not replaced:
            settings[name] = ",".join(environ[pip].split()) if name == "UV_FIND_LINKS" else environ[pip]
    return settings


def environment(settings: Mapping[str, str], cache: Path, interpreters: Path) -> dict[str, str]:
    """Environment variables of every uv call. Apps are written for pip, so the best match of all indexes is taken."""
    return {
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        **settings,
        "UV_CACHE_DIR": str(cache),
        "UV_PYTHON_INSTALL_DIR": str(interpreters),
        "UV_LINK_MODE": "hardlink",
        "UV_NO_PROGRESS": "1",
        "NO_COLOR": "1",
    }


def venv(uv: str, python: str, target: Path) -> tuple[str, ...]:
    return (uv, "venv", "--quiet", "--no-project", "--python", python, str(target))


def install(uv: str, environment_dir: Path, files: tuple[str, ...], requirements: tuple[str, ...]) -> tuple[str, ...]:
    listed = (part for name in files for part in ("-r", name))
    return (uv, "pip", "install", "--python", str(environment_dir), *listed, "--", *requirements)


def export(uv: str, environment_dir: Path, output: str) -> tuple[str, ...]:
    """Turn pyproject.toml and uv.lock of the working directory into a requirements file."""
    flags = ("--frozen", "--no-dev", "--no-emit-project", "--no-hashes", "--no-header", "--quiet")
    return (uv, "export", *flags, "--python", str(environment_dir), "--output-file", output)


def freeze(uv: str, environment_dir: Path) -> tuple[str, ...]:
    return (uv, "pip", "freeze", "--python", str(environment_dir))


_RESOLVED = re.compile(r"Resolved (\d+) packages?")
_ACTIVE = re.compile(r"(Downloading|Building) (\S+)")
_READY = re.compile(r"\s*(Downloaded|Built) (\S+)")
_INSTALLED = re.compile(r"Installed (\d+) packages?")


@dataclass(slots=True)
class Progress:
    """How far an install is, from the lines of uv and the number of packages that are in place."""

    before: int = 0
    """Packages that were in place when it began."""
    total: int = 0
    """0 until the resolution is done."""
    placed: int = 0
    doing: str = ""
    finished: bool = False

    def line(self, text: str) -> bool:
        """Take one line of output; whether the progress changed."""
        if match := _RESOLVED.match(text):
            self.total = int(match[1])
        elif match := _ACTIVE.match(text):
            self.doing = f"{match[1].lower()} {match[2]}"
        elif (match := _READY.match(text)) and self.doing.endswith(match[2]):
            self.doing = ""
        elif _INSTALLED.match(text):
            self.finished, self.doing = True, ""
        else:
            return False
        return True

    @property
    def words(self) -> str:
        done = self.total if self.finished else min(self.placed, self.total)
        return f"{done}/{self.total} {self.doing}".rstrip()
