"""From samples to the figures of a profile: medians with their spread, and straight lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median, quantiles
from typing import Any, Final, NamedTuple

import numpy as np

from engine.profiling.step_timings import Span

_FEW: Final = 8
"""Samples below which a count of tokens gives no figure of its own."""

_CERTAIN: Final = 0.02
_STEPS: Final = 100
_BLOCK: Final = 50
"""Readings that are taken together."""


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
    def through(cls, points: Mapping[float, Median]) -> Line:
        """The line from which `points` are off by least in all, each measured by how far its readings are apart, or 2 %
        of it: so a small one counts as much as a large one unless it is less certain, and one that lies apart from all
        others counts for little (least absolute deviations, by reweighting)."""
        x = np.array([*points], float)
        y, low, high = (np.array([each[part] for each in points.values()], float) for part in range(3))
        certain = 1 / np.maximum((high - low) / 2, _CERTAIN * y)
        columns = np.stack([np.ones_like(x), x], 1)
        weights = certain
        for _ in range(_STEPS):
            (start, slope), *_rest = np.linalg.lstsq(columns * weights[:, None], y * weights, rcond=None)
            off = np.abs(start + slope * x - y) * certain
            weights = certain / np.sqrt(np.maximum(off, 1e-3))
        return cls(float(start), float(slope), tuple(float(each) for each in start + slope * x - y))


def microseconds(ns: float) -> float:
    """Rounded to a nanosecond."""
    return round(ns / 1e3, 3)


class Layers(NamedTuple):
    """What a layer takes: `base` ns by the tokens of the pass (attention, router, bookkeeping), `expert` by the tokens
    of an expert in a slot, how much of `base` comes before the driver is done with the experts (where that is seen),
    and how far single layers are from it."""

    base: dict[int, Median]
    expert: dict[int, float]
    bookkeeping: float
    off: Median

    def of(self, span: Span) -> float:
        """A layer's experts, without anything else."""
        return sum(_between(self.expert, tokens) for tokens in span.experts)


def fit_layers(spans: Sequence[Span], kernels: Mapping[int, float], seen: bool) -> Layers:
    """Takes layers with everything resident apart.

    `seen`: experts are computed when the driver is done with them, as on the CPU; a GPU may only have been told, and
    what experts take shows in how long whole layers last.  `kernels` are the times of one expert alone by its tokens,
    over and over.  Inside a layer it is more: nothing is at hand there, and on the CPU the threads that share a product
    of several rows are asleep, while a single row needs none of them.  So it is more by one constant for experts of one
    token and by another for all others, which are found from layers whose tokens spread differently over experts.
    """
    counts = sorted({span.tokens for span in spans})
    alone = [sum(_between(kernels, tokens) for tokens in span.experts) for span in spans]
    took = [float(span.computing if seen else span.ns) for span in spans]
    # Bookkeeping is the same for all where only experts are timed.
    columns = np.zeros((len(spans), 2 + (1 if seen else len(counts))))
    for row, span in enumerate(spans):
        single = span.experts.count(1)
        columns[row, :2] = single, len(span.experts) - single
        columns[row, 2 + (0 if seen else counts.index(span.tokens))] = 1
    found, off = _closest(columns, np.array(took) - np.array(alone))
    expert = {tokens: max(0.0, ns + float(found[0 if tokens == 1 else 1])) for tokens, ns in kernels.items()}
    layers = Layers({}, expert, float(found[2]) if seen else 0.0, Median.of(list(off)))
    for count in counts:
        readings = [span.ns - layers.of(span) for span in spans if span.tokens == count]
        if len(readings) >= _FEW:
            layers.base[count] = Median.of(readings)
    return layers


class Landings(NamedTuple):
    """What it comes to that experts arrive in a layer: what each arrival adds (ns), what the work that follows takes
    more, since the thread that drives the run was asleep, and what is not explained by that."""

    each: float
    cold: float
    off: Median


def fit_landings(spans: Sequence[Span], layers: Layers, seen: bool, deciding: float) -> Landings:
    """Layers in which experts arrived, against what they take without; `seen` as in `fit_layers`, and `deciding` is
    what the scheduler takes more in them."""
    base = {count: each.ns for count, each in layers.base.items()}
    landed = [span for span in spans if span.landed and span.tokens in base]
    if not landed:
        return Landings(0.0, 0.0, Median.of([0.0]))
    several = len({span.landed for span in landed}) > 1
    columns = np.array([[span.landed, 1.0][: 1 + several] for span in landed])
    if seen:
        computing = np.array([span.computing - layers.of(span) - layers.bookkeeping - deciding for span in landed])
        each = max(0.0, middle(list(computing / columns[:, 0])))
        cold = middle(
            [span.ns - span.computing + layers.bookkeeping - base[span.tokens] for span in landed if not span.seen]
        )
        return Landings(each, max(0.0, cold), Median.of(list(computing - each * columns[:, 0])))
    more = np.array([span.ns - layers.of(span) - base[span.tokens] - deciding for span in landed])
    found, off = _closest(columns, more)
    return Landings(max(0.0, float(found[0])), max(0.0, float(found[1])) if several else 0.0, Median.of(list(off)))


def _closest(columns: Any, values: Any) -> tuple[Any, Any]:
    """What explains `values` best, and by how much it fails to: readings far off, in which something else had the
    processor, are left out."""
    kept = np.ones(len(values), bool)
    for _ in range(3):
        found, *_rest = np.linalg.lstsq(columns[kept], values[kept], rcond=None)
        off = values - columns @ found
        kept = np.abs(off) <= 4 * np.median(np.abs(off))
    return found, off


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


def medians(groups: Mapping[int, Sequence[float]]) -> dict[int, Median]:
    """Of every group with enough readings; of all where none has."""
    enough = {key: Median.of(each) for key, each in sorted(groups.items()) if len(each) >= _FEW}
    return enough or {key: Median.of(each) for key, each in sorted(groups.items())}


def middle(readings: Sequence[float]) -> float:
    """Their median; 0 of none."""
    return median(readings) if readings else 0.0


def usual_ratio(pairs: Sequence[tuple[float, float]]) -> float:
    """By what factor first numbers are above second ones, on average over pairs that follow each other: the median
    of what such blocks come to, since in some of them something else had the processor.  1 of no pairs."""
    blocks = [pairs[start : start + _BLOCK] for start in range(0, len(pairs), _BLOCK)]
    if len(blocks) > 1 and len(blocks[-1]) < _BLOCK:
        blocks[-2:] = [[*blocks[-2], *blocks[-1]]]
    return middle([sum(one for one, _ in block) / sum(other for _, other in block) for block in blocks]) or 1.0
