"""What a predictor has to know of the run."""

from __future__ import annotations

from typing import NamedTuple

from spmoe.policy.parts.horizon import Horizon
from spmoe.policy.parts.pace import Pace
from spmoe.state.keys import Shape


class Scope(NamedTuple):
    """The model's shape, how far ahead to prefetch, and how long things take."""

    layers: int
    experts: int
    top_k: int
    cutoff: int
    horizon: Horizon
    pace: Pace

    @property
    def shape(self) -> Shape:
        """The model's MoE layers."""
        return Shape(self.layers, self.experts, self.top_k)

    def end(self, at: int) -> int:
        """The first layer not to prefetch for, standing at layer `at` (-1 while drafting)."""
        return self.horizon.end(at, self.layers, self.cutoff)
