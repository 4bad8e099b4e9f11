"""Pages of a Space's files: a directory with its README, and one file with line numbers."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from fastapi import Response
from markupsafe import Markup

from spaces_platform.errors import RevisionNotFound
from spaces_platform.ports import PathEntry
from spaces_platform.web import markdown, words
from spaces_platform.web.lookup import Lookup, Place
from spaces_platform.web.site import Call, Site, redirect
from spaces_platform.web.views import SpaceView

SHOWN_BYTES = 256 * 1024
SHOWN_LINES = 4000
SHOWN_ENTRIES = 1000
IMAGE_BYTES = 10 << 20
IMAGES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".avif", ".svg")


class FilePages:
    def __init__(self, site: Site, lookup: Lookup) -> None:
        self.site, self.lookup = site, lookup

    def add(self) -> None:
        self.site.get("/spaces/{owner}/{name}/tree", self.tree)
        self.site.get("/spaces/{owner}/{name}/tree/{rest:path}", self.tree)
        self.site.get("/spaces/{owner}/{name}/blob/{rest:path}", self.blob)

    def tree(self, call: Call) -> Response:
        found = self.lookup.space(call)
        if isinstance(found, Response):
            return found
        try:
            place = self.lookup.place(found.row, str(call.request.path_params.get("rest", "")))
        except RevisionNotFound:
            if found.row.head is None:
                return self.site.page(call, "nofiles.html", space=found, tab="files")
            raise
        if place.path and place.repo.stat(place.commit, place.path).type != "directory":
            return redirect(f"{found.path}/blob/{quote(place.rev)}/{quote(place.path)}")
        entries = place.repo.list(place.commit, place.path)
        ordered = sorted(entries, key=lambda e: (e.type != "directory", e.path.lower()))
        return self.site.page(
            call, "tree.html", space=found, tab="files", place=place, entries=ordered[:SHOWN_ENTRIES],
            hidden=max(0, len(ordered) - SHOWN_ENTRIES), crumbs=crumbs(found, place), refs=self._refs(place),
            readme=self._readme(found, place, entries), readme_limit=markdown.MAX_CHARS,
        )  # fmt: skip

    def blob(self, call: Call) -> Response:
        found = self.lookup.space(call)
        if isinstance(found, Response):
            return found
        place = self.lookup.place(found.row, call.path("rest"))
        if not place.path:
            return redirect(f"{found.path}/tree/{quote(place.rev)}")
        entry = place.repo.stat(place.commit, place.path)
        if entry.type == "directory":
            return redirect(f"{found.path}/tree/{quote(place.rev)}/{quote(place.path)}")
        image = place.path.lower().endswith(IMAGES) and entry.size <= IMAGE_BYTES
        lines, cut = ([], False) if image else self._lines(place)
        raw = f"{found.path}/resolve/{quote(place.commit)}/{quote(place.path)}"
        return self.site.page(
            call, "blob.html", space=found, tab="files", place=place, entry=entry, lines=lines, cut=cut,
            image=raw if image else "", raw=raw, crumbs=crumbs(found, place), refs=self._refs(place),
        )  # fmt: skip

    def _lines(self, place: Place) -> tuple[list[str] | None, bool]:
        """(the lines to show, or None of what is not text; whether more follow)."""
        content = read(place, SHOWN_BYTES + 1)
        if b"\0" in content[:8192]:
            return None, False
        lines = words.code_text(content[:SHOWN_BYTES].decode("utf-8", "replace")).split("\n")
        if lines and not lines[-1]:
            lines.pop()
        return lines[:SHOWN_LINES], len(content) > SHOWN_BYTES or len(lines) > SHOWN_LINES

    def _readme(self, found: SpaceView, place: Place, entries: Sequence[PathEntry]) -> Markup | None:
        path = f"{place.path}/README.md".lstrip("/")
        if not any(e.path == path and e.type == "file" for e in entries):
            return None
        text = read(Place(place.repo, place.rev, place.commit, path), markdown.MAX_CHARS).decode("utf-8", "replace")
        below = f"{quote(place.path)}/" if place.path else ""
        html = markdown.render(
            text,
            files=f"{found.path}/resolve/{quote(place.commit)}/{below}",
            blobs=f"{found.path}/blob/{quote(place.rev)}/{below}",
        )
        # Sanitised by the line above; everything else on the page is escaped by the template.
        return Markup(html) if html.strip() else None

    def _refs(self, place: Place) -> list[str]:
        names = self.lookup.refs(place.repo)
        return sorted(names, key=lambda n: (n != "main", n))[:100]


def read(place: Place, limit: int) -> bytes:
    """The first `limit` bytes of a file. Raises EntryNotFound."""
    content = bytearray()
    chunks = place.repo.read(place.commit, place.path)
    for chunk in chunks:
        content += chunk
        if len(content) >= limit:
            break
    close = getattr(chunks, "close", None)
    if close is not None:
        close()
    return bytes(content[:limit])


def crumbs(found: SpaceView, place: Place) -> list[tuple[str, str]]:
    """(name, address) of each directory above a path, and of the path itself."""
    base = f"{found.path}/tree/{quote(place.rev)}"
    steps = [(found.row.name, base)]
    parts = place.path.split("/") if place.path else []
    for n, part in enumerate(parts):
        steps.append((part, f"{base}/{quote('/'.join(parts[: n + 1]))}"))
    return steps
