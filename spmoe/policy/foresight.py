"""Step-aware eviction: who is needed again latest, by all that is known of this step and those to come, leaves first.

A pass comes to every layer once, in order.  So when an expert can be needed next is known up to the pass: in this one
where its layer is ahead, in the next where it has passed.  Whether it is needed there is a matter of probability: what
the draft forecasts for this pass, how often it was used lately for those behind it.  With p for the first pass that may
need an expert, q for each pass after it and all layers equally long, its next use is expected

    layers * (1 - p) / q

layers behind the first visit.  The expert of which that is latest leaves.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from spmoe.policy.prefetch import Scope
from spmoe.policy.row_similarity import Ints
from spmoe.policy.scored import ScoredOrder
from spmoe.policy.use_rates import ONE, Trust, UseRates
from spmoe.state.events import DraftPredicted, LayerReached, PrefillBegun, StepBegun
from spmoe.state.forecast import NOTHING, Forecast, Wish
from spmoe.state.keys import Shape
from spmoe.state.residency import VictimOrder

if TYPE_CHECKING:
    from spmoe.policy.clairvoyant import Future

_USUAL_WINDOW = 5
"""Tokens of a pass as which a prompt counts, until a step has begun."""


@dataclass(frozen=True, slots=True)
class RecentUse:
    """How often experts were used lately, and nothing of what the draft may say."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def forecast(self, scope: Scope, future: Future | None) -> Forecast:
        """A forecast fed by `LayerReached`."""
        return NextUses(Shape(scope.layers, scope.experts, scope.top_k))


@dataclass(frozen=True, slots=True)
class Foresight:
    """The draft's forecasts of all layers, `group` layers at a time, and how often experts were used lately."""

    group: int = 8
    needs: ClassVar[frozenset[str]] = frozenset({"draft"})

    def forecast(self, scope: Scope, future: Future | None) -> Forecast:
        """A forecast fed by `DraftPredicted` and `LayerReached`."""
        forecast = NextUses(Shape(scope.layers, scope.experts, scope.top_k))
        forecast.predicted_layers, forecast.predicted_group = scope.layers, self.group
        return forecast


@dataclass(frozen=True, slots=True)
class LatestExpected:
    """The expert whose next use is expected latest leaves."""

    def order(self, pool_of: Sequence[int], forecast: Forecast, experts: int) -> VictimOrder:
        """An order by the expectations of the forecast; ValueError where it has none."""
        if not isinstance(forecast, NextUses):
            raise ValueError("evicting by the expected next use needs a predictor with foresight")
        return ExpectedOrder(pool_of, forecast)


class NextUses(Forecast):
    """When each expert is expected to be used next.

    Time is counted in visits of layers, over `ONE`; the visit of layer l in pass w is w * layers + l.
    """

    def __init__(self, shape: Shape) -> None:
        layers, experts = self._layers, self._experts = shape.layers, shape.experts
        self._rates = UseRates(shape)
        self._trust = Trust()
        self._pass = -1
        """Passes begun, less one."""
        self._window = _USUAL_WINDOW
        """Tokens of a step."""
        self._prompt = 0
        """Tokens of the prompt that is read; 0 in a step."""
        self._spared: dict[int, dict[int, int]] = {}
        """Per layer ahead, and expert that a forecast names there: how sure the draft is (/ONE) that it is *not*
        needed."""
        self._heard = False
        """Whether forecasts came in that `soonness` does not reflect yet."""
        self._soonness = np.zeros(layers * experts, np.int64)
        for layer in range(layers):
            self._expect(layer, layer)

    @property
    def soonness(self) -> Ints:
        """Per key, minus the visit (/`ONE`) at which its next use is expected; not to be changed."""
        if self._heard:
            self._heed()
        return self._soonness

    def watch(self, order: ExpectedOrder) -> None:
        """`order` knows who is there; of no use here."""

    def worth(self, key: int, victim: int) -> bool:
        """Whether a prefetch of `key` may displace `victim`: only what is expected later than itself."""
        return bool(self.soonness[victim] < self.soonness[key])

    def prefill_begun(self, event: PrefillBegun) -> Iterable[Wish]:
        self._begin(event.tokens)
        return NOTHING

    def step_begun(self, event: StepBegun, gamma: int) -> None:
        self._begin(0)
        self._window = gamma + 1

    def draft_predicted(self, event: DraftPredicted) -> Iterable[Wish]:
        for layer, forecast in enumerate(event.forecasts, event.layer):
            spared = self._spared.setdefault(layer, {})
            for expert, probability in forecast:
                spared[expert] = spared.get(expert, ONE) * (ONE - probability) // ONE
        self._heard = True
        return NOTHING

    def layer_reached(self, event: LayerReached) -> Iterable[Wish]:
        layer = event.layer
        if self._heard:
            self._heed()
        if layer in self._spared:
            self._judge(layer, self._spared.pop(layer), event.experts)
        if self._prompt:
            self._rates.learn_prompt(layer, event.experts, event.tokens, self._prompt, self._window)
        else:
            self._rates.learn(layer, event.experts, event.tokens, self._window)
        self._expect(layer, (self._pass + 1) * self._layers + layer)
        return NOTHING

    def _begin(self, prompt: int) -> None:
        self._pass += 1
        self._prompt = prompt
        self._spared.clear()

    def _said(self, layer: int, needed: Ints) -> None:
        """The draft has spoken of `layer`, which will need its experts with these probabilities (/`ONE`)."""

    def _expect(self, layer: int, visit: int) -> None:
        """The experts of `layer` may be needed at `visit` next, of which nothing but their rates is known."""
        rates = self._rates.of(layer)
        first = layer * self._experts
        self._soonness[first : first + self._experts] = -(visit * ONE + self._layers * ONE * (ONE - rates) // rates)

    def _heed(self) -> None:
        """Take in what the draft has said of this pass."""
        self._heard = False
        experts, rest = self._experts, self._trust.unnamed()
        behind = self._layers * ONE
        for layer, spared in self._spared.items():
            rates, first = self._rates.of(layer), layer * experts
            needed = rates * rest // ONE
            for expert, chance in spared.items():
                needed[expert] = self._trust.named(ONE - chance)
            visit = (self._pass * self._layers + layer) * ONE
            self._soonness[first : first + experts] = -(visit + behind * (ONE - needed) // rates)
            self._said(layer, needed)

    def _judge(self, layer: int, spared: dict[int, int], experts: Sequence[int]) -> None:
        """Compare what the draft said of a layer with the truth."""
        rates = self._rates.of(layer)
        expected, surprises = int(rates.sum()), len(experts)
        for expert, chance in spared.items():
            needed = expert in experts
            self._trust.learn(ONE - chance, needed)
            expected -= int(rates[expert])
            surprises -= needed
        self._trust.learn_unnamed(expected, surprises)


class ExpectedOrder(ScoredOrder):
    """Residents by their expected next use; a `VictimOrder`."""

    def __init__(self, pool_of: Sequence[int], forecast: NextUses) -> None:
        super().__init__(pool_of)
        self._forecast = forecast
        forecast.watch(self)

    def absent(self, first: int, end: int) -> NDArray[np.bool_]:
        """Of the keys from `first` to `end` (exclusive), which are neither on the GPU nor on their way."""
        absent: NDArray[np.bool_] = np.logical_not(np.logical_or.reduce(self._here[:, first:end]))
        return absent

    def evict(self, pool: int, resident: Container[int], pinned: Container[int], key: int, demand: bool) -> int | None:
        """The latest expected; for a prefetch only where the forecast agrees."""
        victim = self._lowest(self._forecast.soonness, self._here[pool], resident, pinned)
        if victim is None or not (demand or self._forecast.worth(key, victim)):
            return None
        self.forget(victim)
        return victim
