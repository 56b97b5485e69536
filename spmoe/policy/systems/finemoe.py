"""FineMoE: an iteration's experts by the gate probabilities of the most similar iteration before (arXiv 2502.05370v2).

An *expert map* is the gates' probabilities in one iteration (prompt or step): layers x experts.  The probabilities of a
window's tokens are added up and scaled to 1 (the paper has one token, or one map per request of a batch; the code, one
per token).  Where the trace holds the weights of the chosen experts only, those stand in for the gate's.  Traces hold
no token embeddings: a map's first row stands in for them, so that the search by embedding, which the system runs before
the first layer, runs at it.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from spmoe.policy.eviction.array_order import AWAY, ScoredOrder
from spmoe.policy.parts.eviction import ByPredictor
from spmoe.policy.parts.fixed_point import Ints
from spmoe.policy.parts.future import Future
from spmoe.policy.parts.predictor import Predictor, PredictorPart
from spmoe.policy.parts.scope import Scope
from spmoe.policy.parts.wanted import Want, WantedSet
from spmoe.policy.systems.similarity import ONE, MatrixStore
from spmoe.state.events import LayerReached
from spmoe.state.residency import VictimOrder

PROB = 65536
"""A probability of 1."""

_SHARPER = ONE // PROB

_LATEST = 1 << 32


@dataclass(frozen=True, slots=True)
class ExpertMap(PredictorPart):
    """The map of the earlier iteration with the highest cosine over the layers seen, `distance` d layers ahead.

    At layer 0 the best map by its first row gives the wishes for layers 1 to d - 1, at layer l the best by rows 0 to l
    those behind.  A lower similarity makes more wishes: the threshold is 1 - similarity, between 0 and 1.

    `band` "layer" is the paper: the wishes of layer l are for layer l + d alone, the fewest experts whose probabilities
    add up to the threshold, but at least top-k (equations 6-8).  They add to those queued before, the highest
    probability / layers ahead, as it is now, first (section 4.5).

    `band` "rest" is the code (commit 5c58468): the wishes are for layers l + 1 + d to the last, never for layer d.  A
    layer's experts are selected as long as their sum stays within the threshold, but at least top-k, and go first in
    the order of probability * (1 - (i - start) / (end + 1)), the band's layers i being start <= i < end; all others
    follow.  They take the place of those queued before, in the system at layer 0 also of those by embedding; here those
    come with the others of layer 0, and go first.

    The store holds `capacity` maps (1,000 in the paper, section 3.2, and the code).  When it is full, the map most
    similar to the new one makes room: d / layers of that of the first rows and the rest of that of the whole maps
    (section 4.4, and the code).  The default distance is the code's; the paper's experiments use 3 (section 6.1).
    """

    distance: int = 6
    band: Literal["layer", "rest"] = "layer"
    capacity: int = 1000
    needs: ClassVar[frozenset[str]] = frozenset({"gates"})

    def __post_init__(self) -> None:
        if self.distance < 1:
            raise ValueError("a map is searched at least one layer ahead")

    def build(self, scope: Scope, future: Future | None) -> Predictor:
        """A predictor fed by the gates of `LayerReached`; the horizon does not bound it."""
        return MapPredictor(scope, min(self.distance, scope.layers), self.band == "rest", self.capacity)


class MapPredictor(WantedSet):
    """Maps of earlier iterations, and what the one that is most similar to this one says of the layers to come."""

    def __init__(self, scope: Scope, distance: int, rest: bool, capacity: int) -> None:
        layers, experts = scope.layers, scope.experts
        super().__init__(experts)
        self._rest = rest
        self.probs = np.zeros(layers * experts, np.int64)
        """Per expert key, its probability (/65536) in the map searched last for its layer."""
        self.wished = np.zeros(layers * experts, np.bool_)
        """The keys that are wished for, until their layer is reached."""
        self._distance = distance
        self._top_k = scope.top_k
        self._store = MatrixStore(capacity, layers, experts)
        self._map = np.zeros((layers, experts), np.int64)
        """Of the current iteration, rows scaled to sum up to 1."""

    def layer_reached(self, event: LayerReached) -> None:
        super().layer_reached(event)
        layer, store = event.layer, self._store
        layers, experts = self._map.shape
        if layer == 0:
            store.begin()
            self._map[:] = 0
        self.wished[layer * experts : (layer + 1) * experts] = False
        row = self._map[layer]
        for gate in event.gates:
            for expert, prob in gate:
                row[expert] += prob
        row[:] = row * PROB // max(int(row.sum()), 1)
        store.see(layer, row)
        if store.stored:
            self._search(layer)
        if layer == layers - 1:
            self._keep()

    def _keep(self) -> None:
        """Store the map of an iteration that is complete."""
        store, layers, distance = self._store, len(self._map), self._distance
        index = store.stored
        if store.full:
            redundancy = distance * store.row_cosines(0) + (layers - distance) * store.cosines()
            index = int(redundancy.argmax())
        store.put(self._map, index)

    def _search(self, layer: int) -> None:
        """Want what the most similar map names for the layers that the search of `layer` is for."""
        layers, distance = len(self._map), self._distance
        cosines = self._store.cosines()
        best = int(cosines.argmax())
        matched = self._store.matrix(best)
        threshold = max(ONE - int(cosines[best]), 0)
        if self._rest:
            later = (layer + 1 + distance, layers)
            if later[0] < layers:
                self.wished[:] = False  # Else nothing new is wished for, and what was wished for last still holds.
            ranked: list[int] = []
            for first, end in ((0, distance), later) if layer == 0 else (later,):
                ranked += self._rank_all(matched, layer, first, end, threshold)
            if ranked:
                self.clear()
                self.want_absent([(key, rank, 0) for rank, key in enumerate(ranked)])
            return
        first, end = 1 if layer == 0 else layer + distance, min(layer + distance + 1, layers)
        self.want_absent(self._few(matched, layer, first, end, threshold))

    def _few(self, matched: Ints, layer: int, first: int, end: int, threshold: int) -> list[Want]:
        """The fewest experts of each layer whose probabilities add up to the threshold, but at least top-k."""
        experts = matched.shape[1]
        wants: list[Want] = []
        for target in range(first, end):
            row = matched[target]
            ranked = np.argsort(-row, kind="stable")
            sums = np.cumsum(row[ranked]) * _SHARPER
            count = max(int(np.searchsorted(sums, threshold)) + 1, self._top_k)
            start = target * experts
            self.probs[start : start + experts] = row
            for expert in ranked[:count].tolist():
                prob = int(row[expert])
                if prob:  # The impossible adds nothing to a sum.
                    self.wished[start + expert] = True
                    wants.append((start + expert, _LATEST - prob * PROB // (target - layer), prob))
        return wants

    def _rank_all(self, matched: Ints, layer: int, first: int, end: int, threshold: int) -> list[int]:
        """Keys of the layers from `first` to before `end` that are yet to come, most wanted first."""
        experts = matched.shape[1]
        skipped = max(layer + 1 - first, 0)
        rows = matched[first + skipped : end]
        if not len(rows):
            return []
        ranked = np.argsort(-rows, axis=1, kind="stable")
        sums = np.cumsum(np.take_along_axis(rows, ranked, axis=1), axis=1) * _SHARPER
        within: NDArray[np.bool_] = sums <= threshold
        within[:, : self._top_k] = True
        selected = np.zeros_like(within)
        np.put_along_axis(selected, ranked, within, axis=1)
        # end + 1 times 1 - (i - first) / (end + 1).
        decay = end + 1 - np.arange(skipped, end - first, dtype=np.int64)[:, np.newaxis]
        start = (first + skipped) * experts
        self.probs[start : end * experts] = rows.ravel()
        self.wished[start : end * experts] = True
        order = np.argsort(-(rows * selected * decay).ravel(), kind="stable")
        keys: list[int] = (order + start).tolist()
        return keys


@dataclass(frozen=True, slots=True)
class MapAware(ByPredictor[MapPredictor]):
    """The victim is the expert with the lowest p * visits, of equals the one with the lowest key.

    p is its probability in the map searched last that covers its layer, and visits counts its load and its uses since.
    Both are zero once it is evicted.  The paper evicts by the highest 1 / (p * visits) (section 4.5); as no gate says
    exactly 0, such a p counts as 2^-32 (ours), so that visits decide.  With `truncated`, the product is cut to an
    integer, as in the code (commit 5c58468), where most are then 0 and their order is not specified.  What is wished
    for stays until its layer is reached or it is no longer wished for: a prefetch never displaces it, a demand load
    only if nothing else can go (the code overflows its budget then; the paper is silent).
    """

    truncated: bool = False
    predictor: ClassVar[type[Predictor]] = MapPredictor

    def _order(self, pool_of: Sequence[int], predictor: MapPredictor) -> VictimOrder:
        """An order by the predictor's probabilities."""
        return MapOrder(pool_of, predictor, self.truncated)


class MapOrder(ScoredOrder):
    """Probabilities of the predictor times uses; a `VictimOrder`."""

    def __init__(self, pool_of: Sequence[int], predictor: MapPredictor, truncated: bool) -> None:
        super().__init__(pool_of)
        self._predictor = predictor
        self._truncated = truncated
        self._visits = np.zeros(len(pool_of), np.int64)

    def touch(self, keys: Iterable[int]) -> None:
        """`keys` are used, or come in: the system counts a load as a visit."""
        keys = tuple(keys)
        super().touch(keys)
        for key in keys:
            self._visits[key] += 1

    def evict(self, pool: int, resident: Container[int], pinned: Collection[int], key: int, demand: bool) -> int | None:
        """The lowest score of those not wished for; for a demand load, else of all."""
        predictor = self._predictor
        if self._truncated:
            scores = predictor.probs * self._visits // PROB
        else:
            scores = (predictor.probs * PROB + 1) * self._visits
        victim = self._lowest(pool, np.where(predictor.wished, AWAY, scores), resident, pinned)
        if victim is None and demand:
            victim = self._lowest(pool, scores, resident, pinned)
        if victim is not None:
            self.forget(victim)
            self._visits[victim] = 0
            predictor.probs[victim] = 0
        return victim
