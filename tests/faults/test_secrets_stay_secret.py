"""T07 and T24 on the whole platform: a secret's value is nowhere in clear (I7).

A static Space's process must not get it either; that other apps do is shown where such apps run.
"""

from __future__ import annotations

import base64
import json
import os
from contextlib import suppress
from pathlib import Path

from tests.faults import apps
from tests.faults.system import System
from tests.services import databases


def test_a_secret_is_nowhere_in_clear(system: System) -> None:
    canary, other = f"canary-{os.urandom(16).hex()}", f"canary-{os.urandom(16).hex()}"
    system.create("vault", secrets={"PASSWORD": canary})
    system.api("POST", "/api/spaces/admin/vault/secrets", {"key": "SECOND", "value": other})
    system.push("vault", apps.python("vault"))
    system.wait_serving("vault", "vault")
    system.api("POST", "/api/spaces/admin/vault/restart")
    system.wait_stage("vault", "RUNNING")
    commands = "".join(
        Path(f"/proc/{p}/cmdline").read_text(errors="replace") for p in system.processes(str(system.data))
    )
    environments = b"".join(
        Path(f"/proc/{p}/environ").read_bytes() for pids in system.app_processes().values() for p in pids
    )
    assert b"SPACE_ID=admin/vault" in environments
    said = [commands, environments.decode("utf-8", "replace"), *everything_the_api_says(system, "vault")]
    # A killed and restarted control plane leaves what it had written, the write-ahead log among it.
    system.kill("control")
    system.wait_ready(20)
    said += everything_the_api_says(system, "vault")
    for secret in (canary, other, system.token):
        spellings = (secret.encode(), base64.b64encode(secret.encode()), secret.encode().hex().encode())
        for spelling in spellings:
            assert not any(spelling.decode() in text for text in said), "an answer or a command line shows it"
            allowed = {system.data / "admin.token"} if secret == system.token else set()
            assert holders(system.data, spelling) <= allowed
    # The check can fail: the name is found where the value is not.
    if not databases.ON_POSTGRES:
        assert system.data / "spaces.db" in holders(system.data, b"PASSWORD") | holders(system.data, b"SECOND")
    assert system.rows("SELECT 1 FROM secret WHERE length(sealed) > 40")
    system.check()


def holders(folder: Path, needle: bytes) -> set[Path]:
    """Files that hold the bytes; a write-ahead log counts as its database."""
    found = set()
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, name) for name in names):
            with suppress(FileNotFoundError):  # what the platform removes meanwhile holds nothing
                if path.is_file() and not path.is_symlink() and needle in path.read_bytes():
                    found.add(path.with_name(path.name.removesuffix("-wal")))
    return found


def everything_the_api_says(system: System, name: str) -> list[str]:
    platform, hub = f"/api/platform/spaces/admin/{name}", f"/api/spaces/admin/{name}"
    build = system.api("GET", f"{platform}/builds")[0]["id"]
    deployments = [d["id"] for d in system.api("GET", f"{platform}/deployments")]
    paths = [
        platform, hub, "/api/spaces", f"{platform}/builds", f"{platform}/deployments", f"{platform}/history",
        f"{hub}/secrets", f"{hub}/variables", f"{hub}/runtime", f"{platform}/builds/{build}/logs", "/metrics",
        f"/spaces/admin/{name}", *(f"{platform}/deployments/{n}/logs" for n in deployments),
    ]  # fmt: skip
    said = [json.dumps(system.api("GET", path, expect=None)) for path in paths]
    assert any("PASSWORD" in text for text in said), "the owner does not even see the name"
    return said
