"""Host routing is a function of the normalised host name, and of nothing else (T16)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spaces_platform.gateway.dispatch import reaches_internal
from spaces_platform.gateway.grammar import normalise_host
from spaces_platform.gateway.routes import RouteTable, parse_entry
from tests.gateway.harness import platform, run

ENTRY = {"space": 1, "version": 1, "name": "a/b-c", "hosts": ["a-b-c.localhost"], "stage": "RUNNING", "public": True}


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        (b"A-B.LocalHost", b"a-b.localhost"),
        (b"a-b.localhost.", b"a-b.localhost"),
        (b"a-b.localhost:80", b"a-b.localhost"),
        (b"a-b.localhost.:80", b"a-b.localhost"),
        (b"127.0.0.1:7860", b"127.0.0.1"),
        (b"[::1]:7860", b"[::1]"),
        (b"[::1]", b"[::1]"),
        (b"a-b.localhost..", b"a-b.localhost."),
        (b"", None),
        (b":80", None),
        (b".", None),
        (b"a b", None),
        (b"a/b", None),
        (b"a@b", None),
        (b"a:b", None),
        (b"a:80:80", None),
        (b"a:", None),
        (b"a:99999", None),
        (b"a,b", None),
        (b"\xc3\xa9.localhost", None),
        (b"a%2eb", None),
        (b"a\\b", None),
        (b"[::1", None),
        (b"-a.localhost", None),
    ],
)
def test_normal_form(sent: bytes, name: bytes | None) -> None:
    assert normalise_host(sent) == name


_label = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)


@settings(max_examples=300, deadline=None)
@given(
    names=st.lists(_label, min_size=1, max_size=8, unique=True),
    pick=st.integers(0, 7),
    capitals=st.integers(0, 2**16),
    dot=st.booleans(),
    port=st.one_of(st.none(), st.integers(0, 65535)),
    stranger=_label,
)
def test_a_spelling_reaches_the_space_of_its_name_and_no_other(
    names: list[str], pick: int, capitals: int, dot: bool, port: int | None, stranger: str
) -> None:
    table = RouteTable(["localhost", "127.0.0.1", "[::1]"])
    for number, name in enumerate(names):
        table.apply(parse_entry({**ENTRY, "space": number, "name": f"u/{name}", "hosts": [f"{name}.localhost"]}))
    wanted = pick % len(names)
    host = f"{names[wanted]}.localhost"
    host = "".join(c.upper() if capitals >> (i % 16) & 1 else c for i, c in enumerate(host))
    host += "." if dot else ""
    host += "" if port is None else f":{port}"
    normal = normalise_host(host.encode())
    assert normal is not None
    found = table.find(normal)
    assert found is not None
    assert found.space == wanted
    other = normalise_host(f"{stranger}.localhost".encode())
    assert other is not None
    assert (table.find(other) is None) == (stranger not in names)


def test_a_space_cannot_take_a_name_of_the_platform_or_keep_one_it_lost() -> None:
    table = RouteTable(["localhost", "spaces.example.org"])
    table.apply(parse_entry({**ENTRY, "hosts": ["spaces.example.org", "x.localhost"]}))
    assert table.find(b"spaces.example.org") is None
    table.apply(parse_entry({**ENTRY, "space": 2, "hosts": ["x.localhost"]}))
    table.apply(parse_entry({**ENTRY, "hosts": ["y.localhost"]}))
    found = table.find(b"x.localhost")
    assert found is not None
    assert found.space == 2
    table.apply(parse_entry({**ENTRY, "space": 2, "hosts": []}), gone=True)
    assert table.find(b"x.localhost") is None


@pytest.mark.parametrize(
    ("path", "internal"),
    [
        (b"/internal/gateway/routes", True),
        (b"/internal", True),
        (b"//internal/x", True),
        (b"/./internal/x", True),
        (b"/a/../internal/x", True),
        (b"/%69nternal/x", True),
        (b"/%2569nternal/x", True),
        (b"/INTERNAL/x", True),
        (b"/internal%2fgateway", True),
        (b"/%2e/internal", True),
        (b"/internal;x/gateway", True),
        (b"\\internal/x", True),
        (b"/api/internal/x", False),
        (b"/internals/x", False),
        (b"/spaces/internal/x", False),
        (b"/", False),
        (b"/a%20b", False),
    ],
)
def test_internal_paths_in_any_spelling(path: bytes, internal: bool) -> None:
    assert reaches_internal(path) is internal


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {**ENTRY, "hosts": ["a b"]},
        {**ENTRY, "hosts": ["é.localhost"]},
        {**ENTRY, "headers": {"x": "a\r\nb"}},
        {**ENTRY, "headers": {"": "a"}},
        {**ENTRY, "progress": "x"},
        {**ENTRY, "space": "x"},
    ],
)
def test_entries_that_cannot_be_used_say_so(raw: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        parse_entry(raw)


def test_requests_for_strange_hosts() -> None:
    async def scenario() -> None:
        async with platform() as p:
            await p.app(1, redirects=["old-name.localhost"], page="http://localhost:7860/spaces/user/app1")
            status, fields, _ = await p.get("old-name.localhost:7860", "/x?y=1")
            assert (status, fields["location"]) == (308, "http://user-app1.localhost:7860/x?y=1")
            for path in ("/internal/gateway/wake", "/%69nternal/gateway/wake", "//internal/"):
                assert (await p.get("localhost", path, method="POST"))[0] == 404
            assert p.control.seen == []
            status, fields, body = await p.get("evil.example", "/", "X-Forwarded-Host: localhost", "Accept: text/html")
            assert (status, "location" in fields, b"evil.example" in body) == (404, False, False)
            assert (await p.get("user-app1.localhost", "/", method="TRACE"))[0] == 405
            await p.control.kill()
            status, fields, body = await p.get("localhost", "/", "Accept: text/html")
            assert (status, "retry-after" in fields) == (503, True)
            status, fields, body = await p.get("localhost", "/api/x")
            assert (status, fields["content-type"]) == (503, "application/json")
            assert (await p.get("user-app1.localhost", "/x"))[2] == b"app1:/x"

    run(scenario())
