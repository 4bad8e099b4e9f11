"""compose.yaml brought up for real: TLS in front, a push by git through it, and what is left after down and up."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.containers.platforms import keeper
from tests.edge.compose import ROOT, Composed, compose_commands, composed, images
from tests.edge.servers import program
from tests.services.engine import cli, copy_image
from tests.services.userns import GIDS, UIDS, ids, remapping_engine

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1500)]
LIVE_SECONDS = 240.0
CAP_NET_BIND_SERVICE = 10
"""Its bit: see capability.h."""


@pytest.fixture(scope="module")
def built(engine_url: str) -> Iterator[list[str]]:
    if os.geteuid() != 0:
        pytest.skip("needs root: the platform mounts disks and writes packet filter rules")
    program("curl", "curl")
    compose_commands()
    with images(engine_url) as made:
        yield made


@pytest.fixture(scope="module", params=["plain", "remapping"])
def host(request: pytest.FixtureRequest, engine_url: str, built: list[str]) -> Iterator[Composed]:
    """On an engine as it is installed, and on one where nobody in a container is anybody on the host."""
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dockerd-", ignore_cleanup_errors=True)))
        url = engine_url
        if request.param == "remapping":
            url = stack.enter_context(remapping_engine(place)).url
            copy_image(engine_url, url, *built)
            for words in (
                "link add outside type bridge",
                "address add 198.51.100.1/24 dev outside",
                "link set outside up",
                "route add default dev outside",
            ):
                subprocess.run(["ip", *words.split()], check=True, timeout=60)
        yield stack.enter_context(composed(url, place / "host"))


def until(what: str, condition: Callable[[], object], seconds: float = LIVE_SECONDS) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.3)


def api(host: Composed, path: str, *options: str) -> dict[str, object]:
    token = (host.data / "admin.token").read_text().strip()
    code, text = host.curl("localhost", path, "--header", f"Authorization: Bearer {token}", *options)
    assert code == 0, text
    found: dict[str, object] = json.loads(text)
    return found


def page(host: Composed, path: str = "/", name: str = "site") -> str:
    return host.curl(f"admin-{name}.localhost", path)[1]


def is_live(host: Composed, name: str) -> bool:
    stage = api(host, f"/api/spaces/admin/{name}/runtime")
    assert "ERROR" not in str(stage["stage"]), stage
    return stage["stage"] == "RUNNING"


def wait_until_live(host: Composed, name: str = "site") -> None:
    try:
        until(f"{name} is live", lambda: is_live(host, name))
    except AssertionError as exc:
        raise AssertionError(f"{exc}\n{host.compose('logs', '--tail=20', 'control', 'worker')[-6000:]}") from exc


def app_containers(host: Composed) -> list[str]:
    """Ids of the containers that run apps."""
    found = cli(host.engine, "ps", "--quiet", "--no-trunc", "--filter", "name=^spaces-[0-9a-f]{8}-d[0-9]+$").stdout
    # The engine may be shared with other platforms: ours has its files below our data directory.
    return [c for c in found.split() if str(host.data) in cli(host.engine, "inspect", c).stdout]


def app_container(host: Composed) -> str:
    """Id of the one container that runs the app."""
    (found,) = app_containers(host)
    return found


def exit_codes(host: Composed) -> dict[str, int]:
    """How each container of Compose ended; 137 is by force."""
    ids = host.compose("ps", "--all", "--quiet").split()
    shown = cli(host.engine, "inspect", "--format", "{{.Name}} {{.State.ExitCode}}", *ids).stdout.split()
    return {name: int(code) for name, code in zip(shown[::2], shown[1::2], strict=True)}


def push(host: Composed, repo: Path, name: str, sdk: str) -> None:
    """Make a Space, and push what is in a folder to it."""
    made = api(host, "/api/repos/create", "--json", json.dumps({"type": "space", "name": name, "sdk": sdk}))
    assert made["id"]
    token = (host.data / "admin.token").read_text().strip()
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", f"http.sslCAInfo={host.root}"]
    url = f"https://admin:{token}@localhost:{host.port}/spaces/admin/{name}"
    for words in (["init", "-qb", "main"], ["add", "-A"], ["commit", "-qm", "app"], ["push", "-qf", url, "main"]):
        done = subprocess.run(
            ["git", *identity, *words], cwd=repo, capture_output=True, text=True, timeout=120,
            env={"PATH": os.environ["PATH"], "HOME": str(repo.parent)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.replace(token, "…")


def test_a_push_through_the_proxy_is_live(host: Composed, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples/static-site", tmp_path / "site")
    push(host, tmp_path / "site", "site", "static")
    wait_until_live(host)
    assert "<html" in page(host)


def test_apps_are_who_the_engine_makes_them_and_the_services_who_they_say(
    host: Composed, request: pytest.FixtureRequest
) -> None:
    remaps = "remapping" in request.node.callspec.id
    assert ("userns" in cli(host.engine, "info", "--format", "{{.SecurityOptions}}").stdout) == remaps
    wait_until_live(host)
    rows = cli(host.engine, "top", app_container(host), "-o", "pid").stdout.split()[1:]
    assert len(rows) > 1
    user, group = (UIDS + 1000, GIDS + 1000) if remaps else (1000, 1000)
    assert {int(pid): ids(int(pid)) for pid in rows} == dict.fromkeys(map(int, rows), ({user}, {group}))
    own = {"redis": 970, "postgres": 971, "registry": 972, "caddy": 973, "control": 0, "worker": 0, "gateway": 0}
    assert {name: ids(host.pid(name)) for name in own} == {name: ({user}, {user}) for name, user in own.items()}


def test_caddy_may_bind_low_ports_and_nothing_else(host: Composed) -> None:
    lines = Path(f"/proc/{host.pid('caddy')}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines)
    assert {name: int(status[name], 16) for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")} == dict.fromkeys(
        ("CapPrm", "CapEff", "CapInh", "CapAmb"), 1 << CAP_NET_BIND_SERVICE
    )
    assert status["NoNewPrivs"] == "1"
    assert status["Groups"].split() == []


def test_a_volume_keeps_what_is_in_it_and_grows(host: Composed, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    for name, text in keeper("kept").items():
        (tmp_path / "app" / name).write_text(text)
    site = app_container(host)
    push(host, tmp_path / "app", "store", "docker")
    wait_until_live(host, "store")
    assert page(host, "/write/first", "store") == "kept"
    assert 900 < int(page(host, "/size", "store")) <= 1024
    api(host, "/api/spaces/admin/store/storage", "--json", '{"tier": "small"}')
    api(host, "/api/spaces/admin/store/pause", "--request", "POST")
    until("its container is gone", lambda: app_containers(host) == [site])
    api(host, "/api/spaces/admin/store/restart", "--request", "POST")
    wait_until_live(host, "store")
    assert page(host, "/read", "store") == "first"
    assert 3900 < int(page(host, "/size", "store")) <= 4096
    api(host, "/api/spaces/admin/store/pause", "--request", "POST")
    until("its container is gone", lambda: app_containers(host) == [site])


def test_a_name_that_nobody_has_gets_no_certificate(host: Composed) -> None:
    code, said = host.curl("stranger.example.org", "/")
    assert code == 35, said


def test_only_the_proxy_listens_outside(host: Composed) -> None:
    probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    probe.connect(("192.0.2.1", 9))  # sends nothing: it only says by which address this machine goes out
    outside = probe.getsockname()[0]
    probe.close()
    socket.create_connection((outside, host.port), timeout=10).close()
    socket.create_connection(("127.0.0.1", host.gateway), timeout=10).close()
    for name in ("SPACES_PORT", "SPACES_ASK_PORT", "SPACES_REGISTRY_PORT"):
        with pytest.raises(OSError):
            socket.create_connection((outside, int(host.env[name])), timeout=10).close()


def test_redis_and_postgres_want_their_passwords(host: Composed) -> None:
    assert "NOAUTH" in host.inside("redis", "redis-cli", "ping", check=False)
    asked = ["/opt/postgresql/psql", "-h", "127.0.0.1", "-U", "spaces", "-w", "-c", "SELECT 1"]
    assert "1 row" not in host.inside("postgres", *asked, check=False)
    login = 'PGPASSWORD="$(cat /secrets/postgres)" exec "$@"'
    assert "1 row" in host.inside("postgres", "sh", "-c", login, "sh", *asked)


def test_an_image_that_is_gone_is_fetched_by_its_digest(host: Composed) -> None:
    wait_until_live(host)
    image = cli(host.engine, "inspect", "--format", "{{.Image}}", app_container(host)).stdout.strip()
    named = cli(host.engine, "image", "inspect", "--format", '{{join .RepoDigests " "}}', image).stdout
    assert f"{host.env['SPACES_REGISTRY']}/" in named
    api(host, "/api/spaces/admin/site/pause", "--request", "POST")
    until("its container is gone", lambda: not app_containers(host))
    cli(host.engine, "image", "rm", "--force", image)
    assert image not in cli(host.engine, "images", "--all", "--quiet", "--no-trunc").stdout
    api(host, "/api/spaces/admin/site/restart", "--request", "POST")
    wait_until_live(host)
    assert cli(host.engine, "inspect", "--format", "{{.Image}}", app_container(host)).stdout.strip() == image


def test_doctor_inside_finds_the_services(host: Composed) -> None:
    checks = json.loads(host.inside("control", "spaces", "doctor", "--json", check=False))["checks"]
    level = {check["name"]: check["level"] for check in checks}
    wanted = ("redis", "postgres", "port", "buildkit", "packet filter", "volumes")
    assert {name: level.get(name) for name in wanted} == dict.fromkeys(wanted, "ok"), checks


def test_down_ends_no_app_and_up_finds_it_again(host: Composed) -> None:
    wait_until_live(host)
    before = app_container(host)
    passwords = host.inside("control", "sha256sum", "/secrets/redis", "/secrets/postgres")
    host.compose("stop", "--timeout", "60")
    assert 137 not in exit_codes(host).values(), f"one did not end by itself: {exit_codes(host)}"
    host.compose("down")
    assert app_container(host) == before
    host.compose("up", "-d")
    until("the site answers", lambda: "<html" in page(host))
    assert app_container(host) == before
    assert host.inside("control", "sha256sum", "/secrets/redis", "/secrets/postgres") == passwords
    assert api(host, "/api/spaces/admin/site")["sha"]
