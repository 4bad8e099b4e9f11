"""The persistent volumes of Spaces: what is written at /data stays, has a size, and can be put back. Volumes port."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from spaces_platform.adapters.docker import DockerOrchestrator, orchestrator, volumes
from spaces_platform.errors import Conflict, DiskFull
from spaces_platform.ports import Resources
from tests.containers.harness import SMALL, Place, exited, gone, ready, text
from tests.process import apps
from tests.process.harness import wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="volumes are mounted by root")
MIB = 1 << 20
WITH_VOLUME = replace(SMALL, volume=16 * MIB)
SECONDS = 60.0


def run(
    place: Place, running: DockerOrchestrator, source: str, space_id: int = 1, resources: Resources = WITH_VOLUME
) -> str:
    """The output of an app that ends, all of it cleared away."""
    spec = place.spec(source, space_id=space_id, resources=resources)
    running.start(spec)
    exited(running, spec.id)
    said = text(running, spec.id)
    running.stop(spec.id)
    running.forget(spec.id)
    wait_for("its container is gone", lambda: spec.id not in place.containers(), SECONDS)
    image = place.root / f"containers/volumes/{space_id}/disk.img"
    wait_for("the kernel lets go of its volume", lambda: not volumes.is_attached(image), SECONDS)
    return said


def write(place: Place, running: DockerOrchestrator, word: str, space_id: int = 1) -> None:
    run(place, running, f"open('/data/word', 'w').write({word!r})", space_id)


def read(place: Place, running: DockerOrchestrator, space_id: int = 1) -> str:
    return run(
        place, running, "import os\nprint(open('/data/word').read() if os.path.exists('/data/word') else '')", space_id
    )


def test_what_is_written_is_there_for_the_next_platform(place: Place) -> None:
    running = place.orchestrator()
    write(place, running, "kept")
    running.close()
    assert read(place, place.orchestrator()) == "kept"


def test_a_volume_is_as_large_as_it_is_said_and_grows_when_that_is_raised(place: Place) -> None:
    running = place.orchestrator()
    source = "import os\ns = os.statvfs('/data')\nprint(s.f_blocks * s.f_frsize >> 20)"
    write(place, running, "kept")
    small = int(run(place, running, source))
    large = int(run(place, running, source, resources=replace(WITH_VOLUME, volume=48 * MIB)))
    assert 8 <= small <= 16 < 32 <= large <= 48
    assert read(place, running) == "kept"
    # Only what is written takes room on the machine.
    image = place.root / "containers/volumes/1/disk.img"
    assert image.stat().st_blocks * 512 < 8 * MIB


@pytest.mark.parametrize("held", [1.0, volumes.LETTING_GO_SECONDS + 2])
def test_a_start_that_makes_it_larger_waits_a_moment_until_nobody_holds_it(place: Place, held: float) -> None:
    """A container that starts has a copy of all mounts for a moment. Held for longer, the app has the room it had."""
    running = place.orchestrator()
    source = "import os\ns = os.statvfs('/data')\nprint(s.f_blocks * s.f_frsize >> 20)"
    small = int(run(place, running, source))
    image = str(place.root / "containers/volumes/1/disk.img")
    device = subprocess.run(["losetup", "--find", "--show", image], check=True, capture_output=True, text=True).stdout
    end = threading.Timer(held, lambda: subprocess.run(["losetup", "--detach", device.strip()], check=True))
    end.start()
    try:
        found = int(run(place, running, source, resources=replace(WITH_VOLUME, volume=48 * MIB)))
    finally:
        end.join()
    assert (found > 32) if held < volumes.LETTING_GO_SECONDS else (found == small)
    assert int(run(place, running, source, resources=replace(WITH_VOLUME, volume=48 * MIB))) > 32


def test_a_snapshot_of_a_running_app_is_one_moment_and_the_app_goes_on(place: Place) -> None:
    """The app writes pairs in order: a copy that is not of one moment has a second without its first."""
    running = place.orchestrator()
    pairs = """
import threading
def pairs():
    n = 0
    while True:
        n += 1
        for name in ("a", "b"):
            with open(f"/data/{name}", "w") as file:
                file.write(f"{n:09d}")
                file.flush()
                os.fsync(file.fileno())
threading.Thread(target=pairs, daemon=True).start()
"""
    spec = place.spec(apps.server(pairs), resources=WITH_VOLUME)
    running.start(spec)
    ready(running, spec.id)
    names = [running.volumes.snapshot(1) for _ in range(4)]
    with pytest.raises(Conflict, match="pause it"):
        running.volumes.restore(1, names[0])
    mounted = place.root / "containers/volumes/1/mounted/data/a"
    before = mounted.read_text()
    wait_for("it writes on", lambda: mounted.read_text() > before, SECONDS)
    running.stop(spec.id)
    gone(running, spec.id)
    wait_for("its container is gone", lambda: not place.containers(), SECONDS)
    for name in names:
        running.volumes.restore(1, name)
        a, b = run(place, running, "print(open('/data/a').read() or 0, open('/data/b').read() or 0)").split()
        assert int(b) <= int(a) or int(a) == 0, name  # empty for the moment between open and write


def test_a_full_machine_takes_no_snapshot_and_the_app_goes_on(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full halfway through the copy, as a real disk is: the file system is not left frozen, and no half is left."""
    running = place.orchestrator()
    spec = place.spec(apps.server(), resources=WITH_VOLUME)
    running.start(spec)
    ready(running, spec.id)
    with small_disk(place.root / "containers/volumes/1/snapshots"):
        with pytest.raises(DiskFull):
            running.volumes.snapshot(1)
        monkeypatch.setattr(volumes.shutil, "disk_usage", lambda _: volumes.shutil._ntuple_diskusage(0, 0, 1 << 40))
        with pytest.raises(DiskFull):
            running.volumes.snapshot(1)
        assert list(running.volumes.snapshots(1)) == []
        assert list((place.root / "containers/volumes/1/snapshots").iterdir()) == []
        probe = place.root / "containers/volumes/1/mounted/probe"
        done = threading.Thread(target=lambda: probe.write_text("not frozen"), daemon=True)
        done.start()
        done.join(SECONDS)
        assert probe.read_text() == "not frozen"


class small_disk:
    """A place with room for a few blocks only."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        self.path.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", self.path], check=True)

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", self.path], check=True)


KILLED = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY)
fcntl.ioctl(fd, 0xC0045877, 0)
os._exit(0)
"""


def test_a_platform_killed_amid_a_snapshot_leaves_no_app_frozen(place: Place) -> None:
    running = place.orchestrator()
    spec = place.spec(apps.server(), resources=WITH_VOLUME)
    running.start(spec)
    ready(running, spec.id)
    running.close()
    folder = place.root / "containers/volumes/1"
    subprocess.run([sys.executable, "-I", "-S", "-c", KILLED, folder / "mounted"], check=True)
    (folder / "snapshots").mkdir(exist_ok=True)
    (folder / "snapshots" / "20200101T000000000000Z.img.new").write_bytes(b"half")
    stuck = threading.Thread(target=lambda: (folder / "mounted" / "probe").write_text("x"), daemon=True)
    stuck.start()
    again = place.orchestrator()
    stuck.join(SECONDS)
    assert (folder / "mounted" / "probe").read_text() == "x"
    assert list((folder / "snapshots").iterdir()) == []
    assert list(again.volumes.snapshots(1)) == []


def test_a_growth_that_was_cut_short_is_done_by_the_next_start(place: Place) -> None:
    """The file is large already, its file system is not."""
    running = place.orchestrator()
    write(place, running, "kept")
    folder = place.root / "containers/volumes/1"
    (folder / "growing").write_text(f"{16 * MIB}\n")
    os.truncate(folder / "disk.img", 48 * MIB)
    assert read(place, running) == "kept"
    assert not (folder / "growing").exists()
    source = "import os\ns = os.statvfs('/data')\nprint(s.f_blocks * s.f_frsize >> 20)"
    assert int(run(place, running, source)) > 32


def test_a_volume_half_removed_is_never_found_again(place: Place) -> None:
    running = place.orchestrator()
    write(place, running, "secret")
    running.close()
    folder = place.root / "containers/volumes/1"
    folder.rename(folder.with_name("1.gone"))
    again = place.orchestrator()
    assert not folder.with_name("1.gone").exists()
    assert read(place, again) == ""


def test_a_snapshot_has_all_that_was_written_before_the_app_ended(place: Place) -> None:
    """A container that somebody else starts keeps a copy of the mount: the kernel has not written everything yet."""
    running = place.orchestrator()
    spec = place.spec(apps.server(), resources=WITH_VOLUME)
    running.start(spec)
    ready(running, spec.id)
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo copied; exec sleep 600"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "copied\n"
            mounted = place.root / "containers/volumes/1/mounted"
            (mounted / "data/word").write_text("written")
            running.stop(spec.id)
            wait_for("it is unmounted", lambda: not os.path.ismount(mounted), SECONDS)
            name = running.volumes.snapshot(1)
            assert not os.path.ismount(mounted)
        finally:
            other.kill()
    running.forget(spec.id)
    running.volumes.restore(1, name)
    assert read(place, running) == "written"


def let_go(place: Place, spaces: list[int]) -> None:
    images = [place.root / f"containers/volumes/{space_id}/disk.img" for space_id in spaces]
    wait_for("the kernel lets go of all volumes", lambda: not any(map(volumes.is_attached, images)), SECONDS)


def test_a_stop_and_a_forget_at_once_leave_nothing_mounted(place: Place) -> None:
    running = place.orchestrator()
    specs = [place.spec("", space_id=n, resources=WITH_VOLUME) for n in range(1, 9)]
    for spec in specs:
        running.start(spec)
    for spec in specs:
        exited(running, spec.id)
    for spec in specs:
        running.stop(spec.id)
        running.forget(spec.id)
    let_go(place, [spec.space_id for spec in specs])
    deployments = place.root / "containers/deployments"
    wait_for("nothing of them is left", lambda: not place.containers() and not list(deployments.iterdir()), SECONDS)


@pytest.mark.parametrize("forgotten", [False, True])
def test_what_could_not_be_removed_is_removed_later(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, forgotten: bool
) -> None:
    monkeypatch.setattr(orchestrator, "PERIOD", 0.5)
    running = place.orchestrator()
    spec = place.spec("", resources=WITH_VOLUME)
    running.start(spec)
    exited(running, spec.id)
    directory = place.root / f"containers/deployments/{spec.id}"
    obstacle = directory / "disk-full.img"
    obstacle.mkdir()
    (running.forget if forgotten else running.stop)(spec.id)
    wait_for("it says so", lambda: "is not removed yet" in caplog.text, SECONDS)
    assert volumes.is_attached(place.root / "containers/volumes/1/disk.img")
    obstacle.rmdir()
    let_go(place, [1])
    wait_for("its disk is gone", lambda: not (directory / "disk").exists(), SECONDS)
    assert directory.exists() is not forgotten
