"""Whose build is next: the line of queued builds, as a pure function of what is queued and what runs.

The rules, first to last: a Space builds one thing at a time; the owner with the fewest running builds goes first, then
the one who was served longest ago; within one owner, and between owners never served, the oldest build goes first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class InLine:
    """One queued or running build."""

    id: int
    space_id: int
    owner_id: int


def order(queued: Sequence[InLine], running: Sequence[InLine], served: Mapping[int, float]) -> list[InLine]:
    """The queued builds in the order in which they begin, if one after another does and nothing else changes.

    `served`: when a build of an owner last began, unix seconds; an owner without an entry was never served.
    """
    # A build whose Space is busy, or has an older build in the line, waits behind all that can begin now.
    busy = Counter(build.space_id for build in running)
    behind: dict[int, int] = {}
    for build in sorted(queued, key=lambda b: b.id):
        behind[build.id] = busy[build.space_id]
        busy[build.space_id] += 1
    mine: dict[int, list[InLine]] = {}
    for build in sorted(queued, key=lambda b: (behind[b.id], b.id)):
        mine.setdefault(build.owner_id, []).append(build)
    has = Counter(build.owner_id for build in running)
    keyed = []
    for owner, builds in mine.items():
        oldest = min(build.id for build in builds)
        for turn, build in enumerate(builds):
            # Each turn adds a running build of that owner, who was then served last.
            key = (behind[build.id], has[owner] + turn, turn, served.get(owner, 0.0), oldest)
            keyed.append((key, build.id, build))
    return [build for _, _, build in sorted(keyed, key=lambda k: k[:2])]


def claimable(
    queued: Sequence[InLine], running: Sequence[InLine], served: Mapping[int, float], slots: int
) -> list[InLine]:
    """Those that may begin now, best first: no more than there are free slots, none of a Space that builds."""
    free = max(0, slots - len(running))
    busy = {build.space_id for build in running}
    chosen: list[InLine] = []
    for build in order(queued, running, served):
        if len(chosen) == free or build.space_id in busy:
            # Whoever has to wait for another build of its Space stands behind all who have not.
            break
        busy.add(build.space_id)
        chosen.append(build)
    return chosen
