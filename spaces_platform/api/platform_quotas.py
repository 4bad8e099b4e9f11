"""The platform's own API of GPUs and quotas, for admins."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from spaces_platform.api.deps import AdminDep, PlatformDep
from spaces_platform.api.schemas import GpuOut, QuotaIn, QuotaOut, QuotasOut
from spaces_platform.quotas import OwnerQuota

router = APIRouter(prefix="/api/platform/admin", tags=["platform"])


def _out(quota: OwnerQuota) -> dict[str, Any]:
    return {"owner": quota.owner, "gpus": quota.gpus, "used": quota.used, "isDefault": quota.is_default}


@router.get("/quotas", response_model=QuotasOut, summary="Owners that have a quota of their own or hold GPUs")
def quotas(admin: AdminDep, platform: PlatformDep) -> dict[str, Any]:
    found = [_out(quota) for quota in platform.quotas.list(admin)]
    return {"default": platform.settings.gpu_quota, "quotas": found}


@router.put("/quotas", response_model=QuotaOut, summary="Set an owner's GPUs at once; -1: no limit; null: the default")
def set_quota(body: QuotaIn, admin: AdminDep, platform: PlatformDep) -> dict[str, Any]:
    return _out(platform.quotas.set(admin, body.owner, body.gpus))


@router.get("/gpus", response_model=list[GpuOut], summary="Every GPU, and which Space has it")
def gpus(_admin: AdminDep, platform: PlatformDep) -> list[dict[str, Any]]:
    return [
        {
            "id": gpu.id,
            "model": gpu.model,
            "space": f"{space.owner}/{space.name}" if space is not None else None,
            "deployment": lease.deployment_id if lease is not None else None,
            "since": lease.since if lease is not None else None,
        }
        for gpu, lease, space in platform.gpus.holders()
    ]
