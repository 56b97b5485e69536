"""When what is handed to the link and to the host's CPU begins and ends, by the cost model.

Both work on one thing after the other.  Times are whole nanoseconds.  What ends at the same time becomes known in this
order: what arrived over the link, what the CPU computed, what the GPU computed; within each, as it was handed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from spmoe.machine.cost import CostModel
from spmoe.policy.parts.io_plan import copies
from spmoe.policy.parts.runtime import Runtime
from spmoe.state.commands import Purpose, Submit

_PREFETCH: Final = Purpose.PREFETCH


class LinkSchedule:
    """The link between host memory and GPU: one batch after the other, in order of submission.

    The latency of a submission runs while earlier batches still move, so with two submitted at a time it is hidden.
    """

    def __init__(self, cost: CostModel, runtime: Runtime) -> None:
        """An idle link; `runtime` says in how many pieces experts travel, and what a submission costs besides."""
        link = cost.hardware.link
        transfer_ns = cost.transfer_ns(cost.geometry.expert_bytes(cost.bits))
        self._latency_ns = link.latency_ns
        self._copy_ns = link.copy_ns
        self._pieces = runtime.copies_per_load
        self._load_ns = transfer_ns + (runtime.copies_per_load - 1) * link.copy_ns
        self._write_back_ns = transfer_ns if runtime.write_back else 0
        self._submission_ns = runtime.submission_ns
        self._free_at = 0
        self.prefetched_at = 0
        """When all prefetches submitted so far are there."""

    def submit(self, batch: Submit, now: int) -> tuple[int, int]:
        """Put a batch on the link at `now`; returns from when to when the link works on it."""
        started = max(now + self._latency_ns, self._free_at)
        loads = batch.loads
        duration = self._submission_ns + len(loads) * self._load_ns
        if len(loads) > 1:
            # Only what travels whole can merge with its neighbour.
            runs = copies(loads) if self._pieces == 1 else len(loads)
            duration += (runs - 1) * self._copy_ns
        if self._write_back_ns:
            duration += sum(load.evicted is not None for load in loads) * self._write_back_ns
        self._free_at = ended = started + duration
        if batch.purpose is _PREFETCH:
            self.prefetched_at = ended
        return started, ended

    def reserve(self, now: int, duration: int) -> int:
        """Keep the link from moving anything for `duration`, behind what is submitted; returns from when on."""
        started = max(now, self._free_at)
        self._free_at = started + duration
        return started


class CpuSchedule:
    """The host's CPU: one expert after the other with all cores, in the order asked for.

    What handing over takes counts before the first expert.
    """

    def __init__(self, cost: CostModel) -> None:
        """An idle CPU."""
        self._cost = cost
        self._handover_ns = cost.handover_ns()
        self._free_at = 0

    def compute(self, tokens: Sequence[int], now: int) -> list[tuple[int, int]]:
        """Have it compute experts for so many tokens each, handed over at `now`; returns from when to when, for each.

        Raises InputError where the hardware profile has no CPU.
        """
        times = []
        started = max(now + self._handover_ns, self._free_at)
        for count in tokens:
            ended = started + self._cost.host_expert_ns(count)
            times.append((started, ended))
            started = ended
        self._free_at = started
        return times
