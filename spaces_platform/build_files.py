"""What is kept beside a build for whoever asks later: its SBOM and its Dockerfile.

Compressed files below the data directory, not columns: an SBOM has hundreds of kilobytes, and nobody lists them.
"""

from __future__ import annotations

import gzip
import os
import secrets
from enum import StrEnum
from pathlib import Path

from builders.layout import remove_tree


class BuildFile(StrEnum):
    SBOM = "sbom.json"
    DOCKERFILE = "Dockerfile"


class BuildFiles:
    """Files of builds, by the build's id. Losing one loses a paper, not a build."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def save(self, build_id: int, file: BuildFile, text: str) -> None:
        """Whole or not at all. Empty text is not kept. Raises OSError."""
        if not text:
            return
        target = self._path(build_id, file)
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = target.with_name(f".{secrets.token_hex(8)}")
        draft.write_bytes(gzip.compress(text.encode("utf-8", "surrogateescape"), 6))
        os.replace(draft, target)

    def read(self, build_id: int, file: BuildFile) -> str | None:
        """The text, or None where the build has no such file."""
        try:
            return gzip.decompress(self._path(build_id, file).read_bytes()).decode("utf-8", "surrogateescape")
        except FileNotFoundError:
            return None

    def delete(self, build_id: int) -> None:
        remove_tree(self._path(build_id, BuildFile.SBOM).parent)

    def _path(self, build_id: int, file: BuildFile) -> Path:
        return self.root / str(build_id) / f"{file}.gz"
