"""A legal but otherwise arbitrary driver: arrivals at any moment, failures, any needs and forecasts.

`ContractChecker` holds what must be true of every answer; here the events are chosen.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import Phase as Generation
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from spmoe.policy.oracle.clairvoyant import Future
from spmoe.policy.parts.io_plan import Pace
from spmoe.policy.registry import RECIPES
from spmoe.scheduler.config import SchedulerConfig
from spmoe.scheduler.scheduler import IllegalEvent, Scheduler, TransferFailed
from spmoe.state.commands import Command
from spmoe.state.events import (
    BatchArrived,
    BatchFailed,
    Computed,
    DraftPredicted,
    Event,
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
from tests.scheduler.events import expert_lists, forecasts, one_of_each

PACE = Pace(load_bytes=10, latency_ns=1, transfer_ns=3, draft_ns=5, layer_ns=2)


class SchedulerMachine(RuleBasedStateMachine):
    """Drives one scheduler; subclasses name the recipe."""

    recipe: str

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[Event, tuple[Command, ...]]] = []

    @initialize(data=st.data())
    def set_up(self, data: st.DataObject) -> None:
        recipe = RECIPES[self.recipe]
        layers, experts = data.draw(st.integers(1, 3)), data.draw(st.integers(2, 5))
        top_k = data.draw(st.integers(1, 2))
        fewest = recipe.placement.least(Shape(layers, experts, top_k))
        self.config = SchedulerConfig(
            recipe=self.recipe,
            layers=layers,
            experts=experts,
            top_k=top_k,
            slots=data.draw(st.integers(fewest, max(fewest, layers * experts))),
            gamma=data.draw(st.integers(0, 3)),
            cutoff=data.draw(st.integers(0, layers)),
            pace=PACE,
            depth=data.draw(st.integers(1, 3)),
        )
        # Recipes that know the future only hold what comes true; the others get any needs.
        self.script: Iterator[tuple[Request, Iterator[Window]]] | None = None
        self.windows: Iterator[Window] = iter(())
        self.future: Future | None = None
        if "future" in recipe.needs:
            trace = make_trace(data.draw(st.integers(0, 2**16)), layers, experts, 1, [4, 1, 7], empty=0.3)
            self.future = Future(lambda: requests(trace), self.config.gamma)
            self.script = ((one, fixed_windows(one, self.config.gamma)) for one in requests(trace))
        self.prompt: tuple[tuple[int, ...], ...] | None = None
        self.window: Window | None = None
        self.may_gate = False
        self.scheduler = Scheduler(self.config, self.future)
        self.checker = ContractChecker(self.config)
        self.time = 0

    def send(self, event: Event) -> None:
        commands = self.scheduler.handle(event)
        self.entries.append((event, commands))
        self.checker.observe(event, commands)

    # What the driver is told to do

    @rule(data=st.data(), times=st.integers(1, 6))
    def advance(self, data: st.DataObject, times: int) -> None:
        """What comes next in the program, as far as it goes without an arrival."""
        for _ in range(times):
            self.time += 1
            at = self.checker
            if at.layer_complete:
                self.end_layer()
            elif at.in_layer:
                if at.granted is not None:
                    self.draft_past_the_window(data)
                elif at.waves and at.ready:
                    self.compute(at.ready)
                elif at.phase is Phase.VERIFY:
                    self.send(LinkAwaited(self.time, at.reached))
                return
            elif at.phase in (Phase.START, Phase.READY):
                self.next_step_or_request(data)
            elif at.phase is Phase.DRAFTING and at.drafted < at.speculate.gamma:
                self.draft(data)
            elif at.pass_done:
                self.end_pass(data)
            else:
                self.reach_layer(data)

    def next_step_or_request(self, data: st.DataObject) -> None:
        self.window = next(self.windows, None)
        if self.checker.phase is Phase.READY and (self.window or (self.script is None and data.draw(st.booleans()))):
            limit = len(self.window.inputs) - 1 if self.window else data.draw(st.integers(0, self.config.gamma))
            self.send(StepBegun(self.time, limit))
        else:
            self.begin_request(data)

    def begin_request(self, data: st.DataObject) -> None:
        keys = range(self.config.layers * self.config.experts)
        if self.script is None:
            popular = (
                data.draw(st.permutations(keys)) if RECIPES[self.recipe].needs & {"popularity", "hindsight"} else ()
            )
            self.send(RequestBegun(self.time, 0, tuple(popular)))
            if data.draw(st.booleans()):
                cells = expert_lists(self.config.experts)
                self.prompt = tuple(data.draw(cells) for _ in range(self.config.layers))
        elif (scripted := next(self.script, None)) is not None:
            request, self.windows = scripted
            self.send(RequestBegun(self.time, request.number))
            self.prompt = request.prefill.touched if request.prefill else None
        if self.prompt is not None:
            self.send(PrefillBegun(self.time, 3, self.prompt if self.script is not None else ()))

    @precondition(
        lambda self: self.checker.phase is Phase.DRAFTING and self.checker.drafted < self.checker.speculate.gamma
    )
    @rule(data=st.data())
    def draft(self, data: st.DataObject) -> None:
        at = self.checker
        _, layers, group = at.speculate
        if at.predicted < layers:
            due = range(at.predicted, min(at.predicted + group, layers))
            said = tuple(data.draw(forecasts(self.config.experts)) for _ in due)
            self.send(DraftPredicted(self.time, at.drafted, at.predicted, said))
        else:
            self.send(TokenDrafted(self.time, at.drafted, data.draw(st.none() | st.just(99))))

    @precondition(lambda self: self.checker.granted is not None)
    @rule(data=st.data())
    def draft_past_the_window(self, data: st.DataObject) -> None:
        granted = self.checker.granted
        assert granted is not None
        if granted.first < granted.until:
            said = tuple(data.draw(forecasts(self.config.experts)) for _ in range(granted.first, granted.until))
            self.send(DraftPredicted(self.time, granted.token, granted.first, said))
        else:
            self.send(TokenDrafted(self.time, granted.token, 99))

    def reach_layer(self, data: st.DataObject) -> None:
        layer = self.checker.reached + 1
        if self.prompt is not None:
            needed = self.prompt[layer]
        elif self.window is not None:
            needed = self.window.routing()[layer].experts
        else:
            needed = data.draw(expert_lists(self.config.experts))
        tokens = tuple(data.draw(st.integers(1, 9)) for _ in needed)
        gates = (data.draw(forecasts(self.config.experts)),) if "gates" in RECIPES[self.recipe].needs else ()
        self.send(LayerReached(self.time, layer, needed, tokens, gates))
        self.may_gate = layer + 1 < self.config.layers

    @precondition(lambda self: self.may_gate)
    @rule(data=st.data())
    def predict_gate(self, data: st.DataObject) -> None:
        window = tuple(data.draw(forecasts(self.config.experts)) for _ in range(self.checker.speculate.gamma + 1))
        self.send(GatePredicted(self.time, self.checker.reached + 1, window))
        self.may_gate = False

    @precondition(lambda self: self.checker.ready)
    @rule(data=st.data())
    def compute_some(self, data: st.DataObject) -> None:
        """Allowed in any layer, owed in one that runs in waves."""
        ready = self.checker.ready
        self.compute(ready if len(ready) == 1 else data.draw(st.lists(st.sampled_from(ready), min_size=1, unique=True)))

    def compute(self, experts: Sequence[int]) -> None:
        self.send(Computed(self.time, self.checker.reached, tuple(experts)))

    def end_layer(self) -> None:
        if self.checker.waves and self.checker.left:
            self.compute(self.checker.ready)
        self.send(LayerDone(self.time, self.checker.reached, ()))
        self.may_gate = False

    def end_pass(self, data: st.DataObject) -> None:
        if self.prompt is not None:
            self.prompt = None
            self.send(PrefillEnded(self.time))
        else:
            if self.checker.lead > 1 and data.draw(st.booleans()):
                self.send(LeadStands(self.time, data.draw(st.integers(1, self.checker.lead - 1))))
            accepted = self.window.accepted if self.window else data.draw(st.integers(0, self.checker.speculate.gamma))
            self.send(StepEnded(self.time, accepted))

    # What comes from outside, at any moment

    @precondition(lambda self: self.checker.submitted)
    @rule(passed=st.integers(0, 9))
    def arrive(self, passed: int) -> None:
        """A driver may learn of it some time after it ended."""
        self.time += passed
        started, ended = self.time - passed // 2, self.time - passed // 3
        self.send(BatchArrived(self.time, next(iter(self.checker.submitted)), started, ended))

    @precondition(lambda self: self.checker.submitted)
    @rule(which=st.integers(0, 2))
    def fail(self, which: int) -> None:
        batch = next(islice(self.checker.submitted, which % len(self.checker.submitted), None))
        if self.checker.submitted[batch].attempt == 1:
            self.send(BatchFailed(self.time, batch))

    @precondition(lambda self: self.checker.on_host)
    @rule(which=st.integers(0, 9), passed=st.integers(0, 9))
    def compute_on_host(self, which: int, passed: int) -> None:
        """The CPU may be done with any of its experts."""
        waiting = sorted(self.checker.on_host)
        self.time += passed
        expert = waiting[which % len(waiting)] % self.config.experts
        self.send(HostComputed(self.time, self.checker.reached, expert, self.time - min(passed, 1), self.time))

    @rule(seed=st.integers(0, 2**16))
    def illegal(self, seed: int) -> None:
        """What the contract does not allow raises, and leaves nothing behind (the replay below would differ)."""
        rng = random.Random(seed)
        for event in one_of_each(rng, self.time, self.config.layers, self.config.experts):
            if not self.checker.allows(event):
                with pytest.raises((IllegalEvent, TransferFailed)):
                    self.scheduler.handle(event)

    def teardown(self) -> None:
        if not self.entries:
            return
        at = self.checker
        while at.in_layer:  # As long as batches arrive, the layer ends.
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
                self.compute_on_host(0, 0)
            else:
                self.arrive(1)
        while at.submitted:
            self.arrive(1)
        fresh = Scheduler(self.config, self.future)
        for event, commands in self.entries:
            assert fresh.handle(event) == commands


def machine(name: str) -> Any:
    """The state machine of a recipe, as a test case."""
    kind: Any = type("Machine", (SchedulerMachine,), {"recipe": name})
    case = kind.TestCase
    # Without shrinking: it takes minutes here, and runs are short enough to read.
    case.settings = settings(
        max_examples=60,
        stateful_step_count=80,
        deadline=None,
        phases=[Generation.generate],
        suppress_health_check=list(HealthCheck),
    )
    return case


@pytest.mark.parametrize("name", RECIPES)
def test_any_legal_driver(name: str) -> None:
    machine(name)("runTest").runTest()
