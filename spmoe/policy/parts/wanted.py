"""Predictors that keep a set of wanted keys, ordered by deadline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import heapify, heappop, heappush, nsmallest

from spmoe.policy.parts.predictor import Predictor
from spmoe.state.events import LayerReached

Want = tuple[int, int, int]
"""A key, the time by which it will be needed (ns, or any other order of time), and a weight from the forecasts."""

_Entry = tuple[int, int, int]
"""Deadline, minus the weight, key: sorts by urgency."""


class WantedSet(Predictor):
    """Base of predictors whose wants wait for the link: the earliest deadline first, then the greater weight."""

    def __init__(self, experts: int) -> None:
        """For layers of `experts` experts."""
        self._experts = experts
        self.wanted: dict[int, _Entry] = {}
        self._heap: list[_Entry] = []
        """May hold entries that were replaced or discarded; they go when they surface."""

    def layer_reached(self, event: LayerReached) -> None:
        """What is still wanted for the layer comes too late for this pass."""
        self.drop_layer(event.layer)

    def want(self, key: int, deadline: int, weight: int) -> None:
        """Want a key that is neither resident nor in flight; wanted again, weights add up and the earlier deadline
        holds."""
        known = self.wanted.get(key)
        entry = (deadline, -weight, key) if known is None else (min(deadline, known[0]), known[1] - weight, key)
        self.wanted[key] = entry
        heappush(self._heap, entry)
        # Do not let outdated entries pile up.
        if len(self._heap) > 64 + 4 * len(self.wanted):
            self._heap = list(self.wanted.values())
            heapify(self._heap)

    def want_absent(self, wants: Iterable[Want]) -> list[int]:
        """Want those that are neither resident nor in flight; returns the residents among them, in order."""
        resident, in_flight = self.cache.resident, self.cache.in_flight
        there = []
        for key, deadline, weight in wants:
            if key in resident:
                there.append(key)
            elif key not in in_flight:
                self.want(key, deadline, weight)
        return there

    def drop_layer(self, layer: int) -> None:
        """Want none of the layer's experts any more."""
        if self.wanted:
            for key in range(layer * self._experts, (layer + 1) * self._experts):
                self.wanted.pop(key, None)
            self._tidy()

    def clear(self) -> None:
        """Want nothing any more."""
        self.wanted.clear()
        self._heap.clear()

    def next(self, count: int) -> Sequence[int]:
        wanted, heap = self.wanted, self._heap
        if count > 1:
            return [key for _, _, key in nsmallest(count, wanted.values())]
        while heap:
            head = heap[0]
            if wanted.get(head[2]) is head:
                return (head[2],)
            heappop(heap)
        return ()

    def discard(self, key: int) -> None:
        del self.wanted[key]
        self._tidy()

    def _tidy(self) -> None:
        """Forget outdated entries where there are no others."""
        if not self.wanted:
            self._heap.clear()
