"""Hardware, GPUs and quotas over HTTP, also by the Hub's own client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from spaces_platform.api.app import create_app
from spaces_platform.cli.main import main
from spaces_platform.models import GpuLease
from tests.api.conftest import Caller, Served, World, make_world

AT = "/api/spaces/alice/app"
QUOTAS = "/api/platform/admin/quotas"


@pytest.fixture
def world(tmp_path: Path, peopled: tuple[Path, dict[str, str]]) -> Iterator[World]:
    """A platform with two T4."""
    made = make_world(tmp_path / "data", peopled[0], gpus="T4:GPU-a,T4:GPU-b", gpu_quota=1)
    made.tokens.update(peopled[1])
    yield made
    made.store.close()


@pytest.fixture
def call(world: World) -> Iterator[Caller]:
    client = TestClient(create_app(world), base_url="http://localhost:7860", follow_redirects=False)  # type: ignore[arg-type]
    yield Caller(client, world)
    client.close()


def test_the_hardware_that_exists_is_listed_as_the_hub_does(call: Caller) -> None:
    from huggingface_hub import JobHardwareInfo

    found = call("GET", "/api/spaces/hardware", who=None).json()
    assert [flavor["name"] for flavor in found] == ["cpu-basic", "t4-small", "t4-medium"]
    t4 = JobHardwareInfo(**{k: v for k, v in found[1].items() if k in ("name", "prettyName", "cpu", "ram",
        "accelerator", "unitCostMicroUSD", "unitCostUSD", "unitLabel")})  # fmt: skip
    assert t4.accelerator is not None
    assert (t4.accelerator.model, t4.accelerator.quantity, t4.accelerator.vram) == ("T4", "1", "16 GB")
    assert found[0]["accelerator"] is None


def test_hardware_is_requested_at_once_and_current_once_it_serves(call: Caller, world: World) -> None:
    space = world.space()
    world.serve_space(space)
    runtime = call("POST", f"{AT}/hardware", json={"flavor": "t4-small"}).json()
    assert runtime["hardware"] == {"current": "cpu-basic", "requested": "t4-small"}
    assert call("GET", f"{AT}/runtime", who="bob").json()["hardware"]["requested"] == "t4-small"
    refused = call("POST", f"{AT}/hardware", json={"flavor": "a100-large"})
    assert refused.status_code == 400
    assert "available: cpu-basic, t4-small, t4-medium" in refused.json()["error"]
    made = call("POST", "/api/repos/create", json={"name": "gpu", "type": "space", "sdk": "gradio",
                                                   "hardware": "t4-medium"})  # fmt: skip
    assert made.status_code == 200
    assert call("GET", "/api/spaces/alice/gpu/runtime").json()["hardware"]["requested"] == "t4-medium"


def test_admins_see_and_set_quotas(call: Caller, world: World) -> None:
    assert call("GET", QUOTAS, who="admin").json() == {"default": 1, "quotas": []}
    made = call("PUT", QUOTAS, who="admin", json={"owner": "Alice", "gpus": 2})
    assert made.json() == {"owner": "alice", "gpus": 2, "used": 0, "isDefault": False}
    space = world.space()
    deployment = world.serve_space(space)
    world.add(GpuLease(gpu="GPU-b", deployment_id=deployment.id or 0, space_id=space.id or 0,
                       owner_id=space.owner_id, since=5.0))  # fmt: skip
    assert call("GET", QUOTAS, who="admin").json()["quotas"] == [{**made.json(), "used": 1}]
    assert call("GET", "/api/platform/admin/gpus", who="admin").json() == [
        {"id": "GPU-a", "model": "T4", "space": None, "deployment": None, "since": None},
        {"id": "GPU-b", "model": "T4", "space": "alice/app", "deployment": deployment.id, "since": 5.0},
    ]
    for body, status in (({"owner": "nobody", "gpus": 1}, 404), ({"owner": "bob", "gpus": -2}, 400),
                         ({"owner": "bob"}, 400)):  # fmt: skip
        assert call("PUT", QUOTAS, who="admin", json=body).status_code == status
    back = call("PUT", QUOTAS, who="admin", json={"owner": "alice", "gpus": None})
    assert back.json() == {"owner": "alice", "gpus": 1, "used": 1, "isDefault": True}


@pytest.mark.parametrize("path", ["quotas", "gpus"])
def test_nobody_else_does(call: Caller, path: str) -> None:
    for who, status in ((None, 401), ("bob", 403), ("alice", 403)):
        assert call("GET", f"/api/platform/admin/{path}", who=who).status_code == status
        if path == "quotas":
            put = call("PUT", QUOTAS, who=who, json={"owner": "bob", "gpus": -1})
            assert put.status_code == status


def test_a_read_token_of_an_admin_sets_no_quota(call: Caller) -> None:
    assert call("PUT", QUOTAS, who="admin:read", json={"owner": "bob", "gpus": 1}).status_code == 403


def spaces(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What the command prints; it ends well."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([*words])
    assert not ended.value.code, capsys.readouterr()
    return capsys.readouterr().out


def test_the_command_line_does_the_same(
    served: Served, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = served.world
    space = world.space()
    deployment = world.serve_space(space)
    world.add(GpuLease(gpu="GPU-b", deployment_id=deployment.id or 0, space_id=space.id or 0,
                       owner_id=space.owner_id, since=5.0))  # fmt: skip
    monkeypatch.setenv("SPACES_URL", served.url)
    monkeypatch.setenv("SPACES_TOKEN", world.tokens["admin"])
    assert "t4-medium" in spaces(capsys, "hardware", "list")
    assert "t4-small" in spaces(capsys, "hardware", "set", "alice/app", "t4-small")
    assert world.directory.by_id(space.id or 0).hardware == "t4-small"
    gpus = spaces(capsys, "hardware", "gpus")
    assert "alice/app" in gpus
    assert "GPU-a" in gpus
    assert "alice may use 2 of the GPUs at once, and uses 1." in spaces(capsys, "quota", "set", "alice", "--gpus", "2")
    assert "alice" in spaces(capsys, "quota", "list")
    assert json.loads(spaces(capsys, "quota", "set", "alice", "--default", "--json"))["isDefault"] is True
    for wrong in (("quota", "set", "alice"), ("quota", "set", "alice", "--gpus", "1", "--default")):
        with pytest.raises(SystemExit) as ended:
            main([*wrong])
        assert ended.value.code == 2
