"""A real Chromium, driven by its DevTools protocol: pages are opened, asked by JavaScript, and their cookies read.

Source: https://chromedevtools.github.io/devtools-protocol/ (domains Page, Runtime, Storage).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SECONDS = 60.0
NETWORK_CHANGED = "ERR_NETWORK_CHANGED"
"""What a browser says of all that is under way when an interface comes or goes, as those of containers do."""
_LISTENS = re.compile(r"DevTools listening on (ws://\S+)")


class Browser:
    """One tab of one browser."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._number, self._session = socket, 0, ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The protocol's answer to one command. Raises RuntimeError with what the browser says."""
        self._number += 1
        session = {"sessionId": self._session} if self._session else {}
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params, **session}))
        return self._wait(lambda said: said.get("id") == self._number, method)

    def open(self, url: str) -> str:
        """Go to an address and wait until the page has loaded; why it could not be had, or nothing.

        Asked again where the machine's network has just changed.
        """
        end = time.monotonic() + SECONDS
        while NETWORK_CHANGED in (error := (begun := self.call("Page.navigate", url=url)).get("errorText", "")):
            assert time.monotonic() < end, f"{url}: {error}"
        if error:
            return str(error)
        # The page before answers until the new one is there.
        while self._loader() != begun["loaderId"] or self.ask("document.readyState") != "complete":
            assert time.monotonic() < end, f"{url} does not load"
            time.sleep(0.05)
        return ""

    def _loader(self) -> str:
        found: str = self.call("Page.getFrameTree")["frameTree"]["frame"]["loaderId"]
        return found

    def ask(self, expression: str) -> Any:
        """The value of JavaScript in the page, awaited. Raises RuntimeError where it throws."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression[:200]}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def cookies(self) -> list[Mapping[str, Any]]:
        """All that the browser holds, of any site."""
        found: list[Mapping[str, Any]] = self.call("Storage.getCookies")["cookies"]
        return found

    def frames(self) -> list[str]:
        """Addresses of the frames in the page, as they were loaded; what was refused has one of the browser's own."""
        tree = self.call("Page.getFrameTree")["frameTree"]
        return [child["frame"]["url"] for child in tree.get("childFrames", ())]

    def _wait(self, wanted: Any, what: str) -> dict[str, Any]:
        end = time.monotonic() + SECONDS
        while True:
            said = json.loads(self._socket.recv(timeout=max(end - time.monotonic(), 0.1)))
            if wanted(said):
                if "error" in said:
                    raise RuntimeError(f"{what}: {said['error']}")
                result: dict[str, Any] = said["result"]
                return result


@contextmanager
def browser(*flags: str) -> Iterator[Browser]:
    """With a profile of its own; skips the test where there is no Chromium."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine")
    websockets = pytest.importorskip("websockets.sync.client")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        log = Path(profile, "log")
        argv = [
            program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-proxy-server",
            "--remote-debugging-port=0", f"--user-data-dir={profile}", *flags, "about:blank",
        ]  # fmt: skip
        with log.open("w") as out, subprocess.Popen(argv, stdout=out, stderr=out) as process:
            try:
                end = time.monotonic() + SECONDS
                while not (found := _LISTENS.search(log.read_text(errors="replace"))):
                    up = process.poll() is None and time.monotonic() < end
                    assert up, log.read_text(errors="replace")[-2000:]
                    time.sleep(0.05)
                with websockets.connect(found[1], max_size=None, proxy=None) as socket:
                    yield Browser(socket)
            finally:
                process.terminate()
