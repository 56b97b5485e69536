"""MIN with bypass over the windows of a trace: the fewest loads that any schedule can do with.

Belady's rule (1966): keep what is used again soonest.  With bypass, an expert needs a slot only while it computes, the
order within a layer is free, the cache starts empty, at each prefill line the slots' worth of keys with the nearest
next use is there for nothing, and after each layer the keys with the nearest next use stay.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from spmoe.trace.windows import Request, fixed_windows

Requests = Callable[[], Iterator[Request]]
"""Starts a new pass over the requests of a trace."""

_NEVER = 0xFFFF


class MinLoads(NamedTuple):
    """What MIN comes to on the windows of a trace."""

    loads: int
    needs: int
    tokens: int
    """Output tokens."""
    steps: int


def min_loads(requests: Requests, gamma: int, layers: int, experts: int, slots: int) -> MinLoads:
    """Run MIN with `slots` slots over all windows of `gamma` drafted tokens.

    Two passes over the trace.  The first writes, in two bytes per need, how many windows later the same key is needed
    again; nothing else of the future is held.
    """
    distances, first_use = _distances(requests, gamma, experts)
    run = _Min(distances, {key: window * layers + key // experts for key, window in first_use.items()}, slots)
    at = needs = tokens = number = 0
    for request in requests():
        if request.prefill is not None:
            run.refill()
        for window in fixed_windows(request, gamma):
            tokens += window.accepted + 1
            for layer, routing in enumerate(window.routing()):
                run.visit(at, number * layers + layer, layers, [layer * experts + expert for expert in routing.experts])
                at += len(routing.experts)
            number += 1
        needs = at
    return MinLoads(run.loads, needs, tokens, number)


def _distances(requests: Requests, gamma: int, experts: int) -> tuple[array[int], dict[int, int]]:
    """Per need the number of windows until its key is needed again, and per key the window of its first use."""
    distances = array("H")
    last: dict[int, tuple[int, int]] = {}
    first_use: dict[int, int] = {}
    number = 0
    for request in requests():
        for window in fixed_windows(request, gamma):
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


class _Min:
    """The cache of MIN as it moves along the visits of layers."""

    def __init__(self, distances: array[int], next_visit: dict[int, int], slots: int) -> None:
        """`next_visit` holds, for every key, the visit that needs it next."""
        self.loads = 0
        self._distances = distances
        self._next_visit = next_visit
        self._slots = slots
        self._cache: set[int] = set()
        self._farthest: list[tuple[int, int]] = []

    def refill(self) -> None:
        """A prefill line: the keys with the nearest next use come for nothing."""
        by_next_visit = sorted(self._next_visit, key=lambda key: (self._next_visit[key], key))
        self._cache = set(by_next_visit[: self._slots])
        self._rebuild_heap()

    def visit(self, at: int, visit: int, layers: int, needed: list[int]) -> None:
        """A visit of a layer that needs these keys; their distances begin at `at`."""
        cache = self._cache
        for offset, key in enumerate(needed):
            self.loads += key not in cache
            distance = self._distances[at + offset]
            if distance == _NEVER:
                self._next_visit.pop(key, None)
                cache.discard(key)
            else:
                due = visit + distance * layers
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
