from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces_platform.errors import Invalid
from spaces_platform.names import RESERVED_LABELS, check_account_name, check_repo_name, loopback_address, slug

NAME = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,40}[A-Za-z0-9]", fullmatch=True)


@given(NAME, NAME)
def test_a_slug_is_one_dns_label(owner: str, name: str) -> None:
    for salt in ("", "7"):
        label = slug(owner, name, salt=salt)
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", label)
        assert label not in RESERVED_LABELS
        assert not label.startswith("xn-")


@given(NAME, NAME, NAME, NAME)
def test_salted_slugs_of_different_spaces_differ(a: str, b: str, c: str, d: str) -> None:
    if (a.lower(), b.lower()) != (c.lower(), d.lower()):
        assert slug(a, b, salt="1") != slug(c, d, salt="1")


@pytest.mark.parametrize(
    ("owner", "name", "expected"),
    [
        ("microsoft", "TRELLIS.2", "microsoft-trellis-2"),
        ("user", "tmp_test_space", "user-tmp-test-space"),
        ("a-b", "c", "a-b-c"),
        ("a", "b-c", "a-b-c"),
    ],
)
def test_slugs_as_people_know_them(owner: str, name: str, expected: str) -> None:
    assert slug(owner, name) == expected


def test_loopback_addresses_are_injective_and_never_the_machines_own() -> None:
    numbers = [*range(1, 70_000), 3_999_999]
    addresses = {loopback_address(n) for n in numbers}
    assert len(addresses) == len(numbers)
    for address in addresses:
        parts = [int(p) for p in address.split(".")]
        assert parts[0] == 127
        assert 64 <= parts[1] < 128
        assert 1 <= parts[2] <= 254
        assert 1 <= parts[3] <= 254


@pytest.mark.parametrize(
    "name", ["", "-a", "a-", ".a", "a.", "a--b", "a..b", "x.git", "a/b", "a b", "é", "a" * 97, "..", "a\n"]
)
def test_names_the_hub_refuses_are_refused(name: str) -> None:
    with pytest.raises(Invalid):
        check_repo_name(name)


@pytest.mark.parametrize("name", ["api", "API", "zero-gpu", "by-subdomain", "login", "a" * 43])
def test_accounts_cannot_take_what_the_platform_needs(name: str) -> None:
    with pytest.raises(Invalid):
        check_account_name(name)
