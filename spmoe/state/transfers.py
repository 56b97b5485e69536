"""Loads that wait for the link, and batches that are on it."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import NamedTuple

from spmoe.state.commands import Purpose, Submit


class Prefetch(NamedTuple):
    """A queued load that nothing waits for yet.  Sorts by deadline, then the heavier forecast, then the key."""

    deadline: int
    minus_weight: int
    key: int
    purpose: Purpose


class TransferQueue:
    """Demand loads in the order asked for, then prefetches by deadline; at most `depth` batches submitted at a time.

    What is queued can be dropped or overtaken.  What is submitted is never torn.
    """

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.submitted: dict[int, Submit] = {}
        """Batches on the link, by number."""
        self.demands: dict[int, None] = {}
        """Keys that the verifier waits for, in the order asked for."""
        self.prefetches: dict[int, Prefetch] = {}
        """Other queued keys."""
        self._heap: list[Prefetch] = []

    def __contains__(self, key: object) -> bool:
        return key in self.demands or key in self.prefetches

    def __len__(self) -> int:
        return len(self.demands) + len(self.prefetches)

    def demand(self, key: int) -> None:
        """Queue a load that the verifier waits for; a queued prefetch of the same key becomes it."""
        self.prefetches.pop(key, None)
        self.demands[key] = None

    def prefetch(self, key: int, deadline: int, weight: int, purpose: Purpose = Purpose.PREFETCH) -> None:
        """Queue a load wanted by `deadline` (ns); asked for again, weights add up and the earlier deadline holds."""
        if key in self.demands:
            return
        known = self.prefetches.get(key)
        if known is not None:
            entry = Prefetch(min(deadline, known.deadline), known.minus_weight - weight, key, known.purpose)
        else:
            entry = Prefetch(deadline, -weight, key, purpose)
        self.prefetches[key] = entry
        heappush(self._heap, entry)
        # Entries that were replaced, dropped or taken stay in the heap until they surface; do not let them pile up.
        if len(self._heap) > 64 + 4 * len(self.prefetches):
            self._heap = list(self.prefetches.values())
            heapify(self._heap)

    def drop(self, first_key: int, end_key: int) -> None:
        """Forget the prefetches of keys in [first_key, end_key): their layer was reached without needing them."""
        for key in range(first_key, end_key):
            self.prefetches.pop(key, None)

    def clear(self) -> None:
        """Forget all prefetches; what belongs to the first contents of the cache stays."""
        for key in [key for key, prefetch in self.prefetches.items() if prefetch.purpose is Purpose.PREFETCH]:
            del self.prefetches[key]

    def first_prefetch(self) -> Prefetch | None:
        """The prefetch that should travel next; None where none is queued."""
        while self._heap:
            head = self._heap[0]
            if self.prefetches.get(head.key) is head:
                return head
            heappop(self._heap)
        return None

    def take(self, key: int) -> None:
        """Remove a queued key, which is being submitted."""
        if key in self.demands:
            del self.demands[key]
        else:
            del self.prefetches[key]
