"""Who is asked, and what errors look like to the Hub's clients."""

from __future__ import annotations

import uuid

import pytest

from tests.api.conftest import Caller, World


def test_whoami_has_what_clients_index(call: Caller) -> None:
    answer = call("GET", "/api/whoami-v2").json()
    assert answer["name"] == "alice"
    assert answer["type"] == "user"
    assert answer["orgs"] == []
    assert answer["auth"]["accessToken"]["role"] == "write"
    assert answer["auth"]["accessToken"]["displayName"] == "laptop"
    assert answer["auth"]["accessToken"]["createdAt"].endswith("Z")


def test_a_bad_token_is_refused_everywhere(call: Caller) -> None:
    for path in ("/api/whoami-v2", "/api/spaces"):
        answer = call("GET", path, who=None, headers={"authorization": "Bearer hf_nonsense"})
        assert answer.status_code == 401
        assert answer.headers["x-error-message"] == "Invalid credentials in Authorization header"
        assert "x-error-code" not in answer.headers


def test_missing_and_private_look_the_same(call: Caller, world: World) -> None:
    world.space("alice/secret", visibility="private")
    for name in ("alice/secret", "alice/missing"):
        for who, status in ((None, 401), ("bob", 404)):
            answer = call("GET", f"/api/spaces/{name}", who=who)
            assert answer.status_code == status
            assert answer.headers["x-error-code"] == "RepoNotFound"
            assert answer.headers["x-error-message"] == "Repository not found"
            assert answer.json() == {"error": "Repository not found"}


def test_the_request_id_holds_the_clients_trace_id(call: Caller) -> None:
    trace = str(uuid.uuid4())
    assert trace in call("GET", "/api/spaces", headers={"x-amzn-trace-id": trace}).headers["x-request-id"]
    assert call("GET", "/api/spaces", headers={"x-amzn-trace-id": "a b\tc"}).headers["x-request-id"]


@pytest.mark.parametrize("path", ["/api/nothing", "/api/spaces/a/b/c/d", "/nothing/at/all"])
def test_an_unknown_path_is_a_json_404(call: Caller, path: str) -> None:
    answer = call("GET", path)
    assert answer.status_code == 404
    assert isinstance(answer.json()["error"], str)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/repos/create", b"not json"),
        ("POST", "/api/repos/create", b'"text"'),
        ("POST", "/api/repos/create", b'{"name": ["a"]}'),
        ("POST", "/api/repos/create", b'{"name":"a","type":"space","sdk":"gradio","short_description":"\\ud800"}'),
        ("POST", "/api/repos/create", b'{"name":"a","type":"space","sdk":"gradio","hardware":"\\ud800"}'),
        ("POST", "/api/repos/create", b'{"name":"a\\u0000","type":"space","sdk":"gradio"}'),
        ("POST", "/api/repos/create", b"[" * 100_000),
        (
            "POST",
            "/api/repos/create",
            b'{"name":"a","type":"space","sdk":"gradio","sleepTimeSeconds":' + b"9" * 5000 + b"}",
        ),
        ("DELETE", "/api/repos/delete", b"{}"),
        ("POST", "/api/repos/move", b'{"fromRepo":"x","toRepo":"y","type":"space"}'),
        ("POST", "/api/platform/tokens", b'{"name":"","role":"king"}'),
    ],
)
def test_bad_bodies_are_json_400s(call: Caller, method: str, path: str, body: bytes) -> None:
    answer = call(method, path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert isinstance(answer.json()["error"], str)
    assert answer.headers["x-error-message"]


def test_a_body_over_the_limit_is_refused(call: Caller) -> None:
    answer = call("POST", "/api/validate-yaml", json={"content": "x" * (17 << 20)})
    assert answer.status_code == 413
    chunks = (b"x" * 65536 for _ in range(40))
    answer = call("POST", "/api/repos/move", content=chunks, headers={"content-type": "application/json"})
    assert answer.status_code == 413


def test_a_session_needs_the_same_origin_to_change_anything(call: Caller, world: World) -> None:
    world.space()
    alice = world.accounts.find("alice")
    world.accounts.set_password(alice.id or 0, "a good password")
    answer = call("POST", "/api/platform/session", who=None, json={"name": "alice", "password": "a good password"})
    assert answer.status_code == 200
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert "Domain" not in cookie
    assert call("GET", "/api/whoami-v2", who=None).json()["name"] == "alice"
    cases = [
        ({}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site", "origin": "http://localhost:7860"}, 403),
        ({"origin": "http://alice-app.localhost:7860"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"origin": "http://localhost:7860"}, 200),
    ]
    for headers, status in cases:
        answer = call("POST", "/api/spaces/alice/app/restart", who=None, headers=headers)
        assert answer.status_code == status, headers


def test_guessing_passwords_is_slowed(call: Caller, world: World) -> None:
    world.accounts.set_password(world.accounts.find("alice").id or 0, "a good password")
    statuses = [
        call("POST", "/api/platform/session", who=None, json={"name": "alice", "password": "wrong"}).status_code
        for _ in range(11)
    ]
    assert statuses == [401] * 10 + [429]


def test_a_one_time_link_signs_a_browser_in_once(call: Caller) -> None:
    url = call("POST", "/api/platform/sign-in-link", json={"next": "/spaces/alice/app"}).json()["url"]
    assert url.startswith("http://localhost:7860/login/link?")
    answer = call("GET", url, who=None)
    assert (answer.status_code, answer.headers["location"]) == (303, "/spaces/alice/app")
    assert call("GET", "/api/whoami-v2", who=None).json()["name"] == "alice"
    assert call("GET", url, who=None).status_code == 401


@pytest.mark.parametrize(
    "target", ["//evil.example", "https://evil.example/", "/\\evil.example", "javascript:1", "/a\nb"]
)
def test_a_link_leads_nowhere_else(call: Caller, target: str) -> None:
    url = call("POST", "/api/platform/sign-in-link", json={"next": target}).json()["url"]
    assert call("GET", url, who=None).headers["location"] == "/"


def test_tokens_are_made_listed_and_revoked(call: Caller) -> None:
    made = call("POST", "/api/platform/tokens", json={"name": "ci", "role": "read", "expiresIn": 60}).json()
    assert made["token"].startswith("hf_")
    listed = {t["id"]: t for t in call("GET", "/api/platform/tokens").json()}
    assert listed[made["id"]]["role"] == "read"
    headers = {"authorization": f"Bearer {made['token']}"}
    assert call("GET", "/api/whoami-v2", headers=headers).status_code == 200
    assert call("POST", "/api/platform/tokens", json={"name": "more"}, headers=headers).status_code == 403
    assert call("DELETE", f"/api/platform/tokens/{made['id']}").status_code == 200
    assert call("GET", "/api/whoami-v2", headers=headers).status_code == 401
    assert call("DELETE", "/api/platform/tokens/99999999999999999999").status_code == 400


def test_organisations_share_spaces_by_role(call: Caller, world: World) -> None:
    assert call("POST", "/api/platform/orgs", json={"name": "acme"}).status_code == 200
    body = {"name": "tool", "organization": "acme", "type": "space", "sdk": "gradio", "private": True}
    assert call("POST", "/api/repos/create", who="bob", json=body).status_code == 403
    assert call("POST", "/api/repos/create", json=body).status_code == 200
    assert call("GET", "/api/spaces/acme/tool", who="bob").status_code == 404
    assert call("PUT", "/api/platform/orgs/acme/members/bob", json={"role": "read"}).status_code == 200
    assert call("GET", "/api/spaces/acme/tool", who="bob").status_code == 200
    assert call("POST", "/api/spaces/acme/tool/restart", who="bob").status_code == 403
    assert call("GET", "/api/platform/orgs/acme/members", who="bob").json() == [
        {"name": "alice", "role": "admin"},
        {"name": "bob", "role": "read"},
    ]
    assert call("PUT", "/api/platform/orgs/acme/members/bob", json={"role": None}).status_code == 200
    assert call("GET", "/api/spaces/acme/tool", who="bob").status_code == 404


def test_only_admins_make_users(call: Caller) -> None:
    body = {"name": "carol", "password": "a good password"}
    assert call("POST", "/api/platform/users", json=body).status_code == 403
    assert call("POST", "/api/platform/users", who="admin", json=body).json() == {"name": "carol", "type": "user"}
    assert call("POST", "/api/platform/users", who="admin", json=body).status_code == 409
    assert call("POST", "/api/platform/users", who="admin", json={"name": "api"}).status_code == 400
