"""The link between host memory and GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import simpy
from simpy.events import URGENT

from spmoe.machine.cost import CostModel
from spmoe.policy.planner import copies
from spmoe.state.commands import Submit


class Arrival(simpy.Event):
    """The end of a transfer: `batch` is there, after the link moved it from `started` to `ended` (ns).

    Urgent: at equal times what arrives is known before what was computed.
    """

    def __init__(self, env: simpy.Environment, batch: Submit, started: int, ended: int) -> None:
        super().__init__(env)
        self._ok = True
        self._value = None
        self.batch = batch
        self.started = started
        self.ended = ended
        env.schedule(self, URGENT, ended - env.now)


class Link:
    """Moves one batch after the other, in order of submission.

    The latency of a submission runs while earlier batches still move, so with two submitted at a time it is hidden.
    """

    def __init__(self, env: simpy.Environment, cost: CostModel, arrived: Callable[[Any], None]) -> None:
        """`arrived` is called with an `Arrival` whenever a batch is all there."""
        self._env = env
        self._latency_ns = cost.hardware.link.latency_ns
        self._copy_ns = cost.hardware.link.copy_ns
        self._load_ns = cost.transfer_ns(cost.geometry.expert_bytes(cost.bits))
        self._arrived = arrived
        self._free_at = 0

    def submit(self, batch: Submit, now: int) -> None:
        """Put a batch on the link at `now`, which may be ahead of the event queue."""
        started = max(now + self._latency_ns, self._free_at)
        loads = batch.loads
        duration = len(loads) * self._load_ns
        if len(loads) > 1:
            duration += (copies(loads) - 1) * self._copy_ns
        self._free_at = started + duration
        Arrival(self._env, batch, started, self._free_at).callbacks.append(self._arrived)
