"""Answers of the gateway's own, as bytes.

Owns: the shape of a whole answer. Does not own: what it says (dispatch.py, pages.py) and when it is sent
(downstream.py).
Invariant: every answer states its length, so that a kept-alive connection stays in step.
"""

from __future__ import annotations

from collections.abc import Sequence

TEXT = b"text/plain; charset=utf-8"
_REASONS = {
    200: "OK", 202: "Accepted", 302: "Found", 308: "Permanent Redirect", 400: "Bad Request", 401: "Unauthorized",
    404: "Not Found", 405: "Method Not Allowed", 408: "Request Timeout", 414: "URI Too Long", 417: "Expectation Failed",
    421: "Misdirected Request", 429: "Too Many Requests", 431: "Request Header Fields Too Large", 502: "Bad Gateway",
    503: "Service Unavailable", 504: "Gateway Timeout", 505: "HTTP Version Not Supported",
}  # fmt: skip


def own_answer(
    status: int,
    fields: Sequence[tuple[bytes, bytes]],
    body: bytes,
    kind: bytes,
    *,
    keep: bool,
    one_dot_one: bool,
    head_only: bool,
) -> bytes:
    """One whole answer; `head_only` leaves the body out but states its length (HEAD)."""
    parts = [
        b"HTTP/1.1 %d %b\r\n" % (status, _REASONS.get(status, "Unknown").encode()),
        b"Content-Type: %b\r\nContent-Length: %d\r\n" % (kind, len(body)),
        *[b"%b: %b\r\n" % field for field in fields],
    ]
    if not keep:
        parts.append(b"Connection: close\r\n")
    elif not one_dot_one:
        parts.append(b"Connection: keep-alive\r\n")
    parts.append(b"\r\n")
    if not head_only:
        parts.append(body)
    return b"".join(parts)
