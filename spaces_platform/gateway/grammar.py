"""HTTP/1 message heads and chunked bodies, read by a white list (RFC 9110 5, RFC 9112 2 to 7).

Owns: what a well-formed head is, where a message ends, and what each field means for framing. Does not own: which
fields go on to an app (hygiene.py) and who answers (dispatch.py).

A head is accepted only if the whole of it matches one regular expression over the raw bytes; there is no second
reading that could disagree with the first. So bare LF or CR, NUL, line folding, a space before a colon and empty
names have no way in: nothing is repaired. llhttp accepts some of them silently and does not say where a message ends
inside a buffer, which pipelining needs; it and h11 serve as second opinions in the tests instead.
Invariant: every accepted message has exactly one possible length.
"""

from __future__ import annotations

import re
from collections.abc import Sequence, Set

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_TEXT = rb"[\t\x20-\x7e\x80-\xff]"
_FIELDS = rb"((?:" + _TOKEN + rb"++:" + _TEXT + rb"*+\r\n)*+)\r\n"
_REQUEST = re.compile(rb"(" + _TOKEN + rb"{1,24}) ([\x21\x22\x24-\x7e]++) HTTP/1\.([01])\r\n" + _FIELDS)
_RESPONSE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])( " + _TEXT + rb"*+)?\r\n" + _FIELDS)
_FIELD = re.compile(rb"(([^:]++):([^\r]*+)\r\n)")
_BROKEN = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)|\x00")
_OTHER_VERSION = re.compile(rb"[^\r\n]* HTTP/[0-9]+(?:\.[0-9]+)?\r\n")
_HOST = re.compile(rb"([A-Za-z0-9](?:[A-Za-z0-9._-]{0,252})|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?")
_ABSOLUTE = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?://([^/?@\\]++)(.*)", re.DOTALL)
_TRAILERS = re.compile(rb"(?:" + _TOKEN + rb"++:" + _TEXT + rb"*+\r\n)*+\r\n")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e]*)?\r\n")

MAX_CHUNK_LINE = 280
"""A size of 15 digits and at most 256 bytes of extension."""
MAX_TRAILER_BYTES = 8_192
CHUNKED = -1
"""Body length of a message in chunked coding."""
UNTIL_CLOSE = -2
"""Body length of a response that ends with its connection."""
IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"})
"""Methods of requests that may be sent a second time (RFC 9110 9.2.2)."""


class Refused(Exception):
    """A message that is not well-formed; the connection it came on cannot be used any longer."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


# What a field name means to the gateway; PASS: nothing, it goes on as it is. Plain numbers, because reading an enum's
# member costs more than matching a whole field.
_PASS, _DROP, _HOST_FIELD, _CONTENT_LENGTH, _TRANSFER_ENCODING, _CONNECTION, _UPGRADE, _EXPECT = range(8)
_COOKIE, _AUTHORIZATION, _HUB_AUTHORIZATION, _FORWARDED_FOR, _FORWARDED_PROTO, _SET_COOKIE = range(8, 14)
_FRAME_OPTIONS, _REFUSE = 14, 15

_HOP = (b"keep-alive", b"te", b"trailer", b"http2-settings", b"proxy")
_REQUEST_NAMES = {
    b"host": _HOST_FIELD,
    b"content-length": _CONTENT_LENGTH,
    b"transfer-encoding": _TRANSFER_ENCODING,
    b"connection": _CONNECTION,
    b"upgrade": _UPGRADE,
    b"expect": _EXPECT,
    b"cookie": _COOKIE,
    b"authorization": _AUTHORIZATION,
    b"x-hf-authorization": _HUB_AUTHORIZATION,
    b"x-forwarded-for": _FORWARDED_FOR,
    b"x-forwarded-proto": _FORWARDED_PROTO,
    b"forwarded": _DROP,
    b"x-real-ip": _DROP,
    **dict.fromkeys(_HOP, _DROP),
}
_PREFIXES = (b"x-forwarded-", b"proxy-", b"x-spaces-")
_RESPONSE_NAMES = {
    b"content-length": _CONTENT_LENGTH,
    b"transfer-encoding": _TRANSFER_ENCODING,
    b"connection": _CONNECTION,
    b"upgrade": _UPGRADE,
    b"set-cookie": _SET_COOKIE,
    b"x-frame-options": _FRAME_OPTIONS,
    **dict.fromkeys(_HOP, _DROP),
}
_MEMO_MAX = 4_096
_request_memo: dict[bytes, int] = {}
"""Field names as they were spelt; bounded, since visitors choose them."""
_response_memo: dict[bytes, int] = {}


def _request_field(name: bytes) -> int:
    low = name.lower()
    found = _REQUEST_NAMES.get(low, _PASS)
    if found == _PASS and low.startswith(_PREFIXES):
        found = _DROP
    if found == _PASS and b"_" in low:
        # CGI and WSGI hand `X_Forwarded_For` and `X-Forwarded-For` to an app as one variable.
        twin = low.replace(b"_", b"-")
        if twin in _REQUEST_NAMES or twin.startswith(_PREFIXES):
            found = _REFUSE
    return _remember(_request_memo, name, found)


def _response_field(name: bytes) -> int:
    low = name.lower()
    found = _RESPONSE_NAMES.get(low, _DROP if low.startswith(b"proxy-") else _PASS)
    return _remember(_response_memo, name, found)


def _remember(memo: dict[bytes, int], name: bytes, kind: int) -> int:
    if len(memo) >= _MEMO_MAX:
        memo.clear()
    memo[name] = kind
    return kind


class Request:
    """One parsed request head."""

    # Defaults of the class: setting a dozen attributes per request is what would cost most here.
    plain = b""
    """The fields that may go on as they are; the others are apart."""
    host = b""
    length = 0
    """Bytes of the body, or CHUNKED."""
    expect = False
    websocket = False
    cookies: Sequence[bytes] = ()
    authorization: bytes | None = None
    hub_authorization: bytes | None = None
    forwarded_for: bytes | None = None
    forwarded_proto: bytes | None = None

    def __init__(self, method: bytes, target: bytes, one_dot_one: bool, block: bytes, size: int) -> None:
        self.method = method
        self.target = target
        self.one_dot_one = one_dot_one
        self.keep_alive = one_dot_one
        self.size = size
        self.block = block
        """The field lines as they came."""

    @property
    def path(self) -> bytes:
        return self.target.partition(b"?")[0]

    @property
    def query(self) -> bytes:
        return self.target.partition(b"?")[2]

    @property
    def after_target(self) -> bytes:
        """The bytes of the head behind its target, as they came."""
        return (b" HTTP/1.1\r\n" if self.one_dot_one else b" HTTP/1.0\r\n") + self.block + b"\r\n"

    @property
    def fields(self) -> list[tuple[bytes, bytes]]:
        """Every field as it came: its name and its value."""
        return [(name, value.strip(b" \t")) for _, name, value in _FIELD.findall(self.block)]

    def field(self, name: bytes) -> bytes:
        """Value of the first field of that (lower-case) name, or nothing."""
        return next((value for key, value in self.fields if key.lower() == name), b"")


def parse_request(data: bytes, limits: tuple[int, int, int]) -> Request | None:
    """The request head at the start of `data`, or None while it may still become one. Raises Refused.

    `limits`: bytes of the head, number of fields, bytes of the target.
    """
    max_bytes, max_fields, max_target = limits
    match = _REQUEST.match(data)
    if match is None:
        _refuse_incomplete(data, max_bytes)
        return None
    method, target, minor, block = match.groups()
    size = match.end()
    if size > max_bytes:
        raise Refused(431, "The request's headers are too large.")
    if len(target) > max_target:
        raise Refused(414, "The request's address is too long.")
    fields = _FIELD.findall(block)
    if len(fields) > max_fields:
        raise Refused(431, "The request has too many header fields.")
    request = Request(method, target, minor == b"1", block, size)
    _sort_request(request, fields)
    if target[0] != 47:
        _absolute_form(request)
    return request


def _refuse_incomplete(data: bytes, max_bytes: int) -> None:
    """Tell a head that is still arriving from one that can never be right."""
    if b"\r\n\r\n" in data or _BROKEN.search(data):
        if _OTHER_VERSION.match(data) and not _BROKEN.search(data.partition(b"\r\n")[0]):
            version = data.partition(b"\r\n")[0].rpartition(b" HTTP/")[2]
            if version not in (b"1.0", b"1.1"):
                raise Refused(505, "Only HTTP/1.0 and HTTP/1.1 are spoken here.")
        raise Refused(400, "The request is not well-formed HTTP.")
    if len(data) > max_bytes:
        raise Refused(431, "The request's headers are too large.")


def _sort_request(request: Request, fields: list[tuple[bytes, bytes, bytes]]) -> None:
    memo = _request_memo
    lines: list[bytes] = []
    hosts = 0
    length: bytes | None = None
    coding: bytes | None = None
    connection = upgrade = b""
    for line, name, value in fields:
        kind = memo.get(name)
        if kind == 0:
            lines.append(line)
            continue
        if kind is None:
            kind = _request_field(name)
        if not kind:
            lines.append(line)
        elif kind == _HOST_FIELD:
            hosts += 1
            request.host = value.strip(b" \t")
        elif kind == _CONNECTION:
            connection += b"," + value.strip(b" \t").lower()
        elif kind == _COOKIE:
            request.cookies = (*request.cookies, value.strip(b" \t"))
        elif kind == _CONTENT_LENGTH:
            if length is not None:
                raise Refused(400, "The request states its length more than once.")
            length = value.strip(b" \t")
        elif kind == _TRANSFER_ENCODING:
            if coding is not None:
                raise Refused(400, "The request states its transfer coding more than once.")
            coding = value.strip(b" \t").lower()
        elif kind == _UPGRADE:
            upgrade = value.strip(b" \t").lower()
        elif kind != _DROP:
            _rare_field(request, kind, value.strip(b" \t"))
    request.plain = b"".join(lines)
    if hosts != 1:
        raise Refused(400, "The request must have exactly one Host field.")
    if length is not None or coding is not None:
        request.length = _request_length(length, coding, request.one_dot_one)
    if connection == b",keep-alive":
        request.keep_alive = True
    elif connection:
        _connection(request, connection, upgrade)


def _rare_field(request: Request, kind: int, value: bytes) -> None:
    if kind == _REFUSE:
        raise Refused(400, "The request has a header field with an underscore that stands for another field.")
    if kind == _EXPECT:
        if value.lower() != b"100-continue":
            raise Refused(417, "Only Expect: 100-continue is understood.")
        request.expect = True
    elif kind == _AUTHORIZATION:
        if request.authorization is not None:
            raise Refused(400, "The request has more than one Authorization field.")
        request.authorization = value
    elif kind == _HUB_AUTHORIZATION:
        request.hub_authorization = value
    elif kind == _FORWARDED_FOR:
        request.forwarded_for = value
    elif kind == _FORWARDED_PROTO:
        request.forwarded_proto = value


def _request_length(length: bytes | None, coding: bytes | None, one_dot_one: bool) -> int:
    if coding is not None:
        if length is not None:
            raise Refused(400, "The request has both Transfer-Encoding and Content-Length.")
        if coding != b"chunked" or not one_dot_one:
            raise Refused(400, "The only transfer coding taken is chunked, in HTTP/1.1.")
        return CHUNKED
    if length is None or not length.isdigit() or len(length) > 15:
        raise Refused(400, "The request's Content-Length is not a number.")
    return int(length)


def _connection(request: Request, connection: bytes, upgrade: bytes) -> None:
    options = {option.strip(b" \t") for option in connection.split(b",")}
    if b"close" in options:
        request.keep_alive = False
    elif b"keep-alive" in options:
        request.keep_alive = True
    if b"upgrade" in options and upgrade == b"websocket" and request.one_dot_one:
        if request.method != b"GET" or request.length:
            raise Refused(400, "A WebSocket is opened by a GET without a body.")
        request.websocket = True
    named = options - {b"", b"close", b"keep-alive", b"upgrade"}
    if named:
        request.plain = without_fields(request.plain, named)


def _absolute_form(request: Request) -> None:
    """Turn `http://host/path` into `/path`; the two hosts must agree (RFC 9112 3.2.2 would let the target win)."""
    if request.target == b"*" and request.method == b"OPTIONS":
        return
    match = _ABSOLUTE.fullmatch(request.target)
    if match is None:
        raise Refused(400, "The request's address must be a path.")
    if match[1].lower() != request.host.lower():
        raise Refused(400, "The request's address and its Host field name two different hosts.")
    rest = match[2]
    request.target = rest if rest[:1] == b"/" else b"/" + rest


def normalise_host(host: bytes) -> bytes | None:
    """Lower case, without port and without one trailing dot; None for what is no host name."""
    match = _HOST.fullmatch(host)
    if match is None or (match[2] and int(match[2]) > 65535):
        return None
    name = match[1].lower()
    return name[:-1] if name.endswith(b".") else name


class Response:
    """One parsed response head."""

    plain = b""
    """The fields that go on as they are, Content-Length among them."""
    cookies: Sequence[bytes] = ()
    frame_options: bytes | None = None
    upgrade = b""

    def __init__(self, status: int, reason: bytes, keep_alive: bool, size: int) -> None:
        self.status = status
        self.reason = reason
        self.keep_alive = keep_alive
        self.size = size
        self.length = UNTIL_CLOSE


def parse_response(data: bytes, method: bytes, max_bytes: int) -> Response | None:
    """The response head at the start of `data`, or None while it may still become one. Raises Refused."""
    match = _RESPONSE.match(data)
    if match is None:
        if b"\r\n\r\n" in data or _BROKEN.search(data):
            raise Refused(502, "The app's answer is not well-formed HTTP.")
        if len(data) > max_bytes:
            raise Refused(502, "The app's answer has too large headers.")
        return None
    minor, status, reason, block = match.groups()
    response = Response(int(status), reason or b" ", minor == b"1", match.end())
    if response.size > max_bytes:
        raise Refused(502, "The app's answer has too large headers.")
    _sort_response(response, block, method)
    return response


def _sort_response(response: Response, block: bytes, method: bytes) -> None:
    length: bytes | None = None
    coding: bytes | None = None
    connection = b""
    memo = _response_memo
    lines: list[bytes] = []
    for line, name, value in _FIELD.findall(block):
        kind = memo.get(name)
        if kind is None:
            kind = _response_field(name)
        if not kind:
            lines.append(line)
        elif kind == _CONTENT_LENGTH:
            if length is not None:
                raise Refused(502, "The app's answer states its length more than once.")
            length = value.strip(b" \t")
        elif kind == _CONNECTION:
            connection += b"," + value.strip(b" \t").lower()
        elif kind == _SET_COOKIE:
            response.cookies = (*response.cookies, value.strip(b" \t"))
        elif kind == _TRANSFER_ENCODING:
            coding = value.strip(b" \t").lower() if coding is None else b"twice"
        elif kind == _FRAME_OPTIONS:
            response.frame_options = value.strip(b" \t")
        elif kind == _UPGRADE:
            response.upgrade = value.strip(b" \t").lower()
    plain = b"".join(lines)
    if connection == b",keep-alive":
        response.keep_alive = True
    elif connection:
        options = {option.strip(b" \t") for option in connection.split(b",")}
        response.keep_alive = b"close" not in options and (response.keep_alive or b"keep-alive" in options)
        plain = without_fields(plain, options)
    response.plain = plain
    _response_length(response, length, coding, method)


def _response_length(response: Response, length: bytes | None, coding: bytes | None, method: bytes) -> None:
    if coding is not None and (coding != b"chunked" or length is not None):
        raise Refused(502, "The app's answer has a transfer coding other than chunked alone.")
    if length is not None and (not length.isdigit() or len(length) > 15):
        raise Refused(502, "The app's answer has a Content-Length that is not a number.")
    status = response.status
    if length is not None:
        response.length = int(length)
        if status != 204 and status >= 200:
            response.plain += b"Content-Length: %d\r\n" % response.length
    elif coding is not None:
        response.length = CHUNKED
    if method == b"HEAD" or status == 304 or status == 204 or status < 200:
        response.length = 0


def without_fields(block: bytes, names: Set[bytes]) -> bytes:
    """Field lines without those of the given (lower-case) names."""
    return b"".join(line for line in block.splitlines(keepends=True) if line.partition(b":")[0].lower() not in names)


class ChunkedBody:
    """Reads one chunked body, piece by piece; extensions and trailers are checked and left out."""

    __slots__ = ("_after", "_left", "_pending", "done")

    def __init__(self) -> None:
        self._pending = b""
        self._left = 0
        self._after = False
        self.done = False

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        """The content in `data`, and what lies behind the body's end. Raises Refused; holds no more than a line."""
        if self._pending:
            data, self._pending = self._pending + data, b""
        content: list[bytes] = []
        position, size = 0, len(data)
        while position < size:
            if self._left:
                piece = data[position : position + self._left]
                content.append(piece)
                position += len(piece)
                self._left -= len(piece)
                self._after = not self._left
                continue
            if self._after:
                end = data[position : position + 2]
                if end == b"\r":
                    break
                if end != b"\r\n":
                    raise Refused(400, "A chunk does not end where its size says.")
                position += 2
                self._after = False
                continue
            match = _CHUNK_LINE.match(data, position)
            if match is None or match.end() - position > MAX_CHUNK_LINE:
                if match is None and b"\n" not in data[position:] and size - position <= MAX_CHUNK_LINE:
                    break
                raise Refused(400, "A chunk's size line is not well-formed.")
            self._left = int(match[1], 16)
            if self._left:
                position = match.end()
                continue
            end_of_body = self._trailers(data, match.end())
            if end_of_body < 0:
                break
            self.done = True
            return content, data[end_of_body:]
        self._pending = data[position:]
        return content, b""

    @staticmethod
    def _trailers(data: bytes, start: int) -> int:
        """Where the trailer section ends, or -1 while it has not."""
        match = _TRAILERS.match(data, start)
        if match is not None:
            if match.end() - start > MAX_TRAILER_BYTES:
                raise Refused(431, "The trailers are too large.")
            return match.end()
        rest = data[start:]
        if b"\r\n\r\n" in rest or _BROKEN.search(rest):
            raise Refused(400, "The trailers are not well-formed.")
        if len(rest) > MAX_TRAILER_BYTES:
            raise Refused(431, "The trailers are too large.")
        return -1


def encode_chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)
