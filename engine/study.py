"""Rounds of the engine that follow a made-up trace, timed in their parts.

What bookkeeping, waking up and everything else in between takes is in them, as it is in a real run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from time import perf_counter_ns
from typing import Any, Final, NamedTuple

import torch

from engine.bench import Bench
from engine.driver import Observer
from engine.exercise import exercise
from engine.experts import expert_output
from engine.families import find_moe_layers
from engine.fit import Median
from engine.kerneltimes import thread_counts, time_experts, time_host_experts
from engine.linktimes import LinkTimes, time_link
from engine.parttimes import Entry, PartTimes
from engine.slots import SharedSlots
from spmoe.config import SchedulerConfig, configure
from spmoe.policy.clairvoyant import Future
from spmoe.policy.registry import recipe as find_recipe
from spmoe.scheduler import Scheduler
from spmoe.setting import resolve_setting
from spmoe.state.commands import Command
from spmoe.state.events import Event, LayerDone
from spmoe.trace.schema import DraftShape, ModelShape, Trace, TraceInMemory
from spmoe.trace.windows import requests

GAMMAS: Final = (4, 0, 1, 2, 8, 16)
GAMMA: Final = 4
TOKENS: Final = 32
FEW: Final = 4
"""What is slow gets a part of the tokens, one of so many."""
RESIDENT: Final = "on-demand.lru"
FORECASTING: Final = "spmoe.paper"
HEARING_GATE: Final = "next-gate"
HEARING_WEIGHTS: Final = "moe-infinity.paper.spec"
ON_HOST: Final = "llamacpp.cpu-moe"


class Subject(NamedTuple):
    """What is timed: models on a bench, what a trace says of them, and memory for `distinct` experts on the device."""

    bench: Bench
    model: ModelShape
    draft: DraftShape
    distinct: int


class Study:
    """Readings of a subject, more with every turn: taken between other runs, they know of the same slow minutes."""

    def __init__(self, subject: Subject, gbps: float | None, latency_ns: int, tokens: int = TOKENS) -> None:
        """Times experts and the link by themselves; `gbps` and `latency_ns` as in `Link`.

        Readings of a turn come from `tokens` tokens each, at least 4.
        """
        self.subject = subject
        self._tokens = tokens
        bench = subject.bench
        module = find_moe_layers(bench.weights.target)[0].experts
        hidden: int = bench.weights.target.config.get_text_config().hidden_size
        slots = SharedSlots(bench.layout, subject.distinct, subject.distinct, bench.device)
        self.kernels = time_experts(module, hidden, slots, bench.dtype)
        most = min(subject.distinct, 16) * bench.layout.size
        busy = _busy(module, hidden, slots, bench.dtype)
        self.link: LinkTimes = time_link(bench.layout.size, most, bench.device, busy, gbps, latency_ns)
        self.host = time_host_experts(module, hidden, bench.weights.store, bench.dtype, thread_counts())
        self.resident = PartTimes()
        """Everything is resident, under windows of all lengths."""
        self.forecasting = PartTimes()
        """The draft makes forecasts, and nothing arrives."""
        self.prefetching = PartTimes()
        """Experts arrive while the draft runs."""
        self.hearing_gate = PartTimes()
        """Everything is resident, and the policy hears what the next layer's gate would say."""
        self.hearing_weights = PartTimes()
        """The same of the gates' weights."""
        self.landing = PartTimes()
        """Experts arrive where they are needed."""
        self.on_host = PartTimes()
        """The CPU computes all experts."""
        self.decisions: dict[str, Median] = {}
        """What schedulers take per layer, by policy."""
        self.gbps = gbps
        self.latency_ns = latency_ns
        self._keys = bench.shape.layers * bench.shape.experts
        self._traces: dict[int, TraceInMemory] = {}
        self._run(RESIDENT, GAMMA, self._keys)  # Warms up.

    def turn(self) -> None:
        """Takes readings of everything once more."""
        for step in self.steps():
            step()

    def steps(self) -> list[Callable[[], None]]:
        """What a turn consists of, for who does something else in between."""
        keys, layers = self._keys, self.subject.bench.shape.layers
        few = max(2, self._tokens // FEW)
        found: list[Callable[[], None]] = [
            partial(self._run, RESIDENT, gamma, keys, self.resident.observe) for gamma in GAMMAS
        ]
        for gamma in (GAMMA, 0):
            found += [
                partial(self._run, HEARING_GATE, gamma, keys, self.hearing_gate.observe),
                partial(self._run, HEARING_WEIGHTS, gamma, keys, self.hearing_weights.observe),
                partial(self._run, RESIDENT, gamma, keys // 2, self.landing.observe),
            ]
        # One expert is missing: else nobody would ask for forecasts.
        found += [
            partial(self._run, FORECASTING, GAMMA, keys - 1, self.forecasting.observe, cutoff=layers),
            partial(self._run, FORECASTING, GAMMA, keys // 2, self.prefetching.observe, cutoff=layers),
            partial(self._run, ON_HOST, 1, keys // 2, self.on_host.observe, tokens=few),
        ]
        return found

    def run_decisions(self, policies: Iterable[str]) -> None:
        """Times the schedulers of these policies, by what they decide in a run."""
        tokens = max(2, self._tokens // FEW)
        for policy in dict.fromkeys((RESIDENT, *policies)):
            kept = Kept()
            self._run(policy, GAMMA, self._keys // 2, kept.observe, tokens=tokens)
            self.time_decisions(self._config(policy, GAMMA, self._keys // 2), kept.entries, self._trace(tokens))

    def time_decisions(self, config: SchedulerConfig, entries: list[Entry], trace: Trace) -> None:
        """Times the scheduler of a run over `trace`, by repeating what it decided."""
        self.decisions[config.recipe] = _time_scheduler(config, entries, trace)

    def _config(self, policy: str, gamma: int, slots: int, cutoff: int | None = None) -> SchedulerConfig:
        """What a scheduler for such a run is set up with, by figures that do not matter here."""
        bits = 8 * self.subject.bench.dtype.itemsize
        context = 2 * self._tokens
        setting = resolve_setting(self._trace(self._tokens).header, context, bits=bits, slots=slots, gamma=gamma)
        return configure(find_recipe(policy), setting.cost, slots, gamma, context, cutoff)[0]

    def _run(
        self,
        policy: str,
        gamma: int,
        slots: int,
        *observers: Observer,
        tokens: int | None = None,
        cutoff: int | None = None,
    ) -> None:
        """Two requests under a policy, of `tokens` tokens together (None: as many as for any reading)."""
        bench = self.subject.bench
        shared = SharedSlots(bench.layout, slots, self.subject.distinct, bench.device)
        config = self._config(policy, gamma, slots, cutoff)
        bench.run(
            self._trace(tokens or self._tokens),
            config,
            shared,
            observers=observers,
            gbps=self.gbps,
            latency_ns=self.latency_ns,
        )

    def _trace(self, tokens: int) -> TraceInMemory:
        if tokens not in self._traces:
            self._traces[tokens] = exercise(self.subject.model, self.subject.draft, 2, tokens // 2)
        return self._traces[tokens]


class Kept:
    """Keeps all that happens."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def observe(self, event: Event, commands: tuple[Command, ...]) -> None:
        self.entries.append((event, commands))


def _time_scheduler(config: SchedulerConfig, entries: list[Entry], trace: Trace) -> Median:
    """What a fresh scheduler takes per layer for the events of a run."""
    known = "future" in find_recipe(config.recipe).needs
    layers = sum(type(event) is LayerDone for event, _ in entries)
    readings = []
    for _ in range(5):
        scheduler = Scheduler(config, Future(lambda: requests(trace), config.gamma) if known else None)
        start = perf_counter_ns()
        for event, _commands in entries:
            scheduler.handle(event)
        readings.append((perf_counter_ns() - start) / layers)
    return Median.of(readings)


def _busy(module: Any, hidden: int, slots: SharedSlots, dtype: torch.dtype) -> Callable[[], object]:
    """A computation of many experts, one after the other, to put beside transfers."""
    states = torch.full((4, hidden), 0.01, dtype=dtype, device=slots.device)

    @torch.inference_mode()
    def compute() -> None:
        for slot in range(min(slots.slots, 64)):
            expert_output(module, states, slots.views(slot))
        if slots.device.type == "cuda":
            torch.cuda.synchronize(slots.device)

    return compute
