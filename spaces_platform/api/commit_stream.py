"""The body of a commit: NDJSON lines to file changes, within bounds while it arrives (hub-api 3.3).

Owns the format and its limits. Does not own paths or content rules, which are the repository's. Invariant: at no time
is more held than one line and the decoded files so far, and those never exceed the limits.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from starlette.concurrency import run_in_threadpool

from spaces_platform.errors import Invalid, TooLarge
from spaces_platform.ports import FileChange

_OID = re.compile(r"[0-9a-f]{40}\Z")
_SMALL = 64 << 10
"""A line up to this size is decoded on the event loop; a larger one would hold it up."""


@dataclass(frozen=True, slots=True)
class CommitLimits:
    file_bytes: int
    total_bytes: int
    changes: int = 25_000
    message_bytes: int = 64 << 10

    @property
    def line_bytes(self) -> int:
        """base64 makes 4 bytes of 3; the rest is for the path."""
        return self.file_bytes * 4 // 3 + _SMALL


@dataclass(slots=True)
class Commit:
    summary: str = ""
    description: str = ""
    parent: str | None = None
    changes: dict[str, FileChange] = field(default_factory=dict)
    """By path: a later line wins."""
    total: int = 0

    @property
    def message(self) -> str:
        return f"{self.summary}\n\n{self.description}".strip()


async def read_commit(body: AsyncIterator[bytes], limits: CommitLimits) -> Commit:
    """Raises Invalid, TooLarge."""
    commit, number, rest = Commit(), 0, bytearray()
    async for chunk in body:
        rest += chunk
        while (end := rest.find(b"\n")) >= 0:
            line, number = bytes(rest[:end]), number + 1
            del rest[: end + 1]
            await _take(commit, line, number, limits)
        if len(rest) > limits.line_bytes:
            raise TooLarge(
                f"Line {number + 1} of the commit is too long: a file may have {limits.file_bytes >> 20} MB."
            )
    await _take(commit, bytes(rest), number + 1, limits)
    if not commit.summary:
        raise Invalid("The commit has no header line with a summary.")
    return commit


async def _take(commit: Commit, line: bytes, number: int, limits: CommitLimits) -> None:
    if not line.strip():
        return
    if len(line) > limits.line_bytes:
        raise TooLarge(f"Line {number} of the commit is too long: a file may have {limits.file_bytes >> 20} MB.")
    if len(line) > _SMALL:
        await run_in_threadpool(take_line, commit, line, number, limits)
    else:
        take_line(commit, line, number, limits)


def take_line(commit: Commit, line: bytes, number: int, limits: CommitLimits) -> None:
    """Add one line. Raises Invalid, TooLarge."""
    try:
        item = json.loads(line)
        key, value = item["key"], item["value"]
        if not isinstance(value, dict):
            raise TypeError("value is not an object")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Invalid(f"Line {number} of the commit is not a JSON object with key and value.") from error
    if key == "header":
        _header(commit, value, number, limits)
    elif key == "file":
        _file(commit, value, number, limits)
    elif key in ("deletedFile", "deletedFolder", "deletedEntry"):
        path = _path(value, number).rstrip("/")
        # Deleting and adding a path is a replacement; two deletions are one.
        commit.changes.pop(path, None)
        commit.changes[path] = FileChange(path, None)
    elif key == "lfsFile":
        raise Invalid(f"Line {number} names an LFS object; this platform takes files in the commit itself (`regular`).")
    else:
        raise Invalid(f"Line {number} of the commit has the unknown key {str(key)[:40]!r}.")
    if len(commit.changes) > limits.changes:
        raise TooLarge(f"The commit has more than {limits.changes} changes; split it.")


def _header(commit: Commit, value: dict[str, Any], number: int, limits: CommitLimits) -> None:
    summary, description, parent = value.get("summary"), value.get("description") or "", value.get("parentCommit")
    if not isinstance(summary, str) or not summary.strip() or not isinstance(description, str):
        raise Invalid(f"Line {number}: the header needs a summary, a text.")
    if parent is not None and (not isinstance(parent, str) or not _OID.match(parent)):
        raise Invalid(f"Line {number}: parentCommit is not a commit id of 40 hex digits.")
    if len(summary) + len(description) > limits.message_bytes:
        raise TooLarge(f"The commit message is longer than {limits.message_bytes >> 10} KiB.")
    commit.summary, commit.description, commit.parent = _clean(summary, number), _clean(description, number), parent


def _file(commit: Commit, value: dict[str, Any], number: int, limits: CommitLimits) -> None:
    path, content, encoding = _path(value, number), value.get("content"), value.get("encoding", "utf-8")
    if not isinstance(content, str):
        raise Invalid(f"Line {number}: {path[:200]} has no content.")
    if encoding == "base64":
        try:
            data = base64.b64decode(content, validate=True)
        except (ValueError, binascii.Error) as error:
            raise Invalid(f"Line {number}: the content of {path[:200]} is not base64.") from error
    else:
        data = _clean(content, number).encode()
    before = commit.changes.pop(path, None)
    commit.total += len(data) - len((before.content if before is not None else None) or b"")
    if commit.total > limits.total_bytes:
        raise TooLarge(f"The files of this commit have more than {limits.total_bytes >> 20} MB together; split it.")
    commit.changes[path] = FileChange(path, data)


def _path(value: dict[str, Any], number: int) -> str:
    path = value.get("path")
    if not isinstance(path, str) or not path or value.get("oldPath"):
        raise Invalid(f"Line {number} of the commit needs a path, and no oldPath.")
    return _clean(path, number)


def _clean(text: str, number: int) -> str:
    """Raises Invalid for lone surrogates, which JSON can write but no file name or message can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Invalid(f"Line {number} of the commit holds characters that are not Unicode text.") from error
    return text
