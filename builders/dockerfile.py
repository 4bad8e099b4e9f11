"""The Dockerfile of a plan, as text.

Owns: `render`, what BuildKit is given for the Python and static SDKs: a stage that installs the environment and a stage
that adds the app last, so that a push that changes only code reuses everything below it. Does not own: users' own
Dockerfiles (`containers.rules`), running BuildKit (`containers.builder`). Invariant: pure; the text alone, with a
checkout of the repository as its context and the runtime images at hand, builds the same image anywhere.

Made for BuildKit as in Docker 20.10: no external `# syntax=`, no heredocs. Index, proxy, mirror and certificates come
as the secrets `network` and `ca` (runtime_images/network.py) where they are given, so that no layer has them.
Format: https://docs.docker.com/reference/dockerfile/
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from builders.types import BuildError, BuildPlan, InstallStep

ENVIRONMENT = "/opt/env"
APP = "/home/user/app"
INPUTS = "/tmp/spaces"
LOCK = f"{INPUTS}/lock.txt"
HOOK = "/opt/spaces/runtime_images/python/start_hook.py"
SEAL = "/opt/spaces/runtime_images/python/seal.py"
PYTHONS = "/opt/python"
"""Where uv puts interpreters that the runtime image does not have."""
SCOPE = "SPACES_SCOPE"
"""A build argument that enters every step's cache key: no step of one owner is reused for another."""
APP_TARGET, FACTS_TARGET = "app", "facts"
INSTALLING, SEALING, SITE, SYSTEM = "install", "seal", "site build", "system packages"
"""What the steps are called in the comment each begins with: `: install requirements.txt`."""

_CHUNK = 50_000
"""Bytes of one RUN: BuildKit's lines end at 64 KiB, and an argument of exec(2) at 128 KiB."""
_MOUNTS = "--mount=type=secret,id=network,mode=0444 --mount=type=secret,id=ca,mode=0444"
_NETWORK = "if [ -f /run/secrets/network ]; then . /run/secrets/network; fi; set -eu"
_APT_TRASH = "/var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/cache/ldconfig/* /var/log/*"


@dataclass(frozen=True, slots=True)
class Images:
    """References of the runtime images, and the Python that is in them."""

    run: str
    build: str
    static: str
    site: str
    """Has Node.js: what static sites are built in."""
    python: str = "3.11"


def render(plan: BuildPlan, images: Images, scope: str, *, compile_app: bool = False) -> str:
    """The Dockerfile of a plan that has none of its own.

    `scope` keeps the cached steps of owners apart. `compile_app`: the app has modules worth compiling. Raises
    BuildError for a requirement file or folder name that cannot stand in a Dockerfile.
    """
    stages = _static(plan, images, scope) if plan.sdk == "static" else _python(plan, images, scope, compile_app)
    head = f"# Made for sdk: {plan.sdk}. In a checkout of the repository: docker build --file <this> ."
    return "\n".join([head, *stages, *_start(plan)]) + "\n"


# --- Python --------------------------------------------------------------------------------------------------------
def _python(plan: BuildPlan, images: Images, scope: str, compile_app: bool) -> Iterator[str]:
    environment = plan.environment
    own_python = ".".join(environment.python.split(".")[:2]) != images.python or environment.python.count(".") > 1
    yield f"FROM {images.build} AS environment"
    yield from _system(environment.system, scope)
    yield f"ENV UV_INDEX_STRATEGY=unsafe-best-match UV_LINK_MODE=copy UV_PYTHON_INSTALL_DIR={PYTHONS} NO_COLOR=1"
    yield "ENV UV_NO_PROGRESS=1 UV_CACHE_DIR=/tmp/uv-cache"
    if own_python:
        yield f"USER 0:0\nRUN install -d -o 1000 -g 1000 {PYTHONS}\nUSER 1000:1000"
    python = environment.python if own_python else f"python{images.python}"
    first = f"uv venv --quiet --no-project --python {shlex.quote(python)} {ENVIRONMENT}"
    for number, step in enumerate(environment.steps):
        yield from _install(step, f"{INPUTS}/{number}", scope, environment.needs_tree, "" if number else first)
    if not environment.steps:
        yield f"RUN {_MOUNTS} \\\n    : {INSTALLING} nothing; {_NETWORK}; {first}"
    yield from _seal(scope)
    yield f"\nFROM {images.run} AS system"
    yield from _system(environment.system, scope)
    yield "\nFROM scratch AS facts"
    yield f"COPY --from=environment {LOCK} /lock.txt"
    yield "COPY --from=system /var/lib/dpkg/status /status"
    yield f"\nFROM system AS {APP_TARGET}"
    if own_python:
        yield f"COPY --from=environment --chown=0:0 {PYTHONS} {PYTHONS}"
    yield f"COPY --from=environment --chown=0:0 {ENVIRONMENT} {ENVIRONMENT}"
    yield f"COPY --chown=1000:1000 . {APP}/"
    if compile_app:
        yield f"RUN {ENVIRONMENT}/bin/python -m compileall -q --invalidation-mode unchecked-hash {APP} || true"


def _system(packages: tuple[str, ...], scope: str) -> Iterator[str]:
    """Also opens the stage's scope: whatever is run below it is this owner's own."""
    yield f"ARG {SCOPE}={scope}"
    if packages:
        yield "USER 0:0"
        yield _apt(packages)
        yield "USER 1000:1000"


def _apt(packages: tuple[str, ...]) -> str:
    return (
        f"RUN {_MOUNTS} \\\n    : {SYSTEM}; {_NETWORK}; export DEBIAN_FRONTEND=noninteractive; \\\n"
        "    apt-get update -q; \\\n"
        f"    apt-get install -q -y --no-install-recommends -- {' '.join(packages)}; \\\n"
        f"    rm -rf {_APT_TRASH}"
    )


def _install(step: InstallStep, folder: str, scope: str, needs_tree: bool, first: str) -> Iterator[str]:
    label = _plain(step.label, "the name of a requirement file")
    if needs_tree:
        yield f"COPY --chown=1000:1000 . {folder}/"
    commands = [f": {INSTALLING} {shlex.quote(label)}", _NETWORK, *([first] if first else [])]
    files = tuple(step.files)[:1]
    if step.kind == "project":
        if not needs_tree:
            yield f"COPY --chown=1000:1000 {' '.join(step.files)} {folder}/"
        flags = "--frozen --no-dev --no-emit-project --no-hashes --no-header --quiet"
        files = ("locked-requirements.txt",)
        commands += [f"cd {folder}", f"uv export {flags} --python {ENVIRONMENT} --output-file {files[0]}"]
    else:
        for name, text in step.files.items():
            written = list(_written(f"{folder}/{name}", text))
            yield from (f"RUN {command}" for command in written[:-1])
            commands += written[-1:]
        commands += [f"mkdir -p {folder}", f"cd {folder}"]
    listed = " ".join([f"-r {shlex.quote(_plain(name, 'the name of a requirement file'))}" for name in files])
    wanted = " ".join(shlex.quote(_plain(one, "a requirement")) for one in step.requirements)
    commands.append(f"uv pip install --python {ENVIRONMENT} {listed} -- {wanted}".replace("  ", " "))
    yield f"RUN {_MOUNTS} \\\n    {_uv_cache(scope)} \\\n    " + "; \\\n    ".join(
        command.rstrip() for command in commands
    )


def _written(path: str, text: str) -> Iterator[str]:
    """Commands that write a file, each short enough for one RUN."""
    quoted = shlex.quote(_plain(path, "the name of a requirement file"))
    lines: list[str] = []
    target = f"> {quoted}"
    for line in text.splitlines():
        lines.append(shlex.quote(_plain(line, "a line of a requirement file")))
        if len(lines[-1].encode()) > _CHUNK:
            raise BuildError(
                "bad_requirement",
                f"{path.removeprefix(INPUTS)[3:]} has a line of more than {_CHUNK} bytes.",
                "Write one package per line, like `pandas==2.2.3`.",
                [line[:200]],
            )
        if sum(len(one.encode()) + 8 for one in lines) > _CHUNK:
            yield _printf(quoted, lines[:-1], target)
            lines, target = lines[-1:], f">> {quoted}"
    yield _printf(quoted, lines, target)


def _printf(quoted: str, lines: list[str], target: str) -> str:
    shown = "".join(f" \\\n        {line}" for line in lines)
    what = f"printf '%s\\n'{shown}" if lines else ":"
    return f'mkdir -p "$(dirname {quoted})"; {what} \\\n        {target}'


def _uv_cache(scope: str) -> str:
    return f"--mount=type=cache,id={scope}-uv,target=/tmp/uv-cache,uid=1000,gid=1000"


def _seal(scope: str) -> Iterator[str]:
    """Bytecode, the start hook and the lock."""
    yield "\n    ".join(
        (
            f"RUN {_uv_cache(scope)} \\",
            f": {SEALING}; set -eu; \\",
            f"for site in {ENVIRONMENT}/lib/python3.*/site-packages; do \\",
            f'    {ENVIRONMENT}/bin/python -I -S {SEAL} "$site" /tmp/uv-cache "$(cat {HOOK})"; \\',
            "done; \\",
            f"mkdir -p {INPUTS}; uv --no-cache pip freeze --quiet --python {ENVIRONMENT} > {LOCK}",
        )
    )


# --- static --------------------------------------------------------------------------------------------------------
def _static(plan: BuildPlan, images: Images, scope: str) -> Iterator[str]:
    if plan.build_command:
        yield f"FROM {images.site} AS site"
        yield from _system(plan.environment.system, scope)
        yield "USER 1000:1000"
        yield f"COPY --chown=1000:1000 . {APP}/"
        yield f"RUN {_MOUNTS} \\\n    --mount=type=cache,id={scope}-npm,target=/tmp/npm,uid=1000,gid=1000 \\\n" + (
            f"    : {SITE}; {_NETWORK}; export CI=true npm_config_cache=/tmp/npm; \\\n"
            f"    {shlex.join(_plain(part, 'app_build_command') for part in plan.build_command)}; \\\n"
            f"    rm -rf {APP}/{shlex.quote(_folder(plan.output_dir))}node_modules"
        )
    yield f"\nFROM {images.static} AS system"
    yield "\nFROM scratch AS facts\nCOPY --from=system /var/lib/dpkg/status /status"
    yield f"\nFROM system AS {APP_TARGET}"
    if plan.build_command:
        source = json.dumps([f"{APP}/{_folder(plan.output_dir)}", f"{APP}/"])
        yield f"COPY --from=site --chown=1000:1000 {source}"
    else:
        yield f"COPY --chown=1000:1000 . {APP}/"


def _folder(path: str) -> str:
    """A folder of the app as it stands in a COPY, with a slash at its end."""
    plain = _plain(path, "app_file")
    if set(plain) & set('$\\"*?['):
        raise BuildError(
            "bad_path", f"The folder `{path}` has a character that no Dockerfile can name.", "Rename the folder."
        )
    return f"{plain}/" if plain else ""


def _start(plan: BuildPlan) -> Iterator[str]:
    """How it is run elsewhere; the platform's own orchestrator is told by the plan."""
    port = str(plan.run.app_port)
    for name, value in plan.run.env.items():
        text = value.replace("{PORT}", port).replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
        yield f'ENV {name}="{text}"'
    yield f"EXPOSE {port}"
    yield f"CMD {json.dumps([part.replace('{PORT}', port) for part in plan.run.argv])}"


def _plain(text: str, what: str) -> str:
    """Text that stays on its line. Raises BuildError for control characters, which would begin another instruction."""
    if any((ord(c) < 32 and c != "\t") or ord(c) == 127 for c in text) or len(text.splitlines()) > 1:
        raise BuildError(
            "bad_requirement",
            f"There is a control character in {what}: {text[:80]!r}.",
            "Remove it; editors show it when they show invisible characters.",
            [repr(text[:200])],
        )
    return text
