"""Copying an app's output: every line once, in order, with a number that it keeps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from spaces_platform.adapters.docker.output import DROPPED, LOST, Output, Place, Row, fresh, moved, rows
from spaces_platform.errors import Unavailable

T = "2026-01-02T03:04:{:02}.{:09}Z"


class Engine:
    """An engine that kept these lines."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.asked = 0
        self.away = False

    def say(self, *lines: str, second: int = 5, nano: int | None = None) -> None:
        for line in lines:
            at = T.format(second, len(self.messages) if nano is None else nano)
            self.messages.append(f"{at} {line}\n".encode())

    def output(self, container: str, since: float) -> Iterator[bytes]:
        self.asked += 1
        if self.away:
            raise Unavailable("away")
        yield from self.messages


def fetched(output: Output, engine: Engine) -> list[tuple[int, str]]:
    output.fetch(engine, "c", last=True)  # type: ignore[arg-type]
    return [(line.n, line.text) for line in output.read(0)]


def test_long_lines_come_in_parts_and_progress_bars_as_they_end() -> None:
    messages = [
        b"2026-01-02T03:04:05.1Z one\n", b"2026-01-02T03:04:06Z part ", b"2026-01-02T03:04:07.5Z two\n",
        b"2026-01-02T03:04:08.25Z 10%\r100%\n", b"2026-01-02T03:04:09Z unfinished",
    ]  # fmt: skip
    assert list(rows(messages)) == [
        Row("2026-01-02T03:04:05.100000000Z", b"one"), Row("2026-01-02T03:04:06.000000000Z", b"part two"),
        Row("2026-01-02T03:04:08.250000000Z", b"100%"), Row("2026-01-02T03:04:09.000000000Z", b"unfinished"),
    ]  # fmt: skip


def test_a_line_is_cut_to_what_a_log_takes() -> None:
    found = list(rows([b"2026-01-02T03:04:05Z " + b"x" * 40000 + b"\n"]))
    assert [len(row.text) for row in found] == [16384, 16384, 7232]


def test_lines_are_copied_once_and_keep_their_numbers(tmp_path: Path) -> None:
    engine, output = Engine(), Output(tmp_path / "log", 1 << 20)
    engine.say("one", "two")
    assert fetched(output, engine) == [(1, "one"), (2, "two")]
    engine.say("three")
    assert fetched(output, engine) == [(1, "one"), (2, "two"), (3, "three")]
    again = Output(tmp_path / "log", 1 << 20)
    assert fetched(again, engine) == [(1, "one"), (2, "two"), (3, "three")]


def test_lines_of_one_very_moment_are_told_apart(tmp_path: Path) -> None:
    engine, output = Engine(), Output(tmp_path / "log", 1 << 20)
    engine.say("one", "two", nano=7)
    fetched(output, engine)
    engine.say("three", nano=7)
    assert [text for _, text in fetched(output, engine)] == ["one", "two", "three"]


def test_a_gap_is_told(tmp_path: Path) -> None:
    engine, output = Engine(), Output(tmp_path / "log", 1 << 20)
    engine.say("one", "two")
    fetched(output, engine)
    engine.messages = []
    engine.say("nine", second=9)
    assert fetched(output, engine) == [(1, "one"), (2, "two"), (3, LOST.decode()), (4, "nine")]


def test_a_kill_between_a_line_and_its_place_copies_nothing_twice(tmp_path: Path) -> None:
    engine, output = Engine(), Output(tmp_path / "log", 1 << 20)
    engine.say("one", "two")
    fetched(output, engine)
    place = (tmp_path / "log" / "place.json").read_bytes()
    engine.say("three", "four", second=6)
    fetched(output, engine)
    (tmp_path / "log" / "place.json").write_bytes(place)
    engine.say("five", second=7)
    texts = [text for _, text in fetched(Output(tmp_path / "log", 1 << 20), engine)]
    assert texts == ["one", "two", "three", "four", "five"]


def test_many_readers_are_one_question_to_the_engine(tmp_path: Path) -> None:
    engine, output = Engine(), Output(tmp_path / "log", 1 << 20)
    engine.say("one")
    for _ in range(100):
        output.fetch(engine, "c")  # type: ignore[arg-type]
        assert len(output.read(0)) == 1
    assert engine.asked <= 2


def test_an_engine_that_is_away_takes_nothing_away(tmp_path: Path) -> None:
    engine, output = Engine(), Output(tmp_path / "log", 1 << 20)
    engine.say("one")
    fetched(output, engine)
    engine.away = True
    assert fetched(output, engine) == [(1, "one")]


def test_what_is_kept_is_bounded_and_says_so(tmp_path: Path) -> None:
    engine, output = Engine(), Output(tmp_path / "log", 128 << 10)
    for second in range(40):
        engine.messages = []
        engine.say(*(f"{second}-{n}-" + "x" * 1000 for n in range(20)), second=second)
        output.fetch(engine, "c", last=True)  # type: ignore[arg-type]
    size = sum(path.stat().st_size for path in (tmp_path / "log").iterdir())
    assert size < 160 << 10
    assert output.read(0)[0].text == DROPPED


def test_a_note_of_the_platforms_own_disturbs_nothing(tmp_path: Path) -> None:
    engine, output = Engine(), Output(tmp_path / "log", 1 << 20)
    engine.say("one")
    fetched(output, engine)
    output.note("slowed")
    engine.say("two", second=8)
    assert [text for _, text in fetched(output, engine)] == ["one", "[spaces] slowed", "two"]


@given(
    st.lists(st.integers(0, 3), max_size=40), st.lists(st.integers(0, 40), max_size=6),
)  # fmt: skip
def test_however_it_is_fetched_nothing_is_lost_or_doubled(steps: list[int], cuts: list[int]) -> None:
    """Times that stand still or go on; looks after any number of lines."""
    moment, said = 0, []
    for number, step in enumerate(steps):
        moment += step
        said.append(Row(T.format(0, moment), str(number).encode()))
    place, found = Place(), []
    for cut in [*sorted(cuts), len(said)]:
        new, gap = fresh(said[:cut], place)
        assert not gap
        found += new
        place = moved(place, new, len(found))
    assert found == said
