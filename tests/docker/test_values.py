"""Names, subnets, mount scripts and inventories: small pure functions, as tables."""

from __future__ import annotations

import errno
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces_platform.adapters.docker import cgroups, disks, gpus, mounts, network, selfcheck
from spaces_platform.adapters.docker.cgroups import freezer_of, group_paths
from spaces_platform.adapters.docker.disks import Overlay
from spaces_platform.adapters.docker.engine import BRIDGE, EngineFacts
from spaces_platform.adapters.docker.mounts import MountCall
from spaces_platform.errors import DiskFull, Invalid, Unavailable

POOL = IPv4Network("10.213.0.0/24")


def nets(*texts: str) -> list[IPv4Network]:
    return [IPv4Network(text) for text in texts]


@pytest.mark.parametrize(
    ("taken", "after", "found"),
    [
        ((), None, "10.213.0.0/28"),
        (("10.213.0.0/28",), None, "10.213.0.16/28"),
        ((), "10.213.0.16/28", "10.213.0.32/28"),
        ((), "10.213.0.240/28", "10.213.0.0/28"),
        (("10.213.0.0/25",), None, "10.213.0.128/28"),
        (("10.0.0.0/16", "192.168.0.0/24"), None, "10.213.0.0/28"),
        (("10.213.0.36/30",), "10.213.0.16/28", "10.213.0.48/28"),
        ((), "10.99.0.0/28", "10.213.0.0/28"),
    ],
)
def test_subnets_go_round(taken: tuple[str, ...], after: str | None, found: str) -> None:
    last = IPv4Network(after) if after else None
    assert network.next_subnet(POOL, nets(*taken), last) == IPv4Network(found)


@pytest.mark.parametrize("taken", ["10.0.0.0/8", "10.213.0.0/24", "0.0.0.0/0"])
def test_a_pool_that_is_used_up_is_said_to_be(taken: str) -> None:
    with pytest.raises(Unavailable, match="app_subnets"):
        network.next_subnet(POOL, nets(taken), None)


ROUTES = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
tun0\t0000000A\t010200C0\t0003\t0\t0\t0\t000000FF\t0\t0\t0
docker0\t0000D40A\t00000000\t0001\t0\t0\t0\tC0FFFFFF\t0\t0\t0
left0\t1000D50A\t00000000\t0001\t0\t0\t0\tF0FFFFFF\t0\t0\t0
wg0\t0500D50A\t00000000\t0005\t0\t0\t0\tFFFFFFFF\t0\t0\t0
"""


def test_what_this_machine_has_routes_to_is_taken() -> None:
    assert network.routed_in(POOL, ROUTES) == nets("10.213.0.16/28", "10.213.0.5/32")
    assert network.routed_in(IPv4Network("172.30.0.0/16"), ROUTES) == []


def test_only_ones_own_bridges_that_no_network_has_are_left_over() -> None:
    networks = [{"Options": {BRIDGE: "sp0123-1"}}, {"Options": None}, {}]
    seen = ("lo", "docker0", "sp0123-1", "sp0123-2", "sp0123-_a", "sp4567-2", "sp0123", "vsp0123-2")
    assert network.left_over("0123abcd", seen, networks) == ["sp0123-2"]


@given(st.integers(0, 36**8 - 1), st.integers(0, 36**8 - 1))
def test_bridges_have_names_of_their_own_that_the_kernel_takes(one: int, other: int) -> None:
    names = {network.bridge_name("0123abcd", number) for number in (one, other)}
    assert len(names) == len({one, other})
    assert all(len(name) <= 15 and name.startswith("sp0123-") for name in names)


MOUNTINFO = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 22 7:0 / /srv/data/deployments/7/disk rw - ext4 /dev/loop0 rw
41 22 0:50 / /srv/data/deployments/7/place-0 rw - overlay overlay rw
42 22 0:51 / /srv/data/deployments/77/place-0 rw - overlay overlay rw
43 22 0:52 / /srv/my\\040data/x rw master:3 - tmpfs none rw
44 22 0:53 / /srv/own rw - tmpfs none rw
"""


def test_mounts_below_a_directory_are_found_innermost_first() -> None:
    found = disks.mounts_below("/srv/data/deployments/7", MOUNTINFO)
    assert found == ["/srv/data/deployments/7/place-0", "/srv/data/deployments/7/disk"]
    assert disks.mounts_below("/srv/my data", MOUNTINFO) == ["/srv/my data/x"]
    assert disks.mounts_below("/none", MOUNTINFO) == []


@pytest.mark.parametrize(("path", "shared"), [("/home", True), ("/srv/own/x", False), ("/srv/ownx", True), ("/", True)])
def test_whether_mounts_are_seen_elsewhere(path: str, shared: bool) -> None:
    assert selfcheck.is_shared(path, MOUNTINFO) is shared


def test_what_an_app_writes_in_lies_above_its_image() -> None:
    home, volume = Overlay("/home/user", "/i m", "/u", "/w", "/p l"), Overlay("/v", "", "/u'", "/w", "/q")
    calls = disks.overlay_mounts([home, volume])
    bounds = mounts.NODEV | mounts.NOSUID | mounts.NOATIME
    assert calls == [
        MountCall("overlay", "/p l", "overlay", bounds, "lowerdir=/i m,upperdir=/u,workdir=/w"),
        MountCall("/u'", "/q", flags=mounts.BIND),
    ]


def test_an_image_is_looked_at_read_only() -> None:
    assert [call.flags & mounts.RDONLY for call in disks.view_mounts(["l/A", "l/B"], "/x")] == [mounts.RDONLY]
    bind, remount = disks.view_mounts(["l/A"], "/x")
    assert (bind.source, bind.target, bind.flags) == ("l/A", "/x", mounts.BIND)
    assert (remount.target, remount.flags) == ("/x", mounts.REMOUNT | mounts.BIND | mounts.RDONLY)


def test_the_most_layers_an_image_can_have_fit_into_one_page() -> None:
    (call,) = disks.view_mounts([f"l/{'X' * 26}"] * 127, "/x")
    assert len(call.data) < mounts.PAGE
    with pytest.raises(Unavailable, match="/x"):
        mounts.mount(MountCall("overlay", "/x", "overlay", data="x" * mounts.PAGE))


def test_a_copy_has_the_holes_of_its_original(tmp_path: Path) -> None:
    with (tmp_path / "old").open("wb") as file:
        file.truncate(64 << 20)
        for at, content in ((0, b"head"), (9 << 20, b"middle" * 4000), ((64 << 20) - 3, b"end")):
            file.seek(at)
            file.write(content)
    mounts.copy_sparse(tmp_path / "old", tmp_path / "new")
    assert (tmp_path / "new").read_bytes() == (tmp_path / "old").read_bytes()
    assert (tmp_path / "new").stat().st_blocks * 512 < 1 << 20
    with pytest.raises(Unavailable, match="new"):
        mounts.copy_sparse(tmp_path / "old", tmp_path / "new")


def test_a_full_disk_is_told_apart() -> None:
    kinds = [type(mounts.failed("copying", number)) for number in (errno.ENOSPC, errno.EDQUOT, errno.EPERM)]
    assert kinds == [DiskFull, DiskFull, Unavailable]


def test_links_and_files_of_an_image_are_never_followed(tmp_path: Path) -> None:
    (tmp_path / "home" / "user").mkdir(parents=True)
    (tmp_path / "link").symlink_to("/etc")
    (tmp_path / "home" / "out").symlink_to("../../..")
    (tmp_path / "file").touch()
    assert disks.inside(tmp_path, "/home/user") == tmp_path / "home" / "user"
    assert disks.inside(tmp_path, "/home/none/x") is None
    for target in ("/link", "/link/ssh", "/home/out", "/home/out/etc", "/file", "/file/x"):
        with pytest.raises(Invalid):
            disks.inside(tmp_path, target)


SMI = "GPU-5f2c9d1e-0000-1111-2222-333344445555, Tesla T4\nGPU-77, NVIDIA A100-SXM4-80GB\n\nNo devices were found\n"


def test_gpus_are_read() -> None:
    assert gpus.parse(SMI) == (
        gpus.Gpu("GPU-5f2c9d1e-0000-1111-2222-333344445555", "Tesla T4"),
        gpus.Gpu("GPU-77", "NVIDIA A100-SXM4-80GB"),
    )


def test_groups_are_read_of_both_versions() -> None:
    assert group_paths("0::/a.slice/b\n") == {"": "/a.slice/b"}
    assert group_paths("9:memory:/x\n4:cpu,cpuacct:/y\n") == {"memory": "/x", "cpu": "/y", "cpuacct": "/y"}


@pytest.mark.parametrize(
    ("parent", "group"),
    [
        ("/spaces-0123abcd", "freezer/spaces-0123abcd/{}"),
        ("/spaces-0123abcd", "spaces-0123abcd/{}"),
        ("spaces-0123abcd.slice", "spaces.slice/spaces-0123abcd.slice/docker-{}.scope"),
        ("spaces-0123abcd.slice", "freezer/spaces.slice/spaces-0123abcd.slice/docker-{}.scope"),
    ],
)
def test_what_runs_below_a_parent_is_found(
    parent: str, group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "ROOT", tmp_path)
    (tmp_path / group.partition("/")[0]).mkdir()
    assert cgroups.running_below(parent) == {}
    runs, ended, other = "a" * 64, "b" * 64, "not-a-container"
    for name, members in ((runs, "7\n"), (ended, ""), (other, "8\n")):
        place = tmp_path / group.format(name)
        place.mkdir(parents=True)
        (place / "cgroup.procs").write_text(members)
    assert cgroups.running_below(parent) == {runs: tmp_path / group.format(runs)}


@pytest.mark.parametrize(
    ("text", "container", "found"),
    [
        ("9:memory:/x\n5:freezer:/spaces/c0ffee\n0::/spaces/c0ffee\n", "c0ffee", "freezer/spaces/c0ffee"),
        ("0::/system.slice/docker-c0ffee.scope\n", "c0ffee", "system.slice/docker-c0ffee.scope"),
        # A pid that was given again is somebody else's.
        ("5:freezer:/system.slice/ssh.service\n", "c0ffee", None),
        ("5:freezer:/spaces/decaf\n", "c0ffee", None),
        ("0::/\n", "c0ffee", None),
        ("0::/spaces/c0ffee\n", "", None),
    ],
)
def test_only_the_containers_own_group_is_frozen(text: str, container: str, found: str | None) -> None:
    assert freezer_of(text, container) == (found and cgroups.ROOT / found)


def test_version_2_is_frozen_by_its_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no machine with version 1 shows."""
    monkeypatch.setattr(cgroups, "_freezer", lambda _pid, _container: tmp_path)
    monkeypatch.setattr(cgroups, "FREEZE_SECONDS", 0.0)
    assert cgroups.set_frozen(1, "c0ffee", True) is False, "its group is not there"
    (tmp_path / "cgroup.freeze").write_text("0")
    (tmp_path / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    assert cgroups.set_frozen(1, "c0ffee", True) is True
    assert (tmp_path / "cgroup.freeze").read_text() == "1"
    assert cgroups.is_frozen(1, "c0ffee") is True
    (tmp_path / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    with pytest.raises(Unavailable, match="could not be frozen"):
        cgroups.set_frozen(1, "c0ffee", True)
    assert (tmp_path / "cgroup.freeze").read_text() == "0", "it runs"


@pytest.mark.parametrize(
    ("engine", "fence_fault", "safe", "lacking"),
    [
        (EngineFacts(), "", True, "user id 1000"),
        (EngineFacts(uid_offset=1000000), "", True, "host's kernel"),
        (EngineFacts(), "not root", False, "not root"),
        (EngineFacts(seccomp=False), "", False, "seccomp"),
        (EngineFacts(live_restore=False), "", True, "restart"),
    ],
)
def test_what_is_lacking_is_said(engine: EngineFacts, fence_fault: str, safe: bool, lacking: str) -> None:
    found = selfcheck.Findings(engine, "runc", fence_fault)
    assert found.safe_for_strangers is safe
    assert any(lacking in words for words in found.as_port().lacks)


@pytest.mark.parametrize(
    ("engine", "fault"),
    [
        (EngineFacts(), ""),
        (EngineFacts(uid_offset=1000000), ""),
        (EngineFacts(storage="vfs"), "by vfs"),
        (EngineFacts(storage="overlayfs"), "Docker 27"),
        (EngineFacts(storage="overlayfs", containerd="/none.sock", uid_offset=1000000), "the users that it remaps"),
        (EngineFacts(storage="overlayfs", containerd="/none.sock"), "containerd at /none.sock"),
    ],
)
def test_where_layers_cannot_be_had_as_folders_that_is_said(engine: EngineFacts, fault: str) -> None:
    found = selfcheck.layers_fault(engine)
    assert fault in found if fault else found == ""


def test_under_gvisor_an_app_has_its_own_kernel_and_must_be_able_to_ask_for_names() -> None:
    engine = EngineFacts(seccomp=False, runtimes=("runc", "runsc"), gvisor=frozenset({"runsc"}))
    found = selfcheck.Findings(engine, "runsc", names_fault="nobody to ask")
    assert found.safe_for_strangers
    assert "a kernel of its own for each app (gVisor)" in found.as_port().holds
    assert "apps resolve no names: nobody to ask" in found.as_port().lacks
