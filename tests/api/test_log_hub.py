"""Many viewers of one log: what is read for them, what is kept, and what each of them gets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from spaces_platform.adapters.file_logs import FileLogStore
from spaces_platform.api import log_hub
from spaces_platform.api.log_hub import EncodedPage, LogHub
from spaces_platform.clock import SystemClock
from spaces_platform.logs import AnnouncedLogs, LogFeed
from spaces_platform.ports import LogLine

STREAM = "build/1"
SECONDS = 60.0
IDLE = b": idle\n\n"


class Log:
    """A real log of one stream, whose reads are counted."""

    def __init__(self, root: Path) -> None:
        self.feed = LogFeed()
        self.store = AnnouncedLogs(FileLogStore(root, clock=SystemClock()), self.feed.changed)
        self.hub = LogHub(self._in_thread, self.feed, lambda line: f"{line.text}\n".encode())
        self.reads: list[tuple[int, int]] = []
        """After which line, and how many came."""
        self.done = False

    async def _in_thread(self, work: Callable[[], EncodedPage]) -> EncodedPage:
        return await asyncio.to_thread(work)

    def read(self, after: int) -> tuple[Sequence[LogLine], bool]:
        done = self.done
        lines = self.store.read(STREAM, after)
        self.reads.append((after, len(lines)))
        return lines, done

    async def write(self, *lines: str) -> None:
        await asyncio.to_thread(self.store.append, STREAM, lines)

    async def end(self) -> None:
        self.done = True
        self.feed.changed(STREAM)

    def follow(self, tail: int | None = None, idle: float = SECONDS) -> Viewer:
        return Viewer(self, tail, idle)


class Viewer:
    """One who follows, and keeps what came."""

    def __init__(self, log: Log, tail: int | None, idle: float) -> None:
        self.got = bytearray()
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self._body = log.hub.follow(STREAM, log.read, tail=tail, idle=idle, idle_word=IDLE)
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async for piece in self._body:
            self.got += piece
            await self.goes_on.wait()

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})
        await self._body.aclose()  # type: ignore[attr-defined]


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path)


async def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {SECONDS} s"
        await asyncio.sleep(0.01)


def test_thousands_of_viewers_cost_one_read_for_each_change(log: Log) -> None:
    async def run() -> None:
        viewers = [log.follow() for _ in range(2_000)]
        begun = time.monotonic()

        def all_have(text: str) -> bool:
            return all(viewer.got == text.encode() for viewer in viewers)

        text = ""
        for n in range(5):
            await log.write(f"line {n}")
            text += f"line {n}\n"
            await until(partial(all_have, text), f"change {n} at every viewer")
        await log.end()
        await asyncio.wait_for(asyncio.gather(*(v.task for v in viewers)), SECONDS)
        took = time.monotonic() - begun
        assert [lines for _, lines in log.reads if lines] == [1] * 5
        # The others look whether there is more where nobody said so: once for all viewers.
        assert len(log.reads) <= 5 + 5 + 2 + took / log_hub.POLL_SECONDS[0]
        assert not log.hub.followed

    asyncio.run(run())


def test_a_burst_is_read_in_few_looks_and_comes_whole_and_in_order(log: Log) -> None:
    async def run() -> None:
        viewer = log.follow()
        for n in range(1_000):
            log.store.append(STREAM, [f"{n}"])
            if n % 50 == 0:
                await asyncio.sleep(0)
        await log.end()
        await asyncio.wait_for(viewer.task, SECONDS)
        assert viewer.got.split() == [str(n).encode() for n in range(1_000)]
        assert len(log.reads) < 200

    asyncio.run(run())


def test_slow_viewers_miss_nothing_and_what_is_kept_is_bounded(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_hub, "BUFFER_BYTES", 2_000)
    monkeypatch.setattr(log_hub, "PAGE_BYTES", 4_000)

    async def run() -> None:
        fast, slow = log.follow(), [log.follow() for _ in range(50)]
        await log.write("first")
        await until(lambda: all(v.got for v in slow), "the first line")
        for viewer in slow:
            viewer.goes_on.clear()
        await log.write("second")
        await until(lambda: all(v.got.endswith(b"second\n") for v in slow), "what they stop at")
        for n in range(100):
            await log.write(*(f"{n}-{m} ".ljust(50, ".") for m in range(10)))
        await until(lambda: fast.got.count(b"\n") == 1_002, "the fast one at the end")
        followed = log.hub.followed[STREAM]
        assert sum(map(len, followed._events)) <= 2_000
        before = len(log.reads)
        for viewer in slow:
            viewer.goes_on.set()
        await log.end()
        await asyncio.wait_for(asyncio.gather(fast.task, *(v.task for v in slow)), SECONDS)
        assert all(v.got == fast.got for v in slow)
        # 51 kB by pages of 4 kB, shared by all who are at the same place, and not 50 times that.
        assert len([after for after, _ in log.reads[before:] if after < 1_002]) < 2 * 50

    asyncio.run(run())


def test_a_tail_begins_near_the_end_even_below_what_is_kept(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_hub, "BUFFER_BYTES", 20)

    async def run() -> None:
        await log.write(*(str(n) for n in range(100)))
        log.done = True
        viewers = {tail: log.follow(tail) for tail in (0, 1, 50, 1_000)}
        await asyncio.wait_for(asyncio.gather(*(v.task for v in viewers.values())), SECONDS)
        for tail, viewer in viewers.items():
            assert viewer.got.split() == [str(n).encode() for n in range(100)][max(0, 100 - tail) :], tail

    asyncio.run(run())


def test_nothing_is_read_for_a_stream_that_everybody_left(log: Log) -> None:
    async def run() -> None:
        viewers = [log.follow() for _ in range(3)]
        await log.write("a")
        await until(lambda: all(v.got for v in viewers), "the line")
        reader = log.hub.followed[STREAM].task
        for viewer in viewers[:2]:
            await viewer.leave()
        await log.write("b")
        await until(lambda: viewers[2].got == b"a\nb\n", "the one who stayed")
        await viewers[2].leave()
        assert reader is not None
        await asyncio.wait({reader}, timeout=SECONDS)
        assert reader.cancelled()
        assert not log.hub.followed
        assert not log.feed._followers

    asyncio.run(run())


def test_silence_is_filled_and_a_failure_reaches_every_viewer(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        viewers = [log.follow(idle=0.01) for _ in range(3)]
        await until(lambda: all(IDLE in v.got for v in viewers), "a word in the silence")

        def broken(stream: str, after: int = 0) -> Sequence[LogLine]:
            raise OSError("gone")

        with monkeypatch.context() as patch:
            patch.setattr(log.store, "read", broken)
            log.feed.changed(STREAM)
            await asyncio.wait({v.task for v in viewers}, timeout=SECONDS)
            assert [str(v.task.exception()) for v in viewers] == ["gone"] * 3
        await log.write("again")
        late = log.follow()
        await until(lambda: late.got == b"again\n", "a later viewer")
        await late.leave()

    asyncio.run(run())
