"""The link between host memory and GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import simpy
from simpy.events import URGENT, EventPriority

from spmoe.machine.cost import CostModel
from spmoe.policy.planner import copies
from spmoe.policy.runtime import Runtime
from spmoe.state.commands import Purpose, Submit

ARRIVALS: Final = EventPriority(URGENT - 1)
"""At equal times what arrives is known before what was computed, wherever that was."""


class Arrival(simpy.Event):
    """The end of a transfer: `batch` is there, after the link moved it from `started` to `ended` (ns)."""

    def __init__(self, env: simpy.Environment, batch: Submit, started: int, ended: int) -> None:
        super().__init__(env)
        self._ok = True
        self._value = None
        self.batch = batch
        self.started = started
        self.ended = ended
        env.schedule(self, ARRIVALS, ended - env.now)


class Link:
    """Moves one batch after the other, in order of submission.

    The latency of a submission runs while earlier batches still move, so with two submitted at a time it is hidden.
    """

    def __init__(
        self, env: simpy.Environment, cost: CostModel, runtime: Runtime, arrived: Callable[[Any], None]
    ) -> None:
        """`arrived` is called with an `Arrival` whenever a batch is all there."""
        link = cost.hardware.link
        transfer_ns = cost.transfer_ns(cost.geometry.expert_bytes(cost.bits))
        self._env = env
        self._latency_ns = link.latency_ns
        self._copy_ns = link.copy_ns
        self._pieces = runtime.copies_per_load
        self._load_ns = transfer_ns + (runtime.copies_per_load - 1) * link.copy_ns
        self._write_back_ns = transfer_ns if runtime.write_back else 0
        self._submission_ns = runtime.submission_ns
        self._arrived = arrived
        self._free_at = 0
        self.prefetched_at = 0
        """When all prefetches submitted so far are there."""

    def submit(self, batch: Submit, now: int) -> None:
        """Put a batch on the link at `now`, which may be ahead of the event queue."""
        started = max(now + self._latency_ns, self._free_at)
        loads = batch.loads
        duration = self._submission_ns + len(loads) * self._load_ns
        if len(loads) > 1:
            # Only what travels whole can merge with its neighbour.
            runs = copies(loads) if self._pieces == 1 else len(loads)
            duration += (runs - 1) * self._copy_ns
        if self._write_back_ns:
            duration += sum(load.evicted is not None for load in loads) * self._write_back_ns
        self._free_at = started + duration
        if batch.purpose is Purpose.PREFETCH:
            self.prefetched_at = self._free_at
        Arrival(self._env, batch, started, self._free_at).callbacks.append(self._arrived)

    def reserve(self, now: int, duration: int) -> int:
        """Keep the link from moving anything for `duration`, behind what is submitted; returns from when on."""
        started = max(now, self._free_at)
        self._free_at = started + duration
        return started
