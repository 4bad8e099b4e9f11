"""Single-host mode as users meet it: git push, Celery, BuildKit, containers behind the gateway."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from spaces_platform.adapters.docker.volumes import is_attached
from tests.containers.platforms import PYTHON, ContainerSystem, keeper, python
from tests.edge import hostile
from tests.edge.servers import free_port
from tests.faults import apps
from tests.faults.system import ROOT, until
from tests.faults.visitors import Crowd
from tests.services.engine import BASE, cli, has_image
from tests.services.redis import RedisServer

pytestmark = pytest.mark.timeout(600)
BUILD_SECONDS = 120.0
"""How long a build without downloads, and a start, may take on a busy machine."""
OFFICIAL_PYTHON = "python:3.12-slim"
STAND_IN = f"""\
FROM {BASE}
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates python3 python3-pip && \\
    rm /usr/lib/python3*/EXTERNALLY-MANAGED && ln -s python3 /usr/bin/python
CMD ["python3"]
"""


@contextmanager
def host(engine_url: str, **settings: object) -> Iterator[ContainerSystem]:
    """A single host of its own, with its Redis."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed (Debian package redis-server)")
    if cli(engine_url, "image", "inspect", PYTHON).returncode:
        pytest.skip(f"the engine has no image {PYTHON}: make base-images")
    with (
        tempfile.TemporaryDirectory(prefix="redis-") as queue,
        tempfile.TemporaryDirectory(prefix="host-", ignore_cleanup_errors=True) as name,
    ):
        folder, redis = Path(name), RedisServer(Path(queue))
        folder.chmod(0o711)
        made = ContainerSystem(folder, engine_url, redis.url, **settings)
        try:
            made.up()
            yield made
        finally:
            made.down()
            made.remove_all()
            redis.kill()


@pytest.fixture(scope="module")
def system(engine_url: str) -> Iterator[ContainerSystem]:
    with host(engine_url) as made:
        yield made


@pytest.fixture(scope="module")
def app(system: ContainerSystem) -> str:
    system.create("app")
    system.push("app", python("v1"))
    system.wait_serving("app", "v1", BUILD_SECONDS)
    return "app"


def log_of(system: ContainerSystem, build: int) -> str:
    return "".join(path.read_text() for path in sorted((system.data / "logs" / f"build@{build}").glob("*.log")))


def example(name: str) -> dict[str, str | bytes]:
    folder = ROOT / "examples" / name
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_dockerfile_is_pushed_and_served(system: ContainerSystem, app: str) -> None:
    environment = json.loads(system.get(app, "/env").body)
    assert environment["SPACE_ID"] == "admin/app"
    container = next(iter(system.containers().values()))
    config = container.attrs["Config"], container.attrs["HostConfig"]
    assert config[0]["User"] == "1000:1000"
    assert (config[1]["ReadonlyRootfs"], config[1]["CapDrop"], config[1]["Privileged"]) == (True, ["ALL"], False)


@pytest.mark.browser
def test_a_hostile_app_has_no_part_in_the_platforms_session(engine_url: str, tmp_path: Path) -> None:
    """T11."""
    tls, ask = free_port(), free_port()
    with host(engine_url, **hostile.settings(tls), tls_ask=f"127.0.0.1:{ask}") as behind:
        behind.create("evil")
        behind.push("evil", {**python("evil"), "app.py": hostile.APP})
        behind.wait_stage("evil", "RUNNING", BUILD_SECONDS)
        with hostile.front(behind, tmp_path, tls, ask) as it:
            hostile.attack(it)


def test_a_static_site_is_served(system: ContainerSystem) -> None:
    system.create("site")
    system.push("site", apps.static("hello from a container"))
    system.wait_serving("site", "hello from a container", BUILD_SECONDS)


@pytest.mark.installs
def test_the_gradio_example_greets(system: ContainerSystem) -> None:
    client = pytest.importorskip("gradio_client")
    system.create("hello")
    system.push("hello", example("gradio-hello"))
    found = system.wait_stage("hello", "RUNNING", 400)
    assert "Ada" in client.Client(found["urls"]["direct"], verbose=False).predict("Ada", 2, api_name="/greet")
    # The next push installs nothing: the environment's layers are there.
    system.push("hello", {**example("gradio-hello"), "notes.txt": "more"})
    builds = "SELECT id FROM build WHERE status = 'SUCCEEDED' AND space_id = ? ORDER BY id"
    until(lambda: len(system.rows(builds, system.space_id("hello"))) == 2, BUILD_SECONDS, "the second build")
    first, second = (log_of(system, row["id"]) for row in system.rows(builds, system.space_id("hello")))
    assert "gradio==" in first
    assert "gradio==" not in second


@pytest.fixture
def official_python(engine_url: str) -> Iterator[None]:
    """The image that Dockerfiles begin with. Where there is none, and no registry, Debian's Python by its name."""
    if has_image(engine_url, OFFICIAL_PYTHON):
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "Dockerfile").write_text(STAND_IN)
        done = cli(engine_url, "build", "--tag", OFFICIAL_PYTHON, folder)
    if done.returncode:
        pytest.skip(f"there is no {OFFICIAL_PYTHON}, and none can be made: {done.stderr.strip()[-300:]}")
    try:
        yield
    finally:
        cli(engine_url, "image", "rm", "--force", OFFICIAL_PYTHON)


@pytest.mark.installs
def test_the_docker_example_is_built_as_it_is_and_serves_restarted_and_woken(
    system: ContainerSystem, official_python: None
) -> None:
    def greets() -> bool:
        answer = system.get("api", "/?name=Ada")
        return answer.status == 200 and json.loads(answer.body) == {"hello": "Ada"}

    def serves(count: int) -> bool:
        """Whether the last of so many deployments serves, alone."""
        rows = system.rows("SELECT status FROM deployment WHERE space_id = ? ORDER BY id", system.space_id("api"))
        ended = {row["status"] for row in rows[:-1]} <= {"GONE"}
        return len(rows) == count and ended and system.status("api")["stage"] == "RUNNING" and greets()

    system.create("api")
    system.push("api", example("fastapi-docker"))
    ends = ("RUNNING", "BUILD_ERROR", "RUNTIME_ERROR", "CONFIG_ERROR")
    found = until(lambda: (seen := system.status("api"))["stage"] in ends and seen, 400, "the app runs, or will not")
    assert found["stage"] == "RUNNING", found
    assert greets()
    assert "Hello from a container" in system.get("api", "/docs").text
    system.api("POST", "/api/spaces/admin/api/restart")
    until(lambda: serves(2), BUILD_SECONDS, "a restart")
    system.api("POST", "/api/platform/spaces/admin/api/sleep")
    until(lambda: system.frozen("api"), 30, "the app is frozen")
    assert system.status("api")["stage"] == "SLEEPING"
    assert greets()
    until(lambda: serves(2), 30, "it is woken, and not started anew")
    # Only code has changed: nothing is installed again.
    system.push("api", {**example("fastapi-docker"), "notes.txt": "more"})
    until(lambda: serves(3), BUILD_SECONDS, "the second version")
    builds = system.rows("SELECT id FROM build WHERE space_id = ? ORDER BY id", system.space_id("api"))
    assert ["Collecting fastapi" in log_of(system, row["id"]) for row in builds] == [True, False]


def test_secrets_reach_the_app_and_no_image(system: ContainerSystem) -> None:
    value = "s3cret-" + "k" * 20
    system.create("keeper", secrets={"KEY": value})
    system.push("keeper", python("kept"))
    system.wait_serving("keeper", "kept", BUILD_SECONDS)
    assert json.loads(system.get("keeper", "/env").body)["KEY"] == value
    image = next(c for c in system.containers().values() if f"KEY={value}" in c.attrs["Config"]["Env"]).image
    assert value not in json.dumps(image.attrs) + json.dumps(image.history())
    system.push("keeper", {**python("leaks"), "notes.txt": f"my key is {value}\n"})
    until(lambda: system.status("keeper")["reason"], BUILD_SECONDS, "the leak is found")
    told = system.status("keeper")
    assert "notes.txt" in json.dumps(told)
    assert value not in json.dumps(told)
    assert system.get("keeper").text == "kept"


def test_a_sleeping_app_is_frozen_and_a_visit_thaws_it(system: ContainerSystem, app: str) -> None:
    starts = len(system.rows("SELECT 1 FROM deployment"))
    system.api("POST", f"/api/platform/spaces/admin/{app}/sleep")
    until(lambda: system.frozen(app), 30, "the app is frozen")
    assert system.status(app)["stage"] == "SLEEPING"
    answers: list[int] = []
    visitors = [threading.Thread(target=lambda: answers.append(system.get(app).status)) for _ in range(20)]
    for one in visitors:
        one.start()
    for one in visitors:
        one.join()
    assert answers == [200] * 20
    assert len(system.rows("SELECT 1 FROM deployment")) == starts, "it was started anew"


def test_deploys_under_load_fail_nobody(system: ContainerSystem, app: str) -> None:
    """T37 in containers: new versions, and two that never serve, under visitors and WebSockets."""
    until(lambda: system.get(app).status == 200, 30, "the app answers")
    deploys = [
        ("v2", python("v2", ignore_term=True)),
        ("bad-silent", python("bad-silent", ready=False, startup_duration_timeout="3s")),
        ("bad-crash", {**python("bad-crash"), "app.py": "raise SystemExit('no luck')"}),
        ("v3", python("v3", start_delay=0.5)),
    ]
    with Crowd(system.port, f"admin-{app}.localhost").probe(40).websockets(8).download(2, 20) as visitors:
        for text, files in deploys:
            system.push(app, files)
            if text.startswith("bad"):
                until(lambda: system.status(app)["reason"], BUILD_SECONDS, f"{text} is refused")
            else:
                until(lambda t=text: t in visitors.outcome.texts, BUILD_SECONDS, f"{text} serves")
        until(lambda: "v3" in visitors.sockets.texts, 60, "sockets move on")
    assert visitors.outcome.failed == []
    assert visitors.downloads.failed == []
    assert visitors.sockets.failed == []
    assert set(visitors.outcome.texts) <= {"v1", "v2", "v3"}
    until(lambda: len(system.app_processes()) == len(_open(system)), 120, "old containers are gone")
    system.check()


def test_apps_go_on_while_the_control_plane_or_a_worker_is_killed(system: ContainerSystem, app: str) -> None:
    before = {number: c.id for number, c in system.containers().items()}
    system.create("steady")
    with Crowd(system.port, f"admin-{app}.localhost").probe(40).websockets(4) as visitors:
        commit = system.commit("steady", python("steady"))
        system.push_commit("steady", commit, check=True)
        system.kill("worker")
        system.wait_serving("steady", "steady", BUILD_SECONDS)
        system.kill("control")
        system.wait_ready(60)
        system.signal("control", signal.SIGSTOP)
        time.sleep(2.0)  # visitors come while it hangs: the time is the test
        system.signal("control", signal.SIGCONT)
        system.wait_ready(60)
    assert visitors.outcome.failed == []
    assert visitors.sockets.failed == []
    after = {number: c.id for number, c in system.containers().items()}
    assert before.items() <= after.items(), "an app was restarted"
    system.check()


@pytest.mark.skipif(os.geteuid() != 0, reason="volumes are mounted by root")
def test_what_an_app_writes_at_data_outlives_its_versions_and_can_be_put_back(system: ContainerSystem) -> None:
    at = "/api/platform/spaces/admin/store/volume"
    system.create("store")
    system.push("store", keeper("one"))
    system.wait_serving("store", "one", BUILD_SECONDS)
    space = system.space_id("store")
    image = system.data / f"containers/volumes/{space}/disk.img"
    assert system.get("store", "/read").text == "nothing"
    assert 900 < int(system.get("store", "/size").text) <= 1024
    system.get("store", "/write/first")
    # A new version takes over while visitors read: both have the volume for the moment of the swap.
    system.push("store", keeper("two"))
    with Crowd(system.port, "admin-store.localhost").probe(20) as visitors:
        until(lambda: "two" in visitors.outcome.texts, BUILD_SECONDS, "two serves")
    assert visitors.outcome.failed == []
    assert system.get("store", "/read").text == "first"
    name = system.api("POST", f"{at}/snapshots")["name"]
    system.get("store", "/write/spoilt")
    # More of it: what is there stays, and it has grown at the latest after a pause.
    system.api("POST", "/api/spaces/admin/store/storage", {"tier": "small"})
    until(lambda: len(_deployments(system, space)) == 3 and _serves(system, "store"), BUILD_SECONDS, "a restart")
    assert system.get("store", "/read").text == "spoilt"
    system.api("POST", f"{at}/snapshots/{name}/restore", expect=409)
    system.api("POST", "/api/spaces/admin/store/pause")
    until(lambda: not _containers(system, space), 60, "the app has ended")
    until(lambda: not is_attached(image), 60, "the kernel lets go of its volume")
    until(lambda: _restored(system, f"{at}/snapshots/{name}/restore"), 60, "the snapshot is put back")
    system.api("POST", "/api/spaces/admin/store/restart")
    system.wait_serving("store", "two", BUILD_SECONDS)
    assert system.get("store", "/read").text == "first"
    assert 3900 < int(system.get("store", "/size").text) <= 4096
    assert system.api("GET", at)["sizeBytes"] == 4096 << 20
    # Deleted: it starts anew, with nothing in it.
    system.api("DELETE", "/api/spaces/admin/store/storage")
    until(lambda: not _row(system, space)["drops_volume"], BUILD_SECONDS, "the volume is removed")
    system.wait_serving("store", "two", BUILD_SECONDS)
    assert system.get("store", "/read").text == "nothing"
    assert system.api("GET", f"{at}/snapshots") == []
    # The control plane dies while the Space is deleted; the next one ends that.
    system.api("DELETE", "/api/repos/delete", {"type": "space", "organization": "admin", "name": "store"})
    system.kill("control")
    system.wait_ready(60)
    until(lambda: _row(system, space)["purged_at"] is not None, 60, "the Space is gone")
    assert not image.parent.exists()


def _row(system: ContainerSystem, space: int) -> dict[str, Any]:
    return system.rows("SELECT drops_volume, purged_at FROM space WHERE id = ?", space)[0]


def _deployments(system: ContainerSystem, space: int) -> list[dict[str, Any]]:
    return system.rows("SELECT id FROM deployment WHERE space_id = ?", space)


def _containers(system: ContainerSystem, space: int) -> list[int]:
    return [row["id"] for row in _deployments(system, space) if row["id"] in system.containers()]


def _serves(system: ContainerSystem, name: str) -> bool:
    newest = max(row["id"] for row in _deployments(system, system.space_id(name)))
    live = system.rows("SELECT id FROM deployment WHERE live AND space_id = ?", system.space_id(name))
    return [row["id"] for row in live] == [newest]


def _restored(system: ContainerSystem, path: str) -> bool:
    """False while the platform says that the app still ends."""
    status, found = system.api("POST", path, expect=None)
    assert status in (200, 503), found
    return bool(status == 200)


def test_down_stops_every_container_and_up_brings_the_apps_back(system: ContainerSystem, app: str) -> None:
    awake = system.get(app).text
    system.down()
    assert [c for c in system.containers().values() if c.status in ("running", "paused")] == []
    system.up()
    system.wait_serving(app, awake, BUILD_SECONDS)


def _open(system: ContainerSystem) -> list[object]:
    return list(system.rows("SELECT 1 FROM deployment WHERE status IN ('STARTING', 'READY', 'STOPPING', 'FROZEN')"))
