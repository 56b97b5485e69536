"""Eviction by scores of which many change at once; `heap_order` is for those that change one by one."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Sequence
from typing import Final

import numpy as np

from spmoe.policy.parts.fixed_point import Ints

AWAY: Final = 1 << 61
"""Of those that may not be evicted: others score less than half of it, in either direction."""


class ScoredOrder:
    """Base of a `VictimOrder` by scores of which many change at once: it looks at all candidates, each time."""

    def __init__(self, pool_of: Sequence[int]) -> None:
        self._pool_of = pool_of
        self._away = [np.full(len(pool_of), AWAY) for _ in range(max(pool_of) + 1)]
        """Per pool, what is added to the scores: 0 for the keys that may be chosen, `AWAY` for the others."""
        self._absent = np.full(len(pool_of), True)
        """Which keys no pool may choose: those that are neither there nor on their way."""
        self._sums = np.empty(len(pool_of), np.int64)

    def touch(self, keys: Iterable[int]) -> None:
        """`keys` are candidates from now on."""
        for key in keys:
            self._away[self._pool_of[key]][key] = 0
            self._absent[key] = False

    def forget(self, key: int) -> None:
        """`key` is no longer a candidate."""
        self._away[self._pool_of[key]][key] = AWAY
        self._absent[key] = True

    def _lowest(self, pool: int, scores: Ints, resident: Container[int], pinned: Collection[int]) -> int | None:
        """The key with the lowest score, the lowest of equals, among the pool's that are resident and not pinned; none
        of a score of `AWAY`."""
        sums = np.add(scores, self._away[pool], out=self._sums)
        for key in pinned:
            sums[key] = AWAY
        while True:
            key = int(sums.argmin())
            if sums.item(key) > AWAY // 2:
                return None
            if key in resident:
                return key
            sums[key] = AWAY
