"""Utility counters and the levels they give (MoE-SpAc, commit 77bb9cf, `ggml/src/ggml-backend.cpp`).

Every expert has a saturating counter, moved after each pass of its layer by the tokens that the pass sent to it.  A
counter above zero asks for the expert before the layer's next pass, and keeps it on the GPU until then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from spmoe.policy.eviction.heap_order import RankedOrder, Score
from spmoe.policy.parts.miss_action import LARGE_BATCH
from spmoe.policy.sp_moe.gates import Scope
from spmoe.state.events import LayerDone, LayerReached, PrefillBegun, StepBegun
from spmoe.state.forecast import NOTHING, Forecast, Wish
from spmoe.state.residency import VictimOrder

if TYPE_CHECKING:
    from spmoe.policy.oracle.clairvoyant import Future

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
class UtilityCounters:
    """Asks for every expert whose counter is above zero as soon as its layer has computed, highest counter first.

    The target is the same layer's next pass.  With one token per pass no counter ever rises.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    def forecast(self, scope: Scope, future: Future | None) -> Forecast:
        """Counters at zero."""
        return CounterForecast(scope)


@dataclass(frozen=True, slots=True)
class Levels:
    """Only experts of level 0 leave, lowest key first; a waiting prefetch never displaces a lower level above 0.

    The level is the counter, or 6 while the layer computes.  The published system answers misses on the CPU, so that
    only prefetches ask for slots.  Where a miss is loaded all the same (a prompt), the load takes the lowest level when
    no expert is at level 0: the verifier waits for it, and without a slot would wait for ever.
    """

    def order(self, pool_of: Sequence[int], forecast: Forecast, experts: int) -> VictimOrder:
        """The forecast holds the levels; ValueError where it has none."""
        if not isinstance(forecast, CounterForecast):
            raise ValueError("evicting by level needs a predictor with utility counters")
        return LevelOrder(pool_of, forecast)


class CounterForecast(Forecast):
    """The counters of all experts, and the layer that computes."""

    expires = True

    def __init__(self, scope: Scope) -> None:
        self._experts = scope.experts
        self._counters = [0] * (scope.layers * scope.experts)
        self._batch = 0
        """Tokens of the pass that is under way."""
        self._computing: range = range(0)
        """Keys of the layer that computes."""
        self._tokens: dict[int, int] = {}
        """Tokens that the computing layer sent to each of its keys."""
        self._wishes = 0
        self._watchers: list[Callable[[int], None]] = []

    def watch(self, changed: Callable[[int], None]) -> None:
        """From now on call `changed` with every key whose level may have changed."""
        self._watchers.append(changed)

    def level(self, key: int) -> int:
        """0 to 5, or `FROZEN`."""
        return FROZEN if key in self._computing else self._counters[key]

    def prefill_begun(self, event: PrefillBegun) -> Iterable[Wish]:
        self._batch = event.tokens
        return NOTHING

    def step_begun(self, event: StepBegun, gamma: int) -> None:
        self._batch = gamma + 1

    def layer_reached(self, event: LayerReached) -> Iterable[Wish]:
        if self._batch >= LARGE_BATCH:  # A prompt neither uses nor moves the counters.
            return NOTHING
        first = event.layer * self._experts
        self._computing = range(first, first + self._experts)
        self._tokens = {first + expert: tokens for expert, tokens in zip(event.experts, event.tokens, strict=True)}
        self._changed(self._computing)
        return NOTHING

    def layer_done(self, event: LayerDone) -> Iterable[Wish]:
        keys, counters = self._computing, self._counters
        self._computing = range(0)
        wishes: list[Wish] = []
        for key in keys:
            counters[key] = updated(counters[key], self._tokens.get(key, 0))
            if counters[key]:
                wishes.append((key, (HIGHEST - counters[key] << _FIFO_BITS) + self._wishes, 0))
                self._wishes += 1
        self._changed(keys)
        return wishes

    def _changed(self, keys: Iterable[int]) -> None:
        for changed in self._watchers:
            for key in keys:
                changed(key)


class LevelOrder(RankedOrder):
    """Residents by level."""

    def __init__(self, pool_of: Sequence[int], forecast: CounterForecast) -> None:
        super().__init__(pool_of)
        self._level = forecast.level
        forecast.watch(self._note)

    def _score(self, key: int) -> Score:
        return (self._level(key),)

    def _may_leave(self, victim: int, key: int, demand: bool) -> bool:
        return demand or self._level(victim) < 1
