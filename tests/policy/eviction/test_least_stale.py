"""Least-Stale: what this pass has not used leaves first; then who rests longest."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from spmoe.policy.eviction.least_stale import LeastStale
from spmoe.policy.parts.predictor import Predictor
from spmoe.state.commands import Load
from spmoe.state.residency import Pool, Residency, VictimOrder

LAYERS, EXPERTS = 3, 4
KEYS = LAYERS * EXPERTS

Pass = Sequence[Sequence[int]]
"""The keys that each layer needs."""


def order(pool_of: tuple[int, ...] = (0,) * KEYS) -> VictimOrder:
    return LeastStale().order(pool_of, Predictor(), EXPERTS)


def leaving(stale: VictimOrder, resident: Sequence[int] = range(KEYS)) -> list[int]:
    victims = []
    while (victim := stale.evict(0, resident, (), key=0, demand=True)) is not None:
        victims.append(victim)
    return victims


def test_stale_before_current_and_within_each_who_rests_longest() -> None:
    stale = order()
    for needs in ([0, 1, 2], [4, 5], [8, 9]):
        stale.touch(needs)
    stale.touch([1])
    stale.touch([5])
    # At layer 1.  Stale: 4 of the layer just passed, 2 and 0 of layer 0, then 8 and 9 which may still be needed.
    # Current: 5, then 1.  LRU would say 0 2 4 8 9 1 5.
    assert leaving(stale) == [4, 0, 2, 8, 9, 5, 1]


def test_of_a_layer_the_least_recently_used_leaves_first() -> None:
    stale = order()
    stale.touch([2, 0, 1])
    stale.touch([4])
    assert leaving(stale, [0, 1, 2]) == [2, 0, 1]


def test_a_new_pass_makes_all_stale() -> None:
    stale = order()
    stale.touch([0])
    stale.touch([4])
    stale.touch([8])
    assert leaving(order_after(stale, [1]), [0, 4, 8, 1]) == [0, 8, 4, 1]


def order_after(stale: VictimOrder, *needs: Sequence[int]) -> VictimOrder:
    for keys in needs:
        stale.touch(keys)
    return stale


def test_a_layer_that_needs_nothing_counts_as_passed() -> None:
    stale = order_after(order(), [0, 1], [4], [8], [0], [], [9])
    # At layer 2 of the second pass: 8, 4 and 1 are stale, and rest the longer the higher their layer.
    assert leaving(stale) == [8, 4, 1, 9, 0]


def test_the_same_layer_again_is_a_new_pass() -> None:
    stale = order_after(order(), [0], [4], [], [], [5])
    assert leaving(stale) == [4, 0, 5]


def claim(table: Residency, key: int, demand: bool) -> Load | None:
    load = table.claim(key, demand)
    if load is not None:
        table.arrive(key)
    return load


def test_a_prefetch_is_current_in_the_pass_that_it_is_for() -> None:
    pool_of = (0,) * KEYS
    table = Residency([Pool(0, 4)], pool_of, order())
    for needs in ([0, 1], [4], [8]):
        table.touch(needs)
        for key in needs:
            claim(table, key, demand=True)
    # After layer 2, for the next pass: layer 2 rests longest.  Layer 1 is prefetched, which is not to reach it.
    assert claim(table, 5, demand=False) == Load(5, 3, 8)
    table.touch([0])  # The next pass: 1 and 4 are stale, 0 and 5 current.
    assert claim(table, 9, demand=False) == Load(9, 1, 1)
    assert claim(table, 6, demand=False) == Load(6, 2, 4)
    # All are current now; layer 0 has just passed, layer 2 rests longer than layer 1.
    assert [claim(table, key, demand=False) for key in (7, 10, 11)] == [Load(7, 0, 0), Load(10, 1, 9), Load(11, 1, 10)]


def loads(passes: Sequence[Pass], slots: int) -> list[Load]:
    table = Residency([Pool(0, slots)], (0,) * KEYS, order())
    done = []
    for needs in (needs for one in passes for needs in one):
        table.pinned.update(needs)
        table.touch(
            [key for key in needs if key in table.resident] + [key for key in needs if key not in table.resident]
        )
        for key in needs:
            if key not in table.resident:
                load = claim(table, key, demand=True)
                assert load is not None
                done.append(load)
        table.pinned.clear()
    return done


def loads_by_definition(passes: Sequence[Pass], slots: int) -> list[tuple[int, int | None]]:
    """Sorts all residents anew for every victim."""
    done: list[tuple[int, int | None]] = []
    used: dict[int, tuple[int, int]] = {}
    clock = 0
    for number, one in enumerate(passes):
        for layer, needs in enumerate(one):
            here = set(used)
            for key in [key for key in needs if key in here] + [key for key in needs if key not in here]:
                clock += 1
                used[key] = (number, clock)
            for key in needs:
                if key not in here:
                    victim = None
                    if len(here) == slots:
                        victim = min(
                            here.difference(needs),
                            key=lambda one: (
                                used[one][0] == number,
                                -((one // EXPERTS - layer - 1) % LAYERS),
                                used[one][1],
                            ),
                        )
                        here.remove(victim)
                        del used[victim]
                    here.add(key)
                    done.append((key, victim))
    return done


NEEDS = [
    st.lists(st.integers(layer * EXPERTS, layer * EXPERTS + EXPERTS - 1), min_size=1, max_size=3, unique=True)
    for layer in range(LAYERS)
]


@given(st.lists(st.tuples(*NEEDS), max_size=8), st.integers(3, KEYS))
def test_on_demand_it_is_what_the_definition_says(passes: list[Pass], slots: int) -> None:
    assert [(load.key, load.evicted) for load in loads(passes, slots)] == loads_by_definition(passes, slots)


def test_a_sweep_over_more_layers_than_slots_keeps_some() -> None:
    sweep = [[0], [4], [8]]
    # LRU would miss nine times.  Here 0 stays, for 4 and 8 displace each other.
    assert [load.key for load in loads([sweep] * 3, slots=2)] == [0, 4, 8, 4, 8, 4, 8]
