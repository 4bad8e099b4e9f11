"""`spaces demo`, which `make run` is: the platform up, an example pushed for real, its URL, and serving until Ctrl-C.

Owns: the order of the three. Does not own: any of them. Invariant: a Space that is there already is not pushed again;
it is only woken.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spaces_platform.cli.client import Client, SignIn
from spaces_platform.cli.console import NOT_FOUND, Failure, note, report, say
from spaces_platform.cli.deploy import Wish, deploy, show_result
from spaces_platform.cli.follow import follow, make_view, retry
from spaces_platform.cli.platform_commands import show_started
from spaces_platform.settings import Settings
from spaces_platform.supervisor import Supervisor


def run_demo(settings: Settings, example: Path) -> None:
    """Blocks until the platform is stopped. A push that fails is shown, and the platform goes on serving."""
    if not example.is_dir():
        raise Failure(
            f"{example} is not a folder.", "Run this from the platform's own checkout, or name a folder.", code=2
        )

    def ready(state: Mapping[str, Any]) -> None:
        show_started(state, False, detached=False)
        # The supervisor needs this thread for signals and restarts.
        threading.Thread(target=_show_example, args=(settings, example), name="example", daemon=True).start()

    Supervisor(settings).run(ready)
    note("Stopped.")


def _show_example(settings: Settings, example: Path) -> None:
    try:
        token = (settings.data / "admin.token").read_text().strip()
        client = Client(SignIn(f"http://{_local_host(settings)}:{settings.port}", token, str(settings.data)))
        space = f"{client.name()}/{example.resolve().name}"
        status = _bring_up(client, space, example)
        say()
        show_result(status, False)
        say("Change the app and push again: git clone " + str(status["gitUrl"]))
        say("Ctrl-C stops everything.", style="dim")
    except Failure as exc:
        for line in exc.data.get("evidence") or ():
            note(f"  | {line}")
        report(exc, False)
        note("The platform goes on; Ctrl-C stops it.")


def _bring_up(client: Client, space: str, example: Path) -> Mapping[str, Any]:
    try:
        known = client.get(f"/api/platform/spaces/{space}")
    except Failure as exc:
        if exc.code != NOT_FOUND:
            raise
        known = None
    if known is None or known["head"] is None:
        say(f"\nPushing {example} to {client.url}/spaces/{space} …")
        return deploy(client, Wish(example, to=space, message=f"{example.name} example"))
    say(f"\n{space} is here already; waking it …")
    old = retry(client, space, known)
    view = make_view(False)
    live: Mapping[str, Any] | None = None
    try:
        live = follow(client, space, known["head"], view, old=old)
        return live
    finally:
        view.close(ok=live is not None)


def _local_host(settings: Settings) -> str:
    return "localhost" if settings.host in ("127.0.0.1", "0.0.0.0", "::", "") else settings.host
