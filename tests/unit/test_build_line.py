"""Whose build is next: a table of small lines, and what holds for any of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces_platform.build_line import InLine, claimable, order

A, B, C = 1, 2, 3


def line(*builds: tuple[int, int, int]) -> list[InLine]:
    return [InLine(id, space, owner) for id, space, owner in builds]


@pytest.mark.parametrize(
    ("queued", "running", "served", "expected"),
    [
        pytest.param([(1, 10, A), (2, 20, B)], [], {}, [1, 2], id="never served: the oldest first"),
        pytest.param([(1, 10, A), (2, 20, B)], [], {A: 50.0}, [2, 1], id="served before waits behind never served"),
        pytest.param([(1, 10, A), (2, 20, B)], [], {A: 50.0, B: 90.0}, [1, 2], id="served longest ago first"),
        pytest.param([(5, 10, A), (6, 20, B)], [(1, 11, A)], {B: 90.0}, [6, 5], id="fewest running first"),
        pytest.param(
            [(1, 10, A), (2, 11, A), (3, 12, A), (4, 20, B), (5, 21, B)], [], {}, [1, 4, 2, 5, 3], id="owners by turns"
        ),
        pytest.param([(1, 10, A), (2, 11, A), (9, 20, B)], [(0, 12, A)], {}, [9, 1, 2], id="late but fewest running"),
        pytest.param([(3, 10, A), (4, 11, A)], [(1, 10, A)], {}, [4, 3], id="behind the build of its own Space"),
        pytest.param([(3, 10, A), (4, 10, A), (5, 20, B)], [], {}, [3, 5, 4], id="the second of a Space waits"),
        pytest.param([], [(1, 10, A)], {}, [], id="nothing queued"),
    ],
)
def test_order(queued: list, running: list, served: dict[int, float], expected: list[int]) -> None:  # type: ignore[type-arg]
    assert [b.id for b in order(line(*queued), line(*running), served)] == expected


@pytest.mark.parametrize(
    ("queued", "running", "slots", "expected"),
    [
        pytest.param([(1, 10, A), (2, 20, B), (3, 30, C)], [], 2, [1, 2], id="as many as slots"),
        pytest.param([(5, 10, A), (6, 20, B)], [(1, 30, C)], 2, [5], id="running ones hold slots"),
        pytest.param([(5, 10, A)], [(1, 30, C), (2, 31, C)], 2, [], id="no slot is free"),
        pytest.param([(5, 10, A)], [(1, 30, C), (2, 31, C), (3, 32, C)], 2, [], id="fewer slots than before"),
        pytest.param([(5, 10, A)], [(1, 10, A)], 2, [], id="one build slot per Space"),
        pytest.param([(5, 10, A), (6, 10, A)], [], 2, [5], id="also within the line"),
    ],
)
def test_claimable(queued: list, running: list, slots: int, expected: list[int]) -> None:  # type: ignore[type-arg]
    assert [b.id for b in claimable(line(*queued), line(*running), {}, slots)] == expected


spaces = st.lists(st.integers(0, 7), max_size=12)
"""Space of each build; owner = Space // 2."""


@given(spaces, st.sets(st.integers(0, 7), max_size=3), st.dictionaries(st.integers(0, 3), st.floats(1, 9)))
def test_the_order_is_the_one_in_which_builds_are_claimed(
    queued: list[int], running: set[int], served: dict[int, float]
) -> None:
    """A place in the line is true: with one more slot at a time, the claims are the head of the order."""
    waiting = [InLine(100 + n, space, space // 2) for n, space in enumerate(queued)]
    going = [InLine(n, space, space // 2) for n, space in enumerate(sorted(running))]
    told = [b.id for b in order(waiting, going, served)]
    assert sorted(told) == [b.id for b in waiting]
    claimed, left, now = [], list(waiting), 10.0
    while found := claimable(left, going, served, len(going) + 1):
        (best,) = found
        assert best.space_id not in {b.space_id for b in going}
        claimed.append(best.id)
        left.remove(best)
        going = [*going, best]
        now += 1
        served = {**served, best.owner_id: now}
    assert claimed == told[: len(claimed)]
    assert all(b.space_id in {g.space_id for g in going} for b in left), "somebody who could begin was left"
