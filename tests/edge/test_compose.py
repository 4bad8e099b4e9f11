"""compose.yaml as it is written: what it lets in, what it bounds, and that every setting gets through it."""

from __future__ import annotations

import dataclasses
import http.server
import re
import socketserver
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from runtime_images.platform.__main__ import TARGETS, build_argv, version
from spaces_platform.settings import Settings
from tests.edge.compose import ROOT, compose_commands

TEXT = (ROOT / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
POWERFUL = {"control", "worker"}
DECIDED_ELSEWHERE = {"queue", "builder", "orchestrator", "docker"}  # by the mode
DECIDED_ELSEWHERE |= {"database", "redis"}  # by the entry script
DECIDED_ELSEWHERE |= {"redis_prefix", "pass_environment"}  # nobody shares this Redis; each variable has its own line


def mounts(service: str) -> list[str]:
    return [str(volume) for volume in SERVICES[service].get("volumes", ())]


def caps(service: str) -> list[str]:
    return [str(cap) for cap in SERVICES[service].get("cap_add", ())]


def resolved(text: str) -> str:
    """A value where .env is empty: each variable's default."""
    return re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", text)


def test_every_setting_reaches_the_platform() -> None:
    for service in ("control", "worker", "gateway"):
        given = set(SERVICES[service]["environment"])
        missing = {f.name for f in dataclasses.fields(Settings) if f"SPACES_{f.name.upper()}" not in given}
        assert missing == DECIDED_ELSEWHERE


def test_every_setting_in_it_is_one() -> None:
    given = {
        name: resolved(str(value))
        for name, value in SERVICES["control"]["environment"].items()
        if name.startswith("SPACES_") and value is not None
    }
    settings = Settings.load(given)
    assert (settings.mode, settings.host, settings.url) == ("single-host", "127.0.0.1", "https://localhost")
    names = {f"SPACES_{f.name.upper()}" for f in dataclasses.fields(Settings)}
    assert {name for name in SERVICES["control"]["environment"] if name.startswith("SPACES_")} <= names


@pytest.mark.parametrize("service", SERVICES)
def test_each_service_is_one_of_our_images_and_bounded(service: str) -> None:
    one = SERVICES[service]
    repository, _, tag = resolved(one["image"]).partition(":")
    assert repository.removeprefix("spaces/") in TARGETS
    assert tag == version()
    assert one["logging"]["options"]["max-size"]
    assert "privileged" not in one
    assert "no-new-privileges:true" in one["security_opt"]
    assert "ports" not in one  # what listens outside says so itself: only caddy does
    assert service == "init" or one["restart"] == "unless-stopped"


@pytest.mark.parametrize("service", sorted(set(SERVICES) - POWERFUL - {"init"}))
def test_who_needs_no_power_has_none(service: str) -> None:
    one = SERVICES[service]
    assert one["cap_drop"] == ["ALL"]
    assert one["read_only"] is True
    assert one["mem_limit"]
    assert one["pids_limit"]
    assert "docker.sock" not in " ".join(mounts(service))
    # What it takes to become its user and keep one capability; test_compose_up sees that it has no other then.
    assert one.get("cap_add", []) == (["SETUID", "SETGID", "NET_BIND_SERVICE"] if service == "caddy" else [])


def test_a_capability_more_is_one_file_beside_it(tmp_path: Path) -> None:
    """As docs/single-host.md has it, for volumes that grow while their apps have them."""
    more = tmp_path / "compose.override.yaml"
    more.write_text("services: {control: {cap_add: [SYS_RESOURCE]}}\n")
    for command in compose_commands():
        argv = [*command, "--file", str(ROOT / "compose.yaml"), "--file", str(more), "config"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, ""), command
        shown = yaml.safe_load(done.stdout)["services"]
        assert set(shown["control"]["cap_add"]) == {*caps("worker"), "SYS_RESOURCE"}
        assert set(shown["worker"]["cap_add"]) == set(caps("worker"))


def test_an_engine_that_remaps_users_takes_all_of_it() -> None:
    """Ours have the host's ids, and no volume gets the owners that an image's files have on that engine."""
    assert {one.get("userns_mode") for one in SERVICES.values()} == {"host"}
    init = (ROOT / "runtime_images/platform/entry/init").read_text()
    given = dict(re.findall(r"(\w+):(\d+)", init.partition("; do\n")[0]))
    dockerfile = (ROOT / "runtime_images/platform/Dockerfile").read_text()
    for name, user in given.items():
        assert f"{name}:/volumes/{name}" in mounts("init")
        assert any(mount.startswith(f"{name}:/") and mount.endswith(":nocopy") for mount in mounts(name))
        assert SERVICES[name]["depends_on"]
        assert re.search(rf"--uid {user} .*/var/lib/\S*{name}", dockerfile)
    assert set(given) | {"secrets"} == set(COMPOSE["volumes"])


def test_only_control_and_worker_hold_the_engine() -> None:
    assert {name for name in SERVICES if "docker.sock" in " ".join(mounts(name))} == POWERFUL


def test_databases_are_on_a_network_that_leads_nowhere() -> None:
    assert COMPOSE["networks"]["data"]["internal"] is True
    on_it = {name for name, one in SERVICES.items() if "data" in one.get("networks", ())}
    assert on_it == {"redis", "postgres"}
    for name in on_it:
        address = resolved(SERVICES[name]["networks"]["data"]["ipv4_address"])
        assert f"{address}:" in resolved(SERVICES["control"]["environment"][f"{name.upper()}_ADDRESS"])


def test_no_password_is_written_anywhere() -> None:
    assert not re.search(r"password|requirepass|_PASS\b", TEXT.replace("$(cat /secrets/redis)", ""), re.IGNORECASE)
    writers = {name for name in SERVICES if "secrets:/secrets" in mounts(name)}
    readers = {name for name in SERVICES if "secrets:/secrets:ro" in mounts(name)}
    assert writers == {"init"}
    assert readers == {"redis", "postgres", *POWERFUL}


def test_who_waits_for_health_waits_for_something_that_has_a_check() -> None:
    for one in SERVICES.values():
        for name, wait in one.get("depends_on", {}).items():
            if wait["condition"] == "service_healthy":
                assert SERVICES[name]["healthcheck"]["test"]
            else:
                assert name == "init"


def test_named_volumes_are_declared_and_used() -> None:
    used = {mount.partition(":")[0] for name in SERVICES for mount in mounts(name) if mount[0] not in "/$"}
    assert used == set(COMPOSE["volumes"])


def test_the_data_directory_has_one_path_inside_and_outside() -> None:
    for name in POWERFUL:
        path, inside, how = next(resolved(m).split(":") for m in mounts(name) if "SPACES_DATA" in m)
        assert (path, how) == (inside, "rshared")


def test_all_that_caddy_can_be_told_reaches_it() -> None:
    files = (ROOT / "runtime_images/platform/caddy").iterdir()
    known = set(re.findall(r"\{\$(SPACES_[A-Z_]+)", "".join(path.read_text() for path in files)))
    given = SERVICES["caddy"]["environment"]
    assert {name for name in given if name.startswith("SPACES_")} == known
    # Debian's authorities, unless a file of this host is named; which then has its own path inside too.
    assert resolved(given["SPACES_ACME_ROOT"]) == ""
    path, inside, how = next(resolved(m).split(":") for m in mounts("caddy") if "SPACES_ACME_ROOT" in m)
    assert (path, how) == (inside, "ro")


def test_compose_takes_the_file(tmp_path: Path) -> None:
    """Each Compose that is here, without a word against it."""
    (tmp_path / "env").write_text("SPACES_BUILD_SLOTS=7\n")
    for command in compose_commands():
        done = subprocess.run(
            [*command, "--file", str(ROOT / "compose.yaml"), "--env-file", str(tmp_path / "env"), "config"],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, ""), command
        shown = yaml.safe_load(done.stdout)["services"]
        assert set(shown) == set(SERVICES)
        assert str(shown["worker"]["environment"]["SPACES_BUILD_SLOTS"]) == "7"
        assert shown["worker"]["environment"].get("SPACES_APP_CPUS") is None


def test_the_command_that_builds_an_image() -> None:
    secrets = [("network", Path("/tmp/a/network")), ("ca", Path("/tmp/a/ca"))]
    argv = build_argv("/usr/bin/docker", "redis", base="corp/base:1", prefix="corp", tag="1.2", secrets=secrets)
    assert argv == (
        "/usr/bin/docker", "build", "--file", f"{ROOT}/runtime_images/platform/Dockerfile", "--target", "redis",
        "--tag", "corp/redis:1.2", "--build-arg", "BASE=corp/base:1",
        "--secret", "id=network,src=/tmp/a/network", "--secret", "id=ca,src=/tmp/a/ca", str(ROOT),
    )  # fmt: skip


def test_the_dockerfile_has_every_target_and_what_it_copies() -> None:
    text = (ROOT / "runtime_images/platform/Dockerfile").read_text()
    assert set(TARGETS) <= set(re.findall(r"^FROM \S+ AS (\w+)$", text, re.MULTILINE))
    for sources in re.findall(r"^COPY (?!--from)((?:.|\\\n)*?)\n(?=[A-Z#\n])", text, re.MULTILINE):
        for source in sources.replace("\\\n", " ").split()[:-1]:
            assert (ROOT / source).exists(), source


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "runtime_images/platform/entry").iterdir()))
def test_entry_scripts_can_be_run_and_have_no_mistakes_of_grammar(name: str) -> None:
    path = ROOT / "runtime_images/platform/entry" / name
    assert path.stat().st_mode & 0o111 == 0o111
    if path.read_text().startswith("#!/bin/sh"):
        done = subprocess.run(["sh", "-n", str(path)], capture_output=True, text=True, timeout=10)
        assert (done.returncode, done.stderr) == (0, "")
    else:
        compile(path.read_text(), str(path), "exec")


class _Server(socketserver.ThreadingUnixStreamServer):
    def get_request(self) -> tuple[Any, Any]:
        return self.socket.accept()[0], ("", 0)


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_health_is_what_readyz_says(tmp_path: Path, status: int, code: int) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing to say."""

    with _Server(str(tmp_path / "sock"), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            assert answers(tmp_path / "sock") == code
        finally:
            server.shutdown()
            thread.join()
    assert answers(tmp_path / "nothing") == 1


def answers(socket: Path) -> int:
    argv = [sys.executable, str(ROOT / "runtime_images/platform/entry/answers"), str(socket)]
    return subprocess.run(argv, capture_output=True, timeout=30).returncode
