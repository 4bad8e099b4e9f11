"""The accelerators of this machine, as far as the engine can give them to containers."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Sequence

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


def inventory(engine: EngineFacts) -> Sequence[Gpu]:
    """All that containers can have; nothing where the engine lacks NVIDIA's runtime or the machine its driver."""
    program = shutil.which("nvidia-smi")
    given = any("nvidia" in name for name in engine.runtimes) or shutil.which("nvidia-container-runtime-hook")
    if program is None or not given:
        return ()
    try:
        done = subprocess.run([program, *QUERY], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("the GPUs of this machine cannot be listed: %s", error)
        return ()
    if done.returncode:
        log.warning(
            "nvidia-smi failed, no GPU is offered: %s", done.stderr.strip()[-300:] or done.stdout.strip()[-300:]
        )
        return ()
    return parse(done.stdout)
