"""The results of a run of the engine as a document `spmoe-result/1`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from engine.cli.reference import Comparison
from engine.cli.summary import describe_pair
from engine.decoding.sampling import Sampling
from engine.engine import Engine
from spmoe.results.bound import Bound, bound
from spmoe.results.document import ResultDocument, TraceDescription, chosen_by
from spmoe.results.result import Result
from spmoe.trace.windows import requests


@dataclass(frozen=True, slots=True)
class EngineDocument(ResultDocument):
    """The document of a run; `engine` is what only the engine has to say, and `virtual` whether its times are those of
    the cost model."""

    engine: Mapping[str, Any]
    virtual: bool

    def driver_config(self) -> Mapping[str, Any]:
        return {"engine": dict(self.engine)}

    def bound_ms(self) -> float | None:
        return self.bound.tpot_ms if self.bound is not None and self.virtual else None


def document(engine: Engine, sampling: Sampling, comparison: Comparison | None = None) -> EngineDocument:
    """The document of all requests so far; None for what a run of the engine does not know."""
    plan, metrics = engine.plan, engine.metrics()
    setting, options = plan.setting, plan.options
    own, virtual = _bound(engine), options.virtual_time is not None
    return EngineDocument(
        trace=TraceDescription(
            name=None,
            model=setting.geometry.name,
            source="recorded",
            what=describe_pair(plan),
            tokens=metrics.tokens,
            requests=metrics.requests,
            prefills=metrics.prefills,
            agreement=None,
            empty_cells=0,
            rejected_inputs=None,
        ),
        setting=setting,
        bound=own,
        results=(
            Result(
                plan.recipe,
                metrics,
                setting.budget.expert,
                setting.cpu_experts,
                bound_ms=own.tpot_ms if own and virtual else None,
                lengths=engine.lengths() if plan.config.chooses else None,
            ),
        ),
        cutoffs={plan.recipe.name: plan.config.cutoff} if plan.recipe.has_cutoff else {},
        cutoff_choice=chosen_by(options.cutoff),
        skipped={},
        engine={
            "device": str(plan.device),
            "dtype": str(plan.dtype).removeprefix("torch."),
            "kernel": options.kernel,
            "virtual_time": virtual,
            "link_gbps": options.link_gbps,
            "fallback": plan.fallback or None,
            "notes": list(plan.notes),
            "sampling": asdict(sampling),
            "acceptance": engine.transfers().acceptance,
            "hidden_share": engine.transfers().hidden_share,
            "plain": None if comparison is None else comparison.to_json(),
        },
        virtual=virtual,
    )


def _bound(engine: Engine) -> Bound | None:
    """The bound of the run's own windows, where they were recorded."""
    recorder, setting = engine.recorder, engine.plan.setting
    if recorder is None or not recorder.tokens:
        return None
    return bound(lambda: requests(recorder), setting.cost, engine.lengths(), setting.slots)
