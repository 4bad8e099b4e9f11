"""What the engine is told for a deployment. Set WRITE_GOLDEN=1 to write the files anew, and read the difference."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spaces_platform.adapters.docker.engine import EngineFacts, Owner, facts_of
from spaces_platform.adapters.docker.settings import DockerSettings
from spaces_platform.adapters.docker.spec import (
    ImageFacts,
    Labels,
    Mount,
    cgroup_parent,
    container_spec,
    exit_code,
    image_facts,
    image_reference,
    writable_places,
)
from spaces_platform.errors import Invalid
from spaces_platform.ports import DeploymentSpec, Resources

GOLDEN = Path(__file__).parent / "golden"
DIGEST = "sha256:" + "ab" * 32
RESOURCES = Resources(cpus=1.5, memory=512 << 20, processes=100, disk=1 << 30, log_bytes=4 << 20)
SPEC = DeploymentSpec(
    id=17, space_id=4, space="ada/hello", artifact_ref=f"image:{DIGEST}", argv=("python", "app.py", "--port", "{PORT}"),
    env={"GREETING": "hello", "GRADIO_SERVER_PORT": "{PORT}", "PORT": "1"}, app_port=7860, base_path="/",
    resources=RESOURCES,
)  # fmt: skip
IMAGE = ImageFacts(DIGEST, "/home/user/app")
LABELS = Labels("0123abcd", 17, 4, 7860, "/", 1700000000.25, 4 << 20, "container, fenced network, sized disk")
DISK = [Mount("/data/containers/deployments/17/place-0", "/home/user"), Mount("/data/…/17/disk/tmp", "/tmp")]


def made(
    spec: DeploymentSpec = SPEC,
    settings: DockerSettings | None = None,
    engine: EngineFacts | None = None,
    image: ImageFacts = IMAGE,
    mounts: list[Mount] = DISK,
) -> dict[str, Any]:
    facts = engine or EngineFacts()
    return container_spec(
        spec, settings or DockerSettings(), facts, image=image, labels=LABELS, network="spaces-0123abcd-4",
        mounts=mounts, cgroup_parent=cgroup_parent("0123abcd", facts),
    )  # fmt: skip


CASES = {
    "python": made(),
    "own-dockerfile": made(
        replace(SPEC, argv=()), image=replace(IMAGE, has_command=True), mounts=[*DISK, Mount("/data/…/place-1", "/run")]
    ),
    "gpus-gvisor": made(
        replace(SPEC, gpus=("GPU-1", "GPU-2")),
        DockerSettings(runtime="runsc", ca_bundle="/etc/company/ca.pem"),
        EngineFacts(cgroup_driver="systemd", open_files=20000, init=False, gvisor=frozenset({"runsc"})),
    ),
    "no-disk": made(mounts=[]),
}


@pytest.mark.parametrize("name", CASES)
def test_the_container_is_as_it_was_agreed(name: str) -> None:
    text = json.dumps(CASES[name], indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    path = GOLDEN / f"{name}.json"
    if os.environ.get("WRITE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", CASES)
def test_no_app_is_given_more_than_it_needs(name: str) -> None:
    """Said once more without golden files, which may be written anew in haste."""
    config, host = CASES[name], CASES[name]["HostConfig"]
    assert config["User"] == "1000:1000"
    assert (host["CapDrop"], host.get("CapAdd")) == (["ALL"], None)
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert not host["Privileged"]
    assert host["Memory"] == host["MemorySwap"] == RESOURCES.memory
    in_gvisor = [limit["Hard"] for limit in host["Ulimits"] if limit["Name"] == "nproc"]
    assert (in_gvisor or [host["PidsLimit"]]) == [RESOURCES.processes]
    assert host["NetworkMode"] == "spaces-0123abcd-4"
    assert not any("docker.sock" in bind for bind in host["Binds"])
    assert not {"Devices", "PortBindings", "UsernsMode", "PublishAllPorts"} & set(host)
    assert config["Healthcheck"] == {"Test": ["NONE"]}


def test_the_runtimes_that_are_gvisor_are_known_by_name_or_program() -> None:
    info = {
        "Runtimes": {
            "runc": {"path": "runc"},
            "runsc": {"path": "/usr/bin/runsc"},
            "strict": {"path": "/opt/bin/runsc", "runtimeArgs": ["--platform=kvm"]},
            "shim": {"runtimeType": "io.containerd.runsc.v1"},
            "kata": {"path": "/opt/kata/bin/kata-runtime"},
            "odd": None,
        },
        "DefaultRuntime": "strict",
    }
    facts = facts_of(info)
    assert facts.gvisor == {"runsc", "strict", "shim"}
    assert [facts.is_gvisor(name) for name in ("", "runc", "runsc")] == [True, False, True]


def test_the_port_is_the_platforms_and_the_rest_the_owners() -> None:
    env = dict(entry.split("=", 1) for entry in made()["Env"])
    assert (env["PORT"], env["GRADIO_SERVER_PORT"], env["GREETING"]) == ("7860", "7860", "hello")
    assert made()["Cmd"] == ["python", "app.py", "--port", "7860"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"argv": ("",)}, "no command"),
        ({"argv": ()}, "no command"),
        ({"argv": ("a\0b",)}, "zero byte"),
        ({"env": {"A B": "1"}}, "name of a variable"),
        ({"env": {"A": "1\0"}}, "zero byte"),
        ({"base_path": "x"}, "base_path"),
        ({"base_path": "/a\r\nX: y"}, "base_path"),
        ({"app_port": 0}, "app_port"),
        ({"resources": replace(RESOURCES, memory=1 << 20)}, "too little"),
    ],
)
def test_what_can_never_start_is_refused_before_the_engine_is_asked(change: dict[str, Any], words: str) -> None:
    with pytest.raises(Invalid, match=words):
        made(replace(SPEC, **change))


@pytest.mark.parametrize(
    ("ref", "reference"),
    [(f"image:{DIGEST}", DIGEST), (f"image:127.0.0.1:5000/ada/hello@{DIGEST}", f"127.0.0.1:5000/ada/hello@{DIGEST}")],
)
def test_images_are_named_by_their_content(ref: str, reference: str) -> None:
    assert image_reference(ref) == reference


@pytest.mark.parametrize(
    "ref",
    ["missing", "venv:ada/x", "image:latest", "image:hello:latest", f"image:@{DIGEST}", f"image:-v@{DIGEST}x", ""],
)
def test_anything_else_is_no_artifact(ref: str) -> None:
    with pytest.raises(Invalid):
        image_reference(ref)


@pytest.mark.parametrize(
    ("argv", "workdir", "volumes", "volume", "places"),
    [
        (("x",), "/home/user/app", (), 0, ("/home/user",)),
        ((), "/app", (), 0, ("/app", "/run", "/var", "/home/user")),
        ((), "/home/user", ("/var/lib/postgresql/data", "/data"), 0, ("/data", "/run", "/var", "/home/user")),
        ((), "/", ("/data/x", "/data"), 1, ("/run", "/var", "/home/user")),
        (("x",), "", ("/etc/nginx/",), 0, ("/etc/nginx", "/home/user")),
    ],
)
def test_an_app_writes_beside_its_code_and_nowhere_else(
    argv: tuple[str, ...], workdir: str, volumes: tuple[str, ...], volume: int, places: tuple[str, ...]
) -> None:
    spec = replace(SPEC, argv=argv, resources=replace(RESOURCES, volume=volume))
    assert writable_places(spec, ImageFacts(DIGEST, workdir, volumes)) == places


@pytest.mark.parametrize(
    "volume", ["/etc", "/usr", "/dev", "/proc", "/../x", "/a/../b", "/a:b", "/a,b", "/a\nb", "/lib64"]
)
def test_a_volume_that_would_hide_the_system_is_refused(volume: str) -> None:
    with pytest.raises(Invalid):
        writable_places(SPEC, ImageFacts(DIGEST, "/app", (volume,)))


@pytest.mark.parametrize(
    ("state", "code"),
    [({"ExitCode": 0}, 0), ({"ExitCode": 3}, 3), ({"ExitCode": 137}, -9), ({"ExitCode": 143}, -15),
     ({"ExitCode": 255}, 255), ({"ExitCode": 128}, 128), ({}, None), ({"ExitCode": -1}, None)],
)  # fmt: skip
def test_an_exit_code_of_a_signal_is_the_signal(state: dict[str, int], code: int | None) -> None:
    assert exit_code(state) == code


def test_labels_are_read_as_they_were_written() -> None:
    assert Labels.parse(LABELS.as_dict()) == LABELS


@pytest.mark.parametrize("name", LABELS.as_dict())
def test_half_a_set_of_labels_is_no_deployment(name: str) -> None:
    with pytest.raises((KeyError, ValueError)):
        Labels.parse({key: value for key, value in LABELS.as_dict().items() if key != name})


def test_an_image_is_read_with_its_layers_topmost_first() -> None:
    found = image_facts({
        "Id": DIGEST,
        "Config": {"WorkingDir": "/app", "Volumes": {"/b": {}, "/a": {}}, "Entrypoint": None, "Cmd": ["x"]},
        "GraphDriver": {"Name": "overlay2", "Data": {"UpperDir": "/o/3/diff", "LowerDir": "/o/2/diff:/o/1/diff"}},
    })  # fmt: skip
    assert found == ImageFacts(DIGEST, "/app", ("/a", "/b"), True, ("/o/3/diff", "/o/2/diff", "/o/1/diff"))
    assert image_facts({"Id": DIGEST, "GraphDriver": {"Name": "btrfs", "Data": None}}).layers == ()


def test_where_containerd_keeps_images_its_layers_are_asked_for_by_what_they_hold() -> None:
    found = image_facts({
        "Id": DIGEST, "GraphDriver": {"Name": "overlayfs", "Data": None}, "RootFS": {"Layers": ["sha256:1", "sha256:2"]}
    })  # fmt: skip
    assert (found.layers, found.diff_ids) == ((), ("sha256:1", "sha256:2"))
    status = [["driver-type", "io.containerd.snapshotter.v1"]]
    where = {"Address": "/run/containerd/containerd.sock", "Namespaces": {"Containers": "moby", "Plugins": "x"}}
    facts = facts_of({"Driver": "overlayfs", "DriverStatus": status, "Containerd": where})
    assert (facts.storage, facts.containerd, facts.namespace) == ("overlayfs", where["Address"], "moby")
    assert facts_of({"Driver": "overlayfs", "DriverStatus": status}).containerd == "", "Docker 26 does not say"
    assert facts_of({"Driver": "overlay2", "DriverStatus": [["x", "y"]], "Containerd": where}).containerd == ""


@pytest.mark.parametrize(
    ("options", "root", "seccomp", "offset"),
    [
        (["name=seccomp,profile=default"], "/var/lib/docker", True, Owner(0, 0)),
        (["name=seccomp,profile=unconfined"], "/var/lib/docker", False, Owner(0, 0)),
        ([], "/var/lib/docker", False, Owner(0, 0)),
        (["name=seccomp,profile=builtin", "name=userns"], "/var/lib/docker/165536.165536", True, Owner(165536, 165536)),
        (["name=seccomp,profile=builtin", "name=userns"], "/srv/165536.231072", True, Owner(165536, 231072)),
        (["name=seccomp,profile=builtin"], "/srv/1.2", True, Owner(0, 0)),
        (["name=seccomp,profile=builtin"], "/srv/0.0", True, Owner(0, 0)),  # as by --userns-remap=root, which is none
    ],
)
def test_an_engine_is_believed_what_it_says(options: list[str], root: str, seccomp: bool, offset: Owner) -> None:
    facts = facts_of({"SecurityOptions": options, "DockerRootDir": root, "InitBinary": "docker-init"})
    assert (facts.seccomp, facts.on_host(0), facts.init) == (seccomp, offset, True)
    assert facts.on_host(1000) == Owner(offset.uid + 1000, offset.gid + 1000)
