"""preload_from_hub in images: a layer of its own below environment and code, in the place where apps look."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from builders.containers.hub_image import HUB_TAGS
from builders.types import BuildError, BuildInputs, BuildLimits
from tests.api.conftest import World, add_people, make_world
from tests.api.test_preload import FILES, MIB, HttpHub, hub_for, mirror, with_files
from tests.builders.conftest import Log
from tests.containers.builds import Builds, builds_on, require_runtime_images

HUB = "/home/user/.cache/huggingface/hub"
TOKEN = "hf_secret_of_ada_0123456789"


@pytest.fixture
def builds(engine_url: str, tmp_path: Path) -> Iterator[Builds]:
    with builds_on(tmp_path, engine_url) as made:
        require_runtime_images(made)
        yield made
        made.close()
        made.builder.prune()
        assert names(made) == set()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path / "data")
    add_people(made)
    yield made
    made.store.close()


def names(builds: Builds) -> set[str]:
    """Of this builder's images with preloaded files."""
    mine = builds.builder.records.scope("hub")[:8]
    return {name for name in builds.builder.engine.names(HUB_TAGS) if name.startswith(f"{HUB_TAGS}:{mine}-")}


def app(entry: str, **files: str) -> dict[str, str | bytes]:
    return {"README.md": f"---\nsdk: gradio\npreload_from_hub: ['{entry}']\n---\n", "app.py": "print(1)\n", **files}


def test_files_lie_where_apps_look_in_a_layer_below_the_code(builds: Builds, world: World) -> None:
    space = with_files(world, "alice/model", visibility="private")
    inputs = BuildInputs("alice/app", "c", hub=hub_for(world, "alice"))
    log = Log()
    entry = "spaces/alice/model config.json,onnx/model.bin"
    first = builds.build(app(entry), inputs=inputs, log=log)
    shown = builds.run(
        first, "sh", "-c", f"cd {HUB}/spaces--*; cat refs/main snapshots/*/config.json; stat -c '%u %a' . .."
    )
    assert shown == f"{space.head}{FILES['config.json'].decode()}1000 755\n1000 755\n"
    assert builds.run(first, "sh", "-c", f"cat {HUB}/spaces--*/snapshots/*/onnx/model.bin | wc -c") == "300000\n"
    # The app's own user may fetch more beside it.
    assert (
        builds.run(first, "sh", "-c", f"id -u; touch {HUB}/x {HUB}/spaces--alice--model/refs/x && echo ok")
        == "1000\nok\n"
    )
    assert log.said("2/2 alice/model onnx/model.bin (300.0 kB)")
    assert f"# preloaded: space alice/model@{space.head}" in first.lock
    # Code changed, and then what is installed: the layer is the same one, and nothing is fetched.
    layers = builds.inspect(first)["RootFS"]["Layers"]
    run = builds.docker.api.inspect_image(builds.options.images.run)["RootFS"]["Layers"]
    for files in ({"app.py": "print(2)\n"}, {"packages.txt": ""}):
        log = Log()
        again = builds.build(app(entry, **files), inputs=inputs, log=log)
        assert log.said("nothing to preload")
        assert not log.said("1/2")
        assert builds.inspect(again)["RootFS"]["Layers"][: len(run) + 1] == layers[: len(run) + 1]
    assert layers[: len(run)] == run
    assert len(names(builds)) == 1
    # It goes with the last artifact that stands upon it, and not before.
    builds.builder.remove(first.ref)
    builds.builder.prune()
    assert len(names(builds)) == 1


def test_no_owner_gets_anothers_layer(builds: Builds, world: World) -> None:
    with_files(world)
    for owner in ("1", "2"):
        inputs = BuildInputs(f"{owner}/app", "c", hub=hub_for(world, "bob"))
        builds.build(app("spaces/alice/model config.json"), inputs=inputs, owner=owner)
    assert len(names(builds)) == 2


def test_the_token_of_a_hub_is_in_no_layer_and_no_line(builds: Builds) -> None:
    with mirror() as hub:
        hub.serve({"f": b"content"})
        inputs = BuildInputs("ada/app", "c", secrets={"HF_TOKEN": TOKEN}, hub=HttpHub(hub.url, token=TOKEN))
        log = Log()
        artifact = builds.build(app("a/b"), inputs=inputs, log=log)
        assert {token for _, token in hub.seen} == {f"Bearer {TOKEN}"}
    assert builds.run(artifact, "sh", "-c", f"cat {HUB}/models--a--b/snapshots/*/f; echo") == "content\n"
    said = [*log.lines, *map(str, log.phases), artifact.dockerfile, str(builds.inspect(artifact))]
    said.append(str(builds.docker.api.history(artifact.ref.removeprefix("image:"))))
    assert TOKEN not in " ".join(said)
    assert builds.run(artifact, "sh", "-c", f"grep -rl {TOKEN} /home /opt /etc /tmp 2>/dev/null; echo end") == "end\n"
    assert not [p for p in builds.root.rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()]


def test_what_is_too_large_ends_the_build_and_leaves_nothing(engine_url: str, tmp_path: Path, world: World) -> None:
    with_files(world, files={"big": os.urandom(2 * MIB)})
    with builds_on(tmp_path, engine_url, limits=BuildLimits(preload=MIB)) as builds:
        require_runtime_images(builds)
        with pytest.raises(BuildError) as caught:
            builds.build(app("spaces/alice/model"), inputs=BuildInputs("a/b", "c", hub=hub_for(world, "bob")))
        assert caught.value.reason == "hub_too_large"
        assert names(builds) == set()
        assert not list((builds.root / "images" / "work").iterdir())
