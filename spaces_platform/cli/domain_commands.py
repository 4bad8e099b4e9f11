"""Commands about domains of people's own: `spaces domains add | list | check | remove`.

Owns: their options and what they print. Does not own: whose a domain is (`spaces_platform.domains`).
"""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from spaces_platform.cli.console import Failure, emit, result, say, table
from spaces_platform.cli.platform_commands import Json

Space = Annotated[str, typer.Argument(metavar="OWNER/NAME")]
Domain = Annotated[str, typer.Argument(metavar="DOMAIN", help="For example app.example.org.")]


def add_to(app: typer.Typer) -> None:
    domains = typer.Typer(no_args_is_help=True, help="Your own domains for a Space's app.")
    domains.command("add")(add)
    domains.command("list")(list_domains)
    domains.command("check")(check)
    domains.command("remove")(remove)
    app.add_typer(domains, name="domains")


def _path(space: str, domain: str = "", verb: str = "") -> str:
    parts = [
        f"/api/platform/spaces/{space}/domains",
        *([quote(domain, safe="")] if domain else []),
        *([verb] if verb else []),
    ]
    return "/".join(parts)


def add(space: Space, domain: Domain, as_json: Json = False) -> None:
    """Let a domain lead to a Space, once its DNS shows that it is yours."""
    from spaces_platform.cli.client import Client

    client = Client()
    made = client.post(_path(space), {"domain": domain})
    if made["status"] != "active":
        try:
            made = client.post(_path(space, made["domain"], "verify"))
        except Failure as exc:
            # It is added; that its DNS cannot be seen yet is told with the record to make.
            made["problem"] = exc.message
    if as_json:
        emit(made)
    else:
        _explain(made)


def check(space: Space, domain: Domain, as_json: Json = False) -> None:
    """Look at the domain's DNS now. Exit code 1 while it is not verified."""
    from spaces_platform.cli.client import Client

    found = Client().post(_path(space, domain, "verify"))
    if as_json:
        emit(found)
    else:
        _explain(found)
    if found["status"] != "active":
        raise SystemExit(1)


def _explain(domain: dict[str, Any]) -> None:
    if domain["status"] == "active":
        say(f"{domain['shown']} leads to the app: {domain['url']}", style="green")
        return
    proof = domain["proof"]
    say(f"{domain['shown']} waits for two records in its DNS:")
    say(f"  {proof['name']}  {proof['type']}  {proof['value']}")
    say(f"  {domain['domain']}  CNAME  {domain['pointsTo']}  (or A and AAAA with the platform's addresses)")
    if domain["problem"]:
        say(f"  {domain['problem']}", style="yellow")
    say("It is looked up every minute; `spaces domains check` looks at once.", style="dim")


def list_domains(space: Space, as_json: Json = False) -> None:
    """The domains of a Space and what each waits for."""
    from spaces_platform.cli.client import Client

    found = Client().get(_path(space))
    if as_json:
        emit(found)
    else:
        table(found, {"shown": "DOMAIN", "status": "STATUS", "url": "URL", "problem": "PROBLEM"})


def remove(space: Space, domain: Domain, as_json: Json = False) -> None:
    """End a domain at once."""
    from spaces_platform.cli.client import Client

    Client().call("DELETE", _path(space, domain))
    result({"removed": domain, "space": space}, as_json, f"{domain} no longer leads to {space}.")
