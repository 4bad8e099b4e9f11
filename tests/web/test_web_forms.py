"""Changes of state: who may, from where, with which token; what then happened; and where a sign-in may lead."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from fastapi.testclient import TestClient
from sqlmodel import select

from spaces_platform.accounts import ANONYMOUS
from spaces_platform.errors import RepoNotFound
from spaces_platform.models import Event, Session, Space
from spaces_platform.web.site import is_same_origin, local_path
from tests.web.world import FROM_US, HERE, World

ACTS = {
    "/spaces/ada/hello/pause": {},
    "/spaces/ada/hello/restart": {},
    "/spaces/ada/hello/rebuild": {},
    "/spaces/ada/hello/sleep": {},
    "/spaces/ada/hello/wake": {},
    "/spaces/ada/hello/settings/variable": {"key": "A", "value": "1"},
    "/spaces/ada/hello/settings/secret": {"key": "B", "value": "2"},
    "/spaces/ada/hello/settings/variable/delete": {"key": "A"},
    "/spaces/ada/hello/settings/secret/delete": {"key": "B"},
    "/spaces/ada/hello/settings/sleep-after": {"seconds": "300"},
    "/spaces/ada/hello/settings/visibility": {"visibility": "private"},
    "/spaces/ada/hello/settings/rename": {"to": "ada/other"},
    "/spaces/ada/hello/settings/delete": {"confirm": "ada/hello"},
    "/settings/tokens": {"name": "t", "role": "write", "days": "30"},
    "/settings/tokens/1/revoke": {},
    "/settings/password": {"current": "ada-password", "password": "another-password"},
    "/new": {"owner": "ada", "name": "fresh", "sdk": "gradio", "visibility": "public"},
    "/logout": {},
}


def csrf(browser: TestClient, path: str = "/") -> str:
    found = re.search(r'name="csrf" value="([0-9a-f]{64})"', browser.get(path).text)
    assert found is not None
    return found[1]


def send(browser: TestClient, path: str, csrf: str | None, headers: dict[str, str] | None = None, **form: str) -> Any:
    data = {**form, **({"csrf": csrf} if csrf is not None else {})}
    return browser.post(path, data=data, headers=FROM_US if headers is None else headers)


def changes(world: World) -> int:
    with world.store.read() as db:
        return len(db.exec(select(Event)).all()) + len(db.exec(select(Session)).all())


@pytest.mark.parametrize("path", ACTS)
def test_a_form_needs_our_page_and_our_token(world: World, path: str) -> None:
    world.space("hello", stage="SLEEPING", last_active_at=1.0, slept_at=2.0)
    browser = world.browser("ada")
    token, form = csrf(browser), ACTS[path]
    strange = csrf(world.browser("bob"))
    before = changes(world)
    for headers in (
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
        {"sec-fetch-site": "cross-site", "origin": HERE},
        {"origin": "http://hello.localhost:7860"},
        {"origin": "http://localhost:7861"},
        {"origin": "null"},
        {},
        {"origin": "http://evil.example", "host": "evil.example"},
        {"sec-fetch-site": "same-origin", "host": "rebound.evil.example"},
    ):
        assert send(browser, path, token, headers, **form).status_code == 403, headers
    for wrong in (None, "", "0" * 64, strange, "ä"):
        assert send(browser, path, wrong, **form).status_code == 403, wrong
    body = {"content-type": "application/json", **FROM_US}
    assert browser.post(path, content=b'{"csrf": "%s"}' % token.encode(), headers=body).status_code == 400
    assert changes(world) == before
    assert browser.get(path).status_code != 500
    assert send(browser, path, token, {"origin": HERE}, **form).status_code in (
        200,
        303,
        404 if "revoke" in path else 303,
    )


@pytest.mark.parametrize("path", [p for p in ACTS if p.startswith("/spaces/") and not p.endswith("/wake")])
def test_strangers_change_nothing(world: World, path: str) -> None:
    space = world.space("hello", stage="RUNNING")
    before = changes(world)
    assert send(world.browser(), path, None, **ACTS[path]).status_code == 401
    bob = world.browser("bob")
    sessions = changes(world)
    assert send(bob, path, csrf(bob), **ACTS[path]).status_code == 403
    world.change(space, visibility="private")
    assert send(bob, path, csrf(bob), **ACTS[path]).status_code == 404
    assert changes(world) == sessions == before + 1


def test_a_form_is_bounded(world: World) -> None:
    browser = world.browser("ada")
    token = csrf(browser)
    assert send(browser, "/new", token, name="x" * 600_000).status_code == 413
    assert send(browser, "/new", token, **{f"f{n}": "1" for n in range(60)}).status_code == 400


@pytest.mark.parametrize(
    "path", ["", "/live", "/tree/main", "/tree", "/blob/main/README.md", "/commits/main", "/logs", "/settings"]
)
def test_a_private_space_is_not_there_for_strangers(world: World, path: str) -> None:
    world.space("secret", {"README.md": b"# x"}, visibility="private", title="Hidden title")
    absent = world.browser("bob").get(f"/spaces/ada/absent{path}")
    for browser in (world.browser(), world.browser("bob")):
        page = browser.get(f"/spaces/ada/secret{path}", headers={"accept": "text/html"})
        assert page.status_code == 404
        assert "Hidden title" not in page.text
        assert page.headers["content-security-policy"]
    hidden = world.browser("bob").get(f"/spaces/ada/secret{path}")
    told = [re.sub(r'value="[0-9a-f]{64}"', "", page.text).replace("secret", "absent") for page in (hidden, absent)]
    assert told[0] == told[1]
    assert world.browser("ada").get(f"/spaces/ada/secret{path}").status_code == 200


NEXT = [
    ("/", "/"),
    ("/spaces/ada/hello?x=1#y", "/spaces/ada/hello?x=1#y"),
    ("//evil.example", "/"),
    ("///evil.example", "/"),
    ("/\\evil.example", "/"),
    ("\\\\evil.example", "/"),
    ("http://evil.example", "/"),
    ("https:evil.example", "/"),
    ("javascript:alert(1)", "/"),
    ("/\t/evil.example", "/"),
    ("/\n/evil.example", "/"),
    ("\t//evil.example", "/"),
    (" //evil.example", "/"),
    ("/%0d%0aSet-Cookie:x=1", "/%0d%0aSet-Cookie:x=1"),
    ("/x\r\nSet-Cookie: x=1", "/"),
    ("evil.example", "/"),
    ("@evil.example", "/"),
    ("", "/"),
    ("/" + "a" * 3000, "/"),
]


def test_next_stays_here(world: World) -> None:
    world.space("mine", visibility="private")
    world.space("open")
    ada = world.browser("ada")
    for given, leads_to in NEXT:
        assert local_path(given) == leads_to, given
        door = ada.get("/auth/app", params={"space": "ada/mine", "next": given})
        target = urlsplit(door.headers["location"])
        assert (target.scheme, target.netloc, target.path) == ("http", "ada-mine.localhost:7860", "/.spaces/auth")
        assert parse_qs(target.query)["next"] == [leads_to]
        public = world.browser().get("/auth/app", params={"space": "ada/open", "next": given})
        assert urlsplit(public.headers["location"]).netloc == "ada-open.localhost:7860"
        signed_in = ada.get("/login", params={"next": given})
        assert (signed_in.status_code, signed_in.headers["location"]) == (303, leads_to)
    for given in ("//evil.example", "/\\evil.example", "http://evil.example"):
        done = send(world.browser(), "/login", None, name="ada", password="ada-password", next=given)
        assert (done.status_code, done.headers["location"]) == (303, "/")


def test_the_door_to_a_private_app(world: World) -> None:
    space = world.space("mine", visibility="private")
    anonymous = world.browser().get("/auth/app?space=ada/mine&next=/x")
    assert anonymous.headers["location"] == "/login?next=%2Fauth%2Fapp%3Fspace%3Dada%2Fmine%26next%3D%2Fx"
    assert world.browser().get("/auth/app?space=ada/absent&next=/x").headers["location"].startswith("/login?next=")
    assert world.browser("bob").get("/auth/app?space=ada/mine").status_code == 404
    assert world.browser("bob").get("/auth/app").status_code == 404
    door = world.browser("ada").get("/auth/app?space=ada/mine&next=/x")
    code = parse_qs(urlsplit(door.headers["location"]).query)["code"][0]
    session = world.accounts.exchange_code(code, space_id=space.id or 0)
    assert world.accounts.actor_of_session(session, space_id=space.id).name == "ada"


def test_signing_in_and_out(world: World) -> None:
    browser = world.browser()
    assert browser.get("/new").headers["location"] == "/login?next=/new"
    wrong = send(browser, "/login", None, name="ada", password="wrong-password")
    assert (wrong.status_code, "set-cookie" in wrong.headers) == (401, False)
    right = send(browser, "/login", None, name="ada", password="ada-password", next="/new")
    cookie = right.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert "Domain" not in cookie
    browser.cookies.set("spaces-session", cookie.split("=", 1)[1].split(";")[0], domain="localhost.local")
    assert browser.get("/new").status_code == 200
    token = csrf(browser)
    assert send(browser, "/logout", token).status_code == 303
    assert browser.get("/new").status_code == 303


def test_a_lesser_token_does_not_become_a_session(world: World) -> None:
    me = world.actor("ada").id or 0
    for role, status in (("read", 403), ("fineGrained", 403), ("write", 303)):
        token = world.accounts.create_token(me, role, role=role)
        answer = send(world.browser(), "/login", None, token=token)
        assert answer.status_code == status
        assert ("set-cookie" in answer.headers) == (status == 303)
    assert send(world.browser(), "/login", None, token="hf_unknown").status_code == 401


def test_the_whole_life_of_a_space_without_scripts(world: World) -> None:
    browser = world.browser("ada")
    token = csrf(browser)
    made = send(browser, "/new", token, owner="ada", name="hello", sdk="gradio", visibility="public")
    assert made.headers["location"] == "/spaces/ada/hello?done=created"
    page = browser.get(made.headers["location"]).text
    assert "git clone http://localhost:7860/spaces/ada/hello" in page
    assert "The Space is there." in page
    again = send(browser, "/new", token, owner="ada", name="hello", sdk="gradio", visibility="public")
    assert again.status_code == 409
    assert "already created" in again.text
    base = "/spaces/ada/hello"

    def row() -> Space:
        return world.directory.find("ada", "hello", world.actor("ada"))

    send(browser, f"{base}/settings/variable", token, key="MODEL", value="one\r\ntwo")
    assert [(v.key, v.value) for v in world.space_settings.variables(row())] == [("MODEL", "one\ntwo")]
    send(browser, f"{base}/settings/secret", token, key="API_KEY", value="do-not-show")
    shown = browser.get(f"{base}/settings").text
    assert "API_KEY" in shown
    assert "do-not-show" not in shown
    clash = send(browser, f"{base}/settings/secret", token, key="MODEL", value="x")
    assert clash.status_code == 400
    assert "collision" in clash.text
    send(browser, f"{base}/settings/variable/delete", token, key="MODEL")
    assert not world.space_settings.variables(row())
    send(browser, f"{base}/settings/sleep-after", token, seconds="300")
    assert row().sleep_after == 300
    assert send(browser, f"{base}/settings/sleep-after", token, seconds="1e9").status_code == 400
    send(browser, f"{base}/pause", token)
    assert row().desired == "PAUSED"
    assert f'action="{base}/restart"' in browser.get(base).text
    assert f'action="{base}/restart"' not in world.browser("bob").get(base).text
    send(browser, f"{base}/restart", token)
    assert row().desired == "RUNNING"
    salt = row().salt
    send(browser, f"{base}/rebuild", token)
    assert row().salt != salt
    send(browser, f"{base}/settings/visibility", token, visibility="private")
    assert row().visibility == "private"
    moved = send(browser, f"{base}/settings/rename", token, to="ada/greeter")
    assert moved.headers["location"] == "/spaces/ada/greeter?done=renamed"
    assert browser.get(f"{base}/tree/main?x=1").headers["location"] == "/spaces/ada/greeter/tree/main?x=1"
    assert browser.get("/spaces/ADA/Greeter").headers["location"] == "/spaces/ada/greeter"
    kept = send(browser, "/spaces/ada/greeter/settings/delete", token, confirm="greeter")
    assert kept.status_code == 400
    assert send(browser, "/spaces/ada/greeter/settings/delete", token, confirm="ada/greeter").status_code == 303
    with pytest.raises(RepoNotFound):
        world.directory.find("ada", "greeter", world.actor("ada"))


def test_anybody_who_may_read_a_space_may_wake_it(world: World) -> None:
    space = world.space("hello", stage="SLEEPING", last_active_at=1.0, slept_at=2.0)
    assert 'action="/spaces/ada/hello/wake"' in world.browser().get("/spaces/ada/hello").text
    assert send(world.browser(), "/spaces/ada/hello/wake", None).headers["location"] == "/spaces/ada/hello?done=woken"
    assert world.directory.find("ada", "hello", ANONYMOUS).last_active_at > 2.0
    world.change(space, visibility="private")
    assert send(world.browser(), "/spaces/ada/hello/wake", None).status_code == 404


def test_tokens_are_shown_once(world: World) -> None:
    browser = world.browser("ada")
    token = csrf(browser)
    made = send(browser, "/settings/tokens", token, name="laptop", role="read", days="30")
    value = re.search(r"hf_[A-Za-z0-9]{34}", made.text)
    assert value is not None
    assert made.headers["cache-control"] == "no-store"
    assert world.accounts.actor_of_token(value[0]).token_role == "read"
    later = browser.get("/settings/tokens").text
    assert "<strong>laptop" in later
    assert value[0] not in later
    row = world.accounts.tokens(world.actor("ada").id or 0)[0]
    bob = world.browser("bob")
    assert send(bob, f"/settings/tokens/{row.id}/revoke", csrf(bob)).status_code == 404
    assert send(browser, f"/settings/tokens/{row.id}/revoke", token).status_code == 303
    assert "<strong>laptop" not in browser.get("/settings/tokens").text
    wrong = send(browser, "/settings/password", token, current="nope-nope", password="another-password")
    assert wrong.status_code == 401
    assert (
        send(browser, "/settings/password", token, current="ada-password", password="another-password").status_code
        == 303
    )
    assert world.accounts.sign_in("ada", "another-password").name == "ada"


def test_same_origin_with_other_names() -> None:
    hosts = ("spaces.example.org", "localhost", "127.0.0.1", "[::1]", "::1")
    assert is_same_origin({"host": "[::1]:7860", "origin": "http://[::1]:7860"}, hosts)
    assert is_same_origin({"host": "spaces.example.org", "origin": "https://spaces.example.org"}, hosts)
    assert not is_same_origin({"host": "spaces.example.org", "origin": "https://a.spaces.example.org"}, hosts)
    assert not is_same_origin({"host": "a.spaces.example.org", "sec-fetch-site": "same-origin"}, hosts)
    assert not is_same_origin({}, hosts)
