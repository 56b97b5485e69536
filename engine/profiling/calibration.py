"""Rounds of the engine that follow a made-up trace, timed in their parts.

What bookkeeping, waking up and everything else in between takes is in them, as it is in a real run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final, NamedTuple

import torch

from engine.memory.slot_buffer import SharedSlots
from engine.moe.eager import expert_output
from engine.moe.layers import find_moe_layers
from engine.profiling.kernel_bench import thread_counts, time_experts, time_host_experts
from engine.profiling.link_bench import LinkTimes, time_link
from engine.profiling.step_timings import StepTimings
from engine.profiling.synthetic_trace import exercise
from engine.profiling.trace_runner import Bench
from spmoe.drive.dispatcher import Observer
from spmoe.policy.registry import recipe as find_recipe
from spmoe.run.options import RunOptions
from spmoe.run.setting import resolve_setting
from spmoe.scheduler.config import SchedulerConfig, configure
from spmoe.trace.schema import DraftShape, ModelShape, TraceInMemory

GAMMAS: Final = (4, 0, 1, 2, 8, 16)
GAMMA: Final = 4
TOKENS: Final = 32
FEW: Final = 4
"""What is slow gets a part of the tokens, one of so many."""
RESIDENT: Final = "on-demand.lru"
FORECASTING: Final = "spmoe.paper"
READBACK_GATE: Final = "next-gate"
READBACK_WEIGHTS: Final = "moe-infinity.paper.spec"
ON_HOST: Final = "llamacpp.cpu-moe"


class Subject(NamedTuple):
    """What is timed: models on a bench, what a trace says of them, and memory for `distinct` experts on the device."""

    bench: Bench
    model: ModelShape
    draft: DraftShape
    distinct: int


class Calibration:
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
        self.resident = StepTimings()
        """Everything is resident, under windows of all lengths."""
        self.forecasting = StepTimings()
        """The draft makes forecasts, and nothing arrives."""
        self.prefetching = StepTimings()
        """Experts arrive while the draft runs."""
        self.readback_gate = StepTimings()
        """Everything is resident, and the policy hears what the next layer's gate would say."""
        self.readback_weights = StepTimings()
        """The same of the gates' weights."""
        self.landing = StepTimings()
        """Experts arrive where they are needed."""
        self.on_host = StepTimings()
        """The CPU computes all experts."""
        self.decisions: dict[str, list[float]] = {}
        """What schedulers took per layer, run by run, by policy."""
        self.gbps = gbps
        self.latency_ns = latency_ns
        self._keys = bench.shape.layers * bench.shape.experts
        self._traces: dict[int, TraceInMemory] = {}
        self._run(RESIDENT, GAMMA, self._keys)  # Warms up.

    @property
    def bits(self) -> int:
        """Per weight."""
        return 8 * int(self.subject.bench.dtype.itemsize)

    def turn(self) -> None:
        """Takes readings of everything once more."""
        for step in self.steps():
            step()

    def steps(self) -> list[Callable[[], None]]:
        """What a turn consists of, for who does something else in between."""
        keys, layers = self._keys, self.subject.bench.shape.layers
        few = max(2, self._tokens // FEW)
        found: list[Callable[[], None]] = [
            partial(self._take, self.resident, RESIDENT, gamma, keys) for gamma in GAMMAS
        ]
        for gamma in (GAMMA, 0):
            found += [
                partial(self._take, self.readback_gate, READBACK_GATE, gamma, keys),
                partial(self._take, self.readback_weights, READBACK_WEIGHTS, gamma, keys),
                partial(self._take, self.landing, RESIDENT, gamma, keys // 2),
            ]
        # One expert is missing: else nobody would ask for forecasts.
        found += [
            partial(self._take, self.forecasting, FORECASTING, GAMMA, keys - 1, cutoff=layers),
            partial(self._take, self.prefetching, FORECASTING, GAMMA, keys // 2, cutoff=layers),
            partial(self._take, self.on_host, ON_HOST, GAMMA, keys // 2, tokens=few),
        ]
        return found

    def run_decisions(self, policies: Iterable[str]) -> None:
        """Times the schedulers of these policies."""
        for policy in policies:
            self.decided(policy, self._run(policy, GAMMA, self._keys // 2, tokens=max(2, self._tokens // FEW)))

    def decided(self, policy: str, ns: float) -> None:
        """In a run the scheduler of a policy took so long per layer, without the events of arrivals."""
        self.decisions.setdefault(policy, []).append(ns)

    def _take(self, times: StepTimings, policy: str, gamma: int, slots: int, **options: Any) -> None:
        """Puts the readings of a run with the others."""
        times.deciding[gamma].append(self._run(policy, gamma, slots, times.observe, **options))

    def _config(self, policy: str, gamma: int, slots: int, cutoff: int | None = None) -> SchedulerConfig:
        """What a scheduler for such a run is set up with, by figures that do not matter here."""
        context = 2 * self._tokens
        setting = resolve_setting(
            self._trace(self._tokens).header, context, RunOptions(bits=self.bits, slots=slots, gamma=gamma)
        )
        return configure(find_recipe(policy), setting.cost, slots, gamma, context, cutoff)[0]

    def _run(
        self,
        policy: str,
        gamma: int,
        slots: int,
        *observers: Observer,
        tokens: int | None = None,
        cutoff: int | None = None,
    ) -> float:
        """Two requests under a policy, of `tokens` tokens together (None: as many as for any reading); returns what its
        scheduler took per layer."""
        bench = self.subject.bench
        shared = SharedSlots(bench.layout, slots, self.subject.distinct, bench.device)
        config = self._config(policy, gamma, slots, cutoff)
        return bench.run(
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
