"""The scheduler by hand: a step you can follow on paper, failures, and every event out of place."""

from __future__ import annotations

import pytest

from spmoe.policy.parts.pace import Pace
from spmoe.scheduler.config import SchedulerConfig
from spmoe.scheduler.legal_order import IllegalEvent
from spmoe.scheduler.loads import TransferFailed
from spmoe.scheduler.scheduler import Scheduler
from spmoe.state.commands import LayerPlan, Load, Purpose, Speculate, Submit
from spmoe.state.events import (
    BatchArrived,
    BatchFailed,
    Computed,
    DraftPredicted,
    Event,
    GatePredicted,
    LayerDone,
    LayerReached,
    PrefillBegun,
    PrefillEnded,
    RequestBegun,
    StepBegun,
    StepEnded,
    TokenDrafted,
)

PACE = Pace(load_bytes=1, latency_ns=1, transfer_ns=9, draft_ns=20, layer_ns=5)


def scheduler(recipe: str, slots: int = 4, layers: int = 2, gamma: int = 1, depth: int = 2) -> Scheduler:
    return Scheduler(
        SchedulerConfig(
            recipe=recipe,
            layers=layers,
            experts=4,
            top_k=2,
            slots=slots,
            gamma=gamma,
            cutoff=layers,
            pace=PACE,
            depth=depth,
        )
    )


def demand(batch: int, key: int, slot: int, evicted: int | None = None) -> Submit:
    return Submit(batch, Purpose.DEMAND, (Load(key, slot, evicted),))


def test_a_step_on_demand() -> None:
    one = scheduler("on-demand.lru", slots=3)
    assert one.handle(RequestBegun(0, 0)) == ()
    assert one.handle(StepBegun(0, 0)) == (Speculate(0, 0, 1),)
    plan = LayerPlan(0, hits=(), late=(), misses=(2, 1), host=(), in_order=False, waves=False)
    assert one.handle(LayerReached(5, 0, (2, 1), (1, 1))) == (demand(0, 2, 0), demand(1, 1, 1), plan)
    assert one.handle(BatchArrived(15, 0, 6, 15)) == ()
    assert one.handle(BatchArrived(25, 1, 15, 25)) == ()
    assert one.handle(LayerDone(30, 0, ((5, 15),))) == ()
    # Three needs and three slots, two of them taken by layer 0: 2, touched before 1, leaves.
    plan = LayerPlan(1, hits=(), late=(), misses=(0, 3), host=(), in_order=False, waves=False)
    assert one.handle(LayerReached(35, 1, (0, 3), (1, 1))) == (demand(2, 4, 2), demand(3, 7, 0, evicted=2), plan)
    one.handle(BatchArrived(45, 2, 36, 45))
    one.handle(BatchArrived(55, 3, 45, 55))
    assert one.handle(LayerDone(60, 1, ())) == ()
    assert one.handle(StepEnded(60, 0)) == ()
    assert one.handle(StepBegun(60, 0)) == (Speculate(0, 0, 1),)
    plan = LayerPlan(0, hits=(1,), late=(), misses=(), host=(), in_order=False, waves=False)
    assert one.handle(LayerReached(65, 0, (1,), (1,))) == (plan,)


def test_where_everybody_is_there_nothing_is_to_be_known() -> None:
    one = scheduler("spmoe.foresight.eviction", slots=4, layers=1)
    one.handle(RequestBegun(0, 0))
    asked = []
    for step, experts in enumerate(((0, 1), (2, 3), (0, 3))):
        begun = 100 * step
        asked += one.handle(StepBegun(begun, 0))
        *submits, _ = one.handle(LayerReached(begun + 30, 0, experts, (1, 1)))
        for submit in submits:
            assert isinstance(submit, Submit)
            one.handle(BatchArrived(begun + 40, submit.batch, begun + 30, begun + 40))
        one.handle(LayerDone(begun + 50, 0, ()))
        one.handle(StepEnded(begun + 60, 0))
    assert asked == [Speculate(0, 1, 4), Speculate(0, 1, 4), Speculate(0, 0, 1)]


def test_a_layer_runs_in_waves_where_the_slots_do_not_suffice() -> None:
    one = scheduler("on-demand.lru", slots=1)
    one.handle(RequestBegun(0, 0))
    one.handle(StepBegun(0, 0))
    plan = LayerPlan(0, hits=(), late=(), misses=(3, 0), host=(), in_order=False, waves=True)
    assert one.handle(LayerReached(0, 0, (3, 0), (1, 1))) == (demand(0, 3, 0), plan)
    assert one.handle(BatchArrived(10, 0, 1, 10)) == ()
    assert one.handle(Computed(12, 0, (3,))) == (demand(1, 0, 0, evicted=3),)
    with pytest.raises(IllegalEvent):
        one.handle(LayerDone(12, 0, ()))
    one.handle(BatchArrived(22, 1, 13, 22))
    one.handle(Computed(24, 0, (0,)))
    assert one.handle(LayerDone(24, 0, ())) == ()


def test_demand_overtakes_what_was_prefetched_and_useless_wishes_are_dropped() -> None:
    one = scheduler("spmoe.per-layer", slots=4, depth=1)
    one.handle(RequestBegun(0, 0))
    assert one.handle(StepBegun(0, 1))[0][0] == 1
    said = (((0, 40),), ((1, 50),))
    commands = one.handle(DraftPredicted(10, 0, 0, said))
    assert commands == (Submit(0, Purpose.PREFETCH, (Load(0, 0, None), Load(5, 2, None))),)
    one.handle(TokenDrafted(20, 0, None))
    # 0 is on its way, 3 waits behind it.
    assert one.handle(LayerReached(25, 0, (3, 0), (1, 1))) == (LayerPlan(0, (), (0,), (3,), (), False, False),)
    assert one.handle(BatchArrived(29, 0, 11, 29)) == (demand(1, 3, 1),)


def test_a_failed_batch_is_submitted_once_more() -> None:
    one = scheduler("on-demand.lru")
    one.handle(RequestBegun(0, 0))
    one.handle(StepBegun(0, 0))
    submit, plan = one.handle(LayerReached(0, 0, (2,), (1,)))
    assert isinstance(submit, Submit) and plan == LayerPlan(0, (), (), (2,), (), False, False)
    assert one.handle(BatchFailed(7, 0)) == (submit._replace(attempt=2),)
    with pytest.raises(IllegalEvent):
        one.handle(LayerDone(8, 0, ()))
    with pytest.raises(TransferFailed, match="batch 0 failed twice"):
        one.handle(BatchFailed(9, 0))
    one.handle(BatchArrived(10, 0, 8, 10))
    assert one.handle(LayerDone(12, 0, ())) == ()


ALL: dict[str, Event] = {
    "request": RequestBegun(50, 1),
    "prefill": PrefillBegun(50, 3),
    "prefill ended": PrefillEnded(50),
    "step": StepBegun(50, 1),
    "predicted": DraftPredicted(50, 0, 0, ((), ())),
    "drafted": TokenDrafted(50, 0, None),
    "layer": LayerReached(50, 0, (1,), (1,)),
    "gate": GatePredicted(50, 1, ((), ())),
    "computed": Computed(50, 0, (1,)),
    "layer done": LayerDone(50, 0, ()),
    "arrived": BatchArrived(50, 0, 50, 50),
    "failed": BatchFailed(50, 0),
    "ended": StepEnded(50, 0),
}
REQUEST = [RequestBegun(0, 0)]
STEP = [*REQUEST, StepBegun(0, 1)]
PREDICTED = [*STEP, DraftPredicted(0, 0, 0, ((), ()))]
DRAFTED = [*PREDICTED, TokenDrafted(0, 0, None)]
MISSING = [*DRAFTED, LayerReached(0, 0, (1,), (1,))]
THERE = [*MISSING, BatchArrived(0, 0, 0, 0)]
BETWEEN = [*THERE, LayerDone(0, 0, ())]
VERIFIED = [*BETWEEN, LayerReached(0, 1, (), ()), LayerDone(0, 1, ())]
PROMPT = [*REQUEST, PrefillBegun(0, 3)]
READ = [*PROMPT, *[event for layer in (0, 1) for event in (LayerReached(0, layer, (), ()), LayerDone(0, layer, ()))]]


@pytest.mark.parametrize(
    ("past", "legal"),
    [
        ([], {"request"}),
        (REQUEST, {"request", "prefill", "step"}),
        (STEP, {"predicted"}),
        (PREDICTED, {"drafted"}),
        (DRAFTED, {"layer"}),
        (MISSING, {"gate", "arrived", "failed"}),
        (THERE, {"gate", "computed", "layer done"}),
        (BETWEEN, set()),
        (VERIFIED, {"ended"}),
        ([*VERIFIED, StepEnded(0, 1)], {"request", "step"}),
        (PROMPT, {"layer"}),
        (READ, {"prefill ended"}),
        ([*READ, PrefillEnded(0)], {"request", "step"}),
    ],
)
def test_the_table_of_legal_events(past: list[Event], legal: set[str]) -> None:
    for name, event in ALL.items():
        one = scheduler("spmoe.paper")
        for earlier in past:
            one.handle(earlier)
        if name in legal:
            one.handle(event)
        else:
            with pytest.raises(IllegalEvent, match="not allowed"):
                one.handle(event)


@pytest.mark.parametrize(
    ("past", "event"),
    [
        (REQUEST, PrefillBegun(0, 0)),
        (REQUEST, StepBegun(0, -1)),
        (STEP, DraftPredicted(0, 1, 0, ((), ()))),
        (STEP, DraftPredicted(0, 0, 1, ((),))),
        (STEP, TokenDrafted(0, 0, None)),
        (STEP, LayerReached(0, 0, (), ())),
        (DRAFTED, TokenDrafted(0, 1, None)),
        (DRAFTED, LayerReached(0, 1, (), ())),
        (MISSING, BatchArrived(0, 1, 0, 0)),
        (MISSING, BatchArrived(0, 0, 1, 0)),
        (MISSING, BatchArrived(0, 0, 0, 1)),
        (MISSING, BatchArrived(5, 0, 4, 3)),
        (MISSING, GatePredicted(0, 0, ((), ()))),
        (THERE, Computed(0, 0, (2,))),
        (THERE, Computed(0, 1, (1,))),
        (THERE, LayerDone(0, 1, ())),
        (THERE, BatchArrived(0, 0, 0, 0)),
        ([*BETWEEN, LayerReached(0, 1, (), ())], GatePredicted(0, 2, ((), ()))),
        (VERIFIED, LayerReached(0, 2, (), ())),
        (VERIFIED, StepEnded(0, 2)),
        (VERIFIED, StepEnded(0, -1)),
        (READ, LayerReached(0, 2, (), ())),
    ],
)
def test_right_type_wrong_numbers(past: list[Event], event: Event) -> None:
    one = scheduler("spmoe.paper")
    for earlier in past:
        one.handle(earlier)
    with pytest.raises(IllegalEvent):
        one.handle(event)


def test_time_does_not_run_backwards() -> None:
    one = scheduler("on-demand.lru")
    one.handle(RequestBegun(5, 0))
    with pytest.raises(IllegalEvent, match="time ran backwards from 5 ns"):
        one.handle(StepBegun(4, 0))
    one.handle(StepBegun(5, 0))
