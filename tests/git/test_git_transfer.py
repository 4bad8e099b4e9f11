"""Clone, fetch and push with a real git client over a real server."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from spaces_platform.adapters.git.packing import NewObjects
from spaces_platform.adapters.git.push_rules import ZERO
from spaces_platform.errors import RevisionNotFound, Stale
from spaces_platform.ports import FileChange
from tests.git.client import Client, new_client
from tests.git.crafted import body, commit, post, tree
from tests.git.server import READER, TOKEN, Server


def head(server: Server, space: str, ref: str = "refs/heads/main") -> str | None:
    return server.backend.repo(space).head(ref)


def fsck(repo: Path) -> None:
    subprocess.run(["git", "--git-dir", repo, "fsck", "--strict", "--full"], check=True, capture_output=True)


def test_push_creates_and_clone_gives_it_back(server: Server, client: Client, tmp_path: Path) -> None:
    new = client.commit(README__md="# hi", app__py="print(1)")
    pushed = client.push(server.remote("o/app"))
    assert head(server, "o/app") == new
    assert [(u.ref, u.new) for u in server.backend.recorded] == [("refs/heads/main", new)]
    assert "Files: 2" in pushed.remote
    assert f"Building {new[:10]} of o/app" in pushed.remote
    client.git("clone", "-q", f"{server.url}/spaces/o/app.git", str(tmp_path / "copy"))
    assert (tmp_path / "copy" / "app.py").read_text() == "print(1)"
    fsck(server.backend.repo("o/app").path)


@pytest.mark.parametrize("version", ["0", "1", "2"])
def test_fetch_in_every_protocol_version(server: Server, client: Client, tmp_path: Path, version: str) -> None:
    url = server.remote("o/app")
    client.commit(a="1")
    client.push(url)
    copy = new_client(tmp_path / "copy")
    copy.git("-c", f"protocol.version={version}", "pull", "-q", url, "main")
    second = client.commit(a="2")
    client.git("-c", f"protocol.version={version}", "push", url, "HEAD:main")
    copy.git("-c", f"protocol.version={version}", "pull", "-q", url, "main")
    assert copy.git("rev-parse", "HEAD").out.strip() == second


def test_shallow_and_partial_clones(server: Server, client: Client, tmp_path: Path) -> None:
    for n in range(4):
        client.commit(f"c{n}", a=str(n))
    client.push(server.remote("o/app"))
    url = f"{server.url}/spaces/o/app"
    client.git("clone", "-q", "--depth", "1", url, str(tmp_path / "shallow"))
    shallow = Client(tmp_path / "shallow")
    assert shallow.git("rev-list", "--count", "HEAD").out.strip() == "1"
    shallow.git("fetch", "-q", "--unshallow")
    assert shallow.git("rev-list", "--count", "HEAD").out.strip() == "4"
    client.git("clone", "-q", "--filter=blob:none", url, str(tmp_path / "partial"))
    assert (tmp_path / "partial" / "a").read_text() == "3"


def test_push_from_a_shallow_clone(server: Server, client: Client, tmp_path: Path) -> None:
    client.commit("1", a="1")
    client.commit("2", a="2")
    client.push(server.remote("o/app"))
    client.git("clone", "-q", "--depth", "1", f"{server.url}/spaces/o/app", str(tmp_path / "shallow"))
    new = Client(tmp_path / "shallow").commit(a="3")
    Client(tmp_path / "shallow").push(server.remote("o/app"))
    assert head(server, "o/app") == new


def test_force_push_branches_and_tags(server: Server, client: Client) -> None:
    url = server.remote("o/app")
    client.commit(a="1")
    client.push(url)
    client.git("commit", "-q", "--amend", "-m", "other")
    assert client.push(url, ok=False).status != 0
    forced = client.git("rev-parse", "HEAD").out.strip()
    client.push(url, "--force", "HEAD:main")
    client.git("tag", "-a", "v1", "-m", "one")
    said = client.push(url, "HEAD:feature/x", "v1").remote
    assert "git push origin HEAD:main" in said
    repo = server.backend.repo("o/app")
    assert repo.refs() == {"refs/heads/main": forced, "refs/heads/feature/x": forced, "refs/tags/v1": forced}
    client.push(url, "--delete", "feature/x", "v1")
    assert repo.refs() == {"refs/heads/main": forced}
    assert [u.new for u in server.backend.recorded][-2:] == [ZERO, ZERO]


def test_a_failed_record_fails_the_push(server: Server, client: Client) -> None:
    new = client.commit(a="1")
    server.backend.fail = OSError("database is gone")
    failed = client.push(server.remote("o/app"), ok=False)
    assert failed.status != 0
    assert "could not record it" in failed.err
    assert "[new branch]" not in failed.err
    assert head(server, "o/app") == new


def test_the_record_comes_before_the_answer(server: Server, client: Client) -> None:
    """While the record is made the ref has moved, and the client has no report yet."""
    client.commit(a="1")
    seen: list[bool] = []
    waiting = subprocess.Popen(
        ["git", "push", server.remote("o/app"), "HEAD:main"], cwd=client.path, stderr=subprocess.PIPE
    )

    def pause() -> None:
        seen.append(head(server, "o/app") is not None)
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(0.3)

    server.backend.pause = pause
    _, err = waiting.communicate(timeout=20)
    assert seen == [True]
    assert waiting.returncode == 0, err


def test_many_pushes_at_once(server: Server, tmp_path: Path) -> None:
    """To own branches all pass; to one branch the losers are told, and what is acknowledged is in the history."""
    clients = [new_client(tmp_path / f"c{n}") for n in range(20)]
    heads = [client.commit(f"m{n}", a=str(n)) for n, client in enumerate(clients)]
    url = server.remote("o/app")
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda n: clients[n].push(url, f"HEAD:b{n}"), range(20)))
        assert server.backend.repo("o/app").refs() == {f"refs/heads/b{n}": heads[n] for n in range(20)}
        done = list(pool.map(lambda n: clients[n].push(url, ok=False).status == 0, range(20)))
    assert done.count(True) == 1
    assert head(server, "o/app") == heads[done.index(True)]
    fsck(server.backend.repo("o/app").path)


def test_who_may(server: Server, client: Client) -> None:
    client.commit(a="1")
    client.push(server.remote("o/app"))
    server.backend.private.add("o/app")
    refs = f"{server.url}/spaces/o/app/info/refs"
    anonymous = httpx.get(refs, params={"service": "git-upload-pack"})
    assert anonymous.status_code == 401
    assert anonymous.headers["www-authenticate"].startswith("Basic realm=")
    for user, password in (("user", TOKEN), (TOKEN, ""), ("hf_user", READER)):
        answer = httpx.get(refs, params={"service": "git-upload-pack"}, auth=(user, password))
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/x-git-upload-pack-advertisement"
        assert "no-cache" in answer.headers["cache-control"]
    denied = client.push(server.remote("o/app", READER), ok=False)
    assert "not push to it" in denied.remote
    assert "403" in denied.err
    assert client.push(server.remote("o/app", "hf_wrong"), ok=False).status != 0
    missing = httpx.get(f"{server.url}/spaces/o/none/info/refs", params={"service": "git-upload-pack"})
    assert missing.status_code == 404
    assert missing.headers["x-error-code"] == "RepoNotFound"


def test_a_moved_space_redirects(server: Server, client: Client, tmp_path: Path) -> None:
    client.commit(a="1")
    client.push(server.remote("o/new"))
    server.backend.moved["o/old"] = "o/new"
    client.git("clone", "-q", f"{server.url}/spaces/o/old", str(tmp_path / "copy"))
    second = client.commit(a="2")
    client.push(server.remote("o/old"))
    assert head(server, "o/new") == second


def test_what_is_not_smart_http(server: Server) -> None:
    base = f"{server.url}/spaces/o/app"
    dumb = httpx.get(f"{base}/info/refs")
    assert dumb.status_code == 403
    assert "smart HTTP" in dumb.text
    assert httpx.get(f"{base}/HEAD").status_code == 403
    assert httpx.get(f"{base}/objects/info/packs").status_code == 403
    assert post(server, "o/app", b"0000", Content_Type="text/plain").status_code == 415


def test_a_commit_is_seen_by_a_fetch_and_by_a_push(server: Server, client: Client) -> None:
    url = server.remote("o/app")
    repo = server.backend.repo("o/app")
    made = repo.commit("refs/heads/main", [FileChange("a", b"1")], message="t\n\nb", author="A", email="a@b")
    client.git("pull", "-q", url, "main")
    assert client.git("rev-parse", "HEAD").out.strip() == made
    pushed = client.commit(b="2")
    client.push(url)
    with pytest.raises(Stale):
        repo.commit("refs/heads/main", [FileChange("a", b"2")], message="x", author="A", email="a@b", parent=made)
    last = repo.commit("refs/heads/main", [FileChange("b", None)], message="x", author="A", email="a@b", parent=pushed)
    assert [info.id for info in repo.log("main")] == [last, pushed, made]
    assert (repo.log("main")[-1].title, repo.log("main")[-1].message) == ("t", "b")
    assert repo.resolve(made[:8]) == made
    for rev in ("nope", "--all", "HEAD~1", "main@{1}", "../x", "main:a", ""):
        with pytest.raises(RevisionNotFound):
            repo.resolve(rev)


def test_maintenance_keeps_everything(server: Server, client: Client) -> None:
    for n in range(5):
        client.commit(f"c{n}", a=str(n))
        client.push(server.remote("o/app"))
    repo = server.backend.repo("o/app")
    last = head(server, "o/app")
    server.backend.store.maintain(repo)
    assert len(list((repo.path / "objects" / "pack").glob("*.pack"))) == 1
    assert head(server, "o/app") == last
    assert not (repo.path / "refs" / "heads" / "main").exists()
    client.commit("after", a="after")
    client.push(server.remote("o/app"))
    fsck(repo.path)


def test_a_client_without_sideband(server: Server) -> None:
    objects = NewObjects()
    new = commit(objects, tree(objects, [("100644", b"f", b"x")]))
    content = body([(ZERO, new, "refs/heads/main")], b"".join(objects.pack()), "report-status")
    answer = post(server, "o/app", content)
    assert b"ok refs/heads/main" in answer.content
    assert head(server, "o/app") == new
