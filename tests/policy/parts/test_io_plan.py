"""Batches: every load once, both budgets kept, demand alone, earliest deadline first."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spmoe.policy.parts.io_plan import Batched, IOPlan, OneByOne, Pace, Planner, copies
from spmoe.state.commands import Load, Purpose
from spmoe.state.transfers import TransferQueue


def pace(load_bytes: int = 10, latency_ns: int = 2, transfer_ns: int = 5) -> Pace:
    return Pace(load_bytes, latency_ns, transfer_ns, draft_ns=0, layer_ns=0)


def drain(io: IOPlan, queue: TransferQueue, at: Pace) -> list[tuple[Purpose, list[int]]]:
    planner = Planner(io, at)
    batches = []
    while (batch := planner.next_batch(queue)) is not None:
        batches.append(batch)
        for key in batch[1]:
            queue.take(key)
    return batches


PLANS = st.one_of(st.just(OneByOne()), st.builds(Batched, max_bytes=st.integers(1, 60), max_ns=st.integers(1, 40)))
WISHES = st.dictionaries(st.integers(0, 30), st.integers(0, 40), max_size=12)


@given(io=PLANS, wishes=WISHES, demands=st.sets(st.integers(31, 50), max_size=6))
def test_every_load_once_within_both_budgets_and_demand_alone(
    io: IOPlan, wishes: dict[int, int], demands: set[int]
) -> None:
    queue, at = TransferQueue(2), pace()
    for key, deadline in wishes.items():
        queue.prefetch(key, deadline, 0)
    for key in demands:
        queue.demand(key)
    batches = drain(io, queue, at)
    assert sorted(key for _, keys in batches for key in keys) == sorted([*wishes, *demands])
    purposes = [purpose for purpose, _ in batches]
    assert purposes == sorted(purposes)  # "demand" sorts before "prefetch"
    for purpose, keys in batches:
        assert (set(keys) <= demands) == (purpose is Purpose.DEMAND)
        if purpose is Purpose.PREFETCH:
            assert keys == sorted(keys, key=lambda key: (wishes[key], key)), "most urgent first"
        if isinstance(io, Batched) and len(keys) > 1:
            assert len(keys) * at.load_bytes <= io.max_bytes
            assert at.latency_ns + len(keys) * at.transfer_ns <= io.max_ns
        elif isinstance(io, OneByOne):
            assert len(keys) == 1
    if isinstance(io, Batched):  # A budget that has room for another load is used.
        sizes = [len(keys) for purpose, keys in batches if purpose is Purpose.PREFETCH]
        fits = max(1, min(io.max_bytes // at.load_bytes, (io.max_ns - at.latency_ns) // at.transfer_ns))
        assert all(size == fits for size in sizes[:-1])


def lateness(order: list[list[int]], deadlines: dict[int, int], at: Pace) -> int:
    """How late the latest load is when these batches travel back to back; a batch arrives as a whole."""
    now, worst = 0, 0
    for keys in order:
        now += at.latency_ns + len(keys) * at.transfer_ns
        worst = max([worst, *(now - deadlines[key] for key in keys)])
    return worst


@given(
    deadlines=st.dictionaries(st.integers(0, 9), st.integers(0, 40), min_size=1, max_size=5),
    loads_per_batch=st.integers(1, 3),
)
def test_meets_all_deadlines_where_any_order_does(deadlines: dict[int, int], loads_per_batch: int) -> None:
    at, size = pace(), loads_per_batch
    io = Batched(max_bytes=size * at.load_bytes, max_ns=1000)
    queue = TransferQueue(2)
    for key, deadline in deadlines.items():
        queue.prefetch(key, deadline, weight=key * 7 % 5)
    planned = lateness([keys for _, keys in drain(io, queue, at)], deadlines, at)
    best = min(
        lateness([list(order[n : n + size]) for n in range(0, len(order), size)], deadlines, at)
        for order in permutations(deadlines)
    )
    assert planned == best


@pytest.mark.parametrize(
    ("loads", "expected"),
    [
        ([(3, 0)], 1),
        ([(3, 0), (4, 1)], 1),
        ([(3, 0), (4, 1), (5, 2), (7, 3)], 2),
        ([(3, 1), (4, 0)], 2),
        ([(3, 0), (5, 1)], 2),
    ],
)
def test_copies(loads: list[tuple[int, int]], expected: int) -> None:
    assert copies(tuple(Load(key, slot, None) for key, slot in loads)) == expected


def test_budgets_must_be_positive() -> None:
    for budgets in ({"max_bytes": 0}, {"max_ns": 0}):
        with pytest.raises(ValueError, match="must be positive"):
            Batched(**budgets)
