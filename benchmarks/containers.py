"""What containers cost: pushes and wakes in single-host mode, beside `docker build` and `docker run` by hand.

    python -m benchmarks.containers [--rounds N] [--app plain|gradio] [--only ROW …] [--set egress_allow=ADDRESS]

The platform runs with its own Redis and the engine that DOCKER_HOST (or the default socket) names. "Own start" is
`docker run` of the same image with the same command by hand, until the app answers at the container's address: the
engine's own part of a start is in both. Runs are taken in turn, so that a busy machine disturbs both; the best counts,
the median of the differences is told beside it. What is missing on this machine is named, and its rows are skipped.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import http.client
import ipaddress
import itertools
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._rig import Platform, Repo, free_port, until, workplace
from benchmarks._services import ENGINE, Missing, docker, need_engine, redis
from benchmarks.deploys import App, Pairs
from spaces_platform.adapters.docker.disks import unmount_all
from spaces_platform.adapters.docker.network import INSTANCE
from spaces_platform.adapters.docker.settings import instance_of

LOAD = Path(__file__).with_name("_gateway_load.py")
ASK_SECONDS = 0.002
PARALLEL = (2, 4, 8, 25)
MANY = 25
"""Sleeping apps that are visited together."""
THAWS = 100
HOG = """
import os, sys, time
workers, held, end = int(sys.argv[1]), int(sys.argv[2]), time.monotonic() + float(sys.argv[3])
for _ in range(workers):
    if os.fork() == 0:
        page, memory = os.urandom(4096), bytearray(held)
        while time.monotonic() < end:
            for at in range(0, held, 4096):
                memory[at : at + 4096] = page
        os._exit(0)
print("greedy", flush=True)
for _ in range(workers):
    os.wait()
"""
"""What a greedy build runs: so many processes, each writing through so many bytes of memory for so many seconds."""
HOGS = 8
BUILD_MB = 4096
NOISY_SECONDS = 5.0
NOISY_RATE = 200.0
"""Visits a second."""
NOISY_TURNS = 3
"""Of both in each round: the machine's own unrest lasts for seconds, and is to hit both alike."""


@dataclass(frozen=True)
class Image:
    """A Space's newest image, and how its app is started in it."""

    id: str
    argv: list[str]
    port: int


class Bench:
    def __init__(self, platform: Platform, app: App, rounds: int) -> None:
        self.platform, self.app, self.rounds = platform, app, rounds

    # --- pushes ------------------------------------------------------------------------------------------------------
    def prepare(self) -> Repo:
        repo = self.app.repo("code")
        live = self.platform.push_until_live(repo, "code", self.app.change(repo))
        print(f"first push of all, nothing cached: {live.seconds:.2f} s")
        return repo

    def code_only(self, repo: Repo) -> list[dict[str, Any]]:
        """Against own start, and against a Dockerfile that installs after it copies, rebuilt and run by hand."""
        pairs, hand = Pairs(), Pairs()
        folder = self._by_hand_folder()
        for _ in range(self.rounds):
            self.platform.settle("code")
            live = self.platform.push_until_live(repo, "code", self.app.change(repo))
            self.platform.settle("code")
            self._both(pairs, live.seconds, "code")
            rebuilt = self._by_hand(folder, repo)
            print(f"  by hand {rebuilt:.3f} s")
            hand.add(live.seconds, rebuilt)
        return [
            pairs.row("containers: push to live, code-only change", 1.0, "docker run of that image by hand"),
            _ratio("containers: code-only change, of docker build + docker run by hand", hand),
        ]

    def second_space(self, _: Repo) -> list[dict[str, Any]]:
        pairs, hand = Pairs(), Pairs()
        folder = self._by_hand_folder()
        for n in range(self.rounds):
            repo = self.app.repo(f"second-{n}")
            live = self.platform.push_until_live(repo, repo.folder.name, self.app.change(repo))
            self.platform.settle(repo.folder.name)
            self._both(pairs, live.seconds, repo.folder.name)
            hand.add(live.seconds, self._by_hand(folder, repo))
            self._pause(repo.folder.name)
        return [
            pairs.row("containers: second Space with the same requirements", 1.5, "docker run of that image by hand"),
            _ratio("containers: second Space, of docker build + docker run by hand", hand),
        ]

    def _by_hand_folder(self) -> Path:
        folder = self.platform.folder / "by-hand"
        folder.mkdir(exist_ok=True)
        return folder

    def _by_hand(self, folder: Path, repo: Repo) -> float:
        """What a buildpack does: copy the code, install what it asks for (locked, from a warm cache), start it."""
        image = self.image("code")
        base = self.environment_base(image)
        lines = [
            f"FROM {base}", "WORKDIR /home/user/app", "COPY app.py .", "COPY requirements.txt /tmp/",
            "RUN --mount=type=cache,target=/tmp/cache,uid=1000 "
            "--mount=type=secret,id=ca,target=/tmp/ca.crt,uid=1000 "
            "uv venv -q --clear /tmp/env && UV_CACHE_DIR=/tmp/cache SSL_CERT_FILE=/tmp/ca.crt "
            "uv pip install -q --compile-bytecode --python /tmp/env/bin/python -r /tmp/requirements.txt",
            "ENV PATH=/tmp/env/bin:$PATH",
        ]  # fmt: skip
        (folder / "Dockerfile").write_text("\n".join(lines) + "\n")
        (folder / "requirements.txt").write_text(self._lock("code"))
        # The second Space's code is not the first one's, to the last byte.
        (folder / "app.py").write_text(f"{(repo.folder / 'app.py').read_text()}\n# {repo.folder.name}\n")
        began = time.monotonic()
        secret = ["--secret", f"id=ca,src={_ca()}"]
        docker("build", "-q", "-t", "spaces-bench/by-hand", *secret, str(folder))
        built = time.monotonic() - began
        return built + own_start(Image("spaces-bench/by-hand", image.argv, image.port))

    def _lock(self, name: str) -> str:
        """What a Space's newest build installed: the same goes into the image made by hand."""
        with self.platform.database() as db:
            query = "SELECT max(b.id) FROM build b JOIN space s ON s.id = b.space_id WHERE s.name = ?"
            (build,) = db.execute(query, (name,)).fetchone()
        return self.platform.text(f"/api/platform/spaces/admin/{name}/builds/{build}/lock")

    def environment_base(self, image: Image) -> str:
        """The runtime image that builds start from, as the catalogue names it."""
        import runtime_images

        return runtime_images.image_ref(runtime_images.load(), "python-build")

    # --- wakes -------------------------------------------------------------------------------------------------------
    def wake_frozen(self, _: Repo) -> list[dict[str, Any]]:
        host, times = self.platform.host("code"), []
        for _n in range(THAWS if self.rounds > 2 else 20):
            self._fall_asleep("code")
            times.append(self._first_byte(host))
        times.sort()
        p50, p99 = statistics.median(times) * 1000, times[math.ceil(0.99 * len(times)) - 1] * 1000
        print(f"  {len(times)} wakes from frozen: p50 {p50:.1f} ms, p99 {p99:.1f} ms")
        return [_row("containers: wake from frozen, first byte, p99", p99, "ms", at_most=100.0)]

    def wake_stopped(self, _: Repo) -> list[dict[str, Any]]:
        pairs, host = Pairs(), self.platform.host("code")
        for _n in range(self.rounds):
            self._fall_asleep("code")
            took = self._first_byte(host)
            self.platform.settle("code")
            self._both(pairs, took, "code")
        return [pairs.row("containers: wake from stopped, first byte", 0.5, "docker run of that image by hand")]

    def together_frozen(self, _: Repo) -> list[dict[str, Any]]:
        names = self._many()
        best = min(self._visit_all(names) for _ in range(max(2, self.rounds // 2)))
        return [_row(f"containers: {MANY} frozen apps visited together", best, "s", at_most=1.0)]

    def together_stopped(self, _: Repo) -> list[dict[str, Any]]:
        names = self._many()
        images = [self.image(name) for name in names]
        ours, by_hand, by_hand_apart = [], [], []
        for workers in PARALLEL:  # in turn, since the machine's speed is not the same from minute to minute
            ours.append(self._visit_all(names))
            by_hand.append(_start_all(images, workers))
            with _networks(MANY) as networks:
                by_hand_apart.append(_start_all(images, workers, networks))
        for what, times in (("ours", ours), ("by hand", by_hand), ("on networks of their own", by_hand_apart)):
            print(f"  all stopped, {what}: " + ", ".join(f"{one:.2f}" for one in times) + " s")
        best, hand, apart = min(ours), min(by_hand), min(by_hand_apart)
        what = f"containers: {MANY} stopped apps visited together, of by hand"
        return [
            _row(what, best / hand, "x", at_most=1.3),
            _row(f"{what}, each on a network of its own", best / apart, "x", at_most=1.3),
        ]

    def _many(self) -> list[str]:
        names = [f"many-{n}" for n in range(MANY)]
        for name in names:
            one = self.app.repo(name)
            self.platform.push_until_live(one, name, self.app.change(one))
        return names

    def _visit_all(self, names: list[str]) -> float:
        hosts = [self.platform.host(name) for name in names]
        for name in names:
            self._fall_asleep(name)
        # What ends is not to be measured with what starts.
        until(lambda: not self._ending(), "the apps that were put to sleep have ended", 60)
        with concurrent.futures.ThreadPoolExecutor(MANY) as pool:
            began = time.monotonic()
            codes = list(pool.map(lambda host: _visit(self.platform.port, host), hosts))
            took = time.monotonic() - began
        if set(codes) != {200}:
            raise RuntimeError(f"visits got {sorted(set(codes))}")
        return took

    def _ending(self) -> int:
        with self.platform.database() as db:
            return int(db.execute("SELECT count(*) FROM deployment WHERE status = 'STOPPING'").fetchone()[0])

    # --- neighbours --------------------------------------------------------------------------------------------------
    def noisy_build(self, _: Repo) -> list[dict[str, Any]]:
        """A build that takes all the memory and processor it can, beside visits of an app that runs."""
        host = self.platform.host("code")
        self._first_byte(host)
        idle: list[float] = []
        busy: list[float] = []
        for number in range(self.rounds * NOISY_TURNS):
            idle += self._visited(host)
            with self._greedy_build(f"noisy{number}"):
                busy += self._visited(host)
        for what, times in (("idle", idle), ("beside the build", busy)):
            print(f"  {what}: p50 {_quantile(times, 0.5):.2f} ms, p99 {_quantile(times, 0.99):.2f} ms")
        value = _quantile(busy, 0.99) / _quantile(idle, 0.99)
        return [_row("containers: gateway p99 beside a greedy build, of idle", value, "x", at_most=1.3)]

    def _visited(self, host: str) -> list[float]:
        """Without what the beginning or the end of a build has disturbed."""
        _visits(self.platform.port, host, 3.0)
        return _visits(self.platform.port, host, NOISY_SECONDS)

    @contextlib.contextmanager
    def _greedy_build(self, name: str) -> Iterator[None]:
        """A build whose step runs all the while. Raises RuntimeError if it ended before the block did."""
        repo = Repo(self.app.folder / f"{name}-{time.monotonic_ns()}")
        repo.write("README.md", f"---\ntitle: {name}\nsdk: docker\napp_port: 7860\n---\n")
        repo.write("greedy.py", HOG)
        held = int(BUILD_MB * 0.9) * (1 << 20) // HOGS
        run = f"python3 greedy.py {HOGS} {held} {2 * NOISY_SECONDS + 60:.0f}"
        repo.write("Dockerfile", f"FROM {self.environment_base(self.image('code'))}\nCOPY greedy.py .\nRUN {run}\n")
        repo.commit()
        repo.push(f"http://x:{self.platform.token}@127.0.0.1:{self.platform.port}/spaces/admin/{name}")
        until(lambda: "greedy" in map(str.strip, self.platform.build_log(name)), "the greedy build runs", 60)
        yield
        if (status := self._build_status(name)) != "RUNNING":
            raise RuntimeError(f"the greedy build was {status}:\n" + "\n".join(self.platform.build_log(name)[-20:]))
        self._pause(name)
        until(lambda: self._build_status(name) == "CANCELLED", "the greedy build was cancelled", 30)

    # --- inside ------------------------------------------------------------------------------------------------------
    def image(self, name: str) -> Image:
        with self.platform.database() as db:
            query = "SELECT b.artifact, b.plan FROM build b JOIN space s ON s.id = b.space_id"
            where = " WHERE s.name = ? AND b.artifact IS NOT NULL ORDER BY b.id DESC"
            artifact, plan = db.execute(query + where, (name,)).fetchone()
        run = json.loads(plan)["run"]
        return Image(artifact.removeprefix("image:"), list(run["argv"]), int(run["app_port"]))

    def _build_status(self, name: str) -> str:
        with self.platform.database() as db:
            query = "SELECT b.status FROM build b JOIN space s ON s.id = b.space_id WHERE s.name = ?"
            return str(db.execute(query, (name,)).fetchone()[0])

    def _fall_asleep(self, name: str) -> None:
        """Frozen, or stopped where this platform keeps no frozen apps."""
        self.platform.settle(name)
        self.platform.sleep(name)

    def _pause(self, name: str) -> None:
        self.platform.api("POST", f"/api/spaces/admin/{name}/pause")

    def _first_byte(self, host: str) -> float:
        began = time.monotonic()
        status = _visit(self.platform.port, host)
        if status != 200:
            raise RuntimeError(f"the visit that woke {host} got {status}")
        return time.monotonic() - began

    def _both(self, pairs: Pairs, ours: float, name: str) -> None:
        own = own_start(self.image(name))
        print(f"  ours {ours:6.3f} s, by hand {own:6.3f} s, above {ours - own:+.3f} s")
        pairs.add(ours, own)


def _visit(port: int, host: str, timeout: float = 120.0) -> int:
    """The status at the first byte of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", "/", headers={"Host": host, "Accept": "*/*"})
        answer = connection.getresponse()
        answer.read(1)
        return answer.status
    finally:
        connection.close()


def own_start(image: Image) -> float:
    """Seconds from `docker run` by hand to the app's first answer below 500 at the container's address."""
    began = time.monotonic()
    container = _started(image)
    took = time.monotonic() - began
    docker("rm", "-f", container)
    return took


def _start_all(images: list[Image], workers: int, networks: Sequence[str] = ()) -> float:
    """Seconds until all have answered, `workers` at a time; on these networks, or all on the engine's own."""
    with contextlib.ExitStack() as stack, concurrent.futures.ThreadPoolExecutor(workers) as pool:
        began = time.monotonic()
        for one in pool.map(_started, images, networks or itertools.repeat("bridge")):
            stack.callback(docker, "rm", "-f", one)
        return time.monotonic() - began


@contextlib.contextmanager
def _networks(count: int) -> Iterator[list[str]]:
    """Small networks, as who keeps apps apart by hand has them."""
    names: list[str] = []
    try:
        for n in range(count):
            subnet = ipaddress.ip_address("10.215.0.0") + 16 * n
            names.append(docker("network", "create", "--subnet", f"{subnet}/28", f"spaces-bench-{n}").strip())
        yield names
    finally:
        for name in names:
            docker("network", "rm", name)


def _started(image: Image, network: str = "bridge") -> str:
    env = [f"--env={name}={value.replace('{PORT}', str(image.port))}" for name, value in _ENV.items()]
    argv = [word.replace("{PORT}", str(image.port)) for word in image.argv]
    container = docker("run", "-d", "--init", f"--network={network}", *env, image.id, *argv).strip()
    address = docker("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", container).strip()
    end = time.monotonic() + 120
    while not _answers(address, image.port):
        if time.monotonic() > end:
            raise RuntimeError(f"{image.id} does not answer: {docker('logs', container)[-500:]}")
        time.sleep(ASK_SECONDS)
    return container


_ENV = {"PORT": "{PORT}", "GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SERVER_PORT": "{PORT}", "PYTHONUNBUFFERED": "1"}


def _answers(address: str, port: int) -> bool:
    connection = http.client.HTTPConnection(address, port, timeout=60)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status < 500
    except OSError:
        return False
    finally:
        connection.close()


def _visits(port: int, host: str, seconds: float) -> list[float]:
    """Milliseconds of each of NOISY_RATE requests a second, by a process of its own that costs little.

    Raises RuntimeError where one failed.
    """
    argv = ["open-loop", host, str(port), "/", str(NOISY_RATE), str(seconds)]
    done = subprocess.run([sys.executable, str(LOAD), *argv], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    if found["errors"] or found["missed"]:
        raise RuntimeError(f"of the visits, {found['errors']} failed and {found['missed']} found all connections busy")
    times: list[float] = found["times_ms"]
    return times


def _quantile(times: list[float], share: float) -> float:
    return sorted(times)[math.ceil(share * len(times)) - 1]


def _ratio(what: str, pairs: Pairs) -> dict[str, Any]:
    times = min(pairs.bare) / min(pairs.ours)
    return _row(f"{what}, times faster", times, "x", at_least=2.0)


def _row(what: str, value: float, unit: str, *, at_most: float = 0.0, at_least: float = 0.0) -> dict[str, Any]:
    reached = value <= at_most if at_most else value >= at_least
    target = f"<= {at_most:g}" if at_most else f">= {at_least:g}"
    return {"what": what, "value": round(value, 3), "unit": unit, "target": target, "reached": reached}


def _ca() -> str:
    """The certificates that this machine trusts."""
    import ssl

    return ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt"


KEPT: dict[str, Callable[[Bench, Repo], list[dict[str, Any]]]] = {
    "code_only": Bench.code_only,
    "second_space": Bench.second_space,
    "wake_frozen": Bench.wake_frozen,
    "together_frozen": Bench.together_frozen,
    "noisy_build": Bench.noisy_build,
}
STOPPED: dict[str, Callable[[Bench, Repo], list[dict[str, Any]]]] = {
    "wake_stopped": Bench.wake_stopped,
    "together_stopped": Bench.together_stopped,
}
"""Rows of a platform that keeps no frozen apps."""


@contextlib.contextmanager
def _platform(folder: Path, extra: dict[str, str]) -> Iterator[Platform]:
    with redis(folder, free_port()) as url:
        settings = {"mode": "single-host", "redis": url, "docker": ENGINE, "ca_bundle": _ca()}
        settings |= {"build_memory_mb": str(BUILD_MB), **extra}
        try:
            with Platform(folder, settings=settings) as platform:
                yield platform
        finally:
            # Apps outlive their platform; these are to leave nothing, disks included.
            label = f"label={INSTANCE}={instance_of(folder / 'data' / 'containers')}"
            if left := docker("ps", "--all", "--quiet", "--filter", label).split():
                docker("rm", "--force", "--volumes", *left)
            if kept := docker("network", "ls", "--quiet", "--filter", label).split():
                docker("network", "rm", *kept)
            unmount_all(folder)


def measure(app: str, rounds: int, only: tuple[str, ...], given: dict[str, str]) -> list[dict[str, Any]]:
    print(f"Docker Engine {need_engine()}")
    rows = []
    for group, extra in ((KEPT, {}), (STOPPED, {"frozen_mb": "0"})):
        names = [name for name in group if name in only]
        if not names:
            continue
        with workplace() as folder, _platform(folder, {**given, **extra}) as platform:
            bench = Bench(platform, App(app, folder / "repos"), rounds)
            repo = bench.prepare()
            for name in names:
                print(f"{name} ({app}):")
                rows += [{**row, "what": f"{row['what']} ({app})"} for row in group[name](bench, repo)]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--app", choices=("plain", "gradio"), default="plain")
    parser.add_argument("--only", nargs="*", default=[*KEPT, *STOPPED], choices=[*KEPT, *STOPPED])
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the platform")
    given = parser.parse_args()
    try:
        settings = dict(one.split("=", 1) for one in given.set)
        rows = measure(given.app, given.rounds, tuple(given.only), settings)
    except Missing as missing:
        print(f"skipped, for want of {missing}")
        rows = [
            {"what": "containers", "value": None, "unit": "", "target": "", "reached": None, "skipped": [str(missing)]}
        ]
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
