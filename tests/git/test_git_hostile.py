"""The hostile corpus (T12): what is refused, with which reason, and what is stored inertly.

After every case: a refused push leaves no object and no ref; nothing outside the repository changed; no canary ran.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from spaces_platform.adapters.git.packing import NewObjects
from spaces_platform.adapters.git.push_rules import ZERO
from spaces_platform.errors import Invalid, PlatformError
from spaces_platform.ports import FileChange
from tests.git.crafted import Answer, Entry, body, commit, post, push_objects, tree
from tests.git.server import Server, serving

LONG = b"n" * 256
CANARY = b"#!/bin/sh\ntouch CANARY\n"


def nest(depth: int) -> Entry:
    inner: Entry = ("100644", b"f", b"x")
    for _ in range(depth):
        inner = ("40000", b"d", [inner])
    return inner


def long_path(parts: int) -> Entry:
    inner: Entry = ("100644", b"f", b"x")
    for _ in range(parts):
        inner = ("40000", b"d" * 250, [inner])
    return inner


def named(name: bytes) -> list[Entry]:
    return [("100644", b"README.md", b"# hi"), ("100644", name, b"x")]


def folder(name: bytes) -> list[Entry]:
    return [("40000", name, [("100755", b"post-checkout", CANARY)])]


def link(target: bytes, name: bytes = b"link") -> list[Entry]:
    return [("120000", name, target)]


REFUSED: dict[str, tuple[Sequence[Entry], str]] = {
    # git's own fsck refuses these (its words), before our rules are asked
    "dot-git": (folder(b".git"), "hasDotgit"),
    "dot-git-upper": (folder(b".GIT"), "hasDotgit"),
    "dot-git-mixed": (folder(b".GiT"), "hasDotgit"),
    "dot-git-file": (named(b".git"), "hasDotgit"),
    "dot-git-short": (folder(b"git~1"), "hasDotgit"),
    "dot-git-short-upper": (folder(b"GIT~1"), "hasDotgit"),
    "dot-git-hfs": (folder(".g\u200cit".encode()), "hasDotgit"),
    "dot-git-hfs-end": (folder(".git\ufeff".encode()), "hasDotgit"),
    "dot-git-stream": (folder(b".git::$INDEX_ALLOCATION"), "hasDotgit"),
    "dot-git-dot": (folder(b".git."), "hasDotgit"),
    "dot-git-space": (folder(b".git "), "hasDotgit"),
    "dot-git-nested": ([("40000", b"a", folder(b".git"))], "hasDotgit"),
    "dot": (folder(b"."), "hasDot"),
    "dot-dot": (folder(b".."), "hasDotdot"),
    "slash": (named(b"a/b"), "fullPathname"),
    "absolute": (named(b"/etc/passwd"), "fullPathname"),
    "empty-name": (named(b""), "badTree"),
    "gitmodules-link": (link(b"../x", b".gitmodules"), "gitmodulesSymlink"),
    "submodule-url-option": (
        [("100644", b".gitmodules", b'[submodule "x"]\n\tpath = x\n\turl = -u./payload\n')],
        "gitmodulesUrl",
    ),
    "submodule-name-up": (
        [("100644", b".gitmodules", b'[submodule "../../x"]\n\tpath = x\n\turl = https://e/\n')],
        "gitmodulesName",
    ),
    "twice": ([("100644", b"same", b"1"), ("100644", b"same", b"2")], "duplicateEntries"),
    # ours
    "control-cr": (named(b"a\r"), "control character"),
    "control-lf": (named(b"a\nb"), "control character"),
    "control-esc": (named(b"\x1b[2J"), "control character"),
    "control-del": (named(b"a\x7f"), "control character"),
    "control-c1": (named("a\x85".encode()), "control character"),
    "backslash": (named(b"..\\..\\x"), "backslash"),
    "backslash-git": (folder(b".git\\hooks"), ""),
    "not-utf8": (named(b"\xff\xfe"), "not UTF-8"),
    "surrogate": (named(b"\xed\xa0\x80"), "not UTF-8"),
    "long-name": (named(LONG), "longer than 255 bytes"),
    "long-path": ([long_path(20)], "4096 bytes"),
    "deep": ([nest(64)], "64 parts"),
    "very-deep": ([nest(300)], "64 parts"),
    "submodule": ([("160000", b"sub", b"")], "submodules are not supported"),
    "submodule-cr": ([("160000", b"sub\r", b"")], "submodules are not supported"),
    "submodule-nested": ([("40000", b"a", [("160000", b"sub", b"")])], "'a/sub': submodules are not supported"),
    "submodule-ext": (
        [
            ("100644", b".gitmodules", b'[submodule "x"]\n\tpath = x\n\turl = ext::sh -c touch% CANARY\n'),
            ("160000", b"x", b""),
        ],
        "submodules are not supported",
    ),
    "case-twins": ([("100644", b"A", b"1"), ("100644", b"a", b"2")], "differ in case"),
    "case-folders": ([("40000", b"Dir", [("100644", b"f", b"1")]), ("120000", b"dir", b"x")], "differ in case"),
    "case-hooks": ([("120000", b"a", b"b"), ("40000", b"A", [("100755", b"post-checkout", CANARY)])], "differ in case"),
    "unicode-twins": ([("100644", "\u00e9".encode(), b"1"), ("100644", "e\u0301".encode(), b"2")], "Unicode form"),
    "case-sharp-s": ([("100644", "straße".encode(), b"1"), ("100644", b"strasse", b"2")], "differ in case"),
    "link-absolute": (link(b"/etc/passwd"), "absolute links"),
    "link-up": (link(b"../secret"), "leads out"),
    "link-up-late": (link(b"a/b/../../../x"), "leads out"),
    "link-nested-up": ([("40000", b"a", link(b"../../x"))], "leads out"),
    "link-chain": (
        [("120000", b"a", b"b"), ("40000", b"d", [("120000", b"e", b"..")]), ("120000", b"b", b"d/e/../x")],
        "leads out",
    ),
    "link-chain-absolute": ([("120000", b"a", b"b"), ("120000", b"b", b"/etc")], "absolute links"),
    "link-through-folder": (
        [("40000", b"d", [("120000", b"up", b"..")]), ("120000", b"x", b"d/up/../etc/passwd")],
        "leads out",
    ),
    "link-circle": ([("120000", b"a", b"b"), ("120000", b"b", b"a")], "circle"),
    "link-self": (link(b"link"), "circle"),
    "link-git": (link(b".git/hooks"), "into .git"),
    "link-empty": (link(b""), "not a path"),
    "link-long": (link(b"a" * 5000), "too long"),
    "gitattributes-link": (link(b"x", b".gitattributes"), "must not be a symbolic link"),
    "gitignore-link": (link(b"x", b".gitignore"), "must not be a symbolic link"),
    "mode-odd": ([("100600", b"f", b"x")], "mode"),
    "mode-fifo": ([("10644", b"f", b"x")], "mode"),
    "big-file": ([("100644", b"model.bin", b"\0" * (11 << 20))], "model.bin (11 MiB)"),
    "token": ([("100644", b"app.py", b"x = 1\nt = 'hf_" + b"AbCdEfGhIjKlMnOpQrStUvWxYz012345'\n")], "app.py, line 2"),
    "token-nested": (
        [("40000", b"s", [("100644", b".env", b"HF_TOKEN=hf_" + b"AbCdEfGhIjKlMnOpQrStUvWxYz012345")])],
        "s/.env, line 1",
    ),
}

STORED: dict[str, Sequence[Entry]] = {
    "plain": named(b"app.py"),
    "unicode": named("файл 🚀.py".encode()),
    "spaces": named(b" a b "),
    "leading-dash": named(b"-rf"),
    "shell": named(b"$(touch CANARY);`touch CANARY`"),
    "glob": named(b"*?[x]:"),
    "hooks-folder": [("40000", b"hooks", [("100755", b"pre-receive", CANARY), ("100755", b"post-checkout", CANARY)])],
    "bare-repository": [
        ("100644", b"HEAD", b"ref: refs/heads/main\n"),
        ("100644", b"config", b"[core]\n\tfsmonitor = touch CANARY\n\thooksPath = hooks\n"),
        ("40000", b"objects", [("100644", b"x", b"")]),
        ("40000", b"refs", [("100644", b"x", b"")]),
    ],
    "gitattributes-filter": [
        ("100644", b".gitattributes", b"* filter=evil export-subst\n"),
        ("100644", b"f", b"$Format:%H$"),
    ],
    "gitmodules-inert": [("100644", b".gitmodules", b'[submodule "x"]\n\tpath = x\n\turl = https://e/x\n')],
    "link-inside": [
        ("120000", b"link", b"d/f"),
        ("40000", b"d", [("100644", b"f", b"x"), ("120000", b"up", b"../d/f")]),
    ],
    "link-dangling": link(b"nowhere"),
    "lfs-pointer": named(b"m.bin"),
    "dot-github": folder(b".github"),
    "dot-gitx": folder(b".gitx"),
    "windows-names": named(b"con.txt"),
    "token-placeholder": [("100644", b"README.md", b"hf_" + b"x" * 34)],
    "255-bytes": named(b"n" * 255),
    "63-deep": [nest(63)],
    "empty": [],
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    root = tmp_path_factory.mktemp("hostile")
    with serving(root / "repos") as server:
        yield server, root


def objects_in(repo: Path) -> list[str]:
    return [str(p.relative_to(repo)) for p in (repo / "objects").rglob("*") if p.is_file()]


def around(root: Path, repo: Path) -> set[tuple[str, int, int]]:
    """Everything below `root` that is not the repository, with size and time of change."""
    found = (p for p in root.rglob("*") if repo not in p.parents and p not in (repo, repo.parent))
    return {
        (str(p), p.lstat().st_size if p.is_file() else 0, p.lstat().st_mtime_ns if p.is_file() else 0) for p in found
    }


@pytest.mark.parametrize("case", REFUSED)
def test_refused(hostile: tuple[Server, Path], case: str) -> None:
    server, root = hostile
    entries, reason = REFUSED[case]
    repo = server.backend.repo(f"o/{case}")
    before, objects = around(root, repo.path), NewObjects()
    answer = push_objects(server, f"o/{case}", objects, commit(objects, tree(objects, entries)))
    assert reason in answer.remote
    assert "Push refused" in answer.remote
    assert answer.unpack != "ok" or answer.refs == {"refs/heads/main": "pre-receive hook declined"}
    assert repo.head() is None
    assert objects_in(repo.path) == []
    assert around(root, repo.path) == before
    assert not list(root.rglob("CANARY"))
    server.backend.store.delete(f"spaces/o-{case}")


@pytest.mark.parametrize("case", STORED)
def test_stored_inertly(hostile: tuple[Server, Path], case: str, tmp_path: Path) -> None:
    server, root = hostile
    repo = server.backend.repo(f"o/{case}")
    before, objects = around(root, repo.path), NewObjects()
    new = commit(objects, tree(objects, STORED[case]))
    answer = push_objects(server, f"o/{case}", objects, new)
    assert answer.refs == {"refs/heads/main": None}, answer.remote
    out = tmp_path / "out"
    out.mkdir()
    source = repo.tree(new)
    source.export(out)
    written = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_symlink() or p.is_file()}
    assert written == {entry.path for entry in source.entries()}
    assert {p.lstat().st_mode & 0o777 for p in out.rglob("*") if not p.is_symlink()} <= {0o644, 0o755}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert around(root, repo.path) == before
    assert not list(root.rglob("CANARY"))
    server.backend.store.delete(f"spaces/o-{case}")


REFS = {
    "refs/heads/-x": "not allowed",
    "refs/heads/a/-x": "not allowed",
    "refs/weird/y": "only branches",
    "refs/heads/../../../x": "not allowed",
    "refs/../../x": "only branches",
    "refs/heads/a..b": "not allowed",
    "refs/heads/a b": "not allowed",
    "refs/heads/é": "not allowed",
    "refs/heads/a\x07": "not allowed",
    "refs/heads/x.lock": "not allowed",
    "refs/heads/.x": "not allowed",
    "refs/heads/@{x": "not allowed",
    "refs/heads/a*": "not allowed",
    "refs/heads/" + "b" * 200: "longer than 200",
    "refs/heads/" + "a" * 40: "looks like a commit id",
    "refs/heads/HEAD": "not allowed",
    "HEAD": "only branches",
    "refs/heads": "only branches",
    "refs/replace/" + "a" * 40: "only branches",
    "refs/notes/x": "only branches",
}


@pytest.mark.parametrize("ref", REFS)
def test_ref_refused(hostile: tuple[Server, Path], ref: str) -> None:
    server, root = hostile
    objects = NewObjects()
    new = commit(objects, tree(objects, named(b"f")))
    space = f"o/ref{list(REFS).index(ref)}"
    repo = server.backend.repo(space)
    before = around(root, repo.path)
    answer = push_objects(server, space, objects, new, ref)
    assert answer.refs
    assert None not in answer.refs.values()
    assert REFS[ref] in answer.remote
    assert repo.refs() == {}
    assert not [p for p in (repo.path / "refs").rglob("*") if p.is_file()]
    assert around(root, repo.path) == before
    server.backend.store.delete(server.backend.id(space))


def test_tag_of_a_blob_is_refused(hostile: tuple[Server, Path]) -> None:
    objects = NewObjects()
    answer = push_objects(hostile[0], "o/tag", objects, objects.add("blob", b"x"), "refs/tags/v1")
    assert "must point to a commit" in answer.remote


def test_the_api_refuses_the_same_paths(hostile: tuple[Server, Path]) -> None:
    repo = hostile[0].backend.repo("o/api")
    bad = [
        "",
        "/etc/passwd",
        "../x",
        "a/../x",
        ".git/hooks/x",
        ".GIT/x",
        "a\\b",
        "a\nb",
        "a//b",
        "n" * 256,
        "a/" * 70 + "x",
    ]
    for path in [*bad, "\udcff", ".git /x"]:
        with pytest.raises(Invalid):
            repo.commit("refs/heads/main", [FileChange(path, b"x")], message="m", author="a", email="a@b")
    assert repo.head() is None


def test_the_api_does_not_write_through_a_link(hostile: tuple[Server, Path]) -> None:
    server, _ = hostile
    objects = NewObjects()
    new = commit(objects, tree(objects, [("120000", b"l", b"d"), ("40000", b"d", [("100644", b"f", b"x")])]))
    push_objects(server, "o/gogs", objects, new)
    repo = server.backend.repo("o/gogs")
    with pytest.raises(PlatformError):
        repo.commit("refs/heads/main", [FileChange("l/f", b"evil")], message="m", author="a", email="a@b")
    head = repo.commit("refs/heads/main", [FileChange("l", b"plain")], message="m", author="a", email="a@b")
    assert repo.stat(head, "l").mode == "100644"
    assert repo.tree(head).read("d/f") == b"x"


def test_a_hostile_old_commit_is_not_exported(hostile: tuple[Server, Path], tmp_path: Path) -> None:
    """Only heads are judged at push; what lies in history is judged when it is read."""
    server, _ = hostile
    objects = NewObjects()
    old = commit(objects, tree(objects, link(b"/etc/passwd")))
    push_objects(server, "o/old", objects, commit(objects, tree(objects, named(b"f")), old))
    with pytest.raises(PlatformError, match="absolute links"):
        server.backend.repo("o/old").tree(old).export(tmp_path)
    assert not [p for p in tmp_path.iterdir() if p.is_symlink()]


def test_deleting_main_is_refused(hostile: tuple[Server, Path]) -> None:
    objects = NewObjects()
    new = commit(objects, tree(objects, named(b"f")))
    push_objects(hostile[0], "o/del", objects, new)
    answer = Answer(
        post(
            hostile[0], "o/del", body([(new, ZERO, "refs/heads/main")], b"", "report-status side-band-64k delete-refs")
        ).content
    )
    assert answer.refs["refs/heads/main"] is not None
    assert hostile[0].backend.repo("o/del").head() == new
