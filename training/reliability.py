"""Forecasts' reliability, counted in tensors: see `spmoe.trace.reliability`."""

from __future__ import annotations

import torch

from spmoe.trace.reliability import BINS, Bin, Reliability


class ReliabilityTally:
    """Takes in forecasts, many at once."""

    def __init__(self) -> None:
        self._sums = torch.zeros(4, BINS, dtype=torch.float64)

    def count(self, probability: torch.Tensor, named: torch.Tensor, used: torch.Tensor) -> None:
        """Probabilities [T] of the experts `named`, int64 [T]; those `used`, int64 [T, k] by rank."""
        first, among = named == used[:, 0], (named[:, None] == used).any(-1)
        place = (probability.double() * BINS).long().clamp(0, BINS - 1)
        values = torch.stack([torch.ones_like(place), first, among, probability]).double()
        self._sums.index_add_(1, place, values)

    def result(self) -> Reliability:
        """The bins so far."""
        rows = self._sums.T.tolist()
        return Reliability(tuple(Bin(int(cells), int(first), int(used), total) for cells, first, used, total in rows))
