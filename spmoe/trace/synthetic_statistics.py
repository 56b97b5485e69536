"""What synthetic routing is made to look like: figures derived from real routing, and the fit of the model to it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spmoe.errors import InputError
from spmoe.files import reason
from spmoe.trace.header import check_keys

_MIXTRAL = Path(__file__).with_name("synthetic_mixtral.json")


@dataclass(frozen=True, slots=True)
class RoutingFit:
    """The free parameters of `SyntheticRouting`; its docstring says what each does.  InputError outside the range."""

    vocabulary: int  # distinct tokens
    zipf: float  # exponent of their frequencies
    repeat: float  # P(a token that continues no phrase begins a repetition of an earlier one)
    phrase: float  # mean tokens a repetition lasts
    popularity_weight: float  # how much of the measured popularity's spread is real, 0..1; the rest is small samples
    identity: float  # share of the variance not due to context that is due to the token itself, 0..1
    context: float  # share of the variance due to the tokens before, per unit of persistence above chance
    memory: float  # correlation of one token's context with the next one's, 0..1

    def __post_init__(self) -> None:
        limits = {
            "vocabulary": (1, math.inf),
            "zipf": (0, math.inf),
            "phrase": (1, math.inf),
            "context": (0, math.inf),
            "repeat": (0, 1),
            "popularity_weight": (0, 1),
            "identity": (0, 1),
            "memory": (0, 1),
        }
        for name, (low, high) in limits.items():
            _check_number(f"fit.{name}", getattr(self, name), low, high)
        if type(self.vocabulary) is not int:
            raise InputError(f"field fit.vocabulary: expected an integer, got {self.vocabulary!r}")


@dataclass(frozen=True, slots=True)
class RoutingStatistics:
    """Routing of one model in a few figures per layer.  Raises InputError when they contradict each other."""

    source: str  # what they were derived from
    top_k: int
    popularity: tuple[tuple[float, ...], ...]  # [layers][experts]: share of tokens routed there, sum top_k per layer
    persistence: tuple[float, ...]  # [layers]: share of a token's experts that the token before it had too
    sharpness: tuple[float, ...]  # [layers]: mean log ratio of the first to the last gate weight of a token
    fit: RoutingFit

    def __post_init__(self) -> None:
        experts = len(self.popularity[0]) if self.popularity else 0
        if type(self.top_k) is not int or not 1 <= self.top_k < experts:
            raise InputError(f"field top_k: expected 1 to {experts - 1}, one less than the experts, got {self.top_k!r}")
        for layer, row in enumerate(self.popularity):
            if len(row) != experts:
                raise InputError(f"field popularity[{layer}]: expected {experts} experts, got {len(row)}")
            for share in row:
                _check_number(f"popularity[{layer}]", share, 0, 1)
            if abs(sum(row) - self.top_k) > 0.01:
                raise InputError(f"field popularity[{layer}]: expected a sum of {self.top_k}, got {sum(row):.4f}")
        for name, high in (("persistence", 1.0), ("sharpness", math.inf)):
            values = getattr(self, name)
            if len(values) != len(self.popularity):
                raise InputError(f"field {name}: expected {len(self.popularity)} layers, got {len(values)}")
            for value in values:
                _check_number(name, value, 0, high)

    @property
    def layers(self) -> int:
        return len(self.popularity)

    @property
    def experts(self) -> int:
        return len(self.popularity[0])


def measure_statistics(
    requests: Sequence[tuple[NDArray[np.int64], NDArray[np.float64]]], experts: int, source: str, fit: RoutingFit
) -> RoutingStatistics:
    """The statistics of recorded routing; `fit` is passed on.

    Each request is its expert ids by rank, [tokens, layers, top_k], -1 where a cell is missing, and gate weights of
    the same shape (anything where missing).
    """
    used = [np.any(routed[..., None] == np.arange(experts), axis=2) for routed, _ in requests]
    known = [np.all(routed >= 0, axis=2) for routed, _ in requests]
    top_k = requests[0][0].shape[2]
    seen = np.sum([k.sum(axis=0) for k in known], axis=0)
    popularity = np.sum([u.sum(axis=0) for u in used], axis=0) / seen[:, None]
    shared = np.sum([(u[1:] & u[:-1]).sum(axis=(0, 2)) for u in used], axis=0)
    pairs = np.sum([(k[1:] & k[:-1]).sum(axis=0) for k in known], axis=0)
    ratios = np.concatenate(
        [np.log(np.where(k, w[..., 0] / w[..., -1], np.nan)) for (_, w), k in zip(requests, known, strict=True)]
    )
    return RoutingStatistics(
        source=source,
        top_k=top_k,
        popularity=tuple(tuple(row) for row in np.round(popularity, 4).tolist()),
        persistence=tuple(np.round(shared / pairs / top_k, 4).tolist()),
        sharpness=tuple(np.round(np.nanmean(ratios, axis=0, keepdims=True)[0], 4).tolist()),
        fit=fit,
    )


def load_statistics(path: Path) -> RoutingStatistics:
    """The statistics in a JSON file; InputError, one line naming file and field, where it does not hold any."""
    try:
        value = check_keys(
            json.loads(path.read_text(encoding="utf-8")),
            ("source", "top_k", "popularity", "persistence", "sharpness", "fit"),
        )
        for name in ("popularity", "persistence", "sharpness"):
            nested = name == "popularity"
            if not isinstance(value[name], list) or not all(isinstance(row, list) == nested for row in value[name]):
                raise InputError(f"field {name}: expected a list of {'lists of ' * nested}numbers")
        return RoutingStatistics(
            source=value["source"],
            top_k=value["top_k"],
            popularity=tuple(tuple(row) for row in value["popularity"]),
            persistence=tuple(value["persistence"]),
            sharpness=tuple(value["sharpness"]),
            fit=RoutingFit(**check_keys(value["fit"], RoutingFit.__slots__, (), "fit.")),
        )
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except ValueError as error:
        raise InputError(f"{path}: malformed JSON: {error}") from None


@cache
def mixtral_statistics() -> RoutingStatistics:
    """Mixtral-8x7B's; `traces/README.md` tells where they are from."""
    return load_statistics(_MIXTRAL)


def _check_number(name: str, value: Any, low: float, high: float) -> None:
    if type(value) not in (int, float) or not low <= value <= high or value == math.inf:
        raise InputError(f"field {name}: expected a number from {low} to {high}, got {value!r}")
