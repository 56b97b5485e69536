"""Prefetch by popularity: the experts of the next layer that were used most so far.  It needs no forecasts at all."""

from __future__ import annotations

from dataclasses import dataclass
from heapq import nsmallest

from spmoe.policy.parts.future import Future
from spmoe.policy.parts.predictor import Predictor, PredictorPart
from spmoe.policy.parts.scope import Scope
from spmoe.policy.parts.wanted import WantedSet
from spmoe.state.events import LayerReached


@dataclass(frozen=True, slots=True)
class Popular(PredictorPart):
    """The experts that this run has sent most tokens to, prompts included, one layer ahead.

    `top_n` experts per layer, or the model's top-k where it is None, however many tokens the window has; those that
    were never used are not among them.  It learns as the run goes on and knows nothing at its start.
    """

    top_n: int | None = None

    def build(self, scope: Scope, future: Future | None) -> Predictor:
        """A predictor fed by `LayerReached`."""
        return PopularPredictor(scope, self.top_n or scope.top_k)


class PopularPredictor(WantedSet):
    """Counts tokens, and wants the next layer's most used experts, due when it is reached; ties by expert id."""

    def __init__(self, scope: Scope, top_n: int) -> None:
        super().__init__(scope.experts)
        self._scope = scope
        self._top_n = top_n
        self._used: list[dict[int, int]] = [{} for _ in range(scope.layers)]
        """Per layer, how many tokens went to each expert that had any."""

    def layer_reached(self, event: LayerReached) -> None:
        super().layer_reached(event)
        scope, used = self._scope, self._used[event.layer]
        for expert, tokens in zip(event.experts, event.tokens, strict=True):
            used[expert] = used.get(expert, 0) + tokens
        layer = event.layer + 1
        if layer >= scope.end(event.layer):
            return
        first = layer * scope.experts
        due = event.time + scope.pace.layer_ns
        most = nsmallest(self._top_n, self._used[layer].items(), key=lambda item: (-item[1], item[0]))
        self.want_absent([(first + expert, due, tokens) for expert, tokens in most])
