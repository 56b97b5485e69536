"""The slot table: residency and eviction."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Container, Iterable, Sequence
from typing import NamedTuple, Protocol

from spmoe.state.commands import Load


class VictimOrder(Protocol):
    """Chooses the victims of a pool.  Keeps its own record of the keys that may be asked for."""

    def touch(self, keys: Iterable[int]) -> None:
        """`keys` are needed now, in this order, or come in now."""

    def forget(self, key: int) -> None:
        """`key` may no longer be chosen."""

    def evict(self, pool: int, resident: Container[int], pinned: Collection[int], key: int, demand: bool) -> int | None:
        """Choose the victim in `pool`, `resident` and not `pinned`, for a demand load or a prefetch of `key`.

        The victim is forgotten; None where nothing should be evicted.
        """


class Pool(NamedTuple):
    """A range of slots that one group of experts shares."""

    first: int
    slots: int


class Residency:
    """Slots, the experts in them and the experts on their way into them.

    A key is *absent*, *in flight* (owns a slot, weights not there yet) or *resident*.  Keys that the current layer
    still needs are pinned: neither they nor what is in flight is ever evicted.

    Where there are prefetch buffers, prefetched keys go there.  The oldest gives way to the next one; a key that is
    used changes places with its pool's victim instead, which then is the first to be overwritten.
    """

    def __init__(
        self, pools: Sequence[Pool], pool_of: Sequence[int], order: VictimOrder, buffers: Pool | None = None
    ) -> None:
        """`pool_of[key]` is the index of the pool whose slots `key` may use; `buffers` are the slots of prefetches."""
        self.order = order
        self.resident: dict[int, int] = {}
        self.in_flight: dict[int, int] = {}
        self.pinned: set[int] = set()
        self.fixed: frozenset[int] = frozenset()
        self._pool_of = pool_of
        self._pools = tuple(pools)
        # Reversed, so that pop() hands out the lowest slot first: then neighbours in host memory stay neighbours.
        self._free = [_slots(pool) for pool in pools]
        self._free_buffers = _slots(buffers) if buffers else []
        self._has_buffers = bool(self._free_buffers)
        self._buffered: OrderedDict[int, None] = OrderedDict()
        """Keys in buffers, or on their way there: the first to be overwritten first."""

    def fix(self, keys: Iterable[int]) -> None:
        """From now on exactly `keys` never leave once they are there; others may."""
        fixed = frozenset(keys)
        loose = sorted(self.fixed - fixed)
        self.order.touch([key for key in loose if key in self.resident or key in self.in_flight])
        for key in sorted(fixed - self.fixed):
            self.order.forget(key)
        self.fixed = fixed

    def touch(self, keys: Iterable[int]) -> None:
        """Record uses, in this order, of keys that are resident or about to come."""
        if self.fixed:
            keys = [key for key in keys if key not in self.fixed]
        if self._buffered:
            keys = [key for key in keys if key not in self._buffered]
        self.order.touch(keys)

    def adopt(self, keys: Iterable[int]) -> None:
        """Those of the pinned `keys` that are in buffers join their pools, each in exchange for a slot there."""
        for key in keys:
            if key not in self._buffered:
                continue
            pool = self._pool_of[key]
            if self._free[pool]:
                self._free_buffers.append(self._free[pool].pop())
            else:
                victim = self.order.evict(pool, self.resident, self.pinned, key, True)
                if victim is None:
                    continue  # All of the pool is needed now, or on its way.
                self._buffered[victim] = None
                self._buffered.move_to_end(victim, last=False)
            del self._buffered[key]

    def holds(self, keys: Sequence[int]) -> bool:
        """Whether all `keys`, of one layer, can be there at the same time."""
        if not keys:
            return True
        slots = self._pools[self._pool_of[keys[0]]].slots
        if not self.fixed:
            return len(keys) <= slots
        return sum(key not in self.fixed for key in keys) <= slots - len(self.fixed)

    def claim(self, key: int, demand: bool) -> Load | None:
        """Take a slot for `key`, which goes in flight; None where no slot is free and nothing may be evicted."""
        if self._has_buffers and not demand:
            return self._claim_buffer(key)
        pool = self._pool_of[key]
        evicted: int | None = None
        if self._free[pool]:
            slot = self._free[pool].pop()
        else:
            evicted = self.order.evict(pool, self.resident, self.pinned, key, demand)
            if evicted is None:
                return None
            slot = self.resident.pop(evicted)
        self.in_flight[key] = slot
        if not demand:  # A demanded key was touched when its layer was reached, in routing order.
            self.touch((key,))
        return Load(key, slot, evicted)

    def _claim_buffer(self, key: int) -> Load | None:
        evicted: int | None = None
        if self._free_buffers:
            slot = self._free_buffers.pop()
        else:
            evicted = next((old for old in self._buffered if old in self.resident and old not in self.pinned), None)
            if evicted is None:
                return None
            del self._buffered[evicted]
            slot = self.resident.pop(evicted)
        self._buffered[key] = None
        self.in_flight[key] = slot
        return Load(key, slot, evicted)

    def align(self, loads: Sequence[Load]) -> tuple[Load, ...]:
        """Loads claimed for one batch, in the order of host memory, with their slots dealt out anew in that order.

        So neighbours on the host become neighbours on the GPU where they can, and travel as one copy.
        """
        keys = sorted([load.key for load in loads], key=lambda key: (self._pool_of[key], key))
        # The slots of a pool follow those of the pool before, so each key gets one of its own pool.
        places = sorted((load.slot, load.evicted) for load in loads)
        aligned = [Load(key, slot, evicted) for key, (slot, evicted) in zip(keys, places, strict=True)]
        self.in_flight.update((load.key, load.slot) for load in aligned)
        return tuple(sorted(aligned))

    def arrive(self, key: int) -> None:
        """The weights of `key` are in their slot."""
        self.resident[key] = self.in_flight.pop(key)


def _slots(pool: Pool) -> list[int]:
    """The slots of a pool, the lowest last."""
    return list(range(pool.first + pool.slots - 1, pool.first - 1, -1))
