"""Policies timed on a trace: real computation, real transfers, and whatever the trace says came of them."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import replace
from typing import IO, Final, NamedTuple

import torch

from engine.memory.slot_buffer import SharedSlots
from engine.profiling.calibration import Calibration
from engine.profiling.profile import Profile
from engine.profiling.random_models import BlankPair
from engine.profiling.step_timings import Entry
from spmoe.policy.parts.runtime import NATIVE
from spmoe.policy.recipe import Recipe
from spmoe.policy.registry import select
from spmoe.progress import Progress, no_progress
from spmoe.results.metrics import Metrics
from spmoe.results.metrics_fold import MetricsFold
from spmoe.results.run import Measured, Run, TraceIdentity, hardware_of
from spmoe.run.applicability import none_applies, sort_out
from spmoe.run.options import RunOptions
from spmoe.run.setting import resolve_setting
from spmoe.scheduler.config import SchedulerConfig
from spmoe.scheduler.log import LogWriter
from spmoe.trace.schema import TraceInMemory
from spmoe.trace.summary import summarise

NAME: Final = "measured"
"""Of the profile inside a run file."""


class Chosen(NamedTuple):
    """Policies to run, and why others are not."""

    recipes: tuple[Recipe, ...]
    skipped: dict[str, str]


def choose(pair: BlankPair, trace: TraceInMemory, policies: Sequence[str], options: RunOptions) -> Chosen:
    """Those that `policies` (names or patterns, as in `select`) name and that run here as they are.

    Raises InputError where none does, and for `options` out of range; their machine and
    number format do not count.
    """
    summary = summarise(trace)
    # The machine makes no difference to what applies, as long as it has a CPU.
    setting = resolve_setting(
        trace.header, summary.longest_request, replace(options, hardware="rtx-4090", bits=pair.bits)
    )
    chosen, skipped = sort_out(select(policies), trace.header, summary, setting, False)
    for one in chosen:
        if (missing := _obstacle(one, pair)) is not None:
            skipped[one.name] = missing
    found = tuple(one for one in chosen if one.name not in skipped)
    if not found:
        raise none_applies(skipped)
    return Chosen(found, skipped)


def _obstacle(one: Recipe, pair: BlankPair) -> str | None:
    """Why the engine cannot run a policy as the simulator would; None where it can."""
    if one.runtime != NATIVE:
        return f"has a runtime of its own, which the engine does not imitate: {'; '.join(one.runtime.explain())}"
    if "draft" in one.needs and pair.layer_map is None:
        return f"needs draft forecasts, which these models do not give: {pair.why}"
    if "next_gate" in one.needs and not pair.next_gate:
        return "needs next_gate forecasts, which this model does not give: the norm behind attention was not found"
    return None


class Measurement:
    """Times policies on the beginning of a trace, and the machine in between, so that both know of the same minutes."""

    def __init__(self, study: Calibration, trace: TraceInMemory, chosen: Chosen, options: RunOptions) -> None:
        """Takes a first turn of `study`."""
        self._study = study
        self._trace = trace
        self._longest = summarise(trace).longest_request
        study.turn()
        profile = hardware_of(Profile(study).document(NAME), NAME)
        setting = resolve_setting(trace.header, self._longest, replace(options, hardware=profile, bits=study.bits))
        self._skipped = chosen.skipped
        self._configs = {one.name: setting.configure(one)[0] for one in chosen.recipes}
        bench = study.subject.bench
        self._slots = SharedSlots(bench.layout, setting.slots, study.subject.distinct, bench.device)
        self._kept: dict[str, list[Entry]] = {}
        """What happened in each policy's last run."""
        self._runs: dict[str, list[Metrics]] = {name: [] for name in self._configs}

    @property
    def policies(self) -> tuple[str, ...]:
        """Those that are run."""
        return tuple(self._configs)

    def log(self, policy: str, stream: IO[str]) -> None:
        """Writes the decision log of the policy's last run."""
        writer = LogWriter(stream, self._configs[policy])
        for event, commands in self._kept[policy]:
            writer.observe(event, commands)
        writer.close()

    def repeat(self, progress: Progress = no_progress) -> None:
        """Runs every policy once more, in another order each time, and between them a turn of the study."""
        first = len(next(iter(self._runs.values())))
        names, steps = list(self._configs), self._study.steps()
        # Who runs early and who late changes: a machine that slows down must not do so for always the same ones.
        start = first * len(names) // 3 % len(names)
        for number, name in enumerate((*names[start:], *names[:start])):
            progress(name, 0)
            self._runs[name].append(self._run(self._configs[name]))
            for step in steps[len(steps) * number // len(names) : len(steps) * (number + 1) // len(names)]:
                step()
            progress(name, 1)

    def result(self, identity: TraceIdentity, link: str) -> Run:
        """All that was measured, after one repetition at least; `link` as in `Profile.document`."""
        study, trace = self._study, self._trace
        profile = Profile(study).document(NAME, link)
        draft = trace.header.draft
        assert draft is not None
        return Run(
            trace=identity,
            machine=describe_machine(study.subject.bench.device),
            model=trace.header.model,
            draft=draft,
            bits=study.bits,
            longest_request=self._longest,
            link_gbps=study.gbps,
            profile=profile,
            hardware=hardware_of(profile, NAME),
            policies=tuple(
                Measured(self._configs[name], tuple(_tpot_ms(each) for each in runs), runs[-1].loads)
                for name, runs in self._runs.items()
            ),
            skipped=self._skipped,
        )

    def _run(self, config: SchedulerConfig) -> Metrics:
        study, fold = self._study, MetricsFold(config.experts)
        entries: list[Entry] = []
        took = study.subject.bench.run(
            self._trace,
            config,
            self._slots,
            gbps=study.gbps,
            latency_ns=study.latency_ns,
            observers=(fold.observe, lambda *entry: entries.append(entry)),
        )
        study.decided(config.recipe, took)
        self._kept[config.recipe] = entries
        return fold.result()


def _tpot_ms(metrics: Metrics) -> float:
    """Of a run that put out tokens, as all do."""
    tpot = metrics.tpot_ms
    assert tpot is not None
    return tpot


def describe_machine(device: torch.device) -> str:
    """What it was measured on, in words."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return f"{device.type} ({where}), torch {torch.__version__}, Python {platform.python_version()}"
