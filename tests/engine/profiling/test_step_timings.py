"""A round taken apart, by hand."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="the engine needs torch")

from engine.profiling.step_timings import Drafted, Span, StepTimings
from spmoe.state.commands import Command, LayerPlan, Load, Purpose, Speculate, Submit
from spmoe.state.events import (
    BatchArrived,
    Event,
    HostComputed,
    LayerDone,
    LayerReached,
    PrefillBegun,
    RequestBegun,
    StepBegun,
    StepEnded,
    TokenDrafted,
)

NOTHING: tuple[Command, ...] = ()


def submit(batch: int, loads: int, *rest: Command) -> tuple[Command, ...]:
    return (Submit(batch, Purpose.PREFETCH, tuple(Load(key, key, None) for key in range(loads))), *rest)


def plan(layer: int, host: tuple[int, ...] = ()) -> LayerPlan:
    return LayerPlan(layer, (), (), (), host, False, False)


ROUND: list[tuple[Event, tuple[Command, ...]]] = [
    (RequestBegun(0, 0), NOTHING),
    (PrefillBegun(1, 7), NOTHING),
    (StepBegun(100, 2), (Speculate(1, 2, 8),)),
    (BatchArrived(150, 0, 100, 140), submit(1, 2)),  # Batch 0 is put on the link below, before the round.
    (TokenDrafted(300, 0, None), NOTHING),
    # Layer 0: two experts of two tokens each; one arrives in time, behind a wait, and one afterwards.
    (LayerReached(450, 0, (3, 1), (2, 2)), submit(2, 1, plan(0))),
    (BatchArrived(620, 1, 480, 600), NOTHING),
    (LayerDone(700, 0, ((500, 610),)), NOTHING),
    (BatchArrived(720, 2, 600, 710), NOTHING),
    # Layer 1, the last: the CPU computes one of two.
    (LayerReached(800, 1, (0, 2), (1, 3)), (plan(1, (2,)),)),
    (HostComputed(890, 1, 2, 830, 880), NOTHING),
    (LayerDone(900, 1, ((850, 880),)), NOTHING),
    (StepEnded(980, 1), NOTHING),
    (StepBegun(1000, 2), (Speculate(0, 0, 8),)),
]


def observed(entries: list[tuple[Event, tuple[Command, ...]]]) -> StepTimings:
    times = StepTimings()
    times.observe(RequestBegun(0, 0), submit(0, 3))
    for event, commands in entries:
        times.observe(event, commands)
    return times


def test_a_round_by_hand() -> None:
    times = observed(ROUND)
    # The draft has read nothing of the prompt's seven tokens yet, nor the one behind them.
    assert times.drafts == [Drafted(read=8, forecasts=2, landed=3, ns=200)]
    assert times.entries == {2: [150]}
    # 350 ns, of which 110 were waited for; up to where the experts were done, 250 less these.
    assert times.spans == [Span(2, (2, 2), 240, 140, landed=2, results=0, seen=1)]
    assert times.tails == [Span(2, (1,), 170, 70, landed=0, results=1, seen=0)]
    assert times.notices == [20]
    assert times.transfers == [(120, 2), (110, 1)]
    assert times.host == {3: [50]} and times.handovers == [30]
    assert times.decode_ns == 900


def test_experts_on_the_cpu_count_from_the_end_of_the_one_before() -> None:
    entries: list[tuple[Event, tuple[Command, ...]]] = [
        (StepBegun(0, 0), (Speculate(0, 0, 8),)),
        (LayerReached(10, 0, (0, 1), (1, 1)), (plan(0, (1, 0)),)),
        (HostComputed(60, 0, 1, 20, 50), NOTHING),
        (HostComputed(99, 0, 0, 57, 90), NOTHING),
        (LayerDone(100, 0, ((10, 99),)), NOTHING),
        (StepEnded(110, 0), NOTHING),
        (StepBegun(120, 0), (Speculate(0, 0, 8),)),
    ]
    assert observed(entries).host == {1: [30, 40]}


def test_a_round_that_no_other_follows_is_not_timed() -> None:
    times = observed([*ROUND[:-1], (RequestBegun(5000, 1), NOTHING), (StepBegun(6000, 1), (Speculate(0, 0, 8),))])
    assert not times.spans and not times.drafts and times.decode_ns == 0
