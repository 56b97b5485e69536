"""The slot table against a model that is a list of keys, least recently used first."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spmoe.policy.eviction.lru import LruOrder
from spmoe.policy.parts.placement import GlobalPool, LayerPools
from spmoe.state.commands import Load
from spmoe.state.keys import Shape
from spmoe.state.residency import Residency


def residency(slots: int, keys: int = 8) -> Residency:
    pool_of = (0,) * keys
    return Residency(GlobalPool().pools(Shape(1, keys, 1), slots), pool_of, LruOrder(pool_of))


def load(table: Residency, key: int, demand: bool = False) -> Load | None:
    loaded = table.claim(key, demand)
    if loaded is not None:
        table.arrive(key)
    return loaded


def test_slots_are_taken_in_order_and_the_least_recently_used_leaves() -> None:
    table = residency(2)
    assert load(table, 5) == Load(5, 0, None)
    assert load(table, 3) == Load(3, 1, None)
    table.touch([5])
    assert load(table, 4) == Load(4, 1, 3)
    assert load(table, 3) == Load(3, 0, 5)
    assert table.resident == {4: 1, 3: 0}


def test_what_is_pinned_or_in_flight_never_leaves() -> None:
    table = residency(2)
    load(table, 0)
    table.pinned.add(0)
    assert table.claim(1, demand=False) == Load(1, 1, None)
    assert table.claim(2, demand=True) is None
    table.arrive(1)
    assert table.claim(2, demand=True) == Load(2, 1, 1)
    assert table.claim(3, demand=True) is None
    table.pinned.remove(0)
    assert table.claim(3, demand=True) == Load(3, 0, 0)


def test_fixed_keys_leave_only_when_others_are_fixed() -> None:
    table = residency(2)
    table.fix([0])
    load(table, 0)
    load(table, 1)
    table.touch([0])
    assert load(table, 2) == Load(2, 1, 1)
    table.fix([2])
    assert load(table, 3) == Load(3, 0, 0)
    table.fix([])
    table.touch([3])
    assert load(table, 4) == Load(4, 1, 2)


@pytest.mark.parametrize(("fixed", "keys", "fits"), [((), 3, True), ((), 4, False), ((7,), 2, True), ((7,), 3, False)])
def test_holds(fixed: tuple[int, ...], keys: int, fits: bool) -> None:
    table = residency(3)
    table.fix(fixed)
    assert table.holds(range(keys)) is fits
    assert table.holds([*fixed, *range(keys)]) is fits
    assert table.holds([])


@given(seed=st.integers(0, 2**16), slots=st.integers(1, 6), layers=st.integers(1, 2))
def test_does_what_a_list_of_keys_says(seed: int, slots: int, layers: int) -> None:
    rng = random.Random(seed)
    experts = 5
    placement = LayerPools() if layers > 1 and slots >= layers else GlobalPool()
    pools, pool_of = placement.pools(Shape(layers, experts, 1), slots), placement.pool_of(Shape(layers, experts, 1))
    table = Residency(pools, pool_of, LruOrder(pool_of))
    recency: list[int] = []
    slot_of: dict[int, int] = {}
    for _ in range(120):
        key = rng.randrange(layers * experts)
        action = rng.choice(["load", "load", "arrive", "touch", "pin", "unpin"])
        if action == "load" and key not in table.resident and key not in table.in_flight:
            pool = pools[pool_of[key]]
            taken = {slot for other, slot in slot_of.items() if pool_of[other] == pool_of[key]}
            free = sorted(set(range(pool.first, pool.first + pool.slots)) - taken)
            leaving = [
                k for k in recency if k in table.resident and k not in table.pinned and pool_of[k] == pool_of[key]
            ]
            expected = None
            if free:
                expected = Load(key, free[0], None)
            elif leaving:
                expected = Load(key, slot_of[leaving[0]], leaving[0])
            demand = rng.random() < 0.5
            if demand:
                table.touch([key])
            assert table.claim(key, demand) == expected
            if demand or expected is not None:
                recency = [k for k in recency if k != key] + [key]
            if expected is not None:
                if expected.evicted is not None:
                    recency.remove(expected.evicted)
                    del slot_of[expected.evicted]
                slot_of[key] = expected.slot
        elif action == "arrive" and table.in_flight:
            table.arrive(rng.choice(sorted(table.in_flight)))
        elif action == "touch" and key in table.resident:
            table.touch([key])
            recency = [k for k in recency if k != key] + [key]
        elif action == "pin":
            table.pinned.add(key)
        elif action == "unpin":
            table.pinned.discard(key)
        assert table.resident | table.in_flight == slot_of
        assert len(set(slot_of.values())) == len(slot_of) <= slots


def test_a_batch_is_aligned_so_that_neighbours_on_the_host_are_neighbours_on_the_gpu() -> None:
    table = residency(4)
    claimed = [table.claim(key, demand=False) for key in (7, 3, 6)]
    aligned = table.align([one for one in claimed if one is not None])
    assert aligned == (Load(3, 0, None), Load(6, 1, None), Load(7, 2, None))
    assert table.in_flight == {3: 0, 6: 1, 7: 2}


def test_aligning_keeps_every_key_in_its_pool() -> None:
    placement = LayerPools()
    pools, pool_of = placement.pools(Shape(2, 4, 1), 5), placement.pool_of(Shape(2, 4, 1))  # slots 0-2 and 3-4
    table = Residency(pools, pool_of, LruOrder(pool_of))
    claimed = [table.claim(key, demand=False) for key in (5, 1, 4, 0)]
    aligned = table.align([one for one in claimed if one is not None])
    assert aligned == (Load(0, 0, None), Load(1, 1, None), Load(4, 3, None), Load(5, 4, None))
