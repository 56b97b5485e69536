"""From samples to the figures of a profile: medians with their spread, and straight lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median, quantiles
from typing import Any, Final, NamedTuple

import numpy as np

from engine.parttimes import Span

_FEW: Final = 8
"""Samples below which a count of tokens gives no figure of its own."""


class Median(NamedTuple):
    """A median in ns, the quartiles on either side of it, and of how many readings."""

    ns: float
    low: float
    high: float
    readings: int

    @classmethod
    def of(cls, readings: Sequence[float]) -> Median:
        """Of at least one reading."""
        low, middle, high = quantiles(readings, n=4) if len(readings) > 1 else (readings[0],) * 3
        return cls(middle, low, high, len(readings))

    def to_json(self) -> dict[str, Any]:
        """In microseconds."""
        return {
            "median_us": microseconds(self.ns),
            "quartiles_us": [microseconds(self.low), microseconds(self.high)],
            "readings": self.readings,
        }


class Line(NamedTuple):
    """y = start + slope * x, and by how much readings are off it."""

    start: float
    slope: float
    residuals: tuple[float, ...]

    @classmethod
    def through(cls, points: Mapping[float, float]) -> Line:
        """The line that is closest to `points` in relative terms: as much counts a small one that is 1 % off it as a
        large one."""
        x, y = np.array([*points], float), np.array([*points.values()], float)
        columns = np.stack([np.ones_like(x), x], 1)
        (start, slope), *_ = np.linalg.lstsq(columns / y[:, None], np.ones_like(y), rcond=None)
        return cls(float(start), float(slope), tuple(float(each) for each in start + slope * x - y))


def microseconds(ns: float) -> float:
    """Rounded to a nanosecond."""
    return round(ns / 1e3, 3)


class Layers(NamedTuple):
    """What a layer takes: `base` ns by the tokens of the pass (attention, router, bookkeeping), `expert` by the tokens
    of an expert in a slot, and how far single layers are from it."""

    base: dict[int, Median]
    expert: dict[int, float]
    off: Median

    def of(self, span: Span) -> float:
        """A layer's experts, without anything else."""
        return sum(_between(self.expert, tokens) for tokens in span.experts)


def fit_layers(spans: Sequence[Span], kernels: Mapping[int, float]) -> Layers:
    """Takes layers with everything resident apart.

    `kernels` are the times of one expert alone by its tokens, over and over.  What it takes inside a layer is more:
    nothing is at hand there, and on the CPU the threads that share a product of several rows are asleep, while a single
    row needs none of them.  So it is more by one constant for experts of one token and by another for all others, which
    are found from layers of equally many tokens that spread differently over experts.
    """
    counts = sorted({span.tokens for span in spans})
    alone = [sum(_between(kernels, tokens) for tokens in span.experts) for span in spans]
    rest = np.array([span.ns for span in spans], float) - np.array(alone)
    columns = np.zeros((len(spans), len(counts) + 2))
    for row, span in enumerate(spans):
        columns[row, counts.index(span.tokens)] = 1
        columns[row, -2:] = span.experts.count(1), len(span.experts) - span.experts.count(1)
    kept = np.ones(len(spans), bool)
    for _ in range(3):  # Readings in which something else had the processor say nothing about experts.
        found, *_rest = np.linalg.lstsq(columns[kept], rest[kept], rcond=None)
        off = rest - columns @ found
        kept = np.abs(off) <= 4 * np.median(np.abs(off))
    one, several = map(float, found[-2:])
    expert = {tokens: max(0.0, ns + (one if tokens == 1 else several)) for tokens, ns in kernels.items()}
    layers = Layers({}, expert, Median.of(list(off)))
    for count in counts:
        readings = [span.ns - layers.of(span) for span in spans if span.tokens == count]
        if len(readings) >= _FEW:
            layers.base[count] = Median.of(readings)
    return layers


def fit_landings(spans: Sequence[Span], layers: Layers) -> tuple[dict[int, float], Median]:
    """What arrivals add to a layer, by how many there are of them: the first as a rule costs more, as the thread was
    asleep.  The second value is by how much single layers are off."""
    readings: dict[int, list[float]] = {}
    for span in spans:
        base = _between({count: each.ns for count, each in layers.base.items()}, span.tokens)
        readings.setdefault(span.landed, []).append(span.ns - base - layers.of(span))
    landed = {count: each for count, each in readings.items() if count and len(each) >= _FEW}
    x = np.array([count for count, each in landed.items() for _ in each], float)
    y = np.array([each for several in landed.values() for each in several], float)
    if len(landed) < 2:
        per = max(0.0, float(np.mean(y / x))) if len(y) else 0.0
        return {1: per, 2: 2 * per}, Median.of(list(y - per * x) or [0.0])
    columns = np.stack([np.ones_like(x), x], 1)
    (first, per), *_ = np.linalg.lstsq(columns, y, rcond=None)
    first, per = max(0.0, float(first)), max(0.0, float(per))
    return {1: first + per, 2: first + 2 * per}, Median.of(list(y - first - per * x))


def _between(points: Mapping[int, float], count: int) -> float:
    """Linear between points, and on beyond the last ones at their slope."""
    known = sorted(points)
    if count in points:
        return points[count]
    if len(known) == 1 or count < known[0]:
        return points[known[0]]
    right = next((place for place, each in enumerate(known) if each > count), len(known) - 1)
    low, high = known[right - 1], known[right]
    return points[low] + (points[high] - points[low]) * (count - low) / (high - low)


def medians(groups: Mapping[int, Sequence[int]]) -> dict[int, Median]:
    """Of every group with enough readings; of all where none has."""
    enough = {key: Median.of(each) for key, each in sorted(groups.items()) if len(each) >= _FEW}
    return enough or {key: Median.of(each) for key, each in sorted(groups.items())}


def middle(readings: Sequence[float]) -> float:
    """Their median; 0 of none."""
    return median(readings) if readings else 0.0
