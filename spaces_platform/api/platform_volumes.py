"""The platform's own API of a Space's volume: its size, its snapshots. Asking for one is the Hub's."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path

from spaces_platform.api.deps import ActorDep, PlatformDep, WritableSpace
from spaces_platform.api.schemas import Done, SnapshotOut, VolumeOut
from spaces_platform.volumes import Snapshot

router = APIRouter(prefix="/api/platform/spaces/{owner}/{name}/volume", tags=["platform"])
Taken = Annotated[str, Path(max_length=100, description="The snapshot's name.")]


def _out(snapshot: Snapshot) -> dict[str, Any]:
    return {"name": snapshot.name, "takenAt": snapshot.taken_at}


@router.get("", response_model=VolumeOut, summary="The volume: its tier, its size, what it takes")
def volume(space: WritableSpace, actor: ActorDep, platform: PlatformDep) -> dict[str, Any]:
    found = platform.volumes.show(space, actor)
    return {
        "tier": found.tier,
        "mountPath": "/data",
        "wantedBytes": found.wanted,
        "sizeBytes": found.use.size if found.use is not None else None,
        "usedBytes": found.use.used if found.use is not None else 0,
        "snapshotBytes": found.use.snapshots if found.use is not None else 0,
        "removing": found.is_removed,
        "tiers": platform.volumes.storage.tiers(),
    }


@router.get("/snapshots", response_model=list[SnapshotOut], summary="Snapshots, oldest first")
def snapshots(space: WritableSpace, actor: ActorDep, platform: PlatformDep) -> list[dict[str, Any]]:
    return [_out(one) for one in platform.volumes.snapshots(space, actor)]


@router.post("/snapshots", response_model=SnapshotOut, summary="Copy the volume as it is now; the app goes on")
def snapshot(space: WritableSpace, actor: ActorDep, platform: PlatformDep) -> dict[str, Any]:
    return _out(platform.volumes.snapshot(space, actor))


@router.post("/snapshots/{snapshot}/restore", response_model=Done, summary="Put a snapshot back, of a paused Space")
def restore(snapshot: Taken, space: WritableSpace, actor: ActorDep, platform: PlatformDep) -> dict[str, Any]:
    platform.volumes.restore(space, actor, snapshot)
    return {"success": True}
