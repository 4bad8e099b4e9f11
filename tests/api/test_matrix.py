"""Every documented route, asked by everybody: no fault of ours, no undocumented answer, no door left open."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.api.conftest import Caller, World

PATHS = {
    "owner": "alice", "name": "app", "rev": "main", "path": "README.md", "id": "1", "branch": "x", "tag": "x",
    "org": "alice", "user": "bob", "username": "alice", "organization": "alice", "subdomain": "alice-app",
    "topic": "a/b", "snapshot": "20200101T000000000000Z",
}  # fmt: skip
WHO = (None, "bob", "alice:read", "alice", "admin")
OPEN_WRITES = {"/api/validate-yaml", "/api/platform/session", "/api/platform/spaces/{owner}/{name}/wake"}
"""Unsafe methods that the anonymous may use on purpose: they read, sign in or out, or do what a visit does."""
STREAMS = ("/events", "/logs/build", "/logs/run")


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if path.startswith(("/api/", "/healthz", "/readyz", "/metrics", "/login/link"))
    ]


def filled(path: str) -> str:
    for name, value in PATHS.items():
        path = path.replace("{" + name + "}", value)
    return path


def test_the_document_is_whole(call: Caller) -> None:
    document = call("GET", "/openapi.json", who=None).json()
    found = operations(document)
    assert len(found) > 70
    text = json.dumps(document)
    assert "/internal/" not in text
    assert "HTTPValidationError" not in text
    for path, method, operation in found:
        assert operation.get("summary"), (method, path)
        assert operation.get("tags"), (method, path)
        assert "422" not in operation["responses"]
        if "/spaces/{owner}/{name}" in path:
            assert operation["security"], (method, path)


@pytest.mark.parametrize("visibility", ["public", "private"])
def test_nobody_gets_an_undocumented_answer(call: Caller, world: World, visibility: str) -> None:
    world.space(visibility=visibility)
    document = call("GET", "/openapi.json", who=None).json()
    for path, method, operation in operations(document):
        if path.endswith(STREAMS) or method in ("delete", "head") or path.endswith("/session"):
            continue
        for who in WHO:
            answer = call(method.upper(), filled(path), who=who, json={} if method != "get" else None)
            case = (method, path, who, answer.text[:200])
            assert answer.status_code != 500, case
            assert str(answer.status_code) in {*operation["responses"], "307"}, case
            if answer.status_code >= 400 and path != "/readyz":
                body = answer.json()
                assert body.get("error") or body.get("errors") is not None, case
                assert answer.headers["x-request-id"], case
            if method != "get" and who is None and path not in OPEN_WRITES:
                # A body that is not valid is refused before or after the credentials are looked at; never accepted.
                assert answer.status_code in (400, 401, 403), case
            if "/spaces/{owner}/{name}" in path and visibility == "private" and who in (None, "bob"):
                assert answer.status_code in (401, 404, 400), case


def test_a_read_token_changes_nothing(call: Caller, world: World) -> None:
    space = world.space()
    before = world.directory.by_id(space.id or 0)
    cases: list[tuple[str, str, dict[str, object] | None]] = [
        ("POST", "restart", None), ("POST", "pause", None), ("POST", "hardware", {"flavor": "cpu-basic"}),
        ("POST", "storage", {"tier": "small"}), ("DELETE", "storage", None),
        ("POST", "sleeptime", {"seconds": 60}), ("POST", "secrets", {"key": "A", "value": "1"}),
        ("DELETE", "secrets", {"key": "A"}), ("POST", "variables", {"key": "A", "value": "1"}),
        ("DELETE", "variables", {"key": "A"}), ("PUT", "settings", {"private": True}),
        ("POST", "preupload/main", {"files": []}), ("POST", "commit/main", None), ("POST", "branch/x", None),
        ("DELETE", "branch/x", None), ("POST", "tag/main", {"tag": "v"}), ("DELETE", "tag/v", None),
        ("GET", "secrets", None), ("GET", "variables", None), ("GET", "logs/build", None),
        ("GET", "auth-check/write", None),
    ]  # fmt: skip
    for who in ("alice:read", "bob", "admin:read"):
        for method, path, body in cases:
            answer = call(method, f"/api/spaces/alice/app/{path}", who=who, json=body)
            assert answer.status_code == 403, (who, method, path)
            assert answer.headers["x-error-message"]
    after = world.directory.by_id(space.id or 0)
    assert (after.generation, after.desired, after.visibility) == (before.generation, before.desired, before.visibility)
