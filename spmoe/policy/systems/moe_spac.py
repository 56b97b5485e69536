"""Utility counters and the levels they give (MoE-SpAc, commit 77bb9cf, `ggml/src/ggml-backend.cpp`).

Every expert has a saturating counter, moved after each pass of its layer by the tokens that the pass sent to it.  A
counter above zero asks for the expert before the layer's next pass, and keeps it on the GPU until then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from spmoe.policy.eviction.heap_order import RankedOrder, Score
from spmoe.policy.parts.eviction import ByPredictor
from spmoe.policy.parts.future import Future
from spmoe.policy.parts.miss_action import LARGE_BATCH
from spmoe.policy.parts.predictor import Predictor, PredictorPart
from spmoe.policy.parts.scope import Scope
from spmoe.policy.parts.wanted import Want, WantedSet
from spmoe.state.events import LayerDone, LayerReached, PrefillBegun, StepBegun
from spmoe.state.residency import VictimOrder

HIGHEST = 5
"""Where the counters saturate."""

MARGIN = 5
"""A counter rises when the pass sent at least so many tokens more than it says."""

FROZEN = HIGHEST + 1
"""The level of all experts of the layer that computes."""

_FIFO_BITS = 48


def updated(counter: int, tokens: int) -> int:
    """The counter of an expert after a pass that sent it `tokens` tokens."""
    if tokens - counter >= MARGIN:
        return min(counter + 1, HIGHEST)
    return counter - 1 if tokens < counter else counter


@dataclass(frozen=True, slots=True)
class UtilityCounters(PredictorPart):
    """Asks for every expert whose counter is above zero as soon as its layer has computed, highest counter first.

    The target is the same layer's next pass.  With one token per pass no counter ever rises.
    """

    def build(self, scope: Scope, future: Future | None) -> Predictor:
        """Counters at zero."""
        return CounterPredictor(scope)


class CounterPredictor(WantedSet):
    """The counters of all experts, and the layer that computes."""

    def __init__(self, scope: Scope) -> None:
        super().__init__(scope.experts)
        self._counters = [0] * (scope.layers * scope.experts)
        self._batch = 0
        """Tokens of the pass that is under way."""
        self._computing: range = range(0)
        """Keys of the layer that computes."""
        self._tokens: dict[int, int] = {}
        """Tokens that the computing layer sent to each of its keys."""
        self._wants = 0
        self._watchers: list[Callable[[int], None]] = []

    def watch(self, changed: Callable[[int], None]) -> None:
        """From now on call `changed` with every key whose level may have changed."""
        self._watchers.append(changed)

    def level(self, key: int) -> int:
        """0 to 5, or `FROZEN`."""
        return FROZEN if key in self._computing else self._counters[key]

    def prefill_begun(self, event: PrefillBegun) -> None:
        self._batch = event.tokens

    def step_begun(self, event: StepBegun, gamma: int) -> None:
        self._batch = gamma + 1

    def layer_reached(self, event: LayerReached) -> None:
        super().layer_reached(event)
        if self._batch >= LARGE_BATCH:  # A prompt neither uses nor moves the counters.
            return
        first = event.layer * self._experts
        self._computing = range(first, first + self._experts)
        self._tokens = {first + expert: tokens for expert, tokens in zip(event.experts, event.tokens, strict=True)}
        self._changed(self._computing)

    def layer_done(self, event: LayerDone) -> None:
        keys, counters = self._computing, self._counters
        self._computing = range(0)
        wants: list[Want] = []
        for key in keys:
            counters[key] = updated(counters[key], self._tokens.get(key, 0))
            if counters[key]:
                wants.append((key, (HIGHEST - counters[key] << _FIFO_BITS) + self._wants, 0))
                self._wants += 1
        self._changed(keys)
        self.want_absent(wants)

    def _changed(self, keys: Iterable[int]) -> None:
        for changed in self._watchers:
            for key in keys:
                changed(key)


@dataclass(frozen=True, slots=True)
class Levels(ByPredictor[CounterPredictor]):
    """Only experts of level 0 leave, lowest key first; a waiting prefetch never displaces a lower level above 0.

    The level is the counter, or 6 while the layer computes.  The published system answers misses on the CPU, so that
    only prefetches ask for slots.  Where a miss is loaded all the same (a prompt), the load takes the lowest level when
    no expert is at level 0: the verifier waits for it, and without a slot would wait for ever.
    """

    predictor: ClassVar[type[Predictor]] = CounterPredictor

    def _order(self, pool_of: Sequence[int], predictor: CounterPredictor) -> VictimOrder:
        """An order by the predictor's levels."""
        return LevelOrder(pool_of, predictor)


class LevelOrder(RankedOrder):
    """Residents by level."""

    def __init__(self, pool_of: Sequence[int], predictor: CounterPredictor) -> None:
        super().__init__(pool_of)
        self._level = predictor.level
        predictor.watch(self._note)

    def _score(self, key: int) -> Score:
        return (self._level(key),)

    def _may_leave(self, victim: int, key: int, demand: bool) -> bool:
        return demand or self._level(victim) < 1
