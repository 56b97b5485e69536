"""A cache for predictors that are tested alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from spmoe.policy.parts.predictor import Predictor
from spmoe.policy.parts.wanted import WantedSet

P = TypeVar("P", bound=Predictor)


class FakeCache:
    """Nothing is resident unless a test puts it there."""

    def __init__(self) -> None:
        self.resident: dict[int, int] = {}
        self.in_flight: dict[int, int] = {}
        self.touched: list[int] = []

    def touch(self, keys: Iterable[int]) -> None:
        self.touched += keys


def bound(predictor: P) -> P:
    """The predictor, with a cache of its own."""
    predictor.bind(FakeCache())
    return predictor


def wants(predictor: Predictor) -> list[int]:
    """All that it wants, most urgent first; it still does."""
    return list(predictor.next(1 << 30))


def entries(predictor: WantedSet) -> list[tuple[int, int, int]]:
    """The same as (key, deadline, weight)."""
    return [(key, predictor.wanted[key][0], -predictor.wanted[key][1]) for key in wants(predictor)]
