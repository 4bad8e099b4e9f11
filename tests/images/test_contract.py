"""The runtime contract, kept by each image on a real engine: run as the orchestrator runs it, fenced and read-only."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator

import pytest

import runtime_images
from tests.services.engine import cli

pytestmark = pytest.mark.containers

CATALOGUE = runtime_images.load()
RUN = ("python", "static")
BUILD = ("python-build", "static-build")
FENCE = (
    "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--pids-limit=64", "--memory=256m",
    "--tmpfs=/tmp:size=16m,mode=1777", "--tmpfs=/home/user:size=16m,uid=1000,gid=1000",
)  # fmt: skip
WRITABLE = ("/tmp", "/home/user")
SERVER = "import http.server, os; http.server.test(http.server.SimpleHTTPRequestHandler, port=int(os.environ['PORT']))"


class Runner:
    """Containers of one engine, removed at the end."""

    def __init__(self, url: str) -> None:
        self.url, self._names = url, list[str]()

    def image(self, name: str) -> str:
        ref = runtime_images.image_ref(CATALOGUE, name)
        if cli(self.url, "image", "inspect", ref).returncode:
            pytest.skip(f"the engine has no image {ref}: make base-images")
        return ref

    def output(self, name: str, *words: str, flags: tuple[str, ...] = FENCE) -> str:
        """What a command of an image prints; its failure is the test's."""
        done = cli(self.url, "run", "--rm", "--network=none", *flags, self.image(name), *words)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def start(self, name: str, *words: str, flags: tuple[str, ...] = ()) -> str:
        container = f"images-{uuid.uuid4().hex[:12]}"
        self._names.append(container)
        done = cli(self.url, "run", "-d", f"--name={container}", *FENCE, *flags, self.image(name), *words)
        assert done.returncode == 0, done.stderr
        return container

    def inspect(self, container: str, form: str) -> str:
        done = cli(self.url, "inspect", "-f", form, container)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def answer(self, container: str, port: int, path: str = "/", deadline: float = 60.0) -> tuple[int, bytes]:
        """Status and body once the app answers at the container's address."""
        address = self.inspect(container, "{{.NetworkSettings.IPAddress}}")
        end = time.monotonic() + deadline
        while True:
            try:
                with urllib.request.urlopen(f"http://{address}:{port}{path}", timeout=10) as response:
                    return response.status, response.read()
            except urllib.error.HTTPError as error:
                return error.code, error.read()
            except OSError:
                if time.monotonic() > end or self.inspect(container, "{{.State.Running}}") != "true":
                    raise AssertionError(cli(self.url, "logs", container).stderr[-2000:]) from None

    def close(self) -> None:
        for name in self._names:
            cli(self.url, "rm", "-f", name)


@pytest.fixture
def runner(engine_url: str) -> Iterator[Runner]:
    made = Runner(engine_url)
    yield made
    made.close()


@pytest.mark.parametrize("name", [*RUN, *BUILD])
def test_user_home_and_folder(runner: Runner, name: str) -> None:
    words = "id -u; id -g; id -un; echo $HOME; pwd; stat -c %u:%g /home/user/app; echo $LANG; id -G"
    told = runner.output(name, "sh", "-c", words, flags=())
    assert told.split("\n") == [
        "1000", "1000", "user", "/home/user", "/home/user/app", "1000:1000", "C.UTF-8", "1000"
    ]  # fmt: skip


@pytest.mark.parametrize("name", RUN)
def test_only_the_promised_places_can_be_written(runner: Runner, name: str) -> None:
    places = ("/tmp", "/home/user", "/opt", "/opt/spaces", "/usr/local/bin", "/etc", "/var/tmp", "/")
    words = "; ".join(f"touch {p}/x 2>/dev/null && echo {p}" for p in places)
    assert runner.output(name, "sh", "-c", f"{words}; true").split() == list(WRITABLE)


@pytest.mark.parametrize("name", RUN)
def test_without_the_fence_the_image_still_keeps_its_files_from_the_app(runner: Runner, name: str) -> None:
    own = r"^/home/user\|^/tmp\|^/proc\|^/dev\|^/opt/env"
    words = f"find / -xdev -writable ! -type l 2>/dev/null | grep -v '{own}'; true"
    found = runner.output(name, "sh", "-c", words, flags=()).split()
    assert [path for path in found if path not in ("/var/tmp", "/run/lock", "/var/lock")] == []


@pytest.mark.parametrize("name", RUN)
def test_no_program_raises_privileges(runner: Runner, name: str) -> None:
    """Debian's base has its usual set-uid programs: with no-new-privileges they give nothing."""
    told = runner.output(name, "sh", "-c", "grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status")
    assert dict(line.split(":\t") for line in told.split("\n")) == {
        "CapEff": "0" * 16, "CapBnd": "0" * 16, "NoNewPrivs": "1", "Seccomp": "2"
    }  # fmt: skip


@pytest.mark.parametrize("name", RUN)
def test_the_first_process_reaps_and_passes_signals_on(runner: Runner, name: str) -> None:
    zombies = (
        "import glob, os, subprocess, time\n"
        "for _ in range(20):\n"
        "    if os.fork() == 0:\n"
        "        if os.fork() == 0: os._exit(0)\n"
        "        os._exit(0)\n"
        "    os.wait()\n"
        "end = time.monotonic() + 30\n"
        "def dead():\n"
        "    files = glob.glob('/proc/[0-9]*/status')\n"
        "    lines = subprocess.run(['grep', '-hs', '^State:', *files], capture_output=True)\n"
        "    return lines.stdout.count(b'Z (zombie)')\n"
        "while dead() and time.monotonic() < end: time.sleep(0.01)\n"
        "print(open('/proc/1/comm').read().strip(), dead())\n"
    )
    assert runner.output(name, "python3", "-c", zombies) == "tini 0"
    handler = (
        "import signal, sys, time\n"
        "def end(number, frame):\n"
        "    print('saved', flush=True)\n"
        "    sys.exit(7)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(60)\n"
    )
    container = runner.start(name, "python3", "-c", handler)
    end = time.monotonic() + 60
    while "ready" not in cli(runner.url, "logs", container).stdout:
        assert time.monotonic() < end, cli(runner.url, "logs", container).stderr
    cli(runner.url, "stop", "--time=60", container)
    assert "saved" in cli(runner.url, "logs", container).stdout
    assert runner.inspect(container, "{{.State.ExitCode}}") == "7"


@pytest.mark.parametrize("name", RUN)
def test_the_app_answers_on_its_port(runner: Runner, name: str) -> None:
    container = runner.start(name, "python3", "-c", SERVER, flags=("--env=PORT=8123",))
    assert runner.answer(container, 8123)[0] == 200


def test_a_static_image_serves_what_lies_in_it(runner: Runner) -> None:
    """As it is started by hand, without a command: the folder, its own 404, and no listing."""
    words = ("sh", "-c", "mkdir app/docs && cd app && echo hello > index.html && echo lost > 404.html && "
             "exec python3 -P -m runtime_images.static.server . --port $PORT")  # fmt: skip
    container = runner.start("static", *words, flags=("--workdir=/home/user", "--tmpfs=/home/user/app:uid=1000"))
    assert runner.answer(container, 7860) == (200, b"hello\n")
    assert runner.answer(container, 7860, "/docs/") == (404, b"lost\n")
    assert runner.answer(container, 7860, "/../../etc/passwd") == (404, b"lost\n")


@pytest.mark.parametrize("name", RUN)
def test_programs_of_the_platform_are_compiled(runner: Runner, name: str) -> None:
    words = "cd /opt/spaces && find . -name '*.py' | wc -l && find . -name '*.pyc' | wc -l"
    sources, compiled = runner.output(name, "sh", "-c", words).split()
    assert int(sources) == int(compiled) > 0


def test_what_python_apps_find(runner: Runner) -> None:
    tools = runner.output("python", "sh", "-c", "which python3 git ffmpeg git-lfs && python3 --version && git lfs env")
    assert f"Python {CATALOGUE.python_default}." in tools
    made = runner.output("python-build", "sh", "-c", "which uv cc make cmake pkg-config", flags=())
    assert len(made.split()) == 5


@pytest.mark.parametrize("name", [*RUN, *BUILD])
def test_no_image_has_the_index_or_the_certificates_of_the_machine(runner: Runner, name: str) -> None:
    """History and files tell nothing of where packages came from."""
    ref = runner.image(name)
    history = cli(runner.url, "history", "--no-trunc", "--format", "{{.CreatedBy}}", ref).stdout
    config = json.loads(cli(runner.url, "image", "inspect", ref).stdout)[0]["Config"]
    hosts = _hosts()
    said = history + json.dumps(config)
    assert not [host for host in hosts if host in said]
    words = (
        "cat /etc/pip.conf /root/.config/pip/pip.conf /etc/uv/uv.toml 2>/dev/null; ls /run/secrets 2>/dev/null; true"
    )
    assert runner.output(name, "sh", "-c", words, flags=()) == ""
    # Every certificate is one of Debian's package; where there is no package, there is none.
    words = (
        "cat /etc/ssl/certs/ca-certificates.crt 2>/dev/null | grep -c BEGIN;"
        "find /usr/share/ca-certificates -name '*.crt' 2>/dev/null | wc -l;"
        "ls /usr/local/share/ca-certificates 2>/dev/null; true"
    )
    used, shipped, *own = runner.output(name, "sh", "-c", words, flags=()).split()
    assert (int(used) <= int(shipped), own) == (True, [])


def _hosts() -> list[str]:
    """Host names of this machine's index settings, if any are set."""
    asked = subprocess.run(
        ["python3", "-m", "pip", "config", "get", "global.index-url"], capture_output=True, text=True, check=False
    ).stdout
    values = [asked, os.environ.get("PIP_INDEX_URL", ""), os.environ.get("UV_DEFAULT_INDEX", "")]
    return [value.strip().split("/")[2] for value in values if "://" in value]
