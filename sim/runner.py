"""Runs policies on one trace in one setting; remembers what several of them need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, partial
from itertools import repeat

from sim.machine.driver import Driver
from sim.machine.program import Popularity
from spmoe.drive.dispatcher import Observer
from spmoe.policy.parts.future import Future
from spmoe.policy.recipe import Recipe
from spmoe.progress import Progress
from spmoe.results.bound import Bound, bound
from spmoe.results.metrics import Metrics
from spmoe.results.metrics_fold import MetricsFold
from spmoe.run.setting import Setting
from spmoe.scheduler.config import SchedulerConfig
from spmoe.scheduler.scheduler import Scheduler
from spmoe.trace.popularity import Uses, count_uses, most_needed
from spmoe.trace.reader import TraceFile
from spmoe.trace.schema import FORECAST_NAMES, Trace
from spmoe.trace.windows import Request, requests


class Runner:
    """One trace, one setting, any number of policies.  It can be pickled, with all that it remembers."""

    def __init__(self, trace: Trace, setting: Setting) -> None:
        self.trace = trace
        self.setting = setting
        self._bounds: dict[int, Bound] = {}

    def run(
        self,
        recipe: Recipe,
        config: SchedulerConfig,
        observers: Sequence[Observer] = (),
        progress: Progress | None = None,
    ) -> Metrics:
        """Replay the trace under one policy; `progress` counts output tokens."""
        future = Future(self._requests, config.gamma) if "future" in recipe.needs else None
        fold = MetricsFold(config.experts)
        driver = Driver(
            Scheduler(config, future, recipe),
            self.setting.cost,
            (fold.observe, *observers),
            self._popularity(recipe, config),
            None if progress is None else partial(progress, recipe.name),
            recipe.runtime,
        )
        driver.run(self._requests(*(recipe.needs & set(FORECAST_NAMES))))
        return fold.result()

    def count_uses(self, recipes: Iterable[Recipe]) -> None:
        """Counts now what any of `recipes` will ask for, so that processes that this is sent to need not."""
        if any("popularity" in recipe.needs for recipe in recipes):
            _ = self._uses

    def sweep_cutoff(self, recipe: Recipe, progress: Progress | None = None) -> Iterator[tuple[int, Metrics]]:
        """Every cutoff, from no layer to all, and what it comes to."""
        for layers in range(self.setting.geometry.layers + 1):
            yield layers, self.run(recipe, self.setting.configure(recipe, layers)[0], progress=progress)

    def best_cutoff(self, recipe: Recipe, progress: Progress | None = None) -> int:
        """The empirical cutoff: that with the lowest TPOT, the smallest of equals."""
        return best(self.sweep_cutoff(recipe, progress))

    def bound(self, gamma: int) -> Bound:
        """The bound of windows with `gamma` drafted tokens."""
        if gamma not in self._bounds:
            self._bounds[gamma] = bound(self._requests, self.setting.cost, repeat(gamma), self.setting.slots)
        return self._bounds[gamma]

    def bound_of(self, lengths: Sequence[int]) -> Bound:
        """The bound of the windows of a run that has drafted so many tokens in its steps."""
        return bound(self._requests, self.setting.cost, lengths, self.setting.slots)

    def _popularity(self, recipe: Recipe, config: SchedulerConfig) -> Popularity | None:
        """The ranking of keys that a recipe asks for."""
        if "popularity" in recipe.needs:
            return self._uses.popular
        if "hindsight" in recipe.needs:
            gamma = recipe.speculation.gamma(config.gamma)
            ranking = most_needed(self._requests(), gamma, config.layers, config.experts)
            return lambda request: ranking
        return None

    @cached_property
    def _uses(self) -> Uses:
        return count_uses(self.trace)

    def _requests(self, *forecasts: str) -> Iterator[Request]:
        """A new pass over the trace that reads these forecasts and no others."""
        trace = self.trace
        return requests(TraceFile(trace.path, forecasts) if isinstance(trace, TraceFile) else trace)


def best(sweep: Iterator[tuple[int, Metrics]]) -> int:
    """The number of layers with the lowest TPOT, the smallest of equals."""
    return min((metrics.decode_ns, layers) for layers, metrics in sweep)[1]
