"""Eviction by use count, as MoE-Infinity's open version does it (commit d617801, `expert_dispatcher.cpp`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from spmoe.policy.eviction.heap_order import RankedOrder, Score
from spmoe.policy.parts.predictor import Predictor
from spmoe.state.keys import layer_and_expert
from spmoe.state.residency import VictimOrder


@dataclass(frozen=True, slots=True)
class Lfu:
    """The least frequently used expert is evicted; ties go by lowest expert id, then lowest layer.

    The count survives eviction and is never reset: in the released code only an example script resets it, after the
    prompt.  That code keeps one cache for all layers.
    """

    def order(self, pool_of: Sequence[int], predictor: Predictor, experts: int) -> VictimOrder:
        """A fresh record of counts, for layers of `experts` experts."""
        return LfuOrder(pool_of, experts)


class LfuOrder(RankedOrder):
    """Uses of every expert, resident or not.

    Every touch counts as a use.  A key that was loaded before anything needed it is touched as its load is submitted,
    which is no use; the system that this describes does not prefetch, so the two never meet.
    """

    def __init__(self, pool_of: Sequence[int], experts: int) -> None:
        super().__init__(pool_of)
        self._experts = experts
        self._uses = [0] * len(pool_of)

    def touch(self, keys: Iterable[int]) -> None:
        """`keys` are used once more."""
        keys = tuple(keys)
        for key in keys:
            self._uses[key] += 1
        super().touch(keys)

    def _score(self, key: int) -> Score:
        layer, expert = layer_and_expert(key, self._experts)
        return self._uses[key], expert, layer
