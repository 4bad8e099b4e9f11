"""The route table: which host name belongs to which Space, and where that Space is served now.

Owns: entries, the exact-match host index, versions, the snapshot on disk. Does not own: how entries arrive (link.py)
and what is answered (dispatch.py).
Invariant: a host name resolves by one dictionary look-up of its normalised form; what is not in the table does not
exist.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spaces_platform.gateway.grammar import normalise_host

WAITING_STAGES = frozenset(
    {"BUILDING", "APP_STARTING", "RUNNING", "RUNNING_BUILDING", "RUNNING_APP_STARTING", "SLEEPING"}
)
"""Stages from which an app may still come to answer without its owner doing something."""
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"trailer", b"set-cookie"})


@dataclass(frozen=True, slots=True)
class Progress:
    phase: str
    text: str
    since: float
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class RouteEntry:
    """One Space as the control plane last described it."""

    space: int
    version: int
    name: str
    title: str
    emoji: str
    hosts: tuple[str, ...]
    redirects: tuple[str, ...]
    stage: str
    message: str
    progress: Progress | None
    deployment: int | None
    endpoint: str | None
    wakeable: bool
    public: bool
    embed: bool
    page: str
    retry_after: int
    header_lines: bytes
    """`headers`, ready to be written."""
    header_names: frozenset[bytes]
    raw: Mapping[str, Any]
    """The line it came from, for the snapshot."""

    @property
    def may_answer(self) -> bool:
        """True while waiting for it makes sense."""
        return self.wakeable or (self.stage in WAITING_STAGES and self.stage != "SLEEPING")


def parse_entry(raw: Mapping[str, Any]) -> RouteEntry:
    """One entry from its JSON object. Raises ValueError naming what is wrong with it."""
    try:
        headers = {str(k).encode("ascii"): str(v).encode("latin-1") for k, v in (raw.get("headers") or {}).items()}
        for name in headers:
            if set(b"\r\n\0") & set(name + headers[name]) or not name or name.lower() in _FRAMING:
                raise ValueError(f"header {name!r} cannot be set by a Space")
        return RouteEntry(
            space=int(raw["space"]),
            version=int(raw["version"]),
            name=str(raw["name"]),
            title=str(raw.get("title") or raw["name"]),
            emoji=str(raw.get("emoji") or ""),
            hosts=tuple(_host(h) for h in raw["hosts"]),
            redirects=tuple(_host(h) for h in raw.get("redirects") or ()),
            stage=str(raw["stage"]),
            message=str(raw.get("message") or ""),
            progress=_progress(raw.get("progress")),
            deployment=None if raw.get("deployment") is None else int(raw["deployment"]),
            endpoint=str(raw["endpoint"]) if raw.get("endpoint") else None,
            wakeable=bool(raw.get("wakeable", False)),
            public=bool(raw.get("public", False)),
            embed=bool(raw.get("embed", True)),
            page=str(raw.get("page") or ""),
            retry_after=int(raw.get("retry_after") or 0),
            header_lines=b"".join(b"%b: %b\r\n" % item for item in headers.items()),
            header_names=frozenset(name.lower() for name in headers),
            raw=dict(raw),
        )
    except (KeyError, TypeError, AttributeError, UnicodeEncodeError) as error:
        raise ValueError(f"route entry of space {raw.get('space')!r}: {error!r}") from error


def _progress(raw: Any) -> Progress | None:
    return Progress(str(raw["phase"]), str(raw["text"]), float(raw["since"])) if raw else None


def _host(value: Any) -> str:
    name = normalise_host(str(value).encode("ascii"))
    if name is None:
        raise ValueError(f"{value!r} is not a host name")
    return name.decode("ascii")


class RouteTable:
    """All entries, and the index from host names to them."""

    def __init__(self, platform_hosts: Iterable[str]) -> None:
        self.platform_hosts = frozenset(_host(host).encode("ascii") for host in platform_hosts)
        self.entries: dict[int, RouteEntry] = {}
        self.version = 0
        self.changed: Callable[[RouteEntry | None, RouteEntry | None], None] | None = None
        """Called with (before, after) for every entry that is added, changed or removed."""
        self._hosts: dict[bytes, RouteEntry] = {}
        self._redirects: dict[bytes, RouteEntry] = {}
        self.find: Callable[[bytes], RouteEntry | None] = self._hosts.get
        """The entry that serves a normalised host name, or None. (The look-up itself: each request makes one.)"""

    def redirect(self, host: bytes) -> RouteEntry | None:
        """The entry that a former name now belongs to."""
        return self._redirects.get(host)

    def apply(self, entry: RouteEntry, *, gone: bool = False) -> None:
        """Put one entry in place of the one before it (or remove it)."""
        before = self.entries.pop(entry.space, None)
        if before is not None:
            self._unindex(before)
        if not gone:
            self.entries[entry.space] = entry
            for host in entry.hosts:
                name = host.encode("ascii")
                if name not in self.platform_hosts:  # a Space can never take a name of the platform
                    self._hosts[name] = entry
            for host in entry.redirects:
                self._redirects[host.encode("ascii")] = entry
        if self.changed is not None and (before is not None or not gone):
            self.changed(before, None if gone else entry)

    def keep_only(self, spaces: set[int]) -> None:
        """Drop every entry that a full table did not name."""
        for space in [s for s in self.entries if s not in spaces]:
            self.apply(self.entries[space], gone=True)

    def _unindex(self, entry: RouteEntry) -> None:
        for index, names in ((self._hosts, entry.hosts), (self._redirects, entry.redirects)):
            for host in names:
                name = host.encode("ascii")
                found = index.get(name)
                if found is not None and found.space == entry.space:
                    del index[name]

    def dump(self) -> dict[str, Any]:
        """What the snapshot holds; shares no mutable state with the table."""
        return {"version": self.version, "entries": [entry.raw for entry in self.entries.values()]}

    def restore(self, path: Path) -> int:
        """Load a snapshot; how many entries it held. Raises OSError, ValueError (unusable: start empty)."""
        data = json.loads(path.read_bytes())
        if not isinstance(data, dict) or not isinstance(data.get("entries"), list):
            raise ValueError("not a route snapshot")
        for raw in data["entries"]:
            self.apply(parse_entry(raw))
        self.version = int(data["version"])
        return len(self.entries)


def write_snapshot(path: Path, data: dict[str, Any]) -> None:
    """Replace the snapshot in one step; a crash leaves the old one or the new one. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(json.dumps(data, ensure_ascii=False).encode())
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
