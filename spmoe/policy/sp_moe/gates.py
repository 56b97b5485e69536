"""Prefetch selection: from forecasts to a ranked list of experts (SP-MoE, arXiv 2510.10302)."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import ClassVar

from spmoe.policy.parts.future import Future
from spmoe.policy.parts.predictor import Predictor, PredictorPart
from spmoe.policy.parts.scope import Scope
from spmoe.policy.parts.wanted import Want, WantedSet
from spmoe.state.events import DraftPredicted, Forecast, GatePredicted, StepBegun


def select(forecasts: Sequence[Forecast], top_n: int) -> list[tuple[int, int]]:
    """Experts that the tokens of a window are expected to need in one layer, most wanted first.

    Takes the first `top_n` experts of each token's forecast, merges duplicates by adding their probabilities (/65536)
    and ranks by the sum, ties by expert id.  Returns (expert, weight) pairs.
    """
    weights: dict[int, int] = {}
    for forecast in forecasts:
        for expert, prob in forecast[:top_n]:
            weights[expert] = weights.get(expert, 0) + prob
    if len(weights) == 1:
        return list(weights.items())
    return sorted(weights.items(), key=lambda item: (-item[1], item[0]))


@dataclass(frozen=True, slots=True)
class DraftGate(PredictorPart):
    """The draft's hidden states through the target's routers, while the draft runs (SP-MoE).

    `top_n` experts per drafted token and layer, or the model's top-k where it is None.  Forecasts are reported `group`
    layers at a time: on a GPU each report costs a synchronisation, and a few draft layers are short beside a load.
    With `protect`, a resident that is forecast counts as used, so that prefetches do not displace it.
    """

    top_n: int | None = 1
    group: int = 8
    protect: bool = True
    needs: ClassVar[frozenset[str]] = frozenset({"draft"})

    def critical(self, top_k: int) -> int:
        """`top_n`."""
        return self.top_n or top_k

    def build(self, scope: Scope, future: Future | None) -> Predictor:
        """A predictor fed by `DraftPredicted`."""
        return DraftPredictor(scope, self.critical(scope.top_k), self.group, self.protect)


@dataclass(frozen=True, slots=True)
class NextGate(PredictorPart):
    """The target's state at one layer through the router of the next; `top_n` as in `DraftGate`.

    Of the experts predicted for a layer, at most `most` that are not there are fetched; None for all.  With
    `one_token` nothing is predicted while several tokens are verified together.
    """

    top_n: int | None = None
    most: int | None = None
    one_token: bool = False
    needs: ClassVar[frozenset[str]] = frozenset({"next_gate"})

    def build(self, scope: Scope, future: Future | None) -> Predictor:
        """A predictor fed by `GatePredicted`."""
        return GatePredictor(scope, self.top_n or scope.top_k, self.most, self.one_token)


class DraftPredictor(WantedSet):
    """Wants, as draft layers are done, what their token will need; due when the verifier gets to that layer."""

    def __init__(self, scope: Scope, top_n: int, group: int, protect: bool) -> None:
        super().__init__(scope.experts)
        self.predicted_layers = scope.end(-1)
        self.predicted_group = group
        self._draft_ns, self._layer_ns = scope.pace.draft_ns, scope.pace.layer_ns
        self._top_n = top_n
        self._protect = protect
        self._verified_from = 0
        """When the verifier will begin, if nothing stalls."""

    def step_begun(self, event: StepBegun, gamma: int) -> None:
        self._verified_from = event.time + gamma * self._draft_ns

    def draft_predicted(self, event: DraftPredicted) -> None:
        # One token's forecast is ranked already; what several tokens want is merged as it is wanted.
        wants: list[Want] = []
        due = self._verified_from + event.layer * self._layer_ns
        first = event.layer * self._experts
        for forecast in event.forecasts:
            for expert, weight in forecast[: self._top_n]:
                wants.append((first + expert, due, weight))
            due += self._layer_ns
            first += self._experts
        there = self.want_absent(wants)
        if there and self._protect:
            self.cache.touch(there)


class GatePredictor(WantedSet):
    """Wants the next layer's experts, due when it is reached."""

    def __init__(self, scope: Scope, top_n: int, most: int | None, one_token: bool) -> None:
        super().__init__(scope.experts)
        self._scope = scope
        self._top_n = top_n
        self._most = most
        self._one_token = one_token

    def gate_predicted(self, event: GatePredicted) -> None:
        if event.layer < self._scope.end(event.layer - 1) and not (self._one_token and len(event.forecasts) > 1):
            self.want_absent(next_layer_wants(event, self._scope, self._top_n, self._most, self.cache.resident))


def next_layer_wants(
    event: GatePredicted, scope: Scope, top_n: int, most: int | None, resident: Container[int]
) -> list[Want]:
    """The experts that the next layer's gate names, most wanted first: the residents, and `most` of the others (None:
    all)."""
    first = event.layer * scope.experts
    due = event.time + scope.pace.layer_ns
    wants = [(first + expert, due, weight) for expert, weight in select(event.forecasts, top_n)]
    if most is None:
        return wants
    absent = [want for want in wants if want[0] not in resident][:most]
    return [want for want in wants if want[0] in resident or want in absent]
