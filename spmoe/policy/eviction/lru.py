"""Eviction by recency."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

from spmoe.policy.parts.predictor import Predictor
from spmoe.state.residency import VictimOrder


@dataclass(frozen=True, slots=True)
class Lru:
    """The least recently used expert of the pool is evicted."""

    def order(self, pool_of: Sequence[int], predictor: Predictor, experts: int) -> VictimOrder:
        """A fresh record of recency, for keys whose pools are given, of a model with `experts` experts per layer."""
        return LruOrder(pool_of)


class LruOrder:
    """Recency per pool; a `VictimOrder`.

    A layer's needs are touched in routing order when it is reached, residents first.  That gives the order in which
    they compute, whatever order they arrive in, so recency does not depend on the link.
    """

    def __init__(self, pool_of: Sequence[int]) -> None:
        self._pool_of = pool_of
        self._recency: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(max(pool_of) + 1)]

    def touch(self, keys: Iterable[int]) -> None:
        """`keys` become the most recently used of their pools, the last one most."""
        recency, pool_of = self._recency, self._pool_of
        for key in keys:
            order = recency[pool_of[key]]
            order[key] = None
            order.move_to_end(key)

    def forget(self, key: int) -> None:
        """`key` is no longer a candidate."""
        self._recency[self._pool_of[key]].pop(key, None)

    def evict(self, pool: int, resident: Container[int], pinned: Container[int], key: int, demand: bool) -> int | None:
        """The least recently used; demand loads and prefetches displace alike."""
        order = self._recency[pool]
        for oldest in order:
            if oldest in resident and oldest not in pinned:
                del order[oldest]
                return oldest
        return None
