"""What waits for the link: demand overtakes, purposes do not mix, both budgets are kept, the most urgent goes first."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spmoe.policy.eviction.lru import LruOrder
from spmoe.policy.parts.io_plan import Batched, IOPlan, OneByOne
from spmoe.policy.parts.pace import Pace
from spmoe.policy.parts.wanted import WantedSet
from spmoe.scheduler.loads import Loads, TransferFailed
from spmoe.state.commands import Purpose, Submit
from spmoe.state.residency import Pool, Residency

KEYS = 64
PACE = Pace(load_bytes=10, latency_ns=2, transfer_ns=5, draft_ns=0, layer_ns=0)


ONE_LOAD = Batched(max_bytes=10)


def waiting(io: IOPlan = ONE_LOAD, slots: int = KEYS, depth: int = 1) -> tuple[Loads, WantedSet]:
    """Nothing waits yet, and no slot is taken."""
    predictor = WantedSet(8)
    residency = Residency((Pool(0, slots),), (0,) * KEYS, LruOrder((0,) * KEYS))
    predictor.bind(residency)
    return Loads(io, PACE, depth, residency, predictor), predictor


def drain(loads: Loads) -> list[tuple[Purpose, list[int]]]:
    """The batches in which all that waits travels, one after the other."""
    batches = []
    while submits := loads.submit(0):
        for submit in submits:
            assert isinstance(submit, Submit)
            batches.append((submit.purpose, [load.key for load in submit.loads]))
            loads.arrived(submit.batch, 0)
    return batches


def test_demand_overtakes_and_keeps_its_order() -> None:
    loads, predictor = waiting()
    predictor.want(1, 0, 9)
    loads.preload([2])
    loads.demand([7])
    loads.demand([3])
    assert drain(loads) == [
        (Purpose.DEMAND, [7]),
        (Purpose.DEMAND, [3]),
        (Purpose.PRELOAD, [2]),
        (Purpose.PREFETCH, [1]),
    ]
    assert not (loads.demands or loads.preloads or predictor.wanted)


def test_a_load_that_waits_becomes_a_demand_and_waits_no_longer() -> None:
    loads, predictor = waiting()
    predictor.want(1, 5, 1)
    loads.preload([2])
    assert loads.waits(1) and loads.waits(2) and not loads.waits(3)
    loads.demand([1])
    loads.demand([2])
    loads.preload([2])
    assert not loads.waits(1) and not loads.waits(2)
    assert drain(loads) == [(Purpose.DEMAND, [1]), (Purpose.DEMAND, [2])]


def test_purposes_do_not_share_a_batch() -> None:
    loads, predictor = waiting(Batched(max_bytes=30))
    loads.preload([1, 3])
    predictor.want(2, 1, 0)
    loads.demand([9])
    assert drain(loads) == [(Purpose.DEMAND, [9]), (Purpose.PRELOAD, [1, 3]), (Purpose.PREFETCH, [2])]


def test_what_is_there_or_on_its_way_is_not_preloaded() -> None:
    loads, _ = waiting(depth=2)
    loads.preload([1, 2, 3])
    loads.submit(0)  # Two batches.
    loads.arrived(0, 0)
    loads.preload([1, 2, 3, 4])
    assert list(loads.preloads) == [3, 4]


def test_what_finds_no_slot_waits() -> None:
    loads, predictor = waiting(Batched(max_bytes=100), slots=2)
    for key in (1, 2, 3):
        loads.demand([key])
    (submit,) = loads.submit(0)
    assert isinstance(submit, Submit) and [load.key for load in submit.loads] == [1, 2]
    predictor.want(5, 0, 0)
    assert list(loads.demands) == [3]
    assert loads.submit(0) == []


def test_arrivals_by_the_pace_of_the_policy() -> None:
    loads, _ = waiting(Batched(max_bytes=20), depth=2)
    for key in (1, 2, 3):
        loads.demand([key])
    loads.submit(100)
    # The first batch of two loads begins after the latency; the second follows without another.
    assert list(loads.arrivals()) == [(1, 112), (2, 112), (3, 117)]
    loads.arrived(0, 120)
    assert list(loads.arrivals()) == [(3, 127)]


def test_a_batch_is_tried_twice() -> None:
    loads, _ = waiting()
    loads.demand([1])
    loads.submit(0)
    assert loads.failed(0).attempt == 2
    with pytest.raises(TransferFailed, match="batch 0 failed twice"):
        loads.failed(0)


PLANS = st.one_of(st.just(OneByOne()), st.builds(Batched, max_bytes=st.integers(1, 60), max_ns=st.integers(1, 40)))
DEADLINES = st.dictionaries(st.integers(0, 30), st.integers(0, 40), max_size=12)


@given(io=PLANS, deadlines=DEADLINES, demands=st.sets(st.integers(31, 50), max_size=6))
def test_every_load_once_within_both_budgets_and_demand_alone(
    io: IOPlan, deadlines: dict[int, int], demands: set[int]
) -> None:
    loads, predictor = waiting(io)
    for key, deadline in deadlines.items():
        predictor.want(key, deadline, 0)
    for key in demands:
        loads.demand([key])
    batches = drain(loads)
    assert sorted(key for _, keys in batches for key in keys) == sorted([*deadlines, *demands])
    purposes = [purpose for purpose, _ in batches]
    assert purposes == sorted(purposes)  # "demand" sorts before "prefetch"
    most = io.loads_per_batch(PACE)
    for purpose, keys in batches:
        assert (set(keys) <= demands) == (purpose is Purpose.DEMAND)
        assert len(keys) <= most and keys == sorted(keys), "a batch travels in the order of host memory"
    prefetched = [keys for purpose, keys in batches if purpose is Purpose.PREFETCH]
    latest = [max((deadlines[key], key) for key in keys) for keys in prefetched]
    assert latest == sorted(latest), "the most urgent travel first"
    assert all(len(keys) == most for keys in prefetched[:-1]), "a budget that has room for another load is used"


def lateness(order: list[list[int]], deadlines: dict[int, int]) -> int:
    """How late the latest load is when these batches travel back to back; a batch arrives as a whole."""
    now, worst = 0, 0
    for keys in order:
        now += PACE.latency_ns + len(keys) * PACE.transfer_ns
        worst = max([worst, *(now - deadlines[key] for key in keys)])
    return worst


@given(
    deadlines=st.dictionaries(st.integers(0, 9), st.integers(0, 40), min_size=1, max_size=5),
    size=st.integers(1, 3),
)
def test_meets_all_deadlines_where_any_order_does(deadlines: dict[int, int], size: int) -> None:
    loads, predictor = waiting(Batched(max_bytes=size * PACE.load_bytes, max_ns=1000))
    for key, deadline in deadlines.items():
        predictor.want(key, deadline, weight=key * 7 % 5)
    planned = lateness([keys for _, keys in drain(loads)], deadlines)
    best = min(
        lateness([list(order[n : n + size]) for n in range(0, len(order), size)], deadlines)
        for order in permutations(deadlines)
    )
    assert planned == best
