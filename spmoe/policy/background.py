"""Loads in the background, where the CPU computes what is missing: the link is never idle while there is something
better to have than what is there.

Where misses go to the CPU, a load on the link delays nobody much, and a link that works on demand only would idle and
leave the cache as it is.  So whenever the link is free it fetches the absent expert whose next use is expected first, if
it is expected before that of the resident who would have to leave.

An expert of a layer to come is of use in this pass only if it arrives before its layer is reached; by then, that is, at
the pace of the layers so far.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from spmoe.policy.foresight import ExpectedOrder, NextUses
from spmoe.policy.planner import Pace
from spmoe.policy.use_rates import ONE
from spmoe.state.events import DraftPredicted, LayerReached, PrefillBegun, StepBegun
from spmoe.state.forecast import NOTHING, Wish
from spmoe.state.keys import Shape

import os
DEPTH = int(os.environ.get("BG_DEPTH", 1))
MARGIN = int(os.environ.get("BG_MARGIN", 0))
MODE = os.environ.get("BG_MODE", "")
_FAR = np.iinfo(np.int64).min

class BackgroundLoads(NextUses):
    """Next uses, and what of them should be fetched while the CPU computes."""

    looks_ahead = True
    expires = True
    now_or_never = True

    def __init__(self, shape: Shape, pace: Pace) -> None:
        super().__init__(shape)
        self._pace = pace
        self._order: ExpectedOrder
        self._next_layer = 0
        self._next_at = 0
        """When the next layer is reached, as far as is known."""
        self._visit_ns = pace.layer_ns
        """From one layer to the next, lately."""
        self._reached_at = 0
        self._may_find = False

    def watch(self, order: ExpectedOrder) -> None:
        self._order = order

    def prefill_begun(self, event: PrefillBegun) -> Iterable[Wish]:
        self._enter(event.time)
        return super().prefill_begun(event)

    def step_begun(self, event: StepBegun, gamma: int) -> None:
        self._enter(event.time + gamma * self._pace.draft_ns)
        super().step_begun(event, gamma)

    def draft_predicted(self, event: DraftPredicted) -> Iterable[Wish]:
        self._may_find = True
        return super().draft_predicted(event)

    def layer_reached(self, event: LayerReached) -> Iterable[Wish]:
        if event.layer:
            self._visit_ns += (event.time - self._reached_at - self._visit_ns) // 16
        self._reached_at = event.time
        self._next_layer, self._next_at, self._may_find = event.layer + 1, event.time + self._visit_ns, True
        return super().layer_reached(event)

    def top_up(self, time: int, queued: int, submitted: int) -> Iterable[Wish]:
        if queued or submitted >= DEPTH:
            self._may_find = True
            return NOTHING
        if not self._may_find:
            return NOTHING
        self._may_find = False
        arrives = time + self._pace.load_ns * (submitted + 1)
        # Layers that are reached before it would be there are of no use in this pass.
        first = min(self._next_layer + max(0, arrives - max(self._next_at, time)) // max(1, self._visit_ns) + (arrives > self._next_at), self._layers)
        keys = len(self._chances)
        scores = self.soonness
        able = self._order.absent(0, keys)
        able[self._next_layer * self._experts : first * self._experts] = False
        scores = np.where(able, scores, _FAR)
        key = int(scores.argmax())
        if not able[key]:
            return NOTHING
        return ((key, key // self._experts, 0),)

    def worth(self, key: int, victim: int) -> bool:
        return bool(self.soonness[victim] + MARGIN * ONE < self.soonness[key])

    def _enter(self, verified_from: int) -> None:
        self._next_layer, self._next_at = 0, verified_from + self._pace.layer_ns
        self._may_find = True
