"""What a test machine is made of and started with; it is made and started by `make test-machine`."""

from __future__ import annotations

from pathlib import Path

from tests.machines.disk import CA, identity, packages, settings
from tests.machines.machine import accelerators, qemu_argv


def test_it_is_reached_from_this_host_alone_and_its_disk_stays_as_it_is() -> None:
    line = " ".join(qemu_argv(Path("/m"), 4022, 2, ("kvm", "tcg")))
    assert "hostfwd=tcp:127.0.0.1:4022-:22" in line
    assert "snapshot=on" in line
    assert line.index("-accel kvm") < line.index("-accel tcg"), "emulated only where it must be"
    assert "systemd.unified_cgroup_hierarchy=1" in line


def test_a_processor_is_emulated_where_this_one_has_nothing_for_guests() -> None:
    able, unable = "flags\t\t: fpu svm sse\n", "flags\t\t: fpu sse\nmodel name\t: vmx\n"
    assert accelerators(able, has_device=True) == ("kvm", "tcg,thread=multi")
    assert accelerators(able, has_device=False) == ("tcg,thread=multi",)
    assert accelerators(unable, has_device=True) == ("tcg,thread=multi",), "its /dev/kvm cannot be what it seems"


def test_a_disk_is_made_anew_when_something_of_it_changes() -> None:
    assert identity("trixie", b"1") == identity("trixie", b"1")
    assert len({identity("trixie", b"1"), identity("trixie", b"2"), identity("bookworm", b"1")}) == 3
    assert "docker-buildx" in packages("trixie"), "its client builds by a plugin"
    assert "docker-buildx" not in packages("bookworm"), "which has no such package"


def test_packages_come_from_where_the_host_gets_them() -> None:
    found = settings(
        {"HTTPS_PROXY": "http://p:1", "SECRET": "x", "SSL_CERT_FILE": "/elsewhere"}, "https://index/simple"
    )
    assert found == {
        "HTTPS_PROXY": "http://p:1",
        "PIP_INDEX_URL": "https://index/simple",
        "UV_DEFAULT_INDEX": "https://index/simple",
        "SSL_CERT_FILE": CA,
        "PIP_CERT": CA,
    }
    assert settings({"PIP_INDEX_URL": "https://own"}, "https://index")["PIP_INDEX_URL"] == "https://own"
