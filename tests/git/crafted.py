"""Makes objects that no git client would make, and pushes without a git client."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import httpx

from spaces_platform.adapters.git.packing import NewObjects
from spaces_platform.adapters.git.pktline import FLUSH, ReportHold, packet
from spaces_platform.adapters.git.push_rules import ZERO
from tests.git.server import TOKEN, Server

Entry = tuple[str, bytes, "bytes | Sequence[Entry]"]
"""Mode, name, and content (or the entries of a folder)."""
AUTH = {"Authorization": "Basic " + base64.b64encode(f"user:{TOKEN}".encode()).decode()}
CAPABILITIES = "report-status side-band-64k"


def tree(objects: NewObjects, entries: Sequence[Entry], *, ordered: bool = True) -> str:
    lines = []
    for mode, name, what in entries:
        if mode == "160000":
            oid = "1" * 40
        else:
            oid = objects.add("blob", what) if isinstance(what, bytes) else tree(objects, what)
        key = name + b"/" if mode == "40000" else name
        lines.append((key, mode.encode() + b" " + name + b"\0" + bytes.fromhex(oid)))
    return objects.add("tree", b"".join(raw for _, raw in (sorted(lines) if ordered else lines)))


def commit(objects: NewObjects, root: str, parent: str | None = None) -> str:
    above = f"parent {parent}\n" if parent else ""
    who = "dev <dev@example> 1700000000 +0000"
    return objects.add("commit", f"tree {root}\n{above}author {who}\ncommitter {who}\n\nx\n".encode())


def body(commands: Sequence[tuple[str, str, str]], pack: bytes, capabilities: str = CAPABILITIES) -> bytes:
    lines = [f"{old} {new} {ref}".encode() for old, new, ref in commands]
    return packet(lines[0] + b"\0" + capabilities.encode()) + b"".join(map(packet, lines[1:])) + FLUSH + pack


def post(server: Server, space: str, content: bytes, **headers: str) -> httpx.Response:
    kinds = {"Content-Type": "application/x-git-receive-pack-request"}
    url = f"{server.url}/spaces/{space}/git-receive-pack"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(url, content=content, headers={**AUTH, **kinds, **named}, timeout=60)


def said(packets: bytes) -> str:
    """The text in side-band packets: one line may arrive in several, wherever git's reads of its hook fell."""
    text, at = b"", 0
    while size := int(packets[at : at + 4] or b"0", 16):
        text, at = text + packets[at + 5 : at + size], at + size
    return text.decode("utf-8", "replace")


class Answer:
    """What a client makes of the answer to a push."""

    def __init__(self, content: bytes) -> None:
        hold = ReportHold(sideband=True)
        self.remote = said(hold.feed(content))
        self.unpack, self.refs = hold.results()


def push_objects(
    server: Server, space: str, objects: NewObjects, new: str, ref: str = "refs/heads/main", old: str = ZERO
) -> Answer:
    answer = post(server, space, body([(old, new, ref)], b"".join(objects.pack())))
    assert answer.status_code == 200, answer.text
    return Answer(answer.content)
