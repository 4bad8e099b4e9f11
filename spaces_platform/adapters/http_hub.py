"""A hub by HTTP, whatever speaks the Hub's API: where preload_from_hub gets models and datasets.

Owns: its addresses, redirects and failures. Does not own: which hub (a setting), the layout of what is fetched
(`builders.preload`). Invariant: the token goes to the hub's own origin and to no other host; where the hub redirects to
another host, only public addresses and those the admin allows are connected to.

The API: https://huggingface.co/docs/hub/api
"""

from __future__ import annotations

import ipaddress
import json
import re
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from builders import preload
from builders.types import BuildError, HubFile, HubRepo

LISTING_BYTES = 64 << 20
"""Longest answer about a repository that is read."""
REDIRECTS = 5
CHUNK = 1 << 18
TIMEOUT = httpx.Timeout(60, connect=10)
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HttpHub:
    """A hub by HTTP. `token` may be empty. `allow`: networks, each with a port or 0,
    that it may redirect to although they are not public.

    Raises ValueError for an endpoint that is no address."""

    def __init__(
        self,
        endpoint: str,
        *,
        token: str = "",
        ca_bundle: str = "",
        allow: Sequence[tuple[ipaddress.IPv4Network, int]] = (),
    ) -> None:
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise ValueError(f"{endpoint!r} is not an address like https://huggingface.co")
        self.endpoint, self._token, self._allow = endpoint.rstrip("/"), token, tuple(allow)
        self._origin = _origin(self.endpoint)
        self._verify: Any = ssl.create_default_context(cafile=ca_bundle) if ca_bundle else True

    def find(self, kind: str, name: str, revision: str) -> HubRepo:
        url = f"{self.endpoint}/api/{kind}s/{quote(name)}/revision/{quote(revision, safe='')}?blobs=true"
        with self._follow(url) as (_, response):
            self._judge(response, kind, name, revision)
            data = self._listing(response)
        try:
            commit = str(data["sha"])
            files = {str(row["rfilename"]): _file(row) for row in data["siblings"]}
        except (KeyError, TypeError, ValueError) as error:
            raise self._unreachable("does not answer as the Hub does") from error
        if not _COMMIT.fullmatch(commit):
            raise self._unreachable(f"gave {name} a commit that is none: {commit[:60]!r}")
        return HubRepo(kind, name, commit, files)

    @contextmanager
    def open(self, repo: HubRepo, path: str) -> Iterator[tuple[str, Iterator[bytes]]]:
        prefix = "" if repo.kind == "model" else f"{repo.kind}s/"
        url = f"{self.endpoint}/{prefix}{quote(repo.name)}/resolve/{repo.commit}/{quote(path)}"
        with self._follow(url) as (etag, response):
            self._judge(response, repo.kind, repo.name, repo.commit, path)
            yield etag, self._chunks(response)

    # --- inside ----------------------------------------------------------------------------------------------------
    def _client(self) -> httpx.Client:
        return httpx.Client(
            timeout=TIMEOUT, verify=self._verify, follow_redirects=False, headers={"Accept-Encoding": "identity"}
        )

    @contextmanager
    def _follow(self, url: str) -> Iterator[tuple[str, httpx.Response]]:
        """The answer that is no redirect any more, and the etag that was told first: a file's own, not its mirror's."""
        etag = ""
        with self._client() as client:
            for _ in range(REDIRECTS + 1):
                with self._send(client, url) as response:
                    headers = response.headers
                    etag = etag or _etag(headers.get("x-linked-etag") or headers.get("etag") or "")
                    if not (response.is_redirect and "location" in headers):
                        yield etag, response
                        return
                    url = str(httpx.URL(url).join(headers["location"]))
        raise self._unreachable(f"redirects more than {REDIRECTS} times")

    @contextmanager
    def _send(self, client: httpx.Client, url: str) -> Iterator[httpx.Response]:
        headers, extensions = {}, {}
        if _origin(url) == self._origin:
            headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        elif not _has_proxy(url):
            host = urlsplit(url).hostname or ""
            # Connected to by the address that was judged: a name may mean another one a moment later.
            headers, extensions = {"Host": urlsplit(url).netloc.rpartition("@")[2]}, {"sni_hostname": host}
            url = str(httpx.URL(url).copy_with(host=self._public(host, _origin(url)[2])))
        try:
            with client.stream("GET", url, headers=headers, extensions=extensions) as response:
                yield response
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreachable(f"cannot be reached: {error or type(error).__name__}") from error

    def _public(self, host: str, port: int) -> str:
        """An address of a host that the hub redirects to. Raises BuildError."""
        try:
            infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise self._unreachable(f"redirects to {host[:100]}, which cannot be resolved") from error
        found = [ipaddress.ip_address(info[4][0]) for info in infos]
        for address in found:
            allowed = any(address in network and to in (0, port) for network, to in self._allow)
            if not address.is_global and not allowed:
                raise self._unreachable(f"redirects to {host}, which is at the private address {address}")
        return str(found[0])

    def _chunks(self, response: httpx.Response) -> Iterator[bytes]:
        try:
            yield from response.iter_raw(CHUNK)
        except httpx.HTTPError as error:
            raise self._unreachable(f"stopped in the middle of a file: {error or type(error).__name__}") from error

    def _listing(self, response: httpx.Response) -> Mapping[str, Any]:
        body = bytearray()
        for chunk in self._chunks(response):
            body += chunk
            if len(body) > LISTING_BYTES:
                raise self._unreachable("gives a list of files that has no end")
        try:
            data = json.loads(body)
        except ValueError as error:
            raise self._unreachable("does not answer as the Hub does") from error
        if not isinstance(data, dict):
            raise self._unreachable("does not answer as the Hub does")
        return data

    def _judge(self, response: httpx.Response, kind: str, name: str, revision: str, path: str = "") -> None:
        """Raises BuildError for every answer but a good one."""
        if response.status_code == 200:
            return
        code = response.headers.get("x-error-code", "")
        if code == "RevisionNotFound":
            raise preload.no_revision(name, revision)
        if code == "EntryNotFound":
            raise preload.no_file(name, path)
        if response.status_code in (401, 403, 404):
            raise preload.no_repo(
                f"{kind} {name}", f"at {self.endpoint}", "that needs a secret HF_TOKEN of somebody who may read it"
            )
        raise self._unreachable(f"answers {response.status_code}")

    def _unreachable(self, what: str) -> BuildError:
        return BuildError(
            "hub_unreachable",
            f"preload_from_hub: the hub {self.endpoint} {what}.",
            "Try again; if it stays so, the platform's network or its hub_endpoint needs a look.",
        )


def _file(row: Mapping[str, Any]) -> HubFile:
    size, lfs = row.get("size"), row.get("lfs") or {}
    etag = str(lfs.get("sha256") or lfs.get("oid") or row.get("blobId") or "")
    return HubFile(int(size) if size is not None else -1, etag)


def _etag(header: str) -> str:
    """As huggingface_hub has it."""
    return header.removeprefix("W/").strip('"')


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)


def _has_proxy(url: str) -> bool:
    """Whether a proxy of the admin's resolves the name and decides what is reached."""
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(url)
    proxies = getproxies()
    return bool(proxies.get(parts.scheme) or proxies.get("all")) and not proxy_bypass(parts.hostname or "")
