"""Every derived name: slugs, hosts, loopback addresses, and which names users may take. Pure."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable

import idna

from spaces_platform.errors import Invalid

RESERVED_ACCOUNTS = frozenset(
    [
        "api",
        "apps",
        "assets",
        "auth",
        "by-subdomain",
        "collections",
        "datasets",
        "docs",
        "git",
        "gateway",
        "hardware",
        "healthz",
        "helm",
        "internal",
        "join",
        "login",
        "logout",
        "metrics",
        "models",
        "new",
        "oauth",
        "organizations",
        "papers",
        "platform",
        "pricing",
        "readyz",
        "registry",
        "resolve",
        "root",
        "search",
        "semantic-search",
        "settings",
        "signup",
        "spaces",
        "static",
        "status",
        "system",
        "templates",
        "terms",
        "tree",
        "users",
        "webhooks",
        "www",
        "zero-gpu",
    ]
)
"""Names that stand, or may one day stand, for a page or an API of the platform."""

RESERVED_LABELS = frozenset({"www", "api", "git", "admin", "registry", "localhost", "spaces", "apps", "static", "mail"})
MAX_LABEL = 63
"""RFC 1035 section 2.3.4."""

MAX_DOMAIN = 240
"""RFC 1035 allows 253; the challenge's own label needs the rest."""

_DOMAIN = re.compile(r"([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])\Z")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,96}\Z")
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,127}\Z")


def check_repo_name(name: str) -> str:
    """The rule of the Hub's clients (`huggingface_hub.utils.validate_repo_id`) for one segment. Raises Invalid."""
    if not _NAME.match(name):
        raise Invalid(f"The name {name[:120]!r} is not valid: use 1 to 96 letters, digits, '-', '_' or '.'.")
    if "--" in name or ".." in name or name[0] in "-." or name[-1] in "-." or name.endswith(".git"):
        raise Invalid(
            f"The name {name!r} is not valid: no '--' or '..', no '-' or '.' at either end, and not '.git' at the end."
        )
    return name


def check_account_name(name: str) -> str:
    """A user's or an organisation's name: a repository name that is not reserved. Raises Invalid."""
    check_repo_name(name)
    if name.lower() in RESERVED_ACCOUNTS:
        raise Invalid(f"The name {name!r} is reserved by the platform; choose another.")
    if len(name) > 42:
        raise Invalid(f"The account name {name!r} is longer than 42 characters.")
    return name


def check_setting_key(key: str) -> str:
    """A variable's or secret's name, as the Hub has it. Raises Invalid."""
    if not _KEY.match(key):
        raise Invalid(
            f"The key {key[:140]!r} is not valid: letters, digits and '_', beginning with a letter, at most 128."
        )
    return key


def slug(owner: str, name: str, *, salt: str = "") -> str:
    """One DNS label for a Space: `{owner}-{name}` lower-cased, other characters as `-`.

    Different Spaces may have the same plain slug (`a-b/c`, `a/b-c`): the caller stores slugs uniquely and asks again
    with a salt, which appends a short hash. Too long or reserved slugs carry the hash from the start.
    """
    plain = re.sub(r"-+", "-", re.sub(r"[^a-z0-9]", "-", f"{owner}-{name}".lower())).strip("-") or "space"
    if salt or len(plain) > MAX_LABEL or plain in RESERVED_LABELS or plain.startswith("xn-"):
        mark = hashlib.sha256(f"{owner}/{name}/{salt}".lower().encode()).hexdigest()[:8]
        plain = f"{plain[: MAX_LABEL - 9].strip('-')}-{mark}"
        if plain.startswith("xn-"):
            plain = f"s{plain[2:]}"
    return plain


def loopback_address(space_id: int) -> str:
    """An address of 127.64.0.0/10 for one Space; injective for the first four million.

    Clients whose resolver does not know `*.localhost` (Python, Node) reach the app by it, and cookies and origins of
    two Spaces still differ, as they would not by port or path.
    """
    n, last = divmod(space_id, 254)
    n, third = divmod(n, 254)
    if n >= 64:
        raise Invalid(f"There is no loopback address left for Space {space_id}.")
    return f"127.{64 + n}.{third + 1}.{last + 1}"


def check_domain(text: str, reserved: Iterable[str]) -> str:
    """Somebody's own domain in the form that host names are compared in: ASCII, lower-case. Raises Invalid.

    Refused: addresses, wildcards, single labels, what no public DNS has, and every name of `reserved` or below one of
    them. International names are taken as browsers take them (UTS 46, IDNA 2008).
    """
    shown = text.strip()[:260]
    if "*" in shown:
        raise Invalid(f"The domain {shown!r} is a wildcard; add each name by itself.")
    try:
        name = idna.encode(shown.removesuffix("."), uts46=True).decode("ascii").lower()
    except idna.IDNAError as exc:
        raise Invalid(f"The domain {shown!r} is not a domain name: {exc}.") from exc
    if not _DOMAIN.match(name) or len(name) > MAX_DOMAIN or _is_address(name):
        raise Invalid(f"The domain {shown!r} is not a domain name such as app.example.org.")
    for other in (*reserved, "localhost"):
        if name == other or name.endswith(f".{other}"):
            raise Invalid(f"The domain {shown!r} belongs to the platform ({other}); add one of your own.")
    return name


def _is_address(name: str) -> bool:
    """Also in the short and numeric forms that resolvers take: `127.1`, `0x7f.1`."""
    last = name.rpartition(".")[2]
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return last.isdigit() or last.startswith("0x")
    return True


def shown_domain(name: str) -> str:
    """A domain as people write it, for showing only."""
    try:
        return idna.decode(name)
    except idna.IDNAError:
        return name


def public_id(number: int) -> str:
    """The 24 hex digits that the Hub's clients know as `_id`."""
    return f"{number:024x}"
