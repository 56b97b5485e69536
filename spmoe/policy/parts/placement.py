"""Which experts share which slots, and which are resident at the start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from spmoe.errors import InputError
from spmoe.state.keys import Shape
from spmoe.state.residency import Pool


@dataclass(frozen=True, slots=True)
class GlobalPool:
    """One pool: any expert may use any slot.  Empty at the start."""

    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def buffers(self) -> int:
        """Slots, the last ones, that belong to no pool: prefetched experts wait there until they are used."""
        return 0

    def least(self, shape: Shape) -> int:
        """The fewest slots it works with."""
        return 1

    def pools(self, shape: Shape, slots: int) -> tuple[Pool, ...]:
        """The pools, in order of slots."""
        return (Pool(0, slots),)

    def pool_of(self, shape: Shape) -> tuple[int, ...]:
        """For every expert key the index of its pool."""
        return (0,) * (shape.layers * shape.experts)

    def initial(self, popular: Sequence[int], shape: Shape, slots: int) -> tuple[int, ...]:
        """Keys to load before anything asks for them."""
        return ()


@dataclass(frozen=True, slots=True)
class OneLayer(GlobalPool):
    """No cache: a pool as large as one layer, through which every layer's experts pass.  Other slots stay unused."""

    def least(self, shape: Shape) -> int:
        """A whole layer."""
        return shape.experts

    def pools(self, shape: Shape, slots: int) -> tuple[Pool, ...]:
        """One small pool."""
        return (Pool(0, min(slots, shape.experts)),)


@dataclass(frozen=True, slots=True)
class LayerPools(GlobalPool):
    """Every layer has slots of its own; what does not divide evenly goes to the first layers."""

    buffers: int = 0

    def least(self, shape: Shape) -> int:
        """A slot for each layer, besides the buffers."""
        return shape.layers + self.buffers

    def pools(self, shape: Shape, slots: int) -> tuple[Pool, ...]:
        """One pool per layer.

        Raises:
            InputError: some layer would be left without a slot.
        """
        room = slots - self.buffers
        if room < shape.layers:
            raise InputError(
                f"a cache per layer needs a slot for each of the {shape.layers} layers, but there are {max(0, room)}"
            )
        pools, first = [], 0
        for size in self.sizes(shape, room):
            pools.append(Pool(first, size))
            first += size
        return tuple(pools)

    def sizes(self, shape: Shape, slots: int) -> Sequence[int]:
        """How many of the slots each layer gets."""
        share, rest = divmod(slots, shape.layers)
        return [share + (layer < rest) for layer in range(shape.layers)]

    def pool_of(self, shape: Shape) -> tuple[int, ...]:
        """The pool of a key is its layer."""
        return tuple(layer for layer in range(shape.layers) for _ in range(shape.experts))


@dataclass(frozen=True, slots=True)
class PopularSet(GlobalPool):
    """One pool that starts with the experts that other requests use most; `staging` slots are left for the rest."""

    needs: ClassVar[frozenset[str]] = frozenset({"popularity"})
    staging: int = 2

    def initial(self, popular: Sequence[int], shape: Shape, slots: int) -> tuple[int, ...]:
        """The most popular keys, as many as fit beside the staging slots (of a single slot nothing is left)."""
        return tuple(popular[: max(0, slots - self.staging)])


@dataclass(frozen=True, slots=True)
class HindsightSet(PopularSet):
    """As `PopularSet`, with the experts that most windows of this very trace need: the best fixed set there is."""

    needs: ClassVar[frozenset[str]] = frozenset({"hindsight"})


@dataclass(frozen=True, slots=True)
class WholeLayers(GlobalPool):
    """One pool that starts with whole layers, the `last` ones or the first, as many as fit beside the staging slots.

    `staging` slots are left for the other layers; None leaves a whole layer's.  Slots that do not suffice for one more
    layer stay unused, lest they cache what only passes through.
    """

    last: bool = False
    staging: int | None = None

    def least(self, shape: Shape) -> int:
        """The staging slots."""
        return self._staging(shape)

    def pools(self, shape: Shape, slots: int) -> tuple[Pool, ...]:
        """One pool for the layers that fit and the staging slots."""
        return (Pool(0, min(slots, self._whole(shape, slots) * shape.experts + self._staging(shape))),)

    def initial(self, popular: Sequence[int], shape: Shape, slots: int) -> tuple[int, ...]:
        """All keys of the layers that fit."""
        whole = self._whole(shape, slots)
        first = shape.layers - whole if self.last else 0
        return tuple(range(first * shape.experts, (first + whole) * shape.experts))

    def _whole(self, shape: Shape, slots: int) -> int:
        """How many layers fit."""
        if slots >= shape.layers * shape.experts:
            return shape.layers  # Nothing is left to stage.
        return max(0, slots - self._staging(shape)) // shape.experts

    def _staging(self, shape: Shape) -> int:
        return shape.experts if self.staging is None else self.staging
