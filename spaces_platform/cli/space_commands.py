"""Commands about one Space or all of them: create, deploy, list, logs, open, the lifecycle, variables and secrets.

Owns: their options and what they print. Does not own: pushing and following (`deploy`), or what the platform allows.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spaces_platform.cli.console import USAGE, Failure, confirm, emit, note, result, say, table
from spaces_platform.cli.platform_commands import Json, rows_of, when

if TYPE_CHECKING:
    from spaces_platform.cli.client import Client

Space = Annotated[str | None, typer.Argument(metavar="[OWNER/NAME]", help="The Space; by default that of this folder.")]


def add_to(app: typer.Typer) -> None:
    app.command()(create)
    app.command()(deploy)
    app.command("list")(list_spaces)
    app.command("ls", hidden=True)(list_spaces)
    for command in (ps, info, logs, pause, restart, sleep, wake, rename, delete):
        app.command()(command)
    app.command("open")(open_space)
    for kind, text in (
        ("secrets", "Secrets: write-only values in the app's environment."),
        ("vars", "Variables: public values."),
    ):
        app.add_typer(_settings_app(kind, text), name=kind)


def _client(space: str | None) -> tuple[Client, str]:
    """A client, and the Space that is meant."""
    from spaces_platform.cli.client import Client
    from spaces_platform.cli.deploy import space_of

    client = Client()
    name = space or space_of(Path.cwd(), client.url, client.name())
    if name.count("/") != 1:
        raise Failure(f"{name!r} is not a Space's name.", "Write OWNER/NAME.", code=USAGE)
    return client, name


def create(
    space: Annotated[str, typer.Argument(metavar="OWNER/NAME")],
    sdk: Annotated[str, typer.Option(help="gradio, streamlit, dash, static or docker.")],
    private: Annotated[bool, typer.Option("--private", help="Only you and your organisation see it.")] = False,
    as_json: Json = False,
) -> None:
    """Create an empty Space to push to."""
    from spaces_platform.cli.deploy import ensure_space

    client, space = _client(space)
    if not ensure_space(client, space, sdk, private=private):
        raise Failure(f"{space} exists already.", f"Push to it: git push {client.url}/spaces/{space} HEAD:main")
    url = f"{client.url}/spaces/{space}"
    result(
        {"id": space, "url": url},
        as_json,
        f"{url}\nPush to it: git push {url} HEAD:main, or `spaces deploy --to {space}`.",
    )


def deploy(
    folder: Annotated[Path, typer.Argument(help="The app's folder.")] = Path("."),
    to: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="The Space; by default your name and the folder's.")
    ] = None,
    message: Annotated[
        str, typer.Option("--message", "-m", help="Message of the commit, where one is made.")
    ] = "Deploy",
    sdk: Annotated[str | None, typer.Option(help="Kind of app, where README.md does not say it.")] = None,
    private: Annotated[bool, typer.Option("--private", help="If it is created now: only you see it.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite commits that only the platform has.")] = False,
    no_follow: Annotated[bool, typer.Option("--no-follow", help="Return after the push.")] = False,
    timeout: Annotated[float | None, typer.Option(help="Seconds to follow at most.")] = None,
    as_json: Json = False,
) -> None:
    """Push a folder and follow it until it is live, or until the reason why not is known."""
    from spaces_platform.cli.client import Client
    from spaces_platform.cli.deploy import Wish, show_result
    from spaces_platform.cli.deploy import deploy as do_deploy

    wish = Wish(folder, to, message, sdk, private, force, not no_follow, timeout, as_json)
    try:
        status = do_deploy(Client(), wish)
    except Failure as exc:
        if as_json:
            emit({"event": "result", "ok": False, **exc.as_json()})
            raise SystemExit(exc.code) from exc
        for line in exc.data.get("evidence") or ():
            note(f"  | {line}")
        raise
    show_result(status, as_json)


def list_spaces(
    search: Annotated[str | None, typer.Argument(help="Part of a name or title.")] = None,
    owner: Annotated[str | None, typer.Option(help="Only this owner's.")] = None,
    limit: Annotated[int, typer.Option(help="How many at most.")] = 100,
    as_json: Json = False,
) -> None:
    """The Spaces you may see, newest first."""
    from spaces_platform.cli.client import Client

    client = Client()
    found = client.get("/api/spaces", search=search, author=owner, limit=limit, full="true")
    rows = [_row(item) for item in found]
    if as_json:
        emit(found)
    else:
        table(rows, {"id": "SPACE", "stage": "STAGE", "sdk": "SDK", "visibility": "VISIBILITY", "modified": "CHANGED"})


def _row(item: dict[str, Any]) -> dict[str, Any]:
    stage = (item.get("runtime") or {}).get("stage") or item.get("stage") or ""
    visibility = "private" if item.get("private") else "public"
    changed = when(item.get("lastModified"))
    return {"id": item["id"], "stage": stage, "sdk": item.get("sdk"), "visibility": visibility, "modified": changed}


def ps(as_json: Json = False) -> None:
    """Apps that run, start or are built now."""
    from spaces_platform.cli.client import Client

    client = Client()
    resting = ("SLEEPING", "PAUSED", "NO_APP_FILE", "CONFIG_ERROR", "BUILD_ERROR", "RUNTIME_ERROR")
    found = [row for row in map(_row, client.get("/api/spaces", limit=500, full="true")) if row["stage"] not in resting]
    details = [client.get(f"/api/platform/spaces/{row['id']}") for row in found]
    if as_json:
        emit(details)
        return
    rows = [
        {
            "name": d["name"], "stage": d["stage"], "url": d["urls"]["browser"], "requests": d["traffic"]["inFlight"],
            "step": (d.get("progress") or {}).get("text"),
        }
        for d in details
    ]  # fmt: skip
    table(rows, {"name": "SPACE", "stage": "STAGE", "url": "URL", "requests": "REQUESTS", "step": "STEP"})


def info(space: Space = None, as_json: Json = False) -> None:
    """Stage, address, commit and settings of one Space."""
    client, space = _client(space)
    status = client.get(f"/api/platform/spaces/{space}")
    if as_json:
        emit(status)
        return
    say(
        f"{status['name']}: {status['stage']}" + (f" ({status['reason']})" if status.get("reason") else ""),
        style="bold",
    )
    if status.get("message"):
        say(f"  {status['message']}")
    for line in status.get("evidence") or ():
        say(f"  | {line}", style="dim")
    urls = status["urls"]
    for title, value in (
        ("url", urls["browser"]), ("direct", urls.get("direct")), ("page", status["page"]), ("git", status["gitUrl"]),
        ("head", status["head"]), ("serving", status.get("servingCommit")), ("sdk", status["sdk"]),
        ("visibility", status["visibility"]), ("storage", status["storage"]), ("sleep after", status["sleepAfter"]),
    ):  # fmt: skip
        say(f"  {title:<12} {'-' if value is None else value}")


def logs(
    space: Space = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as new lines come.")] = False,
    build: Annotated[bool, typer.Option("--build", help="Of the newest build.")] = False,
    run: Annotated[bool, typer.Option("--run", help="Of the app that runs.")] = False,
    as_json: Json = False,
) -> None:
    """What the app printed, or its build; of what is going on now by default."""
    if build and run:
        raise Failure("--build and --run exclude each other.", code=USAGE)
    client, space = _client(space)
    seen: dict[str, int] = {}
    while True:
        status = client.get(f"/api/platform/spaces/{space}")
        path = _log_path(status, "build" if build else "deployment" if run else None)
        done = True
        if path is not None:
            answer = client.get(f"/api/platform/spaces/{space}/{path}", after=seen.get(path, 0))
            done = bool(answer["done"])
            for line in answer["lines"]:
                seen[path] = int(line["n"])
                result({**line, "of": path.rpartition("/")[0]}, as_json, line["text"])
        elif not follow:
            raise Failure(f"{space} has no such log yet; its stage is {status['stage']}.", "Wait for it with -f.")
        if not follow or (done and build):
            return
        time.sleep(0.5)


def _log_path(status: dict[str, Any], kind: str | None) -> str | None:
    """Which log is meant: the one asked for, else that of what goes on now."""
    newest, running = status.get("build"), status.get("deployment")
    if kind is None:
        about_build = newest and (
            newest["status"] in ("QUEUED", "RUNNING") or status["stage"] == "BUILD_ERROR" or not running
        )
        kind = "build" if about_build else "deployment"
    about = status.get(kind)
    return f"{kind}s/{about['id']}/logs" if about else None


def open_space(
    space: Space = None,
    print_only: Annotated[bool, typer.Option("--print", help="Print the link instead of opening a browser.")] = False,
    as_json: Json = False,
) -> None:
    """Open the app's page in the browser, signed in by a link that works once."""
    client, space = _client(space)
    status = client.get(f"/api/platform/spaces/{space}")
    link = client.post("/api/platform/sign-in-link", {"next": f"/spaces/{status['name']}"})["url"]
    if as_json or print_only:
        result({"url": link}, as_json, link)
        return
    import webbrowser

    if not webbrowser.open(link):
        note("No browser could be started; open this link within a minute:")
        say(link)


def pause(space: Space = None, as_json: Json = False) -> None:
    """Stop the app until it is restarted; visits do not wake it."""
    _act(space, "pause", "/api/spaces/{}/pause", "Paused {}.", as_json)


def restart(
    space: Space = None,
    factory: Annotated[bool, typer.Option("--factory", help="Build it anew first, without anything kept.")] = False,
    as_json: Json = False,
) -> None:
    """Start the app anew; also ends a pause."""
    path = "/api/spaces/{}/restart" + ("?factory=true" if factory else "")
    _act(space, "restart", path, "Restarting {}. See how it goes: spaces logs -f {}", as_json)


def sleep(space: Space = None, as_json: Json = False) -> None:
    """Put the app to sleep now; the next visit wakes it."""
    _act(space, "sleep", "/api/platform/spaces/{}/sleep", "{} goes to sleep.", as_json)


def wake(space: Space = None, as_json: Json = False) -> None:
    """Wake the app, as a visit does."""
    _act(space, "wake", "/api/platform/spaces/{}/wake", "{} wakes up.", as_json)


def _act(space: str | None, verb: str, path: str, said: str, as_json: bool) -> None:
    client, space = _client(space)
    client.post(path.format(space))
    if as_json:
        emit({"space": space, "did": verb, "stage": client.get(f"/api/platform/spaces/{space}")["stage"]})
    else:
        say(said.replace("{}", space))


def rename(
    space: Annotated[str, typer.Argument(metavar="OWNER/NAME")],
    to: Annotated[str, typer.Argument(metavar="OWNER/NEW-NAME")],
    as_json: Json = False,
) -> None:
    """Give a Space another name or owner; the old address redirects."""
    client, space = _client(space)
    client.post("/api/repos/move", {"fromRepo": space, "toRepo": to, "type": "space"})
    result({"from": space, "to": to}, as_json, f"{space} is now {to}; the old address redirects.")


def delete(
    space: Annotated[str, typer.Argument(metavar="OWNER/NAME")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Delete a Space: its app, repository, volume, secrets and logs. This cannot be undone."""
    client, space = _client(space)
    client.get(f"/api/platform/spaces/{space}")
    confirm(f"Delete {space} with its repository, volume, secrets and logs?", yes or as_json)
    owner, name = space.split("/")
    client.call("DELETE", "/api/repos/delete", json={"type": "space", "organization": owner, "name": name})
    result({"deleted": space}, as_json, f"Deleted {space}.")


# --- variables and secrets -----------------------------------------------------------------------------------------
def _settings_app(kind: str, text: str) -> typer.Typer:
    wire = "secrets" if kind == "secrets" else "variables"
    app = typer.Typer(no_args_is_help=True, help=text)

    @app.command("set")
    def put(
        values: Annotated[
            list[str] | None, typer.Argument(metavar="KEY=VALUE…", help="KEY alone reads its value from stdin.")
        ] = None,
        space: Annotated[str | None, typer.Option("--space", metavar="OWNER/NAME")] = None,
        file: Annotated[Path | None, typer.Option("--file", help="Lines of KEY=VALUE.")] = None,
        as_json: Json = False,
    ) -> None:
        """Set one or more; the app restarts with them."""
        client, name = _client(space)
        pairs = parse_pairs(values or (), file.read_text() if file else "")
        for key, value in pairs.items():
            client.post(f"/api/spaces/{name}/{wire}", {"key": key, "value": value})
        result({"space": name, "set": list(pairs)}, as_json, f"Set {', '.join(pairs)} of {name}.")

    @app.command("list")
    def show(space: Space = None, as_json: Json = False) -> None:
        """Names, and the values of variables; a secret's value is never shown."""
        client, name = _client(space)
        found = client.get(f"/api/spaces/{name}/{wire}")
        items = list(found.values()) if isinstance(found, dict) and wire not in found else rows_of(found, wire)
        if as_json:
            emit(items)
        else:
            columns = {"key": "KEY", "description": "DESCRIPTION", "updatedAt": "CHANGED"}
            table(items, columns if kind == "secrets" else {"key": "KEY", "value": "VALUE", "updatedAt": "CHANGED"})

    @app.command("unset")
    def unset(
        keys: Annotated[list[str], typer.Argument(metavar="KEY…")],
        space: Annotated[str | None, typer.Option("--space", metavar="OWNER/NAME")] = None,
        as_json: Json = False,
    ) -> None:
        """Remove one or more; the app restarts without them."""
        client, name = _client(space)
        for key in keys:
            client.call("DELETE", f"/api/spaces/{name}/{wire}", json={"key": key})
        result({"space": name, "unset": keys}, as_json, f"Removed {', '.join(keys)} of {name}.")

    return app


def parse_pairs(values: Any, text: str) -> dict[str, str]:
    """KEY=VALUE words and lines; one KEY alone takes what stdin says. Raises Failure."""
    pairs: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        bare = line.strip().removeprefix("export ").strip()
        if not bare or bare.startswith("#"):
            continue
        key, equals, value = bare.partition("=")
        if not equals:
            raise Failure(f"Line {number} of the file is not KEY=VALUE.", code=USAGE)
        value = value.strip()
        quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
        pairs[key.strip()] = value[1:-1] if quoted else value
    for word in values:
        key, equals, value = word.partition("=")
        if not equals:
            if len(values) > 1:
                raise Failure(f"{word!r} is not KEY=VALUE.", "Only a KEY that stands alone reads stdin.", code=USAGE)
            value = sys.stdin.read().removesuffix("\n")
        pairs[key] = value
    if not pairs:
        raise Failure("Nothing to set.", "Give KEY=VALUE, KEY with its value on stdin, or --file.", code=USAGE)
    return pairs
