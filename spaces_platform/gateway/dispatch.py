"""What is done with a request: the one place where host name, Space, visitor and credentials meet.

Owns: choosing between the control plane, an app, waiting, and an answer of the gateway's own. Does not own: bytes on
the wire (downstream.py), the words of pages (pages.py), the rules for waiting (visitors.py).
Invariant: a request goes where its normalised Host says and nowhere else; what is unknown is 404 and redirects
nowhere.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote_to_bytes, urlsplit

from spaces_platform.errors import PlatformError, Unavailable
from spaces_platform.gateway import pages
from spaces_platform.gateway.access import (
    Access,
    Credential,
    credential,
    local_path,
    session_cookie,
    without_sign,
)
from spaces_platform.gateway.grammar import Request, normalise_host
from spaces_platform.gateway.routes import RouteEntry
from spaces_platform.gateway.visitors import Reply, Visitor, is_heartbeat, reply, visitor
from spaces_platform.gateway.waiting import retry_after

if TYPE_CHECKING:
    from spaces_platform.gateway.backend import Backend
    from spaces_platform.gateway.downstream import Client
    from spaces_platform.gateway.server import Gateway

_HTML = b"text/html; charset=utf-8"
_JSON = b"application/json"
_NO_STORE = (b"Cache-Control", b"no-store")
_OWN = b"/.spaces/"
_HOST_MEMO = 8_192
_PLATFORM_DOWN = "The platform is starting or being updated. Running apps are not affected; try again in a moment."


class Dispatch:
    """Decides for every request."""

    def __init__(self, gateway: Gateway, access: Access) -> None:
        self._gateway = gateway
        self._access = access
        self._https = gateway.config.scheme == "https"
        self._hosts: dict[bytes, bytes] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # --- by host
    def handle(self, client: Client, request: Request) -> None:
        """Decide for one request. Its client is answered, proxied or waiting when this returns."""
        host = self._hosts.get(request.host)
        if host is None:
            host = normalise_host(request.host)
            if host is None:
                client.refuse(400, "The request's Host field is not a host name.")
                return
            if len(self._hosts) >= _HOST_MEMO:
                self._hosts.clear()
            self._hosts[request.host] = host
        if request.method in (b"TRACE", b"CONNECT"):
            client.answer(405, [], b"This method is not served here.\n")
            return
        table = self._gateway.table
        entry = table.find(host)
        if entry is not None:
            if request.target.startswith(_OWN) or not entry.public:
                self._guarded(client, request, entry)
            elif entry.endpoint is not None:
                self._to_app(client, request, entry, host)
            else:
                self._no_endpoint(client, request, entry)
        elif host in table.platform_hosts:
            if reaches_internal(request.path):
                _fail(client, request, 404, "Not found.")
            else:
                client.relay.proxy(self._gateway.control, None, attached=False)
        else:
            self._unknown(client, request, host)

    def _to_app(self, client: Client, request: Request, entry: RouteEntry, host: bytes = b"") -> None:
        """To an app that has an endpoint. `host`: see Relay.proxy."""
        backend = self._gateway.backend(entry)
        if request.websocket and backend.is_full:
            client.entry = None
            _fail(client, request, 429, "This app has too many open WebSockets.", 10)
        else:
            client.relay.proxy(backend, entry, host, attached=is_heartbeat(request.target))

    def _unknown(self, client: Client, request: Request, host: bytes) -> None:
        entry = self._gateway.table.redirect(host)
        if entry is None or not entry.hosts or not entry.public:
            self._not_found(client, request)
            return
        origin = urlsplit(entry.page)
        port = f":{origin.port}" if origin.port else ""
        location = f"{origin.scheme or 'http'}://{entry.hosts[0]}{port}".encode() + request.target
        client.answer(308, [(b"Location", location), _NO_STORE], b"This Space has a new address.\n")

    def serve(self, client: Client, entry: RouteEntry | None) -> None:
        """Answer a request that has waited, with the entry as it is now."""
        request = client.request
        if request is None:
            return
        if entry is None:
            self._not_found(client, request)
        elif entry.endpoint is not None:
            self._to_app(client, request, entry)
        else:
            self._no_endpoint(client, request, entry)

    # --- without an app
    def _no_endpoint(self, client: Client, request: Request, entry: RouteEntry) -> None:
        who = visitor(request)
        action = reply(entry, who)
        if action is Reply.CARD:
            up = entry.may_answer or entry.stage == "SLEEPING"
            fields = [_NO_STORE] if up else [_NO_STORE, _retry(entry)]
            client.answer(200 if up else 503, fields, pages.card(entry), _HTML)
        elif action is Reply.PAGE:
            self._gateway.waiting.wake(entry)
            seconds = retry_after(entry.retry_after)
            client.answer(503, [_NO_STORE, (b"Retry-After", b"%d" % seconds)], pages.space_page(entry), _HTML)
        elif action is Reply.REFUSE or not self._gateway.waiting.hold(client, entry):
            self.turn_away(client, entry)
        else:
            client.entry = entry

    def turn_away(self, client: Client, entry: RouteEntry) -> None:
        """503 for a request that cannot be held, or not any longer."""
        text = entry.message or pages.words(entry).text
        body = {"error": text, "stage": entry.stage}
        client.answer(503, [_NO_STORE, _retry(entry)], json.dumps(body).encode(), _JSON)

    def unreachable(self, client: Client, backend: Backend | None, error: Exception | None) -> None:
        """The connection to an app or to the control plane could not be had, or broke before its answer."""
        gateway, request, entry = self._gateway, client.request, client.entry
        if request is None or backend is None:
            client.finish()
            return
        if not backend.space:
            _fail(
                client,
                request,
                503,
                _PLATFORM_DOWN,
                3,
            )
            return
        gateway.log(
            "upstream_failed",
            space=backend.space,
            deployment=backend.deployment,
            endpoint=backend.endpoint,
            error=repr(error),
        )
        now = gateway.table.entries.get(backend.space)
        if now is not None and now.endpoint != backend.endpoint and request.length == 0:
            self.serve(client, now)
        elif entry is not None and visitor(request) is Visitor.PERSON:
            client.answer(503, [_NO_STORE, (b"Retry-After", b"3")], pages.unreachable_page(entry), _HTML)
        else:
            _fail(client, request, 502, "The app does not answer.")

    def _not_found(self, client: Client, request: Request) -> None:
        """The same for a host that nobody has and for a private Space: the answer does not tell which."""
        if visitor(request) is Visitor.PERSON:
            client.answer(404, [_NO_STORE], pages.not_found_page(self._sign_in_address(request)), _HTML)
        else:
            _fail(client, request, 404, "There is no Space at this address, or you may not see it.")

    def _sign_in_address(self, request: Request) -> str:
        """Where to sign in for an app of this name, there or not; empty for a name that can be no app's."""
        config = self._gateway.config
        host = request.host.decode("latin-1").lower()
        name = host.partition(":")[0].rstrip(".")
        if not name.endswith(f".{config.apps_domain}") and not name.startswith("127."):
            return ""
        return pages.sign_in_address(config.platform_origin, host, local_path(request.target.decode("latin-1")))

    # --- private Spaces, and the gateway's own paths
    def _guarded(self, client: Client, request: Request, entry: RouteEntry) -> None:
        if request.path == b"/.spaces/auth":
            self._later(client, self._sign_in(client, request, entry))
            return
        if not entry.public:
            who = credential(request, https=self._https)
            verdict = None if who is None else self._access.known(entry.space, who)
            if who is None or verdict is False:
                self._not_found(client, request)
                return
            if verdict is None or who.kind == "sign":
                self._later(client, self._authorise(client, request, entry, who))
                return
        self._admitted(client, request, entry)

    def _admitted(self, client: Client, request: Request, entry: RouteEntry) -> None:
        if not request.target.startswith(_OWN):
            self.serve(client, entry)
        elif request.path == b"/.spaces/events" and request.method == b"GET":
            client.entry = entry
            if not self._gateway.waiting.watch(client, entry):
                _fail(client, request, 503, "Too many pages are waiting.", 10)
        else:
            _fail(client, request, 404, "Not found.")

    async def _authorise(self, client: Client, request: Request, entry: RouteEntry, who: Credential) -> None:
        exchange = client.exchange
        allowed = await self._access.allowed(entry.space, who)
        if client.exchange != exchange:
            return
        now = self._gateway.table.entries.get(entry.space)
        if not allowed or now is None:
            self._not_found(client, request)
            return
        if who.kind == "sign":
            request.target = without_sign(request.target)
            if visitor(request) is Visitor.PERSON:
                session = await self._access.exchange(entry.space, who)
                if session is not None and client.exchange == exchange:
                    self._give_session(client, request, session, request.target)
                    return
        if client.exchange == exchange:
            self._admitted(client, request, now)

    async def _sign_in(self, client: Client, request: Request, entry: RouteEntry) -> None:
        exchange = client.exchange
        query = parse_qs(request.query.decode("latin-1"), max_num_fields=20)
        code, back = query.get("code", [""])[0], local_path(query.get("next", ["/"])[0])
        session = await self._access.exchange(entry.space, Credential("code", code)) if code else None
        if client.exchange != exchange:
            return
        if session is None:
            self._not_found(client, request)
        else:
            self._give_session(client, request, session, back.encode("latin-1"))

    def _give_session(self, client: Client, request: Request, session: tuple[str, int], target: bytes) -> None:
        host = request.host.partition(b":")[0].lower()
        secure = self._https or host.endswith(b".localhost")
        cookie = session_cookie(*session, secure=secure, https=self._https)
        client.answer(302, [(b"Location", target), (b"Set-Cookie", cookie), _NO_STORE], b"")

    def _later(self, client: Client, work: Coroutine[Any, Any, None]) -> None:
        """Decide once the control plane has been asked."""
        exchange = client.exchange

        async def run() -> None:
            try:
                await work
            except PlatformError as error:
                if client.exchange == exchange and client.request is not None:
                    seconds = 2 if isinstance(error, Unavailable) else 0
                    _fail(client, client.request, error.http_status, error.message, seconds)

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def reaches_internal(path: bytes) -> bool:
    """True when any reading of the path (decoded, merged slashes, dot segments) leads below /internal."""
    if b"internal" not in path.lower() and b"%" not in path:
        return False
    for _ in range(4):
        decoded = unquote_to_bytes(path)
        if decoded == path:
            break
        path = decoded
    segments: list[bytes] = []
    for segment in path.replace(b"\\", b"/").split(b"/"):
        name = segment.partition(b";")[0].strip().lower()
        if name == b"..":
            if segments:
                segments.pop()
        elif name not in (b"", b"."):
            segments.append(name)
    return segments[:1] == [b"internal"]


def _retry(entry: RouteEntry) -> tuple[bytes, bytes]:
    return b"Retry-After", b"%d" % retry_after(entry.retry_after)


def _fail(client: Client, request: Request, status: int, text: str, retry_seconds: int = 0) -> None:
    """A plain failure, in the form the visitor asked for."""
    fields = [_NO_STORE]
    if retry_seconds:
        fields.append((b"Retry-After", b"%d" % retry_after(retry_seconds)))
    if visitor(request) is Visitor.PERSON:
        heading = "Not found" if status == 404 else "Not available"
        client.answer(status, fields, pages.plain_page(heading, text, refresh=retry_seconds), _HTML)
    else:
        client.answer(status, fields, json.dumps({"error": text}).encode(), _JSON)
