"""Prefetches one at a time: the next is chosen when the one before has arrived, by what is known then.

So nothing waits in the queue to be cancelled or overtaken, and a demand load waits for one prefetch at most (for two
where loads are short).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from spmoe.policy.foresight.next_use import NextUses
from spmoe.state.events import DraftPredicted, LayerReached, PrefillBegun, StepBegun
from spmoe.state.keys import Shape


class IdleLink(NextUses):
    """Next uses; base of those that fetch ahead whenever the link is idle."""

    def __init__(self, shape: Shape, at_once: int = 1) -> None:
        """`at_once` loads may be on their way together: two, where the link should not wait for a decision between."""
        super().__init__(shape)
        self.wanted: dict[int, None] = {}
        self._at_once = at_once
        self._next_layer = 0
        """The first of the layers ahead in this pass."""
        self._may_find = False
        """Whether there may be something to fetch: not looked yet since something changed."""

    def prefill_begun(self, event: PrefillBegun) -> None:
        self._next_layer, self._may_find = 0, True
        super().prefill_begun(event)

    def step_begun(self, event: StepBegun, gamma: int) -> None:
        self._next_layer, self._may_find = 0, True
        super().step_begun(event, gamma)

    def draft_predicted(self, event: DraftPredicted) -> None:
        self._may_find = True
        super().draft_predicted(event)

    def layer_reached(self, event: LayerReached) -> None:
        self._next_layer, self._may_find = event.layer + 1, True
        super().layer_reached(event)

    def look_ahead(self, time: int, waiting: int, submitted: int) -> bool:
        if waiting or submitted >= self._at_once:
            self._may_find = True
            return False
        if not self._may_find:
            return False
        key = self._best(time)
        self._may_find = key is not None
        if key is not None:
            self.wanted[key] = None
        return self._may_find

    def next(self, count: int) -> Sequence[int]:
        # Now or never: where no slot can be had for it, another may be better the next time.
        keys = tuple(self.wanted)
        self.wanted.clear()
        return keys

    @abstractmethod
    def _best(self, time: int) -> int | None:
        """The absent key that a load which begins now should bring."""
