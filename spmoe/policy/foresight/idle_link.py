"""Prefetches one at a time: the next is chosen when the one before has arrived, by what is known then.

So nothing waits in the queue to be cancelled or overtaken, and a demand load waits for one prefetch at most (for two
where loads are short).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable

from spmoe.policy.foresight.next_use import NextUses
from spmoe.state.events import DraftPredicted, LayerReached, PrefillBegun, StepBegun
from spmoe.state.forecast import NOTHING, Wish
from spmoe.state.keys import Shape


class OneAhead(NextUses):
    """Next uses; base of those that fetch ahead whenever the link is free."""

    looks_ahead = True
    now_or_never = True

    def __init__(self, shape: Shape, at_once: int = 1) -> None:
        """`at_once` loads may be on their way together: two, where the link should not wait for our word between."""
        super().__init__(shape)
        self._at_once = at_once
        self._next_layer = 0
        """The first of the layers ahead in this pass."""
        self._may_find = False
        """Whether there may be something to fetch: not looked yet since something changed."""

    def prefill_begun(self, event: PrefillBegun) -> Iterable[Wish]:
        self._next_layer, self._may_find = 0, True
        return super().prefill_begun(event)

    def step_begun(self, event: StepBegun, gamma: int) -> None:
        self._next_layer, self._may_find = 0, True
        super().step_begun(event, gamma)

    def draft_predicted(self, event: DraftPredicted) -> Iterable[Wish]:
        self._may_find = True
        return super().draft_predicted(event)

    def layer_reached(self, event: LayerReached) -> Iterable[Wish]:
        self._next_layer, self._may_find = event.layer + 1, True
        return super().layer_reached(event)

    def top_up(self, time: int, queued: int, submitted: int) -> Iterable[Wish]:
        if queued or submitted >= self._at_once:
            self._may_find = True
            return NOTHING
        if not self._may_find:
            return NOTHING
        key = self._best(time)
        self._may_find = key is not None
        return NOTHING if key is None else ((key, key // self._experts, 0),)

    @abstractmethod
    def _best(self, time: int) -> int | None:
        """The absent key that a load which begins now should bring."""
