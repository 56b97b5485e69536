"""What the effects of a step take and bring when a trace stands in for the models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spmoe.machine.cost import CostModel
from spmoe.state.events import Forecast
from spmoe.step import Accept, Attention, DraftLayers, DraftToken, Effect, Routed
from spmoe.trace.schema import PrefillLine, TokenLine
from spmoe.trace.windows import Routing, window

NO_FORECAST: Forecast = ()


class Pass:
    """Stands in for the models during one program."""

    def __init__(self, cost: CostModel) -> None:
        self._cost = cost
        self._layer_ns = 0
        self._routing: list[Routing] = []
        self._experts_ns: dict[int, int] = {}

    def experts_ns(self, experts: Sequence[int]) -> int:
        """How long some experts of the layer whose router spoke last compute, one after the other."""
        return sum(map(self._experts_ns.__getitem__, experts))

    def outcome(self, effect: Effect) -> tuple[int, Any]:
        """Duration (ns) and value of any effect but computing experts."""
        assert type(effect) is Attention
        return self._layer_ns, self._route(effect.layer)

    def _route(self, layer: int) -> Routed:
        routing = self._routing[layer]
        self._experts_ns = dict(zip(routing.experts, self._cost.expert_times(routing.tokens), strict=True))
        return routing.experts, routing.tokens, None


class PromptPass(Pass):
    """Reading a prompt.

    Its line tells which experts are touched but not by how many tokens: these are spread evenly.
    """

    def __init__(self, cost: CostModel, line: PrefillLine) -> None:
        super().__init__(cost)
        self._layer_ns = cost.layer_ns(line.prompt_tokens, line.prompt_tokens)
        routed = line.prompt_tokens * cost.geometry.top_k
        self._routing = [Routing(cell, (-(-routed // len(cell)),) * len(cell) if cell else ()) for cell in line.touched]


class StepPass(Pass):
    """One round over the token lines at hand: drafting, then verifying as many as were drafted."""

    def __init__(self, cost: CostModel, lines: Sequence[TokenLine], position: int, feeds_gate: bool) -> None:
        """`lines` are those from the pending token on; `feeds_gate` asks for next-gate forecasts."""
        super().__init__(cost)
        self._position = position
        self._feeds_gate = feeds_gate
        self._whole = window(lines, len(lines) - 1)
        self._drafted = 0

    @property
    def tokens(self) -> int:
        """Tokens that the round puts out."""
        return min(self._whole.accepted, self._drafted) + 1

    def outcome(self, effect: Any) -> tuple[int, Any]:
        """Duration (ns) and value of any effect but computing experts."""
        kind = type(effect)  # Compared by identity: this is asked some hundred times a step.
        if kind is Attention:
            layer = effect.layer
            if layer == 0:
                self._begin_verification()
            routed = self._route(layer)
            if self._feeds_gate and layer + 1 < len(self._routing):
                return self._layer_ns, (*routed[:2], self._next_gate(layer + 1))
            return self._layer_ns, routed
        if kind is DraftLayers:
            forecasts = self._forecasts("draft", effect.token)[effect.first : effect.end]
            return self._cost.draft_layers_ns(effect.first, effect.end), forecasts
        if kind is DraftToken:
            self._drafted += 1
            duration = self._cost.draft_layers_ns(effect.first_layer, self._cost.geometry.layers)
            return duration, self._whole.inputs[effect.token].draft_prob
        assert kind is Accept
        return 0, self.tokens - 1

    def _next_gate(self, layer: int) -> tuple[Forecast, ...]:
        return tuple([self._forecasts("next_gate", token)[layer] for token in range(self._drafted + 1)])

    def _begin_verification(self) -> None:
        tokens = self._drafted + 1
        whole = self._whole
        self._layer_ns = self._cost.layer_ns(tokens, self._position + tokens)
        self._routing = whole._replace(inputs=whole.inputs[:tokens]).routing()

    def _forecasts(self, name: str, token: int) -> tuple[Forecast, ...]:
        forecasts = self._whole.inputs[token].forecasts.get(name)
        return forecasts if forecasts is not None else (NO_FORECAST,) * self._cost.geometry.layers
