"""A small real name server: answers TXT questions over UDP from a table that tests change."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import dns.flags
import dns.message
import dns.rcode
import dns.rrset


@dataclass
class NameServer:
    records: dict[str, list[str]] = field(default_factory=dict)
    """Texts by name; a text with `|` is sent as several strings of one record."""
    rcode: dns.rcode.Rcode = dns.rcode.NOERROR
    asked: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def answer(self, wire: bytes) -> bytes:
        question = dns.message.from_wire(wire)
        name = question.question[0].name.to_text(omit_final_dot=True)
        self.asked.append(name)
        answer = dns.message.make_response(question)
        answer.flags |= dns.flags.RA
        answer.set_rcode(self.rcode)
        if self.rcode == dns.rcode.NOERROR and name not in self.records:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        elif texts := self.records.get(name):
            quoted = [" ".join(f'"{part}"' for part in text.split("|")) for text in texts]
            answer.answer.append(dns.rrset.from_text_list(f"{name}.", 60, "IN", "TXT", quoted))
        return answer.to_wire()


@contextmanager
def name_server() -> Iterator[NameServer]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        server = NameServer(port=udp.getsockname()[1])

        def serve() -> None:
            while True:
                wire, client = udp.recvfrom(4096)
                if not wire:
                    return
                udp.sendto(server.answer(wire), client)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
            end.sendto(b"", ("127.0.0.1", server.port))
        thread.join(5)
