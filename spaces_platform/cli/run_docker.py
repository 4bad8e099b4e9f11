"""`spaces run --docker`: the image that the platform would build, and a container of it, without a platform.

Owns: the order plan > build > `docker run` > wait > stop, and showing it. Does not own: building, which the
platform's own builder does. Invariant: whatever way it ends, the container is gone; images stay, so that the next run
builds little.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

import runtime_images
from builders.containers.builder import DockerBuilder
from builders.containers.client import ClientMissing
from builders.containers.options import make_options
from builders.local_tree import LocalTree
from builders.types import BuildCancelled, BuildError, BuilderUnavailable, BuildInputs, BuildPlan
from spaces_platform.cli.console import ConsoleLog, Failure, note, paint, say
from spaces_platform.planning import plan_head
from spaces_platform.settings import Settings

POLL_SECONDS = 0.1
GRACE_SECONDS = 3
COMMAND_SECONDS = 30
PROCESSES = 512


def run_argv(client: str, engine: str, name: str, image: str, plan: BuildPlan, port: int) -> list[str]:
    """The `docker run` of an image, with what the platform also takes from an app. Pure.

    `port` on this machine's loopback; 0: any free one.
    """
    published = f"127.0.0.1:{port or ''}:{plan.run.app_port}"
    env = {"SYSTEM": "spaces", "SPACE_ID": "local/app", "SPACE_HOST": "localhost", **plan.run.env}
    line = [client, "--host", engine, "run", "--rm", "--name", name, "--publish", published]
    line += ["--init"] if plan.sdk == "docker" else []  # the runtime images have one of their own
    line += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", "1000:1000"]
    line += ["--pids-limit", str(PROCESSES)]
    for key, value in env.items():
        line += ["--env", f"{key}={value.replace('{PORT}', str(plan.run.app_port))}"]
    return [*line, image]


def run_folder(folder: Path, port: int) -> int:
    """Blocks until Ctrl-C (0). Raises Failure where it cannot be built or started, or ends by itself."""
    if not folder.is_dir():
        raise Failure(f"{folder} is not a folder.", "Name the folder that holds your app.", code=2)
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _n, _f: stopping.set())
    tree = LocalTree(folder)
    plan = _plan(tree)
    settings = Settings.load()
    try:
        builder = _builder(settings, os.environ)
        inputs = BuildInputs("local/app")
        artifact = builder.build(plan, tree, owner="local", log=ConsoleLog(), cancelled=stopping.is_set, inputs=inputs)
    except BuildCancelled:
        return 0
    except BuildError as exc:
        for line in exc.evidence:
            note(f"  | {line}")
        raise Failure(exc.cause, exc.fix, reason=exc.reason) from exc
    except (BuilderUnavailable, ClientMissing) as exc:
        raise Failure(str(exc), "Start Docker, or name its address in SPACES_DOCKER.") from exc
    return _serve(builder, artifact.ref.removeprefix("image:"), plan, port, stopping)


def _builder(settings: Settings, environ: Mapping[str, str]) -> DockerBuilder:
    """Images are kept between runs: the second one of the same requirements installs nothing."""
    cache = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spaces" / "run-docker"
    bundle = settings.ca_bundle or environ.get("SSL_CERT_FILE", "")
    options = make_options(
        runtime_images.load(), environ, ca=Path(bundle).read_bytes() if bundle else b"",
        apt_mirror=settings.apt_mirror, engine=settings.docker,
    )  # fmt: skip
    return DockerBuilder(cache, options)


def _plan(tree: LocalTree) -> BuildPlan:
    catalogue = runtime_images.load()
    planned = plan_head(tree, catalogue, (catalogue.python_default,), containers=True)
    for warning in planned.warnings:
        note(f"warning: {warning}", style="yellow")
    if planned.plan is None:
        for line in planned.evidence:
            note(f"  | {line}")
        raise Failure(planned.message, reason=planned.reason)
    return planned.plan


def _serve(builder: DockerBuilder, image: str, plan: BuildPlan, port: int, stopping: threading.Event) -> int:
    name = f"spaces-run-{secrets.token_hex(6)}"
    engine = builder.options.engine
    command = [builder.client, "--host", engine]
    # A group of its own: Ctrl-C is ours to act on.
    process = subprocess.Popen(run_argv(builder.client, engine, name, image, plan, port), process_group=0)
    try:
        began, shown = time.monotonic(), False
        while not stopping.wait(POLL_SECONDS):
            if process.poll() is not None:
                raise Failure(f"The app ended with exit code {process.returncode}.", "Its output above says why.")
            if not shown:
                address = _published(command, name, plan.run.app_port)
                shown = bool(address) and _answers(f"http://{address}{plan.run.base_path}")
                if shown:
                    say(f"{paint('Live:', 'green')} http://{address}{plan.run.base_path}  (Ctrl-C stops it)")
            if not shown and time.monotonic() - began > plan.run.start_timeout:
                raise Failure(
                    f"The app does not answer on port {plan.run.app_port}.", "Serve on 0.0.0.0 and on app_port."
                )
        return 0
    finally:
        _quietly([*command, "stop", "--time", str(GRACE_SECONDS), name])
        if process.poll() is None:
            _quietly([*command, "rm", "--force", name])
            process.kill()
        process.wait()


def _published(command: Sequence[str], name: str, app_port: int) -> str:
    done = _quietly([*command, "port", name, f"{app_port}/tcp"])
    return done.stdout.split()[0] if done.returncode == 0 and done.stdout.split() else ""


def _answers(url: str) -> bool:
    """Whether it speaks HTTP: the engine's own proxy accepts connections before the app does."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def _quietly(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
