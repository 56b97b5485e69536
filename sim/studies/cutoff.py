"""Where SP-MoE's cutoff layer is, by analysis and by trying all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sim.runner import Runner, best
from spmoe.errors import InputError
from spmoe.policy.recipe import Recipe
from spmoe.policy.registry import RECIPES, recipe
from spmoe.policy.sp_moe.cutoff import Cutoff
from spmoe.progress import Progress
from spmoe.results.document import TraceDescription
from spmoe.results.metrics import Metrics
from spmoe.run.options import RunOptions
from spmoe.run.setting import Setting, resolve_setting
from spmoe.trace.schema import Trace
from spmoe.trace.summary import summarise


@dataclass(frozen=True, slots=True)
class CutoffStudy:
    """The analytical cutoff with its reasons, and the TPOT of every cutoff from no layer to all."""

    trace: TraceDescription
    setting: Setting
    recipe: Recipe
    analytical: Cutoff
    sweep: tuple[tuple[int, Metrics], ...]

    @property
    def empirical(self) -> int:
        """The cutoff with the lowest TPOT, the smallest of equals."""
        return best(iter(self.sweep))

    def tpot_ms(self, layers: int) -> float:
        """The TPOT that a cutoff came to."""
        return dict(self.sweep)[layers].tpot_ms or 0.0

    def explain(self) -> tuple[str, ...]:
        """Both cutoffs in words and numbers, a line each."""
        analytical, empirical = self.analytical.layers, self.empirical
        last = self.setting.geometry.layers
        first, *reasons = self.analytical.explain()
        return (
            f"analytical {first}",
            *(f"  {reason}" for reason in reasons),
            f"empirical cutoff: {empirical} of {last} layers, with {self.tpot_ms(empirical):.2f} ms per token the best "
            f"of {len(self.sweep)} tried",
            f"  the analytical cutoff comes to {self.tpot_ms(analytical):.2f} ms, no prefetch to "
            f"{self.tpot_ms(0):.2f} ms, prefetch for all layers to {self.tpot_ms(last):.2f} ms",
        )

    def to_json(self) -> dict[str, Any]:
        """Both cutoffs and the sweep; the same inputs give the same bytes."""
        analytical = self.analytical
        return {
            "schema": "spmoe-cutoff/1",
            "trace": self.trace.to_json(),
            "config": self.setting.to_json(),
            "feasible": self.setting.feasible,
            "policy": self.recipe.name,
            "analytical": {
                "layers": analytical.layers,
                "by_slots": analytical.by_slots,
                "by_time": analytical.by_time,
                "expected_prefetches_per_layer": float(analytical.expected),
                "load_ns": analytical.load_ns,
                "draft_token_ns": analytical.draft_token_ns,
                "layer_ns": analytical.layer_ns,
            },
            "empirical": {"layers": self.empirical, "tpot_ms": self.tpot_ms(self.empirical)},
            "sweep": [
                {"layers": layers, "tpot_ms": metrics.tpot_ms, "loads_per_token": metrics.loads_per_token}
                for layers, metrics in self.sweep
            ],
        }


def study_cutoff(trace: Trace, policy: str, options: RunOptions, progress: Progress | None = None) -> CutoffStudy:
    """Compute the analytical cutoff of `policy` on `trace`, and replay the trace at every cutoff.

    Raises InputError for a policy that has no cutoff, a trace without draft forecasts, and whatever `resolve_setting`
    refuses.
    """
    chosen = recipe(policy)
    setting = resolve_setting(trace.header, (summary := summarise(trace)).longest_request, options)
    if "draft" not in trace.header.forecasts:
        raise InputError(f"policy {policy}: needs draft forecasts, which the trace does not have")
    reason = setting.configure(chosen)[1]
    if reason is None:
        others = ", ".join(name for name, one in RECIPES.items() if one.has_cutoff)
        raise InputError(f"policy {policy}: has no cutoff layer; expected one of {others}")
    sweep = tuple(Runner(trace, setting).sweep_cutoff(chosen, progress))
    return CutoffStudy(TraceDescription.of(trace, summary), setting, chosen, reason, sweep)
