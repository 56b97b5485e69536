"""Time in the engine: as it passes, or as the cost model says.

A clock carries out what is handed to link and CPU, and tells what happened while an effect of the step program took its
time.  In virtual time copies and computations are real too, but each is over when the simulator would say so: the same
events come in the same order at the same times, so the scheduler takes the same decisions.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from heapq import heappop, heappush
from typing import NamedTuple, Protocol

import torch

from engine.execution.cpu_worker import HostResult, HostWorker
from engine.memory.link import Completion, Link
from spmoe.drive.schedules import CpuSchedule, LinkSchedule
from spmoe.machine.cost import CostModel
from spmoe.policy.parts.runtime import NATIVE
from spmoe.policy.recipe import Told
from spmoe.state.commands import Submit
from spmoe.state.events import BatchArrived, BatchFailed, HostComputed


class Happening(NamedTuple):
    """Something that the scheduler has to be told, and what a failure was caused by."""

    event: BatchArrived | BatchFailed | HostComputed
    cause: Exception | None = None


class Clock(Protocol):
    """Methods named after what is over return what happened until then; whoever iterates tells the scheduler of each
    before asking for the next.  Afterwards `now` is when it was over."""

    measures: bool
    """Whether times are those that things really take."""
    now: int
    """Nanoseconds since the run began."""
    idle_ns: int
    """How long the device has had nothing to compute during waits, in all."""

    def submit(self, submit: Submit) -> None:
        """Hand a batch to the link."""

    def hand_over(self, layer: int, experts: Sequence[int], tokens: Sequence[int]) -> None:
        """These experts of `layer`, with as many tokens each, have been handed to the CPU."""

    def meanwhile(self) -> Iterable[Happening]:
        """Nothing is over: what happened while something is under way."""

    def between(self) -> Iterable[Happening]:
        """The time between two programs."""

    def drafted(self, first: int, end: int, read: int, forecasts: int) -> Iterable[Happening]:
        """The draft, which reads `read` tokens for the one that it proposes, has gone through its share for the layers
        `first` to `end` (exclusive), and has given forecasts for so many."""

    def attended(self, layer: int, tokens: int, context: int) -> Iterable[Happening]:
        """A layer's attention and router."""

    def computed(self, tokens: Sequence[int]) -> Iterable[Happening]:
        """Experts in slots, with as many tokens each."""

    def accepted(self, tokens: int) -> Iterable[Happening]:
        """What a pass puts out is chosen, of which `tokens` were verified (1 behind a prompt)."""

    def wait(self) -> Iterable[Happening]:
        """Wait for something to happen; at least one thing does."""


class RealClock:
    """Time as it passes: what happened is known when it is looked for."""

    measures = True

    def __init__(self, link: Link, host: HostWorker, start_ns: int, device: torch.device) -> None:
        """`start_ns` is what the times of link and host count from."""
        self._link = link
        self._host = host
        self._start_ns = start_ns
        self._device = device
        self.now = 0
        self.idle_ns = 0

    def submit(self, submit: Submit) -> None:
        self._link.submit(submit)

    def hand_over(self, layer: int, experts: Sequence[int], tokens: Sequence[int]) -> None:
        pass

    def meanwhile(self) -> Iterable[Happening]:
        if self._link.outstanding or self._host.outstanding:
            return self._happened()
        self._look()
        return ()

    def between(self) -> Iterable[Happening]:
        return self.meanwhile()

    def drafted(self, first: int, end: int, read: int, forecasts: int) -> Iterable[Happening]:
        return self.meanwhile()

    def attended(self, layer: int, tokens: int, context: int) -> Iterable[Happening]:
        return self.meanwhile()

    def computed(self, tokens: Sequence[int]) -> Iterable[Happening]:
        return self.meanwhile()

    def accepted(self, tokens: int) -> Iterable[Happening]:
        return self.meanwhile()

    def wait(self) -> Iterable[Happening]:
        if self._device.type == "cuda":
            yield self._poll_beside_device()
            return
        began = time.perf_counter_ns()
        if not self._host.outstanding:
            happening = self._arrival(self._link.wait())
        elif not self._link.outstanding:
            happening = self._result(self._host.wait())
        else:
            happening = self._poll()
        self.idle_ns += self._start_ns + self.now - began  # Until we knew, so that no wait ends later than now.
        yield happening

    def _happened(self) -> Iterator[Happening]:
        for completion in self._link.completions():
            yield self._arrival(completion)
        if self._host.outstanding:
            for result in self._host.finished():
                yield self._result(result)
        self._look()

    def _poll(self) -> Happening:
        """Whatever comes first from two sides."""
        while True:
            for result in self._host.finished(1):
                return self._result(result)
            try:
                return self._arrival(self._link.wait(1e-4))
            except TimeoutError:
                pass

    def _poll_beside_device(self) -> Happening:
        """The device may still be computing what was enqueued before: it is idle from when it is through."""
        if not (self._link.outstanding or self._host.outstanding):
            raise RuntimeError("nothing is under way to wait for")
        through = torch.cuda.Event()
        through.record(torch.cuda.current_stream(self._device))
        idle_from: int | None = None
        while True:
            if idle_from is None and through.query():
                idle_from = time.perf_counter_ns()
            happening: Happening | None = None
            for result in self._host.finished(1):
                happening = self._result(result)
            if happening is None and self._link.outstanding:
                with suppress(TimeoutError):
                    happening = self._arrival(self._link.wait(0))
            if happening is None:
                time.sleep(0)  # The workers need the interpreter, too.
            else:
                if idle_from is not None:
                    self.idle_ns += self._start_ns + self.now - idle_from
                return happening

    def _look(self) -> None:
        self.now = time.perf_counter_ns() - self._start_ns

    def _arrival(self, completion: Completion) -> Happening:
        self._look()
        if completion.error is not None:
            return Happening(BatchFailed(self.now, completion.batch), completion.error)
        return Happening(BatchArrived(self.now, completion.batch, completion.started_ns, completion.ended_ns))

    def _result(self, result: HostResult) -> Happening:
        self._look()
        return Happening(HostComputed(self.now, result.layer, result.expert, result.started_ns, result.ended_ns))


class VirtualClock:
    """The times of a cost model, for runs that decide as the simulator does."""

    measures = False

    def __init__(self, link: Link, host: HostWorker, cost: CostModel, policy: str, told: Told) -> None:
        """`policy` is the name of the recipe that decides, and `told` what it hears of routers."""
        self._link = link
        self._host = host
        self._cost = cost
        self._decision_ns = cost.decision_ns(policy)
        self._told = told
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
        self._debt = 0
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

    def meanwhile(self) -> Iterable[Happening]:
        return ()

    def between(self) -> Iterable[Happening]:
        return ()

    def drafted(self, first: int, end: int, read: int, forecasts: int) -> Iterable[Happening]:
        duration = self._cost.draft_layers_ns(first, end, read) + self._cost.forecast_ns(forecasts)
        self._drafting = True
        yield from self._pass(duration)
        self._drafting = False

    def attended(self, layer: int, tokens: int, context: int) -> Iterable[Happening]:
        entry = 0 if layer else self._cost.entry_ns()
        hearing = self._cost.hearing_ns(tokens, self._told.next_gate, self._told.gates)
        yield from self._look_behind(self._cost.layer_ns(tokens, context) + self._decision_ns + hearing + entry)

    def computed(self, tokens: Sequence[int]) -> Iterable[Happening]:
        return self._pass(sum(self._cost.expert_times(tokens)))

    def accepted(self, tokens: int) -> Iterable[Happening]:
        return self._look_behind(self._cost.round_ns(tokens))

    def wait(self) -> Iterable[Happening]:
        if not self._due:
            raise RuntimeError(f"nothing is left to happen at {self.now} ns, and the verifier still waits")
        began = self.now
        self.now = self._due[0][0]
        self.idle_ns += self.now - began
        self._debt = self._landing_ns()
        self._waited = True
        yield self._next()

    def _expect(self, rank: int, event: BatchArrived | HostComputed) -> None:
        heappush(self._due, (event.time, rank, self._number, event))
        self._number += 1

    def _pass(self, duration: int) -> Iterator[Happening]:
        end = self.now + duration + self._debt
        self._debt = 0
        while self._due and self._due[0][0] <= end:
            end += self._landing_ns()
            self.now = self._due[0][0]
            yield self._next()
        self.now = end

    def _look_behind(self, duration: int) -> Iterator[Happening]:
        """The same where a driver that is blind learns only at the end of what happened, and while it does so of what
        happens then."""
        if self._waited:
            duration, self._waited = duration + self._cost.cold_ns(), False
        if not self._cost.blind:
            yield from self._pass(duration)
            return
        self.now += duration + self._debt
        self._debt = 0
        while self._due and self._due[0][0] <= self.now:
            known, cost = self.now, 0
            while self._due and self._due[0][0] <= known:
                cost += self._landing_ns()
                yield self._next()
            self.now += cost

    def _landing_ns(self) -> int:
        """What it costs the thread that drives the run to hear of what happens next."""
        event = self._due[0][3]
        if isinstance(event, HostComputed):
            return self._cost.result_ns()
        loads = self._loads.pop(event.batch)
        return self._cost.draft_landing_ns(loads) if self._drafting else self._cost.landing_ns(loads)

    def _next(self) -> Happening:
        """What happens next, known now, once it has really happened too."""
        event = heappop(self._due)[3]._replace(time=self.now)
        if isinstance(event, HostComputed):
            result = self._host.wait()
            if (result.layer, result.expert) != (event.layer, event.expert):
                raise RuntimeError(f"the CPU computed {result}, and not what was due: {event}")
            return Happening(event)
        batch, _, _, error = self._link.wait()
        if batch != event.batch:
            raise RuntimeError(f"batch {batch} arrived, and not what was due: {event}")
        return Happening(event) if error is None else Happening(BatchFailed(event.time, event.batch), error)
