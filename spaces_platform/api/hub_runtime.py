"""What a Space runs as: stage, hardware, storage, sleep time, pause, restart, variables and secrets (hub-api 4)."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from spaces_platform.accounts import Actor, access
from spaces_platform.api import views
from spaces_platform.api.deps import ActorDep, OwnSpace, PlatformDep, ReadableSpace, UserDep, WritableSpace
from spaces_platform.api.schemas import (
    Done,
    HardwareIn,
    HostOut,
    KeyIn,
    Open,
    Runtime,
    SettingIn,
    SleepTimeIn,
    StorageIn,
)
from spaces_platform.api.signing import SECONDS, sign
from spaces_platform.errors import Invalid
from spaces_platform.hardware import Flavor
from spaces_platform.models import Secret, Space, Variable
from spaces_platform.space_settings import Setting

router = APIRouter(tags=["runtime"])
AT = "/api/spaces/{owner}/{name}"


def _runtime(platform: Any, space: Space, actor: Actor) -> dict[str, Any]:
    return views.runtime(views.load_one(platform, space), access(actor, space), platform.settings)


@router.get("/api/spaces/hardware", response_model=list[Open], summary="The hardware this platform has")
def flavors(platform: PlatformDep) -> list[dict[str, Any]]:
    found = []
    for flavor in platform.hardware.flavors():
        limits = platform.hardware.resources(flavor.name)
        found.append(
            {
                "name": flavor.name,
                "prettyName": flavor.pretty_name,
                "cpu": f"{limits.cpus:g} vCPU",
                "ram": f"{round(limits.memory / (1 << 30), 1):g} GB",
                "ephemeralStorage": f"{limits.disk / (1 << 30):g} GB",
                "accelerator": _accelerator(flavor),
                "unitCostMicroUSD": 0,
                "unitCostUSD": 0.0,
                "unitLabel": "hour",
            }
        )
    return found


def _accelerator(flavor: Flavor) -> dict[str, Any] | None:
    """JobHardwareInfo's (hub-api 4.2)."""
    if not flavor.gpus:
        return None
    return {
        "type": "gpu",
        "model": flavor.gpu,
        "quantity": str(flavor.gpus),
        "vram": f"{flavor.vram * flavor.gpus / (1 << 30):g} GB",
        "manufacturer": "Nvidia",
    }


@router.get("/api/spaces/templates", response_model=Open, summary="Templates for new Spaces")
async def templates() -> dict[str, Any]:
    return {"templates": []}


@router.get("/api/spaces/zero-gpu/quota", response_model=Open, summary="There is no shared GPU here")
async def zero_gpu(_user: UserDep) -> dict[str, Any]:
    return {"base": 0, "current": 0, "resetsAt": None, "overquotaUsed": 0}


@router.get(AT + "/runtime", response_model=Runtime, summary="Stage and hardware")
def runtime(space: ReadableSpace, actor: ActorDep, platform: PlatformDep) -> dict[str, Any]:
    return _runtime(platform, space, actor)


@router.get(AT + "/host", response_model=HostOut, summary="Where the app answers")
def host(space: ReadableSpace, platform: PlatformDep) -> dict[str, Any]:
    view = views.load_one(platform, space)
    return {
        "host": views.host_url(view, platform.settings),
        "subdomain": views.subdomain(view, platform.settings),
    }


@router.get(AT + "/jwt", response_model=Open, summary="A signed word for `?__sign=` of a private app")
def signed_word(space: ReadableSpace, user: UserDep, platform: PlatformDep) -> dict[str, Any]:
    now = platform.clock.now().timestamp()
    return {"token": sign(platform.vault, user.id or 0, space.id or 0, now), "exp": int(now + SECONDS)}


@router.post(AT + "/restart", response_model=Runtime, summary="Start anew; `factory` builds anew as well")
def restart(space: WritableSpace, actor: ActorDep, platform: PlatformDep, factory: bool = False) -> dict[str, Any]:
    return _runtime(platform, platform.spaces.restart(space, actor, factory=factory), actor)


@router.post(AT + "/pause", response_model=Runtime, summary="Stop until somebody restarts it; visits do not wake it")
def pause(space: WritableSpace, actor: ActorDep, platform: PlatformDep) -> dict[str, Any]:
    return _runtime(platform, platform.spaces.pause(space, actor), actor)


@router.post(AT + "/hardware", response_model=Runtime, summary="Ask for hardware")
def set_hardware(body: HardwareIn, space: WritableSpace, actor: ActorDep, platform: PlatformDep) -> dict[str, Any]:
    changed = platform.space_settings.set_hardware(space, actor, body.flavor, body.sleepTimeSeconds)
    return _runtime(platform, changed, actor)


@router.post(AT + "/storage", response_model=Runtime, summary="Ask for a persistent volume; a larger one grows it")
def request_storage(body: StorageIn, space: WritableSpace, actor: ActorDep, platform: PlatformDep) -> dict[str, Any]:
    return _runtime(platform, platform.space_settings.set_storage(space, actor, body.tier), actor)


@router.delete(AT + "/storage", response_model=Runtime, summary="Remove the volume, all data and snapshots in it")
def delete_storage(space: OwnSpace, actor: ActorDep, platform: PlatformDep) -> dict[str, Any]:
    return _runtime(platform, platform.space_settings.delete_storage(space, actor), actor)


@router.post(AT + "/sleeptime", response_model=Runtime, summary="Seconds without visitors until it sleeps; -1: never")
def set_sleep_time(body: SleepTimeIn, space: WritableSpace, actor: ActorDep, platform: PlatformDep) -> dict[str, Any]:
    return _runtime(platform, platform.space_settings.set_sleep_after(space, actor, body.seconds), actor)


@router.post(AT + "/dev-mode", response_model=Runtime, summary="Not available here")
def dev_mode(_space: WritableSpace) -> dict[str, Any]:
    raise Invalid("Dev mode is not available on this platform; push a commit, which deploys in seconds.")


# --- variables and secrets ----------------------------------------------------------------------------------
def _variables(platform: Any, space: Space) -> dict[str, Any]:
    return {
        v.key: {
            "key": v.key,
            "value": v.value,
            "description": v.description or None,
            "updatedAt": views.stamp(v.updated_at),
        }
        for v in platform.space_settings.variables(space)
    }


@router.get(AT + "/variables", response_model=dict[str, Open], summary="Public variables")
def variables(space: WritableSpace, platform: PlatformDep) -> dict[str, Any]:
    return _variables(platform, space)


@router.post(AT + "/variables", response_model=dict[str, Open], summary="Set a variable; restarts the app")
def set_variable(body: SettingIn, space: WritableSpace, actor: ActorDep, platform: PlatformDep) -> dict[str, Any]:
    platform.space_settings.set_variables(space, actor, [Setting(body.key, body.value, body.description or "")])
    return _variables(platform, space)


@router.delete(
    AT + "/variables", response_model=dict[str, Open], summary="Delete a variable; deleting the absent is success"
)
def delete_variable(body: KeyIn, space: WritableSpace, actor: ActorDep, platform: PlatformDep) -> dict[str, Any]:
    platform.space_settings.delete_setting(space, actor, Variable, body.key)
    return _variables(platform, space)


@router.get(AT + "/secrets", response_model=dict[str, Open], summary="Names of secrets; never their values")
def secrets(space: WritableSpace, actor: ActorDep, platform: PlatformDep) -> dict[str, Any]:
    return {
        s.key: {"key": s.key, "description": s.description or None, "updatedAt": views.stamp(s.updated_at)}
        for s in platform.space_settings.secrets(space, actor)
    }


@router.post(AT + "/secrets", response_model=Done, summary="Set a secret; restarts the app")
def set_secret(body: SettingIn, space: WritableSpace, actor: ActorDep, platform: PlatformDep) -> dict[str, Any]:
    platform.space_settings.set_secrets(space, actor, [Setting(body.key, body.value, body.description or "")])
    return {}


@router.delete(AT + "/secrets", response_model=Done, summary="Delete a secret; deleting the absent is success")
def delete_secret(body: KeyIn, space: WritableSpace, actor: ActorDep, platform: PlatformDep) -> dict[str, Any]:
    platform.space_settings.delete_setting(space, actor, Secret, body.key)
    return {}


@router.get(AT + "/auth-check/write", response_model=Done, summary="Whether a Space may be written to")
async def auth_check_write(space: WritableSpace) -> dict[str, Any]:
    return {}
