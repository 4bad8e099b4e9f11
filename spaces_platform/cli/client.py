"""The platform as the command line sees it: an address, a token, and one request at a time.

Owns: where address and token come from, where `spaces login` keeps them, and turning answers into values or Failures.
Does not own: what is asked for. Invariant: the token goes to the platform's own address only, never into a URL, a
command line or a file that others can read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from spaces_platform.cli.console import FAILED, NOT_FOUND, NOT_SIGNED_IN, Failure
from spaces_platform.presence import is_supervised, read_state, write_json

if TYPE_CHECKING:
    import httpx

TIMEOUT = 30.0
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def config_path() -> Path:
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "spaces" / "config.json"


def data_directory(given: Path | None = None) -> Path:
    """The data directory of the platform on this machine, as `spaces up` has it."""
    return (given or Path(os.environ.get("SPACES_DATA") or Path.home() / ".spaces")).expanduser().resolve()


@dataclass(frozen=True, slots=True)
class SignIn:
    """Where the platform is, and who we are there."""

    url: str
    token: str | None = field(repr=False)
    source: str
    """Where this comes from, in words, for error messages."""


def sign_in() -> SignIn:
    """From SPACES_URL and SPACES_TOKEN, else from `spaces login`, else from the platform on this machine.

    Raises Failure where there is none of them.
    """
    url, token = os.environ.get("SPACES_URL"), os.environ.get("SPACES_TOKEN")
    saved = read_config()
    if url:
        if token is None and saved.get("url") == url.rstrip("/"):
            token = saved["token"]
        return SignIn(url.rstrip("/"), token or _local_token(url), "SPACES_URL")
    if saved:
        return SignIn(saved["url"], token or saved["token"], str(config_path()))
    local = _local()
    if local is None:
        raise Failure(
            "Not signed in, and no platform runs on this machine.",
            "Start one with `spaces up --detach`, or sign in to one with `spaces login https://…`.",
            code=NOT_SIGNED_IN,
        )
    return SignIn(local.url, token or local.token, local.source)


def read_config() -> dict[str, str]:
    try:
        value = json.loads(config_path().read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as exc:
        raise Failure(f"{config_path()} cannot be read: {exc}.", "Remove it and run `spaces login` again.") from exc
    return value if isinstance(value, dict) and {"url", "token"} <= value.keys() else {}


def save_config(url: str, token: str) -> Path:
    """Readable by its owner only."""
    path = config_path()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_json(path, {"url": url, "token": token})
    return path


def _local() -> SignIn | None:
    data = data_directory()
    state = read_state(data)
    if state is None or not is_supervised(data):
        return None
    host = state["host"] if state["host"] not in ("0.0.0.0", "::", "127.0.0.1") else "localhost"
    return SignIn(f"http://{host}:{state['port']}", _admin_token(data), f"the platform in {data}")


def _local_token(url: str) -> str | None:
    local = _local()
    return local.token if local is not None and local.url == url.rstrip("/") else None


def _admin_token(data: Path) -> str | None:
    try:
        return (data / "admin.token").read_text().strip() or None
    except OSError:
        return None


class Client:
    """Requests to one platform. Raises Failure with what the platform said."""

    def __init__(self, who: SignIn | None = None) -> None:
        import httpx

        self.who = who or sign_in()
        self.url = self.who.url
        headers = {"User-Agent": "spaces-cli"}
        if self.who.token:
            headers["Authorization"] = f"Bearer {self.who.token}"
        self._http = httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=TIMEOUT,
            # A proxy for the outside world has no way to this machine's own loopback.
            trust_env=urlsplit(self.url).hostname not in _LOOPBACK,
        )

    def get(self, path: str, **params: Any) -> Any:
        return self.call("GET", path, params={k: v for k, v in params.items() if v is not None})

    def post(self, path: str, body: Any = None) -> Any:
        return self.call("POST", path, json=body if body is not None else {})

    def call(self, method: str, path: str, **options: Any) -> Any:
        """The JSON (or the text) of the answer. Raises Failure."""
        import httpx

        try:
            answer = self._http.request(method, path, **options)
        except httpx.HTTPError as exc:
            raise self._unreachable(exc) from exc
        if answer.is_error:
            raise self._refused(answer)
        if "json" in answer.headers.get("content-type", ""):
            return answer.json()
        return answer.text

    def lines(self, path: str, **params: Any) -> Iterator[str]:
        """Lines of an answer that goes on: server-sent events. Ends when the platform ends it."""
        import httpx

        try:
            with self._http.stream("GET", path, params=params, timeout=httpx.Timeout(TIMEOUT, read=60.0)) as answer:
                if answer.is_error:
                    answer.read()
                    raise self._refused(answer)
                yield from answer.iter_lines()
        except httpx.HTTPError as exc:
            raise self._unreachable(exc) from exc

    def name(self) -> str:
        """The user this token belongs to. Raises Failure (3) where it belongs to nobody."""
        if not self.who.token:
            raise Failure(f"Not signed in to {self.url}.", f"Run `spaces login {self.url}`.", code=NOT_SIGNED_IN)
        return str(self.get("/api/whoami-v2")["name"])

    def _unreachable(self, exc: Exception) -> Failure:
        fix = f"Is it running? The address comes from {self.who.source}."
        return Failure(f"The platform at {self.url} does not answer: {exc}.", fix, status=0)

    def _refused(self, answer: httpx.Response) -> Failure:
        message, data = answer_error(answer)
        code, fix = FAILED, ""
        if answer.status_code == 401:
            code = NOT_SIGNED_IN
            fix = f"Sign in with `spaces login {self.url}`. The token used comes from {self.who.source}."
        elif answer.status_code == 404:
            code = NOT_FOUND
            named = re.search(r"/spaces/([^/]+/[^/?]+)", answer.request.url.path)
            # Not only a Space may be missing: a build, a domain or a snapshot of one says so itself.
            if named and answer.headers.get("x-error-code") == "RepoNotFound":
                message = f"There is no Space {named[1]} on {self.url}, or you may not see it."
                fix = "See the names with `spaces list`."
        elif answer.status_code in (502, 503):
            fix = "The platform is starting or busy; try again in a moment."
        return Failure(message, fix, code=code, status=answer.status_code, **data)


def answer_error(answer: httpx.Response) -> tuple[str, dict[str, Any]]:
    """What an error answer says."""
    try:
        value = answer.json()
    except ValueError:
        value = None
    if isinstance(value, Mapping):
        said = value.get("error") or value.get("detail") or value.get("message")
        if isinstance(said, str):
            return said, {"error_code": value["code"]} if isinstance(value.get("code"), str) else {}
    return answer.headers.get("x-error-message") or f"HTTP {answer.status_code} from {answer.request.url}", {}
