"""What the effects of a step take and bring when a trace stands in for the models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from spmoe.machine.cost import CostModel
from spmoe.state.events import Forecast
from spmoe.step import Accept, Attention, Compute, DraftLayers, DraftToken, Effect
from spmoe.trace.schema import PrefillLine, TokenLine
from spmoe.trace.windows import Routing, window

NO_FORECAST: Forecast = ()


def _experts_ns(cost: CostModel, routing: Routing, experts: Sequence[int]) -> int:
    """Compute time of some of a layer's needed experts, one after the other."""
    if len(experts) == len(routing.experts):
        return sum(map(cost.expert_ns, routing.tokens))
    tokens, place = routing.tokens, routing.experts.index
    return sum([cost.expert_ns(tokens[place(expert)]) for expert in experts])


class Pass(Protocol):
    """Stands in for the models during one program."""

    def outcome(self, effect: Effect) -> tuple[int, Any]:
        """Duration (ns) and value of an effect."""


class PromptPass:
    """Reading a prompt.

    Its line tells which experts are touched but not by how many tokens: these are spread evenly.
    """

    def __init__(self, cost: CostModel, line: PrefillLine) -> None:
        self._cost = cost
        self._layer_ns = cost.layer_ns(line.prompt_tokens, line.prompt_tokens)
        routed = line.prompt_tokens * cost.geometry.top_k
        self._routing = [Routing(cell, (-(-routed // len(cell)),) * len(cell) if cell else ()) for cell in line.touched]

    def outcome(self, effect: Effect) -> tuple[int, Any]:
        """Duration (ns) and value of an effect of the prefill program."""
        if type(effect) is Compute:
            return _experts_ns(self._cost, self._routing[effect.layer], effect.experts), None
        assert type(effect) is Attention
        routing = self._routing[effect.layer]
        return self._layer_ns, (routing.experts, routing.tokens, None)


class StepPass:
    """One round over the token lines at hand: drafting, then verifying as many as were drafted."""

    def __init__(self, cost: CostModel, lines: Sequence[TokenLine], position: int, feeds_gate: bool) -> None:
        """`lines` are those from the pending token on; `feeds_gate` asks for next-gate forecasts."""
        self._cost = cost
        self._position = position
        self._feeds_gate = feeds_gate
        self._whole = window(lines, len(lines) - 1)
        self._drafted = 0
        self._routing: list[Routing] = []
        self._layer_ns = 0

    @property
    def tokens(self) -> int:
        """Tokens that the round puts out."""
        return min(self._whole.accepted, self._drafted) + 1

    def outcome(self, effect: Any) -> tuple[int, Any]:
        """Duration (ns) and value of an effect of the step program."""
        kind = type(effect)  # Compared by identity: this is asked some hundred times a step.
        if kind is Compute:
            return _experts_ns(self._cost, self._routing[effect.layer], effect.experts), None
        if kind is Attention:
            if effect.layer == 0:
                self._begin_verification()
            routing = self._routing[effect.layer]
            next_gate = self._next_gate(effect.layer + 1) if self._feeds_gate else None
            return self._layer_ns, (routing.experts, routing.tokens, next_gate)
        if kind is DraftLayers:
            forecasts = self._forecasts("draft", effect.token)[effect.first : effect.end]
            return self._cost.draft_layers_ns(effect.first, effect.end), forecasts
        if kind is DraftToken:
            self._drafted += 1
            duration = self._cost.draft_layers_ns(effect.first_layer, self._cost.geometry.layers)
            return duration, self._whole.inputs[effect.token].draft_prob
        assert kind is Accept
        return 0, self.tokens - 1

    def _begin_verification(self) -> None:
        tokens = self._drafted + 1
        whole = self._whole
        self._layer_ns = self._cost.layer_ns(tokens, self._position + tokens)
        self._routing = whole._replace(inputs=whole.inputs[:tokens]).routing()

    def _forecasts(self, name: str, token: int) -> tuple[Forecast, ...]:
        forecasts = self._whole.inputs[token].forecasts.get(name)
        return forecasts if forecasts is not None else (NO_FORECAST,) * self._cost.geometry.layers

    def _next_gate(self, layer: int) -> tuple[Forecast, ...] | None:
        if layer == len(self._routing):
            return None
        return tuple([self._forecasts("next_gate", token)[layer] for token in range(self._drafted + 1)])
