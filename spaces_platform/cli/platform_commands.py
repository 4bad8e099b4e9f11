"""Commands about the platform itself: up, down, status, demo, login, doctor, users, tokens, run, version.

Owns: their options and what they print. Does not own: running the platform (`supervisor`), or checks (`doctor`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from spaces_platform.cli.console import FAILED, NOT_FOUND, Failure, emit, note, paint, result, say, table

Json = Annotated[bool, typer.Option("--json", help="For scripts: JSON on stdout.")]
Data = Annotated[Path | None, typer.Option("--data", help="The one directory that holds everything. [~/.spaces]")]
Host = Annotated[str | None, typer.Option(help="Address to listen on; 0.0.0.0 opens it to the network. [127.0.0.1]")]
Port = Annotated[int | None, typer.Option(help="The one public port. [7860]")]
PublicUrl = Annotated[
    str | None, typer.Option(help="The platform's address as people type it. [http://localhost:PORT]")
]
AppsDomain = Annotated[str | None, typer.Option(help="Domain below which apps get their host names. [localhost]")]
Mode = Annotated[str | None, typer.Option(help="embedded (processes), or single-host (containers). [embedded]")]
Database = Annotated[str | None, typer.Option(metavar="URL", help="Database. [SQLite in the data directory]")]
Redis = Annotated[str | None, typer.Option(metavar="URL", help="Redis of the build queue, in single-host mode.")]
Docker = Annotated[str | None, typer.Option(metavar="URL", help="Docker engine of single-host mode.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any other setting; see docs/configuration.md.")
]


def add_to(app: typer.Typer) -> None:
    for command in (up, down, status, gateway, demo, login, doctor, run, version):
        app.command()(command)
    tokens = typer.Typer(no_args_is_help=True, help="Access tokens: create, list, revoke.")
    tokens.command("create")(token_create)
    tokens.command("list")(token_list)
    tokens.command("revoke")(token_revoke)
    users = typer.Typer(no_args_is_help=True, help="Accounts of people (for admins).")
    users.command("add")(user_add)
    keys = typer.Typer(no_args_is_help=True, help="The keys that seal secrets (for admins).")
    keys.callback()(lambda: None)
    keys.command("rotate")(keys_rotate)
    app.add_typer(keys, name="keys")
    app.add_typer(tokens, name="tokens")
    app.add_typer(users, name="users")


def settings_from(data: Path | None, given: Mapping[str, Any], extra: list[str] | None) -> Any:
    """Settings from the environment, `--set` and flags, the later ruling. Raises Invalid, Failure."""
    import os

    from spaces_platform.settings import Settings

    environ = dict(os.environ)
    for pair in extra or ():
        name, equals, value = pair.partition("=")
        if not equals:
            raise Failure(f"--set {pair!r} is not NAME=VALUE.", code=2)
        environ[f"SPACES_{name.strip().upper().replace('-', '_')}"] = value
    settings = Settings.load(environ, data=data, **given)
    import dataclasses

    return dataclasses.replace(settings, data=settings.data.expanduser().resolve())


def up(
    data: Data = None,
    host: Host = None,
    port: Port = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when the platform answers.")] = False,
    public_url: PublicUrl = None,
    apps_domain: AppsDomain = None,
    mode: Mode = None,
    database: Database = None,
    redis: Redis = None,
    docker: Docker = None,
    extra: Set = None,
    as_json: Json = False,
) -> None:
    """Start the platform: one directory, one port; by default nothing beside Python and git is needed."""
    from spaces_platform import supervisor

    given = {
        "host": host, "port": port, "public_url": public_url, "apps_domain": apps_domain,
        "mode": mode, "database": database, "redis": redis, "docker": docker,
    }  # fmt: skip
    settings = settings_from(data, given, extra)
    if detach:
        show_started(supervisor.detach(settings), as_json, detached=True)
        return
    supervisor.Supervisor(settings).run(lambda state: show_started(state, as_json, detached=False))
    note("Stopped.")


def show_started(state: Mapping[str, Any], as_json: bool, *, detached: bool) -> None:
    if as_json:
        emit(state)
        return
    say(f"{paint('Spaces runs at', 'green')} {state['url']}")
    say(f"Admin token: in {state['admin_token']} (only you can read it)")
    say(f"Data: {state['data']}")
    say(f"Stop it with `spaces down --data {state['data']}`." if detached else "Ctrl-C stops it, apps included.")


def down(data: Data = None, as_json: Json = False) -> None:
    """Stop the platform and all apps it runs. They are asleep when it starts again."""
    from spaces_platform import supervisor
    from spaces_platform.cli.client import data_directory

    where = data_directory(data)
    stopped = supervisor.down(where)
    result(
        {"stopped": stopped, "data": str(where)}, as_json, "Stopped." if stopped else f"No platform runs on {where}."
    )


def status(data: Data = None, as_json: Json = False) -> None:
    """Whether the platform on this machine runs, and what it does. Exit code 1 where it does not."""
    from spaces_platform.cli.client import data_directory
    from spaces_platform.cli.local_status import local_status

    value = local_status(data_directory(data))
    if as_json:
        emit(value)
    elif not value["running"]:
        say(f"No platform runs on {value['data']}.")
    else:
        healthy = paint("answers", "green") if value["ready"] else paint("does not answer", "red")
        say(f"{value['url']} {healthy}; up {value['up']}, pid {value['pid']}, data {value['data']}")
        for name, process in value["processes"].items():
            pid, memory = process["pid"] or "-", process["memory_mb"]
            say(f"  {name}: pid {pid}, {memory} MB, restarted {process['restarts']} times")
        if value["stages"]:
            say("  Spaces: " + ", ".join(f"{count} {stage}" for stage, count in sorted(value["stages"].items())))
    if not (value["running"] and value["ready"]):
        raise SystemExit(FAILED)


def gateway(data: Data = None, host: Host = None, port: Port = None, extra: Set = None) -> None:
    """Run the gateway alone, where each process has its own container; `spaces up` runs one by itself."""
    from spaces_platform.supervisor import become_gateway

    become_gateway(settings_from(data, {"host": host, "port": port}, extra))


def demo(
    example: Annotated[Path, typer.Argument(help="Folder of the app to push.")] = Path("examples/gradio-hello"),
    data: Data = None,
    host: Host = None,
    port: Port = None,
    extra: Set = None,
) -> None:
    """Start the platform, push an example into it, and keep serving. What `make run` does."""
    from spaces_platform.cli.demo import run_demo

    settings = settings_from(data, {"host": host, "port": port}, extra)
    run_demo(settings, example)


def login(
    url: Annotated[
        str | None, typer.Argument(help="Address of the platform; without it, the one on this machine.")
    ] = None,
    token: Annotated[
        str | None, typer.Option(help="Access token; `-` reads it from stdin. Asked for where missing.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Keep address and token of a platform, for the commands that follow."""
    from spaces_platform.cli.client import Client, SignIn, save_config, sign_in

    if url is None:
        found = sign_in()
        url, token = found.url, token or found.token
    url = url.rstrip("/")
    if "://" not in url:
        url = ("http://" if url.startswith(("localhost", "127.")) else "https://") + url
    if token == "-" or (token is None and not sys.stdin.isatty()):
        token = sys.stdin.readline().strip()
    if token is None:
        import getpass

        token = getpass.getpass(f"Access token for {url} (made on your settings page): ").strip()
    if not token:
        raise Failure("No token was given.", "Pass it on stdin, or with --token.", code=2)
    name = Client(SignIn(url, token, "this command")).name()
    path = save_config(url, token)
    result({"url": url, "user": name, "config": str(path)}, as_json, f"Signed in to {url} as {name}; kept in {path}.")


def doctor(
    data: Data = None,
    mode: Annotated[str | None, typer.Option(help="The mode to check for: embedded or single-host.")] = None,
    extra: Set = None,
    as_json: Json = False,
) -> None:
    """Check this machine: what works, what does not, and the fix for each."""
    from spaces_platform.cli.doctor import check_all, show

    checks = check_all(settings_from(data, {"mode": mode}, extra))
    if as_json:
        emit(
            {"ok": not any(check.level == "fail" for check in checks), "checks": [check.as_json() for check in checks]}
        )
    else:
        show(checks)
    if any(check.level == "fail" for check in checks):
        raise SystemExit(FAILED)


def run(
    folder: Annotated[Path, typer.Argument(help="The app's folder.")] = Path("."),
    port: Annotated[int, typer.Option(help="Port to serve on; 0: any free one.")] = 0,
    docker: Annotated[bool, typer.Option("--docker", help="In a container, as a platform with Docker would.")] = False,
) -> None:
    """Build and start a folder's app right here, as the platform would, without a platform."""
    if not docker:
        from spaces_platform.cli.run_local import run_folder

        raise SystemExit(run_folder(folder, port))
    try:
        from spaces_platform.cli import run_docker
    except ModuleNotFoundError as exc:
        raise Failure(f"--docker needs the Python package {exc.name}.", "Install it: make single-host.") from exc
    raise SystemExit(run_docker.run_folder(folder, port))


def version(as_json: Json = False) -> None:
    """The version of this program."""
    from spaces_platform import __version__

    result({"version": __version__}, as_json, __version__)


def token_create(
    name: Annotated[str, typer.Argument(help="A name for you to know it by.")],
    role: Annotated[str, typer.Option(help="read, write or fineGrained.")] = "write",
    expires: Annotated[int | None, typer.Option(help="Days until it expires; never by default.")] = None,
    as_json: Json = False,
) -> None:
    """Make an access token. It is shown once."""
    from spaces_platform.cli.client import Client

    body: dict[str, Any] = {"name": name, "role": role}
    if expires is not None:
        body["expiresIn"] = expires * 86400
    made = Client().post("/api/platform/tokens", body)
    result(made, as_json, made["token"])


def token_list(as_json: Json = False) -> None:
    """Your tokens, without their secret part."""
    from spaces_platform.cli.client import Client

    found = rows_of(Client().get("/api/platform/tokens"), "tokens")
    if as_json:
        emit(found)
    else:
        shown = [{**t, "created": when(t.get("createdAt")), "expires": when(t.get("expiresAt"))} for t in found]
        table(shown, {"id": "ID", "name": "NAME", "role": "ROLE", "created": "CREATED", "expires": "EXPIRES"})


def token_revoke(token: Annotated[str, typer.Argument(help="Its id or its name.")], as_json: Json = False) -> None:
    """Revoke a token at once."""
    from spaces_platform.cli.client import Client

    client = Client()
    matches = [t for t in rows_of(client.get("/api/platform/tokens"), "tokens") if token in (str(t["id"]), t["name"])]
    if not matches:
        raise Failure(f"There is no token {token!r}.", "See them with `spaces tokens list`.", code=NOT_FOUND)
    if len(matches) > 1:
        raise Failure(f"{len(matches)} tokens are named {token!r}.", "Name one by its id.")
    client.call("DELETE", f"/api/platform/tokens/{matches[0]['id']}")
    result({"revoked": matches[0]["id"]}, as_json, f"Revoked {matches[0]['name']}.")


def user_add(
    name: Annotated[str, typer.Argument(help="The account's name.")],
    email: Annotated[str | None, typer.Option()] = None,
    admin: Annotated[bool, typer.Option("--admin", help="May do everything on this platform.")] = False,
    password_stdin: Annotated[bool, typer.Option("--password-stdin", help="Read a password from stdin.")] = False,
    as_json: Json = False,
) -> None:
    """Add a person."""
    from spaces_platform.cli.client import Client

    body: dict[str, Any] = {"name": name, "admin": admin}
    if email:
        body["email"] = email
    if password_stdin:
        body["password"] = sys.stdin.readline().rstrip("\n")
    made = Client().post("/api/platform/users", body)
    result(made, as_json, f"Added {name}.")


def keys_rotate(as_json: Json = False) -> None:
    """Seal every secret with a fresh key, and forget the older ones."""
    from spaces_platform.cli.client import Client

    made = Client().post("/api/platform/keys/rotate", {})
    result(made, as_json, f"Done: {made['resealed']} secrets are sealed with a fresh key.")


def rows_of(answer: Any, key: str) -> list[dict[str, Any]]:
    """The rows of a list answer, bare or under a key."""
    return list(answer[key] if isinstance(answer, dict) else answer)


def when(at: Any) -> str:
    """A moment for people, from seconds or ISO 8601."""
    if at is None:
        return ""
    if isinstance(at, int | float):
        return time.strftime("%Y-%m-%d %H:%M", time.gmtime(at))
    return str(at)[:16].replace("T", " ")
