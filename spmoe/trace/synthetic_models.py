"""What synthetic routing is made to look like for each catalogued model: a recording where there is one (Mixtral-8x7B),
else a few published figures that stand for all layers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import NormalDist
from types import MappingProxyType
from typing import Final

import numpy as np

from spmoe.errors import InputError
from spmoe.files import reason
from spmoe.machine.geometry import Geometry
from spmoe.trace.header import check_keys
from spmoe.trace.synthetic_statistics import RoutingFit, RoutingStatistics, mixtral_statistics

_FILE: Final = Path(__file__).with_name("synthetic_models.json")
_RECORDED: Final = "mixtral-8x7b"
_NUMBERS: Final = ("skew", "persistence", "sharpness")


@dataclass(frozen=True, slots=True)
class RoutingFigures:
    """Routing of one model in figures that hold for every layer.  InputError for a number below 0 or not finite."""

    source: str  # where each figure is from
    skew: float  # standard deviation of the log of an expert's popularity
    persistence: float  # share of a token's experts that the token before it had too
    sharpness: float  # mean log ratio of the first to the last gate weight of a token
    fit: RoutingFit

    def __post_init__(self) -> None:
        for name in _NUMBERS:
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value < math.inf:
                raise InputError(f"field {name}: expected a number from 0 to inf, got {value!r}")

    def statistics(self, layers: int, experts: int, top_k: int) -> RoutingStatistics:
        """The figures, layer by layer, for a model of this shape.

        Popularity is log-normal: the experts' quantiles of it, dealt out to other expert ids in each layer.  Raises
        InputError where the figures make no sense for the shape.
        """
        quantile = NormalDist(0, self.skew).inv_cdf if self.skew else lambda share: 0.0
        weights = np.array([math.exp(quantile((rank + 0.5) / experts)) for rank in range(experts)])
        shares = np.round(top_k * weights / weights.sum(), 6)
        return RoutingStatistics(
            source=self.source,
            top_k=top_k,
            popularity=tuple(
                tuple(shares[np.random.default_rng(layer).permutation(experts)].tolist()) for layer in range(layers)
            ),
            persistence=(self.persistence,) * layers,
            sharpness=(self.sharpness,) * layers,
            fit=self.fit,
        )


def model_statistics(model: Geometry) -> RoutingStatistics:
    """The statistics that `model`'s routing is generated from; InputError listing the known names where it has none."""
    if model.name == _RECORDED:
        return mixtral_statistics()
    return _find(model.name).statistics(model.layers, model.experts, model.top_k)


def load_figures(path: Path) -> Mapping[str, RoutingFigures]:
    """The figures of each model in a JSON file; InputError, one line naming file and field, where it holds none."""
    try:
        models = check_keys(json.loads(path.read_text(encoding="utf-8")), ("models",))["models"]
        if not isinstance(models, dict):
            raise InputError(f"field models: expected a JSON object, got {type(models).__name__}")
        return MappingProxyType({name: _figures(value, f"models.{name}.") for name, value in models.items()})
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except ValueError as error:
        raise InputError(f"{path}: malformed JSON: {error}") from None


def _figures(value: object, where: str) -> RoutingFigures:
    found = check_keys(value, RoutingFigures.__slots__, (), where)
    fit = RoutingFit(**check_keys(found["fit"], RoutingFit.__slots__, (), f"{where}fit."))
    return RoutingFigures(**found | {"fit": fit})


def _find(name: str) -> RoutingFigures:
    known = _catalogue()
    if name not in known:
        raise InputError(f"model {name!r} has no routing statistics; expected one of {', '.join((_RECORDED, *known))}")
    return known[name]


@cache
def _catalogue() -> Mapping[str, RoutingFigures]:
    return load_figures(_FILE)
