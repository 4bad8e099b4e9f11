"""Tiny Spaces for the fault tests: trees of files that need nothing installed.

A static Space is served by the platform's own server, which is a plain Python: with PYTHONUSERBASE in its environment
(an admin's setting: `system.py` passes it on) it imports `usercustomize` from the repository, and that runs `app.py`.
So a Space that installs nothing can be slow, crash, ignore signals and speak WebSocket.
"""

from __future__ import annotations

import json
import sys
from typing import Any

ENVIRONMENT = {"PYTHONUSERBASE": "base", "SPACES_PASS_ENVIRONMENT": "PYTHONUSERBASE"}
"""Of the platform, for `python` below to work."""
_SITE = f"base/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages/usercustomize.py"
_SITE_CODE = (
    "import os, runpy, sys\nif os.path.exists('app.py') and '--port' in sys.orig_argv:\n    runpy.run_path('app.py')\n"
)


def front(**keys: Any) -> str:
    """A README with front matter."""
    given = {"title": "Tiny", "sdk": "static", **keys}
    return "---\n" + "".join(f"{k}: {json.dumps(v)}\n" for k, v in given.items()) + "---\n# Tiny\n"


def static(text: str, **keys: Any) -> dict[str, str]:
    """A page that says `text`."""
    return {"README.md": front(**keys), "index.html": f"<!doctype html><p>{text}</p>\n"}


def slow_build(text: str, seconds: float) -> dict[str, str]:
    """A page that is built for a while."""
    command = f"echo working; sleep {seconds}; mkdir -p dist; cp index.html dist/index.html"
    return {**static(text, app_build_command=command)}


def python(
    text: str,
    *,
    start_delay: float = 0.0,
    ready: bool = True,
    ignore_term: bool = False,
    crash_after: float = 0.0,
    **keys: Any,
) -> dict[str, str]:
    """A program of its own. `ready=False`: it runs and never listens."""
    behaviour = {
        "text": text,
        "start_delay": start_delay,
        "ready": ready,
        "ignore_term": ignore_term,
        "crash_after": crash_after,
    }
    return {**static(text, **keys), _SITE: _SITE_CODE, "behaviour.json": json.dumps(behaviour), "app.py": APP}


APP = r"""
import asyncio, base64, hashlib, json, os, signal, time

with open("behaviour.json") as file:
    B = json.load(file)
TEXT = B["text"].encode()
if B["ignore_term"]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(B["start_delay"])
print("app", B["text"], "starts", flush=True)
while not B["ready"]:
    time.sleep(60)


async def serve(reader, writer):
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
            path = head[0].split(b" ")[1]
            fields = {k.strip().lower(): v.strip() for k, _, v in (line.partition(b":") for line in head[1:])}
            if fields.get(b"upgrade", b"").lower() == b"websocket":
                return await websocket(reader, writer, fields[b"sec-websocket-key"])
            if fields.get(b"transfer-encoding") == b"chunked":
                while size := int(await reader.readuntil(b"\r\n"), 16):
                    await reader.readexactly(size + 2)
                await reader.readexactly(2)
            if path.startswith(b"/drip/"):
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n")
                for _ in range(int(path[6:])):
                    writer.write(b"%x\r\n%b\r\n" % (len(TEXT), TEXT))
                    await writer.drain()
                    await asyncio.sleep(0.1)
                writer.write(b"0\r\n\r\n")
                continue
            body = json.dumps(dict(os.environ)).encode() if path == b"/env" else TEXT
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n")
            writer.write(b"content-length: %d\r\n\r\n%b" % (len(body), body))
            await writer.drain()
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def websocket(reader, writer, key):
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    writer.write(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n")
    writer.write(b"sec-websocket-accept: " + accept + b"\r\n\r\n")
    while True:
        first, second = await reader.readexactly(2)
        size = second & 127
        if size > 125 or first & 15 == 8:
            return
        mask = await reader.readexactly(4)
        data = bytes(b ^ mask[i % 4] for i, b in enumerate(await reader.readexactly(size)))
        answer = TEXT + b":" + data
        writer.write(bytes([first, len(answer)]) + answer)
        await writer.drain()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(os.environ["PORT"]), backlog=1024)
    if B["crash_after"]:
        await asyncio.sleep(B["crash_after"])
        print("about to crash", flush=True)
        os._exit(3)
    await server.serve_forever()


asyncio.run(main())
os._exit(0)
"""
