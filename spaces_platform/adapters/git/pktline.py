"""The pkt-line framing of git's protocols, as far as a server between git and its client needs it.

It owns reading the commands of a push, holding back its report, and making packets; it moves no bytes itself.
Invariant: the report of a push leaves `ReportHold` only by `release`. Formats: `git help protocol-pack` (reference
update request, report status), `git help protocol-common` (pkt-line), side-band-64k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from spaces_platform.adapters.git.push_rules import ZERO
from spaces_platform.errors import Invalid, TooLarge
from spaces_platform.ports import RefUpdate

FLUSH = b"0000"
_DATA = 65515
_LINE = 1000
_SAID_KEPT = 8192


def packet(payload: bytes) -> bytes:
    return b"%04x%s" % (len(payload) + 4, payload)


def band(number: int, data: bytes) -> bytes:
    """Side-band packets: 1 data, 2 progress (`remote:`), 3 fatal error."""
    return b"".join(packet(bytes([number]) + data[at : at + _DATA]) for at in range(0, len(data), _DATA))


def remote_lines(lines: Sequence[str], number: int = 2) -> bytes:
    """Lines that the client shows behind `remote:`; whatever could steer a terminal is dropped."""
    clean = ["".join(c for c in line if c.isprintable())[:_LINE] for line in lines]
    return band(number, "".join(f"{line}\n" for line in clean).encode())


@dataclass(frozen=True, slots=True)
class PushRequest:
    """The first part of a push: what is asked for. The pack follows it."""

    updates: tuple[RefUpdate, ...]
    capabilities: frozenset[str]

    @property
    def sideband(self) -> bool:
        return "side-band-64k" in self.capabilities


@dataclass(slots=True)
class PushRequestReader:
    """Reads a PushRequest from the start of a body, fed in pieces.

    Raises Invalid on bad framing, TooLarge past `most` updates. `seen` holds all bytes fed so far.
    """

    most: int
    seen: bytearray = field(default_factory=bytearray)
    capabilities: frozenset[str] = frozenset()
    _at: int = 0
    _updates: list[RefUpdate] = field(default_factory=list)

    def feed(self, data: bytes) -> PushRequest | None:
        """The request once it is complete, else None."""
        self.seen += data
        while len(self.seen) - self._at >= 4:
            size = _size(bytes(self.seen[self._at : self._at + 4]))
            if size == 0:
                return PushRequest(tuple(self._updates), self.capabilities)
            if len(self.seen) - self._at < size:
                break
            line = bytes(self.seen[self._at + 4 : self._at + size])
            self._at += size
            self._line(line)
        return None

    def _line(self, line: bytes) -> None:
        text, nul, capabilities = line.rstrip(b"\n").partition(b"\0")
        if nul:
            self.capabilities = frozenset(capabilities.decode("utf-8", "replace").split())
        if text.startswith(b"shallow "):
            return
        words = text.decode("utf-8", "backslashreplace").split(" ", 2)
        if len(words) != 3 or not all(_is_oid(word) for word in words[:2]):
            raise Invalid("The push is not readable: a ref update must be `<old id> <new id> <ref>`.")
        self._updates.append(RefUpdate(words[2], words[0], words[1]))
        if len(self._updates) > self.most:
            raise TooLarge(f"A push may update at most {self.most} branches and tags at once.")


def _is_oid(word: str) -> bool:
    return len(word) == 40 and all(c in "0123456789abcdef" for c in word)


def _size(head: bytes) -> int:
    try:
        size = int(head, 16) if head.isalnum() else -1
    except ValueError:
        size = -1
    if size != 0 and not 4 <= size <= 65520:
        raise Invalid(f"The push is not readable: {head!r} is no packet length.")
    return size


def push_command(update: RefUpdate) -> bytes:
    """A push of one ref without side-band, its pack to follow."""
    return packet(f"{update.old} {update.new} {update.ref}\0report-status".encode()) + FLUSH


@dataclass(slots=True)
class ReportHold:
    """Passes progress of a push on at once and keeps its report until `release`."""

    sideband: bool
    report: bytearray = field(default_factory=bytearray)
    said: bytearray = field(default_factory=bytearray)
    """The last of the progress that was passed on."""
    _rest: bytes = b""

    def feed(self, data: bytes) -> bytes:
        """What of git's output may go to the client now. Raises Invalid on bad framing."""
        if not self.sideband:
            self.report += data
            return b""
        data, now, at = self._rest + data, bytearray(), 0
        while len(data) - at >= 4:
            size = _size(data[at : at + 4])
            step = size or 4
            if len(data) - at < step:
                break
            if size > 5 and data[at + 4] == 1:
                self.report += data[at + 5 : at + size]
            elif size >= 5:  # an empty packet of band 1 keeps the connection alive
                now += data[at : at + size]
                self.said = (self.said + data[at + 5 : at + size])[-_SAID_KEPT:]
            at += step
        self._rest = data[at:]
        return bytes(now)

    def release(self) -> bytes:
        """The report and the end of the stream."""
        return band(1, bytes(self.report)) + FLUSH if self.sideband else bytes(self.report)

    def results(self) -> tuple[str, Mapping[str, str | None]]:
        """(`ok` or why unpacking failed, ref -> None or why it did not move)."""
        unpack, refs, at, data = "", dict[str, str | None](), 0, bytes(self.report)
        while len(data) - at >= 4 and (size := _size(data[at : at + 4])):
            word, _, rest = data[at + 4 : at + size].decode("utf-8", "replace").rstrip("\n").partition(" ")
            at += size
            if word == "unpack":
                unpack = rest
            elif word == "ok":
                refs[rest] = None
            elif word == "ng":
                ref, _, reason = rest.partition(" ")
                refs[ref] = reason
        return unpack, refs


def refusal(request: PushRequest, text: str) -> bytes:
    """A whole answer that refuses a push before git saw it."""
    report = packet(f"unpack {text}\n".encode())
    report += b"".join(packet(f"ng {update.ref} refused\n".encode()) for update in request.updates) + FLUSH
    if not request.sideband:
        return report
    return remote_lines(["", "Push refused; nothing was stored.", f"  * {text}", ""]) + band(1, report) + FLUSH


__all__ = ["FLUSH", "ZERO", "PushRequest", "PushRequestReader", "ReportHold"]
