"""What the platform adds to an app's own start: on a push of code, a first push, a second Space, and a wake.

    python -m benchmarks.deploys [--rounds N] [--app gradio|plain]

Every figure is one run of the platform minus one run of the app's own command beside it (`_own_start`), taken in turn,
so that a busy machine disturbs both. The best of each counts; the median of the differences is told beside it. `plain`
is an app of twenty lines that imports nothing: its own start takes milliseconds, so what is left is the platform.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import secrets
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uv import find_uv_bin

from benchmarks._own_start import Ready, built, niceness, own_start
from benchmarks._rig import ROOT, Platform, Repo, until, workplace
from builders.layout import Layout

PLAIN = '''"""Answers every request with one line."""
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = b"MARKER"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Handler).serve_forever()
'''
SETS = tuple(f"{name}>=0.0.1" for name in ("markupsafe", "numpy", "pandas", "pydantic", "httpx", "jinja2", "anyio"))
"""Requirements that change nothing, since gradio needs these packages anyway: new environments of the same packages."""
FRONT = "---\ntitle: bench\nsdk: gradio\napp_file: app.py\n---\n"


@dataclass
class Pairs:
    """Runs of the platform and of what they are compared to, in seconds."""

    ours: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)

    def add(self, ours: float, bare: float) -> None:
        self.ours.append(ours)
        self.bare.append(bare)

    def row(self, what: str, target: float, against: str) -> dict[str, Any]:
        """Best of ours above the best of what it is compared to: what the machine can do when others leave it alone."""
        above = min(self.ours) - min(self.bare)
        median = statistics.median(a - b for a, b in zip(self.ours, self.bare, strict=True))
        return {
            "what": what,
            "value": round(above, 3),
            "unit": "s",
            "target": f"<= {target:g}",
            "reached": above <= target,
            "above": against,
            "median": round(median, 3),
            "ours": [round(seconds, 3) for seconds in self.ours],
            "bare": [round(seconds, 3) for seconds in self.bare],
        }


class App:
    """One app that is changed and pushed again and again; no cache has its code from an earlier run."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder, self.count = kind, folder, 0
        self.mark = secrets.token_hex(4)

    def repo(self, name: str, requirements: str = "") -> Repo:
        repo = Repo(self.folder / name)
        if self.kind == "gradio":
            repo.copy(ROOT / "examples" / "gradio-hello")
        else:
            repo.write("README.md", FRONT)
        if requirements:
            repo.write("requirements.txt", requirements)
        return repo

    def change(self, repo: Repo) -> str:
        """New code, committed; what its answer holds."""
        self.count += 1
        marker = f"version-{self.count}-of-{self.mark}"
        if self.kind == "gradio":
            code = (ROOT / "examples" / "gradio-hello" / "app.py").read_text()
            repo.write("app.py", code.replace("Hello 👋", marker))
        else:
            repo.write("app.py", PLAIN.replace("MARKER", marker))
        repo.commit()
        return marker


class Bench:
    def __init__(self, platform: Platform, app: App, rounds: int) -> None:
        self.platform, self.app, self.rounds = platform, app, rounds
        self.nice = 0
        self.log: Callable[[str], None] = print

    def prepare(self) -> Repo:
        """The first push of all fills the package cache; what it takes is told, not compared."""
        repo = self.app.repo("code")
        live = self.platform.push_until_live(repo, "code", self.app.change(repo))
        self.log(f"first push of all, nothing cached: {live.seconds:.2f} s")
        self._phases("code")
        self.nice = niceness(self.platform)
        return repo

    def code_only(self, repo: Repo) -> dict[str, Any]:
        pairs = Pairs()
        for _ in range(self.rounds):
            self.platform.settle("code")
            live = self.platform.push_until_live(repo, "code", self.app.change(repo))
            self.platform.settle("code")
            self._both(pairs, live.seconds, built(self.platform, "code"))
        return pairs.row("push to live, code-only change", 0.7, "the app's own start in the same environment")

    def first_push(self) -> dict[str, Any]:
        """New requirements of the same packages: a new environment from a warm package cache."""
        pairs = Pairs()
        for n in range(self.rounds):
            repo = self.app.repo(f"first-{n}", requirements=f"{SETS[n % len(SETS)]}\n")
            live = self.platform.push_until_live(repo, repo.folder.name, self.app.change(repo))
            self._phases(repo.folder.name)
            if self._reused(repo.folder.name):
                raise RuntimeError("the first push found its environment made already")
            app = built(self.platform, repo.folder.name)
            self._sleep(repo.folder.name)
            install, bare = self._bare_install(app, SETS[n % len(SETS)])
            own = own_start(bare, self.nice)
            self._told(live.seconds, install + own)
            pairs.add(live.seconds, install + own)
            shutil.rmtree(bare.environment)
        return pairs.row(
            "first push with a warm package cache", 1.5, "bare `uv pip install` from the same cache + own start"
        )

    def second_space(self) -> dict[str, Any]:
        pairs = Pairs()
        for n in range(self.rounds):
            repo = self.app.repo(f"second-{n}")
            live = self.platform.push_until_live(repo, repo.folder.name, self.app.change(repo))
            if not self._reused(repo.folder.name):
                raise RuntimeError("the second Space installed something")
            self._sleep(repo.folder.name)
            self._both(pairs, live.seconds, built(self.platform, repo.folder.name))
        return pairs.row("second Space with the same requirements", 1.0, "the app's own start")

    def wake(self) -> dict[str, Any]:
        pairs = Pairs()
        app, host = built(self.platform, "code"), self.platform.host("code")
        for _ in range(self.rounds):
            self._sleep("code")
            began = time.monotonic()
            status = self.platform.visit(host)
            took = time.monotonic() - began
            if status != 200:
                raise RuntimeError(f"the visit that woke it got {status}")
            self.platform.settle("code")
            self._both(pairs, took, app)
        return pairs.row("wake of a sleeping app, first byte", 0.3, "the app's own start")

    def _phases(self, name: str) -> None:
        """Where a build's time went."""
        self.log("  " + ", ".join(line.strip() for line in self.platform.build_log(name) if " took " in line))

    def _reused(self, name: str) -> bool:
        return any("nothing to install" in line for line in self.platform.build_log(name))

    def _sleep(self, name: str) -> None:
        self.platform.settle(name)
        self.platform.sleep(name)

    def _both(self, pairs: Pairs, ours: float, app: Ready) -> None:
        own = own_start(app, self.nice)
        self._told(ours, own)
        pairs.add(ours, own)

    def _told(self, ours: float, bare: float) -> None:
        load = os.getloadavg()[0]
        self.log(f"  ours {ours:6.3f} s, bare {bare:6.3f} s, above {ours - bare:+.3f} s  (load {load:.1f})")

    def _bare_install(self, app: Ready, extra: str) -> tuple[float, Ready]:
        """What the app's environment holds, installed by the command alone into a new environment; how long it took."""
        folder = self.platform.folder / "bare"
        requirements = self.platform.folder / "bare.txt"
        # The same question that the platform asks, not its answer: resolving is part of an install.
        names = ("gradio", "spaces")
        wanted = [line for line in app.lock.splitlines() if line.partition("==")[0] in names]
        asked = [line.replace("gradio==", "gradio[oauth]==") for line in wanted]
        requirements.write_text("\n".join([*asked, extra, ""]))
        uv, python = find_uv_bin(), (app.environment / "bin" / "python").resolve()
        cache = Layout(self.platform.data / "artifacts").cache(app.environment.parents[2].name)
        env = {**os.environ, "UV_CACHE_DIR": str(cache)}
        subprocess.run([uv, "venv", "-q", "--python", str(python), str(folder)], env=env, check=True)
        command = [uv, "pip", "install", "-q", "--python", str(folder / "bin" / "python"), "-r", str(requirements)]
        began = time.monotonic()
        subprocess.run(command, env=env, check=True)
        return time.monotonic() - began, dataclasses.replace(app, environment=folder)


ROWS = ("code_only", "second_space", "wake", "first_push")


def measure(app: str = "gradio", rounds: int = 6, only: tuple[str, ...] = ROWS) -> list[dict[str, Any]]:
    """All rows, each a JSON object."""
    with workplace() as folder, Platform(folder) as platform:
        bench = Bench(platform, App(app, folder / "repos"), rounds)
        repo = bench.prepare()
        until(lambda: platform.status("code")["stage"] == "RUNNING", "the first app runs")
        rows = []
        for name in only:
            print(f"{name} ({app}):")
            row = bench.code_only(repo) if name == "code_only" else getattr(bench, name)()
            rows.append({**row, "what": f"{row['what']} ({app})"})
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--app", choices=("gradio", "plain"), default="gradio")
    parser.add_argument("--only", nargs="*", default=list(ROWS), choices=ROWS)
    given = parser.parse_args()
    for row in measure(given.app, given.rounds, tuple(given.only)):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
