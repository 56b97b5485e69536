"""Interprets the step program in simulated time: effects become SimPy time-outs, submissions go to the link."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any, Final

import simpy

from sim.machine.cpu import Cpu, Result
from sim.machine.link import Arrival, Link
from sim.machine.passes import Pass, PromptPass, StepPass
from spmoe.drive.draft_position import Unread
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
    prefill,
    step,
)
from spmoe.machine.cost import CostModel
from spmoe.policy.parts.runtime import NATIVE, Runtime
from spmoe.scheduler.scheduler import Scheduler
from spmoe.state.commands import Command, Reply, Submit
from spmoe.state.events import BatchArrived, Event, HostComputed, LayerReached, RequestBegun
from spmoe.trace.windows import Request

Observer = Callable[[Event, tuple[Command, ...]], None]
"""Sees every event with the scheduler's answer: metrics, logs and timelines are such."""

Popularity = Callable[[int], tuple[int, ...]]
"""For a request, all keys by how much they are used: by other requests, or over the whole trace."""


_DRAFTING: Final = frozenset({DraftLayers, DraftToken})
_UNSEEING: Final = frozenset({Attention, Accept})
"""Effects during which a driver that is blind learns of nothing."""


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
        """`progress` is told the number of tokens that each step puts out."""
        self._scheduler = scheduler
        self._cost = cost
        self._observers = observers
        self._popularity = popularity
        self._progress = progress
        self._env = simpy.Environment()
        self.now = 0
        """Where the program stands, in ns; it may be ahead of the event queue while nothing else can happen."""
        self._runtime = runtime
        self._link = Link(self._env, cost, self._runtime, self._happened)
        self._cpu = Cpu(self._env, cost, self._happened)
        # Asked with every effect, hence at hand.
        self._overlap = self._runtime.overlap
        self._prefetch_blocks = self._runtime.prefetch_blocks
        self._drafting = False
        """Whether the effect under way is one of the draft's."""
        self._unseeing = _UNSEEING if cost.blind else frozenset[type[Effect]]()
        self._blind = False
        """Whether what happens is known only when the effect under way is over."""
        self._unseen: list[Arrival | Result] = []
        """What has happened since."""
        self._waited = False
        """Whether the driver had to wait in the current layer."""
        self._debt = 0
        """What they and results of the CPU have cost the thread that drives the run, and the effect under way was not
        charged with yet."""
        self._layer = 0
        """The layer reached last."""
        self._pass: Pass
        self._experts = scheduler.config.experts
        self._running = True
        self._landed: list[int] = []
        """Keys that arrived since the current layer was reached and did not compute yet."""
        self._results: list[int] = []
        """Experts of the current layer that the CPU has computed since."""
        self._on_host: frozenset[int] = frozenset()
        """Keys of the current layer that the CPU computes; their weights may arrive all the same."""
        self._for_host: tuple[int, ...] = ()
        """Experts that the CPU will compute when the GPU is through."""
        self._awaited: ComputeLanded | None = None
        """The effect that waits for something to land."""
        self._blocked_until = 0
        """Until when experts may not compute."""
        self._told = scheduler.recipe.told
        self._feeds_prefill = "future" in scheduler.recipe.needs

    def run(self, requests: Iterator[Request]) -> None:
        """Replay them all.

        Raises:
            InputError: the trace turns out bad while it is read.
            Deadlock: the scheduler never answered a wait.
        """
        self._program = self._programs(requests)
        self._carry_out(None)  # The first send of a generator starts it.
        self._env.run()
        if self._running:
            raise Deadlock(f"nothing is left to happen at {self.now} ns, and the verifier still waits")

    def _programs(self, requests: Iterator[Request]) -> Generator[Effect, Outcome, None]:
        """The whole run as one program: prefill and steps of one request after the other."""
        config = self._scheduler.config
        speculation = self._scheduler.recipe.speculation
        gamma = speculation.gamma(config.gamma)
        beyond = max(0, speculation.lead(config.gamma) - 1)
        unread, policy = Unread(), self._scheduler.recipe.name
        for request in requests:
            unread.request_begun()
            popular = self._popularity(request.number) if self._popularity else ()
            self._dispatch(RequestBegun(self.now, request.number, popular))
            if request.prefill is not None:
                self._pass = PromptPass(self._cost, request.prefill, policy, self._told)
                touched = request.prefill.touched if self._feeds_prefill else ()
                yield from prefill(self._dispatch, self.now, request.prefill.prompt_tokens, config.layers, touched)
            known = 0
            while lines := request.lines(gamma + 1 + beyond):
                this = self._pass = StepPass(
                    self._cost, lines, gamma, request.position, unread, policy, self._told, known
                )
                yield from step(self._dispatch, self.now, this.limit, config.layers, known, this.reach if beyond else 0)
                known = this.stands
                request.advance(this.tokens)
                if self._progress:
                    self._progress(this.tokens)

    def _carry_out(self, outcome: Outcome | None) -> None:
        """Resume the program and carry out its effects, until it has to wait for something else to happen."""
        send = self._program.send
        try:
            while True:
                effect = send(outcome)  # type: ignore[arg-type]
                if type(effect) is ComputeLanded:
                    self._drafting = False  # No more, where the draft went on past the window.
                    outcome = self._compute_landed(effect)
                elif type(effect) is Compute:
                    outcome = self._spend(self._pass.experts_ns(effect.experts), None, self._blocked_until)
                elif type(effect) is HostCompute:
                    outcome = self._compute_on_host(effect.experts)
                else:
                    self._drafting = type(effect) in _DRAFTING
                    self._blind = type(effect) in self._unseeing
                    duration, value = self._pass.outcome(effect)
                    if self._waited and not self._drafting:
                        duration, self._waited = duration + self._cost.cold_ns(), False
                    outcome = self._spend(duration, value)
                    if outcome is not None:
                        self._blind = False
                if outcome is None:
                    return
        except StopIteration:
            self._running = False

    def _spend(self, duration: int, value: Any, earliest: int = 0) -> Outcome | None:
        """Let an effect take its time; its outcome, or None where that comes later."""
        env, began = self._env, self.now
        if earliest > began:
            began = earliest
        if not self._overlap and duration:
            began = self._link.reserve(began, duration)
        end = began + duration + self._debt
        self._debt = 0
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
        unseen, self._unseen = self._unseen, []
        for each in unseen:
            self._learn(each, self.now)
        if self._debt:
            end, self._debt = self.now + self._debt, 0
            self._until(end, began, value)
            return
        self._blind = False
        self._carry_out((began, self.now, value))

    def _compute_on_host(self, experts: tuple[int, ...]) -> Outcome:
        """Hand experts to the CPU; where it does not work beside the GPU, it begins later."""
        self._on_host = frozenset([self._layer * self._experts + expert for expert in experts])
        if self._runtime.host_overlap:
            self._cpu.compute(self._layer, experts, self._pass.tokens_of(experts), self.now)
        else:
            self._for_host = experts
        return self.now, self.now, None

    def _compute_landed(self, effect: ComputeLanded) -> Outcome | None:
        """Compute what has landed, or leave the effect to whatever lands next."""
        missing = effect.missing
        if self._landed or self._results:
            first = effect.layer * self._experts
            landed = [key - first for key in self._landed if key - first in missing]
            done = [expert for expert in self._results if expert in missing]
            if landed or done:
                self._landed = [key for key in self._landed if key - first not in missing]
                self._results = [expert for expert in self._results if expert not in missing]
                self._awaited = None
                return self._spend(self._pass.experts_ns(landed), (*landed, *done), self._blocked_until)
        if self._for_host and missing <= set(self._for_host):
            self._cpu.compute(effect.layer, self._for_host, self._pass.tokens_of(self._for_host), self.now)
            self._for_host = ()
        self._awaited = effect
        return None

    def _happened(self, what: Arrival | Result) -> None:
        """Something landed: whoever waits for it goes on."""
        if self._blind:
            self._unseen.append(what)
            return
        known = what.known
        if self._awaited is None:
            self._learn(what, known)
            return
        self._waited = True
        self._debt = 0  # What landed before cost time in which nothing could be computed anyway.
        self._learn(what, known)
        self.now = known
        outcome = self._compute_landed(self._awaited)
        if outcome is not None:
            self._carry_out(outcome)

    def _learn(self, what: Arrival | Result, now: int) -> None:
        """The thread that drives the run hears of something that landed, which costs it time."""
        if isinstance(what, Arrival):
            self._dispatch(BatchArrived(now, what.batch.batch, what.started, what.ended))
            self._landed += [key for key, _, _ in what.batch.loads if key not in self._on_host]
            loads = len(what.batch.loads)
            cost = self._cost.draft_landing_ns(loads) if self._drafting else self._cost.landing_ns(loads)
        else:
            self._dispatch(HostComputed(now, what.layer, what.expert, what.started, what.ended))
            self._results.append(what.expert)
            cost = self._cost.result_ns()
        self._debt += cost

    def _dispatch(self, event: Event) -> Reply | None:
        if type(event) is LayerReached:
            # What arrived before is among the hits, or gone again.
            self._landed.clear()
            self._on_host = frozenset()
            self._layer = event.layer
            if self._prefetch_blocks:
                self._blocked_until = self._link.prefetched_at
        commands = self._scheduler.handle(event)
        for observe in self._observers:
            observe(event, commands)
        reply: Reply | None = None
        for command in commands:
            if type(command) is Submit:
                self._link.submit(command, event.time)
            else:
                reply = command  # type: ignore[assignment]
        return reply
