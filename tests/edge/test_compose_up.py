"""compose.yaml brought up for real: TLS in front, a push by git through it, and what is left after down and up."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.edge.compose import ROOT, Composed, composed
from tests.edge.servers import program
from tests.services.engine import cli

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1500)]
LIVE_SECONDS = 240.0


@pytest.fixture(scope="module")
def host(engine_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    if os.geteuid() != 0:
        pytest.skip("needs root: the platform mounts disks and writes packet filter rules")
    program("curl", "curl")
    with composed(engine_url, tmp_path_factory.mktemp("compose")) as made:
        yield made


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


def page(host: Composed) -> str:
    return host.curl("admin-site.localhost", "/")[1]


def is_live(host: Composed) -> bool:
    stage = api(host, "/api/spaces/admin/site/runtime")
    assert "ERROR" not in str(stage["stage"]), stage
    return stage["stage"] == "RUNNING"


def wait_until_live(host: Composed) -> None:
    try:
        until("the site is live", lambda: is_live(host))
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


def test_a_push_through_the_proxy_is_live(host: Composed, tmp_path: Path) -> None:
    repo = tmp_path / "site"
    subprocess.run(["cp", "-r", str(ROOT / "examples/static-site"), str(repo)], check=True)
    made = api(host, "/api/repos/create", "--json", '{"type": "space", "name": "site", "sdk": "static"}')
    assert made["id"]
    token = (host.data / "admin.token").read_text().strip()
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", f"http.sslCAInfo={host.root}"]
    url = f"https://admin:{token}@localhost:{host.port}/spaces/admin/site"
    for words in (["init", "-qb", "main"], ["add", "-A"], ["commit", "-qm", "site"], ["push", "-qf", url, "main"]):
        done = subprocess.run(
            ["git", *identity, *words], cwd=repo, capture_output=True, text=True, timeout=120,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.replace(token, "…")
    wait_until_live(host)
    assert "<html" in page(host)


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
