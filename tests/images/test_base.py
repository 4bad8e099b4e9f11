"""The Debian base: commands and files as tables, cleaning on a small tree; making one for real is in test_build.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime_images import base
from runtime_images.engine import Engine, EngineError
from runtime_images.network import Network


def test_commands() -> None:
    root = Path("/b/root")
    assert base.debootstrap_argv("bookworm", root, "http://m/debian") == (
        "debootstrap", "--variant=minbase", "bookworm", "/b/root", "http://m/debian",
    )  # fmt: skip
    assert base.wget_settings(Path("/b/ca")) == "ca_certificate = /b/ca\n"
    assert base.tar_argv(root, Path("/b/root.tar"), 1700000000) == (
        "tar", "--sort=name", "--mtime=@1700000000", "--clamp-mtime", "--numeric-owner", "--format=gnu",
        "--directory=/b/root", "--create", "--file=/b/root.tar", ".",
    )  # fmt: skip


def test_sources_have_security_updates_and_no_mirror_of_ours() -> None:
    assert base.files("trixie")["etc/apt/sources.list"] == (
        "deb http://deb.debian.org/debian trixie main\n"
        "deb http://deb.debian.org/debian trixie-updates main\n"
        "deb http://deb.debian.org/debian-security trixie-security main\n"
    )


def tree(root: Path) -> None:
    """What debootstrap leaves, in small."""
    for name, text in {
        "var/lib/apt/lists/mirror.corp_debian_dists_bookworm_InRelease": "Date: Sat, 11 Jul 2026 10:16:07 UTC\n",
        "var/lib/apt/lists/mirror.corp_debian_dists_bookworm_main_Packages": "Package: x\n",
        "var/log/bootstrap.log": "http://mirror.corp/debian\n",
        "var/cache/apt/archives/a.deb": "x",
        "etc/hostname": "builder-7\n",
        "etc/resolv.conf": "nameserver 10.0.0.1\n",
        "etc/apt/sources.list": "deb http://mirror.corp/debian bookworm main\n",
        "etc/passwd": "root\n",
        "usr/share/doc/bash/copyright": "c",
        "usr/share/doc/bash/README": "r",
        "usr/share/locale/locale.alias": "a",
        "usr/share/locale/de/LC_MESSAGES/bash.mo": "m",
        "usr/share/man/man1/bash.1": "m",
        "run/lock/x": "",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_what_is_left_of_a_tree(tmp_path: Path) -> None:
    tree(tmp_path)
    base._clean(tmp_path, "bookworm")
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {
        "etc/passwd", "etc/apt/sources.list", "etc/apt/apt.conf.d/90spaces", "etc/dpkg/dpkg.cfg.d/90spaces",
        "usr/share/doc/bash/copyright", "usr/share/locale/locale.alias",
    }  # fmt: skip
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and "mirror.corp" in path.read_text()]
    assert (tmp_path / "var/log").is_dir()
    assert (tmp_path / "tmp").exists() is False, "nothing is made that debootstrap did not make"


def test_links_are_removed_not_followed(tmp_path: Path) -> None:
    tree(tmp_path / "root")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").touch()
    (tmp_path / "root/var/log/link").symlink_to(tmp_path / "precious")
    base._clean(tmp_path / "root", "bookworm")
    assert (tmp_path / "precious/file").exists()
    assert not (tmp_path / "root/var/log/link").is_symlink()


def test_the_time_is_that_of_the_archive(tmp_path: Path) -> None:
    tree(tmp_path)
    assert base.release_time(tmp_path) == 1783764967


def test_no_release_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no Release file"):
        base.release_time(tmp_path)


def test_without_root_the_error_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    engine = Engine("docker", "unix:///nowhere", {})
    with pytest.raises(EngineError, match="--base debian:bookworm-slim"):
        base.make_base(engine, "spaces/base:bookworm", "bookworm", Network(), {})


def test_without_debootstrap_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="apt install debootstrap"):
        base.make_base(Engine("docker", "unix:///nowhere", {}), "x", "bookworm", Network(), {})
