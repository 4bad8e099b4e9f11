"""Storage and snapshots over HTTP and by the command line: who may do what, and what refusals say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from spaces_platform.api.app import create_app
from spaces_platform.cli.main import main
from spaces_platform.errors import RepoNotFound
from spaces_platform.models import Deployment, Space
from tests.api.conftest import Caller, Served, World, make_world
from tests.fakes.volumes import FakeVolumes

AT = "/api/spaces/alice/app"
VOLUME = "/api/platform/spaces/alice/app/volume"
MB = 1 << 20


def fake(world: World) -> FakeVolumes:
    assert isinstance(world.volumes.storage.volumes, FakeVolumes)
    return world.volumes.storage.volumes


def started(world: World, size: int = 1024 * MB) -> Space:
    """A Space whose app has run."""
    space = world.space()
    fake(world).attach(space.id or 0, size)
    fake(world).volumes[space.id or 0].data["word"] = "kept"
    return space


def kinds(world: World, space: Space) -> list[str]:
    return [event.kind for event in world.directory.events(space)]


def test_storage_is_asked_for_grows_and_does_not_shrink(call: Caller, world: World) -> None:
    space = started(world)
    assert call("GET", f"{AT}/runtime").json()["storage"] is None
    for tier, generation in (("small", 2), ("small", 2), ("large", 3)):
        answer = call("POST", f"{AT}/storage", json={"tier": tier})
        assert (answer.status_code, answer.json()["storage"]) == (200, tier)
        assert world.directory.by_id(space.id or 0).generation == generation
    refused = call("POST", f"{AT}/storage", json={"tier": "small"})
    assert refused.status_code == 400
    assert "never shrinks" in refused.json()["error"]
    assert call("POST", f"{AT}/storage", json={"tier": "huge"}).status_code == 400
    assert call("POST", f"{AT}/storage", json={}).status_code == 400
    found = call("GET", VOLUME).json()
    assert (found["tier"], found["wantedBytes"], found["sizeBytes"]) == ("large", 65536 * MB, 1024 * MB)
    assert found["tiers"] == {"small": 4096 * MB, "medium": 16384 * MB, "large": 65536 * MB}
    assert call("GET", "/api/platform/spaces/alice/app").json()["storage"] == "large"


def test_deleted_storage_goes_and_may_be_asked_for_anew(call: Caller, world: World) -> None:
    space = started(world)
    call("POST", f"{AT}/storage", json={"tier": "large"})
    assert call("DELETE", f"{AT}/storage").json()["storage"] is None
    row = world.directory.by_id(space.id or 0)
    assert row.drops_volume
    assert call("GET", VOLUME).json()["removing"] is True
    assert call("POST", f"{AT}/storage", json={"tier": "small"}).json()["storage"] == "small"
    assert world.directory.by_id(space.id or 0).drops_volume, "what was to be deleted is kept"
    world.volumes.remove(space.id or 0)
    world.volumes.remove(space.id or 0)
    assert call("GET", VOLUME).json()["sizeBytes"] is None
    assert kinds(world, space).count("volume.removed") == 1


def test_snapshots_are_taken_and_put_back_while_it_is_paused(call: Caller, world: World) -> None:
    space = started(world)
    made = call("POST", f"{VOLUME}/snapshots").json()
    assert call("GET", f"{VOLUME}/snapshots").json() == [made]
    fake(world).volumes[space.id or 0].data["word"] = "spoilt"
    path = f"{VOLUME}/snapshots/{made['name']}/restore"
    refused = call("POST", path)
    assert refused.status_code == 409
    assert "Pause it" in refused.json()["error"]
    call("POST", f"{AT}/pause")
    ending = world.add(Deployment(space_id=space.id or 0, artifact="x", plan={}, status="STOPPING"))
    still = call("POST", path)
    assert (still.status_code, "still ending" in still.json()["error"]) == (503, True)
    with world.store.write() as tx:
        tx.delete(tx.get(Deployment, ending.id))
    fake(world).in_use = lambda _: True  # its row has ended, its container not yet
    assert call("POST", path).status_code == 503
    fake(world).in_use = lambda _: False
    missing = call("POST", f"{VOLUME}/snapshots/20200101T000000000000Z/restore")
    assert missing.status_code == 404
    assert "no snapshot" in missing.json()["error"]
    assert call("POST", path).status_code == 200
    assert fake(world).volumes[space.id or 0].data == {"word": "kept"}
    assert {"volume.snapshot", "volume.restored"} <= set(kinds(world, space))
    call("DELETE", f"{AT}/storage")
    assert call("POST", path).status_code == 409


def test_there_is_nothing_to_copy_before_the_first_start(call: Caller, world: World) -> None:
    world.space()
    refused = call("POST", f"{VOLUME}/snapshots")
    assert refused.status_code == 404
    assert "first starts" in refused.json()["error"]
    assert call("GET", f"{VOLUME}/snapshots").json() == []


def test_a_snapshot_leaves_the_machine_room(call: Caller, world: World) -> None:
    started(world)
    world.volumes.disk_floor, world.volumes.free_disk = 512 * MB, lambda: 512 * MB + 3
    refused = call("POST", f"{VOLUME}/snapshots")
    assert refused.status_code == 507
    assert "512 MiB" in refused.json()["error"]
    world.volumes.free_disk = lambda: 512 * MB + 4
    assert call("POST", f"{VOLUME}/snapshots").status_code == 200


def test_copies_are_bounded(call: Caller, world: World) -> None:
    space = started(world)
    others = [world.space("bob/one"), world.space("bob/two")]
    with world.volumes._alone(space):
        refused = call("POST", f"{VOLUME}/snapshots")
        assert (refused.status_code, "being copied" in refused.json()["error"]) == (409, True)
    with world.volumes._alone(others[0]), world.volumes._alone(others[1]):
        assert call("POST", f"{VOLUME}/snapshots").status_code == 429
    assert call("POST", f"{VOLUME}/snapshots").status_code == 200


RIGHTS = [
    ("POST", f"{AT}/storage", {"tier": "small"}, "write"),
    ("DELETE", f"{AT}/storage", None, "admin"),
    ("GET", VOLUME, None, "write"),
    ("GET", f"{VOLUME}/snapshots", None, "write"),
    ("POST", f"{VOLUME}/snapshots", None, "write"),
    ("POST", f"{VOLUME}/snapshots/20200101T000000000000Z/restore", None, "write"),
]


@pytest.mark.parametrize(("method", "path", "body", "needed"), RIGHTS)
def test_who_may(call: Caller, world: World, method: str, path: str, body: dict[str, str] | None, needed: str) -> None:
    """carol may write to the organisation's Spaces and not administer them."""
    admin = world.actor("admin")
    user = world.accounts.create_user("carol")
    world.tokens["carol"] = world.accounts.create_token(user.id or 0, "laptop")
    world.accounts.create_org("lab", by=admin)
    world.accounts.set_role("lab", "carol", "write", by=admin)
    fake(world).attach(world.space("lab/app").id or 0, MB)
    world.space("lab/hidden", visibility="private")
    path = path.replace("alice/", "lab/")
    for who, status in ((None, 401), ("bob", 403), ("alice:read", 403), ("admin:read", 403)):
        assert call(method, path, who=who, json=body).status_code == status, who
        hidden = call(method, path.replace("/app", "/hidden"), who=who, json=body)
        assert hidden.status_code == (401 if who is None else 403 if who == "admin:read" else 404), who
    carol = call(method, path, who="carol", json=body)
    assert (carol.status_code == 403) is (needed == "admin"), carol.text
    assert call(method, path, who="admin", json=body).status_code != 403


def test_a_new_space_may_ask_for_storage_and_begins_without_anybodys_data(call: Caller, world: World) -> None:
    fake(world).attach(1, MB)  # of a Space that a restored database does not know
    made = call("POST", "/api/repos/create",
                json={"name": "app", "type": "space", "sdk": "gradio", "storageTier": "medium"})  # fmt: skip
    assert made.status_code == 200
    assert call("GET", f"{AT}/runtime").json()["storage"] == "medium"
    assert fake(world).use(world.directory.find("alice", "app", world.actor("alice")).id or 0) is None
    refused = call("POST", "/api/repos/create",
                   json={"name": "two", "type": "space", "sdk": "gradio", "storageTier": "huge"})  # fmt: skip
    assert refused.status_code == 400
    with pytest.raises(RepoNotFound):
        world.directory.find("alice", "two", world.actor("alice"))


def test_apps_as_processes_have_no_storage_and_are_told(tmp_path: Path, peopled: tuple[Path, dict[str, str]]) -> None:
    world = make_world(tmp_path / "data", peopled[0])
    world.tokens.update(peopled[1])
    call = Caller(TestClient(create_app(world), base_url="http://localhost:7860"), world)  # type: ignore[arg-type]
    world.space()
    for method, path, body, _ in RIGHTS:
        answer = call(method, path, json=body)
        assert answer.status_code == 400, path
        assert "needs containers" in answer.json()["error"]
        assert "--mode single-host" in answer.json()["error"]
    made = call("POST", "/api/repos/create",
                json={"name": "two", "type": "space", "sdk": "gradio", "storageTier": "small"})  # fmt: skip
    assert made.status_code == 400
    assert call("GET", f"{AT}/runtime").json()["storage"] is None
    call.client.close()
    world.store.close()


def spaces(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    """What the command prints."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([*words])
    said = capsys.readouterr()
    assert (ended.value.code or 0) == code, said
    return said.out + said.err


def test_the_command_line_does_the_same(
    served: Served, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = served.world
    space = started(world)
    monkeypatch.setenv("SPACES_URL", served.url)
    monkeypatch.setenv("SPACES_TOKEN", world.tokens["alice"])
    shown = spaces(capsys, "volume", "show", "alice/app")
    assert "1 GB at /data (the platform's default)" in shown
    assert "small (4 GB)" in shown
    assert "has asked for small storage" in spaces(capsys, "volume", "request", "alice/app", "small")
    assert "pause" in spaces(capsys, "volume", "show", "alice/app")
    assert "storage      small" in spaces(capsys, "info", "alice/app")
    name = spaces(capsys, "volume", "snapshot", "alice/app").split()[0]
    assert name in spaces(capsys, "volume", "list", "alice/app")
    assert json.loads(spaces(capsys, "volume", "list", "alice/app", "--json"))[0]["name"] == name
    fake(world).volumes[space.id or 0].data["word"] = "spoilt"
    assert "--yes" in spaces(capsys, "volume", "restore", "alice/app", name, code=2)
    assert "Pause it" in spaces(capsys, "volume", "restore", "alice/app", name, "--yes", code=1)
    spaces(capsys, "pause", "alice/app")
    assert "no snapshot" in spaces(capsys, "volume", "restore", "alice/app", "x", "--yes", code=4)
    assert "spaces restart alice/app" in spaces(capsys, "volume", "restore", "alice/app", name, "--yes")
    assert fake(world).volumes[space.id or 0].data == {"word": "kept"}
    assert "cannot be undone" in spaces(capsys, "volume", "delete", "alice/app", code=2)
    assert not world.directory.by_id(space.id or 0).drops_volume
    assert json.loads(spaces(capsys, "volume", "delete", "alice/app", "--yes", "--json"))["storage"] is None
    assert "being deleted" in spaces(capsys, "volume", "show", "alice/app")
    assert "There is no Space alice/none" in spaces(capsys, "volume", "show", "alice/none", code=4)
