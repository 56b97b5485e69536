"""The draft's word on a layer holds until the target's own state has spoken of it."""

from __future__ import annotations

import pytest

from spmoe.policy.parts.horizon import CutoffLayer
from spmoe.policy.parts.pace import Pace
from spmoe.policy.parts.scope import Scope
from spmoe.policy.parts.wanted import WantedSet
from spmoe.policy.sp_moe.draft_then_gate import DraftThenGate
from spmoe.policy.sp_moe.gates import DraftGate, NextGate
from spmoe.scheduler.config import SchedulerConfig
from spmoe.scheduler.scheduler import Scheduler
from spmoe.state.commands import Command, LayerPlan, Load, Purpose, Submit
from spmoe.state.events import (
    BatchArrived,
    DraftPredicted,
    Forecast,
    GatePredicted,
    LayerDone,
    LayerReached,
    RequestBegun,
    StepBegun,
    StepEnded,
    TokenDrafted,
)
from tests.policy.caches import FakeCache, bound, entries
from tests.sim.paper import machine, solve, token, trace

MS = 1_000_000
EXPERTS = 4
LAYERS = 3


def scheduler(fits: int, recipe: str = "spmoe.refined", cutoff: int = LAYERS) -> Scheduler:
    """Two slots per layer; a load of 3 ms is a batch, one batch is submitted at a time, and a layer takes `fits`
    loads and a bit.
    """
    pace = Pace(load_bytes=1, latency_ns=0, transfer_ns=3 * MS, draft_ns=10 * MS, layer_ns=(3 * fits + 2) * MS)
    return Scheduler(
        SchedulerConfig(
            recipe=recipe,
            layers=LAYERS,
            experts=EXPERTS,
            top_k=2,
            slots=2 * LAYERS,
            gamma=1,
            cutoff=cutoff,
            pace=pace,
            depth=1,
        )
    )


def key(layer: int, expert: int) -> int:
    return layer * EXPERTS + expert


def drafted(one: Scheduler) -> None:
    """The draft names expert 0 of layer 0, which is on the link from then on, 1 of layer 1 and 2 of layer 2."""
    one.handle(RequestBegun(0, 0))
    one.handle(StepBegun(0, 1))
    said = (((0, 40),), ((1, 50),), ((2, 60),))
    (submit,) = one.handle(DraftPredicted(10 * MS, 0, 0, said))
    assert isinstance(submit, Submit) and keys(submit) == [key(0, 0)]
    one.handle(TokenDrafted(10 * MS, 0, None))
    one.handle(LayerReached(11 * MS, 0, (0,), (2,)))


def keys(submit: Command) -> list[int]:
    assert isinstance(submit, Submit) and submit.purpose is Purpose.PREFETCH
    return [load.key for load in submit.loads]


def fetched(one: Scheduler) -> list[int]:
    """The prefetches that follow when all that is submitted arrives, one by one."""
    found: list[int] = []
    while one.loads.submitted:
        for submit in one.handle(BatchArrived(20 * MS, next(iter(one.loads.submitted)), 19 * MS, 20 * MS)):
            found += keys(submit)
    return found


WINDOW: tuple[Forecast, ...] = (((3, 50), (2, 10)), ((3, 40), (2, 20)))
"""What the target's state says of the two tokens: 3, and then 2."""


def test_what_the_target_does_not_name_is_dropped_and_what_it_names_goes_first() -> None:
    one = scheduler(fits=2)
    drafted(one)
    assert one.handle(GatePredicted(11 * MS, 1, WINDOW)) == ()
    # Of layer 1 neither is the draft's; layer 2 is still the draft's word.
    assert fetched(one) == [key(1, 3), key(1, 2), key(2, 2)]


def test_what_both_name_is_fetched_once() -> None:
    one = scheduler(fits=2)
    drafted(one)
    one.handle(GatePredicted(11 * MS, 1, (((2, 50), (1, 10)), ((2, 40),))))
    assert fetched(one) == [key(1, 2), key(1, 1), key(2, 2)]


def test_a_target_that_says_nothing_leaves_the_word_to_the_draft() -> None:
    one = scheduler(fits=2)
    drafted(one)
    one.handle(GatePredicted(11 * MS, 1, ((), ())))
    assert fetched(one) == [key(1, 1), key(2, 2)]


def test_what_is_on_the_link_is_not_asked_for_again_and_counts_as_fetched() -> None:
    one = scheduler(fits=1)
    drafted(one)
    one.handle(BatchArrived(12 * MS, 0, 9 * MS, 12 * MS))  # Now 1 of layer 1 is on the link.
    one.handle(GatePredicted(12 * MS, 1, (((1, 50), (3, 10)), ((1, 50),))))
    assert fetched(one) == [key(2, 2)]


@pytest.mark.parametrize(("fits", "loads"), [(0, []), (1, [3]), (2, [3, 2])])
def test_no_more_is_fetched_than_the_link_moves_in_a_layers_time(fits: int, loads: list[int]) -> None:
    one = scheduler(fits)
    drafted(one)
    one.handle(GatePredicted(11 * MS, 1, WINDOW))
    assert fetched(one) == [key(1, expert) for expert in loads] + [key(2, 2)]


def test_the_target_speaks_of_layers_behind_the_cutoff() -> None:
    one = scheduler(fits=1, cutoff=0)
    one.handle(RequestBegun(0, 0))
    assert one.handle(StepBegun(0, 1))[0][1] == 0  # The draft is not asked.
    one.handle(TokenDrafted(0, 0, None))
    one.handle(LayerReached(0, 0, (), ()))
    (submit,) = one.handle(GatePredicted(0, 1, WINDOW))
    assert keys(submit) == [key(1, 3)]


def filled(recipe: str) -> Scheduler:
    """In layer 1 experts 0 and 1 are there, 0 used longer ago; the next step has reached layer 0."""
    one = scheduler(fits=1, recipe=recipe)
    one.handle(RequestBegun(0, 0))
    one.handle(StepBegun(0, 0))
    for layer, experts in enumerate([(), (0, 1), ()]):
        one.handle(LayerReached(0, layer, experts, (1,) * len(experts)))
        while one.loads.submitted:
            one.handle(BatchArrived(0, next(iter(one.loads.submitted)), 0, 0))
        one.handle(LayerDone(0, layer, ()))
    one.handle(StepEnded(0, 0))
    one.handle(StepBegun(0, 0))
    assert one.handle(LayerReached(0, 0, (), ())) == (LayerPlan(0, (), (), (), (), False, False),)
    return one


def test_residents_that_the_target_names_stay_even_behind_what_is_fetched() -> None:
    said = GatePredicted(0, 1, (((3, 60), (2, 30), (0, 5)), ((0, 5),)))
    only = GatePredicted(0, 1, (((3, 60), (0, 5)),))
    for event in (said, only):
        one = filled("spmoe.refined")
        # Slot 3 is that of expert 1, which is not named.
        assert one.handle(event) == (Submit(2, Purpose.PREFETCH, (Load(key(1, 3), 3, key(1, 1)),)),)
    # Without that care the expert used longest ago leaves, needed or not.
    assert filled("spmoe.per-layer.next-gate").handle(only) == (
        Submit(2, Purpose.PREFETCH, (Load(key(1, 3), 2, key(1, 0)),)),
    )


def test_is_made_of_both() -> None:
    scope = Scope(LAYERS, EXPERTS, 2, 2, CutoffLayer(), Pace(1, 0, 3, 1, 7))
    assert DraftThenGate.needs == DraftGate.needs | NextGate.needs
    draft, both = built(DraftGate(group=1), scope), built(DraftThenGate(group=1), scope)
    assert (both.predicted_layers, both.predicted_group) == (draft.predicted_layers, draft.predicted_group) == (2, 1)
    for one in (draft, both):
        one.step_begun(StepBegun(10, 1), 1)
        one.draft_predicted(DraftPredicted(11, 0, 0, (((1, 5), (2, 4)), ((3, 6),))))
        assert entries(one) == [(1, 11, 5), (EXPERTS + 3, 18, 6)]
    both.gate_predicted(GatePredicted(30, 2, (((1, 5),),)))
    assert entries(both)[2:] == [(2 * EXPERTS + 1, 37, 5)]


def built(part: DraftGate, scope: Scope) -> WantedSet:
    predictor = part.build(scope, None)
    assert isinstance(predictor, WantedSet)
    return bound(predictor)


@pytest.mark.parametrize("protect", [True, False])
def test_residents_that_are_forecast_count_as_used_if_they_are_protected(protect: bool) -> None:
    scope = Scope(LAYERS, EXPERTS, 2, 2, CutoffLayer(), Pace(1, 0, 3, 1, 7))
    for part in (DraftGate(group=1, protect=protect), DraftThenGate(group=1, protect=protect)):
        cache, one = FakeCache(), built(part, scope)
        one.bind(cache)
        cache.resident = {1: 0}
        one.draft_predicted(DraftPredicted(11, 0, 0, (((1, 5),), ((3, 6),))))
        assert cache.touched == [1] * protect and list(one.wanted) == [EXPERTS + 3]


def test_a_draft_that_errs_is_corrected_in_time() -> None:
    lines = trace([token(n, (0,), (1,), draft=((0,), (2,)), next_gate=((), (1,))) for n in range(2)], 2, 4)
    hardware = machine(2, load_ns=100)
    # Drafted at 40, when (0, 0) and (1, 2) are fetched together, 40 - 240.  Layer 0 is reached at 140 and done at 290.
    # Layer 1 is reached at 390: only then is (1, 1) fetched on demand, 390 - 490, 540.
    alone = solve(lines, "spmoe.per-layer", slots=4, gamma=1, hardware=hardware, cutoff=2)
    assert alone.counts == (0, 1, 1, 3)
    assert alone.metrics.decode_ns == 540
    # The target names (1, 1) at 140: 240 - 340, behind what cannot be stopped.  Layer 1 hits: 440.
    both = solve(lines, "spmoe.refined", slots=4, gamma=1, hardware=hardware, cutoff=2)
    assert both.transfers == [([(0, 0), (1, 2)], 40, 240), ([(1, 1)], 240, 340)]
    assert both.counts == (1, 1, 0, 3)
    assert both.metrics.decode_ns == 440
