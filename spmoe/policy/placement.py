"""Whose slots they are, and who is there at the start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from spmoe.errors import InputError
from spmoe.state.residency import Pool


@dataclass(frozen=True, slots=True)
class GlobalPool:
    """One pool: any expert may use any slot.  Empty at the start."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def pools(self, layers: int, experts: int, slots: int) -> tuple[Pool, ...]:
        """The pools, in order of slots."""
        return (Pool(0, slots),)

    def pool_of(self, layers: int, experts: int) -> tuple[int, ...]:
        """For every expert key the index of its pool."""
        return (0,) * (layers * experts)

    def initial(self, popular: Sequence[int], slots: int) -> tuple[int, ...]:
        """Keys to load before anything asks for them."""
        return ()


@dataclass(frozen=True, slots=True)
class LayerPools(GlobalPool):
    """Every layer has slots of its own; what does not divide evenly goes to the first layers."""

    def pools(self, layers: int, experts: int, slots: int) -> tuple[Pool, ...]:
        """One pool per layer.

        Raises:
            InputError: some layer would be left without a slot.
        """
        if slots < layers:
            raise InputError(f"a cache per layer needs a slot for each of the {layers} layers, but there are {slots}")
        share, rest = divmod(slots, layers)
        pools, first = [], 0
        for layer in range(layers):
            size = share + (layer < rest)
            pools.append(Pool(first, size))
            first += size
        return tuple(pools)

    def pool_of(self, layers: int, experts: int) -> tuple[int, ...]:
        """The pool of a key is its layer."""
        return tuple(layer for layer in range(layers) for _ in range(experts))


@dataclass(frozen=True, slots=True)
class PopularSet(GlobalPool):
    """One pool that starts with the most popular experts; `staging` slots are left for the others."""

    needs: ClassVar[frozenset[str]] = frozenset({"popularity"})
    staging: int = 2

    def initial(self, popular: Sequence[int], slots: int) -> tuple[int, ...]:
        """The most popular keys, as many as fit beside the staging slots (of a single slot nothing is left)."""
        return tuple(popular[: max(0, slots - self.staging)])


Placement = GlobalPool | LayerPools | PopularSet
