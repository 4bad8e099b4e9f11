"""An engine that remaps users (`--userns-remap`): nobody in a container is anybody on the host, all else is as ever.

The engine is one of our own, in mounts and networks of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import docker
import pytest

from spaces_platform.adapters.docker import DockerOrchestrator, volumes
from spaces_platform.adapters.docker.engine import Owner
from spaces_platform.adapters.docker.network import bridge_prefix
from spaces_platform.adapters.docker.volumes import owner_of
from spaces_platform.errors import Unavailable
from spaces_platform.ports import RunStatus
from tests.containers.harness import Place, alive, exited, place_on, ran, ready, text
from tests.containers.test_run_limits import FILL, TIGHT
from tests.containers.test_run_restarts import get
from tests.containers.test_run_sandbox import MAY, TRY_EVERYTHING
from tests.containers.test_run_volumes import WITH_VOLUME, read, run, write
from tests.process import apps
from tests.process.harness import wait_for
from tests.services.engine import Engine, copy_image, own_engine
from tests.services.userns import GIDS, UIDS, ids, remapping_engine

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("dockerd") is None, reason="an engine of our own needs root and docker.io"
)
SECONDS = 60.0
MIB = 1 << 20
APP = Owner(UIDS + 1000, GIDS + 1000)


@contextmanager
def own_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="dockerd-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def remapped(engine_url: str) -> Iterator[Engine]:
    """An engine that remaps users and has the test image."""
    with own_folder() as place, remapping_engine(place) as engine:
        copy_image(engine_url, engine.url)
        yield engine


@pytest.fixture
def place(remapped: Engine) -> Iterator[Place]:
    with place_on(remapped.url) as made:
        yield made


# --- who is who ------------------------------------------------------------------------------------------------------
def test_an_apps_processes_are_nobody_on_the_host(place: Place) -> None:
    running = place.orchestrator()
    assert "user namespace" in running.isolation().words
    assert any("nobody on the host" in words for words in running.isolation().holds)
    spec = place.spec(apps.server())
    running.start(spec)
    seen = ready(running, spec.id)
    assert "user namespace" in seen.isolation
    assert "sized disk" in seen.isolation
    members = place.members(spec.id)
    assert len(members) > 1
    assert {uid for pid in members for uid in ids(pid)[0]} == {APP.uid}
    assert {gid for pid in members for gid in ids(pid)[1]} == {APP.gid}


def test_root_in_a_container_is_not_root_on_the_host(place: Place, tmp_path: Path) -> None:
    """Even where somebody runs one as root, with files of the host in it."""
    (tmp_path / "theirs").write_text("as it was")
    tmp_path.chmod(0o755)
    with docker.APIClient(base_url=place.url, version="auto") as client:
        found = client.create_container(
            place.image, ["sh", "-c", "id -u; cat /host/theirs; echo; echo x > /host/theirs; sleep 600"], user="0:0",
            host_config=client.create_host_config(binds=[f"{tmp_path}:/host"]),
        )  # fmt: skip
        try:
            client.start(found)
            log = wait_for("it has tried", lambda: b"denied" in (said := client.logs(found)) and said.decode())
            assert {"0", "as it was"} <= set(log.splitlines())
            assert ids(client.inspect_container(found)["State"]["Pid"]) == ({UIDS}, {GIDS})
        finally:
            client.remove_container(found, force=True)
    assert (tmp_path / "theirs").read_text() == "as it was"


# --- what it may -----------------------------------------------------------------------------------------------------
def test_it_writes_where_it_may_and_every_way_out_is_shut(place: Place) -> None:
    running = place.orchestrator()
    source = TRY_EVERYTHING.replace('"/dev/shm")},', '"/dev/shm", "/data")},')
    spec = place.spec(source, resources=WITH_VOLUME)
    running.start(spec)
    assert exited(running, spec.id).exit_code == 0, text(running, spec.id)
    report = json.loads(text(running, spec.id))
    assert {path for path, said in report["written"].items() if said == "done"} == {*MAY, "/data"}
    assert [name for name, said in report["tries"].items() if said == "done"] == []
    assert report["uid_map"] == ["0", str(UIDS), "65536"]
    status = report["status"]
    assert (status["Uid"].split(), status["Gid"].split()) == (["1000"] * 4, ["1000"] * 4)


def test_what_it_writes_is_its_own_inside_and_outside(place: Place) -> None:
    """And so is what its image has in its home."""
    source = """
import os
for path in ("/home/user/new", "/home/user/app/new", "/tmp/new", "/data/new"):
    open(path, "w").close()
owners = {path: os.stat(path) for path in (
    "/home/user", "/home/user/app", "/data", "/home/user/new", "/home/user/app/new", "/tmp/new", "/data/new")}
print(sorted({f"{found.st_uid}:{found.st_gid}" for found in owners.values()}))
"""
    running = place.orchestrator()
    spec = place.spec(source, resources=WITH_VOLUME)
    running.start(spec)
    exited(running, spec.id)
    assert text(running, spec.id) == "['1000:1000']"
    disk = place.root / f"containers/deployments/{spec.id}/disk"
    for path in (disk / "upper-0/new", disk / "tmp/new", place.root / "containers/volumes/1/mounted/data/new"):
        assert owner_of(path) == APP, path


def test_its_disk_and_its_volume_have_a_size(place: Place) -> None:
    running = place.orchestrator()
    source = f"import json{FILL}print(json.dumps([fill(p + '/zeros') for p in ('/tmp', '/data')]))"
    found = json.loads(ran(place, running, source, resources=replace(WITH_VOLUME, disk=32 * MIB)))
    assert [said for _, said in found] == ["No space left on device"] * 2
    assert all(4 * MIB < size < 32 * MIB for size, _ in found)


def test_it_reads_the_certificates_that_it_is_to_trust(place: Place, tmp_path: Path) -> None:
    """Where only root gets to on the host."""
    bundle = tmp_path / "private" / "ca.pem"
    bundle.parent.mkdir(mode=0o700)
    bundle.write_text("trusted")
    running = place.orchestrator(ca_bundle=str(bundle))
    assert ran(place, running, "import os; print(open(os.environ['SSL_CERT_FILE']).read())") == "trusted"


# --- its life --------------------------------------------------------------------------------------------------------
def test_it_is_frozen_thawed_and_found_again(place: Place) -> None:
    running = place.orchestrator()
    spec = place.spec(apps.server("print('hello', flush=True)"))
    running.start(spec)
    endpoint = ready(running, spec.id).endpoint
    running.freeze(spec.id)
    assert running.observe()[spec.id].status is RunStatus.FROZEN
    assert place.containers()[spec.id]["State"]["Paused"] is False, "the kernel holds it"
    assert running.memory_in_use(spec.id) > MIB
    running.close()
    running = place.orchestrator()
    assert running.observe()[spec.id].status is RunStatus.FROZEN
    running.thaw(spec.id)
    assert get(endpoint) == "ok"
    assert text(running, spec.id).splitlines() == ["hello", "listening"]


def test_where_it_listens_instead_is_seen(place: Place) -> None:
    running = place.orchestrator()
    spec = place.spec(apps.server(port="17860"))
    running.start(spec)
    wait_for("that is told", lambda: running.observe()[spec.id].listening == ("0.0.0.0:17860",), SECONDS)


def test_its_end_for_want_of_memory_is_told(place: Place) -> None:
    running = place.orchestrator()
    spec = place.spec(apps.MEMORY_HOG, resources=TIGHT)
    running.start(spec)
    seen = exited(running, spec.id)
    assert (seen.out_of_memory, seen.exit_code) == (True, -9)


def test_a_volume_outlives_the_platform_and_is_put_back(place: Place) -> None:
    running = place.orchestrator()
    write(place, running, "first")
    running.close()
    running = place.orchestrator()
    name = running.volumes.snapshot(1)
    write(place, running, "second")
    running.volumes.restore(1, name)
    assert read(place, running) == "first"


# --- switched on and off ---------------------------------------------------------------------------------------------
KEEPS = """
import os
os.makedirs("/data/a/b")
open("/data/a/b/secret", "w").write("kept")
for path, mode in (("/data/a/b/secret", 0o600), ("/data/a/b", 0o700), ("/data/a", 0o700)):
    os.chmod(path, mode)
os.symlink({theirs!r}, "/data/a/link")
"""
USES = """
import os
print(open("/data/a/b/secret").read(), {os.lstat(path).st_uid for path in ("/data", "/data/a", "/data/a/link")})
open("/data/a/b/secret", "a").close()
open("/data/a/new", "w").close()
"""


@contextmanager
def switched_off(remapped: Engine, place: Place, source: str) -> Iterator[Place]:
    """The same data directory, while in the place of its engine there is one that does not remap users."""
    remapped.stop()
    try:
        with own_folder() as folder, own_engine(folder, "--live-restore") as plain:
            copy_image(source, plain.url)
            yield Place(place.root, plain.url, 100)
    finally:
        remapped.start()


def serving(place: Place, running: DockerOrchestrator) -> tuple[int, list[int]]:
    """An app that serves with its volume: its deployment and its processes."""
    spec = place.spec(apps.server(), resources=WITH_VOLUME)
    running.start(spec)
    ready(running, spec.id)
    return spec.id, place.members(spec.id)


def test_what_apps_keep_follows_where_users_are_remapped_no_more_and_again(
    remapped: Engine, place: Place, engine_url: str, tmp_path: Path
) -> None:
    """One installation, whose admin switches it off and on; the platform is not told, and apps run on."""
    theirs = tmp_path / "theirs"
    theirs.touch()
    first = place.orchestrator()
    run(place, first, KEEPS.format(theirs=str(theirs)))
    name = first.volumes.snapshot(1)
    number, forgotten = serving(place, first)
    first.freeze(number)
    first.close()
    with switched_off(remapped, place, engine_url) as off:
        assert alive(forgotten)
        with closing(off.orchestrator()) as second:
            assert not alive(forgotten), "no engine would ever end them"
            assert second.observe()[number].status is RunStatus.EXITED
            assert "user namespace" not in second.isolation().words
            assert run(off, second, USES) == "kept {1000}"
            second.purge(1)
            assert bridges(place) == [], "the engine made that one itself, and takes it away"
            number, forgotten = serving(off, second)
            data = place.root / "containers/volumes/1/mounted/data"
            assert {owner_of(path) for path in data.rglob("*")} == {Owner(1000, 1000)}
    assert alive(forgotten)
    third = place.orchestrator()
    assert not alive(forgotten)
    third.stop(number)
    assert run(place, third, USES) == "kept {1000}"
    third.volumes.restore(1, name)
    assert run(place, third, USES) == "kept {1000}"
    assert owner_of(theirs) == Owner(0, 0), "no link of an app is followed"


def bridges(place: Place) -> list[str]:
    return [name for _, name in socket.if_nameindex() if name.startswith(bridge_prefix(place.instance))]


def test_a_change_of_owner_that_was_cut_short_is_done_by_the_next_start(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    running = place.orchestrator()
    spec = place.spec(KEEPS.format(theirs="/"), resources=WITH_VOLUME)
    running.start(spec)
    exited(running, spec.id)
    data = place.root / "containers/volumes/1/mounted/data"
    for path in (data, *data.rglob("*")):  # as an engine that does not remap users leaves it
        os.chown(path, 1000, 1000, follow_symlinks=False)
    whole = volumes.give_script

    def half(data: str, user: Owner) -> str:
        return f"{whole(f'{data}/a/b', user)}echo killed >&2; exit 1"

    monkeypatch.setattr(volumes, "give_script", half)
    again = place.spec(USES, resources=WITH_VOLUME)
    with pytest.raises(Unavailable, match=f"could not be given to {APP}.*killed"):
        running.start(again)
    assert (owner_of(data / "a/b/secret"), owner_of(data)) == (APP, Owner(1000, 1000))
    monkeypatch.undo()
    assert ran(place, running, USES, resources=WITH_VOLUME) == "kept {1000}"
    assert f"is 1000:1000's on this host: it is given to {APP}" in caplog.text
