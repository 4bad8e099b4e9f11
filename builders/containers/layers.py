"""Where the layers of an image lie on the engine's disk.

Owns: how Docker's two image stores keep them. Does not own: what is read in them (`scan`, `sbom`). Invariant: reads
only; where it is not certain which file is which layer, nothing is found, and the image has to be asked for instead.

The older store (overlay2) has a folder for each layer, which the engine names. The newer one, containerd's, which fresh
installations of Docker 29 have, keeps layers as they are pushed and pulled: archives, compressed or not, each below its
digest. https://github.com/opencontainers/image-spec/blob/main/manifest.md,
https://github.com/containerd/containerd/blob/main/docs/content-flow.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from builders.containers.engine import Image

MAX_MANIFEST = 4 << 20
_CONTENT = "io.containerd.content.v1.content/blobs"
_SNAPSHOTS = "io.containerd.snapshotter.v1"
_OWN = "containerd/daemon"
"""Of a containerd that dockerd started, below dockerd's folder."""
_SYSTEM = Path("/var/lib/containerd")
"""Of one that is a service of its own, as Docker's packages have it."""
_DIGEST = re.compile(r"(sha256|sha512):([0-9a-f]{64,128})")


def store(info: Mapping[str, Any], system: Path = _SYSTEM) -> Path:
    """The folder on the engine's machine that has its images, by what `docker info` says."""
    root = Path(str(info["DockerRootDir"]))
    if ["driver-type", _SNAPSHOTS] not in (info.get("DriverStatus") or ()):
        return root
    own = root / _OWN
    return own if own.is_dir() else system


def find(image: Image, store: Path) -> dict[str, Path]:
    """Diff id -> the layer's folder or archive, lowest first; empty where that is not known."""
    if image.folders:
        return dict(zip(image.layers, image.folders, strict=True))
    # The manifest that the image's id names has the layers in the order of the diff ids.
    blobs = store / _CONTENT
    manifest = _json(blobs, image.id)
    paths = [_path(blobs, row.get("digest")) for row in manifest.get("layers") or ()]
    if not paths or len(paths) != len(image.layers):
        return {}
    found = {diff_id: path for diff_id, path in zip(image.layers, paths, strict=True) if path and path.is_file()}
    return found if len(found) == len(set(image.layers)) else {}


def _json(blobs: Path, digest: str) -> Mapping[str, Any]:
    path = _path(blobs, digest)
    try:
        if path is None or path.stat().st_size > MAX_MANIFEST:
            return {}
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _path(blobs: Path, digest: object) -> Path | None:
    match = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    return blobs / match[1] / match[2] if match else None
