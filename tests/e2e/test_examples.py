"""Each example as a newcomer meets it: pushed with git, built, and used through its address by real clients."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cli.conftest import ROOT, Place, new_place

pytestmark = [pytest.mark.installs, pytest.mark.timeout(280)]


@pytest.fixture(scope="module")
def platform() -> Iterator[Place]:
    made = new_place()
    made.up()
    yield made
    made.end()


def token(place: Place) -> str:
    return (place.data / "admin.token").read_text().strip()


def push(place: Place, name: str, *, to: str | None = None) -> str:
    """`git push` of an example to a Space that does not exist yet; what git shows the pusher."""
    where = place.root / f"work-{to or name}"
    shutil.copytree(ROOT / "examples" / name, where, dirs_exist_ok=True)
    url = f"http://admin:{token(place)}@127.0.0.1:{place.port}/spaces/admin/{to or name}"
    who = ["-c", "user.name=Ann", "-c", "user.email=ann@example.org"]
    for words in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-qm", "First"], ["push", url, "main"]):
        done = subprocess.run(
            ["git", *who, *words], cwd=where, capture_output=True, text=True, check=True, env=place.environment()
        )
    return done.stderr


def status(place: Place, name: str) -> dict[str, Any]:
    code, text = place.fetch(f"http://localhost:{place.port}/api/platform/spaces/admin/{name}")
    assert code == 200, text
    found: dict[str, Any] = json.loads(text)
    return found


def live(place: Place, name: str, seconds: float = 240) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = status(place, name)
        if found["stage"] in ("RUNNING", "BUILD_ERROR", "RUNTIME_ERROR", "CONFIG_ERROR", "NO_APP_FILE"):
            assert found["stage"] == "RUNNING", found
            return found
        time.sleep(0.2)
    pytest.fail(f"{name} is not live: {status(place, name)}")


def client(place: Place, name: str) -> Any:
    gradio_client = pytest.importorskip("gradio_client")
    return gradio_client.Client(live(place, name)["urls"]["direct"], verbose=False)


def test_gradio_hello_is_pushed_and_greets(platform: Place) -> None:
    told = push(platform, "gradio-hello")
    assert f"remote: App    http://admin-gradio-hello.localhost:{platform.port}/" in told
    app = client(platform, "gradio-hello")
    assert "Ada" in app.predict("Ada", 2, api_name="/greet")


def test_gradio_chat_streams_its_answer(platform: Place) -> None:
    push(platform, "gradio-chat")
    app = client(platform, "gradio-chat")
    job = app.submit("I am learning to build apps", api_name="/chat")
    assert "you are learning" in job.result(timeout=60)
    assert len(job.outputs()) > 3, "the answer came at once, not word by word"


def test_the_second_gradio_space_installs_nothing(platform: Place) -> None:
    live(platform, "gradio-hello")
    push(platform, "gradio-hello", to="again")
    live(platform, "again")
    shared = list(platform.data.glob("artifacts/owners/*/python/environments/*/lib/python3*/site-packages/gradio"))
    assert len(shared) == 1, "the second Space has an environment of its own"


def test_streamlit_dashboard_opens_its_socket(platform: Place) -> None:
    websockets = pytest.importorskip("websockets.sync.client")
    push(platform, "streamlit-dashboard")
    found = live(platform, "streamlit-dashboard")
    assert platform.fetch(found["urls"]["browser"] + "_stcore/health") == (200, "ok")
    address = found["urls"]["direct"].replace("http://", "ws://") + "_stcore/stream"
    with websockets.connect(address, subprotocols=["streamlit"], open_timeout=20) as socket:
        assert socket.subprotocol == "streamlit"


def test_dash_hello_calls_back(platform: Place) -> None:
    push(platform, "dash-hello")
    found = live(platform, "dash-hello")
    code, text = platform.fetch(found["urls"]["browser"] + "_dash-layout")
    assert code == 200
    assert json.loads(text)["props"]


def test_static_site_is_served_as_it_is(platform: Place) -> None:
    push(platform, "static-site")
    found = live(platform, "static-site")
    code, text = platform.fetch(found["urls"]["browser"])
    assert code == 200
    assert (ROOT / "examples" / "static-site" / "index.html").read_text().split("<title>")[1][:10] in text


def test_docker_says_plainly_what_it_needs(platform: Place) -> None:
    push(platform, "fastapi-docker")
    deadline = time.monotonic() + 20
    while (found := status(platform, "fastapi-docker"))["stage"] != "CONFIG_ERROR":
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    assert found["reason"] == "needs_containers"
    assert "container" in found["message"]


@pytest.mark.browser
def test_a_browser_shows_the_app_at_its_own_name(platform: Place) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    found = live(platform, "gradio-hello")
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [
                chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                f"--user-data-dir={profile}", "--virtual-time-budget=15000", "--dump-dom", found["urls"]["browser"],
            ],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
    assert "Submit" in done.stdout
    assert "Your name" in done.stdout
