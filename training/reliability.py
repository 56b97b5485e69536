"""Whether the probability that a router gives its first expert says how likely that expert is needed."""

from __future__ import annotations

from typing import Any

import torch

BINS = 10


class Reliability:
    """Forecasts in bins of equal width of the probability of the first expert named.

    Two questions: is the expert `first` among those used, and is it `used` at all?  Probabilities of a layer's experts
    sum to 1, as the chances of being first do, so the first question is the one that they can answer truly; that an
    expert is used is what a prefetch asks for.
    """

    def __init__(self) -> None:
        self._sums = torch.zeros(4, BINS, dtype=torch.float64)

    def count(self, probability: torch.Tensor, named: torch.Tensor, used: torch.Tensor) -> None:
        """Probabilities [T] of the experts `named`, int64 [T]; those `used`, int64 [T, k] by rank."""
        first, among = named == used[:, 0], (named[:, None] == used).any(-1)
        place = (probability.double() * BINS).long().clamp(0, BINS - 1)
        values = torch.stack([torch.ones_like(place), probability, first, among]).double()
        self._sums.index_add_(1, place, values)

    def __add__(self, other: Reliability) -> Reliability:
        both = Reliability()
        both._sums = self._sums + other._sums
        return both

    def to_json(self) -> dict[str, Any]:
        """Per bin with a forecast in it: bounds, number of forecasts (`cells`), mean probability, shares that are the
        first and that are used.

        `first_error`: the expected calibration error, the mean over forecasts of the distance between their bin's mean
        probability and share of firsts; `used_error`: likewise of those used.
        """
        counts = self._sums[0]
        tokens = max(1.0, float(counts.sum()))
        errors = [float((self._sums[1] - self._sums[row]).abs().sum()) / tokens for row in (2, 3)]
        bins = [
            {"low": number / BINS, "high": (number + 1) / BINS, "cells": int(count)}
            | dict(zip(("mean", "first", "used"), (self._sums[1:, number] / count).tolist(), strict=True))
            for number, count in enumerate(counts)
            if count
        ]
        return {"first_error": errors[0], "used_error": errors[1], "bins": bins}
