"""The documents say what is so: settings, commands, files and links."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import typer.main
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from spaces_platform.cli import settings_table
from spaces_platform.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def test_configuration_lists_every_setting_as_it_is() -> None:
    fix = "python -m spaces_platform.cli.settings_table > docs/configuration.md"
    assert (ROOT / "docs" / "configuration.md").read_text() == settings_table.render(), f"make it anew: {fix}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_that_exist(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_and_options_that_documents_name_exist(path: Path) -> None:
    group = typer.main.get_command(app)
    for line in re.findall(r"(?:^|`|\$ |    |= )spaces ([a-z][^`\n]*)", path.read_text(), re.MULTILINE):
        words = line.split()
        command = group.commands.get(words[0])  # type: ignore[attr-defined]
        assert command is not None, f"{path.name}: spaces {words[0]}"
        if hasattr(command, "commands") and len(words) > 1:
            command = command.commands.get(words[1])
            assert command is not None, f"{path.name}: spaces {' '.join(words[:2])}"
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for word in words[1:]:
            if re.fullmatch(r"--?[a-z][a-z-]*", word.partition("=")[0]):
                assert word.partition("=")[0] in known, f"{path.name}: spaces {line}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_make_targets_that_documents_name_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in re.findall(r"(?:`|^ {4}|^)make ([a-z-]+)", path.read_text(), re.MULTILINE):
        assert target in targets, f"{path.name}: make {target}"


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-single-host.lock", "requirements-dev.lock"])
def test_locks_pin_by_hash_and_name_no_index(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "://" not in text
    assert not re.search(r"^--|index", text, re.MULTILINE)
    entries = re.split(r"\n(?=\S)", text.strip())
    assert all("==" in entry and "--hash=sha256:" in entry for entry in entries)


@pytest.mark.parametrize(
    ("name", "extras"),
    [
        ("requirements.lock", ()),
        ("requirements-single-host.lock", ("single-host",)),
        ("requirements-dev.lock", ("dev", "single-host")),
    ],
)
def test_locks_hold_every_dependency(name: str, extras: tuple[str, ...]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    locked = {
        canonicalize_name(found) for found in re.findall(r"^([\w.-]+)==", (ROOT / name).read_text(), re.MULTILINE)
    }
    missing = {canonicalize_name(Requirement(line).name) for line in asked} - locked
    assert not missing, "run `make lock`"
