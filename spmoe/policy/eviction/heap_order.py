"""Eviction by score: the lowest is the victim."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Sequence
from heapq import heapify, heappop, heappush

Score = tuple[int, ...]
"""Compared entry by entry; equal scores go by expert key."""


class RankedOrder(ABC):
    """A score for every key of a pool that was touched and not forgotten since; a `VictimOrder`.

    Each pool has a heap of (score, key).  A new score adds an entry and leaves the old one behind, so that a change
    costs no search; what is outdated goes when it surfaces, or when too much of it has piled up.
    """

    def __init__(self, pool_of: Sequence[int]) -> None:
        self._pool_of = pool_of
        pools = max(pool_of) + 1
        self._scores: list[dict[int, Score]] = [{} for _ in range(pools)]
        """Per pool the candidates, with the scores last noted."""
        self._heaps: list[list[tuple[Score, int]]] = [[] for _ in range(pools)]
        """May hold outdated entries."""

    @abstractmethod
    def _score(self, key: int) -> Score:
        """How much `key` is worth now.  Whatever changes it calls `_note` for the key."""

    def _may_leave(self, victim: int, key: int, demand: bool) -> bool:
        """Whether `victim`, the lowest there is, may go for a demand load or a prefetch of `key`."""
        return True

    def touch(self, keys: Iterable[int]) -> None:
        """`keys` are used, in this order; from now on they are candidates."""
        for key in keys:
            scores = self._scores[self._pool_of[key]]
            if key not in scores:
                scores[key] = ()  # No rule scores with nothing, so the first note always differs.
            self._note(key)

    def forget(self, key: int) -> None:
        """`key` is no longer a candidate."""
        self._scores[self._pool_of[key]].pop(key, None)

    def evict(self, pool: int, resident: Container[int], pinned: Container[int], key: int, demand: bool) -> int | None:
        """The candidate of the lowest score, if the rule lets it go."""
        lowest = self._lowest_of(pool, resident, pinned)
        if lowest is None or not self._may_leave(lowest, key, demand):
            return None
        self.forget(lowest)
        return lowest

    def _lowest_of(self, pool: int, resident: Container[int], pinned: Container[int]) -> int | None:
        scores, heap = self._scores[pool], self._heaps[pool]
        lowest, passed_over = None, []
        while heap:
            score, key = heap[0]
            if scores.get(key) == score:
                if key in resident and key not in pinned:
                    lowest = key
                    break
                passed_over.append(heap[0])
            heappop(heap)
        for entry in passed_over:
            heappush(heap, entry)
        return lowest

    def _note(self, key: int) -> None:
        """The score of `key` may have changed, or it is new among the candidates."""
        pool = self._pool_of[key]
        scores, heap = self._scores[pool], self._heaps[pool]
        if key not in scores:
            return
        score = self._score(key)
        if scores[key] == score:
            return
        scores[key] = score
        heappush(heap, (score, key))
        if len(heap) > 64 + 4 * len(scores):
            heap[:] = [(score, key) for key, score in scores.items()]
            heapify(heap)
