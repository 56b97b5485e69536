"""Eviction of what the current forward pass has not used (SpecMD's Least-Stale, arXiv 2602.03921).

We had the paper's abstract (it rests on "predictable expert access patterns", not on recency or frequency) and second
hand accounts, not the definition itself.  They agree on two sets: an expert is *current* when the forward pass under
way has used it or loaded it ahead for itself, else *stale*; and stale ones are evicted first.  They do not agree on the
order within a set.  By time of last use the rule would be LRU again, for what is stale was last used before all that is
current.  We take the order of the layers, which is what is predictable: the longest unused is evicted first, that is
the layer just passed, then those before it, then the last layer and so down to the next one.  Within a layer the least
recently used is evicted first, which again is ours.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

from spmoe.policy.eviction.heap_order import RankedOrder, Score
from spmoe.policy.parts.predictor import Predictor
from spmoe.state.residency import VictimOrder


@dataclass(frozen=True, slots=True)
class LeastStale:
    """Experts that the current pass has not used are evicted first; of those, and of the others, the longest unused."""

    def order(self, pool_of: Sequence[int], predictor: Predictor, experts: int) -> VictimOrder:
        """A fresh record, for layers of `experts` experts."""
        return LeastStaleOrder(pool_of, experts)


class LeastStaleOrder(RankedOrder):
    """Where the forward pass stands, and which pass used each key last.

    The needs of a layer, touched as it is reached, tell where the pass stands: when the layer is not above the last
    one, a new pass has begun (a layer that needs nothing goes unnoticed).  A prefetch is told from a need by the slot
    that it took just before from a victim.  While slots are free there is no victim, so a prefetch then passes for a
    need; but nothing is evicted yet either.  Do not combine this with a predictor whose wants count as uses.
    """

    def __init__(self, pool_of: Sequence[int], experts: int) -> None:
        super().__init__(pool_of)
        self._experts = experts
        self._layers = len(pool_of) // experts
        self._pass = 0
        self._layer = -1
        """The layer reached last."""
        self._prefetched: int | None = None
        """The key that took a slot without being needed yet, and is touched next."""
        self._last_pass = [-1] * len(pool_of)
        self._last_use = [0] * len(pool_of)
        self._uses = 0

    def touch(self, keys: Iterable[int]) -> None:
        """`keys` are needed by the layer that is reached now, or one of them comes in ahead of its layer."""
        keys = tuple(keys)
        ahead, self._prefetched = keys == (self._prefetched,), None
        if keys and not ahead:
            self._reach(keys[0] // self._experts)
        for key in keys:
            self._uses += 1
            self._last_use[key] = self._uses
            self._last_pass[key] = self._next_pass(key) if ahead else self._pass
        super().touch(keys)

    def evict(self, pool: int, resident: Container[int], pinned: Container[int], key: int, demand: bool) -> int | None:
        """The stale key that rests longest, else the current one; demand loads and prefetches displace alike."""
        victim = super().evict(pool, resident, pinned, key, demand)
        self._prefetched = None if demand or victim is None else key
        return victim

    def _reach(self, layer: int) -> None:
        before, self._layer = self._layer, layer
        if layer <= before:
            self._pass += 1
            changed = range(len(self._pool_of))
        else:
            changed = range((before + 1) * self._experts, (layer + 1) * self._experts)
        for key in changed:
            self._note(key)

    def _next_pass(self, key: int) -> int:
        """The pass that reaches the key's layer next."""
        return self._pass + (key // self._experts <= self._layer)

    def _score(self, key: int) -> Score:
        current = self._last_pass[key] >= self._pass
        next_visit = self._next_pass(key) * self._layers + key // self._experts
        return current, -next_visit, self._last_use[key]
