"""Drawing what a routing source lacks: whether the draft agrees, how sure it is, and what the forecasts say.

Every purpose has its own random stream, spawned from the seed, and takes the same number of variates whatever the
rates are: changing one rate leaves the other draws as they were.  Decisions compare variates with rates or pick from
integer counts, so that the same inputs give the same integers on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spmoe.errors import InputError
from spmoe.trace.calibration import draw_probabilities
from spmoe.trace.schema import ONE, Cell, Forecast, ForecastOrigin, check_rate

Ids = NDArray[np.int64]
Routes = Sequence[Sequence[Cell]] | NDArray[np.signedinteger[Any]]  # [tokens][layers][ranks]
Flags = NDArray[np.bool_]

_CHUNK = 256  # tokens drawn at a time: bounds the memory of the [tokens, layers, experts] arrays


@dataclass(frozen=True, slots=True)
class Rates:
    """How good the draft and the forecasts shall be.  Raises InputError on a rate outside its range."""

    agreement: float  # P(agree), per token
    draft_accuracy: float | None  # P(a forecast's rank is right), see `draw`; None: no such forecast
    next_gate_accuracy: float | None = None
    confidence_auc: float = 0.9  # area under the ROC curve of `draft_prob` as a predictor of `agree`, in [0.5, 1)

    def __post_init__(self) -> None:
        check_rate("agreement", self.agreement)
        for name in ("draft_accuracy", "next_gate_accuracy"):
            if getattr(self, name) is not None:
                check_rate(name, getattr(self, name))
        check_rate("confidence_auc", self.confidence_auc)
        if not 0.5 <= self.confidence_auc < 1:
            raise InputError(f"field confidence_auc: expected at least 0.5 and below 1, got {self.confidence_auc!r}")

    def origins(self) -> dict[str, ForecastOrigin]:
        """What the header says of the forecasts drawn at these rates."""
        return {name: ForecastOrigin("drawn", rate) for name, rate in self.accuracies().items()}

    def accuracies(self) -> dict[str, float]:
        """The accuracy of each forecast that is drawn, by name."""
        named = {"draft": self.draft_accuracy, "next_gate": self.next_gate_accuracy}
        return {name: rate for name, rate in named.items() if rate is not None}


@dataclass(frozen=True, slots=True)
class Draws:
    """One entry per token in each list."""

    agree: list[bool]
    draft_prob: list[int]  # /65536
    forecasts: list[Mapping[str, tuple[Forecast, ...]]]


def draw(routed: Routes, experts: int, rates: Rates, seed: int) -> Draws:
    """Draws `agree`, `draft_prob` and the forecasts for tokens with these routes.

    `routed` is [tokens][layers][ranks], expert ids by rank, () where missing; an integer array of that shape will do,
    -1 standing for nothing.

    - `agree`: true with probability `agreement`, token by token, independently.
    - `draft_prob`: the posterior probability of `agree` given a score that is normal with unit variance around 0 or,
      where the draft agrees, around a distance that makes the area under the ROC curve `confidence_auc`.
    - a forecast has as many ranks as the widest cell; each is right with probability P, independently.  A right rank
      names an actual expert not named yet, that of its own rank first; a wrong one is drawn by the layer's popularity
      among the experts neither actual nor named (evenly, if none of them was ever used; with no expert left, the rank
      is left out).  Where the routing is missing, so is the forecast, and `next_gate` has none for layer 0.
    - forecast probabilities are calibrated as `spmoe.trace.calibration` says; ranks are not re-sorted by them.

    Raises InputError for an expert id outside 0..experts-1 and for a negative seed.
    """
    if seed < 0:
        raise InputError(f"field seed: expected an integer from 0 up, got {seed}")
    actual = _as_array(routed)
    if actual.size and int(actual.max()) >= experts:
        raise InputError(f"field routed: expert {int(actual.max())} is out of range 0..{experts - 1}")
    popularity = layer_popularity(actual, experts)
    streams = [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(8)]
    agree: Flags = streams[0].random(len(actual)) < rates.agreement
    forecasts: list[dict[str, tuple[Forecast, ...]]] = [{} for _ in actual]
    for name, accuracy in rates.accuracies().items():
        right, other, sure = streams[2:5] if name == "draft" else streams[5:8]
        for start in range(0, len(actual), _CHUNK):
            part = actual[start : start + _CHUNK]
            hits: Flags = right.random(part.shape) < accuracy
            named = _name_experts(part, hits, popularity, other.random(part.shape))
            if name == "next_gate":
                named[:, :1] = -1
            shares = draw_probabilities(hits, accuracy, sure)
            for offset, row in enumerate(_as_forecasts(named, shares)):
                forecasts[start + offset][name] = row
    return Draws(agree.tolist(), _confidence(agree, rates, streams[1]), list(forecasts))


def layer_popularity(actual: Ids, experts: int) -> Ids:
    """How often each expert was routed to, [layers, experts]; `actual` is [tokens, layers, ranks], -1 for nothing."""
    layers = actual.shape[1]
    keys = actual + experts * np.arange(layers)[:, None]
    return np.bincount(keys[actual >= 0], minlength=layers * experts).reshape(layers, experts).astype(np.int64)


def _as_array(routed: Routes) -> Ids:
    """[tokens, layers, ranks] with -1 where a cell has no such rank."""
    if isinstance(routed, np.ndarray):
        return routed.astype(np.int64)
    width = max((len(cell) for row in routed for cell in row), default=0)
    layers = len(routed[0]) if len(routed) else 0
    padding = [(-1,) * missing for missing in range(width + 1)]
    rows = [[*cell, *padding[width - len(cell)]] for row in routed for cell in row]
    return np.array(rows, dtype=np.int64).reshape(len(routed), layers, width)


def _confidence(agree: Flags, rates: Rates, stream: np.random.Generator) -> list[int]:
    prior = rates.agreement
    if prior in (0.0, 1.0):
        return [ONE if prior else 0] * len(agree)
    # Two unit normals `distance` apart have this area under their ROC curve; rounded, since libraries differ in the
    # last digits of the inverse.
    distance = round(math.sqrt(2) * NormalDist().inv_cdf(rates.confidence_auc), 6)
    scores = stream.standard_normal(len(agree)) + distance * agree
    odds = (1 - prior) / prior
    posterior = (1 / (1 + odds * math.exp(distance * (distance / 2 - score))) for score in scores.tolist())
    return [math.floor(value * ONE + 0.5) for value in posterior]


def _name_experts(actual: Ids, hits: Flags, popularity: Ids, variates: NDArray[np.float64]) -> Ids:
    """The expert each rank names, -1 for none; all arguments but `popularity` are [tokens, layers, ranks]."""
    tokens, layers, ranks = actual.shape
    experts = popularity.shape[1]
    named = np.full_like(actual, -1)
    # One column more than there are experts takes the marks made for "nothing".
    is_actual = np.zeros((tokens, layers, experts + 1), dtype=bool)
    np.put_along_axis(is_actual, actual, True, axis=2)
    is_named = np.zeros_like(is_actual)
    known = (actual >= 0).any(axis=2)
    for rank in range(ranks):
        # Right: the actual expert of this rank, else the next that is not named yet.
        order = np.roll(actual, -rank, axis=2)
        free = (order >= 0) & ~np.take_along_axis(is_named, order, axis=2)
        first = np.take_along_axis(order, free.argmax(axis=2)[..., None], axis=2)[..., 0]
        right = np.where(free.any(axis=2), first, -1)
        # Wrong: by popularity among those neither actual nor named.
        others = ~(is_actual | is_named)[..., :experts]
        counts = np.where(others, popularity, 0)
        unused = counts.sum(axis=2) == 0
        counts[unused] = others[unused]
        steps = counts.cumsum(axis=2)
        total = steps[..., -1]
        target = np.floor(variates[..., rank] * total).astype(np.int64)
        picked = (steps > target[..., None]).argmax(axis=2)
        wrong = np.where(total > 0, picked, -1)
        named[..., rank] = np.where(known, np.where(hits[..., rank], right, wrong), -1)
        np.put_along_axis(is_named, named[..., rank, None], True, axis=2)
    return named


def _as_forecasts(named: Ids, shares: Ids) -> list[tuple[Forecast, ...]]:
    """Per token, one forecast per layer, without the ranks that name nothing."""
    tokens, layers, ranks = named.shape
    pairs = zip(named.ravel().tolist(), shares.ravel().tolist(), strict=True)
    cells = [tuple([pair for pair in islice(pairs, ranks) if pair[0] >= 0]) for _ in range(tokens * layers)]
    return [tuple(cells[start : start + layers]) for start in range(0, tokens * layers, layers)]
