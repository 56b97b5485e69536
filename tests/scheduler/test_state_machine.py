"""A legal but otherwise arbitrary driver: arrivals at any moment, failures, any needs and forecasts.

`ContractChecker` holds what must be true of every answer; here the events are chosen.  The same driver runs long with
seeds, which is fast, and short under hypothesis, which finds the shortest sequence of events that fails.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spmoe.policy.parts.future import Future
from spmoe.policy.parts.pace import Pace
from spmoe.policy.registry import RECIPES
from spmoe.scheduler.config import SchedulerConfig
from spmoe.scheduler.legal_order import IllegalEvent
from spmoe.scheduler.loads import TransferFailed
from spmoe.scheduler.scheduler import Scheduler
from spmoe.state.commands import Command
from spmoe.state.events import (
    BatchArrived,
    BatchFailed,
    Computed,
    DraftPredicted,
    Event,
    Forecast,
    GatePredicted,
    HostComputed,
    LayerDone,
    LayerReached,
    LeadStands,
    LinkAwaited,
    PrefillBegun,
    PrefillEnded,
    RequestBegun,
    StepBegun,
    StepEnded,
    TokenDrafted,
)
from spmoe.state.keys import Shape
from spmoe.trace.windows import Request, Window, fixed_windows, requests
from tests.conformance.cases import make_trace
from tests.conformance.checker import ContractChecker, Phase
from tests.scheduler.events import forecast, one_of_each, some_experts
from tests.soak import times

PACE = Pace(load_bytes=10, latency_ns=1, transfer_ns=3, draft_ns=5, layer_ns=2)


class ArbitraryDriver:
    """Drives one scheduler of a recipe; every choice is drawn from `rng`."""

    def __init__(self, name: str, rng: random.Random) -> None:
        self.recipe = recipe = RECIPES[name]
        self.rng = rng
        layers, experts, top_k = rng.randint(1, 3), rng.randint(2, 5), rng.randint(1, 2)
        fewest = recipe.placement.least(Shape(layers, experts, top_k))
        self.config = SchedulerConfig(
            recipe=name,
            layers=layers,
            experts=experts,
            top_k=top_k,
            slots=rng.randint(fewest, max(fewest, layers * experts)),
            gamma=rng.randint(0, 3),
            cutoff=rng.randint(0, layers),
            pace=PACE,
            depth=rng.randint(1, 3),
            chooses=recipe.speculation.chooses and rng.randint(0, 1) == 1,
        )
        # Recipes that know the future only hold what comes true; the others get any needs.
        self.script: Iterator[tuple[Request, Iterator[Window]]] | None = None
        self.windows: Iterator[Window] = iter(())
        self.future: Future | None = None
        if "future" in recipe.needs:
            trace = make_trace(rng.randint(0, 2**16), layers, experts, 1, [4, 1, 7], empty=0.3)
            self.future = Future(lambda: requests(trace), self.config.gamma)
            self.script = ((one, fixed_windows(one, self.config.gamma)) for one in requests(trace))
        self.prompt: tuple[tuple[int, ...], ...] | None = None
        self.window: Window | None = None
        self.may_gate = False
        self.scheduler = Scheduler(self.config, self.future)
        self.checker = ContractChecker(self.config)
        self.entries: list[tuple[Event, tuple[Command, ...]]] = []
        self.time = 0

    def run(self, steps: int) -> None:
        """Takes so many steps, ends the layer that it is in, and replays the run through a fresh scheduler."""
        for _ in range(steps):
            self.rng.choice(self.open_moves())()
        self.finish()
        fresh = Scheduler(self.config, self.future)
        for event, commands in self.entries:
            assert fresh.handle(event) == commands

    def open_moves(self) -> list[Callable[[], None]]:
        """What may come next."""
        at = self.checker
        moves = [self.advance, self.advance, self.illegal]
        if at.phase is Phase.DRAFTING and at.drafted < at.speculate.gamma:
            moves.append(self.draft)
        if at.granted is not None:
            moves.append(self.draft_past_the_window)
        if self.may_gate:
            moves.append(self.predict_gate)
        if at.ready:
            moves.append(self.compute_some)
        if at.submitted:
            moves += [self.arrive, self.fail]
        if at.on_host:
            moves.append(self.compute_on_host)
        return moves

    def send(self, event: Event) -> None:
        commands = self.scheduler.handle(event)
        self.entries.append((event, commands))
        self.checker.observe(event, commands)

    def flip(self) -> bool:
        return self.rng.randint(0, 1) == 1

    # The program

    def advance(self) -> None:
        """What comes next in the program, as far as it goes without an arrival."""
        for _ in range(self.rng.randint(1, 6)):
            self.time += 1
            at = self.checker
            if at.layer_complete:
                self.end_layer()
            elif at.in_layer:
                if at.granted is not None:
                    self.draft_past_the_window()
                elif at.waves and at.ready:
                    self.compute(at.ready)
                elif at.phase is Phase.VERIFY:
                    self.send(LinkAwaited(self.time, at.reached))
                return
            elif at.phase in (Phase.START, Phase.READY):
                self.next_step_or_request()
            elif at.phase is Phase.DRAFTING and at.drafted < at.speculate.gamma:
                self.draft()
            elif at.pass_done:
                self.end_pass()
            else:
                self.reach_layer()

    def next_step_or_request(self) -> None:
        self.window = next(self.windows, None)
        if self.checker.phase is Phase.READY and (self.window or (self.script is None and self.flip())):
            limit = len(self.window.inputs) - 1 if self.window else self.rng.randint(0, self.config.gamma)
            self.send(StepBegun(self.time, limit))
        else:
            self.begin_request()

    def begin_request(self) -> None:
        keys = range(self.config.layers * self.config.experts)
        if self.script is None:
            ranks = bool(self.recipe.needs & {"popularity", "hindsight"})
            self.send(RequestBegun(self.time, 0, tuple(self.rng.sample(keys, len(keys))) if ranks else ()))
            if self.flip():
                self.prompt = tuple(some_experts(self.rng, self.config.experts) for _ in range(self.config.layers))
        elif (scripted := next(self.script, None)) is not None:
            request, self.windows = scripted
            self.send(RequestBegun(self.time, request.number))
            self.prompt = request.prefill.touched if request.prefill else None
        if self.prompt is not None:
            self.send(PrefillBegun(self.time, 3, self.prompt if self.script is not None else ()))

    def draft(self) -> None:
        at = self.checker
        _, layers, group = at.speculate
        if at.predicted < layers:
            due = min(group, layers - at.predicted)
            self.send(DraftPredicted(self.time, at.drafted, at.predicted, self.forecasts(due)))
        else:
            self.send(TokenDrafted(self.time, at.drafted, 99 if self.flip() else None))

    def draft_past_the_window(self) -> None:
        granted = self.checker.granted
        assert granted is not None
        if granted.first < granted.until:
            due = granted.until - granted.first
            self.send(DraftPredicted(self.time, granted.token, granted.first, self.forecasts(due)))
        else:
            self.send(TokenDrafted(self.time, granted.token, 99))

    def forecasts(self, count: int) -> tuple[Forecast, ...]:
        return tuple(forecast(self.rng, self.config.experts) for _ in range(count))

    def reach_layer(self) -> None:
        layer = self.checker.reached + 1
        if self.prompt is not None:
            needed = self.prompt[layer]
        elif self.window is not None:
            needed = self.window.routing()[layer].experts
        else:
            needed = some_experts(self.rng, self.config.experts)
        tokens = tuple(self.rng.randint(1, 9) for _ in needed)
        self.send(LayerReached(self.time, layer, needed, tokens, self.forecasts("gates" in self.recipe.needs)))
        self.may_gate = layer + 1 < self.config.layers

    def predict_gate(self) -> None:
        window = self.forecasts(self.checker.speculate.gamma + 1)
        self.send(GatePredicted(self.time, self.checker.reached + 1, window))
        self.may_gate = False

    def compute_some(self) -> None:
        """Allowed in any layer, owed in one that runs in waves."""
        ready = self.checker.ready
        self.compute(self.rng.sample(ready, self.rng.randint(1, len(ready))))

    def compute(self, experts: Sequence[int]) -> None:
        self.send(Computed(self.time, self.checker.reached, tuple(experts)))

    def end_layer(self) -> None:
        if self.checker.waves and self.checker.left:
            self.compute(self.checker.ready)
        self.send(LayerDone(self.time, self.checker.reached, ()))
        self.may_gate = False

    def end_pass(self) -> None:
        if self.prompt is not None:
            self.prompt = None
            self.send(PrefillEnded(self.time))
        else:
            if self.checker.lead > 1 and self.flip():
                self.send(LeadStands(self.time, self.rng.randint(1, self.checker.lead - 1)))
            accepted = self.window.accepted if self.window else self.rng.randint(0, self.checker.speculate.gamma)
            self.send(StepEnded(self.time, accepted))

    # What comes from outside, at any moment

    def arrive(self) -> None:
        """A driver may learn of it some time after it ended."""
        passed = self.rng.randint(0, 9)
        self.time += passed
        started, ended = self.time - passed // 2, self.time - passed // 3
        self.send(BatchArrived(self.time, next(iter(self.checker.submitted)), started, ended))

    def fail(self) -> None:
        batch = self.rng.choice(list(self.checker.submitted))
        if self.checker.submitted[batch].attempt == 1:
            self.send(BatchFailed(self.time, batch))

    def compute_on_host(self) -> None:
        """The CPU may be done with any of its experts."""
        passed = self.rng.randint(0, 9)
        self.time += passed
        expert = self.rng.choice(sorted(self.checker.on_host)) % self.config.experts
        self.send(HostComputed(self.time, self.checker.reached, expert, self.time - min(passed, 1), self.time))

    def illegal(self) -> None:
        """What the contract does not allow raises, and leaves nothing behind (the replay would differ)."""
        for event in one_of_each(self.rng, self.time, self.config.layers, self.config.experts):
            if not self.checker.allows(event):
                with pytest.raises((IllegalEvent, TransferFailed)):
                    self.scheduler.handle(event)

    def finish(self) -> None:
        """As long as batches arrive, the layer ends."""
        at = self.checker
        while at.in_layer:
            if at.layer_complete:
                self.end_layer()
            elif at.granted is not None and at.granted.first < at.granted.until:
                nothing = ((),) * (at.granted.until - at.granted.first)
                self.send(DraftPredicted(self.time, at.granted.token, at.granted.first, nothing))
            elif at.granted is not None:
                self.send(TokenDrafted(self.time, at.granted.token, None))
            elif at.waves and at.ready:
                self.compute(at.ready)
            elif at.on_host:
                self.compute_on_host()
            else:
                self.arrive()
        while at.submitted:
            self.arrive()


@pytest.mark.parametrize("name", RECIPES)
def test_any_legal_driver(name: str) -> None:
    for number in range(times(20, soaked=60)):
        try:
            ArbitraryDriver(name, random.Random(f"{name} {number}")).run(80)
        except Exception as error:
            error.add_note(f"in run {number}")
            raise


@settings(max_examples=times(100), deadline=None)
@given(st.sampled_from(list(RECIPES)), st.randoms(use_true_random=False), st.integers(1, 40))
def test_any_legal_driver_in_short(name: str, rng: random.Random, steps: int) -> None:
    ArbitraryDriver(name, rng).run(steps)
