"""Records what failing builds and apps really print: `python tests/builders/record.py [NAME…]`.

Each case is carried out with the real tools, and its output kept in recorded/<name>.log with machine paths replaced.
The first line of a log is its facts, as JSON. Run it again when uv, Python or an SDK change their words.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from uv import find_uv_bin

from builders import pythons

HERE = Path(__file__).parent / "recorded"
UV = find_uv_bin()


@dataclass(frozen=True)
class Case:
    name: str
    requirements: str = ""
    app: str | None = None
    """None: only the build is recorded."""
    python: str = ""
    env: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    """Instead of an install."""
    without: str = ""
    """A system library that the app must not find."""

    def guard(self) -> list[str]:
        """A view of this machine without the library: its folder is made anew of links to all others."""
        if not self.without:
            return []
        folder = Path("/usr/lib/x86_64-linux-gnu")
        argv = ["bwrap", "--bind", "/", "/", "--ro-bind", str(folder), "/mnt", "--tmpfs", str(folder)]
        for entry in sorted(folder.iterdir()):
            if not entry.name.startswith(self.without):
                argv += ["--symlink", f"/mnt/{entry.name}", str(entry)]
        return argv


CAPPED = "import resource\nresource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))\n"
HOG = "x = []\nwhile True:\n    x.append(bytearray(50_000_000))\n"
CASES = [
    Case("build-conflict", "flask==2.0.0\nclick==7.0\n"),
    Case("build-conflict-sdk", "huggingface_hub==0.20.0\ngradio[oauth]==6.31.0\n"),
    Case("build-not-found", "six\ncv2\n"),
    Case("build-not-found-unknown", "no-such-package-by-anyone\n"),
    Case("build-no-version", "six==99.0\n"),
    Case("build-sdist-fails", "mysqlclient==2.2.7\n"),
    Case("build-sdist-deprecated", "sklearn==0.0.post12\n"),
    Case("build-sdist-pkg-resources", "./old\n", files={
        "old/setup.py": "import pkg_resources\nfrom setuptools import setup\nsetup(name='old', version='1')\n"
    }),
    Case("build-python-too-new", "numpy==1.19.5\n", python="3.12"),
    Case("build-requires-python", "gradio==6.31.0\n", python="3.9"),
    Case("build-bad-line", "six\npip install flask\n"),
    Case("build-bad-specifier", "flask=2.0.0\n"),
    Case("build-index-down", "six\n", env={"UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple", "UV_HTTP_RETRIES": "0"}),
    Case("build-git-missing", "git+https://127.0.0.1:9/someone/thing.git\n"),
    Case("build-npm-no-script", command=("npm", "run", "build"), files={"package.json": '{"name":"a","scripts":{}}'}),
    Case("run-missing-module", app="import sklearn.linear_model\n"),
    Case("run-missing-module-cv2", app="import cv2\n"),
    Case("run-missing-own-module", app="from src.model import load\n"),
    Case("run-missing-pkg-resources", app="import pkg_resources\n"),
    Case("run-missing-system-library", "opencv-python\n", "import cv2\n", without="libGL.so"),
    Case("run-syntax-error", app="def hello(:\n    pass\n"),
    Case("run-indentation", app="def hello():\nreturn 1\n"),
    Case("run-import-error", "flask\n", "from flask import escape\n"),
    Case("run-hf-folder", "gradio==4.44.1\n", "import gradio\n", env={"OVERRIDE": "huggingface_hub>=1"}),
    Case("run-exception", app="def main():\n    return 1 / 0\n\nmain()\n"),
    Case("run-exit-code", app="import sys\nprint('giving up')\nsys.exit(3)\n"),
    Case("run-ended", app="print('nothing to do')\n"),
    Case("run-port-in-use", app="import socket\na = socket.create_server(('127.0.0.1', 0))\n"
         "socket.create_server(('127.0.0.1', a.getsockname()[1]))\n"),
    Case("run-port-in-use-gradio", "gradio==6.31.0\n",
         "import socket, gradio as gr\na = socket.create_server(('0.0.0.0', 7861))\n"
         "with gr.Blocks() as demo:\n    gr.Markdown('hi')\ndemo.launch(server_port=7861)\n"),
    Case("run-permission", app="import os\nos.makedirs('/data/cache')\n"),
    Case("run-read-only", app="open('/usr/cache.txt', 'w')\n"),
    Case("run-no-file", app="open('model/weights.bin')\n"),
    Case("run-no-secret", app="import os\nkey = os.environ['OPENAI_API_KEY']\n"),
    Case("run-no-name", app="import urllib.request\nurllib.request.urlopen('http://models.example.invalid/x')\n"),
    Case("run-disk-full", app="import os\nf = open('/dev/full', 'w')\nf.write('x' * 100_000)\n"),
    Case("run-out-of-memory", app=CAPPED + HOG),
    Case("run-cuda", "torch\n", "import torch\ntorch.zeros(1).cuda()\n"),
    Case("run-streamlit-bare", "streamlit\n", "import streamlit as st\nst.write('hello')\n"),
    Case("run-recursion", app="def f():\n    return f()\nf()\n"),
]  # fmt: skip


def record(case: Case, root: Path) -> None:
    folder = root / case.name
    app, environment = folder / "app", folder / "environment"
    app.mkdir(parents=True)
    for name, text in {"requirements.txt": case.requirements, "app.py": case.app or "", **case.files}.items():
        (app / name).parent.mkdir(parents=True, exist_ok=True)
        (app / name).write_text(text)
    base = {**os.environ, "NO_COLOR": "1", "UV_NO_PROGRESS": "1", "UV_INDEX_STRATEGY": "unsafe-best-match"}
    override = case.env.get("OVERRIDE")
    env = base | {k: v for k, v in case.env.items() if k != "OVERRIDE"}
    install = [UV, "pip", "install", "--python", str(environment), "-r", "requirements.txt"]
    if override:
        (app / "override.txt").write_text(override)
        install += ["--override", "override.txt"]
    _run([UV, "venv", "-q", "--no-project", "--python", _interpreter(case.python), str(environment)], app, env)
    code, output = _run(list(case.command) or install, app, env)
    if case.app is not None:
        if code:
            raise SystemExit(f"{case.name}: the install failed:\n{output}")
        search = {"PATH": f"{environment}/bin:/usr/bin:/bin", "HOME": str(folder), "LANG": "C.UTF-8"}
        guard = case.guard() or ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
        code, output = _run([*guard, str(environment / "bin" / "python"), "app.py"], app, search)
    facts = json.dumps({"exit_code": code})
    home = str(Path(sys.base_prefix))
    cache = os.environ.get("UV_CACHE_DIR", str(Path.home() / ".cache" / "uv"))
    for machine, neutral in (
        (str(folder), "/srv/space"),
        (home, "/usr/local"),
        (cache, "/srv/cache"),
        ("/root", "/home/me"),
    ):
        output = output.replace(machine, neutral)
    (HERE / f"{case.name}.log").write_text(f"{facts}\n{output}")
    print(case.name, code)
    shutil.rmtree(folder)


def _interpreter(version: str) -> str:
    """One that any user may start, or the one of a version."""
    if not version:
        return "/usr/bin/python3"
    return str(next(one.path for one in pythons.find() if one.minor == version))


def _run(argv: list[str], cwd: Path, env: dict[str, str]) -> tuple[int, str]:
    done = subprocess.run(
        argv, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600, check=False
    )
    return done.returncode, done.stdout


def main() -> None:
    HERE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        for case in CASES:
            if len(sys.argv) < 2 or case.name in sys.argv[1:]:
                record(case, Path(folder))


if __name__ == "__main__":
    main()
