"""From a page's address to the Space, revision and path that it means, as the visitor may see them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from fastapi import Response
from fastapi.responses import RedirectResponse

from spaces_platform.accounts import Access
from spaces_platform.errors import RevisionNotFound
from spaces_platform.models import Space
from spaces_platform.ports import Repo
from spaces_platform.web.site import Call
from spaces_platform.web.views import SpaceView, Views

if TYPE_CHECKING:
    from spaces_platform.platform import Platform

HEADS = "refs/heads/"
TAGS = "refs/tags/"


@dataclass(frozen=True, slots=True)
class Place:
    """A path at a commit. `rev`: how the address names the commit (a branch, a tag, an id)."""

    repo: Repo
    rev: str
    commit: str
    path: str


class Lookup:
    def __init__(self, platform: Platform, views: Views) -> None:
        self.platform, self.views = platform, views

    def space(self, call: Call, needed: Access = Access.READ) -> SpaceView | Response:
        """The Space, or a redirect to its present name. Raises RepoNotFound, Unauthenticated, Forbidden."""
        owner, name = call.path("owner"), call.path("name")
        space = self.platform.directory.find(owner, name, call.actor, needed)
        if (space.owner, space.name) != (owner, name) and call.request.method in ("GET", "HEAD"):
            return self._moved(call, space)
        return self.views.space(space, call.actor)

    def _moved(self, call: Call, space: Space) -> Response:
        rest = call.request.url.path.split("/", 4)[4:]
        target = "/".join(["", "spaces", quote(space.owner), quote(space.name), *map(quote, rest)])
        query = f"?{call.request.url.query}" if call.request.url.query else ""
        return RedirectResponse(target + query, status_code=307, headers={"Cache-Control": "no-store"})

    def place(self, space: Space, rest: str) -> Place:
        """The commit and path of `{rev}/{path}`; a branch's name may itself have slashes. Raises RevisionNotFound."""
        repo = self.platform.spaces.repo(space)
        rest = rest.strip("/") or "main"
        names = self.refs(repo)
        for name in sorted(names, key=len, reverse=True):
            if rest == name or rest.startswith(name + "/"):
                return Place(repo, name, names[name], rest[len(name) :].strip("/"))
        rev, _, path = rest.partition("/")
        if rev == "main":
            raise RevisionNotFound("Nothing has been pushed to main yet.")
        return Place(repo, rev, repo.resolve(rev), path)

    def refs(self, repo: Repo) -> dict[str, str]:
        """Branches, then tags of another name, each with its commit."""
        found = repo.refs()
        names = {ref[len(TAGS) :]: commit for ref, commit in found.items() if ref.startswith(TAGS)}
        names.update({ref[len(HEADS) :]: commit for ref, commit in found.items() if ref.startswith(HEADS)})
        return names
