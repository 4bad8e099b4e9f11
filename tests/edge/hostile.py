"""A hostile app beside the platform, on one registrable domain and behind TLS: what T11 does, and what must hold.

Owns: the app, the steps in a real browser, and the checks. Does not own: what platform it is (processes, containers).
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.edge.caddy import CADDYFILE, told
from tests.edge.servers import free_port, listens, program, until
from tests.faults.system import System
from tests.services.browser import Browser, browser

DOMAIN = "hub.test"
PLATFORM, EVIL = f"spaces.{DOMAIN}", f"admin-evil.{DOMAIN}"
SESSION = "__Host-spaces-session"
FLOOD, FLOOD_BYTES = 150, 3000
"""Cookies of so many bytes: a browser keeps 180 of a site, and sends them all."""

APP = r"""
import http.server, json, os
HEARD = []
class Evil(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        HEARD.append({name: self.headers.get_all(name) or [] for name in ("Cookie", "Authorization")})
        path, _, query = self.path.partition("?")
        body, kind = b"<!doctype html><link rel=icon href='data:,'><p>evil</p>", "text/html"
        if path == "/heard":
            body, kind = json.dumps(HEARD).encode(), "application/json"
        elif path == "/sw.js":
            body, kind = b"self.addEventListener('fetch', () => {})", "text/javascript"
        self.send_response(302 if path == "/loop" else 200)
        if path == "/loop":
            self.send_header("Location", "/loop")
        if path == "/toss":
            for name in ("spaces-session", "__Host-spaces-session", "spaces-app-session", "own"):
                self.send_header("Set-Cookie", f"{name}={query}; Path=/; Secure; Domain=hub.test")
                self.send_header("Set-Cookie", f"{name}-x=1; Path=/; Secure")
            self.send_header("Set-Cookie", f"={'__Host-spaces-session'}={query}; Path=/; Secure; Domain=hub.test")
        self.send_header("Access-Control-Allow-Origin", self.headers.get("Origin", "*"))
        self.send_header("Access-Control-Allow-Credentials", "true")
        self.send_header("Service-Worker-Allowed", "/")
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("", int(os.environ["PORT"])), Evil).serve_forever()
"""
TOSS = """
for (const name of ["spaces-session", "__Host-spaces-session", "__Secure-spaces-session", "spaces-app-session"])
  for (const where of ["", "; domain=%(domain)s"])
    document.cookie = `${name}=%(value)s; path=/; secure${where}`;
"""
FLOODED = """
for (let n = 0; n < %(count)d; n++)
  document.cookie = `f${n}=${"x".repeat(%(size)d)}; path=/; secure; domain=%(domain)s`;
"""
REACH = """(async () => {
  const tried = {};
  for (const path of ["/api/whoami-v2", "/settings", "/api/platform/session"])
    tried[path] = await fetch("%(base)s" + path, {credentials: "include"}).then(a => a.text(), e => e.name);
  tried.post = await fetch("%(base)s/api/platform/session", {method: "DELETE", credentials: "include", mode: "no-cors",
    headers: {"Content-Type": "text/plain"}}).then(a => a.type, e => e.name);
  tried.worker = await navigator.serviceWorker.register("/sw.js")
    .then(r => r.unregister().then(() => r.scope), e => e.name);
  const frame = document.createElement("iframe");
  frame.src = "%(base)s/";
  await new Promise(done => { frame.onload = frame.onerror = done; document.body.append(frame); });
  try { tried.frame = frame.contentDocument ? frame.contentDocument.title : null; } catch (e) { tried.frame = e.name; }
  return tried;
})()"""
WHO = 'fetch("/api/whoami-v2").then(a => a.status === 200 ? a.json().then(w => w.name) : a.status)'


@dataclass
class Front:
    """The platform behind a Caddy with its own authority."""

    system: System
    port: int

    @property
    def base(self) -> str:
        return f"https://{PLATFORM}:{self.port}"

    @property
    def evil(self) -> str:
        return f"https://{EVIL}:{self.port}"

    def sign_in_link(self) -> str:
        url: str = self.system.api("POST", "/api/platform/sign-in-link", {})["url"]
        return self.base + url[url.index("/login/link") :]

    def session_of(self, name: str) -> str:
        """A session that is somebody's own, as an attacker has it."""
        made = self.system.api("POST", "/api/platform/users", {"name": name, "password": "correct horse battery"})
        assert made["name"] == name
        body = json.dumps({"name": name, "password": "correct horse battery"}).encode()
        answer = self.system.request(
            "POST", "/api/platform/session", headers={"Content-Type": "application/json"}, body=body
        )
        assert answer.status == 200, answer.text
        return answer.headers["Set-Cookie"].partition("=")[2].partition(";")[0]

    def heard(self) -> list[dict[str, list[str]]]:
        """What of cookies and tokens the app was sent so far."""
        found: list[dict[str, list[str]]] = json.loads(self.system.request("GET", "/heard", host=EVIL).body)
        return found


def settings(tls: int) -> dict[str, str]:
    """Of a platform that is reached through Caddy at that port."""
    return {"public_url": f"https://{PLATFORM}:{tls}", "apps_domain": DOMAIN, "trusted_proxies": "127.0.0.1/32"}


@contextmanager
def front(system: System, folder: Path, port: int, ask: int) -> Iterator[Front]:
    env = told(folder, "internal", gateway=system.port, ask=ask, port=port, plain=free_port())
    argv = [program("caddy", "caddy"), "run", "--config", str(CADDYFILE), "--adapter", "caddyfile"]
    with (folder / "caddy.log").open("w") as log, subprocess.Popen(argv, env=env, stdout=log, stderr=log) as process:
        try:
            until(lambda: listens(port), "Caddy to come up")
            yield Front(system, port)
        finally:
            process.terminate()


def attack(it: Front) -> None:
    """Everything of T11, in one browser that is signed in as the admin."""
    stolen = it.session_of("mallory")
    resolve = f"--host-resolver-rules=MAP *.{DOMAIN} 127.0.0.1"
    with browser("--ignore-certificate-errors", resolve) as b:
        _sign_in(it, b)
        mine = _session(b)
        assert (mine["secure"], mine["httpOnly"], mine["domain"]) == (True, True, PLATFORM), mine
        _tossed(it, b, stolen, mine["value"])
        _reached(it, b)
        _fixed(it, b, stolen)
        _flooded(it, b)
        assert "TOO_MANY_REDIRECTS" in b.open(f"{it.evil}/loop")
    said = json.dumps(it.heard())
    assert mine["value"] not in said
    assert it.system.token not in said


def _tossed(it: Front, b: Browser, stolen: str, mine: str) -> None:
    """The app's cookies in the platform's name, by header and by script, do not get to the platform."""
    b.open(f"{it.evil}/toss?{stolen}")
    named = {c["name"]: c for c in b.cookies() if c["domain"] != PLATFORM}
    assert {"own", "own-x"} <= set(named), sorted(named)
    assert not any("spaces" in name for name in named), sorted(named)
    assert named["own"]["domain"] == EVIL, "its Domain was not taken from it"
    b.ask(TOSS % {"value": stolen, "domain": DOMAIN})
    tossed = [c["name"] for c in b.cookies() if c["domain"].endswith(f".{DOMAIN}") and c["value"] == stolen]
    assert "spaces-session" in tossed, "the browser took none, and nothing is shown by this test"
    b.open(it.base)
    assert _who(b) == "admin"
    assert _session(b)["value"] == mine


def _reached(it: Front, b: Browser) -> None:
    """The app's page neither reads the platform nor acts on it."""
    b.open(it.evil)
    tried: dict[str, Any] = {}
    # The answer to one of the app's own, that it was not broken off.
    until(lambda: tried.update(b.ask(REACH % {"base": it.base})) or tried["worker"] != "TypeError", "a worker", 20)
    pages = [tried[path] for path in ("/api/whoami-v2", "/settings", "/api/platform/session")]
    assert pages == ["TypeError"] * 3, tried
    assert tried["worker"] == f"{it.evil}/", tried
    assert tried["frame"] is None, tried
    assert set(b.frames()) == {"chrome-error://chromewebdata/"}, b.frames()
    b.open(it.base)
    assert _who(b) == "admin", "the app's page signed its visitor out"


def _fixed(it: Front, b: Browser, stolen: str) -> None:
    """Signed out is signed out: not signed in as whom the app wants."""
    b.open(it.evil)
    b.ask(TOSS % {"value": stolen, "domain": DOMAIN})
    b.open(it.base)
    assert _who(b) == "admin"
    gone = b.ask('fetch("/api/platform/session", {method: "DELETE"}).then(a => a.status)')
    assert gone == 200
    assert _who(b) == 401
    _sign_in(it, b)


def _flooded(it: Front, b: Browser) -> None:
    """So many cookies that no request fits: the next page that is loaded is well again, and a sign-in works."""
    b.open(it.evil)
    b.ask(FLOODED % {"count": FLOOD, "size": FLOOD_BYTES, "domain": DOMAIN})
    until(lambda: sum(c["domain"] == f".{DOMAIN}" for c in b.cookies()) >= FLOOD, "the browser to take them all")
    b.open(it.base)
    assert not [c["name"] for c in b.cookies() if c["domain"] == f".{DOMAIN}"], "they are still there"
    _sign_in(it, b)


def _sign_in(it: Front, b: Browser) -> None:
    """As the admin. A link that was followed when the network changed is used up, and another is asked for."""

    def signed_in() -> bool:
        b.open(it.sign_in_link())
        return bool(_who(b) == "admin")

    until(signed_in, "the sign-in", 20)


def _who(b: Browser) -> Any:
    """As whom the platform's page knows its visitor, or the status. A container's interface may break a request off."""
    found: list[Any] = []

    def told() -> bool:
        try:
            found.append(b.ask(WHO))
        except RuntimeError as error:
            if "Failed to fetch" not in str(error):
                raise
        return bool(found)

    until(told, "the platform to say who is signed in", 20)
    return found[0]


def _session(b: Browser) -> Mapping[str, Any]:
    return next(c for c in b.cookies() if c["name"] == SESSION)
