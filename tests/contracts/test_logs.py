"""The contract of the LogStore port, held to every implementation alike; then what is particular to files."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from spaces_platform.adapters import file_logs
from spaces_platform.adapters.file_logs import FileLogStore
from spaces_platform.errors import DiskFull, Invalid, Unavailable
from spaces_platform.logs import AnnouncedLogs
from spaces_platform.ports import LogLine, LogStore


class TickingClock:
    """A second passes at every look."""

    def __init__(self) -> None:
        self.at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    def now(self) -> datetime:
        self.at += timedelta(seconds=1)
        return self.at


STORES: dict[str, Callable[[Path], LogStore]] = {
    "file": lambda place: FileLogStore(place, TickingClock()),
    "announced": lambda place: AnnouncedLogs(FileLogStore(place, TickingClock()), lambda _stream: None),
}


@pytest.fixture(params=sorted(STORES))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> LogStore:
    return STORES[request.param](tmp_path / "logs")


def texts(store: LogStore, stream: str, after: int = 0) -> list[tuple[int, str]]:
    return [(line.n, line.text) for line in store.read(stream, after)]


def test_lines_are_numbered_from_one_without_gaps(store: LogStore) -> None:
    store.append("build/1", ["a", "b"])
    store.append("build/1", [])
    store.append("build/1", ["c"])
    assert texts(store, "build/1") == [(1, "a"), (2, "b"), (3, "c")]


def test_lines_carry_the_time_of_the_clock(store: LogStore) -> None:
    store.append("build/1", ["a"])
    store.append("build/1", ["b"])
    first, second = store.read("build/1")
    assert second.at - first.at == timedelta(seconds=1)
    assert first.at.tzinfo is UTC


def test_following_gives_what_is_new_and_only_that(store: LogStore) -> None:
    store.append("build/1", ["a", "b"])
    assert texts(store, "build/1", 1) == [(2, "b")]
    assert texts(store, "build/1", 2) == []
    store.append("build/1", ["c"])
    assert texts(store, "build/1", 2) == [(3, "c")]
    assert texts(store, "build/1", 0) == [(1, "a"), (2, "b"), (3, "c")]
    assert texts(store, "build/1", 99) == []


def test_streams_do_not_mix(store: LogStore) -> None:
    for name in ("build/1", "build/10", "run/1", "build"):
        store.append(name, [name])
    for name in ("build/1", "build/10", "run/1", "build"):
        assert texts(store, name) == [(1, name)]


def test_an_unknown_stream_is_empty_and_can_be_deleted(store: LogStore) -> None:
    assert store.read("build/404") == []
    store.delete("build/404")


def test_a_deleted_stream_is_empty_and_begins_anew(store: LogStore) -> None:
    store.append("build/1", ["a", "b"])
    assert texts(store, "build/1")
    store.delete("build/1")
    assert texts(store, "build/1") == []
    store.append("build/1", ["c"])
    assert texts(store, "build/1") == [(1, "c")]


def test_any_text_is_kept_and_line_breaks_make_lines(store: LogStore) -> None:
    odd = ["", "  spaces  ", "é 漢字 \x1b[31mred\x1b[0m", "tab\there", "0123456789012 looks like a stamp"]
    store.append("build/1", [*odd, "one\ntwo"])
    assert [text for _, text in texts(store, "build/1")] == [*odd, "one", "two"]


@pytest.mark.parametrize("name", ["", "/x", "x/", "../x", "a/../b", "a b", "a/b/c/d/e", ".x", "a@b", "a\n", "x" * 200])
def test_bad_names_are_refused(store: LogStore, name: str) -> None:
    for action in (lambda: store.append(name, ["x"]), lambda: store.read(name), lambda: store.delete(name)):
        with pytest.raises(Invalid):
            action()


def test_concurrent_writers_lose_nothing_and_share_no_number(store: LogStore) -> None:
    def write(who: int) -> None:
        for n in range(200):
            store.append("build/1", [f"{who}-{n}"])

    threads = [threading.Thread(target=write, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    seen: list[int] = []
    while len(seen) < 800:
        seen += [line.n for line in store.read("build/1", seen[-1] if seen else 0)]
    for thread in threads:
        thread.join()
    assert seen == list(range(1, 801))
    assert {t for _, t in texts(store, "build/1")} == {f"{w}-{n}" for w in range(4) for n in range(200)}


# --- files --------------------------------------------------------------------------------------------------------
def test_numbers_go_on_after_a_restart(tmp_path: Path) -> None:
    FileLogStore(tmp_path, TickingClock()).append("build/1", ["a", "b"])
    again = FileLogStore(tmp_path, TickingClock())
    again.append("build/1", ["c"])
    assert texts(again, "build/1") == [(1, "a"), (2, "b"), (3, "c")]


def test_a_line_torn_by_a_crash_is_cut_and_its_number_given_to_the_next(tmp_path: Path) -> None:
    FileLogStore(tmp_path, TickingClock()).append("build/1", ["a", "b"])
    (segment,) = (tmp_path / "build@1").iterdir()
    with segment.open("ab") as file:
        file.write(b"1767323045000 half a li")
    again = FileLogStore(tmp_path, TickingClock())
    assert texts(again, "build/1") == [(1, "a"), (2, "b")]
    again.append("build/1", ["c"])
    assert texts(again, "build/1") == [(1, "a"), (2, "b"), (3, "c")]


def test_a_line_of_zeros_after_a_power_cut_is_shown_not_fatal(tmp_path: Path) -> None:
    store = FileLogStore(tmp_path, TickingClock())
    store.append("build/1", ["a"])
    (segment,) = (tmp_path / "build@1").iterdir()
    segment.write_bytes(segment.read_bytes() + bytes(40) + b"\n")
    assert len(store.read("build/1")) == 2


def test_a_killed_writer_leaves_a_log_that_reads_and_goes_on(tmp_path: Path) -> None:
    source = f"""
import sys
from pathlib import Path
from spaces_platform.adapters.file_logs import FileLogStore
from tests.contracts.test_logs import TickingClock
store = FileLogStore(Path({str(tmp_path)!r}), TickingClock(), limit=256 << 10)
n = 0
while True:
    store.append("build/1", [f"{{n + k}} " + "x" * 50 for k in range(7)]); n += 7
    if n == 700: print("going", flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, cwd=Path.cwd()) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        writer.kill()
    again = FileLogStore(tmp_path, TickingClock(), limit=256 << 10)
    again.append("build/1", ["after"])
    *lines, last = [line for line in again.read("build/1") if "dropped" not in line.text]
    assert last.text == "after"
    assert all(line.text.split()[0] == str(line.n - 1) for line in lines)


WRITER = """
import sys
from pathlib import Path
from spaces_platform.adapters.file_logs import FileLogStore
from tests.contracts.test_logs import TickingClock
who, count, limit, place = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
store = FileLogStore(place, TickingClock(), limit=limit)
print("ready", flush=True)
sys.stdin.readline()
for n in range(count):
    store.append("build/1", [f"{who}-{n}"])
print("done", flush=True)
sys.stdin.readline()
store.append("build/1", [f"{who}-last"])
"""


def writer(who: str, count: int, limit: int, place: Path) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", WRITER, who, str(count), str(limit), str(place)]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path.cwd())
    told(process, "ready")
    return process


def told(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == word + "\n"


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.parametrize("limit", [8 << 20, 64 << 10], ids=["one segment", "many segments"])
def test_writers_in_several_processes_lose_nothing_and_share_no_number(tmp_path: Path, limit: int) -> None:
    count = 600
    writers = [writer(who, count, limit, tmp_path) for who in "abc"]
    mine = FileLogStore(tmp_path, TickingClock(), limit=limit)
    seen: list[LogLine] = []
    for process in writers:
        go_on(process)
    for n in range(count):
        mine.append("build/1", [f"m-{n}"])
        seen += mine.read("build/1", seen[-1].n if seen else 0)
    for process in writers:
        told(process, "done")
    seen += mine.read("build/1", seen[-1].n)
    assert [line.n for line in seen] == list(range(1, 4 * count + 1))
    assert {line.text for line in seen} == {f"{who}-{n}" for who in "abcm" for n in range(count)}
    # Each goes on after what the others wrote, and each writer's own lines are in order.
    assert all(
        [line.text for line in seen if line.text[0] == who] == [f"{who}-{n}" for n in range(count)] for who in "abcm"
    )
    for process in writers:
        go_on(process)
        assert process.wait(30) == 0
    assert [line.n for line in mine.read("build/1", 4 * count)] == [4 * count + n for n in (1, 2, 3)]


def test_a_writer_whose_full_segment_others_have_dropped_goes_on_after_theirs(tmp_path: Path) -> None:
    one, other = (FileLogStore(tmp_path, TickingClock(), limit=64 << 10) for _ in range(2))
    line = "x" * (1024 - len("1767323045000 \n"))
    one.append("build/1", [line] * 16)
    other.append("build/1", [line] * 16 * 5)
    one.append("build/1", ["last"])
    assert texts(other, "build/1", 16 * 6) == [(16 * 6 + 1, "last")]


def test_a_stream_deleted_by_another_process_begins_anew(tmp_path: Path) -> None:
    one, other = FileLogStore(tmp_path, TickingClock()), FileLogStore(tmp_path, TickingClock())
    one.append("build/1", ["a", "b"])
    assert texts(other, "build/1") == [(1, "a"), (2, "b")]
    other.delete("build/1")
    one.append("build/1", ["c"])
    assert texts(one, "build/1") == texts(other, "build/1") == [(1, "c")]


def test_a_stopped_writer_holds_others_up_for_a_bounded_time_and_readers_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_logs, "LOCK_SECONDS", 0.2)
    store = FileLogStore(tmp_path, TickingClock())
    store.append("build/1", ["a"])
    holder = os.open(tmp_path / "build@1", os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with pytest.raises(Unavailable, match="another process"):
        store.append("build/1", ["b"])
    assert texts(store, "build/1") == [(1, "a")]
    os.close(holder)
    store.append("build/1", ["c"])
    assert texts(store, "build/1") == [(1, "a"), (2, "c")]


def test_old_lines_are_dropped_with_a_mark_and_numbers_stay(tmp_path: Path) -> None:
    limit = 128 << 10
    store = FileLogStore(tmp_path, TickingClock(), limit=limit)
    for n in range(0, 5000, 10):
        store.append("build/1", [f"line {k} " + "x" * 60 for k in range(n + 1, n + 11)])
    kept = sum(path.stat().st_size for path in (tmp_path / "build@1").iterdir())
    assert limit // 2 < kept <= limit
    mark, *lines = store.read("build/1")
    assert "dropped" in mark.text
    assert [line.n for line in lines] == list(range(mark.n + 1, 5001))
    assert all(line.text.startswith(f"line {line.n} ") for line in lines)
    assert [line.n for line in store.read("build/1", 4999)] == [5000]
    assert "dropped" not in store.read("build/1", mark.n)[0].text


def test_one_endless_line_is_cut(tmp_path: Path) -> None:
    store = FileLogStore(tmp_path, TickingClock(), limit=1 << 20)
    store.append("build/1", ["x" * 40_000])
    assert [len(line.text) for line in store.read("build/1")] == [16384, 16384, 40_000 - 2 * 16384]


def test_following_reads_only_what_is_new(tmp_path: Path) -> None:
    store = FileLogStore(tmp_path, TickingClock(), limit=32 << 20)
    store.append("build/1", ["x" * 100] * 20_000)
    store.read("build/1")
    store.append("build/1", ["new"])
    before = read_so_far()
    assert texts(store, "build/1", 20_000) == [(20_001, "new")]
    assert read_so_far() - before < 100_000


def read_so_far() -> int:
    """Bytes this process has read, as the kernel counts them."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_a_full_disk_is_named_and_writing_goes_on_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileLogStore(tmp_path, TickingClock())
    store.append("build/1", ["a"])
    real = os.write

    def half_then_full(fd: int, data: bytes) -> int:
        if len(data) > 20:
            return real(fd, data[:10])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half_then_full)
        with pytest.raises(DiskFull):
            store.append("build/1", ["b is lost"])
    store.append("build/1", ["c"])
    assert texts(store, "build/1") == [(1, "a"), (2, "c")]


def test_more_streams_than_open_files(tmp_path: Path) -> None:
    store = FileLogStore(tmp_path, TickingClock())
    before = len(os.listdir("/proc/self/fd"))
    for turn in range(2):
        for n in range(100):
            store.append(f"build/{n}", [f"{turn}"])
    assert len(os.listdir("/proc/self/fd")) - before <= 64
    assert all(texts(store, f"build/{n}") == [(1, "0"), (2, "1")] for n in range(100))
    store.close()


def test_logs_are_for_their_owner_only(tmp_path: Path) -> None:
    store = FileLogStore(tmp_path / "logs", TickingClock())
    store.append("build/1", ["secret"])
    (segment,) = (tmp_path / "logs" / "build@1").iterdir()
    assert (tmp_path / "logs").stat().st_mode & 0o777 == 0o700
    assert segment.stat().st_mode & 0o777 == 0o600
