"""Commands about hardware and who may have how much: `spaces hardware list | set | gpus`, `spaces quota list | set`.

Owns: their options and what they print. Does not own: what exists (`hardware`), or who gets it (`gpus`).
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from spaces_platform.cli.console import USAGE, Failure, emit, result, say, table
from spaces_platform.cli.platform_commands import Json, when


def add_to(app: typer.Typer) -> None:
    hardware = typer.Typer(no_args_is_help=True, help="Hardware that Spaces run on.")
    hardware.command("list")(list_hardware)
    hardware.command("set")(set_hardware)
    hardware.command("gpus")(list_gpus)
    app.add_typer(hardware, name="hardware")
    quota = typer.Typer(no_args_is_help=True, help="How many GPUs an owner may use at once (for admins).")
    quota.command("list")(list_quotas)
    quota.command("set")(set_quota)
    app.add_typer(quota, name="quota")


def list_hardware(as_json: Json = False) -> None:
    """The flavors that exist on this platform."""
    from spaces_platform.cli.client import Client

    found = Client().get("/api/spaces/hardware")
    if as_json:
        emit(found)
        return
    rows = [{**flavor, "gpu": _gpu(flavor.get("accelerator"))} for flavor in found]
    table(rows, {"name": "FLAVOR", "cpu": "CPU", "ram": "MEMORY", "gpu": "GPU"})


def _gpu(accelerator: dict[str, Any] | None) -> str:
    if accelerator is None:
        return "-"
    return f"{accelerator['quantity']} x {accelerator['model']}, {accelerator['vram']}"


def set_hardware(
    space: Annotated[str, typer.Argument(metavar="OWNER/NAME")],
    flavor: Annotated[str, typer.Argument(metavar="FLAVOR", help="See `spaces hardware list`.")],
    as_json: Json = False,
) -> None:
    """Ask for hardware; the app restarts on it as soon as it is free."""
    from spaces_platform.cli.client import Client

    client = Client()
    runtime = client.post(f"/api/spaces/{space}/hardware", {"flavor": flavor})
    if as_json:
        emit(runtime)
    else:
        current = runtime["hardware"]["current"] or "nothing"
        say(f"{space} runs on {current} and has asked for {runtime['hardware']['requested']}.")


def list_gpus(as_json: Json = False) -> None:
    """Every GPU and which Space has it (for admins)."""
    from spaces_platform.cli.client import Client

    found = Client().get("/api/platform/admin/gpus")
    if as_json:
        emit(found)
        return
    rows = [{**gpu, "since": when(gpu["since"])} for gpu in found]
    table(rows, {"id": "GPU", "model": "MODEL", "space": "SPACE", "since": "SINCE"})


def list_quotas(as_json: Json = False) -> None:
    """Owners that have a quota of their own or hold GPUs now."""
    from spaces_platform.cli.client import Client

    found = Client().get("/api/platform/admin/quotas")
    if as_json:
        emit(found)
        return
    rows = [{**quota, "gpus": _limit(quota["gpus"])} for quota in found["quotas"]]
    table(rows, {"owner": "OWNER", "gpus": "GPUS AT ONCE", "used": "IN USE"})
    say(f"Everybody else: {_limit(found['default'])}.", style="dim")


def set_quota(
    owner: Annotated[str, typer.Argument(metavar="OWNER", help="A person or an organisation.")],
    gpus: Annotated[int | None, typer.Option("--gpus", metavar="N", help="GPUs at once; -1: no limit.")] = None,
    default: Annotated[
        bool, typer.Option("--default", help="What owners without a quota of their own may use.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Set how many GPUs an owner may use at once. What runs goes on."""
    from spaces_platform.cli.client import Client

    if (gpus is None) is not default:
        raise Failure("Say how many GPUs, or that the default holds again.", "Use --gpus N or --default.", code=USAGE)
    made = Client().call("PUT", "/api/platform/admin/quotas", json={"owner": owner, "gpus": gpus})
    result(
        made, as_json, f"{made['owner']} may use {_limit(made['gpus'])} of the GPUs at once, and uses {made['used']}."
    )


def _limit(gpus: int) -> str:
    return "any number" if gpus < 0 else str(gpus)
