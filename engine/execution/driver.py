"""Carries out the step program with real models: the engine's side of `docs/contract.md`.

The core's step program (`spmoe.drive.step`) yields effects; from each the driver makes an outcome, with the models, the
link and the CPU; the clock has the time at which it was over.  Forward passes are coroutines, resumed until they have
what an effect asks for.

One thread runs all of it.  It looks for arrivals at every layer and after every expert, and until it does the link
still has work, since as many as `depth` batches are submitted ahead.  So there is no lock, and the order of the log is
the order of the calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from functools import partial
from typing import Protocol

from engine.execution.clock import Clock, Notice
from engine.execution.decision_timer import DecisionTimer
from engine.execution.draft_speed import DraftSpeed
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
from spmoe.state.commands import Submit
from spmoe.state.events import BatchArrived, Forecast, RequestBegun

Poll = Callable[[], None]
"""Looks at what has arrived."""


class Experts(Protocol):
    """Computes the experts of the layer that a forward pass has reached."""

    def compute(self, expert: int, slot: int) -> None:
        """An expert whose weights lie in `slot`; it may only be enqueued, or noted for `launch`."""

    def launch(self, slots: Iterable[int]) -> None:
        """All of an effect's experts are enqueued, or have to be now: from here on these slots are in use until the
        device is through."""

    def compute_on_cpu(self, experts: Sequence[int]) -> None:
        """Have the CPU compute these, in this order, and return at once."""


class Pass(Protocol):
    """The target's forward pass over a prompt or a window."""

    @property
    def tokens(self) -> int:
        """How many tokens the target reads."""

    @property
    def context(self) -> int:
        """How many tokens of the request there are when it has read them."""

    @property
    def verified(self) -> int:
        """Of how many tokens the logits are needed."""

    def attention(self, layer: int) -> tuple[Routed, Experts]:
        """Goes on to the router of a layer: what it routes, and the layer's experts, to compute."""

    def accept(self) -> int:
        """Goes on to the end; returns how many drafted tokens stand."""


class Round(Pass, Protocol):
    """A pass over a window, and the draft's passes before it and meanwhile."""

    @property
    def draft_reads(self) -> int:
        """How many tokens the draft reads for the one that it proposes."""

    def draft_layers(self, token: int, first: int, end: int, poll: Poll) -> tuple[Forecast, ...]:
        """Goes on with the draft until it has forecasts for layers `first` to `end` (exclusive), and returns them."""

    def draft_token(self, token: int, poll: Poll) -> int | None:
        """Goes on with the draft until it proposes a token; returns its probability (/65536), if known."""

    def shorten(self, drafted: int) -> None:
        """The window holds the first `drafted` of the tokens drafted."""

    def keep(self) -> int:
        """How many tokens of the next window the draft has read past this one."""


class Driver:
    """Runs the programs of passes, and delivers to the scheduler what happens.

    After an error the driver must not be used again.
    """

    def __init__(self, scheduler: Scheduler, clock: Clock, observers: tuple[Observer, ...] = ()) -> None:
        config = scheduler.config
        self._clock = clock
        self._layers = config.layers
        self._experts_per_layer = config.experts
        self._timer = DecisionTimer(scheduler)
        self._slots: dict[int, int] = {}
        """The slot of each resident expert, by key."""
        # Not a method: the dispatcher would hold on to the driver, and with it to all memory, until the collector runs.
        submit = partial(_submit, clock, self._slots)
        self._dispatcher = Dispatcher(self._timer.handle, config.experts, submit, observers)
        self._draft_speed = DraftSpeed(config.pace.draft_ns)
        self._pass: Pass
        self._round: Round
        """The pass, where it is a round's: prompts are not drafted."""
        self._experts: Experts
        self._counts: Mapping[int, int] = {}
        """Tokens of each expert of the layer that was reached."""

    @property
    def deciding_ns(self) -> float:
        """What the scheduler has taken per layer so far, without the events of arrivals."""
        return self._timer.ns_per_layer

    def resident(self) -> Mapping[int, int]:
        """The slot of each resident expert, by key."""
        return dict(self._slots)

    def begin(self, request: int, popular: tuple[int, ...] = ()) -> None:
        """A request starts; `popular` as in `RequestBegun`."""
        self._draft_speed.request_begun()
        self.poll()
        self._dispatcher.dispatch(RequestBegun(self._clock.now, request, popular))

    def prefill(self, prompt: Pass, touched: tuple[tuple[int, ...], ...] = ()) -> None:
        """Runs a forward pass over a prompt; `touched` as in `PrefillBegun`."""
        self._pass = prompt
        self.poll()
        self._run(prefill(self._dispatcher.dispatch, self._clock.now, prompt.tokens, self._layers, touched))

    def step(self, this: Round, limit: int, known: int = 0, reach: int = 0) -> None:
        """Runs a round; `limit`, `known` and `reach` as in `spmoe.drive.step.step`.

        Where the draft takes longer than the scheduler expects, it does not go on past the window.
        """
        self._pass = self._round = this
        self.poll()
        now = self._clock.now
        self._draft_speed.round_begun(now)
        if self._draft_speed.slow:
            reach = 0
        self._run(step(self._dispatcher.dispatch, now, limit, self._layers, known, reach))

    def finish(self) -> None:
        """No request follows for now: waits for what is still on the link, so that the log has its arrival."""
        while self._dispatcher.on_link:
            self._deliver(self._clock.wait())

    def poll(self) -> None:
        """Looks at what has arrived: something is under way, and it is a good moment."""
        self._deliver(self._clock.poll())

    def _run(self, program: Program) -> None:
        outcome: Outcome | None = None
        while True:
            try:
                effect = program.send(outcome)  # type: ignore[arg-type]  # None starts a generator.
            except StopIteration:
                return
            outcome = self._carry_out(effect)

    def _carry_out(self, effect: Effect) -> Outcome:
        """From effect to outcome: when it began, when it ended, and what came of it."""
        clock, began = self._clock, self._clock.now
        value: object = None
        match effect:
            case Attention(layer):
                if layer == 0:
                    self._draft_speed.verification_begun()
                value, self._experts = self._pass.attention(layer)
                self._counts = dict(zip(value.experts, value.tokens, strict=True))
                self._deliver(clock.attended(layer, self._pass.tokens, self._pass.context))
            case Compute(experts=experts):
                self._compute(experts)
            case ComputeLanded(missing=missing):
                began, value = self._compute_landed(missing)
            case HostCompute(layer, experts):
                self._dispatcher.assign_to_cpu(experts)
                self._experts.compute_on_cpu(experts)
                clock.hand_over(layer, experts, [self._counts[expert] for expert in experts])
            case DraftLayers(token, first, end):
                value = self._round.draft_layers(token, first, end, self.poll)
                self._deliver(clock.drafted(first, end, self._round.draft_reads, end - first))
            case DraftToken(token, first):
                value = self._round.draft_token(token, self.poll)
                self._deliver(clock.drafted(first, self._layers, self._round.draft_reads, 0))
                if clock.measures:
                    self._draft_speed.token_drafted(clock.now)
            case Shorten(drafted):
                self._round.shorten(drafted)
            case Accept():
                value = self._pass.accept()
                self._deliver(clock.accepted(self._pass.verified))
            case Keep():
                value = self._round.keep()
        return began, clock.now, value

    def _compute(self, experts: Sequence[int]) -> None:
        """Experts in slots; each is enqueued before the next is looked for."""
        first = self._dispatcher.layer * self._experts_per_layer
        slots = [self._slots[first + expert] for expert in experts]
        for expert, slot in zip(experts, slots, strict=True):
            self._experts.compute(expert, slot)
            if self._dispatcher.on_link:
                self.poll()
        self._experts.launch(slots)
        self._deliver(self._clock.computed([self._counts[expert] for expert in experts]))

    def _compute_landed(self, missing: Set[int]) -> tuple[int, tuple[int, ...]]:
        """Waits for one of `missing` to land; returns when the wait was over, and the experts that have landed."""
        clock = self._clock
        waiting_since, idle_before = clock.now, clock.idle_ns
        landed, computed = self._dispatcher.take(missing)
        while not (landed or computed):
            self._deliver(clock.wait())
            landed, computed = self._dispatcher.take(missing)
        # A device that still computes what was enqueued before does not wait, though we do.
        began = waiting_since + clock.idle_ns - idle_before
        self._compute(landed)
        return began, (*landed, *computed)

    def _deliver(self, notices: Iterable[Notice]) -> None:
        """Delivers to the scheduler what happened, one event after the other."""
        for event, cause in notices:
            if type(event) is BatchArrived:
                for key, slot, _ in self._dispatcher.on_link[event.batch].loads:
                    self._slots[key] = slot
            try:
                self._dispatcher.deliver(event)
            except TransferFailed as error:
                raise TransferFailed(f"{error}: {cause}") from cause


def _submit(clock: Clock, slots: dict[int, int], batch: Submit, _now: int) -> None:
    """Puts a batch on the link; what it evicts is resident no more."""
    for _, _, evicted in batch.loads:
        if evicted is not None:
            slots.pop(evicted, None)  # Gone already where a failed batch is tried again.
    clock.submit(batch)
