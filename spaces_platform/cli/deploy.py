"""`spaces deploy`: a folder becomes a running app, or a reason why not.

Owns: which Space a folder belongs to, creating it, its missing front matter, and the order push > follow > result. Does
not own: git (`push`), the verdict (`follow`), or guessing (`folder`).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from spaces_platform.cli import folder as folders
from spaces_platform.cli.client import Client
from spaces_platform.cli.console import INTERRUPTED, USAGE, Failure, emit, note, paint, say
from spaces_platform.cli.follow import follow, make_view, retry
from spaces_platform.cli.push import Target, git_output, push_folder


@dataclass(frozen=True, slots=True)
class Wish:
    """What the command line asked for."""

    folder: Path
    to: str | None = None
    message: str = "Deploy"
    sdk: str | None = None
    private: bool = False
    force: bool = False
    watch: bool = True
    timeout: float | None = None
    as_json: bool = False


def deploy(client: Client, wish: Wish) -> Mapping[str, Any]:
    """Push, follow, and return the Space's status once it serves. Raises Failure."""
    if not wish.folder.is_dir():
        raise Failure(f"{wish.folder} is not a folder.", "Name the folder that holds your app.", code=USAGE)
    user = client.name()
    space = wish.to or space_of(wish.folder, client.url, user)
    sdk = ensure_front_matter(wish.folder, wish.sdk)
    ensure_space(client, space, sdk, private=wish.private)
    pushed = push_folder(
        wish.folder, Target(f"{client.url}/spaces/{space}", user, client.who.token), message=wish.message,
        force=wish.force, remote_line=lambda line: _show_remote(line, wish.as_json), note=note,
    )  # fmt: skip
    if wish.as_json:
        emit({"event": "pushed", "space": space, "commit": pushed.commit, "changed": pushed.changed})
    elif not pushed.changed:
        say("Nothing has changed since the last push.")
    status: Mapping[str, Any] = client.get(f"/api/platform/spaces/{space}")
    old = retry(client, space, status) if not pushed.changed else frozenset()
    if not wish.watch:
        return status
    view = make_view(wish.as_json)
    live: Mapping[str, Any] | None = None
    try:
        live = follow(client, space, pushed.commit, view, timeout=wish.timeout, old=old)
        return live
    except KeyboardInterrupt:
        fix = f"See how it goes: spaces logs -f {space}"
        raise Failure("Not followed any longer; the deploy goes on.", fix, code=INTERRUPTED) from None
    finally:
        view.close(ok=live is not None)


def show_result(status: Mapping[str, Any], as_json: bool) -> None:
    url = status["urls"]["browser"]
    if as_json:
        told = {"url": url, "urls": status["urls"], "commit": status["head"], "stage": status["stage"]}
        emit({"event": "result", "ok": True, **told, "space": status["name"], "page": status["page"]})
        return
    say(f"{paint('Live:', 'green')} {url}")
    if status["urls"].get("direct"):
        say(f"      {status['urls']['direct']} (for programs on this machine)")
    say(f"Page: {status['page']}")


def space_of(folder: Path, url: str, user: str) -> str:
    """The Space of a folder: by a git remote that points to this platform, else `user/folder-name`."""
    is_root = git_output(folder, "rev-parse", "--show-prefix") == ""
    for line in git_output(folder, "remote", "-v").splitlines() if is_root else ():
        found = space_of_remote(line.split("\t", 1)[-1].split(" ", 1)[0], url)
        if found:
            return found
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", folder.resolve().name)
    name = re.sub(r"[-.]{2,}", "-", name).strip("-.") or "app"
    return f"{user}/{name}"


def space_of_remote(remote: str, url: str) -> str | None:
    """`owner/name` of a git remote's address on the platform at `url`; None for any other. Pure."""
    ours, theirs = urlsplit(url), urlsplit(remote)
    if (theirs.hostname, theirs.port) != (ours.hostname, ours.port):
        return None
    found = re.fullmatch(r"/spaces/([^/]+/[^/]+?)(?:\.git)?/?", theirs.path)
    return found[1] if found else None


def ensure_front_matter(folder: Path, sdk: str | None) -> str | None:
    """The SDK to create a Space with; writes the README's front matter where it is missing. Raises Failure."""
    readme = folders.read_readme(folder)
    if folders.has_front_matter(readme):
        found = re.search(r"^sdk:\s*['\"]?(\w+)", readme, re.MULTILINE)
        return sdk or (found[1] if found else None)
    guess = folders.guess_folder(folder)
    if sdk is not None:
        guess = folders.Guess(
            sdk, guess.app_file if guess else ("index.html" if sdk == "static" else "app.py"), "--sdk"
        )
    if guess is None:
        raise Failure(
            f"{folder / 'README.md'} does not say what kind of app this is, and its files do not tell.",
            f"Say it with --sdk {'|'.join(folders.SDKS)}.",
            code=USAGE,
        )
    block = folders.front_matter(folder.resolve().name, guess)
    note(f"README.md gets this front matter ({guess.why}):", style="yellow")
    note("\n".join(f"  {line}" for line in block.strip().splitlines()), style="dim")
    if sdk is None and sys.stdin.isatty() and input("Write it? [Y/n] ").strip().lower() not in ("", "y", "yes"):
        raise Failure("Nothing was pushed.", "Write the front matter yourself, or name the kind of app with --sdk.")
    folders.add_front_matter(folder, block)
    return guess.sdk


def ensure_space(client: Client, space: str, sdk: str | None, *, private: bool) -> bool:
    """Create the Space without a first commit, unless it exists. Whether it was created."""
    if space.count("/") != 1:
        raise Failure(f"{space!r} is not a Space's name.", "Write OWNER/NAME.", code=USAGE)
    try:
        client.get(f"/api/platform/spaces/{space}")
        return False
    except Failure as exc:
        if exc.data.get("status") != 404:
            raise
    owner, name = space.split("/")
    client.post("/api/repos/create", {
        "type": "space", "organization": owner, "name": name, "sdk": sdk or "gradio", "private": private, "init": False,
    })  # fmt: skip
    return True


def _show_remote(line: str, as_json: bool) -> None:
    if as_json:
        emit({"event": "remote", "line": line})
    else:
        say(f"remote: {line}", style="cyan")
