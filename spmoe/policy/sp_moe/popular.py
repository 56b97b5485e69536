"""Prefetch by popularity: the experts of the next layer that were used most so far.  It needs no forecasts at all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from heapq import nsmallest
from typing import TYPE_CHECKING, ClassVar

from spmoe.policy.sp_moe.gates import Scope
from spmoe.state.events import LayerReached
from spmoe.state.forecast import NOTHING, Forecast, Wish

if TYPE_CHECKING:
    from spmoe.policy.oracle.clairvoyant import Future


@dataclass(frozen=True, slots=True)
class Popular:
    """The experts that this run has sent most tokens to, prompts included, one layer ahead.

    `top_n` experts per layer, or the model's top-k where it is None, however many tokens the window has; those that
    were never used are not among them.  It learns as the run goes on and knows nothing at its start.
    """

    top_n: int | None = None
    needs: ClassVar[frozenset[str]] = frozenset()

    def forecast(self, scope: Scope, future: Future | None) -> Forecast:
        """A forecast fed by `LayerReached`."""
        return _PopularForecast(scope, self.top_n or scope.top_k)


class _PopularForecast(Forecast):
    """Counts tokens, and wishes for the next layer's most used experts, due when it is reached; ties by expert id."""

    expires = True

    def __init__(self, scope: Scope, top_n: int) -> None:
        self._scope = scope
        self._top_n = top_n
        self._used: list[dict[int, int]] = [{} for _ in range(scope.layers)]
        """Per layer, how many tokens went to each expert that had any."""

    def layer_reached(self, event: LayerReached) -> Iterable[Wish]:
        scope, used = self._scope, self._used[event.layer]
        for expert, tokens in zip(event.experts, event.tokens, strict=True):
            used[expert] = used.get(expert, 0) + tokens
        layer = event.layer + 1
        if layer >= scope.horizon.end(event.layer, scope.layers, scope.cutoff):
            return NOTHING
        first = layer * scope.experts
        due = event.time + scope.pace.layer_ns
        most = nsmallest(self._top_n, self._used[layer].items(), key=lambda item: (-item[1], item[0]))
        return [(first + expert, due, tokens) for expert, tokens in most]
