"""Commands about a Space's persistent volume: `spaces volume show | request | snapshot | list | restore | delete`.

Owns: their options and what they print. Does not own: what a volume may be asked for (`spaces_platform.storage`).
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from spaces_platform.cli.console import Failure, confirm, emit, result, say, table
from spaces_platform.cli.platform_commands import Json, when

Space = Annotated[str, typer.Argument(metavar="OWNER/NAME")]
COPY_SECONDS = 3600.0
"""How long a copy of a large volume may take."""
ENDING_SECONDS = 30.0
"""How long a paused app may take to end: its requests finish, and it is given time after SIGTERM."""


def add_to(app: typer.Typer) -> None:
    volume = typer.Typer(no_args_is_help=True, help="The persistent volume of a Space, at /data in its container.")
    volume.command("show")(show)
    volume.command("request")(request)
    volume.command("snapshot")(snapshot)
    volume.command("list")(list_snapshots)
    volume.command("restore")(restore)
    volume.command("delete")(delete)
    app.add_typer(volume, name="volume")


def _path(space: str, rest: str = "") -> str:
    return f"/api/platform/spaces/{space}/volume{rest}"


def show(space: Space, as_json: Json = False) -> None:
    """Its size, what it takes of the machine's disk, and what may be asked for."""
    from spaces_platform.cli.client import Client

    found = Client().get(_path(space))
    if as_json:
        emit(found)
        return
    size = found["sizeBytes"]
    if size is None and not found["wantedBytes"]:
        say(f"{space} has no volume; ask for one: spaces volume request {space} small")
    else:
        asked = found["tier"] or "the platform's default"
        say(f"{space} has {_size(found['wantedBytes'] or size)} at {found['mountPath']} ({asked}).")
    if size is None:
        say("  It is made at the next start.")
    else:
        say(f"  {'on disk':<12} {_size(found['usedBytes'])}, snapshots {_size(found['snapshotBytes'])}")
        if size < found["wantedBytes"]:
            say(f"  {'size now':<12} {_size(size)}; it grows by a restart, or else when it is paused and started")
    if found["removing"]:
        say("  It is being deleted: it goes as soon as its app has ended.", style="yellow")
    tiers = ", ".join(f"{name} ({_size(size)})" for name, size in found["tiers"].items()) or "nothing"
    say(f"  {'to ask for':<12} {tiers}", style="dim")


def _size(size: int) -> str:
    return f"{size / (1 << 30):.3g} GB" if size >= 1 << 30 else f"{size / (1 << 20):.3g} MB"


def request(
    space: Space,
    tier: Annotated[str, typer.Argument(metavar="TIER", help="small, medium or large.")],
    as_json: Json = False,
) -> None:
    """Ask for storage, or for more of it; the app restarts, and what the volume holds stays."""
    from spaces_platform.cli.client import Client

    runtime = Client().post(f"/api/spaces/{space}/storage", {"tier": tier})
    result(runtime, as_json, f"{space} has asked for {tier} storage; its app restarts with it at /data.")


def snapshot(space: Space, as_json: Json = False) -> None:
    """Copy the volume as it is now. The app goes on; the oldest of too many snapshots go."""
    from spaces_platform.cli.client import Client

    made = Client().call("POST", _path(space, "/snapshots"), json={}, timeout=COPY_SECONDS)
    result(made, as_json, f"{made['name']}\nPut it back: spaces volume restore {space} {made['name']}")


def list_snapshots(space: Space, as_json: Json = False) -> None:
    """The snapshots of a Space's volume, oldest first."""
    from spaces_platform.cli.client import Client

    found = Client().get(_path(space, "/snapshots"))
    if as_json:
        emit(found)
    else:
        table([{**one, "at": when(one["takenAt"])} for one in found], {"name": "SNAPSHOT", "at": "TAKEN"})


def restore(
    space: Space,
    name: Annotated[str, typer.Argument(metavar="SNAPSHOT", help="See `spaces volume list`.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Put a snapshot in the place of what the volume has now. The Space must be paused."""
    from spaces_platform.cli.client import Client

    client = Client()
    confirm(f"Replace what {space} has in /data now by its snapshot {name}?", yes)
    _once_ended(lambda: client.call("POST", _path(space, f"/snapshots/{name}/restore"), json={}, timeout=COPY_SECONDS))
    result(
        {"space": space, "restored": name},
        as_json,
        f"{space} has {name} in /data again. Start it: spaces restart {space}",
    )


def _once_ended(do: Any) -> Any:
    """Do it as soon as the paused app has ended, which the platform says by 503."""
    deadline = time.monotonic() + ENDING_SECONDS
    while True:
        try:
            return do()
        except Failure as exc:
            if exc.data.get("status") != 503 or time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def delete(
    space: Space,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Delete a Space's volume: all data in it, and every snapshot. Its app restarts. This cannot be undone."""
    from spaces_platform.cli.client import Client

    client = Client()
    found = client.get(_path(space))
    held = f"{_size(found['usedBytes'])} of data and {_size(found['snapshotBytes'])} of snapshots"
    confirm(f"Delete everything that {space} has in /data, {held}? This cannot be undone.", yes)
    runtime = client.call("DELETE", f"/api/spaces/{space}/storage")
    result(runtime, as_json, f"The storage of {space} goes as soon as its app has ended; then the app starts anew.")
