"""Eviction by scores of which many change at once; `spmoe.policy.ranked` is for those that change one by one."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from spmoe.policy.row_similarity import Ints

_FAR = np.array(np.iinfo(np.int64).max)


class ScoredOrder:
    """Base of a `VictimOrder` by scores of which many change at once: it looks at all who may leave, each time."""

    def __init__(self, pool_of: Sequence[int]) -> None:
        self._pool_of = pool_of
        self._here = np.zeros((max(pool_of) + 1, len(pool_of)), np.bool_)
        """Per pool, which keys may be chosen."""

    def touch(self, keys: Iterable[int]) -> None:
        """`keys` are candidates from now on."""
        for key in keys:
            self._here[self._pool_of[key], key] = True

    def forget(self, key: int) -> None:
        """`key` is no longer a candidate."""
        self._here[self._pool_of[key], key] = False

    def _lowest(
        self, scores: Ints, among: NDArray[np.bool_], resident: Container[int], pinned: Collection[int]
    ) -> int | None:
        """The key with the lowest score, the lowest of equals, among those marked that are resident and not pinned."""
        scores = np.where(among, scores, _FAR)
        for key in pinned:
            scores[key] = _FAR
        while True:
            key = int(scores.argmin())
            if scores[key] == _FAR:
                return None
            if key in resident:
                return key
            scores[key] = _FAR
