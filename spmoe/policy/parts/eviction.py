"""Which resident of a pool is evicted when a load needs a slot and none is free."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Generic, Protocol, TypeVar

from spmoe.policy.parts.predictor import Predictor
from spmoe.state.residency import VictimOrder


class Eviction(Protocol):
    """The part of a recipe that chooses victims."""

    def order(self, pool_of: Sequence[int], predictor: Predictor, experts: int) -> VictimOrder:
        """A fresh order for one run, for layers of `experts` experts; `pool_of[key]` is the pool of each key.

        Raises ValueError where it goes by what another predictor knows.
        """


P = TypeVar("P", bound=Predictor)


class ByPredictor(ABC, Generic[P]):
    """Base of rules that go by what one kind of predictor knows."""

    __slots__ = ()

    predictor: ClassVar[type[Predictor]]
    """That kind: the type argument again."""

    def order(self, pool_of: Sequence[int], predictor: Predictor, experts: int) -> VictimOrder:
        """The order by that predictor; ValueError for any other."""
        if not isinstance(predictor, self.predictor):
            kind = type(predictor).__name__
            raise ValueError(f"{type(self).__name__} goes by a {self.predictor.__name__}, and this is a {kind}")
        return self._order(pool_of, predictor)  # type: ignore[arg-type]

    @abstractmethod
    def _order(self, pool_of: Sequence[int], predictor: P) -> VictimOrder:
        """The order by `predictor`."""
