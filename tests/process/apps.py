"""Small apps for orchestrator tests: what they do is their name, and they need nothing but an interpreter."""

from __future__ import annotations

SERVE = """
import http.server, os, sys
{before}
class App(http.server.BaseHTTPRequestHandler):
    count = 0
    def do_GET(self):
        App.count += 1
        code = {code}
        self.send_response(code)
        self.end_headers()
        self.wfile.write(b"ok")
    def log_message(self, *args):
        pass
class Server(http.server.ThreadingHTTPServer):
    address_family = {family}
print("listening", flush=True)
Server(({host!r}, {port}), App).serve_forever()
"""


def server(
    before: str = "",
    *,
    code: str = "200",
    host: str = "0.0.0.0",
    port: str = "int(os.environ['PORT'])",
    v6: bool = False,
) -> str:
    """An HTTP server; `code` and `port` are expressions, `before` runs first."""
    family = "10" if v6 else "2"
    return SERVE.format(before=before, code=code, host=host, port=port, family=family)


IGNORES_TERM = server("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)")
HANG = "import time\nprint('hanging', flush=True)\ntime.sleep(600)\n"
MEMORY_HOG = "held = []\nwhile True: held.append(bytearray(b'x' * (4 << 20)))\n"


def exits(code: int, *lines: str) -> str:
    """Prints lines and ends with a code."""
    return f"import sys\nfor line in {lines!r}: print(line, flush=True)\nsys.exit({code})\n"
