"""What a process needs of an artifact: three places on disk. Owns the value only; the builder resolves the reference.

Invariant: everything named here is read-only to the app and shared by all its deployments.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class LocalArtifact:
    """A built app on this machine."""

    app_dir: Path
    """The app's files as they were pushed."""
    environment_dir: Path | None = None
    """The dependency environment (a virtual environment), or None for an app that needs none."""
    read_only_paths: tuple[Path, ...] = ()
    """What else the app may read, such as an interpreter outside /usr."""
    hub_dir: Path | None = None
    """Files that were preloaded from a hub: `home/` is copied to ~/.cache/huggingface/hub, and links to the rest."""
