from __future__ import annotations

from pathlib import Path

import pytest

from spaces_platform.errors import Invalid
from spaces_platform.settings import Settings


def test_the_environment_is_read_and_given_values_overrule_it() -> None:
    settings = Settings.load({"SPACES_PORT": "8000", "SPACES_DATA": "/tmp/x", "PATH": "/bin"}, port=9000, host=None)
    assert (settings.port, settings.data, settings.host) == (9000, Path("/tmp/x"), "127.0.0.1")
    assert settings.url == "http://localhost:9000"
    assert settings.app_url("a.localhost") == "http://a.localhost:9000/"


def test_a_misspelt_setting_is_an_error_that_names_the_right_one() -> None:
    with pytest.raises(Invalid, match="SPACES_BUILD_SLOTS"):
        Settings.load({"SPACES_BUILD_SLOT": "4"})


@pytest.mark.parametrize("given", [{"port": 0}, {"isolation": "maybe"}, {"build_slots": 0}])
def test_values_that_cannot_work_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(Invalid):
        Settings.load({}, **given)
    with pytest.raises(Invalid):
        Settings.load({"SPACES_PORT": "many"})


def test_only_named_variables_are_passed_on() -> None:
    settings = Settings.load({})
    passed = settings.passed_environment({"SSL_CERT_FILE": "/ca", "AWS_SECRET": "x", "HTTPS_PROXY": "http://p"})
    assert passed == {"SSL_CERT_FILE": "/ca", "HTTPS_PROXY": "http://p"}


def test_a_mode_sets_defaults_and_each_can_be_set_alone() -> None:
    host = Settings.load({"SPACES_MODE": "single-host"})
    assert (host.queue, host.builder, host.orchestrator) == ("celery", "docker", "docker")
    mixed = Settings.load({"SPACES_QUEUE": "threads"}, mode="single-host")
    assert (mixed.queue, mixed.builder, mixed.orchestrator) == ("threads", "docker", "docker")
    assert Settings.load({}).builder == "venv"


@pytest.mark.parametrize(
    "given", [{"mode": "cluster-of-one"}, {"queue": "rabbits"}, {"builder": "docker"}, {"orchestrator": "docker"}]
)
def test_modes_and_adapters_that_do_not_fit_are_refused(given: dict[str, str]) -> None:
    with pytest.raises(Invalid):
        Settings.load({}, **given)


@pytest.mark.parametrize(
    ("given", "has"),
    [
        ({}, True),
        ({"public_url": "http://localhost:8080"}, True),
        ({"public_url": "https://localhost"}, False),
        ({"apps_domain": "apps.example.org"}, False),
    ],
)
def test_loopback_addresses_are_for_localhost_without_tls(given: dict[str, str], has: bool) -> None:
    assert Settings.load({}, **given).has_loopback_addresses is has
