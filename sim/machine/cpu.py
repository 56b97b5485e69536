"""The host's CPU, which may compute experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import simpy
from simpy.events import URGENT

from spmoe.drive.schedules import CpuSchedule
from spmoe.machine.cost import CostModel

RESULTS: Final = URGENT
"""At equal times results of the CPU are known after what arrived over the link, and before what the GPU computed."""


class Result(simpy.Event):
    """An expert of `layer` is computed by the CPU, which worked on it from `started` to `ended` (ns)."""

    def __init__(self, env: simpy.Environment, layer: int, expert: int, started: int, ended: int) -> None:
        super().__init__(env)
        self._ok = True
        self._value = None
        self.layer = layer
        self.expert = expert
        self.started = started
        self.ended = self.known = ended
        env.schedule(self, RESULTS, ended - env.now)


class Cpu:
    """Computes experts at the times of a `CpuSchedule`."""

    def __init__(self, env: simpy.Environment, cost: CostModel, computed: Callable[[Any], None]) -> None:
        """`computed` is called with a `Result` whenever one is there."""
        self._env = env
        self._schedule = CpuSchedule(cost)
        self._computed = computed

    def compute(self, layer: int, experts: tuple[int, ...], tokens: tuple[int, ...], now: int) -> None:
        """Compute these experts for so many tokens each, handed over at `now`."""
        times = self._schedule.compute(tokens, now)
        for expert, (started, ended) in zip(experts, times, strict=True):
            Result(self._env, layer, expert, started, ended).callbacks.append(self._computed)
