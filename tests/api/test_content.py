"""Upload, trees, history and files over the Hub's routes."""

from __future__ import annotations

import base64
import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from spaces_platform.api.commit_stream import Commit, CommitLimits, take_line
from spaces_platform.api.gitignore import ignored
from spaces_platform.api.resolve import content_type, parse_range
from spaces_platform.errors import Invalid, TooLarge
from tests.api.conftest import Caller, World

AT = "/api/spaces/alice/app"


def ndjson(*items: tuple[str, dict[str, object]]) -> bytes:
    return b"\n".join(json.dumps({"key": key, "value": value}).encode() for key, value in items)


def header(summary: str = "change", **more: object) -> tuple[str, dict[str, object]]:
    return "header", {"summary": summary, **more}


def file(path: str, content: bytes) -> tuple[str, dict[str, object]]:
    return "file", {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}


def commit(call: Caller, *items: tuple[str, dict[str, object]], rev: str = "main", who: str = "alice") -> Any:
    return call(
        "POST", f"{AT}/commit/{rev}", who=who, content=ndjson(*items), headers={"content-type": "application/x-ndjson"}
    )


def test_a_commit_is_stored_and_starts_a_build(call: Caller, world: World) -> None:
    space = world.space()
    answer = commit(
        call, header("Add app", description="With care."), file("app.py", b"print(1)\n"), file("a/b.txt", b"x")
    )
    assert answer.status_code == 200, answer.text
    oid = answer.json()["commitOid"]
    assert answer.json()["commitUrl"] == f"http://localhost:7860/spaces/alice/app/commit/{oid}"
    row = world.directory.by_id(space.id or 0)
    assert (row.head, row.stage) == (oid, "BUILDING")
    log = call("GET", f"{AT}/commits/main").json()
    assert (log[0]["id"], log[0]["title"], log[0]["message"]) == (oid, "Add app", "With care.")
    assert log[0]["date"].endswith("Z")
    assert log[0]["authors"][0]["user"] == "alice"
    again = commit(call, header("Add app"), file("app.py", b"print(1)\n"))
    assert again.json()["commitOid"] == oid
    world.serve_space(row)
    commit(call, header(), file("app.py", b"print(2)\n"))
    assert call("GET", f"{AT}/runtime").json()["stage"] == "RUNNING_BUILDING"


def test_commits_replace_and_delete(call: Caller, world: World) -> None:
    world.space()
    first = commit(call, header(), file("a/1", b"1"), file("a/2", b"2"), file("b", b"b")).json()["commitOid"]
    commit(call, header(), ("deletedFolder", {"path": "a/"}), ("deletedFile", {"path": "b"}), file("b", b"new"))
    tree = call("GET", f"{AT}/tree/main?recursive=true").json()
    assert [e["path"] for e in tree] == ["b"]
    answer = commit(call, header(), ("deletedFile", {"path": "nothing"}))
    assert (answer.status_code, answer.headers["x-error-code"]) == (404, "EntryNotFound")
    stale = commit(call, header(parentCommit=first), file("c", b"c"))
    assert stale.status_code == 412
    assert stale.headers["x-error-message"].startswith("The branch was updated since you opened this page.")


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", ".git/config", "a/../../b", "a\\b", "x\n", ""])
def test_hostile_paths_are_refused(call: Caller, world: World, path: str) -> None:
    world.space()
    assert commit(call, header(), file(path, b"x")).status_code in (400, 422)
    assert call("GET", f"{AT}/refs").json()["branches"] == []


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{}", b"[1]", b"nonsense", b'{"key":"header","value":3}',
        b'{"key":"file","value":{"path":"a","content":"eA=="}}',
        b'{"key":"header","value":{"summary":""}}',
        b'{"key":"header","value":{"summary":"a","parentCommit":"x"}}',
        b'{"key":"header","value":{"summary":"\\ud800"}}',
        b'{"key":"header","value":{"summary":"a"}}\n{"key":"file","value":{"path":"a","content":"%%","encoding":"base64"}}',
        b'{"key":"header","value":{"summary":"a"}}\n{"key":"lfsFile","value":{"path":"a","algo":"sha256","oid":"0"}}',
        b'{"key":"header","value":{"summary":"a"}}\n{"key":"odd","value":{}}',
        b"[" * 50_000,
    ],
)  # fmt: skip
def test_bad_commits_are_readable_400s(call: Caller, world: World, body: bytes) -> None:
    world.space()
    answer = call("POST", f"{AT}/commit/main", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]


def test_a_commit_is_bounded_while_it_arrives() -> None:
    limits = CommitLimits(file_bytes=1000, total_bytes=2500, changes=4)
    taken = Commit()
    for n in range(2):
        take_line(taken, ndjson(file(f"f{n}", b"x" * 1000)), n, limits)
    take_line(taken, ndjson(file("f0", b"y" * 1000)), 3, limits)
    assert taken.total == 2000
    with pytest.raises(TooLarge):
        take_line(taken, ndjson(file("f3", b"x" * 1000)), 4, limits)
    for n in range(2):
        take_line(taken, ndjson(("deletedFile", {"path": f"d{n}"})), 5, limits)
    with pytest.raises(TooLarge):
        take_line(taken, ndjson(("deletedFile", {"path": "d3"})), 5, limits)
    with pytest.raises(Invalid):
        take_line(taken, ndjson(("file", {"path": "a", "content": 3})), 6, limits)


def test_a_file_over_the_limit_is_named(call: Caller, world: World) -> None:
    world.space()
    answer = commit(call, header(), file("big.bin", random.Random(1).randbytes(11 << 20)))
    assert answer.status_code in (413, 422), answer.text
    assert "MB" in answer.json()["error"] or "MiB" in answer.json()["error"]


def test_preupload_knows_what_is_there_and_what_is_ignored(call: Caller, world: World) -> None:
    world.space()
    files = [{"path": p, "size": 1, "sample": ""} for p in ("app.py", "new.py", "venv/x.py", "a/b.pyc", "big.bin")]
    empty = call("POST", f"{AT}/preupload/main", json={"files": files}).json()
    assert all(f["uploadMode"] == "regular" and not f["shouldIgnore"] and f["oid"] is None for f in empty["files"])
    commit(call, header(), file("app.py", b"hello\n"), file(".gitignore", b"venv/\n*.pyc\n"))
    answer = {f["path"]: f for f in call("POST", f"{AT}/preupload/main", json={"files": files}).json()["files"]}
    assert answer["app.py"]["oid"] == "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object of hello\n
    assert {p for p, f in answer.items() if f["shouldIgnore"]} == {"venv/x.py", "a/b.pyc"}
    given = call("POST", f"{AT}/preupload/main", json={"files": files, "gitIgnore": "*.bin"}).json()["files"]
    assert [f["path"] for f in given if f["shouldIgnore"]] == ["big.bin"]
    missing = call("POST", f"{AT}/preupload/nothing", json={"files": files})
    assert (missing.status_code, missing.headers["x-error-code"]) == (404, "RevisionNotFound")
    assert call("POST", f"{AT}/preupload/main", who="bob", json={"files": files}).status_code == 403


def test_ignoring_is_what_git_does(tmp_path: Path) -> None:
    patterns = "# note\n*.log\n!keep.log\n/only-root\nbuild/\n**/cache/**\ndoc/*.txt\n\\#odd\ntrail\\ \n"
    paths = ["a.log", "keep.log", "x/only-root", "only-root", "build/a", "x/build/a", "build", "a/cache/b/c",
             "doc/a.txt", "doc/x/a.txt", "#odd", "trail ", "é.log"]  # fmt: skip
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text(patterns)
    for path in paths:
        target = tmp_path / path
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text("")
    listed = subprocess.run(
        ["git", "-C", str(tmp_path), "ls-files", "-oi", "--exclude-standard", "-z"], capture_output=True, check=True
    ).stdout.decode()
    expected = {p for p in listed.split("\0") if p} & set(paths)
    assert ignored(patterns, [p for p in paths if p != "build"]) == expected
    assert ignored(patterns, ["../x.log", "/a.log", "a\0.log", ""]) == frozenset()


def test_trees_page_and_keep_their_commit(call: Caller, world: World) -> None:
    world.space()
    commit(call, header(), *(file(f"d/{n:03}", b"x") for n in range(25)), file("d/sub dir/x", b"x"))
    seen, url = [], f"{AT}/tree/main/d%2Fsub%20dir"
    assert [e["path"] for e in call("GET", url).json()] == ["d/sub dir/x"]
    url = f"{AT}/tree/main/d?limit=10"
    while url:
        answer = call("GET", url)
        seen += [e["path"] for e in answer.json()]
        url = answer.links.get("next", {}).get("url", "")
        if "cursor=10" in url:
            commit(call, header(), ("deletedFolder", {"path": "d"}))
    assert len(seen) == 26
    missing = call("GET", f"{AT}/tree/main/d")
    assert (missing.status_code, missing.headers["x-error-code"]) == (404, "EntryNotFound")
    missing = call("GET", f"{AT}/tree/nope")
    assert (missing.status_code, missing.headers["x-error-code"]) == (404, "RevisionNotFound")


def test_paths_info_takes_forms_and_json(call: Caller, world: World) -> None:
    world.space()
    commit(call, header(), file("a/b", b"xyz"))
    form = call("POST", f"{AT}/paths-info/main", data={"paths": ["a/b", "a", "none"], "expand": "false"}).json()
    assert {(e["path"], e["type"], e["size"]) for e in form} == {("a/b", "file", 3), ("a", "directory", 0)}
    assert call("POST", f"{AT}/paths-info/main", json={"paths": ["a/b"]}).json()[0]["path"] == "a/b"
    for bad in ({"paths": 3}, {"paths": [1]}, {}, {"paths": ["a"] * 3000}):
        assert call("POST", f"{AT}/paths-info/main", json=bad).status_code == 400


def test_branches_and_tags(call: Caller, world: World) -> None:
    world.space()
    oid = commit(call, header(), file("a", b"1")).json()["commitOid"]
    assert call("POST", f"{AT}/branch/feat%2Fx", json={}).status_code == 200
    again = call("POST", f"{AT}/branch/feat%2Fx")
    assert (again.status_code, again.json()["error"]) == (409, "Reference refs/heads/feat/x already exists")
    assert commit(call, header(), file("b", b"2"), rev="feat%2Fx").status_code == 200
    assert world.directory.find("alice", "app", world.actor("alice")).head == oid
    assert [e["path"] for e in call("GET", f"{AT}/tree/feat%2Fx").json()] == ["a", "b"]
    assert call("POST", f"{AT}/tag/main", json={"tag": "v1"}).status_code == 200
    assert call("POST", f"{AT}/tag/{oid[:8]}", json={"tag": "v1"}).status_code == 409
    refs = call("GET", f"{AT}/refs?include_prs=1").json()
    assert [b["name"] for b in refs["branches"]] == ["feat/x", "main"]
    assert refs["tags"] == [{"name": "v1", "ref": "refs/tags/v1", "targetCommit": oid}]
    for path, status, text in [
        ("branch/main", 400, "Cannot delete refs/heads/main"),
        ("branch/v1", 404, "Invalid rev id: v1"),
        ("tag/feat%2Fx", 404, "Invalid rev id: feat/x"),
    ]:
        answer = call("DELETE", f"{AT}/{path}")
        assert (answer.status_code, answer.json()["error"]) == (status, text)
    assert call("DELETE", f"{AT}/branch/feat%2Fx").status_code == 200
    assert call("DELETE", f"{AT}/tag/v1").status_code == 200
    assert call("POST", f"{AT}/branch/refs%2Fpr%2F5").status_code == 400
    assert call("POST", f"{AT}/branch/a%00b").status_code == 400
    assert commit(call, header(), file("b", b"2"), rev="nope").status_code == 404


def test_files_have_validators_ranges_and_no_active_types(call: Caller, world: World) -> None:
    world.space()
    oid = commit(call, header(), file("a dir/ch#eck.html", b"0123456789")).json()["commitOid"]
    url = "/spaces/alice/app/resolve/main/a%20dir/ch%23eck.html"
    head = call("HEAD", url)
    assert head.headers["x-repo-commit"] == oid
    assert head.headers["content-length"] == "10"
    assert head.headers["content-type"].startswith("text/plain")
    assert "sandbox" in head.headers["content-security-policy"]
    etag = head.headers["etag"]
    assert call("GET", url).content == b"0123456789"
    assert call("GET", url, headers={"if-none-match": etag}).status_code == 304
    for given, status, content, where in [
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=0-0", 206, b"0", "bytes 0-0/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=5-99", 206, b"56789", "bytes 5-9/10"),
        ("bytes=1-2,4-5", 200, b"0123456789", None),
        ("lines=1-2", 200, b"0123456789", None),
    ]:
        answer = call("GET", url, headers={"range": given})
        assert (answer.status_code, answer.content) == (status, content), given
        assert answer.headers.get("content-range") == where
    answer = call("GET", url, headers={"range": "bytes=10-"})
    assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */10")
    missing = call("HEAD", "/spaces/alice/app/resolve/main/none")
    assert (missing.status_code, missing.headers["x-error-code"], missing.headers["x-repo-commit"]) == (
        404,
        "EntryNotFound",
        oid,
    )
    assert call("GET", "/spaces/alice/app/resolve/main/a%20dir").status_code == 404
    assert call("GET", "/spaces/alice/app/resolve/main/..%2f..%2fx").status_code == 400
    assert call("GET", "/spaces/alice/app/raw/main/a%20dir/ch%23eck.html").text == "0123456789"


@pytest.mark.parametrize(
    ("given", "size", "span"),
    [
        ("bytes=0-", 10, (0, 10)), ("bytes=9-9", 10, (9, 10)), ("bytes=-99", 10, (0, 10)), ("bytes=-0", 10, None),
        ("bytes=0-", 0, None), ("bytes=5-2", 10, (0, 0)), ("bytes=-", 10, (0, 0)), ("", 10, (0, 0)),
        ("bytes=999999999999999999-", 10, None), ("bytes=0-9999999999999999999", 10, (0, 0)),
    ],
)  # fmt: skip
def test_ranges(given: str, size: int, span: tuple[int, int] | None) -> None:
    assert parse_range(given, size) == span


def test_types_that_a_browser_would_run_are_not_sent() -> None:
    for name in ("a.html", "a.js", "a.xhtml", "a.mhtml", "a.wasm", "a.swf", "x", "a.htc", "a.xml"):
        assert content_type(name) in ("text/plain; charset=utf-8", "application/octet-stream"), name
    assert content_type("a.png") == "image/png"


def test_validate_yaml_always_answers_json(call: Caller) -> None:
    def check(text: str) -> dict[str, list[dict[str, str]]]:
        answer = call("POST", "/api/validate-yaml", who=None, json={"content": text, "repoType": "space"})
        assert answer.status_code == (400 if answer.json()["errors"] else 200)
        return answer.json()  # type: ignore[no-any-return]

    assert check("# hi") == {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
    assert check("---\nsdk: gradio\n---\n")["errors"] == []
    assert "line 2" in check("---\nsdk: rails\n---\n")["errors"][0]["message"]
    assert check("---\n{{{\n---\n")["errors"]
