"""preload_from_hub without containers: a layer beside the environment, shown to the app in its home."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from builders.layout import Ref
from builders.types import Artifact, BuildInputs
from builders.venv import ArtifactMissing, VenvBuilder
from spaces_platform.ports import FileChange
from tests.api.conftest import World, add_people, make_world
from tests.api.test_preload import FILES, hub_for, with_files
from tests.builders.conftest import App, Log, make_builder

from .harness import exited, machine, text

__all__ = ["make_builder"]
README = "---\nsdk: gradio\npreload_from_hub:\n  - spaces/alice/model config.json,onnx/model.bin\n---\n"
READ = """
import json, os
hub = os.path.expanduser("~/.cache/huggingface/hub")
model = f"{hub}/spaces--alice--model"
commit = open(f"{model}/refs/main").read()
found = open(f"{model}/snapshots/{commit}/config.json").read()
blob = os.path.realpath(f"{model}/snapshots/{commit}/config.json")
try:
    open(blob, "a")
    written = "shared file written"
except OSError:
    written = "shared file kept"
os.makedirs(f"{hub}/models--other")
open(f"{model}/refs/main", "w").write("new")
print(json.dumps([found, written]))
"""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path / "data")
    add_people(made)
    with_files(made)
    yield made
    made.store.close()


def build(builder: VenvBuilder, app: App, world: World, log: Log) -> Artifact:
    inputs = BuildInputs("bob/app", "c", hub=hub_for(world, "bob"))
    return builder.build(app.plan(builder), app.tree, owner="bob", log=log, cancelled=lambda: False, inputs=inputs)


def test_a_layer_is_fetched_once_and_goes_with_its_last_app(
    tmp_path: Path, world: World, make_builder: Callable[..., VenvBuilder]
) -> None:
    builder, logs = make_builder(), [Log(), Log(), Log()]
    first = build(builder, App(tmp_path / "one", {"README.md": README}), world, logs[0])
    hub = builder.resolve(first.ref).hub_dir
    assert hub is not None
    assert logs[0].said("2/2 alice/model onnx/model.bin (300.0 kB)")
    assert "# preloaded: space alice/model@" in first.lock
    assert first.size > len(FILES["onnx/model.bin"])
    # Code alone changed: the same layer, nothing fetched.
    second = build(builder, App(tmp_path / "two", {"README.md": README, "app.py": "new"}), world, logs[1])
    assert builder.resolve(second.ref).hub_dir == hub
    assert logs[1].said("nothing to preload")
    assert not logs[1].said("1/2")
    # The model moved on: another layer, which takes what stayed the same from the one that is there.
    space = world.directory.find("alice", "model", world.actor("alice"))
    world.spaces.commit(space, world.actor("alice"), [FileChange("config.json", b"2")], message="new", parent=None)
    third = build(builder, App(tmp_path / "three", {"README.md": README, "app.py": "newer"}), world, logs[2])
    newer = builder.resolve(third.ref).hub_dir
    assert newer != hub
    assert newer is not None
    same = [next(folder.glob("cache/*/snapshots/*/onnx/model.bin")).stat().st_ino for folder in (hub, newer)]
    assert same[0] == same[1]
    builder.remove(first.ref)
    assert hub.is_dir()
    builder.remove(second.ref)
    assert not hub.exists()
    assert builder.exists(third.ref)


def test_an_artifact_without_its_layer_is_none(
    tmp_path: Path, world: World, make_builder: Callable[..., VenvBuilder]
) -> None:
    builder = make_builder()
    artifact = build(builder, App(tmp_path / "app", {"README.md": README}), world, Log())
    hub = builder.resolve(artifact.ref).hub_dir
    assert hub is not None
    hub.rename(tmp_path / "elsewhere")
    assert not builder.exists(artifact.ref)
    with pytest.raises(ArtifactMissing, match="build it again"):
        builder.resolve(artifact.ref)
    build(builder, App(tmp_path / "app", {"README.md": README}), world, Log())
    assert builder.exists(artifact.ref)


def test_a_failed_fetch_leaves_nothing(tmp_path: Path, world: World, make_builder: Callable[..., VenvBuilder]) -> None:
    builder = make_builder(preload=1000)
    with pytest.raises(Exception, match=r"1\.0 kB are possible"):
        build(builder, App(tmp_path / "app", {"README.md": README}), world, Log())
    root = builder.layout.root
    assert not list(root.glob("owners/*/hub/*"))
    assert not list((root / "temp").iterdir())
    assert not builder.layout.app(Ref("bob", "")).exists()


def test_an_app_finds_it_in_its_home_and_cannot_change_what_is_shared(
    world: World, make_builder: Callable[..., VenvBuilder]
) -> None:
    with machine() as place:
        app = App(place.root / "source", {"README.md": README})
        builder = make_builder(place.root / "builds")
        hub = builder.resolve(build(builder, app, world, Log()).ref).hub_dir
        assert hub is not None
        place.hub_dir = hub
        running = place.orchestrator()
        for _ in range(2):  # what one run wrote beside it is not there in the next
            spec = place.spec(READ)
            running.start(spec)
            assert exited(running, spec.id).exit_code == 0, text(running, spec.id)
            found, written = json.loads(text(running, spec.id))
            assert found == FILES["config.json"].decode()
            if os.geteuid() == 0:
                assert written == "shared file kept"
        assert next(hub.glob("cache/*/snapshots/*/config.json")).read_bytes() == FILES["config.json"]
