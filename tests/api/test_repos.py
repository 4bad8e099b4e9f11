"""Creating, finding, renaming and deleting Spaces over the Hub's routes."""

from __future__ import annotations

import json

import pytest

from builders.config import MissingAppFile, read_config
from spaces_platform.errors import Unavailable
from tests.api.conftest import Caller, World


def create(call: Caller, name: str = "app", **body: object) -> dict[str, str]:
    answer = call("POST", "/api/repos/create", json={"name": name, "type": "space", "sdk": "gradio", **body})
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


def test_a_new_space_has_the_hubs_first_commit(call: Caller, world: World) -> None:
    assert create(call, "My_App")["url"] == "http://localhost:7860/spaces/alice/My_App"
    readme = call("GET", "/spaces/alice/My_App/resolve/main/README.md").text
    with pytest.raises(MissingAppFile):
        read_config(readme, [])
    assert read_config(readme, ["app.py"]).title == "My App"
    info = call("GET", "/api/spaces/alice/my_app").json()
    assert {s["rfilename"] for s in info["siblings"]} == {"README.md", ".gitattributes"}
    assert info["id"] == "alice/My_App"
    assert info["host"].endswith("/")
    assert info["subdomain"] == "alice-my-app"


@pytest.mark.parametrize("sdk", ["gradio", "streamlit", "dash", "static", "docker"])
def test_the_first_readme_is_valid_for_every_sdk(call: Caller, sdk: str) -> None:
    create(call, "x", sdk=sdk, short_description='say "hi": # now')
    readme = call("GET", "/spaces/alice/x/resolve/main/README.md").text
    config = read_config(readme, ["app.py", "index.html", "Dockerfile"])
    assert (config.sdk, config.short_description) == (sdk, 'say "hi": # now')


def test_without_init_there_is_no_commit(call: Caller, world: World) -> None:
    create(call, init=False)
    assert call("GET", "/api/spaces/alice/app").json()["sha"] is None
    assert call("GET", "/api/spaces/alice/app/tree/main").status_code == 404


def test_urls_follow_the_platforms_own_hosts_only(call: Caller, world: World) -> None:
    cases = [
        ({"host": "127.0.0.1:7860"}, "http://127.0.0.1:7860"),
        ({"x-forwarded-host": "localhost:9000", "x-forwarded-proto": "https"}, "https://localhost:9000"),
        ({"host": "evil.example"}, world.settings.url),
        ({"x-forwarded-host": "localhost:1/evil"}, world.settings.url),
        ({"host": "localhost:7860", "x-forwarded-proto": "javascript"}, "http://localhost:7860"),
    ]
    for n, (headers, base) in enumerate(cases):
        body = {"name": f"app{n}", "type": "space", "sdk": "gradio"}
        answer = call("POST", "/api/repos/create", json=body, headers=headers)
        assert answer.json()["url"] == f"{base}/spaces/alice/app{n}"


def test_an_existing_name_answers_409_with_its_url(call: Caller) -> None:
    create(call)
    answer = call("POST", "/api/repos/create", json={"name": "APP", "type": "space", "sdk": "gradio"})
    assert answer.status_code == 409
    assert answer.json() == {
        "error": "You already created this space repo",
        "url": "http://localhost:7860/spaces/alice/app",
    }


def test_what_cannot_be_created_is_refused(call: Caller) -> None:
    cases: list[tuple[dict[str, object], int]] = [
        ({"type": "model"}, 400),
        ({"sdk": None}, 400),
        ({"sdk": "rails"}, 400),
        ({"name": "a--b"}, 400),
        ({"name": "../x"}, 400),
        ({"hardware": "t4-small"}, 400),
        ({"visibility": "secret"}, 400),
        ({"organization": "bob"}, 403),
        ({"organization": "nobody"}, 403),
        ({"sleepTimeSeconds": 1}, 400),
        ({"secrets": [{"key": "1X", "value": ""}]}, 400),
        ({"files": [{"path": "../../x", "content": ""}]}, 400),
    ]
    for change, status in cases:
        body: dict[str, object] = {"name": "app", "type": "space", "sdk": "gradio", **change}
        answer = call("POST", "/api/repos/create", json=body)
        assert answer.status_code in (status, 422), (change, answer.text)
    assert call("GET", "/api/spaces/alice/app").status_code == 404
    read_only = call(
        "POST", "/api/repos/create", who="alice:read", json={"name": "a", "type": "space", "sdk": "gradio"}
    )
    assert read_only.status_code == 403


def test_a_renamed_space_redirects(call: Caller, world: World) -> None:
    create(call, "old")
    body = {"fromRepo": "alice/old", "toRepo": "alice/new", "type": "space"}
    assert call("POST", "/api/repos/move", json=body).status_code == 200
    cases = [
        ("GET", "/api/spaces/alice/old?expand=sha", "/api/spaces/alice/new?expand=sha"),
        ("GET", "/api/spaces/Alice/old/tree/main/a%2Fb%20c", "/api/spaces/alice/new/tree/main/a%2Fb%20c"),
        ("HEAD", "/spaces/alice/old/resolve/main/README.md", "/spaces/alice/new/resolve/main/README.md"),
        ("POST", "/api/spaces/alice/old/restart", "/api/spaces/alice/new/restart"),
        ("GET", "/api/platform/spaces/alice/old", "/api/platform/spaces/alice/new"),
    ]
    for method, path, target in cases:
        answer = call(method, path)
        assert (answer.status_code, answer.headers["location"]) == (307, target)
    body = {"fromRepo": "alice/new", "toRepo": "alice/new2", "type": "space"}
    assert call("POST", "/api/repos/move", who="bob", json=body).status_code == 403
    create(call, "taken")
    body = {"fromRepo": "alice/new", "toRepo": "alice/taken", "type": "space"}
    answer = call("POST", "/api/repos/move", json=body)
    assert answer.status_code == 409
    assert "alice/taken already exists" in answer.json()["error"]


def test_delete_needs_the_owner_and_the_name_it_has_now(call: Caller) -> None:
    create(call)
    request = {"name": "app", "organization": "alice", "type": "space"}
    assert call("DELETE", "/api/repos/delete", who="bob", json=request).status_code == 403
    assert call("DELETE", "/api/repos/delete", who="alice:read", json=request).status_code == 403
    assert call("DELETE", "/api/repos/delete", json=request).status_code == 200
    answer = call("DELETE", "/api/repos/delete", json=request)
    assert (answer.status_code, answer.headers["x-error-code"]) == (404, "RepoNotFound")


def test_lists_page_by_absolute_links_and_hide_what_is_private(call: Caller, world: World) -> None:
    for n in range(5):
        world.space(f"alice/app{n}", visibility="private" if n == 0 else "public")
    world.space("bob/other")
    seen, url = [], "/api/spaces?author=alice&limit=2"
    while url:
        answer = call("GET", url, who="bob")
        seen += [s["id"] for s in answer.json()]
        link = answer.headers.get("link", "")
        assert not link or link.startswith("<http://localhost:7860/api/spaces?")
        url = answer.links.get("next", {}).get("url", "")
    assert seen == ["alice/app4", "alice/app3", "alice/app2", "alice/app1"]
    assert len(call("GET", "/api/spaces?author=alice").json()) == 5
    assert [s["id"] for s in call("GET", "/api/spaces?search=oth", who=None).json()] == ["bob/other"]
    assert call("GET", "/api/spaces?search=%25", who=None).json() == []
    for bad in ("limit=0", "limit=99999", "skip=-1", "sort=x", "skip=99999999999999999999"):
        assert call("GET", f"/api/spaces?{bad}").status_code == 400


def test_expand_chooses_fields_and_names_unknown_ones(call: Caller, world: World) -> None:
    world.space()
    for query in ("expand=sdk&expand=private", "expand[]=sdk&expand[]=private"):
        answer = call("GET", f"/api/spaces/alice/app?{query}").json()
        assert set(answer) == {"_id", "id", "sdk", "private"}
    answer = call("GET", "/api/spaces/alice/app?expand=foo")
    assert answer.status_code == 400
    assert "siblings" in answer.json()["error"]


def test_search_and_subdomain(call: Caller, world: World) -> None:
    world.space("alice/cat-photos", visibility="private")
    assert [s["id"] for s in call("GET", "/api/spaces/semantic-search?q=cat").json()] == ["alice/cat-photos"]
    assert call("GET", "/api/spaces/semantic-search?q=cat", who="bob").json() == []
    assert call("GET", "/api/spaces/by-subdomain/alice-cat-photos").json()["id"] == "alice/cat-photos"
    assert call("GET", "/api/spaces/by-subdomain/alice-cat-photos", who=None).status_code == 401


def test_settings_change_visibility(call: Caller, world: World) -> None:
    world.space()
    assert call("PUT", "/api/spaces/alice/app/settings", who="bob", json={"private": True}).status_code == 403
    assert call("PUT", "/api/spaces/alice/app/settings", json={"visibility": "private"}).status_code == 200
    assert call("GET", "/api/spaces/alice/app", who=None).status_code == 401
    assert call("PUT", "/api/spaces/alice/app/settings", json={"gated": "auto"}).status_code == 200


def test_what_the_clients_ask_unasked(call: Caller) -> None:
    assert call("GET", "/api/agent-harnesses", who=None).json() == {"standardEnvVars": [], "harnesses": {}}
    assert call("HEAD", "/api/telemetry/py_client/initiated", who=None).status_code == 204
    assert call("GET", "/api/models", who=None).json() == []
    assert call("GET", "/api/users/alice/overview", who=None).json()["user"] == "alice"
    assert json.loads(call("GET", "/api/spaces/hardware", who=None).text)[0]["name"] == "cpu-basic"


def test_what_a_failed_creation_left_is_nobody_elses(
    call: Caller, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database goes away after the repository was made: the next Space, another owner's, begins empty."""

    def away(*_: object) -> None:
        raise Unavailable("the database went away")

    with monkeypatch.context() as broken:
        broken.setattr(world.spaces.writes, "save", away)
        with pytest.raises(Unavailable):
            world.space("alice/app", files={"private.txt": b"of alice"})
    assert len(list((world.settings.data / "repos").rglob("HEAD"))) == 1
    assert world.spaces.repo(world.space("bob/app")).head() is None
    assert len(list((world.settings.data / "repos").rglob("HEAD"))) == 1
