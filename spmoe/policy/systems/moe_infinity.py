"""MoE-Infinity: a request's experts by those of the most similar request before (arXiv 2401.14361v3).

The released code (TorchMoE/MoE-Infinity) differs from the paper, and there its predictor never gets anything to predict
from: nothing hands a finished request to the store.  Here requests are stored when they finish.  Where the two differ
each part says which it follows.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from spmoe.policy.eviction.array_order import AWAY, ScoredOrder
from spmoe.policy.parts.eviction import ByPredictor
from spmoe.policy.parts.future import Future
from spmoe.policy.parts.predictor import Predictor, PredictorPart
from spmoe.policy.parts.scope import Scope
from spmoe.policy.parts.wanted import WantedSet
from spmoe.policy.systems.similarity import MatrixStore
from spmoe.state.events import LayerReached, RequestBegun
from spmoe.state.residency import VictimOrder

ROW = 1 << 32
"""All tokens of a layer: shares of them are integers."""


@dataclass(frozen=True, slots=True)
class ActivationMatrix(PredictorPart):
    """The matrix of token counts, layers x experts, of the finished request most similar to this one.

    A layer's wishes are all experts of later layers that the stored request used, in the order of
    share * (1 - (i - l) / (layers + 1)): the share of the stored request's tokens that layer i sent to the expert, and
    less the farther i is from the current layer l.  They take the place of those queued before.

    From the code (commit 5e096b4): the decay (the paper divides by `layers`) and the default `capacity` (the paper
    finds 120 enough for its tasks, and hundreds to thousands cheap, sections 5.2 and B.1).  The code also wishes for
    unused experts and for those of layer l, and orders by counts, not shares; the paper normalises rows (section 4.5).
    From the paper: a full store replaces the entry most similar to the new one, by the cosine of the matrices laid flat
    (section B.1; the code, the least often matched).  The paper adds up several good matches, without saying how many;
    here, as in the code, it is the best one, the oldest where there are several.  Prompt and decoding count alike, as
    in the code; the paper keeps a matrix for each.

    Compared are the counts of the request so far, by the mean of the cosines of all rows seen.  That is the code's
    measure, which however blanks the rows up to the current layer; comparing those is our repair.  The paper compares
    the current pass alone, laid flat.
    """

    capacity: int = 1000

    def build(self, scope: Scope, future: Future | None) -> Predictor:
        """A predictor fed by `LayerReached`; the horizon does not bound it."""
        return ActivationPredictor(scope.layers, scope.experts, self.capacity)


class ActivationPredictor(WantedSet):
    """Counts of the current request, those of finished ones, and the one that is most similar."""

    def __init__(self, layers: int, experts: int, capacity: int) -> None:
        super().__init__(experts)
        self.scores = np.zeros(layers * experts, np.int64)
        """Per expert key, how much it is worth keeping."""
        self._layers = layers
        self._store = MatrixStore(capacity, layers, experts)
        self._counts = np.zeros((layers, experts), np.int64)
        """Tokens of the current request per layer and expert."""
        self._matched: int | None = None
        self._shares = np.zeros((layers, experts), np.int64)
        """Of the matched entry."""
        self._worth = self.scores.reshape(layers, experts)
        self._nearness = np.arange(layers, 0, -1, dtype=np.int64)[:, np.newaxis]
        """layers * (1 - layer / layers), per layer."""
        self._worth[:] = self._nearness

    def request_begun(self, event: RequestBegun) -> None:
        if self._counts.any():
            store = self._store
            index = store.stored
            if store.full:
                store.begin()
                for layer, row in enumerate(self._counts):
                    store.see(layer, row)
                index = int(store.cosines().argmax())
            store.put(self._counts, index)
            self._counts[:] = 0
            self._matched = None

    def layer_reached(self, event: LayerReached) -> None:
        super().layer_reached(event)
        layer, counts = event.layer, self._counts[event.layer]
        row = np.zeros_like(counts)
        row[list(event.experts)] = event.tokens
        counts += row
        if self._store.stored:
            self._store.see(layer, counts)
            self._match()
            self._want_later(layer)
            return
        self._worth[layer] = (counts * ROW // max(int(counts.sum()), 1) + 1) * self._nearness[layer]

    def _match(self) -> None:
        best = int(self._store.row_cosine_sums().argmax())
        if best != self._matched:
            self._matched = best
            counts = self._store.matrix(best)
            self._shares = counts * ROW // np.maximum(counts.sum(axis=1, keepdims=True), 1)
            self._worth[:] = (self._shares + 1) * self._nearness

    def _want_later(self, layer: int) -> None:
        """Experts of later layers, in place of those wanted before."""
        later, experts = self._shares[layer + 1 :], self._shares.shape[1]
        # layers + 1 times 1 - (i - l) / (layers + 1), for i = l + 1 and on.
        decay = np.arange(self._layers, layer + 1, -1, dtype=np.int64)[:, np.newaxis]
        priorities = (later * decay).ravel()
        ranked = np.argsort(-priorities, kind="stable")[: np.count_nonzero(priorities)]
        if len(ranked):
            self.clear()
            self.want_absent([(key, rank, 0) for rank, key in enumerate((ranked + (layer + 1) * experts).tolist())])


@dataclass(frozen=True, slots=True)
class ActivationAware(ByPredictor[ActivationPredictor]):
    """The victim is the expert with the lowest (count + e) / (tokens of its layer) * (1 - layer / layers).

    Algorithm 1 of the paper, with the counts of the matched request; e, which the paper leaves open, is 2^-32 of the
    tokens, so that experts never used leave from the last layer on.  The layer nearest the input is kept longest: it
    comes first in the next pass, and prefetches come too late for it.  While no request has finished, the counts of the
    current one stand in (ours; the paper starts with a full store).  A prefetch displaces only an expert with a lower
    score than its own (ours; the paper omits how the two meet).
    """

    predictor: ClassVar[type[Predictor]] = ActivationPredictor

    def _order(self, pool_of: Sequence[int], predictor: ActivationPredictor) -> VictimOrder:
        """An order by the predictor's scores."""
        return ActivationOrder(pool_of, predictor)


class ActivationOrder(ScoredOrder):
    """Scores of the predictor as they are when somebody has to leave; a `VictimOrder`."""

    def __init__(self, pool_of: Sequence[int], predictor: ActivationPredictor) -> None:
        super().__init__(pool_of)
        self._worth = predictor.scores

    def evict(self, pool: int, resident: Container[int], pinned: Collection[int], key: int, demand: bool) -> int | None:
        """The lowest score; for a prefetch only where it is lower than that of `key`."""
        worth = self._worth if demand else np.where(self._worth < self._worth[key], self._worth, AWAY)
        victim = self._lowest(pool, worth, resident, pinned)
        if victim is not None:
            self.forget(victim)
        return victim
