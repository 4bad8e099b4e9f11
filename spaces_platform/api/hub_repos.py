"""Spaces as repositories of the Hub: create, delete, move, settings, list, info, search."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response

from spaces_platform.accounts import Actor, access
from spaces_platform.api import views
from spaces_platform.api.deps import MAX_INT, ActorDep, BaseDep, OwnSpace, PlatformDep, ReadableSpace, UserDep
from spaces_platform.api.first_commit import first_files
from spaces_platform.api.schemas import Created, CreateIn, DeleteIn, Done, Info, MoveIn, Open, SettingIn, SettingsIn
from spaces_platform.errors import Conflict, Invalid, NotFound, RepoNotFound
from spaces_platform.models import Space
from spaces_platform.names import public_id
from spaces_platform.space_settings import Setting
from spaces_platform.spaces import NewSpace

router = APIRouter(tags=["spaces"])

PAGE = 100


@router.post("/api/repos/create", response_model=Created, summary="Create a Space")
def create(body: CreateIn, actor: UserDep, platform: PlatformDep, base: BaseDep) -> dict[str, Any]:
    _only_spaces(body.type)
    if body.sdk is None:
        raise Invalid("A Space needs an sdk: gradio, streamlit, dash, static or docker.")
    new = NewSpace(
        owner=body.organization or actor.name,
        name=body.name,
        sdk=body.sdk,
        visibility=visibility_of(body.visibility, body.private) or "public",
        hardware=body.hardware or "cpu-basic",
        sleep_after=body.sleepTimeSeconds,
        storage=body.storageTier,
        variables=settings_of(body.variables),
        secrets=settings_of(body.secrets),
        files=first_files(body),
    )
    try:
        space = platform.spaces.create(actor, new)
    except Conflict as error:
        # huggingface_hub reads `url` from the refusal where the caller said exist_ok.
        error.data["url"] = f"{base}/spaces/{error.data.get('space', f'{new.owner}/{new.name}')}"
        raise
    return created(space, base)


def created(space: Space, base: str) -> dict[str, Any]:
    name = f"{space.owner}/{space.name}"
    return {"url": f"{base}/spaces/{name}", "name": name, "id": public_id(space.id or 0)}


def settings_of(given: list[SettingIn]) -> list[Setting]:
    return [Setting(s.key, s.value, s.description or "") for s in given]


def visibility_of(visibility: str | None, private: bool | None) -> str | None:
    """New clients send `visibility`, old ones `private`. `protected` (public app, private files) is private here."""
    if visibility is not None:
        return "private" if visibility == "protected" else visibility
    return None if private is None else ("private" if private else "public")


def _only_spaces(kind: str) -> None:
    if kind != "space":
        raise Invalid(f"This platform holds Spaces only, not {kind[:40]} repositories: give the type `space`.")


def _named(platform: Any, full: str, actor: Actor) -> Space:
    owner, slash, name = full.partition("/")
    if not slash or "/" in name:
        raise Invalid(f"{full!r} is not of the form owner/name.")
    found = platform.directory.find(owner, name, actor)
    if not isinstance(found, Space):
        raise RepoNotFound()
    return found


@router.delete("/api/repos/delete", response_model=Done, summary="Delete a Space")
def delete(body: DeleteIn, actor: UserDep, platform: PlatformDep) -> dict[str, Any]:
    if body.type != "space":
        raise RepoNotFound()
    space = _named(platform, f"{body.organization or actor.name}/{body.name}", actor)
    if space.name.lower() != body.name.lower():
        # By a former name: whoever deletes must mean the Space that has the name now.
        raise RepoNotFound()
    platform.spaces.delete(space, actor)
    return {}


@router.post("/api/repos/move", response_model=Done, summary="Rename a Space, or give it to another owner")
def move(body: MoveIn, actor: UserDep, platform: PlatformDep) -> dict[str, Any]:
    _only_spaces(body.type)
    space = _named(platform, body.fromRepo, actor)
    owner, slash, name = body.toRepo.partition("/")
    if not slash:
        raise Invalid(f"{body.toRepo!r} is not of the form owner/name.")
    platform.spaces.rename(space, actor, owner, name)
    return {}


@router.put("/api/spaces/{owner}/{name}/settings", response_model=Done, summary="Change who may see a Space")
def settings(body: SettingsIn, space: OwnSpace, actor: ActorDep, platform: PlatformDep) -> dict[str, Any]:
    wanted = visibility_of(body.visibility, body.private)
    if wanted is None:
        return {}
    platform.spaces.set_visibility(space, actor, wanted)
    return {"visibility": wanted, "private": wanted == "private"}


# --- reading ------------------------------------------------------------------------------------------------
Expand = Annotated[list[str], Query(max_length=40)]


def _fields(expand: list[str], expand_js: list[str], default: tuple[str, ...]) -> tuple[str, ...]:
    """Python repeats `expand`, JavaScript `expand[]`."""
    wanted = [*expand, *expand_js]
    unknown = [name for name in wanted if name not in views.INFO_FIELDS]
    if unknown:
        raise Invalid(f"expand: {unknown[0][:60]!r} is not one of {', '.join(views.INFO_FIELDS)}.")
    return tuple(wanted) or default


@router.get("/api/spaces", response_model=list[Info], summary="List and search Spaces")
def list_spaces(
    request: Request,
    response: Response,
    actor: ActorDep,
    platform: PlatformDep,
    base: BaseDep,
    search: Annotated[str | None, Query(max_length=200)] = None,
    author: Annotated[str | None, Query(max_length=100)] = None,
    filter: Annotated[list[str], Query(max_length=20)] = [],  # noqa: B006
    sort: Literal["lastModified", "createdAt", "likes", "trendingScore", "trending"] = "lastModified",
    limit: Annotated[int, Query(ge=1, le=1000)] = PAGE,
    skip: Annotated[int, Query(ge=0, le=MAX_INT, description="Where the page begins; set by `Link`.")] = 0,
    full: bool = False,
    expand: Expand = [],  # noqa: B006
    expand_js: Annotated[list[str], Query(alias="expand[]", max_length=40)] = [],  # noqa: B006
) -> list[dict[str, Any]]:
    sdks = [f.removeprefix("sdk:") for f in filter]
    column = "created_at" if sort == "createdAt" else "modified_at"
    found = platform.directory.list(
        actor, search=search, author=author, sdk=sdks, sort=column, limit=limit + 1, offset=skip
    )
    if len(found) > limit:
        # An absolute address: the clients follow it verbatim.
        url = request.url.replace(scheme="", netloc="").include_query_params(skip=skip + limit, limit=limit)
        response.headers["Link"] = f'<{base}{str(url).removeprefix("//")}>; rel="next"'
    default = views.INFO_FIELDS if full else views.LIST_FIELDS
    fields = tuple(f for f in _fields(expand, expand_js, default) if f != "siblings")
    rows = views.load(platform, found[:limit])
    return [views.info(v, access(actor, v.space), platform.settings, fields) for v in rows]


@router.get("/api/spaces/semantic-search", response_model=list[Open], summary="Find Spaces by words")
def semantic_search(
    actor: ActorDep,
    platform: PlatformDep,
    q: Annotated[str, Query(max_length=200)] = "",
    sdk: Annotated[list[str], Query(max_length=10)] = [],  # noqa: B006
) -> list[dict[str, Any]]:
    words = q.split()[:8]
    found = platform.directory.list(actor, search=words[0] if words else None, sdk=sdk, limit=200)
    rows = [s for s in found if all(w.lower() in _text(s) for w in words)][:50]
    return [
        {
            "id": f"{v.space.owner}/{v.space.name}",
            "author": v.space.owner,
            "title": v.space.title or v.space.name,
            "emoji": v.space.emoji,
            "sdk": v.space.sdk,
            "likes": 0,
            "private": v.space.visibility == "private",
            "tags": [v.space.sdk] if v.space.sdk else [],
            "runtime": views.runtime(v, access(actor, v.space), platform.settings),
            "ai_short_description": v.space.short_description,
            "ai_category": None,
            "semanticRelevancyScore": 1.0,
            "trendingScore": 0,
        }
        for v in views.load(platform, rows)
    ]


def _text(space: Space) -> str:
    return f"{space.owner}/{space.name} {space.title} {space.short_description}".lower()


@router.get(
    "/api/spaces/by-subdomain/{subdomain}", response_model=Info, summary="A Space by the first label of its host"
)
def by_subdomain(subdomain: str, actor: ActorDep, platform: PlatformDep) -> dict[str, Any]:
    space = platform.directory.by_label(subdomain, actor)
    return views.info(views.load_one(platform, space), access(actor, space), platform.settings)


@router.get("/api/spaces/{owner}/{name}", response_model=Info, summary="A Space")
def space_info(
    space: ReadableSpace,
    actor: ActorDep,
    platform: PlatformDep,
    blobs: bool = False,
    expand: Expand = [],  # noqa: B006
    expand_js: Annotated[list[str], Query(alias="expand[]", max_length=40)] = [],  # noqa: B006
) -> dict[str, Any]:
    return _info(platform, space, actor, space.head, _fields(expand, expand_js, views.INFO_FIELDS), blobs)


@router.get("/api/spaces/{owner}/{name}/revision/{rev:rev}", response_model=Info, summary="A Space at a revision")
def space_info_at(
    rev: str,
    space: ReadableSpace,
    actor: ActorDep,
    platform: PlatformDep,
    blobs: bool = False,
    expand: Expand = [],  # noqa: B006
    expand_js: Annotated[list[str], Query(alias="expand[]", max_length=40)] = [],  # noqa: B006
) -> dict[str, Any]:
    commit = platform.spaces.repo(space).resolve(rev)
    return _info(platform, space, actor, commit, _fields(expand, expand_js, views.INFO_FIELDS), blobs)


def _info(
    platform: Any, space: Space, actor: Actor, commit: str | None, fields: tuple[str, ...], blobs: bool
) -> dict[str, Any]:
    found = views.info(views.load_one(platform, space), access(actor, space), platform.settings, fields)
    if "sha" in fields:
        found["sha"] = commit
    if "siblings" in fields and commit is not None:
        try:
            entries = platform.spaces.repo(space).tree(commit).entries()
        except NotFound:
            entries = ()
        found["siblings"] = [
            {"rfilename": e.path, **({"size": e.size, "blobId": e.oid} if blobs else {})} for e in entries
        ]
    return found


@router.get("/api/spaces/{owner}/{name}/auth-check", response_model=Done, summary="Whether a Space may be read")
async def auth_check(space: ReadableSpace) -> dict[str, Any]:
    return {}
