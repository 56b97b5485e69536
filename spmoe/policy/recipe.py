"""A policy as a recipe of eight frozen parts, so that each published system reads like a row of a table."""

from __future__ import annotations

from dataclasses import dataclass

from spmoe.policy.admission import Admission, Always
from spmoe.policy.clairvoyant import Clairvoyant, Farthest
from spmoe.policy.eviction import Lru
from spmoe.policy.horizon import Horizon, NextLayer
from spmoe.policy.misses import Fetch
from spmoe.policy.placement import GlobalPool, Placement
from spmoe.policy.planner import IOPlan, OneByOne
from spmoe.policy.prefetch import DraftGate, NextGate, NoPredictor
from spmoe.policy.speculation import FixedGamma, Speculation

Predictor = NoPredictor | DraftGate | NextGate | Clairvoyant
Eviction = Lru | Farthest


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a policy does, part by part.

    `summary` says it in a line and `source` names the paper or program, and what differs from it.  `lossless`: the
    output equals that of the model without offloading.
    """

    name: str
    summary: str
    source: str
    placement: Placement = GlobalPool()
    predictor: Predictor = NoPredictor()
    horizon: Horizon = NextLayer()
    admission: Admission = Always()
    eviction: Eviction = Lru()
    io: IOPlan = OneByOne()
    miss: Fetch = Fetch()
    speculation: Speculation = FixedGamma()
    lossless: bool = True

    @property
    def needs(self) -> frozenset[str]:
        """What a trace or machine must offer: "draft" or "next_gate" forecasts, "future", "popularity"."""
        return self.predictor.needs | self.placement.needs

    @property
    def fetch_only(self) -> bool:
        """Whether copies over the link answer every miss, so that the bound of its windows holds for it."""
        return self.miss.fetch_only
