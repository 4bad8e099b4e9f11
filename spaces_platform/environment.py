"""The environment variables that an app gets from the platform: the Spaces reference's, and the owner's. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from spaces_platform.models import Space
from spaces_platform.names import public_id
from spaces_platform.ports import Resources

PUBLIC_VARIABLES = "SPACES_PUBLIC_VARIABLES"
"""What the static site server shows to pages as `window.huggingface.variables`."""


def make_environment(
    space: Space,
    *,
    host: str,
    resources: Resources,
    plan: Mapping[str, str],
    variables: Mapping[str, str],
    secrets: Mapping[str, str],
    passed: Mapping[str, str],
    accelerator: str = "none",
    gpus: Sequence[str] = (),
) -> dict[str, str]:
    """All of them; later ones win: the platform's network settings, the recipe's, the reference's, the owner's.

    `SYSTEM=spaces` is set for the Python SDKs but not for Docker, as on the Hub. A static site has no process of its
    owner's: it gets the variables, which its pages may read, and never a secret. `accelerator`: the flavor, where
    it has GPUs; `gpus`: their ids.
    """
    reference = {
        "SPACE_ID": f"{space.owner}/{space.name}",
        "SPACE_AUTHOR_NAME": space.owner,
        "SPACE_REPO_NAME": space.name,
        "SPACE_TITLE": space.title or space.name,
        "SPACE_HOST": host,
        "SPACE_CREATOR_USER_ID": public_id(space.creator_id),
        "CPU_CORES": f"{resources.cpus:g}",
        "MEMORY": _memory(resources.memory),
        "ACCELERATOR": accelerator,
    }
    if gpus:
        # A container has no others; where apps are processes, this is what keeps them apart.
        reference["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    if space.sdk != "docker":
        reference["SYSTEM"] = "spaces"
    if space.sdk == "static":
        return {**passed, **plan, **reference, PUBLIC_VARIABLES: json.dumps(dict(variables))}
    return {**passed, **plan, **reference, **variables, **secrets}


def _memory(bytes_: int) -> str:
    return f"{bytes_ >> 30}Gi" if bytes_ % (1 << 30) == 0 else f"{bytes_ >> 20}Mi"
