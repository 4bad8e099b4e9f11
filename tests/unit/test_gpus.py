"""Who gets which GPU: the choice as a table, then random histories of a world that obeys it; then flavors."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from spaces_platform.errors import Invalid
from spaces_platform.gpus import FIRST, Granted, Held, Refused, Why, Wish, World, choose, choose_or_swap
from spaces_platform.hardware import FLAVORS, Hardware, Machine, of_model, parse_gpus
from spaces_platform.ports import Gpu
from spaces_platform.settings import Settings

A, B = Gpu("GPU-a", "Tesla T4"), Gpu("GPU-b", "Tesla T4")
BIG = Gpu("GPU-l", "NVIDIA L40S")


def wish(space: int = 1, owner: int = 1, count: int = 1, since: float = 10.0, model: str = "T4") -> Wish:
    return Wish(space, owner, model, count, since)


def held(gpu: Gpu, deployment: int, space: int, owner: int = 1) -> Held:
    return Held(gpu.id, deployment, space, owner)


def world(*holds: Held, pool: tuple[Gpu, ...] = (A, B), line: tuple[Wish, ...] = (), **quotas: int) -> World:
    return World(pool, holds, line, {int(owner[1:]): n for owner, n in quotas.items()})


BUSY = [held(A, 7, 7, 7), held(B, 8, 8, 7)]
TABLE = [
    ("the first that is free", wish(), world(held(A, 7, 7)), Granted(("GPU-b",))),
    ("two at once", wish(count=2), world(), Granted(("GPU-a", "GPU-b"))),
    ("none is free", wish(), world(*BUSY), Refused(Why.BUSY, 1)),
    ("not enough are free", wish(count=2), world(held(A, 7, 7)), Refused(Why.BUSY, 1)),
    ("there are not so many", wish(count=3), world(), Refused(Why.NOT_HERE)),
    ("another model does not help", wish(model="L4"), world(pool=(A, BIG)), Refused(Why.NOT_HERE)),
    ("the quota is used up", wish(), world(held(A, 7, 7), o1=1), Refused(Why.QUOTA)),
    ("a quota of none", wish(), world(o1=0), Refused(Why.QUOTA)),
    ("other owners' GPUs do not count", wish(), world(held(A, 7, 7, 2), o1=1), Granted(("GPU-b",))),
    ("who waits longer goes first", wish(), world(held(A, 7, 7), line=(wish(2, 2, since=9),)), Refused(Why.BUSY, 2)),
    ("who waits less does not", wish(), world(held(A, 7, 7), line=(wish(2, 2, since=11),)), Granted(("GPU-b",))),
    ("enough for both", wish(), world(line=(wish(2, 2, since=9),)), Granted(("GPU-a",))),
    ("itself in line holds up nobody", wish(), world(held(A, 7, 7), line=(wish(),)), Granted(("GPU-b",))),
    (
        "who is over its quota holds up nobody",
        wish(),
        world(held(A, 7, 7, 2), line=(wish(2, 2, since=9),), o2=1),
        Granted(("GPU-b",)),
    ),
    (
        "who waits for more than there is holds up nobody",
        wish(),
        world(line=(wish(2, 2, 3, since=9),)),
        Granted(("GPU-a",)),
    ),
    (
        "who waits for many is not overtaken by who needs one",
        wish(),
        world(held(A, 7, 7), line=(wish(2, 2, 2, since=9),)),
        Refused(Why.BUSY, 2),
    ),
    (
        "the quota goes to the one of the same owner that waits longer",
        wish(),
        world(line=(wish(2, 1, since=9),), o1=1),
        Refused(Why.QUOTA, 2),
    ),
]


@pytest.mark.parametrize(("asked", "given", "answer"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_choice(asked: Wish, given: World, answer: Granted | Refused) -> None:
    assert choose(asked, given) == answer


ONE = (A,)
SWAPS = [
    ("its own holds the only one", wish(), world(held(A, 5, 1), pool=ONE), 5, Refused(Why.SWAP, 1, True)),
    ("its own is stopped already", wish(), world(held(A, 5, 1), pool=ONE), None, Refused(Why.SWAP, 1, False)),
    ("a second one is free", wish(), world(held(A, 5, 1)), 5, Granted(("GPU-b",))),
    (
        "it stands before the line for what it gives back",
        wish(),
        world(held(A, 5, 1), pool=ONE, line=(wish(2, 2, since=1),)),
        5,
        Refused(Why.SWAP, 1, True),
    ),
    (
        "not for more than it gives back",
        wish(count=2),
        world(held(A, 5, 1), line=(wish(2, 2, since=1),)),
        5,
        Refused(Why.BUSY, 2),
    ),
    ("another's is not given up", wish(), world(held(A, 5, 2), pool=ONE), 9, Refused(Why.BUSY, 1)),
    ("its quota has no second one", wish(), world(held(A, 5, 1), o1=1), 5, Refused(Why.SWAP, 1, True)),
    ("a quota lowered since: what serves stays", wish(), world(held(A, 5, 1), o1=0), 5, Refused(Why.QUOTA)),
    ("an older one that drains is waited for", wish(), world(held(A, 4, 1), held(B, 5, 1)), 5, Refused(Why.SWAP)),
    (
        "paid by another owner (it was renamed): its end helps nobody",
        wish(),
        world(held(A, 5, 1, 2), held(B, 6, 6, 1), o1=1),
        5,
        Refused(Why.QUOTA),
    ),
]


@pytest.mark.parametrize(
    ("asked", "given", "routed", "answer"), [row[1:] for row in SWAPS], ids=[row[0] for row in SWAPS]
)
def test_swap(asked: Wish, given: World, routed: int | None, answer: Granted | Refused) -> None:
    assert choose_or_swap(asked, given, routed) == answer


class Cluster:
    """Spaces of some owners that come, go, push and wait, served by `choose_or_swap` alone."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.now, self.ids = rng, 100.0, 0
        self.pool = [Gpu(f"GPU-{n}", "Tesla T4") for n in range(rng.randint(1, 4))]
        self.quotas = {owner: rng.choice((-1, 0, 1, 2, 3)) for owner in range(3)}
        self.held: list[Held] = []
        self.line: dict[int, Wish] = {}
        self.routed: dict[int, int] = {}
        self.granted = 0

    def world(self) -> World:
        return World(self.pool, tuple(self.held), tuple(self.line.values()), dict(self.quotas))

    def ask(self, space: int) -> None:
        wanted = self.line.get(space) or Wish(space, space % 3, "T4", self.rng.choice((1, 1, 2)), self.now)
        found = choose_or_swap(wanted, self.world(), self.routed.get(space))
        if isinstance(found, Refused):
            since = min(wanted.since, FIRST if found.why is Why.SWAP else self.now)
            self.line[space] = Wish(space, wanted.owner_id, "T4", wanted.count, since)
            if found.swap_in_place:
                self.end(self.routed.pop(space))
            return
        before = Counter(h.owner_id for h in self.held)
        assert len(found.gpus) == wanted.count
        self.ids += 1
        self.held += [Held(gpu, self.ids, space, wanted.owner_id) for gpu in found.gpus]
        self.line.pop(space, None)
        self.routed[space] = self.ids
        self.granted += 1
        quota = self.quotas[wanted.owner_id]
        assert quota == -1 or before[wanted.owner_id] + wanted.count <= quota, "a grant exceeds the quota"

    def end(self, deployment: int) -> None:
        self.held = [h for h in self.held if h.deployment_id != deployment]

    def happen(self) -> None:
        self.now += 1.0
        what = self.rng.choice(("ask", "ask", "ask", "end", "leave", "quota"))
        space = self.rng.randrange(6)
        if what == "ask":
            self.ask(space)
        elif what == "end" and self.held:
            gone = self.rng.choice(self.held).deployment_id
            self.end(gone)
            self.routed = {s: d for s, d in self.routed.items() if d != gone}
        elif what == "leave":
            self.line.pop(space, None)
        elif what == "quota" and self.rng.random() < 0.2:
            self.quotas[self.rng.randrange(3)] = self.rng.choice((-1, 0, 1, 2, 3))

    def check(self) -> None:
        gpus = [h.gpu for h in self.held]
        assert len(gpus) == len(set(gpus)), "a GPU is given twice"
        assert set(gpus) <= {gpu.id for gpu in self.pool}


def test_random_histories_never_give_more_than_pool_and_quota() -> None:
    granted = 0
    for seed in range(250):
        cluster = Cluster(random.Random(seed))
        for _ in range(80):
            cluster.happen()
            cluster.check()
        granted += cluster.granted
    assert granted > 2000


def test_nobody_waits_while_what_it_needs_lies_idle() -> None:
    """Ask all in line again and again: whoever still waits has a reason that holds."""
    for seed in range(250):
        cluster = Cluster(random.Random(seed))
        for _ in range(60):
            cluster.happen()
        for _ in range(10):
            for space in sorted(cluster.line, key=lambda s: cluster.line[s].since):
                if space in cluster.line:
                    cluster.ask(space)
        free = len(cluster.pool) - len(cluster.held)
        used = Counter(h.owner_id for h in cluster.held)
        able = [
            w
            for w in cluster.line.values()
            if w.count <= len(cluster.pool) and cluster.world().quota(w.owner_id) >= used[w.owner_id] + w.count
        ]
        assert not able or min(able, key=lambda w: (w.since, w.space_id)).count > free, cluster.world()


# --- flavors ---------------------------------------------------------------------------------------------------------
def names(gpus: str = "", *, cpus: float = 2.0, gigabytes: int = 4) -> list[str]:
    hardware = Hardware(Settings(), Machine(cpus, gigabytes << 30), parse_gpus(gpus))
    return [flavor.name for flavor in hardware.flavors()]


@pytest.mark.parametrize(
    ("gpus", "more"),
    [
        ("", []),
        ("T4:GPU-1", ["t4-small", "t4-medium"]),
        ("Tesla T4:GPU-1", ["t4-small", "t4-medium"]),
        ("L40S:GPU-1", ["l40sx1"]),
        ("NVIDIA L4:GPU-1, NVIDIA L4:GPU-2", ["l4x1"]),
        ("A10G:1,A10G:2", ["a10g-small", "a10g-large", "a10g-largex2"]),
        ("NVIDIA A100-SXM4-80GB:GPU-1", ["a100-large"]),
    ],
)
def test_flavors_that_exist(gpus: str, more: list[str]) -> None:
    assert names(gpus) == ["cpu-basic", *more]


def test_a_large_machine_has_the_larger_cpu_flavor() -> None:
    assert names(cpus=16, gigabytes=64) == ["cpu-basic", "cpu-upgrade"]


def test_flavors_give_what_the_hub_says_and_no_more_than_the_machine() -> None:
    gpus = parse_gpus("T4:GPU-1")
    large = Hardware(Settings(), Machine(64.0, 256 << 30), gpus)
    small = Hardware(Settings(app_cpus=1.5, app_memory_mb=512), Machine(2.0, 8 << 30), gpus)
    assert (large.resources("t4-medium").cpus, large.resources("t4-medium").memory) == (8, 30 << 30)
    assert (small.resources("t4-medium").cpus, small.resources("t4-medium").memory) == (2.0, 8 << 30)
    assert (small.resources("cpu-basic").cpus, small.resources("cpu-basic").memory) == (1.5, 512 << 20)


def test_flavor_names_are_the_hubs() -> None:
    from huggingface_hub import SpaceHardware

    assert {flavor.name for flavor in FLAVORS} <= {hardware.value for hardware in SpaceHardware}


@pytest.mark.parametrize("text", ["T4", "T4:", ":GPU-1", "T4:GPU-1,T4:GPU-1", "T4:GPU-1,L4:GPU-1"])
def test_a_setting_that_names_no_gpu_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="gpus: "):
        parse_gpus(text)


def test_a_model_is_a_whole_word() -> None:
    assert of_model([A, BIG], "L4") == []
    assert of_model([A, BIG], "l40s") == [BIG]


def test_unknown_hardware_is_refused_with_what_exists(tmp_path: Path) -> None:
    hardware = Hardware(Settings(data=tmp_path), Machine(2.0, 4 << 30), parse_gpus("T4:GPU-1"))
    with pytest.raises(Invalid, match="'a100-large' is not available here; available: cpu-basic, t4-small, t4-medium"):
        hardware.check("a100-large")
    with pytest.raises(Invalid, match="no hardware 'h100'"):
        hardware.flavor("h100")
