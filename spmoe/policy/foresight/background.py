"""Loads in the background, for where the CPU computes what is missing.

There a load on the link delays little: what is missing meanwhile goes to the CPU.  A link that worked on demand
only would idle, and the cache stay as it is.  So whenever the link is free it fetches the absent expert whose next use
is expected first, if that is before that of the victim.

An expert of a layer ahead is of use in this pass only if it is there in time: so the layers that will be reached
earlier, at the pace of those before, are left out.  Half a layer's time late is early enough, for a layer is not over
as soon as it is reached.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from spmoe.policy.foresight.idle_link import IdleLink
from spmoe.policy.parts.pace import Pace
from spmoe.state.events import LayerReached, PrefillBegun, StepBegun
from spmoe.state.keys import Shape

_FAR: Final = np.iinfo(np.int64).min
_MEMORY: Final = 4
"""Each layer moves the pace by 1/16 of the difference."""


class BackgroundLoads(IdleLink):
    """Next uses, and what of them should be fetched while the link is idle."""

    def __init__(self, shape: Shape, pace: Pace) -> None:
        super().__init__(shape)
        self._load_ns, self._layer_ns, self._draft_ns = pace.load_ns, pace.layer_ns, pace.draft_ns
        self._next_at = 0
        """When the next layer will be reached."""
        self._reached_at = 0
        self._visit_ns = pace.layer_ns
        """From one layer to the next, lately."""

    def prefill_begun(self, event: PrefillBegun) -> None:
        self._next_at = event.time + self._layer_ns
        super().prefill_begun(event)

    def step_begun(self, event: StepBegun, gamma: int) -> None:
        self._next_at = event.time + gamma * self._draft_ns + self._layer_ns
        super().step_begun(event, gamma)

    def layer_reached(self, event: LayerReached) -> None:
        if event.layer:
            self._visit_ns = max(1, self._visit_ns + (event.time - self._reached_at - self._visit_ns >> _MEMORY))
        self._reached_at = event.time
        self._next_at = event.time + self._visit_ns
        super().layer_reached(event)

    def _best(self, time: int) -> int | None:
        """The expert needed soonest; in this pass only if it is there in time."""
        soonness = self.soonness
        candidates = self._absent.copy()
        candidates[self._next_layer * self._experts : self._in_time(time) * self._experts] = False
        key = int(np.where(candidates, soonness, _FAR).argmax())
        return key if candidates[key] else None

    def _in_time(self, time: int) -> int:
        """The first of the layers ahead that a load which begins now would be in time for."""
        late = time + self._load_ns - max(self._next_at, time)
        return self._next_layer + max(0, (2 * late + self._visit_ns) // (2 * self._visit_ns))
