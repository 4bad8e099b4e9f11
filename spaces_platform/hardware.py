"""The hardware flavors that Spaces can ask for, which of them exist here, and what each gives an app.

Names and sizes are the Hub's (its documentation of Spaces, "GPU Spaces"), so that its clients' `SpaceHardware` fits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from spaces_platform.errors import Invalid
from spaces_platform.ports import Gpu, Resources
from spaces_platform.settings import Settings

_GB = 1 << 30
NO_GPUS = "none"
"""The value of the setting `gpus` that offers none, whatever the engine reports."""


@dataclass(frozen=True, slots=True)
class Flavor:
    name: str
    pretty_name: str
    cpus: float = 0.0
    """At most; 0: as the settings say."""
    memory: int = 0
    """Bytes, at most; 0: as the settings say."""
    gpu: str = ""
    """Model of its accelerators, a word of what the driver calls them: `T4` of `Tesla T4`."""
    gpus: int = 0
    """How many of them."""
    vram: int = 0
    """Bytes of one of them."""


def _gpu(name: str, pretty: str, cpus: float, gigabytes: int, gpu: str, gpus: int, vram: int) -> Flavor:
    return Flavor(name, pretty, cpus, gigabytes * _GB, gpu, gpus, vram * _GB)


FLAVORS: tuple[Flavor, ...] = (
    Flavor("cpu-basic", "CPU basic"),
    Flavor("cpu-upgrade", "CPU upgrade", 8, 32 * _GB),
    _gpu("t4-small", "Nvidia T4 - small", 4, 15, "T4", 1, 16),
    _gpu("t4-medium", "Nvidia T4 - medium", 8, 30, "T4", 1, 16),
    _gpu("l4x1", "1x Nvidia L4", 8, 30, "L4", 1, 24),
    _gpu("l4x4", "4x Nvidia L4", 48, 186, "L4", 4, 24),
    _gpu("l40sx1", "1x Nvidia L40S", 8, 62, "L40S", 1, 48),
    _gpu("l40sx4", "4x Nvidia L40S", 48, 382, "L40S", 4, 48),
    _gpu("l40sx8", "8x Nvidia L40S", 192, 1534, "L40S", 8, 48),
    _gpu("a10g-small", "Nvidia A10G - small", 4, 15, "A10G", 1, 24),
    _gpu("a10g-large", "Nvidia A10G - large", 12, 46, "A10G", 1, 24),
    _gpu("a10g-largex2", "2x Nvidia A10G - large", 24, 92, "A10G", 2, 24),
    _gpu("a10g-largex4", "4x Nvidia A10G - large", 48, 184, "A10G", 4, 24),
    _gpu("a100-large", "Nvidia A100 - large", 12, 142, "A100", 1, 80),
    _gpu("a100x4", "4x Nvidia A100", 48, 568, "A100", 4, 80),
    _gpu("a100x8", "8x Nvidia A100", 96, 1136, "A100", 8, 80),
)
_BY_NAME = {flavor.name: flavor for flavor in FLAVORS}


@dataclass(frozen=True, slots=True)
class Machine:
    """Where apps run."""

    cpus: float
    memory: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """What Spaces can have here. The GPUs are counted once, at the start."""

    settings: Settings
    machine: Machine
    gpus: tuple[Gpu, ...] = ()

    def flavors(self) -> Sequence[Flavor]:
        """Those that exist here.

        One with GPUs exists where there are as many of that model, and gives at most what CPUs and memory the machine
        has; one without exists where the machine is that large.
        """
        return [flavor for flavor in FLAVORS if self._exists(flavor)]

    def flavor(self, name: str) -> Flavor:
        """Also one that does not exist here: a Space may have been given it when it did. Raises Invalid."""
        found = _BY_NAME.get(name)
        if found is None:
            raise Invalid(f"There is no hardware {name[:100]!r}; available: {self.names()}.")
        return found

    def check(self, name: str) -> None:
        """Raises Invalid for a flavor that does not exist here."""
        if name not in {flavor.name for flavor in self.flavors()}:
            raise Invalid(f"The hardware {name[:100]!r} is not available here; available: {self.names()}.")

    def names(self) -> str:
        return ", ".join(flavor.name for flavor in self.flavors())

    def resources(self, name: str) -> Resources:
        """The limits of an app on this flavor. Raises Invalid."""
        flavor, settings = self.flavor(name), self.settings
        return Resources(
            cpus=min(flavor.cpus, self.machine.cpus) or settings.app_cpus,
            memory=min(flavor.memory, self.machine.memory) or settings.app_memory_mb << 20,
            processes=settings.app_processes,
            disk=settings.app_disk_mb << 20,
            log_bytes=settings.app_log_kb << 10,
        )

    def _exists(self, flavor: Flavor) -> bool:
        if flavor.gpus:
            return len(of_model(self.gpus, flavor.gpu)) >= flavor.gpus
        return flavor.cpus <= self.machine.cpus and flavor.memory <= self.machine.memory


def of_model(gpus: Sequence[Gpu], model: str) -> list[Gpu]:
    """Those whose name has this word: `L4` is not `L40S`."""
    return [gpu for gpu in gpus if model.upper() in re.split(r"[^A-Z0-9]+", gpu.model.upper())]


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """The setting `gpus`: `T4:GPU-5f2c…,T4:GPU-77…`. Raises Invalid."""
    found: dict[str, Gpu] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        model, _, id_ = part.partition(":")
        if not model.strip() or not id_.strip():
            raise Invalid(f"gpus: {part!r} is not MODEL:ID, for example T4:GPU-5f2c9d1e.")
        if id_.strip() in found:
            raise Invalid(f"gpus: {id_.strip()} is listed twice; a GPU is given to one Space at a time.")
        found[id_.strip()] = Gpu(id_.strip(), model.strip())
    return tuple(found.values())
