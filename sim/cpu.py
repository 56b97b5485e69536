"""The host's CPU, which may compute experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import simpy
from simpy.events import URGENT

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
        self.ended = ended
        env.schedule(self, RESULTS, ended - env.now)


class Cpu:
    """Computes one expert after the other with all cores, in the order asked for.

    Hidden states go there and come back in copies that are too small for more than their latency to count; both count
    before the first expert.
    """

    def __init__(self, env: simpy.Environment, cost: CostModel, computed: Callable[[Any], None]) -> None:
        """`computed` is called with a `Result` whenever one is there."""
        self._env = env
        self._cost = cost
        self._handover_ns = 2 * cost.hardware.link.latency_ns
        self._computed = computed
        self._free_at = 0

    def compute(self, layer: int, experts: tuple[int, ...], tokens: tuple[int, ...], now: int) -> None:
        """Compute these experts for so many tokens each, handed over at `now`."""
        started = max(now + self._handover_ns, self._free_at)
        for expert, count in zip(experts, tokens, strict=True):
            ended = started + self._cost.host_expert_ns(count)
            Result(self._env, layer, expert, started, ended).callbacks.append(self._computed)
            started = ended
        self._free_at = started
