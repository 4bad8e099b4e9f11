"""The Hub's own clients, unmodified, against the app on a real port."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    SpaceHardware,
    SpaceRuntime,
    SpaceStage,
    SpaceStorage,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session, hf_raise_for_status

from spaces_platform.models import Build
from tests.api.conftest import Served

BIN = Path(sys.executable).parent


def environment(served: Served, who: str, home: Path, *, xet: bool) -> dict[str, str]:
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "SPACES_"))}
    return plain | {
        "HF_ENDPOINT": served.url,
        "HF_TOKEN": served.world.tokens[who],
        "HF_HOME": str(home),
        "HOME": str(home),
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_XET": "0" if xet else "1",
        "NO_PROXY": "*",
    }


@pytest.fixture
def api(served: Served) -> HfApi:
    return HfApi(endpoint=served.url, token=served.world.tokens["alice"])


def test_the_life_of_a_space(api: HfApi, served: Served, tmp_path: Path) -> None:
    assert api.whoami()["name"] == "alice"
    url = api.create_repo(
        "alice/demo", repo_type="space", space_sdk="gradio", space_variables=[{"key": "A", "value": "1"}]
    )
    assert (url.repo_id, url.repo_type) == ("alice/demo", "space")
    assert api.create_repo("alice/demo", repo_type="space", space_sdk="gradio", exist_ok=True).repo_id == "alice/demo"
    done = api.upload_file(
        path_or_fileobj=b"import gradio\n", path_in_repo="app.py", repo_id="alice/demo", repo_type="space"
    )
    info = api.space_info("alice/demo")
    assert info.sha == done.oid
    assert info.private is False
    assert {s.rfilename for s in info.siblings or []} == {"README.md", "app.py", ".gitattributes"}
    assert api.get_space_runtime("alice/demo").stage == SpaceStage.BUILDING
    assert api.list_repo_files("alice/demo", repo_type="space") == [".gitattributes", "README.md", "app.py"]
    path = api.hf_hub_download("alice/demo", "app.py", repo_type="space", cache_dir=tmp_path)
    assert Path(path).read_bytes() == b"import gradio\n"
    folder = api.snapshot_download("alice/demo", repo_type="space", cache_dir=tmp_path)
    assert sorted(p.name for p in Path(folder).iterdir()) == [".gitattributes", "README.md", "app.py"]
    assert [c.title for c in api.list_repo_commits("alice/demo", repo_type="space")][-1] == "initial commit"
    api.move_repo("alice/demo", "alice/moved", repo_type="space")
    assert api.space_info("alice/demo").id == "alice/moved"
    assert api.file_exists("alice/demo", "app.py", repo_type="space")
    assert [s.id for s in api.list_spaces(author="alice")] == ["alice/moved"]
    api.delete_repo("alice/moved", repo_type="space")
    assert not api.repo_exists("alice/moved", repo_type="space")
    api.delete_repo("alice/moved", repo_type="space", missing_ok=True)


def test_settings_and_runtime(api: HfApi, served: Served) -> None:
    space = served.world.space("alice/demo")
    api.add_space_secret("alice/demo", "TOKEN", "hush", description="for tests")
    secrets = api.get_space_secrets("alice/demo")
    assert secrets["TOKEN"].description == "for tests"
    assert "hush" not in str(secrets)
    assert api.add_space_variable("alice/demo", "MODE", "dark")["MODE"].value == "dark"
    with pytest.raises(BadRequestError, match="collision"):
        api.add_space_variable("alice/demo", "TOKEN", "x")
    assert api.delete_space_variable("alice/demo", "MODE") == {}
    api.delete_space_secret("alice/demo", "NONE")
    assert api.pause_space("alice/demo").stage == SpaceStage.PAUSED
    assert api.restart_space("alice/demo").stage != SpaceStage.PAUSED
    assert api.set_space_sleep_time("alice/demo", 3600).sleep_time == 3600
    assert api.request_space_hardware("alice/demo", SpaceHardware.CPU_BASIC).requested_hardware == "cpu-basic"
    with pytest.raises(BadRequestError, match="not available here"):
        api.request_space_hardware("alice/demo", SpaceHardware.T4_SMALL)
    served.world.serve_space(space)
    runtime = api.wait_for_space("alice/demo", timeout=5)
    assert runtime.stage == SpaceStage.RUNNING
    assert runtime.raw["sha"] == "c" * 40


def test_storage(api: HfApi, served: Served) -> None:
    """The functions are those of huggingface_hub 1.x; newer ones have lost them, and read what is answered."""
    served.world.space("alice/demo")
    assert storage(api, "POST", {"tier": "small"}).storage == "small"
    assert storage(api, "POST", {"tier": "medium"}).storage == SpaceStorage.MEDIUM
    with pytest.raises(BadRequestError, match="never shrinks"):
        storage(api, "POST", {"tier": "small"})
    assert api.get_space_runtime("alice/demo").storage == "medium"
    info = api.space_info("alice/demo")
    assert info.runtime is not None
    assert info.runtime.storage == "medium"
    assert storage(api, "DELETE").storage is None


def storage(api: HfApi, method: str, body: dict[str, str] | None = None) -> SpaceRuntime:
    """HfApi.request_space_storage and delete_space_storage of 1.x, line by line."""
    answer = get_session().request(
        method, f"{api.endpoint}/api/spaces/alice/demo/storage", headers=api._build_hf_headers(), json=body
    )
    hf_raise_for_status(answer)
    return SpaceRuntime(answer.json())


def test_errors_are_the_clients_own(api: HfApi, served: Served) -> None:
    world = served.world
    world.space("alice/demo")
    world.space("bob/hidden", visibility="private")
    with pytest.raises(RepositoryNotFoundError):
        api.space_info("alice/none")
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=served.url, token=False).space_info("bob/hidden")
    with pytest.raises(RevisionNotFoundError):
        api.space_info("alice/demo", revision="none")
    with pytest.raises(EntryNotFoundError):
        api.create_commit("alice/demo", [CommitOperationDelete("none")], commit_message="x", repo_type="space")
    with pytest.raises(ValueError, match="Invalid metadata"):
        api.upload_file(
            path_or_fileobj=b"---\nsdk: rails\n---\n", path_in_repo="README.md", repo_id="alice/demo", repo_type="space"
        )
    reader = HfApi(endpoint=served.url, token=world.tokens["alice:read"])
    with pytest.raises(HfHubHTTPError, match="403"):
        reader.restart_space("alice/demo")


def test_branches_tags_and_commits(api: HfApi, served: Served) -> None:
    world = served.world
    world.space("alice/demo")
    first = api.upload_file(path_or_fileobj=b"1", path_in_repo="a", repo_id="alice/demo", repo_type="space").oid
    api.create_branch("alice/demo", branch="feat/x", repo_type="space")
    api.create_branch("alice/demo", branch="feat/x", repo_type="space", exist_ok=True)
    api.create_commit(
        "alice/demo", [CommitOperationAdd("b", b"2")], commit_message="b", revision="feat/x", repo_type="space"
    )
    api.create_tag("alice/demo", tag="v1", repo_type="space")
    refs = api.list_repo_refs("alice/demo", repo_type="space")
    assert [b.name for b in refs.branches] == ["feat/x", "main"]
    assert [t.target_commit for t in refs.tags] == [first]
    assert api.file_exists("alice/demo", "b", repo_type="space", revision="feat/x")
    assert not api.file_exists("alice/demo", "b", repo_type="space")
    with pytest.raises(HfHubHTTPError, match="The branch was updated"):
        api.create_commit(
            "alice/demo", [CommitOperationAdd("c", b"3")], commit_message="c", parent_commit="0" * 40, repo_type="space"
        )
    api.delete_tag("alice/demo", tag="v1", repo_type="space")
    api.delete_branch("alice/demo", branch="feat/x", repo_type="space")


@pytest.mark.parametrize("xet", [False, True])
def test_hf_upload_ignores_binaries_nothing_and_skips_what_is_there(served: Served, tmp_path: Path, xet: bool) -> None:
    folder = tmp_path / "app"
    (folder / "venv").mkdir(parents=True)
    (folder / "app.py").write_text("print('hi')\n")
    (folder / "model.bin").write_bytes(bytes(range(256)) * 400)
    (folder / "empty.txt").write_text("")
    (folder / "venv" / "x.py").write_text("")
    (folder / ".gitignore").write_text("venv/\n")
    env = environment(served, "alice", tmp_path / "home", xet=xet)
    argv = [str(BIN / "hf"), "upload", "alice/up", str(folder), ".", "--repo-type", "space"]
    heads = []
    for _ in range(2):
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        heads.append(served.world.directory.find("alice", "up", served.world.actor("alice")).head)
    assert heads[0] == heads[1]
    tree = served.world.spaces.repo(served.world.directory.find("alice", "up", served.world.actor("alice"))).tree(
        heads[0] or ""
    )
    paths = {e.path for e in tree.entries()}
    assert {"app.py", "model.bin", "empty.txt", ".gitignore"} <= paths
    assert "venv/x.py" not in paths
    assert tree.read("model.bin") == bytes(range(256)) * 400


def test_hf_spaces_logs_ends_with_the_build(served: Served, tmp_path: Path) -> None:
    world = served.world
    space = world.space("alice/demo")
    build = world.add(Build(space_id=space.id or 0, commit="c", plan_id="p", plan={}, status="FAILED"))
    world.logs.append(f"build/{build.id}", ["one", "two {data}"])
    env = environment(served, "alice", tmp_path / "home", xet=False)
    argv = [str(BIN / "hf"), "spaces", "logs", "alice/demo", "--build", "-f"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "one" in done.stdout
    assert "two {data}" in done.stdout
