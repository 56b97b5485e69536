"""Carries out the step program in simulated time: effects become SimPy time-outs, submissions go to the link."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any

import simpy

from sim.machine.cpu import Cpu, Result
from sim.machine.link import Arrival, Link
from sim.machine.program import Popularity, TraceProgram
from spmoe.drive.dispatcher import Dispatcher, Observer
from spmoe.drive.step import (
    Accept,
    Attention,
    Compute,
    ComputeLanded,
    DraftLayers,
    DraftToken,
    Effect,
    HostCompute,
    Outcome,
    Shorten,
)
from spmoe.machine.cost import CostModel
from spmoe.policy.parts.runtime import NATIVE, Runtime
from spmoe.scheduler.scheduler import Scheduler
from spmoe.state.commands import Command
from spmoe.state.events import BatchArrived, Event, HostComputed, LayerReached
from spmoe.trace.windows import Request


class Deadlock(RuntimeError):
    """The run cannot go on: something waits for what never comes.  A bug of the scheduler, not of the user."""


class Driver:
    """Replays the requests of a trace through a scheduler on a simulated machine.

    All requests form one program.  It is advanced from the call-backs of SimPy events rather than as a SimPy process:
    an arrival that ends a wait carries on at once, with no event of its own.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        cost: CostModel,
        observers: tuple[Observer, ...] = (),
        popularity: Popularity | None = None,
        progress: Callable[[int], None] | None = None,
        runtime: Runtime = NATIVE,
    ) -> None:
        """`progress` is called with the number of tokens that each round puts out."""
        self._cost = cost
        self._runtime = runtime
        self._env = simpy.Environment()
        self._link = Link(self._env, cost, runtime, self._completed)
        self._cpu = Cpu(self._env, cost, self._completed)
        if runtime.prefetch_blocks:
            observers = (*observers, self._block)
        self._dispatcher = Dispatcher(scheduler.handle, scheduler.config.experts, self._link.submit, observers)
        self._trace = TraceProgram(scheduler, cost, popularity, progress)
        self._program: Generator[Effect, Outcome, None]
        self._running = True
        self.now = 0
        """Where the program stands, in ns; it may be ahead of the event queue while nothing else can happen."""
        self._drafting = False
        """Whether the effect under way is one of the draft's."""
        self._unpolled = False
        """Whether arrivals become known only when the effect under way is over."""
        self._unknown: list[Arrival | Result] = []
        """What has arrived since it began."""
        self._waited = False
        """Whether the verifier had to wait in the current layer."""
        self._uncharged_ns = 0
        """What arrivals have cost the thread that drives the run, and the effect under way was not charged with yet."""
        self._on_cpu_later: tuple[int, ...] = ()
        """Experts that the CPU will compute when the GPU is through."""
        self._awaited: ComputeLanded | None = None
        """The effect that waits for something to land."""
        self._blocked_until = 0
        """Until when experts may not compute."""

    def run(self, requests: Iterator[Request]) -> None:
        """Replay them all.

        Raises:
            InputError: the trace turns out bad while it is read.
            Deadlock: the scheduler never answered a wait.
        """
        self._program = self._trace.run(requests, self._dispatcher.dispatch)
        self._advance(None)  # The first send of a generator starts it.
        self._env.run()
        if self._running:
            raise Deadlock(f"nothing is left to happen at {self.now} ns, and the verifier still waits")

    def _advance(self, outcome: Outcome | None) -> None:
        """Resume the program and carry out its effects, until one is over only after something else has happened."""
        send, carry_out = self._program.send, self._carry_out
        try:
            while True:
                outcome = carry_out(send(outcome))  # type: ignore[arg-type]
                if outcome is None:
                    return
        except StopIteration:
            self._running = False

    def _carry_out(self, effect: Effect) -> Outcome | None:
        """From effect to outcome; None where the outcome comes later."""
        this = self._trace.current  # Types compared by identity: this is done some hundred times a round.
        if type(effect) is ComputeLanded:
            self._drafting = False  # No more, where the draft went on past the window.
            return self._compute_landed(effect)
        if type(effect) is Attention:
            return self._verify(*this.attention(effect.layer))
        if type(effect) is Compute:
            return self._occupy(this.experts_ns(effect.experts), None, self._blocked_until)
        if type(effect) is DraftLayers:
            self._drafting = True
            return self._occupy(*self._trace.round.draft_layers(*effect))
        if type(effect) is DraftToken:
            self._drafting = True
            return self._occupy(*self._trace.round.draft_token(*effect))
        if type(effect) is HostCompute:
            return self._compute_on_cpu(effect.experts)
        if type(effect) is Accept:
            return self._verify(*this.accept())
        self._drafting = False
        if type(effect) is Shorten:
            self._trace.round.shorten(effect.drafted)
            return self._occupy(0, None)
        return self._occupy(0, self._trace.round.stands)

    def _verify(self, duration: int, value: Any) -> Outcome | None:
        """An effect of the verifier, at whose end a driver that polls learns of what has arrived meanwhile."""
        self._drafting = False
        if self._waited:
            duration, self._waited = duration + self._cost.cold_ns(), False
        self._unpolled = self._cost.blind
        outcome = self._occupy(duration, value)
        if outcome is not None:
            self._unpolled = False
        return outcome

    def _occupy(self, duration: int, value: Any, earliest: int = 0) -> Outcome | None:
        """Let an effect take its time, from `earliest` on; its outcome, or None where that comes later."""
        env, began = self._env, self.now
        if earliest > began:
            began = earliest
        if duration and not self._runtime.overlap:
            began = self._link.reserve(began, duration)
        end = began + duration + self._uncharged_ns
        self._uncharged_ns = 0
        if env.peek() > end:
            # Nothing else can happen before the effect is over: no need to trouble the event queue.
            self.now = end
            return began, end, value
        self._until(end, began, value)
        return None

    def _until(self, end: int, began: int, value: Any) -> None:
        """The effect under way is over at `end`, unless something lands before."""
        done = self._env.timeout(end - int(self._env.now), (began, value))
        done.callbacks.append(self._effect_over)

    def _effect_over(self, done: simpy.Event) -> None:
        self.now = int(self._env.now)
        underway: tuple[int, Any] = done.value  # type: ignore[assignment]
        began, value = underway
        unknown, self._unknown = self._unknown, []
        for each in unknown:
            self._deliver(each, self.now)
        if self._uncharged_ns:
            end, self._uncharged_ns = self.now + self._uncharged_ns, 0
            self._until(end, began, value)
            return
        self._unpolled = False
        self._advance((began, self.now, value))

    def _compute_on_cpu(self, experts: tuple[int, ...]) -> Outcome:
        """Hand experts to the CPU; where it does not work beside the GPU, it begins later."""
        self._dispatcher.assign_to_cpu(experts)
        if self._runtime.host_overlap:
            self._hand_over(experts)
        else:
            self._on_cpu_later = experts
        return self.now, self.now, None

    def _hand_over(self, experts: tuple[int, ...]) -> None:
        self._cpu.compute(self._dispatcher.layer, experts, self._trace.current.tokens_of(experts), self.now)

    def _compute_landed(self, effect: ComputeLanded) -> Outcome | None:
        """Compute what has landed, or leave the effect to whatever lands next."""
        landed, computed = self._dispatcher.take(effect.missing)
        if landed or computed:
            self._awaited = None
            duration = self._trace.current.experts_ns(landed)
            return self._occupy(duration, (*landed, *computed), self._blocked_until)
        if self._on_cpu_later and effect.missing <= set(self._on_cpu_later):
            self._hand_over(self._on_cpu_later)
            self._on_cpu_later = ()
        self._awaited = effect
        return None

    def _completed(self, what: Arrival | Result) -> None:
        """Link or CPU completed something: an effect that waits for it goes on."""
        if self._unpolled:
            self._unknown.append(what)
            return
        if self._awaited is None:
            self._deliver(what, what.known)
            return
        self._waited = True
        self._uncharged_ns = 0  # What landed before cost time in which nothing could be computed anyway.
        self._deliver(what, what.known)
        self.now = what.known
        outcome = self._compute_landed(self._awaited)
        if outcome is not None:
            self._advance(outcome)

    def _deliver(self, what: Arrival | Result, now: int) -> None:
        """The thread that drives the run learns of something that landed, which costs it time."""
        cost = self._cost
        if isinstance(what, Arrival):
            batch = what.batch
            self._dispatcher.deliver(BatchArrived(now, batch.batch, what.started, what.ended))
            loads = len(batch.loads)
            self._uncharged_ns += cost.draft_landing_ns(loads) if self._drafting else cost.landing_ns(loads)
        else:
            self._dispatcher.deliver(HostComputed(now, what.layer, what.expert, what.started, what.ended))
            self._uncharged_ns += cost.result_ns()

    def _block(self, event: Event, _commands: tuple[Command, ...]) -> None:
        """In a runtime whose prefetches block, a layer's experts wait for those submitted before it was reached."""
        if type(event) is LayerReached:
            self._blocked_until = self._link.prefetched_at
