"""GPUs through a real engine: which app gets which, and that none gets one that it was not given.

The engine is one of our own on a machine with NVIDIA's programs (tests/services/nvidia.py): its driver for
`DeviceRequests` and runc are the real ones, a GPU is a device node.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from spaces_platform.cli.doctor import engine as doctor
from spaces_platform.errors import PlatformError
from spaces_platform.ports import Gpu
from tests.containers.harness import Place, exited, image_id, place_on, ran, ready
from tests.containers.platforms import PYTHON, ContainerSystem, python
from tests.faults.system import until
from tests.process import apps
from tests.services.engine import IMAGE, Engine, cli, copy_image, own_engine
from tests.services.nvidia import HOOK, RUNTIME, Toolkit
from tests.services.redis import RedisServer

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("dockerd") is None, reason="an engine of our own needs root and docker.io"
    ),
]
GPUS = {"GPU-5f2c9d1e": "Tesla T4", "GPU-77aa01bc": "Tesla T4"}
FIRST, SECOND = GPUS
SECONDS = 120.0
SHOWS = """
import json, os
nodes = sorted(name for name in os.listdir("/dev") if name.startswith("nvidia"))
for name in nodes:
    open("/dev/" + name, "wb").write(b"work")
print(json.dumps([nodes, os.environ.get("NVIDIA_VISIBLE_DEVICES"), os.environ.get("NVIDIA_DRIVER_CAPABILITIES")]))
"""


@dataclass
class Host:
    toolkit: Toolkit
    engine: Engine


@pytest.fixture(scope="module", params=["runc", "nvidia"])
def host(request: pytest.FixtureRequest, engine_url: str) -> Iterator[Host]:
    """A machine with two GPUs; NVIDIA's runtime is the engine's default, as many machines have it, or is not."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dockerd-", ignore_cleanup_errors=True)))
        folder.chmod(0o711)
        toolkit = Toolkit(folder / "nvidia", GPUS)
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("PATH", f"{toolkit.folder}:{os.environ['PATH']}")
        default = f"--default-runtime={request.param}"
        engine = stack.enter_context(
            own_engine(
                folder, "--live-restore", "--default-address-pool=base=10.211.0.0/16,size=26",
                f"--add-runtime=nvidia={toolkit.folder}/{RUNTIME}", default,
            )
        )  # fmt: skip
        copy_image(engine_url, engine.url, IMAGE, PYTHON)
        yield Host(toolkit, engine)


@pytest.fixture
def place(host: Host) -> Iterator[Place]:
    with place_on(host.engine.url) as made:
        yield made


def seen(place: Place, *gpus: str, image: str = "", **env: str) -> list[object]:
    """Device nodes of GPUs that an app finds and can use, and what its environment says of them."""
    more = {"artifact_ref": f"image:{image}"} if image else {}
    found: list[object] = json.loads(ran(place, place.orchestrator(), SHOWS, gpus=gpus, env=env, **more))
    return found


def test_those_of_the_machine_are_offered(host: Host, place: Place) -> None:
    orchestrator = place.orchestrator()
    assert list(orchestrator.gpus()) == [Gpu(id_, name) for id_, name in GPUS.items()]
    host.toolkit.fail()
    try:
        assert list(orchestrator.gpus()) == []
    finally:
        host.toolkit.fail(False)


@pytest.mark.parametrize(
    ("given", "nodes"),
    [((FIRST,), ["nvidia0"]), ((SECOND,), ["nvidia1"]), ((FIRST, SECOND), ["nvidia0", "nvidia1"])],
    ids=["first", "second", "both"],
)
def test_an_app_has_those_that_it_was_given(place: Place, given: tuple[str, ...], nodes: list[str]) -> None:
    assert seen(place, *given) == [nodes, ",".join(given), "compute,utility"]


def test_no_app_has_more_than_it_was_given(host: Host, place: Place) -> None:
    """Neither by a variable of its own nor by one of its image, as CUDA's images have it."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "Dockerfile").write_text(f"FROM {IMAGE}\nENV NVIDIA_VISIBLE_DEVICES=all\n")
        assert cli(host.engine.url, "build", "--tag", "greedy", folder).returncode == 0
    greedy = image_id(host.engine.url, "greedy")
    for wish in ({}, {"NVIDIA_VISIBLE_DEVICES": "all"}, {"NVIDIA_VISIBLE_DEVICES": FIRST}):
        for image in ("", greedy):
            assert seen(place, image=image, **wish)[0] == [], (wish, image)
            assert seen(place, SECOND, image=image, **wish)[0] == ["nvidia1"], (wish, image)


def test_a_gpu_that_fails_is_named_and_given_back(host: Host, place: Place) -> None:
    orchestrator = place.orchestrator()
    host.toolkit.fail()
    try:
        spec = place.spec(apps.server(), gpus=(FIRST,))
        with pytest.raises(PlatformError, match="the driver is away"):
            orchestrator.start(spec)
        assert spec.id not in place.containers()
        other = place.spec(SHOWS)
        orchestrator.start(other)
        exited(orchestrator, other.id)
    finally:
        host.toolkit.fail(False)
    again = place.spec(apps.server(), gpus=(FIRST,))
    orchestrator.start(again)
    ready(orchestrator, again.id)


def test_the_doctor_tries_all_of_them(host: Host, engine_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(url: str = host.engine.url, **more: bool) -> list[tuple[str, str]]:
        checks = doctor.check_engine(url, "", IMAGE, **more)
        return [(check.level, f"{check.found} {check.fix}") for check in checks if check.name == "gpus"]

    assert told() == [("ok", "2 x Tesla T4 ")]
    assert told(gpus=False) == []
    ((level, words),) = told(engine_url)  # it was started without the toolkit
    assert level == "fail"
    assert "could not select device driver" in words
    host.toolkit.fail()
    try:
        ((level, words),) = told()
    finally:
        host.toolkit.fail(False)
    assert level == "fail"
    assert "communicate with the NVIDIA driver" in words
    (host.toolkit.folder / HOOK).rename(host.toolkit.folder / "away")
    try:
        ((level, words),) = told(engine_url)
    finally:
        (host.toolkit.folder / "away").rename(host.toolkit.folder / HOOK)
    assert level == "warn"
    assert "nvidia-container-toolkit" in words
    monkeypatch.setenv("PATH", os.environ["PATH"].partition(":")[2])
    assert told() == []


@pytest.fixture
def system(host: Host) -> Iterator[ContainerSystem]:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed (Debian package redis-server)")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="host-", ignore_cleanup_errors=True)))
        folder.chmod(0o711)
        (folder / "redis").mkdir()
        server = RedisServer(folder / "redis")
        stack.callback(server.kill)
        made = ContainerSystem(folder, host.engine.url, server.url)
        stack.callback(made.remove_all)
        stack.callback(made.down)
        made.up()
        yield made


def test_three_spaces_share_two_gpus(system: ContainerSystem) -> None:
    """Each of two has one of its own; the third has the one that is given back."""
    names = ("one", "two", "three")
    for name in names:
        system.create(name)
        system.api("POST", f"/api/spaces/admin/{name}/hardware", {"flavor": "t4-small"})
    for name in names:
        system.push(name, python(name))
    held = "SELECT gpu, space_id FROM gpulease ORDER BY gpu"

    def serving() -> list[str]:
        return [name for name in names if system.status(name)["stage"] == "RUNNING"]

    def device(name: str) -> str:
        environment = json.loads(system.get(name, "/env").body)
        assert environment["ACCELERATOR"] == "t4-small"
        return str(environment["NVIDIA_VISIBLE_DEVICES"])

    waiting = "SELECT id FROM space WHERE gpu_queued_at IS NOT NULL"
    until(lambda: len(system.rows(held)) == 2 and len(system.rows(waiting)) == 1, SECONDS, "two GPUs are held")
    until(lambda: len(serving()) == 2, SECONDS, "two Spaces serve")
    first = serving()
    assert sorted(device(name) for name in first) == sorted(GPUS)
    given_back = device(first[0])
    system.api("POST", f"/api/spaces/admin/{first[0]}/pause")
    (last,) = set(names) - set(first)
    system.wait_serving(last, last, SECONDS)
    assert device(last) == given_back
    assert {row["space_id"] for row in system.rows(held)} == {system.space_id(name) for name in (last, first[1])}
    asked = {
        container.name: request["DeviceIDs"]
        for container in system.containers().values()
        for request in container.attrs["HostConfig"]["DeviceRequests"] or ()
    }
    assert sorted(id_ for ids in asked.values() for id_ in ids) == sorted(GPUS), asked
