"""What is too much, cut, or not git (T13): refused with the limit named, nothing kept, others go on."""

from __future__ import annotations

import asyncio
import gzip
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from spaces_platform.adapters.git import PushLimits, TransferLimits
from spaces_platform.adapters.git.packing import NewObjects
from spaces_platform.adapters.git.pktline import packet
from spaces_platform.adapters.git.push_rules import ZERO
from spaces_platform.api.git_http import inflated
from spaces_platform.errors import TooLarge
from tests.git.client import Client
from tests.git.crafted import AUTH, Answer, body, commit, post, push_objects, tree
from tests.git.server import Server, serving

SMALL = PushLimits(pack_bytes=1 << 20, repo_bytes=3 << 20, files=100, tree_bytes=2 << 20, refs=5)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Server]:
    transfers = TransferLimits(at_once=2, wait=0.3, idle=5.0)
    with serving(tmp_path / "repos", limits=SMALL, transfers=transfers) as server:
        yield server


def stored(server: Server, space: str) -> list[Path]:
    return [p for p in (server.backend.repo(space).path / "objects").rglob("*") if p.is_file()]


def eventually(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


def test_tree_bomb(server: Server) -> None:
    """10 levels of 10 entries: 12 objects, 10^10 files."""
    objects = NewObjects()
    oid, mode = objects.add("blob", b"x"), b"100644"
    for _ in range(10):
        oid = objects.add("tree", b"".join(mode + b" f%d\0" % n + bytes.fromhex(oid) for n in range(10)))
        mode = b"40000"
    began = time.monotonic()
    answer = push_objects(server, "o/bomb", objects, commit(objects, oid))
    assert time.monotonic() - began < 10.0  # under 0.1 on a quiet machine; without the memo, minutes
    assert "10,000,000,000 files; the limit is 50,000" in answer.remote
    assert stored(server, "o/bomb") == []


def test_link_bomb(server: Server) -> None:
    objects = NewObjects()
    oid, mode = objects.add("blob", b"/etc"), b"120000"
    for _ in range(8):
        oid = objects.add("tree", b"".join(mode + b" f%d\0" % n + bytes.fromhex(oid) for n in range(10)))
        mode = b"40000"
    assert "symbolic links; the limit is 1,000" in push_objects(server, "o/b", objects, commit(objects, oid)).remote


def test_tree_too_large_names_the_largest(small: Server) -> None:
    objects = NewObjects()
    entries = [("100644", b"f%d.bin" % n, b"%d" % n + bytes(300_000 + n)) for n in range(8)]
    answer = push_objects(small, "o/a", objects, commit(objects, tree(objects, entries)))
    assert "2.3 MiB together; the limit is 2 MiB. Largest: f7.bin" in answer.remote


def test_pack_too_large(small: Server, client: Client) -> None:
    client.write("big", os.urandom(3 << 20))
    client.commit()
    said = client.push(small.remote("o/a"), ok=False)
    assert said.status != 0
    assert "The push is larger than 1 MiB" in said.remote
    assert stored(small, "o/a") == []


def test_repository_too_large(small: Server, client: Client) -> None:
    for n in range(4):
        client.write("f", os.urandom(900_000))
        client.commit()
        pushed = client.push(small.remote("o/a"), ok=n < 3)
    assert "The repository would take 3.4 MiB; the limit is 3 MiB" in pushed.remote
    assert len(small.backend.recorded) == 3


def test_too_many_files(small: Server) -> None:
    objects = NewObjects()
    new = commit(objects, tree(objects, [("100644", b"f%d" % n, b"x") for n in range(101)]))
    assert "101 files; the limit is 100" in push_objects(small, "o/a", objects, new).remote


def test_too_many_refs(small: Server) -> None:
    objects = NewObjects()
    new = commit(objects, tree(objects, [("100644", b"f", b"x")]))
    pack = b"".join(objects.pack())
    answer = Answer(post(small, "o/a", body([(ZERO, new, f"refs/heads/b{n}") for n in range(6)], pack)).content)
    assert "would have 6 branches and tags; the limit is 5" in answer.remote
    assert Answer(post(small, "o/a", body([(ZERO, new, f"refs/heads/b{n}") for n in range(5)], pack)).content).refs
    assert len(small.backend.repo("o/a").refs()) == 5
    assert "the limit is 5" in push_objects(small, "o/a", objects, new, "refs/tags/t").remote


def test_a_hundred_thousand_refs(server: Server) -> None:
    objects = NewObjects()
    new = commit(objects, tree(objects, [("100644", b"f", b"x")]))
    content = body([(ZERO, new, f"refs/heads/b{n}") for n in range(100_000)], b"".join(objects.pack()))
    began = time.monotonic()
    answer = post(server, "o/a", content)
    assert time.monotonic() - began < 20
    assert "at most 400 branches and tags at once" in Answer(answer.content).remote
    assert stored(server, "o/a") == []


def test_gzip_bomb(server: Server) -> None:
    bomb = gzip.compress(bytes(30 << 20), 9)
    answer = post(server, "o/a", bomb, Content_Encoding="gzip")
    assert answer.status_code in {400, 413}
    bomb = gzip.compress(packet(b"0" * 40 + b" " + b"1" * 40 + b" refs/heads/x\0report-status") + bytes(30 << 20), 9)
    assert post(server, "o/a", bomb, Content_Encoding="gzip").status_code in {400, 413}
    assert stored(server, "o/a") == []


def test_inflating_stops_at_the_ratio() -> None:
    async def inflate(compressed: bytes) -> int:
        total = 0
        try:
            async for piece in inflated(pieces(compressed)):
                total += len(piece)
        except TooLarge:
            return total
        raise AssertionError(f"{total} bytes came out")

    async def pieces(data: bytes) -> AsyncIterator[bytes]:
        for at in range(0, len(data), 16384):
            yield data[at : at + 16384]

    assert asyncio.run(inflate(gzip.compress(bytes(60 << 20), 9))) < 4 << 20
    assert asyncio.run(inflate(gzip.compress(os.urandom(1 << 20) * 80, 1))) <= 64 << 20


def test_gzip_body_is_understood(server: Server) -> None:
    objects = NewObjects()
    new = commit(objects, tree(objects, [("100644", b"f", b"x")]))
    content = gzip.compress(body([(ZERO, new, "refs/heads/main")], b"".join(objects.pack())))
    assert Answer(post(server, "o/a", content, Content_Encoding="gzip").content).refs == {"refs/heads/main": None}
    assert post(server, "o/a", content[:-20], Content_Encoding="gzip").status_code == 400
    assert post(server, "o/a", b"no gzip", Content_Encoding="gzip").status_code == 400
    assert post(server, "o/a", content, Content_Encoding="br").status_code == 415


GARBAGE = {
    "no-length": b"zzzz",
    "length-too-small": b"0003",
    "length-reserved": b"0001",
    "length-signed": b"+004",
    "length-too-large": b"ffff" + b"x" * 70000,
    "cut-in-length": b"00",
    "cut-in-line": packet(b"0" * 40 + b" " + b"1" * 40)[:-10],
    "no-ids": packet(b"hello world ref\0report-status") + b"0000",
    "upper-ids": packet(b"A" * 40 + b" " + b"B" * 40 + b" refs/heads/x\0report-status") + b"0000",
    "binary": bytes(range(256)) * 10,
    "push-certificate": packet(b"push-cert\0report-status") + b"0000",
    "no-report": packet(b"0" * 40 + b" " + b"1" * 40 + b" refs/heads/x\0agent=x") + b"0000",
}


@pytest.mark.parametrize("case", GARBAGE)
def test_garbage(server: Server, case: str) -> None:
    answer = post(server, "o/a", GARBAGE[case])
    assert answer.status_code == 400
    assert answer.text.strip()
    assert stored(server, "o/a") == []


def test_cut_and_damaged_packs(server: Server) -> None:
    objects = NewObjects()
    new = commit(objects, tree(objects, [("100644", b"f", os.urandom(5000))]))
    pack = b"".join(objects.pack())
    for bad in (b"", pack[:-1], pack[: len(pack) // 2], pack[:200] + b"\0" + pack[201:], b"PACK"):
        answer = Answer(post(server, "o/a", body([(ZERO, new, "refs/heads/main")], bad)).content)
        assert answer.refs.get("refs/heads/main") is not None or not answer.refs
        assert server.backend.repo("o/a").head() is None
    assert server.backend.recorded == []


def test_missing_objects(server: Server) -> None:
    objects, rest = NewObjects(), NewObjects()
    new = commit(objects, tree(rest, [("100644", b"f", b"x")]))
    answer = push_objects(server, "o/a", objects, new)
    assert answer.refs["refs/heads/main"] is not None or answer.unpack != "ok"
    assert server.backend.repo("o/a").head() is None


def connect(server: Server, space: str) -> socket.socket:
    """A push that has sent its head and stops there."""
    host, port = server.url.removeprefix("http://").split(":")
    made = socket.create_connection((host, int(port)))
    head = f"POST /spaces/{space}/git-receive-pack HTTP/1.1\r\nHost: x\r\nAuthorization: {AUTH['Authorization']}\r\n"
    head += "Content-Type: application/x-git-receive-pack-request\r\nContent-Length: 100000\r\n\r\n"
    made.sendall(head.encode() + body([(ZERO, "1" * 40, "refs/heads/main")], b"PACK"))
    return made


def children() -> set[str]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if fields[1] == str(os.getpid()) and fields[0] != "Z":
            found.add(path.parent.name)
    return found


def test_a_client_that_leaves_takes_its_git_with_it(server: Server) -> None:
    before = children()
    left = connect(server, "o/a")
    eventually(lambda: children() > before)
    left.close()
    eventually(lambda: children() <= before)
    assert stored(server, "o/a") == []


def test_a_client_that_leaves_during_the_check_stores_nothing(server: Server, client: Client) -> None:
    before, gate, asked = children(), threading.Event(), threading.Event()

    def advise(*_: object) -> list[str]:
        asked.set()
        gate.wait(20)
        return []

    server.backend.advise = advise  # type: ignore[method-assign]
    client.write("f", os.urandom(100_000))
    client.commit()
    command = ["git", "push", "-q", server.remote("o/a"), "HEAD:main"]
    pushing = subprocess.Popen(command, cwd=client.path, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        assert asked.wait(20)
        os.killpg(pushing.pid, signal.SIGKILL)
        pushing.wait()
        eventually(lambda: children() <= before)
        assert stored(server, "o/a") == []
    finally:
        gate.set()
    assert server.backend.repo("o/a").head() is None


def test_stalled_pushes_are_ended_and_others_wait_or_are_told(small: Server, client: Client) -> None:
    before = children()
    stalled = [connect(small, f"o/s{n}") for n in range(2)]
    eventually(lambda: len(children() - before) == 2)
    client.commit(a="1")
    told = client.push(small.remote("o/a"), ok=False)
    assert "git transfers are running" in told.remote
    eventually(lambda: children() <= before)
    client.push(small.remote("o/a"))
    for one in stalled:
        assert b"503" in one.recv(100)
        one.close()
