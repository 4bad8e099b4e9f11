"""preload_from_hub: both hubs by one contract, with whose rights, and what a hub that is broken or hostile can do.

What is written is read back by huggingface_hub itself, without network.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from builders import preload
from builders.types import BuildCancelled, BuildError, Hub, HubMissing
from spaces_platform import build_inputs
from spaces_platform.accounts import PLATFORM
from spaces_platform.adapters.http_hub import HttpHub
from spaces_platform.hub import OwnHub, SpaceHub
from spaces_platform.models import Build, Space
from spaces_platform.ports import FileChange
from spaces_platform.space_settings import Setting
from tests.api.conftest import Served, World
from tests.builders.conftest import Log

MIB = 1 << 20
FILES = {"config.json": b'{"a": 1}', "onnx/model.bin": os.urandom(300_000), "onnx/empty": b""}


def with_files(world: World, name: str = "alice/model", files: Mapping[str, bytes] = FILES, **given: str) -> Space:
    """A Space with these files beside those that it begins with."""
    space = world.space(name, **given)
    changes = [FileChange(path, content) for path, content in files.items()]
    world.spaces.commit(space, world.actor("admin"), changes, message="files", parent=None)
    return world.directory.by_id(space.id or 0)


def hub_for(world: World, owner: str) -> OwnHub:
    return OwnHub(world.store, world.repos, world.accounts.find(owner).id or 0)


def layer_of(entries: list[str], hub: Hub, limit: int = 10 * MIB) -> preload.Layer:
    return preload.resolve(entries, hub, limit, Log())


def fetched(entries: list[str], hub: Hub, target: Path, limit: int = 10 * MIB, log: Log | None = None) -> preload.Layer:
    layer = layer_of(entries, hub, limit)
    target.mkdir()
    preload.fetch(layer, hub, target, limit=limit, log=log or Log(), check=lambda: None)
    return layer


# --- one contract --------------------------------------------------------------------------------------------------
@pytest.fixture(params=["own", "http"])
def hub(request: pytest.FixtureRequest, served: Served) -> Hub:
    """Bob's."""
    if request.param == "own":
        return hub_for(served.world, "bob")
    return HttpHub(served.url, token=served.world.tokens["bob:read"])


def test_files_are_found_by_huggingface_hub(hub: Hub, served: Served, tmp_path: Path) -> None:
    from huggingface_hub import hf_hub_download, snapshot_download

    space = with_files(served.world)
    log = Log()
    layer = fetched(["spaces/alice/model"], hub, tmp_path / "hub", log=log)
    for path, content in FILES.items():
        found = hf_hub_download(
            "alice/model", path, repo_type="space", cache_dir=tmp_path / "hub", local_files_only=True
        )
        assert Path(found).read_bytes() == content
        assert f"snapshots/{space.head}/" in found
    folder = snapshot_download("alice/model", repo_type="space", cache_dir=tmp_path / "hub", local_files_only=True)
    assert sorted(os.listdir(folder)) == ["config.json", "onnx"]
    assert [text for _, text in log.phases][2] == "3/3 alice/model onnx/model.bin (300.0 kB)"
    assert layer.words == (f"space alice/model@{space.head} (3 files)",)


def test_named_files_of_a_commit_are_all_that_is_fetched(hub: Hub, served: Served, tmp_path: Path) -> None:
    world = served.world
    old = with_files(world).head
    with_new = world.directory.by_label("alice-model", PLATFORM)
    world.spaces.commit(with_new, world.actor("admin"), [FileChange("config.json", b"new")], message="new", parent=None)
    fetched([f"spaces/alice/model config.json,onnx/empty {old}"], hub, tmp_path / "hub")
    folder = tmp_path / "hub" / "spaces--alice--model"
    kept = {str(path.relative_to(folder / "snapshots")) for path in folder.rglob("*") if path.is_symlink()}
    assert kept == {f"{old}/config.json", f"{old}/onnx/empty"}
    assert (folder / "snapshots" / (old or "") / "config.json").read_bytes() == FILES["config.json"]
    assert (folder / "refs" / "main").read_text() == old  # an app that asks for no commit finds it as well


def test_what_is_missing_is_named(hub: Hub, served: Served) -> None:
    with_files(served.world)
    for entry, reason, words in (
        ("spaces/alice/nothing", "hub_repo_not_found", "alice/nothing"),
        (f"spaces/alice/model a {'0' * 40}", "hub_revision_not_found", "no commit 000"),
        ("spaces/alice/model model.bin", "hub_file_not_found", "Did you mean onnx/model.bin?"),
        ("spaces/alice/model nothing.bin", "hub_file_not_found", "no file nothing.bin"),
    ):
        with pytest.raises(BuildError) as caught:
            layer_of([entry], hub)
        assert (caught.value.reason, words in str(caught.value)) == (reason, True), str(caught.value)


def test_private_ones_are_there_for_their_owner_only(hub: Hub, served: Served) -> None:
    world = served.world
    with_files(world, "alice/hidden", visibility="private")
    mine = with_files(world, "bob/hidden", visibility="private")
    assert layer_of(["spaces/bob/hidden config.json"], hub).parts[0].repo.commit == mine.head
    with pytest.raises(BuildError) as caught:
        layer_of(["spaces/alice/hidden config.json"], hub)
    assert caught.value.reason == "hub_repo_not_found"
    assert "private" in caught.value.cause


# --- whose rights --------------------------------------------------------------------------------------------------
def test_an_admins_space_reads_no_more_than_its_owner_was_given(world: World) -> None:
    """What a build reads, visitors may get to see."""
    with_files(world, "alice/hidden", visibility="private")
    with pytest.raises(BuildError):
        hub_for(world, "admin").find("space", "alice/hidden", "main")


def test_an_organisations_space_reads_the_organisations_spaces(world: World) -> None:
    world.accounts.create_org("lab", by=world.actor("alice"))
    with_files(world, "lab/weights", visibility="private")
    assert hub_for(world, "lab").find("space", "lab/weights", "main").files["config.json"].size == 8
    assert hub_for(world, "alice").find("space", "lab/weights", "main").files
    with pytest.raises(BuildError):
        hub_for(world, "bob").find("space", "lab/weights", "main")


def test_a_build_is_given_the_hub_of_its_spaces_owner(world: World) -> None:
    given: list[tuple[int, Mapping[str, str]]] = []

    def hubs(space: Space, secrets: Mapping[str, str]) -> Hub:
        given.append((space.owner_id, secrets))
        return SpaceHub(OwnHub(world.store, world.repos, space.owner_id), None)

    space = world.space("alice/app")
    world.space_settings.set_secrets(space, world.actor("alice"), [Setting("HF_TOKEN", "hf_x")])
    build = Build(space_id=space.id or 0, commit="c", plan_id="p", plan={}, generation=1)
    assert build_inputs.gather(world.store, world.vault, hubs, build).hub is not None
    assert given == [(space.owner_id, {"HF_TOKEN": "hf_x"})]


def test_models_without_a_hub_are_left_out_with_a_word(world: World) -> None:
    with_files(world)
    log, hub = Log(), SpaceHub(hub_for(world, "bob"), None)
    layer = preload.resolve(["gpt2", "spaces/alice/model config.json", "datasets/a/b"], hub, MIB, log)
    assert [part.repo.name for part in layer.parts] == ["alice/model"]
    assert len([line for line in log.lines if "left out" in line and "hub_endpoint" in line]) == 2
    with pytest.raises(HubMissing):
        hub_for(world, "bob").find("model", "gpt2", "main")


# --- the layer -----------------------------------------------------------------------------------------------------
def test_equal_files_have_one_id_and_others_another(world: World) -> None:
    with_files(world)
    hub = hub_for(world, "bob")
    ids = [
        layer_of(entries, hub).id
        for entries in (
            ["spaces/alice/model config.json,onnx/empty"],
            ["spaces/alice/model onnx/empty,config.json"],
            ["spaces/alice/model config.json"],
            ["spaces/alice/model"],
        )
    ]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3
    space = world.directory.by_label("alice-model", PLATFORM)
    world.spaces.commit(space, world.actor("admin"), [FileChange("new", b"n")], message="new", parent=None)
    assert layer_of(["spaces/alice/model config.json"], hub).id != ids[2]  # another commit, by which apps find it


def test_too_much_is_refused_before_anything_is_fetched(world: World, tmp_path: Path) -> None:
    with_files(world)
    with pytest.raises(BuildError) as caught:
        fetched(["spaces/alice/model"], hub_for(world, "bob"), tmp_path / "hub", limit=200_000)
    assert caught.value.reason == "hub_too_large"
    assert "200.0 kB are possible" in caught.value.cause
    assert not (tmp_path / "hub").exists()


def test_a_cancelled_build_stops_in_the_middle_of_a_file(world: World, tmp_path: Path) -> None:
    with_files(world)
    hub = hub_for(world, "bob")
    looks = 0

    def check() -> None:
        nonlocal looks
        looks += 1
        if looks > 2:
            raise BuildCancelled

    (tmp_path / "hub").mkdir()
    with pytest.raises(BuildCancelled):
        preload.fetch(
            layer_of(["spaces/alice/model onnx/model.bin"], hub), hub, tmp_path / "hub", limit=MIB, log=Log(),
            check=check,
        )  # fmt: skip
    assert [path.name for path in (tmp_path / "hub").rglob("*") if path.is_symlink()] == []


def test_files_of_another_layer_are_linked_not_fetched(world: World, tmp_path: Path) -> None:
    with_files(world)
    hub = hub_for(world, "bob")
    fetched(["spaces/alice/model onnx/model.bin"], hub, tmp_path / "one")
    (tmp_path / "two").mkdir()
    layer = layer_of(["spaces/alice/model onnx/model.bin,config.json"], hub)
    came = preload.fetch(
        layer, hub, tmp_path / "two", limit=MIB, log=Log(), check=lambda: None, have=[tmp_path / "one"]
    )
    assert came == len(FILES["config.json"])


@pytest.mark.parametrize(
    "text",
    ["../etc", "a/..", "a--b", "spaces/a", "a/b ../x", "a/b /x", "a/b x,,y", "a/b x 12", "a/b/c", "datasets/a/b/c", ""],
)
def test_bad_entries(text: str) -> None:
    if text == "spaces/a":
        assert preload.parse(text) == preload.Entry("model", "spaces/a")  # two words are a model's owner and name
        return
    with pytest.raises(ValueError):
        preload.parse(text)


# --- hubs that are broken or hostile -------------------------------------------------------------------------------
@dataclass
class Mirror:
    """A hub that answers as it is told: path to (status, headers, body)."""

    url: str = ""
    answers: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    seen: list[tuple[str, str | None]] = field(default_factory=list)
    """(path, Authorization) of every request."""

    def serve(self, files: Mapping[str, bytes], **listed: object) -> None:
        """A model `a/b`; `listed` overrides what the list says of each file."""
        rows = [{"rfilename": path, "size": len(content), **listed} for path, content in files.items()]
        listing = json.dumps({"sha": "1" * 40, "siblings": rows}).encode()
        self.answers["/api/models/a/b/revision/main?blobs=true"] = (200, {}, listing)
        for path, content in files.items():
            self.answers[f"/a/b/resolve/{'1' * 40}/{path}"] = (200, {"ETag": '"x1"'}, content)

    def redirect(self, path: str, to: str, **headers: str) -> None:
        self.answers[f"/a/b/resolve/{'1' * 40}/{path}"] = (302, {"Location": to, **headers}, b"")


@contextmanager
def mirror() -> Iterator[Mirror]:
    made = Mirror()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.seen.append((self.path, self.headers.get("authorization")))
            status, headers, body = made.answers.get(self.path, (404, {}, b""))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def odd() -> Iterator[Mirror]:
    with mirror() as made:
        yield made


def test_the_token_goes_to_the_hub_and_no_further(odd: Mirror, tmp_path: Path) -> None:
    """Large files lie elsewhere: the hub redirects to them."""
    content = os.urandom(1000)
    digest = hashlib.sha256(content).hexdigest()
    with mirror() as store:
        odd.serve({"big.bin": content}, lfs={"sha256": digest, "size": 1000})
        odd.redirect("big.bin", f"{store.url}/stored?sign=1", **{"X-Linked-Etag": f'"{digest}"'})
        store.answers["/stored?sign=1"] = (200, {"ETag": '"of-the-store"'}, content)
        local = [(ipaddress.IPv4Network("127.0.0.1/32"), int(store.url.rpartition(":")[2]))]
        fetched(["a/b"], HttpHub(odd.url, token="hf_secret", allow=local), tmp_path / "hub")
        assert [token for _, token in odd.seen] == ["Bearer hf_secret"] * 2
        assert store.seen == [("/stored?sign=1", None)]
    assert (tmp_path / "hub" / "models--a--b" / "blobs" / digest).read_bytes() == content
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and b"hf_secret" in p.read_bytes()]


def test_a_hub_sends_nobody_to_private_addresses(odd: Mirror, tmp_path: Path) -> None:
    with mirror() as inner:
        inner.answers["/"] = (200, {}, b"mine")
        odd.serve({"f": b"mine"})
        for n, host in enumerate((inner.url, inner.url.replace("127.0.0.1", "localhost"), "http://169.254.169.254")):
            odd.redirect("f", f"{host}/")
            with pytest.raises(BuildError) as caught:
                fetched(["a/b"], HttpHub(odd.url), tmp_path / f"hub{n}")
            assert "private address" in caught.value.cause
        assert inner.seen == []
        odd.redirect("f", f"{inner.url}/")
        port = int(inner.url.rpartition(":")[2])
        fetched(["a/b"], HttpHub(odd.url, allow=[(ipaddress.IPv4Network("127.0.0.0/8"), port)]), tmp_path / "allowed")
        assert inner.seen  # so that the test can fail


def damaged(odd: Mirror) -> None:
    odd.serve({"f": b"other"}, lfs={"sha256": "0" * 64})
    odd.answers[f"/a/b/resolve/{'1' * 40}/f"] = (200, {"ETag": f'"{"0" * 64}"'}, b"other")


LISTING = "/api/models/a/b/revision/main?blobs=true"
ODD: dict[str, tuple[Callable[[Mirror], object], str, str]] = {
    "another checksum": (damaged, "hub_damaged", "checksum"),
    "more than listed": (lambda m: m.serve({"f": b"x" * 500}, size=100), "hub_damaged", "more than the 100 bytes"),
    "less than listed": (lambda m: m.serve({"f": b"x"}, size=100), "hub_damaged", "1 bytes instead of the 100"),
    "no end": (lambda m: m.serve({"f": b"x" * 3 * MIB}, size=None), "hub_too_large", "more than the 1.0 MB"),
    "a way out": (lambda m: m.serve({"../../f": b"x"}), "hub_bad_path", "../../f"),
    "a way to the root": (lambda m: m.serve({"/etc/f": b"x"}), "hub_bad_path", "/etc/f"),
    "no json": (lambda m: m.answers.update({LISTING: (200, {}, b"<html>")}),
                "hub_unreachable", "as the Hub does"),
    "no commit": (lambda m: m.answers.update({LISTING: (200, {}, b'{"sha": "x", "siblings": []}')}),
                  "hub_unreachable", "commit that is none"),
    "an error": (lambda m: m.answers.update({LISTING: (503, {}, b"")}),
                 "hub_unreachable", "answers 503"),
    "in circles": (lambda m: (m.serve({"f": b"x"}), m.redirect("f", f"/a/b/resolve/{'1' * 40}/f")),
                   "hub_unreachable", "redirects more than"),
    "a private one": (lambda m: m.answers.update({LISTING: (401, {}, b"")}),
                      "hub_repo_not_found", "HF_TOKEN"),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_odd_hubs(name: str, odd: Mirror, tmp_path: Path) -> None:
    prepare, reason, words = ODD[name]
    prepare(odd)
    with pytest.raises(BuildError) as caught:
        fetched(["a/b"], HttpHub(odd.url, token="hf_secret"), tmp_path / "hub", limit=10**6)
    assert (caught.value.reason, words in str(caught.value)) == (reason, True), str(caught.value)
    assert "hf_secret" not in repr(caught.value.args) + repr(caught.value.evidence)
    assert [path.name for path in tmp_path.rglob("*") if path.is_symlink()] == []


def test_a_hub_that_is_away(tmp_path: Path) -> None:
    with mirror() as gone:
        url = gone.url
    with pytest.raises(BuildError) as caught:
        fetched(["a/b"], HttpHub(url), tmp_path / "hub")
    assert caught.value.reason == "hub_unreachable"
    assert url in caught.value.cause
