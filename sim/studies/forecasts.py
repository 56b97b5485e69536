"""How good the forecasts of a trace are, layer by layer, and how early they come."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from sim.runner import Runner
from spmoe.errors import InputError
from spmoe.files import check_distinct
from spmoe.policy.parts.future import Future
from spmoe.policy.recipe import Recipe
from spmoe.policy.registry import recipe
from spmoe.progress import Progress
from spmoe.results.document import TraceDescription
from spmoe.results.lead import LeadFold, LeadTimes, read_lead
from spmoe.run.options import RunOptions
from spmoe.run.setting import Setting, resolve_setting
from spmoe.scheduler.config import SchedulerConfig
from spmoe.scheduler.log import read_config
from spmoe.trace.accuracy import RATES, ForecastAccuracy, measure_accuracy, rated_layers
from spmoe.trace.reader import TraceFile
from spmoe.trace.schema import ForecastOrigin, Trace
from spmoe.trace.summary import summarise
from spmoe.trace.windows import Request, requests

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = "spmoe-forecasts/1"

REPLAYED: Final[Mapping[str, str]] = MappingProxyType({"draft": "spmoe.paper", "next_gate": "spmoe.next-gate"})
"""The policy whose replay shows how early each forecast comes; a cutoff layer is set to all layers."""

LEADS = ("lead_ms", "lead_loads", "last_lead_ms", "last_lead_loads", "busy_lead_ms", "busy_lead_loads")

Row = Mapping[str, int | float | None]


@dataclass(frozen=True, slots=True)
class Timing:
    """Where a source's lead times come from: the replay of a policy, or the log of a run under it.

    `load_ns` is what one load takes: by the cost model in a replay, on the mean of its transfers in a log, None where
    it moved nothing.
    """

    config: SchedulerConfig
    times: LeadTimes
    load_ns: float | None

    @property
    def cutoff(self) -> int | None:
        """Leading layers that the draft was asked about; None where the policy has no cutoff layer."""
        return self.config.cutoff if recipe(self.config.recipe).has_cutoff else None

    @property
    def resident_steps(self) -> int:
        """Steps in which a policy that goes by the draft asked for no forecasts, since every expert was there."""
        goes_by_draft = "draft" in recipe(self.config.recipe).needs and self.cutoff != 0
        return self.times.steps - self.times.asked if goes_by_draft else 0

    def row(self, source: str, layer: int) -> Row:
        """Lead times of one layer, None without any: the mean over all reports and over the last ones of each step, and
        the first of these without waits."""
        lead = self.times.sources.get(source, {}).get(layer)
        if lead is None:
            return dict.fromkeys(LEADS)
        times = (lead.every.mean_ns, lead.last.mean_ns, lead.every.busy_ns)
        pairs = [(time / 1e6, time / self.load_ns if self.load_ns else None) for time in times]
        return dict(zip(LEADS, chain.from_iterable(pairs), strict=True))

    def by_token_ms(self, source: str, layer: int) -> list[float | None]:
        """The mean lead of each drafted token's reports."""
        lead = self.times.sources.get(source, {}).get(layer)
        return [each.mean_ns / 1e6 if each.reports else None for each in lead.by_token] if lead else []


@dataclass(frozen=True, slots=True)
class ForecastStudy:
    """All that is to be said of a trace's forecasts.

    `setting` is that of the replays, None where the lead times come from the log of that name.
    """

    trace: TraceDescription
    origins: Mapping[str, ForecastOrigin]
    accuracy: ForecastAccuracy
    timings: Mapping[str, Timing]
    setting: Setting | None
    log: str | None

    def rows(self, source: str) -> tuple[Row, ...]:
        """Accuracy of a source and, where it is a forecast of the trace, its lead times: an entry per layer."""
        rows: list[Row] = []
        for layer, accuracy in enumerate(self.accuracy.layers[source]):
            timing = self.timings.get(source)
            rows.append({"layer": layer, **asdict(accuracy), **(timing.row(source, layer) if timing else {})})
        return tuple(rows)

    def summary(self, source: str) -> Row:
        """The means over all layers but layer 0; of each rate, over those that have it."""
        rows = self.rows(source)
        counted = [rows[layer] for layer in rated_layers(len(rows))]
        return {name: _mean([row[name] for row in counted]) for name in (*RATES, *LEADS) if name in rows[0]}

    def notes(self) -> Iterator[str]:
        """What has to be known to read the numbers, a line each."""
        if self.accuracy.gamma == 0:
            yield "gamma 0: nothing is drafted, so there are no windows, and no lead time of the draft"
        for source, timing in self.timings.items():
            name, times = timing.config.recipe, timing.times
            if source == "draft" and times.steps == 0:
                continue
            if source == "draft" and timing.resident_steps == times.steps:
                yield (
                    f"no lead time of the draft: {name} asks for no forecasts where every expert is there; with a "
                    "smaller cache, such as --cache 0.5, it does"
                )
            elif source not in times.sources:
                yield f"no lead time of {source}: {name} got no such forecasts"
            elif source == "draft" and timing.resident_steps:
                yield (
                    f"lead times of the draft are from {times.asked:,} of {times.steps:,} steps: in the others every "
                    f"expert was there, and {name} asked for no forecasts"
                )
        if "popularity" not in self.accuracy.layers:
            yield "no popularity: it is that of the other requests, and the trace has only one"
        if self.accuracy.stand_ins:
            yield (
                f"windows: the trace does not hold {self.accuracy.stand_ins:,} inputs that followed a rejected token; "
                "the tokens that really stand at those positions took their places"
            )

    def to_json(self) -> dict[str, Any]:
        """The document `spmoe-forecasts/1`; the same inputs give the same bytes."""
        accuracy = self.accuracy
        return {
            "schema": SCHEMA,
            "trace": self.trace.to_json(),
            "config": self.setting.to_json() if self.setting else {"log": self.log, "gamma": accuracy.gamma},
            "inputs": accuracy.inputs,
            "windows": accuracy.windows,
            "stand_ins": accuracy.stand_ins,
            "sources": {name: self._source_json(name) for name in accuracy.layers},
            "notes": list(self.notes()),
        }

    def table(self) -> pd.DataFrame:
        """One row per source and layer, the columns of the JSON rows."""
        import pandas as pd  # Slow to import, and the command line has no use for it.

        rows = [{"source": name, **row} for name in self.accuracy.layers for row in self.rows(name)]
        return pd.DataFrame(rows).set_index(["source", "layer"])

    def _source_json(self, name: str) -> dict[str, Any]:
        rows = [dict(row) for row in self.rows(name)]
        found: dict[str, Any] = {"summary": self.summary(name), "layers": rows}
        if name not in self.origins:
            return found
        origin, timing = self.origins[name], self.timings[name]
        for layer, row in enumerate(rows):
            found["layers"][layer] = {**row, "by_token_ms": timing.by_token_ms(name, layer)}
        return {
            "origin": {"kind": origin.kind, "accuracy": origin.accuracy},
            "lead": {
                "from": "replay" if self.log is None else "log",
                "policy": timing.config.recipe,
                "cutoff": timing.cutoff,
                "steps": timing.times.steps,
                "asked": timing.times.asked,
                "load_ms": None if timing.load_ns is None else timing.load_ns / 1e6,
            },
            **found,
            "reliability": self.accuracy.reliability[name].to_json(),
        }


def forecasts(
    trace: str | os.PathLike[str] | Trace,
    *,
    log: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> ForecastStudy:
    """Rate the forecasts of `trace` (a path, or a `Trace`), and find out how early they come.

    Lead times are those of replays (see `REPLAYED`) in the setting that `options` give: those of `sim.replay` that set
    machine, cache and gamma.  With `log` they are those of the run that wrote this decision log, measured ones where
    the engine ran in real time; gamma is the run's then, and no options are taken.

    Raises InputError for a trace without forecasts, for a log that is damaged or of another model, and for whatever
    `resolve_setting` refuses.
    """
    source: Trace = TraceFile(trace) if isinstance(trace, str | os.PathLike) else trace
    place = f"{source.path}: " if isinstance(source, TraceFile) else ""
    if not source.header.forecasts:
        raise InputError(f"{place}field forecasts: expected draft or next_gate forecasts, and the trace has none")
    setting = None
    if log is None:
        summary = summarise(source)
        setting = resolve_setting(source.header, summary.longest_request, RunOptions(**options))
        gamma = setting.gamma
        timings = _replayed(source, setting, progress)
    else:
        if options:
            raise InputError(f"{next(iter(options))}: not allowed with a log, which has its machine, cache and gamma")
        check_distinct(trace=source.path if isinstance(source, TraceFile) else None, log=log)
        timing = _logged(source, Path(log))
        gamma = recipe(timing.config.recipe).speculation.gamma(timing.config.gamma)
        timings = dict.fromkeys(source.header.forecasts, timing)
        summary = summarise(source)
    accuracy = measure_accuracy(source, gamma)
    if not any(layer.cells for name in source.header.forecasts for layer in accuracy.layers[name]):
        raise InputError(f"{place}field forecasts: expected some, and no line with a routing has any")
    return ForecastStudy(
        trace=TraceDescription.of(source, summary),
        origins=source.header.forecasts,
        accuracy=accuracy,
        timings=timings,
        setting=setting,
        log=None if log is None else Path(log).name,
    )


def _replayed(trace: Trace, setting: Setting, progress: Progress | None) -> dict[str, Timing]:
    runner = Runner(trace, setting)
    found = {}
    for source in trace.header.forecasts:
        one = recipe(REPLAYED[source])
        config = setting.configure(one, _all_layers(one, setting))[0]
        fold = LeadFold()
        runner.run(one, config, [fold.observe], progress)
        found[source] = Timing(config, fold.result(), setting.cost.load_ns())
    return found


def _all_layers(one: Recipe, setting: Setting) -> int | None:
    return setting.geometry.layers if one.has_cutoff else None


def _logged(trace: Trace, log: Path) -> Timing:
    model = trace.header.model

    def future(config: SchedulerConfig) -> Future:
        return Future(again, config.gamma)

    def again() -> Iterator[Request]:
        return requests(trace)

    config = read_config(log)
    if config.shape != (model.layers, model.experts, model.top_k):
        layers, experts, top_k = config.shape
        raise InputError(
            f"{log}:1: expected a run of the trace's model, {model.layers} layers of {model.experts} experts, "
            f"top-{model.top_k}, got {layers} layers of {experts}, top-{top_k}"
        )
    times = read_lead(log, future)
    return Timing(config, times, times.load_ns)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
