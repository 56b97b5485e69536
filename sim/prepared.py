"""A trace and a setting to replay it in."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sim.pool import spread
from sim.runner import Runner
from sim.task import Outcome, Task, run_task
from spmoe.errors import InputError
from spmoe.files import atomic_write
from spmoe.policy.recipe import Recipe
from spmoe.policy.registry import recipe, select
from spmoe.progress import Progress
from spmoe.results.bound import Bound
from spmoe.results.document import ResultDocument, TraceDescription, chosen_by
from spmoe.results.metrics import Metrics
from spmoe.results.result import Result
from spmoe.results.timeline import TimelineWriter
from spmoe.run.applicability import obstacle, sort_out
from spmoe.run.options import RunOptions
from spmoe.run.setting import Setting, resolve_setting
from spmoe.trace.reader import TraceFile
from spmoe.trace.schema import Trace
from spmoe.trace.summary import summarise

if TYPE_CHECKING:  # Only for the type of a table: pandas is slow to import, and the command line has no use for it.
    import pandas as pd

BASELINE = "on-demand.lru"


@dataclass(frozen=True, slots=True)
class Replay(ResultDocument):
    """All that a replay found out, and what has to be known to read it."""

    bound: Bound
    warnings: tuple[str, ...]

    def table(self) -> pd.DataFrame:
        """One row per policy, the columns of the JSON results."""
        import pandas as pd  # Slow to import, and the command line has no use for it.

        return pd.DataFrame([result.to_json() for result in self.results]).set_index("policy")


class Prepared:
    """A trace and a setting to replay it in; remembers what all replays compare with."""

    def __init__(self, trace: str | os.PathLike[str] | Trace, options: RunOptions) -> None:
        """Reads `trace` once.  Raises InputError for whatever is wrong with it or with `options`."""
        self.trace: Trace = TraceFile(trace) if isinstance(trace, str | os.PathLike) else trace
        self.summary = summarise(self.trace)
        self.setting = resolve_setting(self.trace.header, self.summary.longest_request, options)
        self._runner = Runner(self.trace, self.setting)
        self._on_demand: Metrics | None = None

    def obstacle(self, policy: str, lossy: bool) -> str | None:
        """Why a policy cannot run here; None where it can."""
        return obstacle(recipe(policy), self.trace.header, self.summary, self.setting, lossy)

    def replay(
        self,
        policies: str | Recipe | Sequence[str | Recipe],
        cutoff: int | Literal["best"] | None,
        lossy: bool,
        jobs: int = 1,
        log: str | os.PathLike[str] | None = None,
        timeline: str | os.PathLike[str] | None = None,
        progress: Progress | None = None,
    ) -> Replay:
        """What `sim.replay` does, in this setting."""
        _check_cutoff(cutoff, self.trace.header.model.layers)
        setting, runner = self.setting, self._runner
        applicable, skipped = sort_out(select(policies), self.trace.header, self.summary, setting, lossy)
        runner.count_uses(applicable)
        outcomes: dict[str, Outcome] = {}
        with ExitStack() as files:
            spans = TimelineWriter(files.enter_context(atomic_write(timeline))) if timeline is not None else None
            logs = files.enter_context(atomic_write(log)) if log is not None else None
            tasks = [Task(runner, one, cutoff) for one in applicable]
            if spans is None and logs is None and jobs > 1:
                for outcome in spread(run_task, tasks, jobs):
                    outcomes[outcome.policy] = outcome
                    if progress is not None:
                        progress(outcome.policy, outcome.metrics.tokens)
            else:
                for task in tasks:
                    outcomes[task.recipe.name] = run_task(task, progress, spans, logs)
            if spans is not None:
                spans.close()
            # Still inside: should one of these fail, no file is left behind.
            on_demand_ms = self._baseline(outcomes, progress).tpot_ms
            bounds = {one.name: self._own_bound(one, outcomes[one.name].lengths) for one in applicable}
            fixed = runner.bound(setting.gamma)
        return Replay(
            trace=TraceDescription.of(self.trace, self.summary),
            setting=setting,
            bound=fixed,
            results=tuple(
                Result(
                    one,
                    outcomes[one.name].metrics,
                    setting.budget.expert,
                    setting.cpu_experts,
                    on_demand_ms,
                    bounds[one.name].tpot_ms,
                    outcomes[one.name].lengths,
                )
                for one in applicable
            ),
            cutoffs={one.name: outcomes[one.name].config.cutoff for one in applicable if one.has_cutoff},
            cutoff_choice=chosen_by(cutoff),
            skipped=skipped,
            warnings=_warnings(applicable, setting, bounds),
        )

    def _baseline(self, outcomes: Mapping[str, Outcome], progress: Progress | None) -> Metrics:
        """What all policies are compared with, run once."""
        if BASELINE in outcomes:
            self._on_demand = outcomes[BASELINE].metrics
        if self._on_demand is None:
            self._on_demand = run_task(Task(self._runner, recipe(BASELINE), None), progress).metrics
        return self._on_demand

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


def _warnings(recipes: Sequence[Recipe], setting: Setting, bounds: Mapping[str, Bound]) -> tuple[str, ...]:
    """One line where caches are too small for what a layer of their policies' windows needs at once."""
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
