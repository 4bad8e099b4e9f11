"""The software bill of materials of an image: what is installed in it, as CycloneDX JSON.

Owns: reading a lock and Debian's package list, and writing the document. Does not own: how they are got (`builder`).
Invariant: pure but for the document's own time and serial number; a line that cannot be read is left out, not guessed.

https://cyclonedx.org/docs/1.6/json/, https://github.com/package-url/purl-spec
"""

from __future__ import annotations

import json
import logging
import os
import re
import tarfile
import uuid
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot5
from packageurl import PackageURL
from packaging.utils import canonicalize_name

log = logging.getLogger(__name__)
MAX_STATUS = 16 << 20
_STATUS = "var/lib/dpkg/status"
_DIST_INFO = re.compile(r"(?P<name>[A-Za-z0-9][\w.]*)-(?P<version>[^-/]+)\.dist-info")
_PINNED = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?==(?P<version>[^\s;]+)")
_DIRECT = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?\s*@\s*(?P<url>\S+)")


def of_environment(lock: str, status: str) -> str:
    """The document of what is installed, without the image it is in. Takes half a second for a thousand packages."""
    bom = Bom()
    bom.components.update(python_packages(lock))
    bom.components.update(debian_packages(status))
    return JsonV1Dot5(bom).output_as_string()


def of_image(document: str, name: str, version: str) -> str:
    """The document of one image that has the environment: named after its Space and commit. Quick."""
    data = json.loads(document)
    image = {"type": "container", "bom-ref": "image", "name": name, "version": version}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    data["metadata"] = {**data.get("metadata", {}), "component": image, "timestamp": now}
    data["serialNumber"] = f"urn:uuid:{uuid.uuid4()}"
    return json.dumps(data, indent=1)


def python_packages(lock: str) -> Iterator[Component]:
    """The packages of requirement lines with pinned versions."""
    for line in lock.splitlines():
        if match := _PINNED.match(line):
            name, version, qualifiers = canonicalize_name(match["name"]), match["version"], None
        elif match := _DIRECT.match(line):
            name, version, qualifiers = canonicalize_name(match["name"]), None, {"vcs_url": match["url"]}
        else:
            continue
        purl = PackageURL("pypi", name=name, version=version, qualifiers=qualifiers)
        yield Component(name=name, version=version, type=ComponentType.LIBRARY, purl=purl, bom_ref=purl.to_string())


def debian_packages(status: str) -> Iterator[Component]:
    """The installed packages of a dpkg status file (https://man7.org/linux/man-pages/man1/dpkg-query.1.html)."""
    for paragraph in status.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if re.match(r"[A-Z][\w-]*: ", line))
        if not fields.get("Status", "").endswith(" installed") or not {"Package", "Version"} <= fields.keys():
            continue
        qualifiers = {"arch": fields["Architecture"]} if fields.get("Architecture") else None
        purl = PackageURL("deb", "debian", fields["Package"], fields["Version"], qualifiers)
        yield Component(
            name=fields["Package"],
            version=fields["Version"],
            type=ComponentType.LIBRARY,
            purl=purl,
            bom_ref=purl.to_string(),
        )


def read_layer(place: Path) -> tuple[str, str]:
    """Lock lines and dpkg status that one layer, a folder or an archive, holds. Reads only; follows no link.

    Nothing of an archive that is compressed in a way that is not known here. Raises OSError.
    """
    return _read_folder(place) if place.is_dir() else _read_archive(place)


def _read_folder(folder: Path) -> tuple[str, str]:
    lock, status = [], ""
    waiting = [str(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    continue
                line = _installed(os.path.basename(os.path.dirname(entry.path)), entry.name)
                if line:
                    lock.append(line)
                else:
                    waiting.append(entry.path)
    path = folder / _STATUS
    if not any(part.is_symlink() for part in (path, *path.parents) if part.is_relative_to(folder)) and path.is_file():
        with path.open("rb") as file:
            status = file.read(MAX_STATUS).decode("utf-8", "replace")
    return "".join(sorted(lock)), status


def _read_archive(path: Path) -> tuple[str, str]:
    lock, status = set(), ""
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                parts = member.name.strip("/").split("/")
                # The folder itself, or a file right in it: an archive need not name folders.
                for at in (len(parts) - 1, len(parts) - 2):
                    if at > 0 and (member.isdir() or at < len(parts) - 1):
                        lock.add(_installed(parts[at - 1], parts[at]))
                file = archive.extractfile(member) if member.isfile() and "/".join(parts) == _STATUS else None
                if file is not None:
                    status = file.read(MAX_STATUS).decode("utf-8", "replace")
    except (tarfile.ReadError, zlib.error, EOFError) as error:
        log.warning("a layer cannot be read for the bill of materials: %s: %s", path.name, error)
        return "", ""
    return "".join(sorted(lock)), status


def _installed(parent: str, name: str) -> str:
    """A line of a lock for the folder of an installed package's metadata; empty for another."""
    match = _DIST_INFO.fullmatch(name)
    if match is None or parent not in ("site-packages", "dist-packages"):
        return ""
    return f"{canonicalize_name(match['name'])}=={match['version']}\n"
