"""Step-aware eviction: the victim is needed again latest, by all that is known of this step and those to come.

A pass comes to every layer once, in order.  So when an expert can be needed next is known up to the pass: in this one
where its layer is ahead, in the next where it has passed.  Whether it is needed there is a matter of probability: what
the draft forecasts for this pass, how often it was used lately for those behind it.  With p for the first pass that may
need an expert, q for each pass after it and all layers equally long, its next use is expected

    layers * (1 - p) / q

layers behind the first visit.  The expert of which that is latest is evicted.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from spmoe.policy.eviction.array_order import ScoredOrder
from spmoe.policy.foresight.draft_evidence import DraftEvidence
from spmoe.policy.foresight.use_rates import Trust, UseRates
from spmoe.policy.parts.eviction import ByPredictor
from spmoe.policy.parts.fixed_point import ONE, SHIFT, WHOLE, Ints
from spmoe.policy.parts.future import Future
from spmoe.policy.parts.predictor import Predictor, PredictorPart
from spmoe.policy.parts.scope import Scope
from spmoe.state.events import (
    DraftPredicted,
    Forecast,
    LayerReached,
    PrefillBegun,
    RequestBegun,
    StepBegun,
    TokenDrafted,
)
from spmoe.state.keys import Shape
from spmoe.state.residency import VictimOrder

_USUAL_WINDOW = 5
"""Tokens of a pass as which a prompt counts, until a step has begun."""


@dataclass(frozen=True, slots=True)
class RecentUse(PredictorPart):
    """How often experts were used lately, and nothing of what the draft may say."""

    def build(self, scope: Scope, future: Future | None) -> Predictor:
        """A predictor fed by `LayerReached`."""
        return NextUses(scope.shape)


@dataclass(frozen=True, slots=True)
class Foresight(PredictorPart):
    """The draft's forecasts of all layers, `group` layers at a time, and how often experts were used lately."""

    group: int = 4
    needs: ClassVar[frozenset[str]] = frozenset({"draft"})

    def build(self, scope: Scope, future: Future | None) -> Predictor:
        """A predictor fed by `DraftPredicted` and `LayerReached`."""
        predictor = NextUses(scope.shape)
        predictor.predicted_layers, predictor.predicted_group = scope.layers, self.group
        return predictor


class NextUses(Predictor):
    """When each expert is expected to be used next.

    Time is counted in visits of layers, over `ONE`; the visit of layer l in pass w is w * layers + l.
    """

    def __init__(self, shape: Shape) -> None:
        layers, experts = self._layers, self._experts = shape.layers, shape.experts
        self._rates = UseRates(shape)
        self._trust = Trust()
        self._window = _USUAL_WINDOW
        """Tokens of a step."""
        self._prompt = 0
        """Tokens of the prompt that is read; 0 in a step."""
        self._evidence = DraftEvidence(shape)
        """The draft's forecasts for the layers ahead in this pass."""
        self._past = DraftEvidence(shape)
        """Those for the next pass, where it has gone past the window."""
        self._forecasts: list[list[Forecast]] = []
        """The draft's forecasts for all layers, as far as it has come, by tokens from the window's first one on."""
        self._chances: list[int] = []
        """The chances (/`ONE`) that the tokens it proposed stand, each where those before it do."""
        self._drafted: int | None = None
        """How many drafted tokens the window holds; None while that is open."""
        self._leads = ONE
        """How likely the target goes on with the first token past the window."""
        self._stands = [ONE]
        """How likely it goes on with those behind that, so many, where it does with the first."""
        self._reached = -1
        """The layer reached last in this pass."""
        self._has_news = False
        """Whether forecasts came in that `soonness` does not reflect yet."""
        self._absent: NDArray[np.bool_] = np.ones(layers * experts, np.bool_)
        """Which keys are neither on the GPU nor on their way; an order's own, once there is one."""
        self._soonness = np.zeros(layers * experts, np.int64)
        self._needed = np.zeros(layers * experts, np.int64)
        """How likely (/ONE) each key is needed by the pass that comes to its layer next."""
        self._soonness_of = self._soonness.reshape(layers, experts)
        self._needed_of = self._needed.reshape(layers, experts)
        self._lap = np.array(layers * ONE)
        """From one visit of a layer to the next."""
        self._next_visits = -ONE * np.repeat(np.arange(layers), experts).reshape(layers, experts)
        """Minus the visit of each layer in the pass to come, [layers, experts]."""
        self._expect(slice(0, layers), self._next_visits)
        self._visits = self._next_visits + self._lap
        """In the pass under way, likewise."""

    @property
    def soonness(self) -> Ints:
        """Per key, minus the visit (/`ONE`) at which its next use is expected; not to be changed."""
        if self._has_news:
            self._update()
        return self._soonness

    def watch(self, order: ExpectedOrder) -> None:
        """`order` knows which experts are resident."""
        self._absent = order.absent

    def worth(self, key: int, victim: int) -> bool:
        """Whether a prefetch of `key` may displace `victim`: only what is expected later than itself."""
        soonness = self.soonness
        return soonness.item(victim) < soonness.item(key)

    def request_begun(self, event: RequestBegun) -> None:
        self._forecasts, self._chances = [], []

    def prefill_begun(self, event: PrefillBegun) -> None:
        self._begin(event.tokens)

    def step_begun(self, event: StepBegun, gamma: int) -> None:
        self._begin(0)
        self._window = gamma + 1
        self._drafted = None
        self._record_all()

    def draft_predicted(self, event: DraftPredicted) -> None:
        while event.token >= len(self._forecasts):  # Of some tokens it may not have been asked.
            self._forecasts.append([])
        word = self._forecasts[event.token]
        layer, news = len(word), event.forecasts
        if layer > event.layer:
            news = news[layer - event.layer :]  # The rest is known from before, past the previous window.
        if news:
            word += news
            self._record(event.token, layer, news)

    def token_drafted(self, event: TokenDrafted, chance: int) -> None:
        self._chances.append(chance)
        if self._drafted is None:
            return
        if len(self._chances) > self._window:
            self._stands.append(_both(self._stands[-1], chance))
        else:
            self._leads = _both(self._leads, chance)

    def window_closed(self, drafted: int) -> None:
        self._drafted, self._window = drafted, drafted + 1
        self._leads = reduce(_both, self._chances[: self._window], ONE)
        self._stands = list(accumulate(self._chances[self._window :], _both, initial=ONE))
        if len(self._forecasts) > self._window:
            self._evidence.clear()
            self._record_all()

    def step_ended(self, known: int) -> None:
        for layers in self._past.layers():
            self._expect(layers, self._next_visits)
        self._past.clear()
        kept = self._window if known else len(self._forecasts)
        del self._forecasts[:kept], self._chances[:kept]

    def _record_all(self) -> None:
        """Record all of the draft's forecasts again."""
        for token, forecasts in enumerate(self._forecasts):
            self._record(token, 0, forecasts)

    def _record(self, token: int, layer: int, forecasts: Sequence[Forecast]) -> None:
        """Record a token's forecasts for `layer` and those after it."""
        self._has_news = True
        if self._drafted is None or token <= self._drafted:
            ahead = self._reached + 1
            if ahead > layer:  # Of layers that have passed the truth is known.
                layer, forecasts = ahead, forecasts[ahead - layer :]
            self._evidence.record(layer, forecasts)
            return
        self._past.record(layer, forecasts, self._stands[token - self._window])

    def layer_reached(self, event: LayerReached) -> None:
        layer = self._reached = event.layer
        if self._has_news:
            self._update()
        if layer in self._evidence:
            self._compare(layer, event.experts)
            self._evidence.forget(layer)
        if self._prompt:
            self._rates.learn_prompt(layer, event.experts, event.tokens, self._prompt, self._window)
        else:
            self._rates.learn(layer, event.experts, event.tokens, self._window)
        this = slice(layer, layer + 1)
        if layer in self._past:
            self._expect_past(this)
        else:
            self._expect(this, self._next_visits)

    def _begin(self, prompt: int) -> None:
        self._visits, self._next_visits = self._next_visits, self._next_visits - self._lap
        self._prompt = prompt
        self._reached = -1
        self._evidence.clear()

    def _expect(self, layers: slice, visits: Ints, needed: Ints | None = None) -> None:
        """The experts of some layers may be needed at these visits next, with these probabilities; without any, by
        their rates."""
        rates = self._rates.of(layers)
        if needed is None:
            needed = rates
        np.subtract(visits[layers], self._lap * (WHOLE - needed) // rates, out=self._soonness_of[layers])
        self._needed_of[layers] = needed

    def _update(self) -> None:
        """Reckon with what the draft has forecast since."""
        self._has_news = False
        for ahead in self._evidence.news(self._layers):
            needed = self._evidence.needed(ahead, self._rates.of(ahead), self._trust, self._window - 1)
            self._expect(ahead, self._visits, needed)
        for passed in self._past.news(self._reached + 1):
            self._expect_past(passed)

    def _expect_past(self, layers: slice) -> None:
        """The draft has forecasts for layers of the next pass, which hold only if the window is accepted."""
        rates = self._rates.of(layers)
        needed = self._past.needed(layers, rates, self._trust, self._window - 1)
        self._expect(layers, self._next_visits, rates + ((needed - rates) * np.array(self._leads) >> SHIFT))

    def _compare(self, layer: int, experts: Sequence[int]) -> None:
        """Compare the draft's forecasts for a layer with its routing."""
        rates = self._rates.of(slice(layer, layer + 1))[0].tolist()
        expected, surprises = sum(rates), len(experts)
        for expert, sure in self._evidence.named(layer).items():
            needed = expert in experts
            self._trust.learn(sure, needed)
            expected -= rates[expert]
            surprises -= needed
        self._trust.learn_unnamed(expected, surprises)


def _both(one: int, other: int) -> int:
    """The probability (/`ONE`) of two that do not depend on each other."""
    return one * other // ONE


@dataclass(frozen=True, slots=True)
class LatestExpected(ByPredictor[NextUses]):
    """The expert whose next use is expected latest is evicted."""

    predictor: ClassVar[type[Predictor]] = NextUses

    def _order(self, pool_of: Sequence[int], predictor: NextUses) -> VictimOrder:
        """An order by the predictor's expectations."""
        return ExpectedOrder(pool_of, predictor)


class ExpectedOrder(ScoredOrder):
    """Residents by their expected next use; a `VictimOrder`."""

    def __init__(self, pool_of: Sequence[int], predictor: NextUses) -> None:
        super().__init__(pool_of)
        self._predictor = predictor
        predictor.watch(self)

    @property
    def absent(self) -> NDArray[np.bool_]:
        """Which keys are neither on the GPU nor on their way; not to be changed."""
        return self._absent

    def evict(self, pool: int, resident: Container[int], pinned: Collection[int], key: int, demand: bool) -> int | None:
        """The latest expected; for a prefetch only where the predictor agrees."""
        victim = self._lowest(pool, self._predictor.soonness, resident, pinned)
        if victim is None or not (demand or self._predictor.worth(key, victim)):
            return None
        self.forget(victim)
        return victim
