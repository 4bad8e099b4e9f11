"""Which version of its API an engine is spoken to in."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip("docker")
from builders.containers.engine import NEWEST_API, connect


@pytest.mark.parametrize(("engine", "spoken"), [("1.41", "1.41"), (NEWEST_API, NEWEST_API), ("1.52", NEWEST_API)])
def test_no_engine_is_spoken_to_in_a_version_that_was_not_written_for(engine: str, spoken: str) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"ApiVersion": engine, "MinAPIVersion": "1.24"}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = connect(f"tcp://127.0.0.1:{server.server_port}", 10)
        assert client.api_version == spoken
        client.close()
        server.shutdown()
