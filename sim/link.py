"""The link between host memory and GPU."""

from __future__ import annotations

from collections.abc import Callable

import simpy
from simpy.events import URGENT

from spmoe.machine.cost import CostModel
from spmoe.policy.planner import copies
from spmoe.state.commands import Submit

Arrived = Callable[[Submit, int, int], None]
"""Called when a batch is all there: with it, the time at which the link began to move it, and the time now (ns)."""


class _Arrival(simpy.Event):
    """The end of a transfer.  Urgent: at equal times what arrives is known before what was computed."""

    def __init__(self, env: simpy.Environment, now: int, batch: Submit, started: int, ended: int) -> None:
        super().__init__(env)
        self._ok = True
        self._value = None
        self.batch = batch
        self.started = started
        self.ended = ended
        env.schedule(self, URGENT, ended - now)


class Link:
    """Moves one batch after the other, in order of submission.

    The latency of a submission runs while earlier batches still move, so with two submitted at a time it is hidden.
    """

    def __init__(self, env: simpy.Environment, cost: CostModel, arrived: Arrived) -> None:
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
        arrival = _Arrival(self._env, int(self._env.now), batch, started, self._free_at)
        arrival.callbacks.append(self._over)

    def _over(self, arrival: simpy.Event) -> None:
        assert type(arrival) is _Arrival
        self._arrived(arrival.batch, arrival.started, arrival.ended)
