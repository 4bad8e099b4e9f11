"""The public DNS through dnspython: text records, asked of the system's name servers or of given ones."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from spaces_platform.errors import Invalid, Unavailable

if TYPE_CHECKING:
    import dns.resolver

SECONDS = 5.0
"""For one question, all its tries together."""
RECORDS = 50
"""Most records of one name that are read."""


class DnsTxt:
    """The TxtRecords port. Thread-safe; keeps no cache, so that a record that was just made is seen."""

    def __init__(self, servers: str = "") -> None:
        """`servers`: `10.0.0.53,[::1]:5353`; empty: those of resolv.conf. Raises Invalid."""
        self._servers = [_server(text.strip()) for text in servers.split(",") if text.strip()]

    def txt(self, name: str) -> frozenset[str]:
        # Imported at the first question: most platforms never ask one, and every start would wait for it.
        import dns.exception
        import dns.resolver

        try:
            answer = self._resolver().resolve(name, "TXT", lifetime=SECONDS)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return frozenset()
        except dns.exception.DNSException as exc:
            raise Unavailable(
                f"The DNS does not answer for {name}: {type(exc).__name__}. Try again in a minute."
            ) from exc
        # One record may come in several strings (RFC 7208 section 3.3 reads them as one).
        texts = (b"".join(record.strings).decode("utf-8", "replace") for record in list(answer)[:RECORDS])
        return frozenset(text.strip() for text in texts)

    def _resolver(self) -> dns.resolver.Resolver:
        """Read anew for each question: resolv.conf changes under a process that runs for months."""
        import dns.resolver

        try:
            resolver = dns.resolver.Resolver(configure=not self._servers)
        except dns.resolver.NoResolverConfiguration as exc:
            raise Unavailable("This machine has no name server: see /etc/resolv.conf, or set SPACES_DNS.") from exc
        if self._servers:
            resolver.nameservers = [host for host, _ in self._servers]
            resolver.nameserver_ports = dict(self._servers)
        return resolver


def _server(text: str) -> tuple[str, int]:
    host, port = text, 53
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = int(rest[1:]) if rest[1:].isdigit() else 53
    elif text.count(":") == 1 and text.rpartition(":")[2].isdigit():
        host, port = text.rpartition(":")[0], int(text.rpartition(":")[2])
    try:
        ipaddress.ip_address(host)
    except ValueError as exc:
        raise Invalid(f"dns: {text!r} is not the address of a name server, such as 10.0.0.53.") from exc
    return host, port
