"""Whether a forecast's probability means what it says: the share that came true, by the probability given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from spmoe.trace.schema import ONE

BINS = 10
"""Of equal width; a probability on an edge belongs to the bin above it, 1 to the last one."""


class Bin(NamedTuple):
    """Forecasts of alike probability: for how many cells, how many came true, and the sum of probabilities (/65536)."""

    low: float
    high: float
    cells: int
    used: int
    total: int

    @property
    def share(self) -> float | None:
        """Of them, how many came true; None without any."""
        return self.used / self.cells if self.cells else None

    @property
    def mean(self) -> float | None:
        """The mean probability given; None without any."""
        return self.total / ONE / self.cells if self.cells else None


@dataclass(frozen=True, slots=True)
class Reliability:
    """The bins from probability 0 to 1."""

    bins: tuple[Bin, ...]

    @property
    def cells(self) -> int:
        """Forecasts in all bins."""
        return sum(each.cells for each in self.bins)

    @property
    def calibration_error(self) -> float | None:
        """The expected calibration error: |share that came true - mean probability|, weighted by cells; None without
        any."""
        gaps = sum(abs(each.used - each.total / ONE) for each in self.bins)
        return gaps / self.cells if self.cells else None


class ReliabilityFold:
    """Takes in forecasts one by one."""

    def __init__(self) -> None:
        self._counts = [0] * BINS
        self._used = [0] * BINS
        self._totals = [0] * BINS

    def add(self, probability: int, used: bool) -> None:
        """A forecast of `probability` (/65536), and whether it came true."""
        at = min(probability * BINS // ONE, BINS - 1)
        self._counts[at] += 1
        self._used[at] += used
        self._totals[at] += probability

    def result(self) -> Reliability:
        """The bins so far."""
        filled = zip(self._counts, self._used, self._totals, strict=True)
        return Reliability(tuple(Bin(at / BINS, (at + 1) / BINS, *each) for at, each in enumerate(filled)))
