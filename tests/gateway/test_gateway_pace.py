"""Deadlines and bodies by themselves: pure, so that each rule is a row."""

from __future__ import annotations

import pytest

from spaces_platform.gateway.grammar import CHUNKED, Refused
from spaces_platform.gateway.pace import Pace
from spaces_platform.gateway.upload import Upload


def test_a_deadline_runs_from_the_first_look_after_it_was_set_anew() -> None:
    pace = Pace()
    assert [pace.passed(now, 10) for now in (100, 110, 111)] == [False, False, True]
    pace.until = 0.0
    assert [pace.passed(now, 10) for now in (111, 121, 122)] == [False, False, True]


def test_silence_ends_with_whatever_moves() -> None:
    pace = Pace()
    assert [pace.is_silent(now, 10) for now in (100, 110)] == [False, False]
    pace.moved += 1
    assert [pace.is_silent(now, 10) for now in (111, 121, 122)] == [False, False, True]


def test_a_stalled_visitor_is_one_whose_rest_does_not_shrink() -> None:
    pace = Pace()
    pace.mark, pace.until = 1_000, 110
    looks = [(109, 1_000), (110, 999), (120, 999), (121, 999)]
    assert [pace.is_stalled(now, unsent, 10) for now, unsent in looks] == [False, False, False, True]


@pytest.mark.parametrize(("moved", "slow"), [(99, True), (100, False)])
def test_an_upload_must_reach_its_rate_in_every_window(moved: int, slow: bool) -> None:
    pace = Pace()
    assert not pace.is_too_slow(100, 10, 10)
    pace.moved += 100
    assert [pace.is_too_slow(now, 10, 10) for now in (110, 111)] == [False, False]
    pace.moved += moved
    assert pace.is_too_slow(122, 10, 10) is slow


@pytest.mark.parametrize(
    ("length", "pieces", "sent", "behind"),
    [
        (5, [b"hello"], b"hello", b""),
        (5, [b"he", b"llo"], b"hello", b""),
        (5, [b"he", b"lloGET /"], b"hello", b"GET /"),
        (CHUNKED, [b"2\r\nhe\r\n3;x=y\r\nll", b"o\r\n0\r\nT: x\r\n\r\nGET /"], None, b"GET /"),
    ],
)
def test_an_upload_ends_where_its_length_says(
    length: int, pieces: list[bytes], sent: bytes | None, behind: bytes
) -> None:
    body, out, rest = Upload(length), b"", b""
    for piece in pieces:
        assert not body.done
        content, rest = body.feed(piece)
        out += content
    assert body.done
    assert rest == behind
    assert out == (sent if sent is not None else b"2\r\nhe\r\n2\r\nll\r\n1\r\no\r\n0\r\n\r\n")


def test_a_malformed_chunk_is_refused() -> None:
    with pytest.raises(Refused):
        Upload(CHUNKED).feed(b"x\r\n")
