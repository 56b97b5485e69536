"""The queue: demand overtakes, wishes add up, what is queued can be dropped."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from spmoe.policy.parts.io_plan import Batched, Pace, Planner
from spmoe.state.commands import Purpose
from spmoe.state.transfers import TransferQueue


def drain(queue: TransferQueue, count: int = 1) -> list[tuple[Purpose, list[int]]]:
    """The batches, of up to `count` loads, in which the queue empties."""
    planner = Planner(Batched(max_bytes=count, max_ns=1000), Pace(1, 0, 1, 0, 0))
    batches = []
    while (batch := planner.next_batch(queue)) is not None:
        batches.append((batch[0], list(batch[1])))
        for key in batch[1]:
            queue.take(key)
    return batches


def test_demand_overtakes_prefetches_and_keeps_its_order() -> None:
    queue = TransferQueue(depth=2)
    queue.prefetch(1, deadline=0, weight=9)
    queue.demand(7)
    queue.demand(3)
    assert drain(queue) == [(Purpose.DEMAND, [7]), (Purpose.DEMAND, [3]), (Purpose.PREFETCH, [1])]


def test_a_queued_prefetch_becomes_a_demand_and_is_no_longer_one() -> None:
    queue = TransferQueue(depth=2)
    queue.prefetch(1, deadline=5, weight=1)
    queue.demand(1)
    queue.prefetch(1, deadline=0, weight=1)
    assert len(queue) == 1
    assert drain(queue) == [(Purpose.DEMAND, [1])]


def test_earliest_deadline_then_weight_then_key() -> None:
    queue = TransferQueue(depth=2)
    for key, deadline, weight in [(4, 20, 9), (3, 10, 1), (2, 10, 5), (1, 10, 1)]:
        queue.prefetch(key, deadline, weight)
    assert drain(queue) == [(Purpose.PREFETCH, [key]) for key in (2, 1, 3, 4)]


def test_wishes_for_one_key_add_up() -> None:
    queue = TransferQueue(depth=2)
    queue.prefetch(1, deadline=10, weight=3)
    queue.prefetch(2, deadline=10, weight=4)
    queue.prefetch(1, deadline=30, weight=2)
    assert drain(queue, 2) == [(Purpose.PREFETCH, [1, 2])]
    queue.prefetch(1, deadline=30, weight=9)
    queue.prefetch(2, deadline=20, weight=1)
    queue.prefetch(1, deadline=10, weight=0)
    assert drain(queue, 2) == [(Purpose.PREFETCH, [1, 2])]


def test_preloads_do_not_travel_with_prefetches() -> None:
    queue = TransferQueue(depth=2)
    queue.prefetch(1, 0, 0, Purpose.PRELOAD)
    queue.prefetch(2, 1, 0)
    queue.prefetch(3, 2, 0, Purpose.PRELOAD)
    assert drain(queue, 3) == [(Purpose.PRELOAD, [1, 3]), (Purpose.PREFETCH, [2])]


def test_drop_forgets_the_prefetches_of_a_range_and_no_demand() -> None:
    queue = TransferQueue(depth=2)
    for key in range(4):
        queue.prefetch(key, 0, 0)
    queue.demand(5)
    queue.drop(1, 6)
    assert 2 not in queue and 5 in queue
    assert drain(queue) == [(Purpose.DEMAND, [5]), (Purpose.PREFETCH, [0])]
    queue.prefetch(2, 0, 0)
    assert drain(queue) == [(Purpose.PREFETCH, [2])]


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 5), st.integers(0, 3), st.sampled_from("pppdx")), max_size=200
    ),
    st.integers(1, 4),
)
def test_does_what_a_plain_dictionary_says(actions: list[tuple[int, int, int, str]], count: int) -> None:
    queue = TransferQueue(depth=2)
    demands: list[int] = []
    wishes: dict[int, tuple[int, int, int]] = {}
    for key, deadline, weight, action in actions:
        if action == "p":
            queue.prefetch(key, deadline, weight)
            if key not in demands:
                known = wishes.get(key, (deadline, 0, key))
                wishes[key] = (min(known[0], deadline), known[1] - weight, key)
        elif action == "d":
            queue.demand(key)
            wishes.pop(key, None)
            if key not in demands:
                demands.append(key)
        else:
            queue.drop(key, key + deadline)
            wishes = {other: wish for other, wish in wishes.items() if not key <= other < key + deadline}
        assert len(queue) == len(demands) + len(wishes)
    ordered = [key for _, _, key in sorted(wishes.values())]
    batches = [(Purpose.DEMAND, demands[at : at + count]) for at in range(0, len(demands), count)]
    batches += [(Purpose.PREFETCH, ordered[at : at + count]) for at in range(0, len(ordered), count)]
    assert drain(queue, count) == batches
