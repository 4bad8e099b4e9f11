"""What is asked of containerd and what it answers, byte by byte, and a server that speaks its protocol."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import pytest

from spaces_platform.adapters.docker.disks import _links
from spaces_platform.adapters.docker.snapshots import Snapshots, chain_id, encode, lower_folders
from spaces_platform.errors import NotFound, Unavailable

grpc = pytest.importorskip("grpc")
ROOT = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots"


def field(number: int, data: bytes) -> bytes:
    assert len(data) < 1 << 14
    size = bytes([len(data)]) if len(data) < 128 else bytes([len(data) & 0x7F | 0x80, len(data) >> 7])
    return bytes([number << 3 | 2]) + size + data


def mount(kind: str, source: str, *options: str) -> bytes:
    fields = [field(1, kind.encode()), field(2, source.encode()), *(field(4, one.encode()) for one in options)]
    return field(1, b"".join(fields))


OVERLAY = mount("overlay", "overlay", "index=off", f"lowerdir={ROOT}/12/fs:{ROOT}/7/fs:{ROOT}/1/fs")


def test_a_stack_of_layers_has_one_name() -> None:
    """As the image specification makes it."""
    assert chain_id([]) == ""
    assert chain_id(["sha256:a"]) == "sha256:a"
    two = f"sha256:{hashlib.sha256(b'sha256:a sha256:b').hexdigest()}"
    assert chain_id(["sha256:a", "sha256:b"]) == two
    assert chain_id(["sha256:a", "sha256:b", "c"]) == f"sha256:{hashlib.sha256(f'{two} c'.encode()).hexdigest()}"


def test_a_message_is_its_texts() -> None:
    assert encode("ab", "", "c" * 300) == b"\x0a\x02ab" + b"\x12\x00" + b"\x1a\xac\x02" + b"c" * 300


@pytest.mark.parametrize(
    ("answer", "folders"),
    [
        (OVERLAY, (f"{ROOT}/12/fs", f"{ROOT}/7/fs", f"{ROOT}/1/fs")),
        (mount("bind", f"{ROOT}/1/fs", "ro", "rbind"), (f"{ROOT}/1/fs",)),
        pytest.param(b"\x10\x96\x01" + OVERLAY, (f"{ROOT}/12/fs", f"{ROOT}/7/fs", f"{ROOT}/1/fs"), id="a newer field"),
    ],
)
def test_the_folders_are_those_of_the_mount(answer: bytes, folders: tuple[str, ...]) -> None:
    assert lower_folders(answer) == folders


@pytest.mark.parametrize(
    "answer",
    [b"", OVERLAY + OVERLAY, OVERLAY[:-1], b"\x0a", b"\x0d1234", mount("overlay", "overlay"), mount("zfs", "pool/1")],
)
def test_another_answer_is_a_clear_error(answer: bytes) -> None:
    with pytest.raises(Unavailable):
        lower_folders(answer)


# --- the conversation ----------------------------------------------------------------------------------------------
class Containerd(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Knows one image of two layers."""

    def __init__(self) -> None:
        self.views: set[bytes] = set()
        self.asked: list[str] = []

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        assert ("containerd-namespace", "moby") in details.invocation_metadata
        method = details.method.rpartition("/")[2]
        self.asked.append(method)
        return grpc.unary_unary_rpc_method_handler({"View": self.view, "Remove": self.remove}[method])

    def view(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        if not message.endswith(chain_id(["sha256:a", "sha256:b"]).encode()):
            context.abort(grpc.StatusCode.NOT_FOUND, "parent snapshot does not exist")
        self.views.add(self.key(message))
        return OVERLAY

    def remove(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        self.views.remove(self.key(message))
        return b""

    @staticmethod
    def key(message: bytes) -> bytes:
        return message[message.index(b"spaces-view-") :][:28]


@pytest.fixture
def containerd(tmp_path: Path) -> Iterator[tuple[Containerd, Snapshots]]:
    server, handler = grpc.server(futures.ThreadPoolExecutor(2)), Containerd()
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"unix:{tmp_path}/sock")
    server.start()
    yield handler, Snapshots(f"{tmp_path}/sock", "moby")
    server.stop(None).wait()


def test_what_is_made_in_order_to_ask_is_removed(containerd: tuple[Containerd, Snapshots]) -> None:
    handler, snapshots = containerd
    assert snapshots.folders(["sha256:a", "sha256:b"])[0] == f"{ROOT}/12/fs"
    assert (handler.asked, handler.views) == (["View", "Remove"], set())


def test_an_image_that_is_not_there_is_told_from_a_containerd_that_is_away(
    containerd: tuple[Containerd, Snapshots], tmp_path: Path
) -> None:
    with pytest.raises(NotFound):
        containerd[1].folders(["sha256:a"])
    with pytest.raises(Unavailable):
        Snapshots(f"{tmp_path}/nobody", "moby").folders(["sha256:a"])


# --- what is mounted of them -----------------------------------------------------------------------------------------
def test_both_stores_have_short_names_for_their_layers(tmp_path: Path) -> None:
    """All of them must fit into a page."""
    for number in (1, 12):
        (tmp_path / f"snapshots/{number}/fs").mkdir(parents=True)
    newer = [f"{tmp_path}/snapshots/{number}/fs" for number in (12, 1)]
    assert _links(newer) == (["12/fs", "1/fs"], f"{tmp_path}/snapshots")
    (tmp_path / "overlay2/ab").mkdir(parents=True)
    (tmp_path / "overlay2/ab/link").write_text("XYZ\n")
    assert _links([f"{tmp_path}/overlay2/ab/diff"]) == (["l/XYZ"], f"{tmp_path}/overlay2")
    for gone in (f"{tmp_path}/snapshots/9/fs", f"{tmp_path}/overlay2/cd/diff"):
        with pytest.raises(FileNotFoundError):
            _links([gone])
