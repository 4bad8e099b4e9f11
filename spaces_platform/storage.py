"""How much storage Spaces can have here: the tiers, and what a Space that asks for one gets. Pure rules.

The tiers' names are the Hub's; their sizes, and how many of them there are, are settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from spaces_platform.errors import Invalid
from spaces_platform.models import Space
from spaces_platform.ports import Volumes
from spaces_platform.settings import STORAGE_TIERS, Settings

NEEDS_CONTAINERS = (
    "Persistent storage needs containers: apps run as processes here, and nothing would hold them to its size. "
    "Run the platform with `spaces up --mode single-host`."
)
NEEDS_ROOT = (
    "This machine cannot make volumes, which are sized file systems on loop devices. `spaces doctor --mode "
    "single-host` says what is missing."
)


@dataclass(frozen=True, slots=True)
class Storage:
    """`volumes` is None where there are none: apps are processes, or the machine cannot make sized disks."""

    settings: Settings
    volumes: Volumes | None = None

    def tiers(self) -> Mapping[str, int]:
        """Those that may be asked for, smallest first, and their bytes."""
        most = self.settings.volume_most
        names = STORAGE_TIERS[: STORAGE_TIERS.index(most) + 1] if most in STORAGE_TIERS else ()
        return {name: self._bytes(name) for name in names}

    def require(self) -> Volumes:
        """The port. Raises Invalid where there are no volumes here, with what to do."""
        if self.volumes is None:
            raise Invalid(NEEDS_CONTAINERS if self.settings.orchestrator == "process" else NEEDS_ROOT)
        return self.volumes

    def check(self, tier: str, before: str | None = None) -> None:
        """Whether a Space that has asked for `before` may ask for `tier`. Raises Invalid."""
        self.require()
        tiers = self.tiers()
        if tier not in tiers:
            there_is = ", ".join(f"{name} ({words(size)})" for name, size in tiers.items()) or "none"
            raise Invalid(f"There is no storage {tier[:100]!r} here; available: {there_is}.")
        if before is not None and STORAGE_TIERS.index(tier) < STORAGE_TIERS.index(before):
            raise Invalid(
                f"A volume never shrinks: this one is {before} ({words(self._bytes(before))}). To have {tier} "
                f"({words(tiers[tier])}), delete the storage first, with all that is in it."
            )

    def wanted(self, space: Space) -> int:
        """Bytes that the volume of a Space is to have; 0: it needs none."""
        if space.storage is not None:
            return self._bytes(space.storage)
        return 0 if space.sdk == "static" else self.settings.volume_mb << 20

    def size_of(self, space: Space) -> int:
        """Bytes of the volume to start its app with. One that is there is never left out: it holds somebody's data."""
        if self.volumes is None:
            return 0
        size = self.wanted(space)
        if size == 0 and (there := self.volumes.use(space.id or 0)) is not None:
            return there.size
        return size

    def discard(self, space_id: int) -> None:
        """Remove a Space's volume and snapshots, where there are volumes. Raises Unavailable while an app has it."""
        if self.volumes is not None:
            self.volumes.remove(space_id)

    def _bytes(self, tier: str) -> int:
        return int(getattr(self.settings, f"volume_{tier}_mb")) << 20


def words(size: int) -> str:
    """Bytes for people."""
    return f"{size / (1 << 30):.3g} GB" if size >= 1 << 30 else f"{size >> 20} MB"
