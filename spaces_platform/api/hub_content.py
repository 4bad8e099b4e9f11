"""The content of a Space's repository over the API: upload, trees, commits, branches and tags (hub-api 2.8, 2.9, 3)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from builders.config import ConfigError, MissingAppFile, read_config
from spaces_platform.api.commit_stream import CommitLimits, read_commit
from spaces_platform.api.deps import MAX_INT, ActorDep, BaseDep, PlatformDep, ReadableSpace, WritableSpace
from spaces_platform.api.gitignore import ignored
from spaces_platform.api.schemas import BranchIn, CommitDone, Done, Open, PreuploadIn, TagIn, YamlIn, YamlOut
from spaces_platform.api.views import instant
from spaces_platform.errors import Conflict, EntryNotFound, Invalid, RevisionNotFound
from spaces_platform.models import Space
from spaces_platform.ports import PathEntry, Repo

router = APIRouter(tags=["content"])
AT = "/api/spaces/{owner}/{name}"
MAIN = "refs/heads/main"
ZERO = "0" * 40
PAGE = 1000
IGNORE_BYTES = 1 << 18
COMMIT_BYTES = 200 << 20
"""Most that one commit over the API may hold; git takes larger pushes. Clients split what is larger (100 MiB each)."""


# --- upload -------------------------------------------------------------------------------------------------
@router.post("/api/validate-yaml", response_model=YamlOut, summary="Check the front matter of a README.md")
def validate_yaml(body: YamlIn, response: Response) -> dict[str, Any]:
    """Always JSON: clients parse the body before they look at the status, which is 400 where there are errors."""
    if not body.content.lstrip("\ufeff \r\n").startswith("---"):
        return {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
    try:
        config = read_config(body.content, [])
    except MissingAppFile as missing:
        # Which files there are is not known here.
        config = missing.config
    except ConfigError as error:
        problems, warnings = _messages(error.problems), _messages(error.warnings)
        if body.repoType != "space":
            return {"errors": [], "warnings": problems + warnings}
        response.status_code = 400
        return {"errors": problems, "warnings": warnings}
    return {"errors": [], "warnings": _messages(config.warnings)}


def _messages(lines: Iterable[object]) -> list[dict[str, str]]:
    return [{"message": str(line)} for line in lines]


@router.post(AT + "/preupload/{rev:rev}", response_model=Open, summary="How files are to be uploaded")
def preupload(rev: str, body: PreuploadIn, space: WritableSpace, platform: PlatformDep) -> dict[str, Any]:
    repo = platform.spaces.repo(space)
    commit = repo.head(MAIN) if rev == "main" else repo.resolve(rev)
    there = {e.path: e.oid for e in repo.list(commit, recursive=True) if e.type == "file"} if commit else {}
    patterns = body.gitIgnore if body.gitIgnore is not None else _gitignore(repo, commit, there)
    dropped = ignored(patterns, [f.path for f in body.files])
    return {
        # Everything travels in the commit: neither Xet nor LFS is needed of the client.
        "files": [
            {"path": f.path, "uploadMode": "regular", "shouldIgnore": f.path in dropped, "oid": there.get(f.path)}
            for f in body.files
        ],
        "commitOid": commit,
    }


def _gitignore(repo: Repo, commit: str | None, there: dict[str, str]) -> str:
    if commit is None or ".gitignore" not in there:
        return ""
    return repo.tree(commit).read(".gitignore", IGNORE_BYTES).decode("utf-8", "replace")


@router.post(
    AT + "/commit/{rev:rev}",
    response_model=CommitDone,
    summary="Commit files",
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": 'One object per line: {"key": "header" | "file" | "deletedFile", "value": …}',
            "content": {"application/x-ndjson": {"schema": {"type": "string"}}},
        }
    },
)
async def commit(
    rev: str,
    request: Request,
    space: WritableSpace,
    actor: ActorDep,
    platform: PlatformDep,
    base: BaseDep,
    create_pr: Annotated[str, Query(max_length=10)] = "",
) -> dict[str, Any]:
    if create_pr not in ("", "0", "false"):
        raise Invalid("Pull requests are not available on this platform; commit to a branch.")
    limits = CommitLimits(
        file_bytes=platform.settings.file_mb << 20, total_bytes=min(platform.settings.push_mb << 20, COMMIT_BYTES)
    )
    async with request.app.state.commit_turns:
        given = await read_commit(request.stream(), limits)
        oid = await run_in_threadpool(_commit, platform, space, actor, rev, given)
    url = f"{base}/spaces/{space.owner}/{space.name}/commit/{oid}"
    return {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""}


def _commit(platform: Any, space: Space, actor: Any, rev: str, given: Any) -> str:
    ref = _branch(platform.spaces.repo(space), rev)
    if not given.changes:
        # Nothing to do, and a client that repeats a commit whose answer it lost must not fail.
        return str(platform.spaces.repo(space).resolve(rev))
    return str(
        platform.spaces.commit(
            space, actor, list(given.changes.values()), message=given.message, parent=given.parent, ref=ref
        )
    )


def _branch(repo: Repo, rev: str) -> str:
    """The branch that a commit goes to: it exists, or is main. Raises RevisionNotFound."""
    if rev in ("main", "HEAD", MAIN):
        return MAIN
    ref = rev if rev.startswith("refs/heads/") else f"refs/heads/{rev}"
    if repo.head(ref) is None:
        raise RevisionNotFound(f"Invalid rev id: {rev[:200]}")
    return ref


# --- trees --------------------------------------------------------------------------------------------------
@router.get(AT + "/tree/{rev:rev}", response_model=list[Open], summary="Files of a revision")
@router.get(AT + "/tree/{rev:rev}/{path:deep}", response_model=list[Open], summary="Files below a path")
def tree(
    rev: str,
    response: Response,
    space: ReadableSpace,
    platform: PlatformDep,
    base: BaseDep,
    path: str = "",
    recursive: bool = False,
    expand: bool = False,
    limit: Annotated[int, Query(ge=1, le=PAGE)] = PAGE,
    cursor: Annotated[int, Query(ge=0, le=MAX_INT)] = 0,
) -> list[dict[str, Any]]:
    repo = platform.spaces.repo(space)
    found = repo.resolve(rev)
    entries = repo.list(found, path.strip("/"), recursive=recursive)
    response.headers["X-Repo-Commit"] = found
    if len(entries) > cursor + limit:
        # The next page is of the same commit, whatever the branch does meanwhile.
        query = urlencode({"recursive": str(recursive).lower(), "limit": limit, "cursor": cursor + limit})
        below = f"/{quote(path.strip('/'))}" if path else ""
        address = f"{base}/api/spaces/{space.owner}/{space.name}/tree/{found}{below}?{query}"
        response.headers["Link"] = f'<{address}>; rel="next"'
    return [_item(e) for e in entries[cursor : cursor + limit]]


def _item(entry: PathEntry) -> dict[str, Any]:
    return {"type": entry.type, "path": entry.path, "oid": entry.oid, "size": entry.size}


@router.post(
    AT + "/paths-info/{rev:rev}",
    response_model=list[Open],
    summary="Some files of a revision",
    openapi_extra={
        "requestBody": {
            "content": {
                kind: {
                    "schema": {
                        "type": "object",
                        "properties": {"paths": {"type": "array", "items": {"type": "string"}}},
                    }
                }
                for kind in ("application/json", "application/x-www-form-urlencoded")
            }
        }
    },
)
async def paths_info(rev: str, request: Request, space: ReadableSpace, platform: PlatformDep) -> list[dict[str, Any]]:
    paths = await _paths(request)
    return await run_in_threadpool(_paths_info, platform, space, rev, paths)


async def _paths(request: Request) -> list[str]:
    """Python sends a form, JavaScript JSON."""
    if request.headers.get("content-type", "").startswith("application/json"):
        try:
            body = await request.json()
            paths = body["paths"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Invalid("The body must be a JSON object with `paths`, a list of texts.") from error
    else:
        async with request.form(max_files=0, max_fields=5000) as form:
            paths = form.getlist("paths")
    if not isinstance(paths, list) or len(paths) > 2000 or not all(isinstance(p, str) for p in paths):
        raise Invalid("`paths` must be a list of at most 2000 texts.")
    return paths


def _paths_info(platform: Any, space: Space, rev: str, paths: list[str]) -> list[dict[str, Any]]:
    repo = platform.spaces.repo(space)
    commit = repo.resolve(rev)
    wanted = {p.strip("/") for p in paths}
    if len(wanted) > 5:
        return [_item(e) for e in repo.list(commit, recursive=True) if e.path in wanted]
    found = []
    for path in sorted(wanted - {""}):
        try:
            found.append(_item(repo.stat(commit, path)))
        except (EntryNotFound, Invalid):
            continue  # what is missing is left out of the answer
    return found


# --- history and refs ---------------------------------------------------------------------------------------
@router.get(AT + "/commits/{rev:rev}", response_model=list[Open], summary="Commits, newest first")
def commits(
    rev: str,
    response: Response,
    space: ReadableSpace,
    platform: PlatformDep,
    base: BaseDep,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    p: Annotated[int, Query(ge=0, le=1_000_000, description="Page, from 0.")] = 0,
) -> list[dict[str, Any]]:
    repo = platform.spaces.repo(space)
    start = repo.resolve(rev)
    found = repo.log(start, limit=limit + 1, skip=p * limit)
    if len(found) > limit:
        address = f"{base}/api/spaces/{space.owner}/{space.name}/commits/{start}?limit={limit}&p={p + 1}"
        response.headers["Link"] = f'<{address}>; rel="next"'
    return [
        {
            "id": c.id,
            "title": c.title,
            "message": c.message,
            "date": instant(c.date),
            "authors": [{"user": c.author, "avatar": None}],
            "formatted": {"title": c.title, "message": c.message},
        }
        for c in found[:limit]
    ]


@router.get(AT + "/refs", response_model=Open, summary="Branches and tags")
def refs(space: ReadableSpace, platform: PlatformDep) -> dict[str, Any]:
    answer: dict[str, list[dict[str, Any]]] = {"branches": [], "converts": [], "tags": [], "pullRequests": []}
    for ref, target in sorted(platform.spaces.repo(space).refs().items()):
        kind, name = ("branches", ref[11:]) if ref.startswith("refs/heads/") else ("tags", ref[10:])
        answer[kind].append({"name": name, "ref": ref, "targetCommit": target})
    return answer


@router.post(AT + "/branch/{branch:rev}", response_model=Done, summary="Create a branch")
def create_branch(
    branch: str, space: WritableSpace, actor: ActorDep, platform: PlatformDep, body: BranchIn | None = None
) -> dict[str, Any]:
    if branch.startswith("refs/"):
        raise Invalid(f"Invalid reference for a branch: {branch[:200]}")
    repo = platform.spaces.repo(space)
    start = repo.resolve((body.startingPoint if body is not None else None) or "main")
    ref = f"refs/heads/{branch}"
    if repo.head(ref) is not None:
        raise Conflict(f"Reference {ref} already exists")
    repo.update_ref(ref, start, ZERO)
    return {}


@router.delete(AT + "/branch/{branch:rev}", response_model=Done, summary="Delete a branch")
def delete_branch(branch: str, space: WritableSpace, actor: ActorDep, platform: PlatformDep) -> dict[str, Any]:
    repo = platform.spaces.repo(space)
    if branch == "main":
        raise Invalid("Cannot delete refs/heads/main")
    _delete_ref(repo, f"refs/heads/{branch}", branch)
    return {}


@router.post(AT + "/tag/{rev:rev}", response_model=Done, summary="Create a tag")
def create_tag(rev: str, body: TagIn, space: WritableSpace, actor: ActorDep, platform: PlatformDep) -> dict[str, Any]:
    repo = platform.spaces.repo(space)
    target, ref = repo.resolve(rev), f"refs/tags/{body.tag}"
    if repo.head(ref) is not None:
        raise Conflict(f"Reference {ref} already exists")
    repo.update_ref(ref, target, ZERO)
    return {}


@router.delete(AT + "/tag/{tag:rev}", response_model=Done, summary="Delete a tag")
def delete_tag(tag: str, space: WritableSpace, actor: ActorDep, platform: PlatformDep) -> dict[str, Any]:
    _delete_ref(platform.spaces.repo(space), f"refs/tags/{tag}", tag)
    return {}


def _delete_ref(repo: Repo, ref: str, name: str) -> None:
    try:
        there = repo.head(ref)
    except Invalid:
        there = None
    if there is None:
        raise RevisionNotFound(f"Invalid rev id: {name[:200]}")
    repo.update_ref(ref, None, there)
