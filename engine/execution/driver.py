"""Interprets the step program beside a forward pass: the engine's side of ``docs/contract.md``.

transformers drives the layers.  The driver holds the core's step program (`spmoe.drive.step`), and whoever sits in a
forward pass answers its effects as they are done: the draft's layers and tokens, the target's attention, the choice of
tokens.  An answer advances the program through all that it asks for in between (experts, waits) until it needs the
forward pass to go on.

One thread calls the scheduler: the one that runs the target.  (The draft's passes past a window have a thread of their
own, which runs while that one waits for it, and hands it what came of them: `coroutine`.)  It looks for arrivals at
every layer and after every expert, and until it does the link still has work, since as many as `depth` batches are
submitted ahead.  So there is no lock, and the order of the log is the order of the calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from time import perf_counter_ns
from typing import Any, Protocol

from engine.execution.clock import Clock, Happening
from spmoe.drive.dispatcher import Observer
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
    Keep,
    Outcome,
    Program,
    Routed,
    Shorten,
    prefill,
    step,
)
from spmoe.scheduler.loads import TransferFailed
from spmoe.scheduler.scheduler import Scheduler
from spmoe.state.commands import Reply, Submit
from spmoe.state.events import BatchArrived, BatchFailed, Event, HostComputed, LayerReached, RequestBegun

Asked = DraftLayers | DraftToken | Shorten | Attention | Accept | Keep
"""Effects that are done when a forward pass gets there, or by who has the passes done."""

Ahead = Callable[[DraftLayers | DraftToken], Any]
"""Has the draft go on past the window while the target's pass is under way; returns what came of it."""

PATIENCE = 1.25
"""A draft whose tokens take that many times as long as the scheduler reckons does not go on past the window."""
_DECAY = 8
"""How long a token takes is averaged over about so many."""


class Kernels(Protocol):
    """Computes the experts of the layer that was reached."""

    def compute(self, expert: int, slot: int) -> None:
        """An expert whose weights lie in `slot`; it may only be enqueued, or noted for `enqueued`."""

    def enqueued(self, slots: Iterable[int]) -> None:
        """All of an effect's experts are, or have to be now: from here on these slots are in use until the device is
        through."""

    def compute_on_host(self, experts: Sequence[int]) -> None:
        """Have the CPU compute these, in this order, and return at once."""


def _nowhere(_piece: DraftLayers | DraftToken) -> Any:
    raise RuntimeError("nobody can draft past the window")


class Driver:
    """Advances the program of a pass and tells the scheduler what happened.

    Errors leave the program where it is: after one the driver must not be used again.
    """

    def __init__(self, scheduler: Scheduler, clock: Clock, observers: tuple[Observer, ...] = ()) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._observers = observers
        self._layers = scheduler.config.layers
        self._experts = scheduler.config.experts
        self._program: Program | None = None
        self.asked: Asked | None = None
        """What the program needs of a forward pass next; None between programs."""
        self._tokens = self._position = 0
        """Tokens of the pass, and the position of the first."""
        self._reading = False
        """Whether the pass reads a prompt."""
        self._unread = Unread()
        self._read: int | None = None
        """What the draft reads for the token under way."""
        self._ahead: Ahead
        self._prompt_unread = False
        """Whether the token under way is a request's first, for which the draft reads the prompt."""
        self._drafting_since = 0
        """When the draft began with the token under way."""
        self._draft_ns = self._reckoned_ns = scheduler.config.pace.draft_ns
        """What it has taken per token lately, where that was measured, and what the scheduler reckons with."""
        self._kernels: Kernels
        self._counts: Mapping[int, int] = {}
        """Tokens of each expert of the layer that was reached."""
        self._layer = 0
        self._landed: list[int] = []
        """Keys that arrived since that layer was reached and did not compute yet."""
        self._results: list[int] = []
        """Experts of that layer that the CPU has computed since."""
        self._on_host: frozenset[int] = frozenset()
        """Keys of that layer that the CPU computes; their weights may arrive all the same."""
        self._batches: dict[int, Submit] = {}
        self._slots: dict[int, int] = {}
        """Where the experts are that have arrived, by key."""
        self._deciding_ns = self._reached = 0

    @property
    def deciding_ns(self) -> float:
        """What the scheduler has taken per layer so far, apart from hearing of what landed."""
        return self._deciding_ns / self._reached if self._reached else 0.0

    def begin(self, request: int, popular: tuple[int, ...] = ()) -> None:
        """A request starts; `popular` as in `RequestBegun`."""
        self._unread.request_begun()
        self._prompt_unread = True
        self._deliver(self._clock.between())
        self._dispatch(RequestBegun(self._clock.now, request, popular))

    def prefill(self, tokens: int, touched: tuple[tuple[int, ...], ...] = ()) -> None:
        """A forward pass over a prompt of so many tokens is about to begin; `touched` as in `PrefillBegun`."""
        self._tokens, self._position, self._reading = tokens, 0, True
        self._deliver(self._clock.between())
        self._start(prefill(self._dispatch, self._clock.now, tokens, self._layers, touched))

    def step(self, position: int, limit: int, known: int = 0, reach: int = 0, ahead: Ahead = _nowhere) -> None:
        """A round begins whose first input is the token at `position`; `limit`, `known` and `reach` as in
        `spmoe.drive.step.step`.

        While the target's pass waits for the link, `ahead` may be asked for more: not where the draft takes longer than
        the scheduler reckons, for then the verifier would wait for it.
        """
        self._tokens, self._position, self._reading = 1 + known, position, False
        self._unread.round_ended(position + known)
        self._unread.round_begun(position, known)
        self._ahead, self._read = ahead, None
        self._deliver(self._clock.between())
        self._drafting_since = self._clock.now
        if self._draft_ns > PATIENCE * self._reckoned_ns:
            reach = 0
        self._start(step(self._dispatch, self._clock.now, limit, self._layers, known, reach))

    def reach(self, routed: Routed, kernels: Kernels) -> None:
        """The attention asked for is done and its router has spoken: has `kernels` compute the layer's experts."""
        self._kernels = kernels
        self._counts = dict(zip(routed.experts, routed.tokens, strict=True))
        self.answer(routed)

    def resident(self) -> Mapping[int, int]:
        """The slot of each expert that has arrived and was not displaced since, by key."""
        return dict(self._slots)

    def look(self) -> None:
        """Something is under way in a forward pass, and it is a good moment to see what arrived."""
        self._deliver(self._clock.meanwhile())

    def answer(self, value: Any) -> None:
        """What was asked for is done, and this came of it."""
        effect, clock = self.asked, self._clock
        began = clock.now
        over: Iterable[Happening] = ()
        if type(effect) is Attention:
            over = clock.attended(effect.layer, self._tokens, self._position + self._tokens)
        elif type(effect) is DraftLayers:
            over = self._drafted(effect)
        elif type(effect) is DraftToken:
            over = self._drafted(effect)
            self._tokens += 1
        elif type(effect) is Accept:
            over = clock.accepted(1 if self._reading else self._tokens)
        elif type(effect) is Shorten:
            self._tokens = 1 + effect.drafted
        self._deliver(over)
        if type(effect) is DraftToken:
            self._time_draft()
        self._advance((began, clock.now, value))

    def _drafted(self, effect: DraftLayers | DraftToken) -> Iterable[Happening]:
        """The draft got through a part of a token."""
        if self._read is None:
            self._read = self._unread.draft()
        if isinstance(effect, DraftLayers):
            return self._clock.drafted(effect.first, effect.end, self._read, effect.end - effect.first)
        read, self._read = self._read, None
        return self._clock.drafted(effect.first_layer, self._layers, read, 0)

    def _time_draft(self) -> None:
        """A token of the window is drafted."""
        took, self._drafting_since = self._clock.now - self._drafting_since, self._clock.now
        if self._clock.measures and not self._prompt_unread:
            self._draft_ns += (took - self._draft_ns) // _DECAY
        self._prompt_unread = False

    def finish(self) -> None:
        """No request follows for now: waits for what is on the link yet, so that the log tells of its arrival."""
        while self._batches:
            self._deliver(self._clock.wait())

    def _start(self, program: Program) -> None:
        if self._program is not None:
            raise RuntimeError("a pass is still under way; it was left with an error")
        self._program = program
        self._advance(None)

    def _advance(self, outcome: Outcome | None) -> None:
        """Resume the program and carry out what it asks for, until that is up to a forward pass."""
        assert self._program is not None
        send = self._program.send
        try:
            while True:
                effect: Effect = send(outcome)  # type: ignore[arg-type]
                if type(effect) is Compute:
                    outcome = self._compute(effect.experts)
                elif type(effect) is ComputeLanded:
                    outcome = self._compute_landed(effect)
                elif type(effect) is HostCompute:
                    outcome = self._compute_on_host(effect.experts)
                elif type(self.asked) is Attention and (type(effect) is DraftLayers or type(effect) is DraftToken):
                    outcome = self._draft_ahead(effect)
                else:
                    self.asked = effect  # type: ignore[assignment]
                    return
        except StopIteration:
            self._program = self.asked = None

    def _compute(self, experts: Sequence[int]) -> Outcome:
        clock, first = self._clock, self._layer * self._experts
        began = clock.now
        slots = [self._slots[first + expert] for expert in experts]
        for expert, slot in zip(experts, slots, strict=True):
            self._kernels.compute(expert, slot)
            if self._batches:
                self._deliver(clock.meanwhile())
        self._kernels.enqueued(slots)
        self._deliver(clock.computed([self._counts[expert] for expert in experts]))
        return began, clock.now, None

    def _compute_on_host(self, experts: tuple[int, ...]) -> Outcome:
        now = self._clock.now
        self._on_host = frozenset([self._layer * self._experts + expert for expert in experts])
        self._kernels.compute_on_host(experts)
        self._clock.hand_over(self._layer, experts, [self._counts[expert] for expert in experts])
        return now, now, None

    def _compute_landed(self, effect: ComputeLanded) -> Outcome:
        clock, missing, first = self._clock, effect.missing, effect.layer * self._experts
        waiting_since, idle_before = clock.now, clock.idle_ns
        while True:
            landed = [key - first for key in self._landed if key - first in missing]
            done = [expert for expert in self._results if expert in missing]
            if landed or done:
                break
            self._deliver(clock.wait())
        self._landed = [key for key in self._landed if key - first not in missing]
        self._results = [expert for expert in self._results if expert not in missing]
        # A device that still computes what it was given before does not wait, though we do.
        began = waiting_since + clock.idle_ns - idle_before
        return began, self._compute(landed)[1], (*landed, *done)

    def _draft_ahead(self, effect: DraftLayers | DraftToken) -> Outcome:
        began = self._clock.now
        value = self._ahead(effect)
        self._deliver(self._drafted(effect))
        return began, self._clock.now, value

    def _deliver(self, happenings: Iterable[Happening]) -> None:
        """Tell the scheduler what happened, one thing after the other."""
        for event, cause in happenings:
            if type(event) is HostComputed:
                self._dispatch(event)
                self._results.append(event.expert)
            elif type(event) is BatchArrived:
                batch = self._batches.pop(event.batch)
                for key, slot, _ in batch.loads:
                    self._slots[key] = slot
                self._dispatch(event)
                self._landed += [key for key, _, _ in batch.loads if key not in self._on_host]
            elif type(event) is BatchFailed:
                try:
                    self._dispatch(event)
                except TransferFailed as error:
                    raise TransferFailed(f"{error}: {cause}") from cause

    def _dispatch(self, event: Event) -> Reply | None:
        if type(event) is LayerReached:
            # What arrived before is among the hits, or gone again.
            self._landed.clear()
            self._on_host = frozenset()
            self._layer = event.layer
            self._reached += 1
        asked = perf_counter_ns()
        commands = self._scheduler.handle(event)
        if type(event) is not BatchArrived and type(event) is not HostComputed:
            self._deciding_ns += perf_counter_ns() - asked
        for observe in self._observers:
            observe(event, commands)
        reply: Reply | None = None
        for command in commands:
            if type(command) is Submit:
                for _, _, evicted in command.loads:
                    if evicted is not None:
                        self._slots.pop(evicted, None)  # Gone already where a failed batch is tried again.
                self._batches[command.batch] = command
                self._clock.submit(command)
            else:
                reply = command  # type: ignore[assignment]
        return reply
