"""A real ACME authority on this machine, and a network of the test's own in which it can look at ports 80 and 443.

The authority is a Caddy too. It validates as every authority does: over http at port 80 or over TLS at port 443 of the
name, which no setting changes.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.edge.caddy import Caddy, places
from tests.edge.servers import program

T = TypeVar("T")

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000
AUTHORITY, PORT = "ca.example.test", 14000
CADDYFILE = f"""
{{
	admin off
	skip_install_trust
	auto_https disable_redirects
}}
https://{AUTHORITY}:{PORT} {{
	tls internal
	log
	acme_server
}}
"""


# --- a network of one's own ---------------------------------------------------------------------
def apart(action: Callable[[], T], folder: Path, names: Iterable[str]) -> T:
    """Do this in a thread that has a network and mounts of its own, and so have the processes it starts.

    All ports are free there, `names` are 127.0.0.1, and nothing leaves it. The rest of this process, and the machine,
    see nothing of it; it ends with its last process. Skips where that may not be done.
    """
    if os.geteuid() != 0:
        pytest.skip("needs root: an authority looks at ports 80 and 443, in a network of the test's own")
    programs = program("ip", "iproute2"), program("mount", "mount")
    hosts = folder / "hosts"
    hosts.write_text("127.0.0.1 localhost\n" + "".join(f"127.0.0.1 {name}\n" for name in (AUTHORITY, *names)))

    def inside() -> T:
        _leave(*programs, hosts)
        return action()

    # A thread of its own: a network is a property of each thread, and this one's ends with it.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(inside).result()


def _leave(ip: str, mount: str, hosts: Path) -> None:
    """Give the calling thread a network with a loopback device and `hosts` for /etc/hosts. Skips where it may not."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET | CLONE_NEWNS) != 0:
        pytest.skip(f"this machine lets root have no network of its own: {os.strerror(ctypes.get_errno())}")
    for argv in (
        # First, or else what is mounted here would be mounted for everybody.
        [mount, "--make-rprivate", "/"],
        [mount, "--bind", str(hosts), "/etc/hosts"],
        [ip, "link", "set", "lo", "up"],
    ):
        subprocess.run(argv, check=True, capture_output=True, timeout=30)


# --- the authority ------------------------------------------------------------------------------
@dataclass(kw_only=True)
class Authority(Caddy):
    """What it issued, and its own key, outlive a stop."""

    @property
    def settings(self) -> dict[str, str]:
        """How Caddy in front of the platform is told of it."""
        directory = f"https://{AUTHORITY}:{PORT}/acme/local/directory"
        return {"SPACES_ACME_CA": directory, "SPACES_ACME_ROOT": str(self.root)}

    def orders(self) -> int:
        """How many orders have reached it, whatever became of them. A visitor who was answered, or refused, waited for
        those that their visit caused."""
        lines = [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]
        asked = [line["request"] for line in lines if line.get("logger", "").startswith("http.log.access")]
        return sum(request["uri"].endswith("/new-order") for request in asked)

    def remake(self, stored: Path, days: tuple[float, float]) -> None:
        """Replace a stored certificate by one of the same name and key, which began and ends so many days from now."""
        own = x509.load_pem_x509_certificate(self.root.with_name("intermediate.crt").read_bytes())
        key = serialization.load_pem_private_key(self.root.with_name("intermediate.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        old = x509.load_pem_x509_certificate(stored.read_bytes())
        begin, end = (datetime.now(UTC) + timedelta(days=n) for n in days)
        builder = x509.CertificateBuilder(own.subject, old.subject, old.public_key(), x509.random_serial_number())
        for extension in old.extensions:
            builder = builder.add_extension(extension.value, extension.critical)
        made = builder.not_valid_before(begin).not_valid_after(end).sign(key, hashes.SHA256())
        stored.write_bytes(b"".join(one.public_bytes(serialization.Encoding.PEM) for one in (made, own)))


def authority(folder: Path) -> Authority:
    """One whose files are in `folder`; not started."""
    folder.mkdir()
    (folder / "Caddyfile").write_text(CADDYFILE)
    root = folder / "data/caddy/pki/authorities/local/root.crt"
    return Authority(folder=folder, port=PORT, root=root, env=places(folder), config=folder / "Caddyfile")
