"""A policy as a recipe of eight frozen parts, so that each published system reads like a row of a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from spmoe.policy.eviction.lru import Lru
from spmoe.policy.parts.admission import Admission, Always
from spmoe.policy.parts.eviction import Eviction
from spmoe.policy.parts.gating import SensitivityGate
from spmoe.policy.parts.horizon import Horizon, NextLayer
from spmoe.policy.parts.io_plan import IOPlan, OneByOne
from spmoe.policy.parts.miss_action import Fetch, MissAction
from spmoe.policy.parts.placement import GlobalPool
from spmoe.policy.parts.predictor import NoPredictor, PredictorPart
from spmoe.policy.parts.runtime import NATIVE, Runtime
from spmoe.policy.parts.speculation import FixedGamma, Speculation


class RouterSignals(NamedTuple):
    """What a recipe gets of routers besides their choice, and how that choice is changed.

    `next_gate`: forecasts from the next layer's gate.  `gates`: gate probabilities.  `gate` drops experts of tokens
    that are verified alone (lossy).
    """

    next_gate: bool = False
    gates: bool = False
    gate: SensitivityGate | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a policy does, part by part.

    `summary` says it in a line, `source` names the paper or program, and `differs` says what differs from it and what
    had to be assumed.  `runtime` is how the original uses the machine (simulator only).  `gate` changes which experts
    compute, and with it the output.  `fallback` names the row to take where the forecasts that this one needs are not
    to be had; empty where no row comes near.
    """

    name: str
    summary: str
    source: str
    differs: str = ""
    placement: GlobalPool = GlobalPool()
    predictor: PredictorPart = NoPredictor()
    horizon: Horizon = NextLayer()
    admission: Admission = Always()
    eviction: Eviction = Lru()
    io: IOPlan = OneByOne()
    miss: MissAction = Fetch()
    speculation: Speculation = FixedGamma()
    runtime: Runtime = NATIVE
    gate: SensitivityGate | None = None
    fallback: str = ""

    def __post_init__(self) -> None:
        if self.placement.buffers and self.io.batches:
            raise ValueError(f"{self.name}: prefetch buffers go with loads that travel one by one")

    @property
    def needs(self) -> frozenset[str]:
        """What a trace or machine must offer.

        "draft" or "next_gate" forecasts, "future", "popularity" among other requests, "hindsight" of this trace,
        "gates" (their probabilities, where known) and "cpu" (its speed).
        """
        return self.predictor.needs | self.placement.needs | self.miss.needs

    @property
    def has_cutoff(self) -> bool:
        """Whether it goes by SP-MoE's cutoff layer."""
        return self.horizon.has_cutoff

    @property
    def signals(self) -> RouterSignals:
        """What drivers report of routers beside the routing."""
        return RouterSignals("next_gate" in self.needs, "gates" in self.needs, self.gate)

    def fetches_only(self, cpu: bool) -> bool:
        """Whether copies over the link answer every miss, so that the bound of its windows holds; `cpu` says whether
        the CPU may compute."""
        return not (cpu and self.miss.uses_cpu)

    @property
    def lossless(self) -> bool:
        """Whether the output equals that of the model without offloading."""
        return self.gate is None
