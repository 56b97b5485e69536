"""Whether a forecast's probability means what it says: the shares that came true, by the probability given.

Two questions: is the expert named `first` the first of those used, and is it `used` at all?  Probabilities of a layer's
experts sum to 1, as the chances of being first do, so the first question is the one that they can answer truly; that an
expert is used is what a prefetch asks for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from spmoe.trace.schema import ONE

BINS = 10
"""Of equal width; a probability on an edge belongs to the bin above it, 1 to the last one."""


class Bin(NamedTuple):
    """Forecasts of alike probability: how many, how many named the first expert and a used one, and the sum of their
    probabilities."""

    cells: int
    first: int
    used: int
    total: float

    def plus(self, other: Bin) -> Bin:
        """Both together."""
        return Bin(self.cells + other.cells, self.first + other.first, self.used + other.used, self.total + other.total)


@dataclass(frozen=True, slots=True)
class Reliability:
    """The bins from probability 0 to 1."""

    bins: tuple[Bin, ...]

    @property
    def cells(self) -> int:
        """Forecasts in all bins."""
        return sum(each.cells for each in self.bins)

    @property
    def first_error(self) -> float | None:
        """The expected calibration error of being first: the mean over forecasts of the distance between their bin's
        mean probability and share; None without any."""
        return self._error([each.first for each in self.bins])

    @property
    def used_error(self) -> float | None:
        """Likewise of being used."""
        return self._error([each.used for each in self.bins])

    def plus(self, other: Reliability) -> Reliability:
        """Both together."""
        return Reliability(tuple(one.plus(two) for one, two in zip(self.bins, other.bins, strict=True)))

    def to_json(self) -> dict[str, Any]:
        """Both errors and, of each bin with forecasts, bounds, their number (`cells`), mean probability and shares."""
        bins = [
            {
                "low": number / BINS,
                "high": (number + 1) / BINS,
                "cells": each.cells,
                "mean": each.total / each.cells,
                "first": each.first / each.cells,
                "used": each.used / each.cells,
            }
            for number, each in enumerate(self.bins)
            if each.cells
        ]
        return {"first_error": self.first_error, "used_error": self.used_error, "bins": bins}

    def _error(self, true: Iterable[int]) -> float | None:
        if not self.cells:
            return None
        return sum(abs(count - each.total) for count, each in zip(true, self.bins, strict=True)) / self.cells


class ReliabilityFold:
    """Takes in forecasts one by one."""

    def __init__(self) -> None:
        self._cells = [0] * BINS
        self._first = [0] * BINS
        self._used = [0] * BINS
        self._totals = [0] * BINS

    def add(self, probability: int, first: bool, used: bool) -> None:
        """A forecast of `probability` (/65536), and in which senses it came true."""
        at = min(probability * BINS // ONE, BINS - 1)
        self._cells[at] += 1
        self._first[at] += first
        self._used[at] += used
        self._totals[at] += probability

    def result(self) -> Reliability:
        """The bins so far."""
        filled = zip(self._cells, self._first, self._used, self._totals, strict=True)
        return Reliability(tuple(Bin(cells, first, used, total / ONE) for cells, first, used, total in filled))
