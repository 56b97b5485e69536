"""Prefetch selection: from forecasts to a ranked list of experts (SP-MoE, arXiv 2510.10302)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from spmoe.state.events import DraftPredicted, GatePredicted, StepBegun
from spmoe.state.events import Forecast as TokenForecast
from spmoe.state.forecast import Forecast, Wish

if TYPE_CHECKING:
    from spmoe.policy.oracle.clairvoyant import Future
from spmoe.policy.parts.horizon import Horizon
from spmoe.policy.parts.io_plan import Pace


def select(forecasts: Sequence[TokenForecast], top_n: int) -> list[tuple[int, int]]:
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


class Scope(NamedTuple):
    """What a forecast needs to know of the run: the model's shape, the horizon and how long things take."""

    layers: int
    experts: int
    top_k: int
    cutoff: int
    horizon: Horizon
    pace: Pace


@dataclass(frozen=True, slots=True)
class NoPredictor:
    """Nothing is predicted: every load is on demand."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def forecast(self, scope: Scope, future: Future | None) -> Forecast:
        """A forecast that wishes for nothing."""
        return Forecast()


@dataclass(frozen=True, slots=True)
class DraftGate:
    """The draft's hidden states through the target's routers, while the draft runs (SP-MoE).

    `top_n` experts per drafted token and layer, or the model's top-k where it is None.  Forecasts are reported `group`
    layers at a time: on a GPU each report costs a synchronisation, and a few draft layers are short beside a load.
    With `protect`, a resident that is forecast counts as used, so that prefetches do not displace it.
    """

    top_n: int | None = 1
    group: int = 8
    protect: bool = True
    needs: ClassVar[frozenset[str]] = frozenset({"draft"})

    def forecast(self, scope: Scope, future: Future | None) -> Forecast:
        """A forecast fed by `DraftPredicted`."""
        return _DraftForecast(scope, self.top_n or scope.top_k, self.group, self.protect)


@dataclass(frozen=True, slots=True)
class NextGate:
    """The target's state at one layer through the router of the next; `top_n` as in `DraftGate`.

    Of the experts predicted for a layer, at most `most` that are not there are fetched; None for all.  With
    `one_token` nothing is predicted while several tokens are verified together.
    """

    top_n: int | None = None
    most: int | None = None
    one_token: bool = False
    needs: ClassVar[frozenset[str]] = frozenset({"next_gate"})

    def forecast(self, scope: Scope, future: Future | None) -> Forecast:
        """A forecast fed by `GatePredicted`."""
        return _GateForecast(scope, self.top_n or scope.top_k, self.most, self.one_token)


class _DraftForecast(Forecast):
    """Wishes, as draft layers are done, for what their token will need; due when the verifier gets to that layer."""

    expires = True

    def __init__(self, scope: Scope, top_n: int, group: int, protects: bool) -> None:
        self.protects = protects
        self.predicted_layers = scope.horizon.end(-1, scope.layers, scope.cutoff)
        self.predicted_group = group
        self._experts = scope.experts
        self._pace = scope.pace
        self._top_n = top_n
        self._verified_from = 0
        """When the verifier will begin, if nothing stalls."""

    def step_begun(self, event: StepBegun, gamma: int) -> None:
        self._verified_from = event.time + gamma * self._pace.draft_ns

    def draft_predicted(self, event: DraftPredicted) -> Iterable[Wish]:
        # One token's forecast is ranked already; the queue merges what several tokens ask for.
        wishes = []
        due = self._verified_from + event.layer * self._pace.layer_ns
        first = event.layer * self._experts
        for forecast in event.forecasts:
            for expert, weight in forecast[: self._top_n]:
                wishes.append((first + expert, due, weight))
            due += self._pace.layer_ns
            first += self._experts
        return wishes


class _GateForecast(Forecast):
    """Wishes for the next layer's experts, due when it is reached."""

    expires = True

    def __init__(self, scope: Scope, top_n: int, most: int | None, one_token: bool) -> None:
        self.most = most
        self._scope = scope
        self._top_n = top_n
        self._one_token = one_token

    def gate_predicted(self, event: GatePredicted) -> Iterable[Wish]:
        scope = self._scope
        if event.layer >= scope.horizon.end(event.layer - 1, scope.layers, scope.cutoff):
            return ()
        if self._one_token and len(event.forecasts) > 1:
            return ()
        first = event.layer * scope.experts
        due = event.time + scope.pace.layer_ns
        return [(first + expert, due, weight) for expert, weight in select(event.forecasts, self._top_n)]
