"""The static site server: what it serves, what it must never serve, and the protocol around it."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import runtime_images
from runtime_images.static.server import VARIABLES, BadRequest, parse

from .conftest import write

PAGE = "<!doctype html><html><head><title>t</title></head><body>" + "hello " * 500 + "</body></html>"


class Client:
    """Speaks raw HTTP, so that nothing is put right on the way."""

    def __init__(self, port: int) -> None:
        self.port = port

    def raw(self, data: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as sock:
            sock.sendall(data)
            answer = b""
            while part := sock.recv(1 << 16):
                answer += part
        return answer

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        fields = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        answer = self.raw(f"{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{fields}\r\n".encode())
        head, _, body = answer.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        pairs = (line.split(": ", 1) for line in lines[1:])
        return int(lines[0].split(" ")[1]), dict(pairs), body


def start(root: Path, *argv: str, variables: dict[str, str] | None = None) -> tuple[subprocess.Popen[bytes], Client]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    env = {"PYTHONPATH": str(runtime_images.PYTHON_PATH), VARIABLES: json.dumps(variables or {})}
    command = [sys.executable, "-P", "-m", "runtime_images.static.server", str(root), "--port", str(port), *argv]
    began = time.monotonic()
    process = subprocess.Popen([*command, "--host", "127.0.0.1"], env=env, stdout=subprocess.DEVNULL)
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except ConnectionRefusedError:
            if process.poll() is not None or time.monotonic() > began + 30:
                raise
            time.sleep(0.005)
        else:
            return process, Client(port)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    root = tmp_path_factory.mktemp("site")
    files: dict[str, str | bytes] = {
        "index.html": PAGE, "docs/index.html": "docs", "big.bin": bytes(range(256)) * 4000, "a b/é.txt": "deep",
        ".env": "SECRET", ".git/config": "SECRET", "sub/.hidden/x": "SECRET", ".well-known/x.txt": "known",
        "app-4f9a8b7c6d.js": "js", "style.css": "css" * 1000, "empty.txt": "", "empty-folder/.keep": "",
    }  # fmt: skip
    write(root / "public", files)
    write(root, {"outside.txt": "SECRET"})
    (root / "public" / "escape").symlink_to(root / "outside.txt")
    (root / "public" / "escape-folder").symlink_to(root)
    (root / "public" / "inside").symlink_to("docs/index.html")
    (root / "public" / "to-env").symlink_to(".env")
    process, client = start(root / "public", variables={"NAME": "</script><b>"})
    yield client
    process.terminate()
    assert process.wait(10) == 0


def test_page_with_variables(site: Client) -> None:
    status, headers, body = site.get("/")
    assert status == 200
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert headers["cache-control"] == "no-cache"
    assert headers["x-content-type-options"] == "nosniff"
    head = body.decode().split("</head>")[0]
    assert head.index("window.huggingface") < head.index("<title>")
    assert "</script><b>" not in head
    found = re.search(r"\{\"variables.*?\}\}", head)
    assert found
    assert json.loads(found[0])["variables"] == {"NAME": "</script><b>"}


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/docs/", 200, b"docs"),
        ("/a%20b/%C3%A9.txt", 200, b"deep"),
        ("/inside", 200, b"docs"),
        ("/.well-known/x.txt", 200, b"known"),
        ("/empty.txt", 200, b""),
        ("/index.html?x=1#y", 200, b"hello"),
        ("http://other/docs/", 200, b"docs"),
        ("/empty-folder/", 404, b"404"),
        ("/missing.css", 404, b"404"),
        ("/index.html/", 404, b"404"),
    ],
)
def test_paths(site: Client, path: str, status: int, words: bytes) -> None:
    found, _, body = site.get(path)
    assert found == status
    assert words in body


@pytest.mark.parametrize(
    "path",
    [
        "/.env", "/.git/config", "/sub/.hidden/x", "/../outside.txt", "/..%2foutside.txt", "/%2e%2e/outside.txt",
        "/a/../../outside.txt", "/..%5coutside.txt", "//outside.txt",
        "/escape", "/escape-folder/outside.txt", "/to-env",
        "/%00", "/index.html%00.txt", "/docs/..%2f.env", "/.%65nv", "/\xff",
    ],
)  # fmt: skip
def test_nothing_else_is_served(site: Client, path: str) -> None:
    status, _, body = site.get(path)
    assert status in (404, 400)
    assert b"SECRET" not in body


def test_folders_are_redirected_on_the_same_host(site: Client) -> None:
    status, headers, _ = site.get("/docs?x=1")
    assert (status, headers["location"]) == (308, "/docs/?x=1")
    status, headers, _ = site.get("//docs")
    assert headers["location"] == "/docs/"
    _, headers, _ = site.get("/docs%0d%0aset-cookie:x")
    assert "set-cookie" not in headers


def test_single_page_fallback(site: Client) -> None:
    assert site.get("/users/7", accept="text/html,*/*")[0] == 200
    assert site.get("/users/7", accept="application/json")[0] == 404
    assert site.get("/users/7.png", accept="text/html")[0] == 404


def test_gzip_and_etag(site: Client) -> None:
    status, headers, body = site.get("/style.css", accept_encoding="br, gzip;q=0.8")
    assert (status, headers["content-encoding"], headers["vary"]) == (200, "gzip", "accept-encoding")
    assert gzip.decompress(body) == b"css" * 1000
    assert int(headers["content-length"]) == len(body)
    plain = site.get("/style.css", accept_encoding="gzip;q=0")[1]
    assert "content-encoding" not in plain
    assert plain["etag"] != headers["etag"]
    status, again, body = site.get("/style.css", accept_encoding="gzip", if_none_match=f'"x", W/{headers["etag"]}')
    assert (status, body, again["etag"]) == (304, b"", headers["etag"])
    assert site.get("/style.css", if_modified_since=headers["last-modified"])[0] == 304
    assert "immutable" in site.get("/app-4f9a8b7c6d.js")[1]["cache-control"]


BIG = bytes(range(256)) * 4000


@pytest.mark.parametrize(
    ("asked", "status", "start", "end"),
    [
        ("bytes=0-9", 206, 0, 9),
        ("bytes=1023990-", 206, 1023990, 1023999),
        ("bytes=-5", 206, 1023995, 1023999),
        ("bytes=5-99999999", 206, 5, 1023999),
        ("bytes=0-1,5-6", 200, 0, 1023999),
        ("bytes=9-5", 416, 0, -1),
        ("bytes=2000000-", 416, 0, -1),
        ("bytes=-0", 416, 0, -1),
        ("lines=1-2", 200, 0, 1023999),
    ],
)
def test_ranges(site: Client, asked: str, status: int, start: int, end: int) -> None:
    found, headers, body = site.get("/big.bin", range=asked)
    assert found == status
    assert body == BIG[start : end + 1]
    if status == 206:
        assert headers["content-range"] == f"bytes {start}-{end}/{len(BIG)}"
    if status == 416:
        assert headers["content-range"] == f"bytes */{len(BIG)}"


def test_stale_if_range_gets_the_whole(site: Client) -> None:
    status, _, body = site.get("/big.bin", range="bytes=0-9", if_range='"old"')
    assert (status, len(body)) == (200, len(BIG))


def test_head_has_no_body(site: Client) -> None:
    status, headers, body = site.get("/big.bin", method="HEAD")
    assert (status, headers["content-length"], body) == (200, str(len(BIG)), b"")


def test_keep_alive_and_pipelining(site: Client) -> None:
    one = b"GET /docs/ HTTP/1.1\r\nhost: x\r\n\r\n"
    answer = site.raw(one * 2 + one.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert b"connection: close" in site.raw(b"GET / HTTP/1.0\r\n\r\n")


@pytest.mark.parametrize(
    "data",
    [
        b"POST / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello",
        b"GET / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET  / HTTP/1.1\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost : x\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
    ],
)
def test_bad_requests_are_refused_and_closed(site: Client, data: bytes) -> None:
    try:
        answer = site.raw(data)
    except ConnectionResetError:  # closed while the rest was still on its way
        return
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 405"))
    assert answer.count(b"HTTP/1.1") == 1
    assert b"connection: close" in answer


def test_parse_refuses_folded_and_empty() -> None:
    for head in (b"", b"GET / HTTP/1.1\r\n folded: x"):
        with pytest.raises(BadRequest):
            parse(head)


def test_own_404_page_and_first_page(tmp_path: Path) -> None:
    write(tmp_path, {"404.html": "not here", "docs/start.html": "start"})
    process, client = start(tmp_path, "--index", "docs/start.html")
    try:
        status, _, body = client.get("/nothing", accept="text/html")
        assert (status, body) == (404, b"not here")
        status, headers, _ = client.get("/")
        assert (status, headers["location"]) == (302, "/docs/start.html")
        assert client.get("/docs/")[2] == b"start"
    finally:
        process.terminate()
        process.wait(10)


def test_stops_on_sigterm_with_a_connection_open(tmp_path: Path) -> None:
    write(tmp_path, {"index.html": "x"})
    process, client = start(tmp_path)
    with socket.create_connection(("127.0.0.1", client.port)) as idle:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        idle.settimeout(5)
        assert idle.recv(1) == b""


def test_says_why_it_cannot_start(tmp_path: Path) -> None:
    env = {"PYTHONPATH": str(runtime_images.PYTHON_PATH), "PATH": os.environ["PATH"]}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-P", "-m", "runtime_images.static.server", str(tmp_path), "--host", "127.0.0.1"]
        done = subprocess.run(
            [*command, "--port", str(taken.getsockname()[1])], env=env, capture_output=True, text=True, timeout=20
        )
    assert done.returncode == 1
    assert "cannot listen" in done.stderr
