"""Index, mirror, proxies and certificates as secrets: the texts, and what a shell makes of them."""

from __future__ import annotations

import subprocess

import pytest

from runtime_images.network import CA, CA_VARIABLES, MOUNTS, Network, network, script

MIRROR = "http://mirror.corp/debian"
SECURITY = "http://mirror.corp/debian-security"


def test_nothing_set_is_an_empty_script_and_no_certificates() -> None:
    assert network({}).secrets() == {"network": b""}


def test_only_names_of_the_list_are_passed() -> None:
    environ = {"HTTPS_PROXY": "http://p:3128", "AWS_SECRET_ACCESS_KEY": "x", "PATH": "/bin", "NO_PROXY": ""}
    assert script(network(environ)) == "export HTTPS_PROXY=http://p:3128\n"


def test_an_index_of_the_arguments_wins_over_that_of_the_environment() -> None:
    told = network({"UV_INDEX_URL": "https://old", "PIP_INDEX_URL": "https://old"}, index="https://new/simple")
    assert told.variables == {"PIP_INDEX_URL": "https://new/simple", "UV_DEFAULT_INDEX": "https://new/simple"}


def test_certificates_are_named_to_every_program_and_to_apt() -> None:
    text = script(Network(ca=b"PEM"))
    for name in CA_VARIABLES:
        assert f"export {name}={CA}\n" in text
    assert 'Acquire::https::CAInfo "/run/secrets/ca";' in text
    assert "PEM" not in text
    assert Network(ca=b"PEM").secrets()["ca"] == b"PEM"
    assert "id=ca" in MOUNTS


def test_the_mirror_takes_the_place_of_all_sources_of_the_image() -> None:
    text = script(network({}, apt_mirror=f"{MIRROR}/ {SECURITY}/"))
    assert 'Dir::Etc::SourceList "/dev/shm/sources.list";' in text
    assert 'Dir::Etc::SourceParts "/dev/null";' in text
    assert text.endswith("export APT_CONFIG=/dev/shm/apt.conf\n")


@pytest.mark.parametrize("mirror", ["file:///srv", "http://a http://b http://c", "mirror.corp/debian", "http://a,b c"])
def test_what_is_no_mirror_is_refused(mirror: str) -> None:
    with pytest.raises(ValueError, match="apt mirror"):
        network({}, apt_mirror=mirror)


def run(text: str, more: str, folder: str) -> str:
    """What a shell prints that sources the script, with its files in another folder."""
    moved = text.replace("/dev/shm", folder).replace("/etc/os-release", f"{folder}/os-release")
    done = subprocess.run(["sh", "-euc", f"{moved}\n{more}"], capture_output=True, text=True, check=True, env={})
    return done.stdout


@pytest.mark.parametrize(
    ("release", "sources"),
    [
        (
            "ID=debian\nVERSION_CODENAME=trixie\n",
            [
                f"deb {MIRROR} trixie main",
                f"deb {MIRROR} trixie-updates main",
                f"deb {SECURITY} trixie-security main",
            ],
        ),
        (
            "ID=ubuntu\nVERSION_CODENAME=jammy\n",
            [f"deb {MIRROR} jammy{suite} main universe" for suite in ("", "-updates", "-security")],
        ),
    ],
)
def test_sources_are_of_the_release_of_the_image(release: str, sources: list[str], tmp_path: str) -> None:
    with open(f"{tmp_path}/os-release", "w") as file:
        file.write(release)
    text = script(network({}, apt_mirror=f"{MIRROR} {SECURITY}"))
    assert run(text, f"cat {tmp_path}/sources.list", str(tmp_path)).splitlines() == sources


def test_values_are_words_not_shell(tmp_path: str) -> None:
    nasty = "http://u:p'$(touch /tmp/x)\"`id`@proxy:1"
    assert run(script(network({"http_proxy": nasty})), 'printf %s "$http_proxy"', str(tmp_path)) == nasty
