"""A policy of one's own, without a change to the package: a predictor, an eviction rule, and the recipe of both.

    python examples/add_a_policy.py [TRACE]

prints its line of results next to that of the baseline, on the bundled trace of Mixtral-8x7B (synthetic).
"""

import sys
from collections.abc import Collection, Container, Iterable, Sequence
from dataclasses import dataclass

import sim
from spmoe.policy.parts.future import Future
from spmoe.policy.parts.predictor import Predictor, PredictorPart
from spmoe.policy.parts.scope import Scope
from spmoe.policy.parts.wanted import WantedSet
from spmoe.policy.recipe import Recipe
from spmoe.state.events import LayerReached
from spmoe.trace.bundled import bundled_trace


@dataclass(frozen=True, slots=True)
class SameAgain(PredictorPart):
    """The next layer will need what it needed in the pass before."""

    def build(self, scope: Scope, future: Future | None) -> Predictor:
        return SameAgainPredictor(scope)


class SameAgainPredictor(WantedSet):
    """Remembers the routing of each layer's last pass."""

    def __init__(self, scope: Scope) -> None:
        super().__init__(scope.experts)
        self._scope = scope
        self._last: list[tuple[int, ...]] = [()] * scope.layers

    def layer_reached(self, event: LayerReached) -> None:
        super().layer_reached(event)  # What was wanted for this layer comes too late.
        self._last[event.layer] = event.experts
        layer = event.layer + 1
        if layer < self._scope.end(event.layer):
            first, due = layer * self._scope.experts, event.time + self._scope.pace.layer_ns
            self.want_absent([(first + expert, due, 1) for expert in self._last[layer]])


@dataclass(frozen=True, slots=True)
class Mru:
    """The expert that was used last is evicted first: passes visit the layers in turn, so it is needed again latest."""

    def order(self, pool_of: Sequence[int], predictor: Predictor, experts: int) -> "MruOrder":
        return MruOrder(pool_of)


class MruOrder:
    """The keys of each pool in the order of their last use."""

    def __init__(self, pool_of: Sequence[int]) -> None:
        self._pool_of = pool_of
        self._recency: list[dict[int, None]] = [{} for _ in range(max(pool_of) + 1)]

    def touch(self, keys: Iterable[int]) -> None:
        for key in keys:
            self.forget(key)
            self._recency[self._pool_of[key]][key] = None

    def forget(self, key: int) -> None:
        self._recency[self._pool_of[key]].pop(key, None)

    def evict(self, pool: int, resident: Container[int], pinned: Collection[int], key: int, demand: bool) -> int | None:
        for victim in reversed(self._recency[pool]):
            if victim in resident and victim not in pinned:
                self.forget(victim)
                return victim
        return None


SAME_AGAIN = Recipe(
    name="example.same-again",
    summary="prefetches what the next layer needed in the pass before; evicts what was used last",
    source="examples/add_a_policy.py",
    predictor=SameAgain(),
    eviction=Mru(),
)


def main(trace: str | None = None) -> None:
    found = sim.replay(trace or bundled_trace(), ["on-demand.lru", SAME_AGAIN], hardware="rtx-4090", cache=0.5)
    print(found.table()[["tpot_ms", "vs_bound", "loads_per_token", "hit_rate", "stall_fraction"]].round(2))


if __name__ == "__main__":
    main(*sys.argv[1:])
