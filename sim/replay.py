"""Replay a trace under policies on a simulated machine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple

from sim.pool import check_jobs, spread
from sim.runner import Progress, Runner
from spmoe.drive.dispatcher import Observer
from spmoe.errors import InputError
from spmoe.files import atomic_write, check_distinct
from spmoe.machine.hardware import Hardware
from spmoe.policy.recipe import Recipe
from spmoe.policy.registry import recipe, select
from spmoe.results.bound import Bound
from spmoe.results.lengths import LengthFold
from spmoe.results.metrics import Metrics
from spmoe.results.result import SCHEMA, Result
from spmoe.results.timeline import TimelineWriter
from spmoe.run.applicability import obstacle, sort_out
from spmoe.run.setting import Setting, resolve_setting
from spmoe.scheduler.config import SchedulerConfig
from spmoe.scheduler.log import LogWriter
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
    gamma: int | None = None,
    gamma_max: int | None = None,
    as_model: str | None = None,
    cpu_experts: bool = True,
    cutoff: int | Literal["best"] | None = None,
    lossy: bool = False,
    jobs: int | None = 1,
    log: str | os.PathLike[str] | None = None,
    timeline: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Replay:
    """Replay `trace` (a path, or a `Trace`) under `policies`: names, patterns ("spmoe.*"), or "all".

    A policy that does not apply is an error where it is named, else left out.

    `vram` (a size such as "18GiB", or bytes), `cache` (share of all experts) and `slots` (experts, all layers together)
    exclude each other; `gamma` is the number of drafted tokens, and without it policies that choose the length draft up
    to `gamma_max` (default 16), the others 4; `as_model` names a published model of the same layers, experts and top-k
    to take sizes and times from, in place of the trace's; `cpu_experts=False` keeps the CPU from computing experts;
    `cutoff` the number of leading layers that
    SP-MoE prefetches for, "best" for that with the lowest TPOT, None for the analytical one.  `lossy` allows policies
    that change the model's output.  `log` takes the decision log of a single policy, `timeline` a Chrome trace of all.
    `jobs`: processes to spread the policies over (None for one per core), unless there is a log or a timeline to write;
    a script that uses more than one has to start under `if __name__ == "__main__":`.

    Raises InputError, one line, for whatever is wrong with trace or arguments.
    """
    check_distinct(trace=trace if isinstance(trace, str | os.PathLike) else None, log=log, timeline=timeline)
    jobs = check_jobs(jobs)
    chosen = select(policies)
    if log is not None and len(chosen) > 1:
        raise InputError("log: expected a single policy, since a log holds the decisions of one run")
    prepared = Prepared(
        trace,
        hardware=hardware,
        bits=bits,
        vram=vram,
        cache=cache,
        slots=slots,
        gamma=gamma,
        gamma_max=gamma_max,
        as_model=as_model,
        cpu_experts=cpu_experts,
    )
    return prepared.replay(policies, cutoff, lossy, jobs, log, timeline, progress)


class Prepared:
    """A trace and a setting to replay it in; remembers what all replays compare with."""

    def __init__(self, trace: str | os.PathLike[str] | Trace, **options: Any) -> None:
        """`options` are those of `replay` that set machine, cache and gamma.  Raises InputError as `replay` does."""
        self.trace: Trace = TraceFile(trace) if isinstance(trace, str | os.PathLike) else trace
        self.summary = summarise(self.trace)
        self.setting = resolve_setting(self.trace.header, self.summary.longest_request, **options)
        self._runner = Runner(self.trace, self.setting)
        self._on_demand: Metrics | None = None

    def obstacle(self, policy: str, lossy: bool) -> str | None:
        """Why a policy cannot run here; None where it can."""
        return obstacle(recipe(policy), self.trace.header, self.summary, self.setting, lossy)

    def replay(
        self,
        policies: str | Sequence[str],
        cutoff: int | Literal["best"] | None,
        lossy: bool,
        jobs: int = 1,
        log: str | os.PathLike[str] | None = None,
        timeline: str | os.PathLike[str] | None = None,
        progress: Progress | None = None,
    ) -> Replay:
        """What `replay` does, in this setting."""
        _check_cutoff(cutoff, self.trace.header.model.layers)
        setting = self.setting
        named = [policies] if isinstance(policies, str) else list(policies)
        chosen = select(named)
        applicable, skipped = sort_out(chosen, self.trace.header, self.summary, setting, lossy, named)
        outcomes: dict[str, Outcome] = {}
        with ExitStack() as files:
            spans = TimelineWriter(files.enter_context(atomic_write(timeline))) if timeline is not None else None
            logs = files.enter_context(atomic_write(log)) if log is not None else None
            tasks = [Task(self.trace, setting, one.name, cutoff) for one in applicable]
            if spans is None and logs is None and jobs > 1:
                for outcome in spread(run_task, tasks, jobs):
                    outcomes[outcome.policy] = outcome
                    if progress is not None:
                        progress(outcome.policy, outcome.metrics.tokens)
            else:
                for task in tasks:
                    outcomes[task.policy] = run_task(task, progress, spans, logs)
            if spans is not None:
                spans.close()
            # Still inside: should one of these fail, no file is left behind.
            if BASELINE in outcomes:
                self._on_demand = outcomes[BASELINE].metrics
            if self._on_demand is None:
                self._on_demand = run_task(Task(self.trace, setting, BASELINE, None), progress).metrics
            bounds = {one.name: self._own_bound(one, outcomes[one.name].lengths) for one in applicable}
            fixed = self._runner.bound(setting.gamma)
        on_demand_ms, size = self._on_demand.tpot_ms, setting.budget.expert
        return Replay(
            trace=describe_trace(self.trace, self.summary),
            setting=setting,
            bound=fixed,
            results=tuple(
                Result(
                    one,
                    outcomes[one.name].metrics,
                    size,
                    setting.cpu_experts,
                    on_demand_ms,
                    bounds[one.name].tpot_ms,
                    outcomes[one.name].lengths,
                )
                for one in applicable
            ),
            cutoffs={one.name: outcomes[one.name].config.cutoff for one in applicable if one.has_cutoff},
            cutoff_choice="analytical" if cutoff is None else "best" if cutoff == "best" else "given",
            skipped=skipped,
            warnings=_warnings(applicable, setting, bounds),
        )

    def _own_bound(self, one: Recipe, lengths: tuple[int, ...] | None) -> Bound:
        """The bound of a policy's own windows."""
        if lengths is None:
            return self._runner.bound(one.speculation.gamma(self.setting.gamma))
        return self._runner.bound_of(lengths)


def _check_cutoff(cutoff: object, layers: int) -> None:
    if cutoff is None or cutoff == "best":
        return
    if isinstance(cutoff, bool) or not isinstance(cutoff, int) or not 0 <= cutoff <= layers:
        raise InputError(f"cutoff: expected a number of layers within 0..{layers}, or best, got {cutoff!r}")


class Task(NamedTuple):
    """A policy to run in a setting, with the cutoff asked for."""

    trace: Trace
    setting: Setting
    policy: str
    cutoff: int | Literal["best"] | None


class Outcome(NamedTuple):
    """What came of a task, and the configuration it ran with."""

    policy: str
    config: SchedulerConfig
    metrics: Metrics
    lengths: tuple[int, ...] | None
    """How many tokens its steps drafted, where it has chosen that."""


def run_task(
    task: Task,
    progress: Progress | None = None,
    spans: TimelineWriter | None = None,
    log: IO[str] | None = None,
) -> Outcome:
    """Replay the trace under one policy; `spans` and `log` take its timeline and its decisions."""
    one, runner = recipe(task.policy), Runner(task.trace, task.setting, progress)
    layers = None
    if one.has_cutoff:
        layers = runner.best_cutoff(one) if task.cutoff == "best" else task.cutoff
    config = runner.configure(one, layers)[0]
    observers: list[Observer] = []
    writer = LogWriter(log, config) if log is not None else None
    if writer is not None:
        observers.append(writer.observe)
    if spans is not None:
        observers.append(spans.run(one.name, config.experts).observe)
    lengths = LengthFold() if config.chooses else None
    if lengths is not None:
        observers.append(lengths.observe)
    metrics = runner.run(one, config, observers)
    if writer is not None:
        writer.close()
    return Outcome(one.name, config, metrics, None if lengths is None else lengths.result())


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


def _warnings(recipes: Sequence[Recipe], setting: Setting, bounds: Mapping[str, Bound]) -> tuple[str, ...]:
    """Says once where caches are too small for what a layer of their policies' windows needs at once."""
    narrow = []
    for one in recipes:
        smallest = min(pool.slots for pool in one.placement.pools(setting.shape, setting.slots))
        if smallest < bounds[one.name].widest and one.fetches_only(setting.cpu_experts):
            narrow.append(f"{one.name} ({smallest} slots for up to {bounds[one.name].widest} experts)")
    if not narrow:
        return ()
    others = f" and {len(narrow) - 2} more" if len(narrow) > 2 else ""
    return (
        "some layers need more experts at once than their cache has slots, and run in waves: "
        f"{', '.join(narrow[:2])}{others}",
    )
