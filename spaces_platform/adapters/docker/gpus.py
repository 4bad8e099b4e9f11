"""The accelerators of this machine, as far as the engine can give them to containers."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Collection, Sequence

from spaces_platform.errors import Unavailable
from spaces_platform.ports import Gpu

from .engine import EngineFacts

log = logging.getLogger(__name__)
QUERY = ("--query-gpu=uuid,name", "--format=csv,noheader")


def parse(text: str) -> tuple[Gpu, ...]:
    """From the output of `nvidia-smi` with QUERY: one `uuid, name` per line."""
    found = []
    for line in text.splitlines():
        id_, comma, model = line.partition(",")
        if comma and id_.strip().startswith(("GPU-", "MIG-")):
            found.append(Gpu(id_.strip(), model.strip()))
    return tuple(found)


def can_give(runtimes: Collection[str]) -> bool:
    """Whether an engine with these runtimes has what puts GPUs into containers: NVIDIA's container toolkit."""
    return any("nvidia" in name for name in runtimes) or shutil.which("nvidia-container-runtime-hook") is not None


def listed() -> tuple[Gpu, ...]:
    """Those of this machine; nothing where NVIDIA's driver is not installed. Raises Unavailable where it fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        done = subprocess.run([program, *QUERY], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"the GPUs of this machine cannot be listed: {error}") from error
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
        raise Unavailable(f"the GPUs of this machine cannot be listed: nvidia-smi: {said[-300:]}")
    return parse(done.stdout)


def inventory(engine: EngineFacts) -> Sequence[Gpu]:
    """All that containers can have; nothing, with a warning in the log, where the driver fails."""
    if not can_give(engine.runtimes):
        return ()
    try:
        return listed()
    except Unavailable as error:
        log.warning("no GPU is offered: %s", error)
        return ()
