"""git, unmodified, against the app on a real port: credentials, push-to-create, what a push tells."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from spaces_platform.accounts import Access
from tests.api.conftest import Served

README = "---\ntitle: Demo\nsdk: gradio\n---\n"


def git(folder: Path, *argv: str, ok: bool = True) -> str:
    env = {
        "PATH": os.environ["PATH"], "HOME": str(folder), "GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_NOSYSTEM": "1",
        "NO_PROXY": "*",
        "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b",
    }  # fmt: skip
    done = subprocess.run(["git", *argv], cwd=folder, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode == 0) is ok, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    (folder / "README.md").write_text(README)
    (folder / "app.py").write_text("print(1)\n")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "one")
    return folder


def remote(served: Served, who: str, name: str, *, user: str = "hf_user") -> str:
    return served.url.replace("http://", f"http://{user}:{served.world.tokens[who]}@") + f"/spaces/{name}"


def test_a_push_creates_deploys_and_says_where(served: Served, work: Path) -> None:
    said = git(work, "push", remote(served, "alice", "alice/New_App"), "main")
    assert f"remote: Watch  {served.world.settings.url}/spaces/alice/New_App" in said
    assert "remote: App    http://alice-new-app.localhost:" in said
    space = served.world.directory.find("alice", "New_App", served.world.actor("alice"))
    assert space.head == git(work, "rev-parse", "HEAD").strip()
    assert space.stage == "BUILDING"
    assert space.visibility == "public"


def test_a_token_works_in_every_place(served: Served, work: Path, tmp_path: Path) -> None:
    served.world.space("alice/app", visibility="private")
    token = served.world.tokens["alice"]
    git(work, "push", remote(served, "alice", "alice/app"), "main")
    for n, url in enumerate((
        remote(served, "alice", "alice/app.git"),
        served.url.replace("http://", f"http://{token}:@") + "/spaces/alice/app",
    )):  # fmt: skip
        git(work, "clone", "-q", url, str(tmp_path / f"clone{n}"))
    git(work, "-c", f"http.extraHeader=Authorization: Bearer {token}", "ls-remote", f"{served.url}/spaces/alice/app")


def test_strangers_are_kept_out(served: Served, work: Path) -> None:
    served.world.space("alice/app", visibility="private")
    served.world.space("alice/open")
    for argv, text in [
        (("ls-remote", f"{served.url}/spaces/alice/app"), "could not read Username"),
        (("ls-remote", f"{served.url}/spaces/alice/none"), "could not read Username"),
        (("push", f"{served.url}/spaces/alice/open", "main"), "could not read Username"),
        (("ls-remote", remote(served, "bob", "alice/app")), "not found"),
        (("push", remote(served, "bob", "alice/open"), "main"), "may not change alice/open"),
        (("push", remote(served, "bob", "alice/new"), "main"), "the rights to create"),
        (("push", remote(served, "alice:read", "alice/open"), "main"), "may not change alice/open"),
        (("push", remote(served, "alice:read", "alice/new"), "main"), "the rights to create"),
        (("push", remote(served, "alice", "alice/a--b"), "main"), "not valid"),
        (
            ("push", served.url.replace("http://", "http://u:wrong@") + "/spaces/alice/open", "main"),
            "Authentication failed",
        ),
    ]:
        assert text in git(work, *argv, ok=False)
    assert "refs/heads" not in git(work, "ls-remote", f"{served.url}/spaces/alice/open")
    assert [s.name for s in served.world.directory.list(served.world.actor("alice"))] == ["open", "app"]


def test_a_push_names_what_keeps_it_from_deploying(served: Served, work: Path) -> None:
    url = remote(served, "alice", "alice/app")
    said = git(work, "push", url, "main:draft")
    assert "Only main deploys: git push origin draft:main" in said
    assert served.world.directory.find("alice", "app", served.world.actor("alice"), Access.WRITE).head is None
    (work / "README.md").write_text("---\nsdk: rails\napp_file: 3\n---\n")
    git(work, "commit", "-qam", "bad")
    said = git(work, "push", url, "main")
    assert "This will not deploy" in said
    assert "README.md line 2" in said
    (work / "README.md").write_text(README + "# text\n")
    git(work, "mv", "app.py", "main.py")
    git(work, "commit", "-qam", "moved")
    said = git(work, "push", url, "main")
    assert "`app.py` is not in the repository." in said
    assert "main.py" in said


def test_a_renamed_space_is_followed(served: Served, work: Path) -> None:
    space = served.world.space("alice/old")
    served.world.spaces.rename(space, served.world.actor("alice"), "alice", "new")
    git(work, "push", remote(served, "alice", "alice/old"), "main")
    assert served.world.directory.find("alice", "new", served.world.actor("alice")).head is not None


def test_a_full_disk_refuses_pushes_and_not_fetches(served: Served, work: Path) -> None:
    served.world.space("alice/app")
    served.world.has_disk = False
    assert "nearly full" in git(work, "push", remote(served, "alice", "alice/app"), "main", ok=False)
    git(work, "ls-remote", f"{served.url}/spaces/alice/app")
