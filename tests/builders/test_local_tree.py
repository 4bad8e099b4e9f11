"""A folder gives the same ids as git, and nothing outside it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from builders.local_tree import LocalTree
from builders.types import BuildError

from .conftest import write

FILES = {"a.txt": "a", "a/b.txt": "b", "a-b/c": "c", "a/deep/é.py": "d", "run.sh": "#!/bin/sh\n"}


def git(folder: Path, *argv: str) -> str:
    env = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "PATH": "/usr/bin:/bin"}
    return subprocess.run(["git", "-C", str(folder), *argv], check=True, capture_output=True, text=True, env=env).stdout


def test_ids_are_those_of_git(tmp_path: Path) -> None:
    write(tmp_path, FILES)
    (tmp_path / "run.sh").chmod(0o755)
    (tmp_path / "link").symlink_to("a/b.txt")
    plain = LocalTree(tmp_path)
    id, entries = plain.id, plain.entries()
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    assert id == git(tmp_path, "write-tree").strip()
    listed = git(tmp_path, "-c", "core.quotepath=false", "ls-files", "-s").splitlines()
    assert [f"{e.mode} {e.oid} 0\t{e.path}" for e in entries] == listed


def test_gitignore_is_honoured(tmp_path: Path) -> None:
    write(tmp_path, {".gitignore": "secret.env\n", "secret.env": "x", "app.py": "y"})
    git(tmp_path, "init", "-q")
    assert [entry.path for entry in LocalTree(tmp_path).entries()] == [".gitignore", "app.py"]


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "sub/../../outside"])
def test_links_out_are_refused(target: str, tmp_path: Path) -> None:
    root = write(tmp_path / "app", {"sub/x": "x"})
    (root / "link").symlink_to(target)
    with pytest.raises(BuildError, match="leaves the folder"):
        LocalTree(root).entries()


def test_export_and_read(tmp_path: Path) -> None:
    root = write(tmp_path / "app", FILES)
    (root / "link").symlink_to("a.txt")
    (root / "run.sh").chmod(0o755)
    target = tmp_path / "out"
    target.mkdir()
    tree = LocalTree(root)
    tree.export(target)
    assert LocalTree(target).id == tree.id
    assert tree.read("a.txt", 0) == b""
    with pytest.raises(FileNotFoundError):
        tree.read("../app/a.txt")
