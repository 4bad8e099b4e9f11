"""Imports point one way; the tree of DESIGN is enforced here, not hoped for."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = {
    "accounts", "builds", "clock", "deployments", "domains", "engines", "environment", "errors", "gpus", "hardware",
    "housekeeping", "lease", "lifecycle", "models", "names", "planning", "ports", "quotas", "reconciler", "routing",
    "secrets", "settings", "space_directory", "space_settings", "space_writes", "spaces", "storage", "store", "sweep",
    "traffic", "volumes",
}  # fmt: skip

ADAPTERS = "spaces_platform.adapters"
OWN_ADAPTERS = {
    "spaces_platform/worker.py": "is Celery's own process",
    "spaces_platform/cli/run_local.py": "runs one app without a platform",
    "spaces_platform/cli/doctor/engine.py": "starts a container with the runtime that was chosen",
    "spaces_platform/cli/doctor/machine.py": "tries what this machine gives them",
    "spaces_platform/cli/doctor/network.py": "tries what this machine gives them",
}
"""Outside `wiring/`: who needs one certain adapter, whatever the settings say, and why."""

FORBIDDEN = [
    # (files, prefixes they must not import, why)
    ("runtime_images/**/*.py", ("builders", "spaces_platform"), "runtime images stand alone"),
    ("builders/**/*.py", ("spaces_platform",), "builders know nothing of users, databases or HTTP"),
    ("builders/**/*.py", ("fastapi", "sqlmodel", "sqlalchemy"), "builders know nothing of users, databases or HTTP"),
    ("spaces_platform/lifecycle.py", ("spaces_platform", "builders", "sqlmodel"), "the state machine is pure"),
    (
        "spaces_platform/adapters/**/*.py",
        ("spaces_platform.api", "spaces_platform.web", "spaces_platform.models", "spaces_platform.store",
         "spaces_platform.spaces", "spaces_platform.space_directory", "spaces_platform.space_settings",
         "spaces_platform.space_writes", "spaces_platform.reconciler", "spaces_platform.builds",
         "spaces_platform.platform", "spaces_platform.wiring"),
        "adapters know ports and builders only",
    ),
    (
        "spaces_platform/gateway/**/*.py",
        ("spaces_platform.api", "spaces_platform.store", "spaces_platform.models", "spaces_platform.spaces",
         "spaces_platform.space_directory", "spaces_platform.space_settings", "spaces_platform.space_writes",
         "spaces_platform.platform", "spaces_platform.wiring", "sqlmodel", "fastapi", "builders"),
        "the data plane needs no control plane",
    ),
    ("spaces_platform/api/**/*.py", ("spaces_platform.wiring",), "the doors are given a platform that is wired"),
    ("spaces_platform/web/**/*.py", ("spaces_platform.wiring",), "the doors are given a platform that is wired"),
    (
        "spaces_platform/platform.py",
        ("spaces_platform.wiring", "spaces_platform.api", "spaces_platform.web", "spaces_platform.gateway",
         "spaces_platform.cli", "fastapi"),
        "the platform knows neither how it was wired nor its doors",
    ),
    (
        "spaces_platform/space_directory.py",
        ("spaces_platform.spaces", "spaces_platform.space_settings", "spaces_platform.space_writes"),
        "who reads needs nothing of who writes",
    ),
    *((f"spaces_platform/{name}.py", ("spaces_platform.platform", "spaces_platform.wiring", "spaces_platform.api",
                                      "spaces_platform.web", "spaces_platform.gateway", "spaces_platform.cli",
                                      "fastapi"),
       "use cases know neither their doors nor their technologies") for name in sorted(CORE)),
]  # fmt: skip


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize(("files", "banned", "why"), FORBIDDEN, ids=[f"{f}-{b[0]}" for f, b, _ in FORBIDDEN])
def test_imports_point_one_way(files: str, banned: tuple[str, ...], why: str) -> None:
    paths = list(ROOT.glob(files))
    assert paths, "a rule of nothing"
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in paths
        for name in imports_of(path)
        if any(name == b or name.startswith(f"{b}.") for b in banned)
    ]
    assert not wrong, f"{why}: {wrong}"


def test_only_wiring_chooses_adapters() -> None:
    package = ROOT / "spaces_platform"
    found = {
        path.relative_to(ROOT).as_posix()
        for path in package.rglob("*.py")
        if package / "adapters" not in path.parents and package / "wiring" not in path.parents
        if any(name == ADAPTERS or name.startswith(f"{ADAPTERS}.") for name in imports_of(path))
    }
    assert found == set(OWN_ADAPTERS)


def test_only_settings_reads_the_environment() -> None:
    """Platform modules take settings; the command line and the adapters that start children may look further."""
    allowed = {"settings.py", "supervisor.py"}
    package = ROOT / "spaces_platform"
    for path in (*package.glob("*.py"), *package.glob("wiring/*.py")):
        if path.name in allowed:
            continue
        names = {
            node.attr for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os"
        }  # fmt: skip
        assert not names & {"environ", "getenv"}, f"{path.name} reads the environment"
