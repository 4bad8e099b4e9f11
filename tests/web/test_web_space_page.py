"""The home and the page of a Space, for each stage and kind of visitor, without scripts."""

from __future__ import annotations

import pytest
from fastapi import Request

from spaces_platform.ports import FileChange
from spaces_platform.web.pages import render_error
from spaces_platform.web.words import STAGES, duration, split_message
from tests.web.world import World

SERVING = [s for s in STAGES if s.startswith("RUNNING")]


def test_an_empty_home_teaches_the_first_push(world: World) -> None:
    page = world.browser().get("/")
    assert page.status_code == 200
    assert "git push http://localhost:7860/spaces/you/hello main" in page.text


def test_home_lists_filters_and_searches_without_scripts(world: World) -> None:
    world.space("hello", title="Greeter", stage="RUNNING", sdk="gradio")
    world.space("board", title="Numbers", stage="SLEEPING", sdk="streamlit")
    world.space("hidden", title="Hidden", visibility="private", sdk="gradio")
    browser = world.browser()
    everything = browser.get("/").text
    assert "Greeter" in everything
    assert "Numbers" in everything
    assert "Hidden" not in everything
    assert "Hidden" in world.browser("ada").get("/").text
    for query, shown, left_out in [
        ("q=greet", "Greeter", "Numbers"),
        ("sdk=streamlit", "Numbers", "Greeter"),
        ("stage=running", "Greeter", "Numbers"),
        ("stage=sleeping", "Numbers", "Greeter"),
    ]:
        text = browser.get(f"/?{query}").text
        assert shown in text
        assert left_out not in text
    assert "No Space matches" in browser.get("/?q=nothing-like-it").text


def test_home_pages_through_many(world: World) -> None:
    for n in range(25):
        world.space(f"app-{n:02d}", stage="RUNNING")
    browser = world.browser()
    for extra in ("", "&stage=running"):
        first, second = browser.get(f"/?page=1{extra}").text, browser.get(f"/?page=2{extra}").text
        assert first.count('class="card"') == 24
        assert second.count('class="card"') == 1
        assert 'rel="next"' in first
        assert 'rel="next"' not in second
    assert len(first) < 24_000


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("who", ["", "ada"])
def test_every_stage_has_its_badge_and_panel(world: World, stage: str, who: str) -> None:
    space = world.space("hello", stage=stage, message="The port is wrong. Listen on PORT.", sdk="gradio")
    if stage in SERVING:
        run = world.deployment(space, status="READY", live=True)
        world.change(space, routed=run.id)
    page = world.browser(who).get("/spaces/ada/hello")
    assert page.status_code == 200
    assert STAGES[stage].label in page.text
    assert ('<iframe class="app"' in page.text) == (stage in SERVING)
    assert len(page.text) < 20_000
    assert ("/spaces/ada/hello/settings" in page.text) == bool(who)
    live = world.browser(who).get("/spaces/ada/hello/live")
    assert STAGES[stage].label in live.text
    assert "<html" not in live.text


def test_a_running_app_is_framed_from_its_own_host(world: World) -> None:
    space = world.space("hello", sdk="gradio", stage="RUNNING", card={"base_path": "/ui"})
    world.change(space, routed=world.deployment(space, status="READY", live=True).id)
    page = world.browser().get("/spaces/ada/hello?theme=dark&done=woken")
    assert 'src="http://ada-hello.localhost:7860/ui?theme=dark"' in page.text
    assert "allow-same-origin" in page.text
    policy = page.headers["content-security-policy"]
    assert "frame-src 'self' http://*.localhost:7860;" in policy
    assert "frame-ancestors 'none'" in policy
    assert "http://127.64.1." in page.text
    assert "&lt;iframe src=" in page.text
    world.change(space, visibility="private")
    private = world.browser("ada").get("/spaces/ada/hello?theme=dark").text
    assert 'src="/auth/app?space=ada/hello&amp;next=%2Fui%3Ftheme%3Ddark"' in private
    assert "&lt;iframe src=" not in private


def test_steps_of_a_build_have_their_clocks_and_writers_see_the_log(world: World) -> None:
    space = world.space("hello", stage="BUILDING", sdk="gradio")
    build = world.build(
        space, "--> cloning", "    cloning took 0.25 s", "    evil took 1.00 s", "\x1b[1mFetching <b>\x1b[0m",
        status="RUNNING", phase="installing", phase_text="42/57", started_at=world.clock.now().timestamp() - 4,
    )  # fmt: skip
    page = world.browser("ada").get("/spaces/ada/hello").text
    assert "Reading the commit" in page
    assert "0.2 s" in page
    assert "42/57" in page
    assert "Fetching &lt;b&gt;" in page
    assert page.count('class="clock" data-since=') == 1
    assert "Fetching" not in world.browser("bob").get("/spaces/ada/hello").text
    world.logs.append(f"build/{build.id}", ["    resolving took 3.50 s", "newer line"])
    live = world.browser("ada").get("/spaces/ada/hello/live").text
    assert "3.5 s" in live
    assert "newer line" in live
    world.change(space, stage="APP_STARTING")
    with world.store.write() as tx:
        build.status = "SUCCEEDED"
        tx.merge(build)
    world.deployment(space, "Traceback: none", status="STARTING")
    starting = world.browser("ada").get("/spaces/ada/hello").text
    assert "connection refused on port 40001" in starting
    assert "Traceback: none" in starting


def test_a_failure_names_cause_and_fix_and_shows_the_log_to_writers_only(world: World) -> None:
    space = world.space("hello", stage="BUILD_ERROR", reason="resolver_conflict", evidence=["line that shows it"],
                        message="numpy is asked for twice. Remove `numpy<2`.")  # fmt: skip
    world.build(space, status="FAILED")
    owner = world.browser("ada").get("/spaces/ada/hello").text
    assert "numpy is asked for twice.</h2>" in owner
    assert "<strong>What to do:</strong> Remove <code>numpy&lt;2</code>." in owner
    assert "line that shows it" in owner
    visitor = world.browser("bob").get("/spaces/ada/hello").text
    assert "numpy is asked for twice.</h2>" in visitor
    assert "line that shows it" not in visitor
    world.change(space, routed=world.deployment(space, status="READY", live=True, commit="feed" * 10).id)
    serving = world.browser("bob").get("/spaces/ada/hello").text
    assert "The newest version failed; version <code>feedfee</code> goes on serving." in serving
    assert '<iframe class="app"' in serving


FILES = {
    "README.md": b"---\nsdk: gradio\n---\n# Read me\n\n![d](img/d.png)",
    "app.py": b"import os\n\nprint(1 < 2)\n",
    "img/d.png": b"\x89PNG\x00",
    "data/model.bin": b"\x00\x01" * 50,
    "strange name & <b>.txt": b"x",
}


def test_files_at_any_commit_or_branch(world: World) -> None:
    space = world.space("hello", FILES)
    repo = world.spaces.repo(space)
    first = repo.head()
    assert first is not None
    world.spaces.commit(space, world.actor("ada"), [FileChange("app.py", b"print(2)\n")], message="Second <b>")
    world.repos.open(f"spaces/{space.id}").heads["refs/heads/feature/x"] = first
    browser = world.browser()
    tree = browser.get("/spaces/ada/hello/tree/main").text
    assert "<h1>Read me</h1>" in tree
    assert f'src="/spaces/ada/hello/resolve/{repo.head()}/img/d.png"' in tree
    assert "strange name &amp; &lt;b&gt;.txt" in tree
    assert 'href="/spaces/ada/hello/blob/main/strange%20name%20%26%20%3Cb%3E.txt"' in tree
    assert "print(2)" in browser.get("/spaces/ada/hello/blob/main/app.py").text
    for rev in (first, first[:8], "feature/x"):
        old = browser.get(f"/spaces/ada/hello/blob/{rev}/app.py").text
        assert "print(1 &lt; 2)" in old
        assert '<span id="L3">' in old
    assert "model.bin" in browser.get("/spaces/ada/hello/tree/feature/x/data").text
    assert "This is not text" in browser.get("/spaces/ada/hello/blob/main/data/model.bin").text
    assert (
        f'src="/spaces/ada/hello/resolve/{repo.head()}/img/d.png"'
        in browser.get("/spaces/ada/hello/blob/main/img/d.png").text
    )
    assert browser.get("/spaces/ada/hello/blob/main/data").headers["location"] == "/spaces/ada/hello/tree/main/data"
    assert browser.get("/spaces/ada/hello/tree/main/app.py").headers["location"] == "/spaces/ada/hello/blob/main/app.py"
    for missing in ("tree/nosuch", "blob/main/nosuch.py", "tree/main/nosuch", "commits/nosuch"):
        assert browser.get(f"/spaces/ada/hello/{missing}").status_code == 404
    commits = browser.get("/spaces/ada/hello/commits/main").text
    assert "Second &lt;b&gt;" in commits
    assert "initial commit" in commits


def test_a_large_file_is_cut(world: World) -> None:
    world.space("hello", {"big.txt": b"0123456789\n" * 200_000})
    page = world.browser().get("/spaces/ada/hello/blob/main/big.txt").text
    assert "Only the beginning is shown." in page
    assert 'id="L4000"' in page
    assert 'id="L4001"' not in page


def test_an_empty_space_has_pages(world: World) -> None:
    world.space("hello")
    for path in ("tree/main", "tree", "commits/main"):
        page = world.browser("ada").get(f"/spaces/ada/hello/{path}")
        assert page.status_code == 200
        assert "git clone" in page.text
    assert "Nothing has been built yet" in world.browser("ada").get("/spaces/ada/hello/logs").text


def test_logs_of_builds_and_runs_are_for_writers(world: World) -> None:
    space = world.space("hello", stage="RUNNING")
    other = world.space("other")
    first = world.build(space, *(f"old line {n}" for n in range(500)), status="FAILED", message="It failed.")
    run = world.deployment(space, "run line", status="READY")
    foreign = world.build(other, "foreign line")
    browser = world.browser("ada")
    newest = browser.get("/spaces/ada/hello/logs").text
    assert "run line" in newest
    assert f'data-log="/api/platform/spaces/ada/hello/deployments/{run.id}/logs" data-after="1"' in newest
    older = browser.get(f"/spaces/ada/hello/logs?build={first.id}").text
    assert "old line 499" in older
    assert "old line 99\n" not in older
    assert "100 earlier lines" in older
    assert "data-log=" not in older
    assert browser.get(f"/spaces/ada/hello/logs?build={foreign.id}").status_code == 404
    assert browser.get("/spaces/ada/hello/logs?build=x").status_code == 400
    assert world.browser("bob").get("/spaces/ada/hello/logs").status_code == 403
    assert world.browser().get("/spaces/ada/hello/logs").headers["location"].startswith("/login?next=")


def test_static_files_are_small_and_versioned(world: World) -> None:
    browser = world.browser()
    home = browser.get("/").text
    for name, limit in (("site.css", 15_360), ("site.js", 10_000), ("icon.svg", 1000)):
        address = home.split(f"/static/{name}?v=")[1].split('"')[0]
        file = browser.get(f"/static/{name}?v={address}")
        assert len(file.content) <= limit
        assert "immutable" in file.headers["cache-control"]
        assert file.headers["x-content-type-options"] == "nosniff"
        assert "immutable" not in browser.get(f"/static/{name}").headers["cache-control"]
    assert browser.get("/static/..%2fsite.py").status_code == 404
    assert browser.get("/static/base.html").status_code == 404


@pytest.mark.parametrize("status", [400, 401, 403, 404, 418, 429, 500, 502, 503])
def test_error_pages(status: int) -> None:
    request = Request(
        {"type": "http", "method": "GET", "path": "/x", "headers": [], "query_string": b"", "server": ("h", 1)}
    )
    page = render_error(request, status, "About <b>this</b>.")
    assert page.status_code == status
    text = bytes(page.body).decode()
    assert "About &lt;b&gt;this&lt;/b&gt;." in text
    assert "<h1>" in text
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("message", "cause", "fix"),
    [
        ("", "", ""),
        ("One thing.", "One thing.", ""),
        ("numpy 1.2 and pandas 3.0 clash. Remove one.", "numpy 1.2 and pandas 3.0 clash.", "Remove one."),
        ("No module named 'torch'. Add it. Then push.", "No module named 'torch'.", "Add it. Then push."),
        ("First line\nSecond line", "First line", "Second line"),
    ],
)
def test_a_message_is_cause_and_fix(message: str, cause: str, fix: str) -> None:
    assert split_message(message) == (cause, fix)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (9.96, "10.0 s"),
        (42, "42 s"),
        (185, "3 min 05 s"),
        (7200, "2 h"),
        (5400, "1.5 h"),
        (864000, "10 days"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
