"""MIN with bypass over the windows of a trace: the fewest loads that any schedule can do with.

Belady's rule (1966): keep what is used again soonest.  With bypass, an expert needs a slot only while it computes, the
order within a layer is free, the cache starts empty, at each prefill line the slots' worth of keys with the nearest
next use is there for nothing, and after each layer the keys with the nearest next use stay.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from heapq import heapify, heappop, heappush

from spmoe.policy.parts.future import Requests
from spmoe.trace.windows import windows

_NEVER = 0xFFFF


class Min:
    """The cache of MIN as it moves along the windows of a trace."""

    def __init__(self, requests: Requests, lengths: Iterable[int], layers: int, experts: int, slots: int) -> None:
        """Reads the windows, of so many drafted tokens, once, to know when each need comes again.

        That takes two bytes per need; nothing else of the future is held.
        """
        self.loads = 0
        """Loads so far."""
        self.needs = 0
        """Distinct experts needed so far, summed over visits."""
        self._layers = layers
        self._experts = experts
        self._slots = slots
        self._distances, first_use = _distances(requests, lengths, experts)
        self._next_visit = {key: window * layers + key // experts for key, window in first_use.items()}
        """For every key that will be needed again, the visit (window * layers + layer) that needs it next."""
        self._cache: set[int] = set()
        self._farthest: list[tuple[int, int]] = []
        self._window = -1

    def refill(self) -> None:
        """A prefill line: the keys with the nearest next use come for nothing."""
        by_next_visit = sorted(self._next_visit, key=lambda key: (self._next_visit[key], key))
        self._cache = set(by_next_visit[: self._slots])
        self._rebuild_heap()

    def visit(self, layer: int, needed: Sequence[int]) -> None:
        """The next visit: of `layer`, which needs these experts.  Layer 0 begins a window."""
        self._window += layer == 0
        cache, visit, first = self._cache, self._window * self._layers + layer, layer * self._experts
        for expert in needed:
            key = first + expert
            self.loads += key not in cache
            distance = self._distances[self.needs]
            self.needs += 1
            if distance == _NEVER:
                self._next_visit.pop(key, None)
                cache.discard(key)
            else:
                due = visit + distance * self._layers
                self._next_visit[key] = due
                cache.add(key)
                heappush(self._farthest, (-due, key))
        if len(self._farthest) > 64 + 4 * self._slots:
            self._rebuild_heap()
        while len(cache) > self._slots:
            minus_due, key = heappop(self._farthest)
            if key in cache and self._next_visit[key] == -minus_due:
                cache.remove(key)

    def _rebuild_heap(self) -> None:
        """Entries of keys that were used again stay behind in the heap; they must not pile up."""
        self._farthest = [(-self._next_visit[key], key) for key in self._cache]
        heapify(self._farthest)


def _distances(requests: Requests, lengths: Iterable[int], experts: int) -> tuple[array[int], dict[int, int]]:
    """Per need the number of windows until its key is needed again, and per key the window of its first use."""
    distances = array("H")
    last: dict[int, tuple[int, int]] = {}
    first_use: dict[int, int] = {}
    number = 0
    drafted = iter(lengths)
    for request in requests():
        for window in windows(request, drafted):
            for layer, routing in enumerate(window.routing()):
                for expert in routing.experts:
                    key = layer * experts + expert
                    if key in last:
                        need, seen = last[key]
                        # Capped: only two keys that both rest for 65,534 windows could be taken in the wrong order.
                        distances[need] = min(number - seen, _NEVER - 1)
                    else:
                        first_use[key] = number
                    last[key] = (len(distances), number)
                    distances.append(_NEVER)
            number += 1
    return distances, first_use
