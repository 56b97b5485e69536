"""Drawing forecast probabilities that mean what those of a real draft mean.

How often a forecast expert is right, by the probability it was given, as measured on a small trained draft and target
pair (router predictions of a dense draft for a mixture-of-experts target, held-out text): a forecast of probability
0.2 to 0.3 is right 84.6 times in 100.  Monotone and useful for ranking, but under-confident as a probability.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from spmoe.trace.schema import ONE

EDGES = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0)
RELIABILITY = (0.645, 0.846, 0.940, 0.981, 0.992, 0.997)  # P(right | probability in EDGES[i]..EDGES[i + 1])


def bin_weights(accuracy: float) -> tuple[float, ...]:
    """How often each bin occurs, such that forecasts drawn with `RELIABILITY` are right at `accuracy` on the whole.

    Binomial weights s^i (1 - s)^(5 - i), scaled to sum to 1, with the s that gives the mean; all in the first or the
    last bin where no mixture reaches the accuracy (below 0.645, above 0.997).  Only products and exact sums, so that
    every machine gets the same.
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _mean(_tilted(middle)) < accuracy:
            low = middle
        else:
            high = middle
    return _tilted((low + high) / 2)


def draw_probabilities(right: NDArray[np.bool_], accuracy: float, stream: np.random.Generator) -> NDArray[np.int64]:
    """A probability / 65536 for each forecast, given whether it is right; takes two variates each from `stream`.

    The bin is drawn by Bayes from `bin_weights(accuracy)`, the value evenly within its bin.
    """
    weights = bin_weights(accuracy)
    given_right = _cumulated([weight * rate for weight, rate in zip(weights, RELIABILITY, strict=True)])
    given_wrong = _cumulated([weight * (1 - rate) for weight, rate in zip(weights, RELIABILITY, strict=True)])
    variates = stream.random((*right.shape, 2))
    bins = np.where(
        right,
        np.searchsorted(given_right, variates[..., 0], side="right"),
        np.searchsorted(given_wrong, variates[..., 0], side="right"),
    )
    edges = np.array([math.ceil(edge * ONE) for edge in EDGES], dtype=np.int64)
    low, width = edges[bins], (edges[1:] - edges[:-1])[bins]
    return low + np.floor(variates[..., 1] * width).astype(np.int64)


def _tilted(share: float) -> tuple[float, ...]:
    last = len(RELIABILITY) - 1
    raw = [math.prod([share] * i) * math.prod([1 - share] * (last - i)) for i in range(last + 1)]
    total = math.fsum(raw)
    return tuple(weight / total for weight in raw)


def _mean(weights: tuple[float, ...]) -> float:
    return math.fsum(weight * rate for weight, rate in zip(weights, RELIABILITY, strict=True))


def _cumulated(parts: list[float]) -> list[float]:
    """The upper ends of all parts but the last, scaled to a sum of 1."""
    total = math.fsum(parts)
    return [math.fsum(parts[: end + 1]) / total for end in range(len(parts) - 1)]
