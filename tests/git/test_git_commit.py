"""Commits without a work tree equal a model; reading, listing and exporting agree with it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spaces_platform.adapters.git import GitRepoStore, PushLimits
from spaces_platform.adapters.git.push_rules import ZERO
from spaces_platform.errors import Conflict, EntryNotFound, Invalid, RepoNotFound, Stale, Unprocessable
from spaces_platform.ports import FileChange, Repo

MAIN = "refs/heads/main"


def save(repo: Repo, *changes: FileChange, parent: str | None = None) -> str:
    return repo.commit(MAIN, changes, message="m", author="a", email="a@b", parent=parent)


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    return GitRepoStore(tmp_path / "repos").create("spaces/1")


class Model:
    """What the repository should hold."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def apply(self, change: FileChange) -> type[Exception] | None:
        path = change.path.rstrip("/")
        below = [p for p in self.files if p.startswith(f"{path}/")]
        above = ["/".join(path.split("/")[:n]) for n in range(1, path.count("/") + 1)]
        if change.content is not None:
            if below or any(p in self.files for p in above):
                return Unprocessable
            self.files[path] = change.content
        elif below or (path in self.files and not change.path.endswith("/")):
            for p in [*below, path]:
                self.files.pop(p, None)
        else:
            return EntryNotFound
        return None


names = st.sampled_from(["a", "b", "a.b", "a-b", "é"])
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
writes = st.builds(FileChange, paths, st.sampled_from([b"", b"1", b"2"]))
deletes = st.builds(FileChange, st.tuples(paths, st.sampled_from(["", "/"])).map("".join), st.none())
histories = st.lists(st.lists(st.one_of(writes, writes, deletes), max_size=6), min_size=1, max_size=3)


@settings(max_examples=40, deadline=None)
@given(histories)
def test_commits_equal_a_model(history: list[list[FileChange]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        repo = GitRepoStore(Path(folder, "repos")).create("x")
        model = Model()
        for changes in history:
            before, head = dict(model.files), repo.head()
            expected = next((error for change in changes if (error := model.apply(change))), None)
            if expected is not None:
                with pytest.raises(expected):
                    save(repo, *changes)
                model.files = before
                assert repo.head() == head
                continue
            new = save(repo, *changes)
            assert (new == head) == (head is not None and model.files == before)
            tree = repo.tree(new)
            assert {e.path: tree.read(e.path) for e in tree.entries()} == model.files
            assert {e.path for e in repo.list(new, recursive=True) if e.type == "file"} == set(model.files)
            out = Path(folder, f"out{new}")
            out.mkdir(exist_ok=True)
            if not any(out.iterdir()):
                tree.export(out)
            assert {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()} == model.files


def test_a_new_file_is_not_executable(repo: Repo) -> None:
    first = save(repo, FileChange("run", b"1"))
    assert repo.stat(first, "run").mode == "100644"


def test_parent_and_racing_writers(repo: Repo) -> None:
    first = save(repo, FileChange("a", b"1"))
    second = save(repo, FileChange("a", b"2"), parent=first)
    with pytest.raises(Stale):
        save(repo, FileChange("a", b"3"), parent=first)
    assert repo.head() == second
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: save(repo, FileChange(f"f{n}", b"x")), range(4)))
    assert {e.path for e in repo.list(repo.resolve("HEAD"))} == {"a", "f0", "f1", "f2", "f3"}
    assert len(repo.log("main")) == 6


def test_the_push_rules_hold(tmp_path: Path) -> None:
    repo = GitRepoStore(tmp_path, limits=PushLimits(files=3, file_bytes=100)).create("x")
    with pytest.raises(Unprocessable, match=r"big\.bin \(101 bytes\)"):
        save(repo, FileChange("big.bin", b"x" * 101))
    with pytest.raises(Unprocessable, match="4 files"):
        save(repo, *(FileChange(f"f{n}", b"") for n in range(4)))
    with pytest.raises(Unprocessable, match="differ in case"):
        save(repo, FileChange("A", b""), FileChange("a", b""))
    with pytest.raises(Unprocessable, match=r"app\.py, line 2"):
        save(repo, FileChange("app.py", b"\nhf_" + b"AbCdEfGhIjKlMnOpQrStUvWxYz012345"))
    assert repo.head() is None
    assert not [p for p in (repo.path / "objects").rglob("*") if p.is_file()]


def test_refs(repo: Repo) -> None:
    first = save(repo, FileChange("a", b"1"))
    second = save(repo, FileChange("a", b"2"))
    repo.update_ref("refs/heads/x", first, ZERO)
    with pytest.raises(Conflict, match="already exists"):
        repo.update_ref("refs/heads/x", second, ZERO)
    with pytest.raises(Conflict):
        repo.update_ref("refs/heads/x/y", second)
    with pytest.raises(Stale):
        repo.update_ref("refs/heads/x", second, second)
    repo.update_ref("refs/heads/x", second, first)
    assert repo.head("refs/heads/x") == second
    repo.update_ref("refs/heads/x", None)
    repo.update_ref("refs/heads/x", None)
    assert repo.refs() == {MAIN: second}
    with pytest.raises(Invalid, match="Cannot delete"):
        repo.update_ref(MAIN, None)
    for bad in ("refs/heads/-x", "refs/x", "HEAD", "refs/heads/a..b"):
        with pytest.raises(Invalid):
            repo.update_ref(bad, first)


def test_listing(repo: Repo) -> None:
    head = save(repo, FileChange("d/e/f", b"12345"), FileChange("g", b""))
    assert [(e.type, e.path, e.size) for e in repo.list(head)] == [("directory", "d", 0), ("file", "g", 0)]
    assert [e.path for e in repo.list(head, "d", recursive=True)] == ["d/e", "d/e/f"]
    assert repo.stat(head, "d/e").type == "directory"
    assert b"".join(repo.read(head, "d/e/f")) == b"12345"
    for missing in ("x", "g/x", "d/x"):
        with pytest.raises(EntryNotFound):
            repo.stat(head, missing)
        with pytest.raises(EntryNotFound):
            repo.list(head, missing)
    with pytest.raises(EntryNotFound):
        repo.read(head, "d")
    with pytest.raises(FileNotFoundError):
        repo.tree(head).read("x")
    assert repo.tree(head).read("d/e/f", limit=3) == b"123"


def test_the_store(tmp_path: Path) -> None:
    store = GitRepoStore(tmp_path / "repos")
    with pytest.raises(RepoNotFound):
        store.open("spaces/1")
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: store.create("spaces/1"), range(4)))
    assert {repo.path for repo in made} == {tmp_path / "repos" / "spaces" / "1.git"}
    head = save(made[0], FileChange("a", b"1"))
    assert store.create("spaces/1").head() == head
    (made[0].path / "config").write_text("[core]\n\tsshCommand = touch canary\n")
    assert "hooksPath" in (store.open("spaces/1").path / "config").read_text()
    store.delete("spaces/1")
    store.delete("spaces/1")
    with pytest.raises(RepoNotFound):
        store.open("spaces/1")
    assert list((tmp_path / "repos" / ".trash").iterdir()) == []
    for bad in ("", "/etc", "../x", "a/../b", "a//b", ".hooks", "a/.b", "x.git", "a b", "a\n", "-x", "a/b/c/d/e"):
        with pytest.raises(Invalid):
            store.create(bad)


def test_lfs_pointers_are_materialised_where_they_can(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 3\n"

    def materialise(text: bytes) -> Iterator[bytes] | None:
        return iter([b"a", b"bc"]) if b"size 3" in text else None

    repo = GitRepoStore(tmp_path / "repos", materialise=materialise).create("x")
    head = save(repo, FileChange("m", pointer), FileChange("n", pointer.replace(b"3", b"4")), FileChange("o", b"plain"))
    repo.tree(head).export(tmp_path)
    assert (tmp_path / "m").read_bytes() == b"abc"
    assert b"size 4" in (tmp_path / "n").read_bytes()
    assert (tmp_path / "o").read_bytes() == b"plain"
