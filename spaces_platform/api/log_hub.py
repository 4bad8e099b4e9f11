"""Many viewers of one log cost one read of it: a stream is read once for each change, and shared.

Owns what is kept of a followed stream, and when it is read. Invariants: a viewer gets every line once, in order, from
where it began; what is kept is bounded by BUFFER_BYTES a stream however many watch and however slow they are: whoever
falls behind it reads pages of the log itself, and those who are at the same place share that page, too.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from spaces_platform.logs import LogFeed
from spaces_platform.ports import LogLine

Page = tuple[Sequence[LogLine], bool]
"""Lines, and whether there will be no more."""
Read = Callable[[int], Page]
"""The lines after a number. Blocking."""
Encoded = Sequence[tuple[int, bytes]]

BUFFER_BYTES = 1 << 20
PAGE_BYTES = 2 << 20
"""Of a page that is read for those who are not at the end."""
CHUNK = 500
"""Lines that are sent at once."""
SPACING_SECONDS = 0.05
"""Least time between two reads of one stream, so that a build that prints fast costs no more than twenty a second."""
POLL_SECONDS = (0.2, 1.0)
"""Between looks at a stream that nobody said grew: first and longest; a line that came brings the first back."""


EncodedPage = tuple[Encoded, bool]
InThread = Callable[[Callable[[], EncodedPage]], Awaitable[EncodedPage]]


class LogHub:
    """All followed streams of this process. Used on the event loop only."""

    def __init__(self, in_thread: InThread, feed: LogFeed, encode: Callable[[LogLine], bytes]) -> None:
        """`in_thread` runs blocking work; `encode` makes what is sent of a line."""
        self._in_thread, self._feed, self._encode = in_thread, feed, encode
        self.followed: dict[str, _Followed] = {}

    async def follow(
        self, stream: str, read: Read, *, tail: int | None = None, idle: float, idle_word: bytes
    ) -> AsyncIterator[bytes]:
        """The stream from its start, or its last `tail` lines, then what comes, until `read` says there is no more.

        After each `idle` seconds of silence `idle_word` is given. What `read` raises is raised here.
        """
        followed = self._join(stream, read)
        try:
            after = await followed.begin(tail)
            while True:
                change = followed.change
                page = await followed.page(after)
                if page:
                    after = page[-1][0]
                    for at in range(0, len(page), CHUNK):
                        yield b"".join(event for _, event in page[at : at + CHUNK])
                elif after < followed.start:
                    after = followed.start
                elif followed.failure is not None:
                    raise followed.failure
                elif followed.done:
                    return
                elif not await _happens(change, idle):
                    yield idle_word
        finally:
            self._leave(followed)

    def _join(self, stream: str, read: Read) -> _Followed:
        followed = self.followed.get(stream)
        if followed is None or followed.failure is not None:
            followed = self.followed[stream] = _Followed(stream, read, self._in_thread, self._encode)
            followed.task = asyncio.ensure_future(followed.run(self._feed))
        followed.viewers += 1
        return followed

    def _leave(self, followed: _Followed) -> None:
        followed.viewers -= 1
        if not followed.viewers:
            followed.stop()
            if self.followed.get(followed.stream) is followed:
                del self.followed[followed.stream]


class _Followed:
    """One stream while somebody follows it."""

    def __init__(self, stream: str, read: Read, in_thread: InThread, encode: Callable[[LogLine], bytes]) -> None:
        self.stream, self._read, self._in_thread, self._encode = stream, read, in_thread, encode
        self.viewers = 0
        self.task: asyncio.Task[None] | None = None
        self.start = 0
        """Every known line after this one is kept."""
        self.last = 0
        self.done = False
        self.failure: Exception | None = None
        self.change = asyncio.Event()
        """Set, and replaced by a new one, when there is more."""
        self._ready = asyncio.Event()
        self._numbers: list[int] = []
        self._events: list[bytes] = []
        self._bytes = 0
        self._pages: dict[int, asyncio.Future[EncodedPage]] = {}

    async def begin(self, tail: int | None) -> int:
        """The number after which a viewer begins."""
        await self._ready.wait()
        return 0 if tail is None else max(0, self.last - tail)

    async def page(self, after: int) -> Encoded:
        """What is known after a line; may be empty, and may be less than all."""
        if after >= self.start:
            at = bisect_right(self._numbers, after)
            return list(zip(self._numbers[at:], self._events[at:], strict=True))
        page = self._pages.get(after)
        if page is None:
            page = self._pages[after] = asyncio.ensure_future(self._in_thread(lambda: self._encoded(after, PAGE_BYTES)))
            page.add_done_callback(lambda _: self._pages.pop(after, None))
        # A viewer who leaves must not take the page from the others.
        return (await asyncio.shield(page))[0]

    async def run(self, feed: LogFeed) -> None:
        """Read what is new, again and again, until there is no more or nobody is left."""
        loop, woken, wait = asyncio.get_running_loop(), asyncio.Event(), POLL_SECONDS[0]

        def wake() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(woken.set)

        try:
            with feed.follow(self.stream, wake):
                while not self.done:
                    woken.clear()
                    lines, self.done = await self._in_thread(lambda: self._encoded(self.last))
                    self._keep(lines)
                    self._ready.set()
                    if lines or self.done:
                        wait = POLL_SECONDS[0]
                        self._tell()
                    if not self.done:
                        await asyncio.sleep(SPACING_SECONDS)
                        await _happens(woken, wait)
                        wait = min(wait * 1.5, POLL_SECONDS[1])
        except Exception as exc:
            # Each viewer raises it: it is their request that fails.
            self.failure = exc
            self._ready.set()
            self._tell()

    def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
        for page in tuple(self._pages.values()):
            page.cancel()

    def _encoded(self, after: int, most: int | None = None) -> EncodedPage:
        """In a thread: lines as they are sent, about `most` bytes of them."""
        lines, done = self._read(after)
        encoded: list[tuple[int, bytes]] = []
        size = 0
        for line in lines:
            event = self._encode(line)
            encoded.append((line.n, event))
            size += len(event)
            if most is not None and size >= most:
                break
        return encoded, done

    def _keep(self, lines: Encoded) -> None:
        for n, event in lines:
            self._numbers.append(n)
            self._events.append(event)
            self._bytes += len(event)
            self.last = n
        drop = 0
        while self._bytes > BUFFER_BYTES and drop < len(self._events):
            self._bytes -= len(self._events[drop])
            self.start = self._numbers[drop]
            drop += 1
        del self._numbers[:drop], self._events[:drop]

    def _tell(self) -> None:
        self.change.set()
        self.change = asyncio.Event()


async def _happens(event: asyncio.Event, seconds: float) -> bool:
    """Whether it does, within so long."""
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True
