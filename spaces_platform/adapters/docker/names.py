"""Whom apps under gVisor ask for names: the name servers of this host, in a file that is mounted into each of them.

Everywhere else the engine answers inside the container; that is on a loopback address, which gVisor keeps to itself.
The fence lets through what is asked of these servers (fence.name_servers).
"""

from __future__ import annotations

from pathlib import Path

from . import fence


class Names:
    """The file. Safe to call from any thread."""

    def __init__(self, path: Path, source: Path = fence.RESOLV_CONF) -> None:
        self.path, self._source = path, source

    def refresh(self) -> str:
        """Write what is true now; why apps resolve nothing, in words, or nothing.

        In place: a file in its stead would not be seen by what runs.
        """
        servers = fence.name_servers(fence.resolv_conf(self._source))
        text = "".join(f"nameserver {server}\n" for server in servers)
        try:
            if not self.path.exists() or self.path.read_text() != text:
                self.path.write_text(text)
                self.path.chmod(0o644)  # read by users of any number
        except OSError as error:
            return f"{self.path} could not be written: {error}"
        return "" if servers else f"{self._source} names no IPv4 server that answers beyond this host's loopback"
