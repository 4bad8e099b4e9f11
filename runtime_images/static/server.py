"""Serves one folder as a web site: `python -m runtime_images.static.server ROOT --port N`.

Owns: the HTTP answers of a static Space. Does not own: TLS, host names, authorisation and limits per visitor (the
gateway in front). Invariant: no byte from outside ROOT is ever sent, nor from a name that begins with a dot; the files
do not change while it runs. Standard library only and one file, so that it listens within a tenth of a second.

What it does beyond plain files: an index page for folders, `404.html`, index.html for the addresses of single-page apps
(where there is no 404.html), gzip of text, ETag and ranges (RFC 9110), and the Space's public variables as
`window.huggingface.variables` in every HTML page.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import mimetypes
import os
import re
import signal
import socket
import stat
import sys
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, unquote_to_bytes

VARIABLES = "SPACES_PUBLIC_VARIABLES"
"""Environment variable with the Space's public variables, a JSON object of strings."""
MAX_HEAD = 32 * 1024
IDLE = 75.0
"""Seconds a connection may be silent, between requests or within one."""
MAX_CONNECTIONS = 4096
GZIP_LIMIT = 4 << 20
CACHE_BYTES = 32 << 20
GRACE = 5.0

_TYPES = {
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".wasm": "application/wasm",
    ".webp": "image/webp",
    ".avif": "image/avif",
    ".md": "text/markdown",
    ".woff2": "font/woff2",
    ".map": "application/json",
    ".webmanifest": "application/manifest+json",
    ".glb": "model/gltf-binary",
    ".yaml": "text/plain",
    ".yml": "text/plain",
}
_TEXT = re.compile(r"text/|application/(javascript|json|xml|manifest\+json|wasm|ld\+json)|image/svg\+xml")
_FINGERPRINT = re.compile(r"[-._](?=[A-Za-z0-9_-]*\d)[A-Za-z0-9_-]{8,}\.\w+$")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_DATE_HEADERS = {"x-content-type-options": "nosniff", "access-control-allow-origin": "*"}


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    """Decoded, without the query."""
    raw_path: str
    query: str
    headers: Mapping[str, str]
    keep_alive: bool


@dataclass(slots=True)
class Response:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    file: BinaryIO | None = None
    offset: int = 0
    length: int = 0
    close: bool = False


class BadRequest(Exception):
    pass


class Site:
    """The folder and how addresses map to its files. Only reads."""

    def __init__(self, root: Path, index: str = "index.html", variables: Mapping[str, str] | None = None) -> None:
        self.root = os.path.realpath(root)
        folder, self.index = os.path.split(index)
        self.home = f"/{folder}/{self.index}" if folder else ""
        self.script = _script(variables or {})
        self._ready: OrderedDict[tuple[str, bool], bytes] = OrderedDict()
        self._ready_bytes = 0
        self._page_tag = f"-{zlib.crc32(self.script):x}" if self.script else ""

    def answer(self, request: Request) -> Response:
        """The response to one request."""
        if request.method not in ("GET", "HEAD"):
            return _plain(405, {"allow": "GET, HEAD"}, close=True)
        if request.path == "/" and self.home:
            return _plain(302, {"location": quote(self.home) + request.query})
        path = self.find(request.path)
        if path is None:
            return self._absent(request)
        if os.path.isdir(path):
            if not request.path.endswith("/"):
                return _plain(308, {"location": _same_host(request.raw_path) + "/" + request.query})
            page = self.find(request.path + self.index)
            return self._file(page, request) if page and os.path.isfile(page) else self._absent(request)
        return self._file(path, request)

    def find(self, path: str) -> str | None:
        """The real path of an address below the root, or None where it is absent or must not be seen."""
        parts = [part for part in path.split("/") if part]
        if any((part.startswith(".") and part != ".well-known") or "\\" in part or "\0" in part for part in parts):
            return None
        try:
            real = os.path.realpath(os.path.join(self.root, *parts), strict=True)
        except (OSError, ValueError):
            return None
        if os.path.commonpath((self.root, real)) != self.root:
            return None
        hidden = any(
            part.startswith(".") for part in os.path.relpath(real, self.root).split("/") if part != ".well-known"
        )
        if hidden and real != self.root:
            return None
        return None if path.endswith("/") and not os.path.isdir(real) else real

    def _absent(self, request: Request) -> Response:
        page = self.find("/404.html")
        if page:
            return self._file(page, request, 404)
        last = request.path.rsplit("/", 1)[-1]
        page = self.find("/" + self.index)
        if page and "." not in last and "text/html" in request.headers.get("accept", ""):
            return self._file(page, request)
        return _plain(404)

    def _file(self, path: str, request: Request, status: int = 200) -> Response:
        try:
            file = open(path, "rb")  # noqa: SIM115 (closed when it has been sent)
        except OSError:
            return _plain(404)
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode):
            file.close()
            return _plain(404)
        kind = _content_type(path)
        html = kind.startswith("text/html")
        zipped = bool(_TEXT.match(kind)) and info.st_size <= GZIP_LIMIT and _accepts_gzip(request.headers)
        tag = f'"{info.st_mtime_ns:x}-{info.st_size:x}{self._page_tag if html else ""}{"-z" if zipped else ""}"'
        headers = {**_DATE_HEADERS, "content-type": kind, "etag": tag, "cache-control": _caching(path, html)}
        headers["last-modified"] = formatdate(info.st_mtime, usegmt=True)
        if _TEXT.match(kind):
            headers["vary"] = "accept-encoding"
        if status == 200 and _unchanged(request.headers, tag, headers["last-modified"]):
            file.close()
            return Response(304, headers)
        if zipped or (html and self.script):
            with file:
                body = self._prepared(path, file, html, zipped)
            if zipped:
                headers["content-encoding"] = "gzip"
            return Response(status, headers, body)
        headers["accept-ranges"] = "bytes"
        return _ranged(Response(status, headers, file=file, length=info.st_size), request.headers, info.st_size, tag)

    def _prepared(self, path: str, file: BinaryIO, html: bool, zipped: bool) -> bytes:
        """A file with variables put in and compressed, kept for the next visitor."""
        key = (path, zipped)
        if key in self._ready:
            self._ready.move_to_end(key)
            return self._ready[key]
        body = file.read()
        if html:
            body = _inject(body, self.script)
        if zipped:
            body = gzip.compress(body, 6, mtime=0)
        self._ready[key] = body
        self._ready_bytes += len(body)
        while self._ready_bytes > CACHE_BYTES and len(self._ready) > 1:
            self._ready_bytes -= len(self._ready.popitem(last=False)[1])
        return body


def _script(variables: Mapping[str, str]) -> bytes:
    if not variables:
        return b""
    data = json.dumps({"variables": dict(variables)}).replace("<", "\\u003c").replace("\u2028", "\\u2028")
    return f"<script>window.huggingface = Object.assign(window.huggingface || {{}}, {data});</script>".encode()


def _inject(body: bytes, script: bytes) -> bytes:
    """Put the script before every other script of the page."""
    match = re.search(rb"<head(\s[^>]*)?>", body, re.I) or re.search(rb"<!doctype[^>]*>", body, re.I)
    at = match.end() if match else 0
    return body[:at] + script + body[at:]


def _content_type(path: str) -> str:
    suffix = os.path.splitext(path)[1].lower()
    kind = _TYPES.get(suffix) or mimetypes.guess_type(path)[0] or "application/octet-stream"
    return kind + "; charset=utf-8" if kind.startswith("text/") else kind


def _caching(path: str, html: bool) -> str:
    """Names that carry a fingerprint of their content never change; all else is asked for again."""
    if not html and _FINGERPRINT.search(os.path.basename(path)):
        return "public, max-age=31536000, immutable"
    return "no-cache" if html else "public, max-age=0, must-revalidate"


def _accepts_gzip(headers: Mapping[str, str]) -> bool:
    if "range" in headers:
        return False
    for part in headers.get("accept-encoding", "").lower().split(","):
        name, _, weight = part.strip().partition(";")
        if name.strip() in ("gzip", "*"):
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def _unchanged(headers: Mapping[str, str], tag: str, modified: str) -> bool:
    wanted = headers.get("if-none-match")
    if wanted is not None:
        return wanted.strip() == "*" or tag in [part.strip().removeprefix("W/") for part in wanted.split(",")]
    return headers.get("if-modified-since") == modified


def _ranged(response: Response, headers: Mapping[str, str], size: int, tag: str) -> Response:
    """Cut a response to the one range that was asked for; several ranges get the whole (RFC 9110 allows it)."""
    match = _RANGE.fullmatch(headers.get("range", "").strip())
    if not match or not any(match.groups()) or response.status != 200 or headers.get("if-range", tag) != tag:
        return response
    first, last = match.groups()
    start = int(first) if first else max(size - int(last), 0)
    end = min(int(last), size - 1) if first and last else size - 1
    if start >= size or start > end:
        if response.file:
            response.file.close()
        return Response(416, {**_DATE_HEADERS, "content-range": f"bytes */{size}"})
    response.status, response.offset, response.length = 206, start, end - start + 1
    response.headers["content-range"] = f"bytes {start}-{end}/{size}"
    return response


def _plain(status: int, headers: Mapping[str, str] | None = None, close: bool = False) -> Response:
    text = f"{status} {HTTPStatus(status).phrase}\n".encode()
    base = {**_DATE_HEADERS, "content-type": "text/plain; charset=utf-8", "cache-control": "no-cache"}
    return Response(status, {**base, **(headers or {})}, text, close=close)


def _same_host(path: str) -> str:
    """A path that a browser cannot take for another host."""
    return "/" + path.lstrip("/\\")


# --- HTTP/1.1 ------------------------------------------------------------------------------------------------------
def parse(head: bytes) -> Request:
    """One request head, without its empty line. Raises BadRequest."""
    lines = head.decode("latin-1").split("\r\n")
    parts = lines[0].split(" ")
    if len(parts) != 3 or not re.fullmatch(r"HTTP/1\.[01]", parts[2]) or not re.fullmatch(r"[A-Z]{1,16}", parts[0]):
        raise BadRequest
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
            raise BadRequest
        headers[name.lower()] = value.strip()
    if "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
        raise BadRequest
    target = parts[1] if parts[1].startswith("/") else "/" + parts[1].partition("://")[2].partition("/")[2]
    raw, question, query = target.partition("?")
    path = unquote_to_bytes(raw).decode("utf-8", "surrogateescape")
    wish = headers.get("connection", "").lower()
    keep = "close" not in wish if parts[2] == "HTTP/1.1" else "keep-alive" in wish
    return Request(parts[0], path, raw, question + query, headers, keep)


class Server:
    """Connections of one site."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.stopping = asyncio.Event()
        self._busy: set[asyncio.Task[None]] = set()
        self._open = 0

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task:
            self._busy.add(task)
        self._open += 1
        try:
            if self._open <= MAX_CONNECTIONS:
                while await self._one(reader, writer):
                    continue
        except (ConnectionError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the visitor went away
        finally:
            self._open -= 1
            if task:
                self._busy.discard(task)
            writer.close()

    async def drain(self) -> None:
        """Let running answers end, at most GRACE seconds."""
        self.stopping.set()
        if self._busy:
            await asyncio.wait(self._busy, timeout=GRACE)

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; whether the connection goes on."""
        head = await self._head(reader)
        if head is None:
            return False
        try:
            request = parse(head)
        except BadRequest:
            await asyncio.wait_for(_send(writer, _plain(400, close=True), "GET", False), IDLE)
            return False
        response = self.site.answer(request)
        keep = request.keep_alive and not response.close and not self.stopping.is_set()
        try:
            await _send(writer, response, request.method, keep)
        finally:
            if response.file:
                response.file.close()
        return keep

    async def _head(self, reader: asyncio.StreamReader) -> bytes | None:
        """The next request head; None where there is none any more."""
        read = asyncio.ensure_future(reader.readuntil(b"\r\n\r\n"))
        stop = asyncio.ensure_future(self.stopping.wait())
        try:
            await asyncio.wait({read, stop}, timeout=IDLE, return_when=asyncio.FIRST_COMPLETED)
            if not read.done():
                return None
            return read.result()[:-4].lstrip(b"\r\n")
        except asyncio.LimitOverrunError:
            return b""
        finally:
            read.cancel()
            stop.cancel()


async def _send(writer: asyncio.StreamWriter, response: Response, method: str, keep: bool) -> None:
    length = response.length if response.file else len(response.body)
    headers = {"date": formatdate(usegmt=True), **response.headers}
    if response.status != 304:
        headers["content-length"] = str(length)
    headers["connection"] = "keep-alive" if keep else "close"
    head = f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}\r\n"
    text = head + "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
    body = b"" if method == "HEAD" or response.status == 304 else response.body
    writer.write(text.encode("latin-1", "replace") + body)
    await asyncio.wait_for(writer.drain(), IDLE)
    if response.file and method != "HEAD" and length:
        loop = asyncio.get_running_loop()
        await loop.sendfile(writer.transport, response.file, response.offset, length)


def listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.create_server((host, port), family=family, backlog=1024)
    sock.setblocking(False)
    return sock


async def serve(site: Site, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT, then drain. Raises OSError where the address cannot be had."""
    server = Server(site)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    listener = await asyncio.start_server(server.connection, sock=listen(host, port), limit=MAX_HEAD)
    print(f"Serving {site.root} on {host}:{port}", flush=True)
    await stop.wait()
    listener.close()
    await server.drain()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Serve one folder as a web site.")
    parser.add_argument("root", type=Path)
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument(
        "--index", default="index.html", help="page of a folder; with a folder before it, the first page"
    )
    args = parser.parse_args(argv)
    variables = json.loads(os.environ.get(VARIABLES) or "{}")
    if not args.root.is_dir():
        print(f"{args.root} is not a folder", file=sys.stderr)
        return 2
    try:
        asyncio.run(serve(Site(args.root, args.index, variables), args.host, args.port))
    except OSError as error:
        print(f"cannot listen on {args.host}:{args.port}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
