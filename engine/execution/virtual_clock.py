"""Time in the engine as a cost model has it.

Copies and computations are real, but each is over when the simulator would say so: the same events come in the same
order at the same times, so the scheduler takes the same decisions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from heapq import heappop, heappush

from engine.execution.clock import Notice
from engine.execution.cpu_worker import HostWorker
from engine.memory.link import Link
from spmoe.drive.schedules import CpuSchedule, LinkSchedule
from spmoe.machine.cost import CostModel
from spmoe.policy.parts.runtime import NATIVE
from spmoe.policy.recipe import RouterSignals
from spmoe.state.commands import Submit
from spmoe.state.events import BatchArrived, BatchFailed, HostComputed


class VirtualClock:
    """The times of a cost model, for runs that decide as the simulator does."""

    measures = False

    def __init__(self, link: Link, host: HostWorker, cost: CostModel, policy: str, signals: RouterSignals) -> None:
        """`policy` is the name of the recipe that decides, `signals` what it learns from routers besides routing."""
        self._link = link
        self._host = host
        self._cost = cost
        self._decision_ns = cost.decision_ns(policy)
        self._signals = signals
        self._link_times = LinkSchedule(cost, NATIVE)
        self._cpu_times = CpuSchedule(cost)
        self._due: list[tuple[int, int, int, BatchArrived | HostComputed]] = []
        """A heap of (time, rank among equals, number, event): arrivals before the CPU's results."""
        self._number = 0
        self._loads: dict[int, int] = {}
        """How many are in each batch under way."""
        self._drafting = False
        self._waited = False
        """Whether there was a wait in the current layer."""
        self._uncharged_ns = 0
        """What the arrival that ended a wait adds to the effect that follows."""
        self.now = 0
        self.idle_ns = 0

    def submit(self, submit: Submit) -> None:
        self._link.submit(submit)
        started, ended = self._link_times.submit(submit, self.now)
        self._loads[submit.batch] = len(submit.loads)
        self._expect(0, BatchArrived(ended + self._cost.notice_ns(), submit.batch, started, ended))

    def hand_over(self, layer: int, experts: Sequence[int], tokens: Sequence[int]) -> None:
        times = self._cpu_times.compute(tokens, self.now)
        for expert, (started, ended) in zip(experts, times, strict=True):
            self._expect(1, HostComputed(ended, layer, expert, started, ended))

    def poll(self) -> Iterable[Notice]:
        return ()

    def drafted(self, first: int, end: int, read: int, forecasts: int) -> Iterable[Notice]:
        duration = self._cost.draft_layers_ns(first, end, read) + self._cost.forecast_ns(forecasts)
        self._drafting = True
        yield from self._pass(duration)
        self._drafting = False

    def attended(self, layer: int, tokens: int, context: int) -> Iterable[Notice]:
        entry = 0 if layer else self._cost.entry_ns()
        readback = self._cost.gate_readback_ns(tokens, self._signals.next_gate, self._signals.gates)
        yield from self._polled_at_end(self._cost.layer_ns(tokens, context) + self._decision_ns + readback + entry)

    def computed(self, tokens: Sequence[int]) -> Iterable[Notice]:
        return self._pass(sum(self._cost.expert_times(tokens)))

    def accepted(self, tokens: int) -> Iterable[Notice]:
        return self._polled_at_end(self._cost.round_ns(tokens))

    def wait(self) -> Iterable[Notice]:
        if not self._due:
            raise RuntimeError(f"nothing is left to happen at {self.now} ns, and the verifier still waits")
        began = self.now
        self.now = self._due[0][0]
        self.idle_ns += self.now - began
        self._uncharged_ns = self._landing_ns()
        self._waited = True
        yield self._next()

    def _expect(self, rank: int, event: BatchArrived | HostComputed) -> None:
        heappush(self._due, (event.time, rank, self._number, event))
        self._number += 1

    def _pass(self, duration: int) -> Iterator[Notice]:
        end = self.now + duration + self._uncharged_ns
        self._uncharged_ns = 0
        while self._due and self._due[0][0] <= end:
            end += self._landing_ns()
            self.now = self._due[0][0]
            yield self._next()
        self.now = end

    def _polled_at_end(self, duration: int) -> Iterator[Notice]:
        """As `_pass`; but a driver that polls only at the end of the effect learns then of what has happened, and
        meanwhile of what happens next."""
        if self._waited:
            duration, self._waited = duration + self._cost.cold_ns(), False
        if not self._cost.blind:
            yield from self._pass(duration)
            return
        self.now += duration + self._uncharged_ns
        self._uncharged_ns = 0
        while self._due and self._due[0][0] <= self.now:
            known, cost = self.now, 0
            while self._due and self._due[0][0] <= known:
                cost += self._landing_ns()
                yield self._next()
            self.now += cost

    def _landing_ns(self) -> int:
        """What learning of the next event costs the thread that drives the run."""
        event = self._due[0][3]
        if isinstance(event, HostComputed):
            return self._cost.result_ns()
        loads = self._loads.pop(event.batch)
        return self._cost.draft_landing_ns(loads) if self._drafting else self._cost.landing_ns(loads)

    def _next(self) -> Notice:
        """What happens next, known now, once it has really happened too."""
        event = heappop(self._due)[3]._replace(time=self.now)
        if isinstance(event, HostComputed):
            result = self._host.wait()
            if (result.layer, result.expert) != (event.layer, event.expert):
                raise RuntimeError(f"the CPU computed {result}, and not what was due: {event}")
            return Notice(event)
        batch, _, _, error = self._link.wait()
        if batch != event.batch:
            raise RuntimeError(f"batch {batch} arrived, and not what was due: {event}")
        return Notice(event) if error is None else Notice(BatchFailed(event.time, event.batch), error)
