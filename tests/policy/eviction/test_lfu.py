"""Least frequently used first; the count outlives eviction."""

from __future__ import annotations

from spmoe.policy.eviction.lfu import Lfu
from spmoe.policy.parts.predictor import Predictor
from spmoe.state.residency import VictimOrder

EVERYONE = range(6)


def order(experts: int = 3) -> VictimOrder:
    return Lfu().order((0,) * 6, Predictor(), experts)


def leaving(counts: VictimOrder) -> int | None:
    return counts.evict(0, EVERYONE, (), key=0, demand=True)


def test_the_least_used_leaves_though_it_was_used_last() -> None:
    counts = order()
    counts.touch([0, 1])
    counts.touch([0])
    counts.touch([1])
    counts.touch([4])  # LRU would evict 0.
    assert leaving(counts) == 4


def test_the_count_survives_eviction() -> None:
    counts = order()
    counts.touch([0, 1])
    counts.touch([1])
    assert leaving(counts) == 0
    counts.touch([0])
    counts.touch([0, 2, 2])
    # Uses: 3, 2 and 2, for 0 had one before.
    assert [leaving(counts) for _ in range(3)] == [1, 2, 0]


def test_ties_go_by_expert_then_layer() -> None:
    counts = order(experts=3)
    counts.touch([0, 1, 2, 3, 4, 5])  # Layers 0 and 1.
    counts.touch([0])
    assert [leaving(counts) for _ in range(6)] == [3, 1, 4, 2, 5, 0]
