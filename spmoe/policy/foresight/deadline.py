"""Prefetches that are worth the link's time, the earliest deadline first, in place of a cutoff layer.

A prefetch that is needed uses time in which the link would idle: as long as a load takes, or until the next layer asks
for the link, whichever is shorter.  One that is not needed delays the next demand by as much as a load is longer than
that, a load at most; a short one seldom, for the next layer seldom asks just then.  So with a probability of p it is
worth the link's time where

    p * layer > (1 - p) * load

The victim's next use has to be expected later.  Some links are so fast that all of a layer comes while the one before
computes.  Then the victim can be back before its layer is reached, if only that is reached later than that of
the expert loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

from spmoe.policy.foresight.background import BackgroundLoads
from spmoe.policy.foresight.idle_link import IdleLink
from spmoe.policy.foresight.next_use import Foresight
from spmoe.policy.parts.fixed_point import ONE
from spmoe.policy.parts.future import Future
from spmoe.policy.parts.pace import Pace
from spmoe.policy.parts.predictor import Predictor
from spmoe.policy.parts.scope import Scope
from spmoe.state.keys import Shape


@dataclass(frozen=True, slots=True)
class ForesightAhead(Foresight):
    """As `Foresight`; what it is likely enough to need is fetched ahead, through drafting and verification."""

    def build(self, scope: Scope, future: Future | None) -> Predictor:
        """A predictor fed by `DraftPredicted` and `LayerReached`."""
        # A link that no load is awaited from has other work to do.
        kind = BackgroundLoads if scope.pace.host_ns else WorthwhileLoads
        predictor = kind(scope.shape, scope.pace)
        predictor.predicted_layers, predictor.predicted_group = scope.layers, self.group
        return predictor


class WorthwhileLoads(IdleLink):
    """Next uses, and what of them this pass is likely enough to need."""

    def __init__(self, shape: Shape, pace: Pace) -> None:
        load, layer = pace.load_ns, pace.least_layer_ns
        super().__init__(shape, at_once=1 if load > layer else 2)
        self._enough = ONE * load // (load + layer)
        """How likely an expert has to be needed (/`ONE`)."""
        self._streams = pace.latency_ns + shape.experts * pace.transfer_ns <= pace.least_layer_ns
        """Whether the loads of a whole layer are over before the next one asks for the link."""

    def worth(self, key: int, victim: int) -> bool:
        """As the base; where whole layers come in time only which is reached first counts, and in a layer which is
        likelier."""
        if not self._streams:
            return super().worth(key, victim)
        later = self._ahead(victim) - self._ahead(key)
        return later > 0 or (later == 0 and self._needed.item(victim) < self._needed.item(key))

    def _ahead(self, key: int) -> int:
        """How many layers behind the next one that of `key` is reached."""
        return (key // self._experts - self._next_layer) % self._layers

    def _best(self, time: int) -> int | None:
        """Of the earliest layer that has any, the likeliest."""
        if self._has_news:
            self._update()
        first = self._next_layer * self._experts
        needed = self._needed[first:]
        worth = (needed > self._enough) & self._absent[first:]
        if not worth.any():
            return None
        start = int(worth.argmax()) // self._experts * self._experts
        layer = slice(start, start + self._experts)
        return first + start + int((needed[layer] * worth[layer]).argmax())
