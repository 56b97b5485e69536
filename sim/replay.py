"""Replay a trace under policies on a simulated machine."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sim.runner import Progress, Runner
from sim.setting import Setting, resolve_setting
from spmoe.config import SchedulerConfig
from spmoe.errors import InputError
from spmoe.files import atomic_write, check_distinct
from spmoe.log import LogWriter
from spmoe.machine.hardware import Hardware
from spmoe.policy.horizon import CutoffLayer
from spmoe.policy.placement import LayerPools
from spmoe.policy.recipe import Recipe
from spmoe.policy.registry import RECIPES, recipe
from spmoe.results.bound import Bound
from spmoe.results.metrics import Metrics
from spmoe.results.result import SCHEMA, Result
from spmoe.results.timeline import TimelineWriter
from spmoe.trace.reader import TraceFile
from spmoe.trace.schema import Trace
from spmoe.trace.summary import TraceSummary, summarise

if TYPE_CHECKING:
    import pandas as pd

BASELINE = "on-demand.lru"


@dataclass(frozen=True, slots=True)
class Replay:
    """All that a replay found out.

    `cutoffs` holds the cutoff layer of each policy that has one; `skipped` why "all" left a policy out.
    """

    trace: dict[str, Any]
    setting: Setting
    bound: Bound
    results: tuple[Result, ...]
    cutoffs: dict[str, int]
    cutoff_choice: str
    skipped: dict[str, str]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The document `spmoe-result/1`; the same inputs give the same bytes."""
        setting = self.setting
        return {
            "schema": SCHEMA,
            "trace": self.trace,
            "config": {
                **setting.to_json(),
                "cutoff": {"choice": self.cutoff_choice, "layers": self.cutoffs},
                "stand_ins": self.bound.stand_ins,
                "skipped": self.skipped,
            },
            "feasible": setting.feasible,
            "bound": {"loads_per_token": self.bound.loads_per_token, "tpot_ms": self.bound.tpot_ms},
            "results": [result.to_json() for result in self.results],
        }

    def table(self) -> pd.DataFrame:
        """One row per policy, the columns of the JSON results."""
        import pandas as pd  # Slow to import, and the command line has no use for it.

        return pd.DataFrame([result.to_json() for result in self.results]).set_index("policy")


def replay(
    trace: str | os.PathLike[str] | Trace,
    policies: str | Sequence[str] = "all",
    hardware: str | Hardware = "rtx-4090",
    *,
    bits: str | float = 4.25,
    vram: str | int | None = None,
    cache: float | None = None,
    slots: int | None = None,
    gamma: int = 4,
    cutoff: int | Literal["best"] | None = None,
    log: str | os.PathLike[str] | None = None,
    timeline: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Replay:
    """Replay `trace` (a path, or a `Trace`) under `policies`: names, or "all" that apply to it.

    `vram` (a size such as "18GiB", or bytes), `cache` (share of all experts) and `slots` (experts, all layers together)
    exclude each other; `gamma` is the number of drafted tokens; `cutoff` the number of leading layers that SP-MoE
    prefetches for, "best" for that with the lowest TPOT, None for the analytical one.  `log` takes the decision log of
    a single policy, `timeline` a Chrome trace of all.

    Raises InputError, one line, for whatever is wrong with trace or arguments.
    """
    check_distinct(trace=trace if isinstance(trace, str | os.PathLike) else None, log=log, timeline=timeline)
    source: Trace = TraceFile(trace) if isinstance(trace, str | os.PathLike) else trace
    _check_cutoff(cutoff, source.header.model.layers)
    chosen = _choose(policies)
    everything = policies == "all" or list(policies) == ["all"]
    if log is not None and (everything or len(chosen) > 1):
        raise InputError("log: expected a single policy, since a log holds the decisions of one run")
    summary = summarise(source)
    setting = resolve_setting(
        source.header,
        summary.longest_request,
        hardware=hardware,
        bits=bits,
        vram=vram,
        cache=cache,
        slots=slots,
        gamma=gamma,
    )
    applicable, skipped = _sort_out(chosen, source, summary, setting, strict=not everything)
    runner = Runner(source, setting, progress)
    cutoffs: dict[str, int] = {}
    metrics: dict[str, Metrics] = {}
    with ExitStack() as files:
        spans = TimelineWriter(files.enter_context(atomic_write(timeline))) if timeline is not None else None
        for one in applicable:
            config, observers = _prepare(runner, one, cutoff), []
            if isinstance(one.horizon, CutoffLayer):
                cutoffs[one.name] = config.cutoff
            writer = LogWriter(files.enter_context(atomic_write(log)), config) if log is not None else None
            if writer is not None:
                observers.append(writer.observe)
            if spans is not None:
                observers.append(spans.run(one.name, config.experts).observe)
            metrics[one.name] = runner.run(one, config, observers)
            if writer is not None:
                writer.close()
        if spans is not None:
            spans.close()
        # Still inside: should one of these fail, no file is left behind.
        baseline = recipe(BASELINE)
        on_demand = metrics.get(BASELINE) or runner.run(baseline, runner.configure(baseline)[0])
        bounds = {one.name: runner.bound(one.speculation.gamma(setting.gamma)) for one in applicable}
        fixed = runner.bound(setting.gamma)
    results = [
        Result(one, metrics[one.name], setting.budget.expert, on_demand.tpot_ms, bounds[one.name].tpot_ms)
        for one in applicable
    ]
    return Replay(
        trace=describe_trace(source, summary),
        setting=setting,
        bound=fixed,
        results=tuple(results),
        cutoffs=cutoffs,
        cutoff_choice="analytical" if cutoff is None else "best" if cutoff == "best" else "given",
        skipped=skipped,
        warnings=_warnings(applicable, setting, fixed),
    )


def _check_cutoff(cutoff: object, layers: int) -> None:
    if cutoff is None or cutoff == "best":
        return
    if isinstance(cutoff, bool) or not isinstance(cutoff, int) or not 0 <= cutoff <= layers:
        raise InputError(f"cutoff: expected a number of layers within 0..{layers}, or best, got {cutoff!r}")


def _prepare(runner: Runner, one: Recipe, cutoff: int | Literal["best"] | None) -> SchedulerConfig:
    """The configuration to run with: the cutoff as asked for, where the recipe has one."""
    if not isinstance(one.horizon, CutoffLayer):
        return runner.configure(one)[0]
    return runner.configure(one, runner.best_cutoff(one) if cutoff == "best" else cutoff)[0]


def describe_trace(trace: Trace, summary: TraceSummary) -> dict[str, Any]:
    """What result files say of a trace."""
    header = trace.header
    return {
        "name": trace.path.name if isinstance(trace, TraceFile) else None,
        "model": header.model.name,
        "source": header.source.kind,
        "what": header.source.what,
        "tokens": summary.tokens,
        "requests": summary.requests,
        "prefills": summary.prefills,
        "agreement": summary.agreement,
        "empty_cells": summary.empty_cells,
        "rejected_inputs": summary.rejected_inputs,
    }


def _warnings(recipes: Sequence[Recipe], setting: Setting, windows: Bound) -> tuple[str, ...]:
    """Says once where a cache is too small for what a layer needs at once."""
    model, slots = setting.geometry, setting.slots
    if slots < windows.widest:
        return (
            f"the cache of {slots} slots is smaller than the {windows.widest} experts that a layer needs at once: "
            "such layers run in waves",
        )
    share = slots // model.layers
    split = [one.name for one in recipes if isinstance(one.placement, LayerPools)]
    if split and share < windows.widest:
        return (
            f"{', '.join(split)}: the {share} slots of a layer are fewer than the {windows.widest} experts that one "
            "may need at once: such layers run in waves",
        )
    return ()


def _choose(policies: str | Sequence[str]) -> list[Recipe]:
    names = [policies] if isinstance(policies, str) else list(policies)
    if names == ["all"]:
        return list(RECIPES.values())
    if not names:
        raise InputError("policies: expected at least one")
    if "all" in names:
        raise InputError("policy 'all' cannot be combined with others")
    return [recipe(name) for name in dict.fromkeys(names)]


def _sort_out(
    chosen: Iterable[Recipe], trace: Trace, summary: TraceSummary, setting: Setting, strict: bool
) -> tuple[list[Recipe], dict[str, str]]:
    """Those that trace and cache allow, and why not the others; with `strict` the first of these is an error."""
    applicable, skipped = [], {}
    for candidate in chosen:
        missing = _obstacle(candidate, trace, summary, setting)
        if missing is None:
            applicable.append(candidate)
        elif strict:
            raise InputError(f"policy {candidate.name}: {missing}")
        else:
            skipped[candidate.name] = missing
    return applicable, skipped


def _obstacle(candidate: Recipe, trace: Trace, summary: TraceSummary, setting: Setting) -> str | None:
    for name in sorted(candidate.needs & {"draft", "next_gate"}):
        if name not in trace.header.forecasts:
            return f"needs {name} forecasts, which the trace does not have"
    if "popularity" in candidate.needs and summary.requests < 2:
        return "learns from other requests, and the trace has only one"
    if isinstance(candidate.placement, LayerPools) and setting.slots < setting.geometry.layers:
        return f"needs a slot for each of the {setting.geometry.layers} layers, and there are {setting.slots}"
    return None
