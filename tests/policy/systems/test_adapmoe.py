"""AdapMoE's slots per layer: the published cost, and the least sum of it."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spmoe.errors import InputError
from spmoe.policy.systems.adapmoe import LayerShares
from spmoe.state.keys import Shape
from spmoe.state.residency import Pool

ACCURACIES = st.integers(0, 65536)


def cost(shape: Shape, slots: int, accuracy: Fraction) -> Fraction:
    """Expected loads of a layer with so many slots, one missing expert fetched in time with probability `accuracy`."""
    _, experts, top_k = shape
    total = Fraction(0)
    for missing in range(top_k + 1):
        chance = Fraction(comb(experts - slots, missing) * comb(slots, top_k - missing), comb(experts, top_k))
        total += chance * (missing - accuracy * (missing >= 1))
    return total


def sum_of(shape: Shape, sizes: Sequence[int], accuracy: int) -> Fraction:
    return sum(
        (cost(shape, size, Fraction(accuracy if layer else 0, 65536)) for layer, size in enumerate(sizes)), Fraction(0)
    )


def fewest(shape: Shape, least: int, slots: int, accuracy: int) -> Fraction:
    """The least sum of costs by dynamic programming: layer by layer, for any number of slots used so far."""
    best = {0: Fraction(0)}
    for layer in range(shape.layers):
        beta = Fraction(accuracy if layer else 0, 65536)
        then: dict[int, Fraction] = {}
        for used, so_far in best.items():
            for size in range(least, min(shape.experts, slots - used) + 1):
                here = so_far + cost(shape, size, beta)
                then[used + size] = min(here, then.get(used + size, here))
        best = then
    return min(best.values())


@pytest.mark.parametrize("beta", [Fraction(0), Fraction(4, 5), Fraction(1)])
def test_the_cost_is_the_published_one(beta: Fraction) -> None:
    for s in range(9):
        p2, p1 = Fraction((8 - s) * (7 - s), 56), Fraction(2 * s * (8 - s), 56)
        assert cost(Shape(32, 8, 2), s, beta) == p2 * (2 - beta) + p1 * (1 - beta)


@given(st.integers(1, 10), st.data(), ACCURACIES)
def test_a_saving_is_what_the_cost_falls_by(experts: int, data: st.DataObject, accuracy: int) -> None:
    shape = Shape(2, experts, data.draw(st.integers(1, experts)))
    shares, slots = LayerShares(prefetch_accuracy=accuracy), data.draw(st.integers(0, experts - 1))
    for layer in range(2):
        beta = Fraction(accuracy if layer else 0, 65536)
        falls = cost(shape, slots, beta) - cost(shape, slots + 1, beta)
        unit = 65536 * experts * comb(experts, shape.top_k)
        assert Fraction(shares._saving(shape, layer, slots), unit) == falls >= 0


@given(
    layers=st.integers(1, 4),
    experts=st.integers(1, 6),
    minimum=st.integers(1, 3),
    accuracy=ACCURACIES,
    data=st.data(),
)
def test_no_other_shares_cost_less(layers: int, experts: int, minimum: int, accuracy: int, data: st.DataObject) -> None:
    shape = Shape(layers, experts, data.draw(st.integers(1, experts)))
    slots = data.draw(st.integers(layers, layers * experts + 2))
    sizes = LayerShares(prefetch_accuracy=accuracy, minimum=minimum).sizes(shape, slots)
    least = min(minimum, slots // layers, experts)
    assert len(sizes) == layers and all(least <= size <= experts for size in sizes)
    assert sum(sizes) == min(slots, layers * experts)
    assert sum_of(shape, sizes, accuracy) == fewest(shape, least, slots, accuracy)


def test_by_hand() -> None:
    # 4 experts, top-2, b = 1: a slot saves 1/2 in layer 0, and 1/2 - s/6 elsewhere with s there.
    shares = LayerShares(prefetch_accuracy=65536, minimum=1)
    assert shares.sizes(Shape(3, 4, 2), 3) == [1, 1, 1]
    assert shares.sizes(Shape(3, 4, 2), 6) == [4, 1, 1]
    assert shares.sizes(Shape(3, 4, 2), 8) == [4, 2, 2]
    assert shares.sizes(Shape(3, 4, 2), 9) == [4, 3, 2]
    assert shares.sizes(Shape(3, 4, 2), 99) == [4, 4, 4]


def test_mixtral_with_64_slots_as_released() -> None:
    sizes = LayerShares(minimum=1).sizes(Shape(32, 8, 2), 64)
    assert sizes == [8] + [2] * 25 + [1] * 6


def test_no_layer_is_left_with_a_single_slot_where_two_can_be_had() -> None:
    assert LayerShares().sizes(Shape(32, 8, 2), 64) == [2] * 32
    assert LayerShares().sizes(Shape(32, 8, 2), 68) == [6] + [2] * 31
    assert min(LayerShares().sizes(Shape(32, 8, 2), 63)) == 1


def test_pools_follow_each_other_and_buffers_come_last() -> None:
    shares = LayerShares(buffers=2, minimum=1, prefetch_accuracy=65536)
    assert shares.pools(Shape(3, 4, 2), 8) == (Pool(0, 4), Pool(4, 1), Pool(5, 1))
    assert shares.pool_of(Shape(2, 3, 1)) == (0, 0, 0, 1, 1, 1)
    assert shares.least(Shape(3, 4, 2)) == 5
    with pytest.raises(InputError, match="a slot for each of the 3 layers, but there are 2"):
        shares.pools(Shape(3, 4, 2), 4)


@pytest.mark.parametrize("parts", [{"prefetch_accuracy": 65537}, {"prefetch_accuracy": -1}, {"minimum": 0}])
def test_bad_numbers(parts: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"accuracy of prefetches|needs a slot"):
        LayerShares(**parts)
