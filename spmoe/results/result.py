"""One policy's result, in the schema `spmoe-result/1` that both drivers write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spmoe.policy.recipe import Recipe
from spmoe.results.metrics import Metrics

SCHEMA = "spmoe-result/1"


@dataclass(frozen=True, slots=True)
class Result:
    """What a policy came to.

    `cpu` says whether the CPU could compute experts.  `on_demand_ms` is the TPOT of `on-demand.lru` in the same
    setting, `bound_ms` that of the bound of this policy's own windows; None where they are not known.  `lengths` is how
    many tokens its steps drafted, where it has chosen that.
    """

    recipe: Recipe
    metrics: Metrics
    expert_bytes: int
    cpu: bool
    on_demand_ms: float | None = None
    bound_ms: float | None = None
    lengths: Sequence[int] | None = None

    @property
    def fetch_only(self) -> bool:
        """Whether copies over the link answered every miss, so that the bound holds for it."""
        return self.recipe.fetches_only(self.cpu)

    @property
    def speedup(self) -> float | None:
        """How many times faster than on-demand LRU."""
        return _ratio(self.on_demand_ms, self.metrics.tpot_ms)

    @property
    def vs_bound(self) -> float | None:
        """TPOT over the bound's; at least 1 for what is lossless and fetch-only."""
        return _ratio(self.metrics.tpot_ms, self.bound_ms)

    def to_json(self) -> dict[str, Any]:
        """The entry in `results`; times in milliseconds, rates between 0 and 1, null where there is nothing to say."""
        metrics = self.metrics
        loads = metrics.loads_per_token
        return {
            "policy": self.recipe.name,
            "fetch_only": self.fetch_only,
            "lossless": self.recipe.lossless,
            "speculates": self.recipe.speculation.gamma(1) > 0,
            "drafted_per_step": sum(self.lengths) / len(self.lengths) if self.lengths else None,
            "tpot_ms": metrics.tpot_ms,
            "ttft_ms": metrics.ttft_ms,
            "tokens": metrics.tokens,
            "steps": metrics.steps,
            "needs": metrics.needs,
            "loads": metrics.loads,
            "loads_per_token": loads,
            "bytes_per_token": None if loads is None else loads * self.expert_bytes,
            "hit_rate": metrics.hit_rate,
            "late_rate": metrics.late_rate,
            "prefetch_precision": metrics.prefetch_precision,
            "prefetch_recall": metrics.prefetch_recall,
            "stall_fraction": metrics.stall_fraction,
            "link_utilisation": metrics.link_utilisation,
            "host_per_token": metrics.host_per_token,
            "host_utilisation": metrics.host_utilisation,
            "speedup_vs_on_demand": self.speedup,
            "vs_bound": self.vs_bound,
            "events": metrics.events,
        }


def _ratio(over: float | None, under: float | None) -> float | None:
    return over / under if over is not None and under else None
