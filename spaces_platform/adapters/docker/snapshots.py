"""The folders of an image's layers in containerd's image store, asked of containerd itself: the engine does not tell.

Owns the conversation with containerd. Does not own: what is mounted of the folders (`disks`). Invariant: nothing of the
engine's is changed; the view that is made in order to ask is removed again, and one that a crash leaves is empty.

gRPC, with its two small messages written out here. Sources:
https://github.com/containerd/containerd/blob/main/api/services/snapshots/v1/snapshots.proto and
api/types/mount.proto; https://protobuf.dev/programming-guides/encoding/; how the id of a chain of layers is made:
https://github.com/opencontainers/image-spec/blob/main/config.md#layer-chainid
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from spaces_platform.errors import NotFound, Unavailable

TIMEOUT = 20.0
SNAPSHOTTER = "overlayfs"
"""The one whose snapshots are folders that an overlay can have below it."""
_SERVICE = "/containerd.services.snapshots.v1.Snapshots"


class Snapshots:
    """One containerd. Safe to call from any thread; connects when it is first asked."""

    def __init__(self, address: str, namespace: str) -> None:
        """`address`: the path of its socket."""
        self._address, self._namespace = address, namespace

    def folders(self, diff_ids: Sequence[str]) -> tuple[str, ...]:
        """Of an image with these layers, lowest first; the answer has the highest first, as an overlay wants them.

        Raises NotFound where the engine has no such image, Unavailable.
        """
        import grpc

        key = f"spaces-view-{secrets.token_hex(8)}"
        with grpc.insecure_channel(f"unix:{self._address}") as channel:
            answer = self._ask(channel, "View", encode(SNAPSHOTTER, key, chain_id(diff_ids)))
            with suppress(NotFound):  # containerd collects what nobody uses
                self._ask(channel, "Remove", encode(SNAPSHOTTER, key))
        return lower_folders(answer)

    def _ask(self, channel: Any, method: str, message: bytes) -> bytes:
        import grpc

        call = channel.unary_unary(f"{_SERVICE}/{method}")
        try:
            answer: bytes = call(message, timeout=TIMEOUT, metadata=(("containerd-namespace", self._namespace),))
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.NOT_FOUND:
                raise NotFound(f"containerd at {self._address}: {error.details()}") from error
            raise Unavailable(
                f"containerd at {self._address} does not say where layers are: {error.details()}"
            ) from error
        return answer


def chain_id(diff_ids: Sequence[str]) -> str:
    """The name of a stack of layers, lowest first; empty for none. Pure."""
    found = ""
    for diff_id in diff_ids:
        found = f"sha256:{hashlib.sha256(f'{found} {diff_id}'.encode()).hexdigest()}" if found else diff_id
    return found


def encode(*texts: str) -> bytes:
    """A message whose first fields are these texts. Pure."""
    out = bytearray()
    for number, text in enumerate(texts, 1):
        data = text.encode()
        out += _varint(number << 3 | 2) + _varint(len(data)) + data
    return bytes(out)


def lower_folders(answer: bytes) -> tuple[str, ...]:
    """What the one mount of a view shows. Pure. Raises Unavailable for another answer than that of overlayfs."""
    try:
        [(_, mount)] = [field for field in _fields(answer) if field[0] == 1]
        fields = list(_fields(mount))
    except (ValueError, IndexError) as error:
        raise Unavailable("containerd's answer about the layers of an image cannot be read") from error
    kind = b"".join(value for number, value in fields if number == 1)
    source = b"".join(value for number, value in fields if number == 2)
    options = [value.decode() for number, value in fields if number == 4]
    if kind == b"bind":  # a single layer
        return (source.decode(),)
    lower = next((option.removeprefix("lowerdir=") for option in options if option.startswith("lowerdir=")), "")
    if kind != b"overlay" or not lower:
        raise Unavailable(f"containerd keeps the layers of images as {kind.decode(errors='replace')!r}, not as folders")
    return tuple(lower.split(":"))


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields of a message that have a length: texts, and messages within it. Raises ValueError, IndexError."""
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        if tag & 7 == 0:
            _, at = _read_varint(data, at)
        elif tag & 7 == 2:
            size, at = _read_varint(data, at)
            if at + size > len(data):
                raise ValueError("a field is cut off")
            yield tag >> 3, data[at : at + size]
            at += size
        else:
            raise ValueError(f"a field of type {tag & 7}")


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
