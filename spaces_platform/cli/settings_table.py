"""docs/configuration.md, made from the settings themselves: `python -m spaces_platform.cli.settings_table > …`."""

from __future__ import annotations

import dataclasses
import sys

from spaces_platform.settings import PREFIX, Settings

HEAD = """\
# Configuration

Nothing has to be configured. Every setting below has a default that works on one machine, and can be given as

- an environment variable of the process that runs `spaces up`: `SPACES_BUILD_SLOTS=4 spaces up`
- an option of `spaces up`: `--data`, `--host`, `--port`, `--public-url`, `--apps-domain`, `--mode`, `--database`,
  `--redis` and `--docker` have their own, every other one goes by `--set`: `spaces up --set build_slots=4`

An option rules over a variable. A `SPACES_…` variable that is not in this list is an error, since a misspelt limit is a
limit that does not hold. Settings are read once, at the start.

What belongs to one Space (its variables and secrets, its hardware, when it sleeps) is set on the Space; what belongs to
an app (its SDK, its Python) stands in its README.md.

| Setting | Variable | Default | Meaning |
|---|---|---|---|
"""

TAIL = """
The command line reads two more, for the platform it talks to: `SPACES_URL` and `SPACES_TOKEN`. They rule over what
`spaces login` keeps in `~/.config/spaces/config.json`.

## Behind a reverse proxy, with a domain

Point `spaces.example.org` and `*.apps.example.org` to the proxy, let it end TLS and pass everything on, Host header
included, to the platform's one port:

    spaces up --public-url https://spaces.example.org --apps-domain apps.example.org

The proxy must not buffer (pushes and event streams are long) and must pass WebSocket upgrades on.
"""


def render() -> str:
    """The whole page. Pure."""
    return HEAD + "".join(_row(field) for field in dataclasses.fields(Settings)) + TAIL


def _row(field: dataclasses.Field[object]) -> str:
    default = _default(field)
    text = str(field.metadata["doc"]).replace("|", "\\|")
    return f"| `{field.name}` | `{PREFIX}{field.name.upper()}` | {default} | {text} |\n"


def _default(field: dataclasses.Field[object]) -> str:
    if field.name == "data":
        return "`~/.spaces`"
    value = str(field.default)
    if len(value) > 60:
        return "<br>".join(f"`{part}`" for part in value.split(","))
    return f"`{value}`" if value else ""


if __name__ == "__main__":
    sys.stdout.write(render())
