"""Addresses in answers: the platform's own base URL as the client knows it, and paths with `%2F` kept apart from `/`.

Owns how a request's host is believed and how percent-encoded slashes survive routing. Invariant: no URL in an answer
leads to a host that is not the platform's.
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import HTTPConnection

from spaces_platform.settings import Settings

MARK = "\x1f"
"""Stands for an encoded slash between the middleware, which decodes each segment, and the convertors below."""

_HOST = re.compile(r"(?P<name>[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?\Z")


class _Segment(Convertor[str]):
    """One path segment that may hold an encoded slash: a branch such as `feat%2Fx`."""

    regex = "[^/]+"

    def convert(self, value: str) -> str:
        return value.replace(MARK, "/")

    def to_string(self, value: str) -> str:
        return quote(value, safe="")


class _Tail(Convertor[str]):
    """The rest of the path, its slashes encoded or not."""

    regex = ".*"

    def convert(self, value: str) -> str:
        return value.replace(MARK, "/")

    def to_string(self, value: str) -> str:
        return quote(value)


register_url_convertor("rev", _Segment())
register_url_convertor("deep", _Tail())


def marked_path(raw: bytes) -> str:
    """The decoded path of a raw one, with MARK where a segment held an encoded slash."""
    return "/".join(unquote(part).replace("/", MARK) for part in raw.decode("latin-1").split("/"))


def base_url(request: HTTPConnection, settings: Settings) -> str:
    """Without a slash at its end. From the request's own host where that is one of the platform's.

    huggingface_hub refuses answers whose URLs are not below the endpoint that it called (HfUriError).
    """
    host = request.headers.get("x-forwarded-host", "").split(",")[0].strip() or request.headers.get("host", "")
    match = _HOST.match(host)
    if match is None or match["name"].lower() not in settings.platform_hosts:
        return settings.url
    proto = request.headers.get("x-forwarded-proto", "").split(",")[0].strip().lower()
    return f"{proto if proto in ('http', 'https') else 'http'}://{host}"


def moved_path(raw: bytes, owner: str, name: str) -> str:
    """`…/spaces/{old owner}/{old name}…` with the two segments after `spaces` replaced. Keeps all else as it came."""
    parts = raw.decode("latin-1").split("/")
    at = parts.index("spaces") + 1
    parts[at], parts[at + 1] = quote(owner, safe=""), quote(name, safe="")
    return "/".join(parts)
