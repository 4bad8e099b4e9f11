"""What an app writes to its terminal, into the log. Owns splitting into lines and the rate cap; not the file format.

A flood is read and thrown away beyond the cap (so that the app is not blocked by its own chatter) and, beyond a second
cap, not read at all (so that it costs no processor time). Invariant: memory stays below a few read buffers.
"""

from __future__ import annotations

import os

from .segments import MAX_LINE, Writer

CHUNK = 1 << 16
DROP_FACTOR = 16
"""Output is read, and dropped, at up to this many times the kept rate."""


class Pump:
    """One pipe into one log."""

    def __init__(self, fd: int, log: Writer, rate: int) -> None:
        os.set_blocking(fd, False)
        self.fd, self.log, self.rate = fd, log, max(rate, CHUNK)
        self.partial = b""
        self.window = 0.0
        self.read_bytes = self.dropped_bytes = self.dropped_lines = 0
        self.failed = False
        self.open = True

    def paused_until(self, now: float) -> float | None:
        """When to read again, where the flood is beyond even the second cap."""
        if now >= self.window + 1:
            self._new_window(now)
        return self.window + 1 if self.read_bytes >= self.rate * DROP_FACTOR else None

    def _new_window(self, now: float) -> None:
        if self.dropped_bytes:
            self.write(
                [
                    f"[spaces] output too fast: {self.dropped_lines} lines "
                    f"({self.dropped_bytes >> 10} KiB) dropped, {self.rate >> 10} KiB/s are kept".encode()
                ]
            )
        self.window, self.read_bytes, self.dropped_bytes, self.dropped_lines = now, 0, 0, 0

    def pump(self, now: float) -> None:
        """Read what is there, once. Sets `open` to False at the end of the output."""
        if now >= self.window + 1:
            self._new_window(now)
        try:
            chunk = os.read(self.fd, CHUNK)
        except BlockingIOError:
            return
        if not chunk:
            self.open = False
            return
        self.read_bytes += len(chunk)
        if self.read_bytes > self.rate:
            self.dropped_bytes += len(chunk)
            self.dropped_lines += chunk.count(b"\n")
            self.partial = b""
            return
        *lines, self.partial = (self.partial + chunk).split(b"\n")
        while len(self.partial) > MAX_LINE:
            lines.append(self.partial[:MAX_LINE])
            self.partial = self.partial[MAX_LINE:]
        self.write([shown(line) for line in lines])

    def finish(self) -> None:
        """Take what is left in the pipe, without waiting, and the last line even without its newline."""
        for _ in range(32):  # a pipe holds 1 MiB at most; a writer that is still alive must not keep the shim here
            before = self.read_bytes
            self.pump(self.window)
            if self.read_bytes == before:
                break
        if self.partial:
            self.write([shown(self.partial)])
        self._new_window(self.window)

    def write(self, lines: list[bytes]) -> None:
        """Lines into the log; on a full disk they are lost, and the log says so once there is room."""
        if not lines:
            return
        try:
            if self.failed:
                self.log.append([b"[spaces] output was lost: the disk of the logs was full"])
                self.failed = False
            self.log.append(lines)
        except OSError:
            self.failed = True


def shown(line: bytes) -> bytes:
    """What a terminal would show of a line: progress bars rewrite it with carriage returns."""
    return line.rstrip(b"\r").rpartition(b"\r")[2]
