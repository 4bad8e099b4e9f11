"""Files of a Space by address: `/spaces/{owner}/{name}/resolve|raw/{rev}/{path}` (hub-api 3.7).

Owns ranges, validators and content types. Invariant: nothing that a user pushed runs in the platform's origin, whatever
its name or content: active types are served as text or as a download, in a sandbox.
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Iterator
from contextlib import closing
from typing import Any, cast
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from starlette.responses import Response

from spaces_platform.api.deps import PlatformDep, ReadableSpace
from spaces_platform.api.failures import refusal
from spaces_platform.errors import EntryNotFound
from spaces_platform.models import Space

router = APIRouter(tags=["content"])

_IMAGES = frozenset(
    {"image/png", "image/jpeg", "image/gif", "image/webp", "image/avif", "image/svg+xml", "image/x-icon"}
)
_MEDIA = ("audio/", "video/")
_TEXT = (
    "text/",
    "application/json",
    "application/x-sh",
    "application/xml",
    "application/javascript",
    "application/toml",
)
_TEXT_NAMES = (
    ".md",
    ".toml",
    ".yaml",
    ".yml",
    ".gitignore",
    ".gitattributes",
    ".lock",
    ".cfg",
    ".ini",
    "Dockerfile",
    "LICENSE",
)
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})\Z")


@router.api_route(
    "/spaces/{owner}/{name}/resolve/{rev:rev}/{path:deep}", methods=["GET"], summary="A file", response_class=Response
)
@router.api_route(
    "/spaces/{owner}/{name}/raw/{rev:rev}/{path:deep}", methods=["GET"], summary="A file", response_class=Response
)
@router.api_route(
    "/spaces/{owner}/{name}/resolve/{rev:rev}/{path:deep}", methods=["HEAD"], summary="A file's size and validator",
    response_class=Response,
)  # fmt: skip
@router.api_route(
    "/spaces/{owner}/{name}/raw/{rev:rev}/{path:deep}", methods=["HEAD"], summary="A file's size and validator",
    response_class=Response,
)  # fmt: skip
def resolve(rev: str, path: str, request: Request, space: ReadableSpace, platform: PlatformDep) -> Response:
    return answer(platform, space, request, rev, path)


def answer(platform: Any, space: Space, request: Request, rev: str, path: str) -> Response:
    repo = platform.spaces.repo(space)
    commit = repo.resolve(rev)
    try:
        entry = repo.stat(commit, path)
        if entry.type != "file" or path.endswith("/"):
            raise EntryNotFound()
    except EntryNotFound:
        # The commit is told here too: clients remember that the file is missing there.
        return refusal(404, "Entry not found", code="EntryNotFound", headers={"X-Repo-Commit": commit})
    etag = f'"{entry.oid}"'
    file = path.rsplit("/", 1)[-1]
    headers = {
        "X-Repo-Commit": commit,
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Content-Type": content_type(file),
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(file, safe='')}",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'",
        "Cross-Origin-Resource-Policy": "same-site",
        "Cache-Control": "no-cache",
    }
    if _matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    start, end, status = 0, entry.size, 200
    asked = request.headers.get("range")
    if asked is not None and request.headers.get("if-range", etag) == etag:
        span = parse_range(asked, entry.size)
        if span is None:
            text = f"The range {asked[:80]} is not in the file, which has {entry.size} bytes."
            return refusal(416, text, headers={"Content-Range": f"bytes */{entry.size}"})
        if span != (0, 0):
            (start, end), status = span, 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{entry.size}"
    headers["Content-Length"] = str(end - start)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    return StreamingResponse(cut(repo.read(commit, path), start, end), status, headers)


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """Half-open span of a Range header (RFC 9110 14.2). (0, 0): not one range of bytes, so the whole file is sent.

    None: it cannot be satisfied.
    """
    match = _RANGE.match(header.strip())
    if match is None or match.groups() == ("", ""):
        return 0, 0
    first, last = match.groups()
    if first == "":
        wanted = int(last)
        return None if wanted == 0 or size == 0 else (max(0, size - wanted), size)
    start = int(first)
    end = min(int(last) + 1, size) if last else size
    if last and int(last) < start:
        return 0, 0
    return None if start >= size else (start, end)


def cut(chunks: Iterator[bytes], start: int, end: int) -> Iterator[bytes]:
    """Bytes [start, end) of a stream; its source is closed when enough is read."""
    at = 0
    # The protocol says Iterator; the git adapter's is a generator, whose process must end with the answer.
    with closing(cast(Any, chunks)):
        for chunk in chunks:
            piece = chunk[max(0, start - at) : max(0, end - at)]
            at += len(chunk)
            if piece:
                yield piece
            if at >= end:
                return


def content_type(file: str) -> str:
    """What a browser is told: media as what they are, text as text, and nothing that it would run."""
    kind = mimetypes.guess_type(file)[0] or ""
    if kind in _IMAGES or kind.startswith(_MEDIA) or kind == "application/pdf":
        return kind
    if kind.startswith(_TEXT) or file.endswith(_TEXT_NAMES):
        return "text/plain; charset=utf-8"
    return "application/octet-stream"


def _matches(header: str | None, etag: str) -> bool:
    if header is None:
        return False
    return header.strip() == "*" or etag in [part.strip().removeprefix("W/") for part in header.split(",")]
