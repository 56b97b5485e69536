"""The metrics, event by event."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from spmoe.results.metrics import Metrics
from spmoe.results.metrics_fold import MetricsFold
from spmoe.state.commands import Command, LayerPlan, Load, Purpose, Speculate, Submit
from spmoe.state.events import (
    BatchArrived,
    Event,
    LayerDone,
    LayerReached,
    PrefillBegun,
    PrefillEnded,
    RequestBegun,
    StepBegun,
    StepEnded,
    TokenDrafted,
)

EXPERTS = 4
PLAIN = Speculate(0, 0, 1)


def fold(*entries: tuple[Event, Iterable[Command]]) -> Metrics:
    watcher = MetricsFold(EXPERTS)
    for event, commands in entries:
        watcher.observe(event, tuple(commands))
    return watcher.result()


def load(batch: int, *keys: int, purpose: Purpose = Purpose.DEMAND, evicted: int | None = None) -> Submit:
    return Submit(batch, purpose, tuple(Load(key, slot, evicted) for slot, key in enumerate(keys)))


def reached(time: int, *experts: int, hits: int = 0, late: int = 0) -> tuple[Event, list[Command]]:
    """Layer 0 is reached; of its needs the first are hits, the next ones late, the others misses."""
    plan = LayerPlan(0, experts[:hits], experts[hits : hits + late], experts[hits + late :], (), False, False)
    return LayerReached(time, 0, experts, (1,) * len(experts)), [plan]


def test_nothing_happened() -> None:
    nothing = fold()
    assert nothing.events == nothing.needs == nothing.loads == 0
    for rate in ("tpot_ms", "ttft_ms", "loads_per_token", "hit_rate", "late_rate", "prefetch_precision"):
        assert getattr(nothing, rate) is None
    assert nothing.prefetch_recall is nothing.stall_fraction is nothing.link_utilisation is None


def test_times_of_a_step() -> None:
    found = fold(
        (RequestBegun(100, 0), []),
        (StepBegun(100, 2), [Speculate(2, 0, 1)]),
        (TokenDrafted(130, 0, None), []),
        (TokenDrafted(160, 1, None), []),
        reached(200, 0, 1, hits=2),
        (LayerDone(300, 0, ((210, 230), (240, 280))), []),
        (StepEnded(300, 2), []),
    )
    assert (found.events, found.requests, found.steps, found.tokens) == (7, 1, 1, 3)
    assert found.decode_ns == 200
    assert found.stall_ns == 60
    assert found.compute_ns == 140 - 60  # from the last drafted token on
    assert found.tpot_ms == pytest.approx(200 / 3 / 1e6)
    assert found.stall_fraction == 0.3
    assert found.hit_rate == 1


def test_hits_late_and_misses_are_what_the_plan_says() -> None:
    found = fold((StepBegun(0, 0), [PLAIN]), reached(5, 0, 1, 2, 3, hits=1, late=2), (StepEnded(9, 0), []))
    assert (found.hits, found.late, found.misses, found.needs) == (1, 2, 1, 4)
    assert (found.hit_rate, found.late_rate) == (0.25, 0.5)


def test_prefill_counts_only_towards_the_first_token() -> None:
    event, commands = reached(40, 0, 1)
    found = fold(
        (RequestBegun(20, 0), []),
        (PrefillBegun(20, 7), []),
        (event, [load(0, 0, 1), *commands]),
        (BatchArrived(80, 0, 40, 80), []),
        (LayerDone(90, 0, ((40, 80),)), []),
        (PrefillEnded(90), []),
        (StepBegun(90, 0), [PLAIN]),
        reached(95, 0, hits=1),
        (StepEnded(100, 0), []),
    )
    assert (found.prefills, found.prefill_ns, found.ttft_ms) == (1, 70, 70e-6)
    assert (found.decode_ns, found.loads, found.stall_ns, found.link_busy_ns) == (10, 0, 0, 0)
    assert (found.hits, found.needs, found.cold_needs) == (1, 1, 0)


def test_preloads_count_as_loads_even_in_a_prefill_and_never_as_prefetches() -> None:
    preload = load(0, 0, 1, purpose=Purpose.PRELOAD)
    found = fold((PrefillBegun(0, 7), [preload]), (PrefillEnded(9), []), (StepEnded(9, 0), []))
    assert (found.loads, found.prefetched) == (2, 0)


def test_precision_counts_prefetches_used_before_they_leave() -> None:
    event, commands = reached(20, 0, 1, hits=2)
    found = fold(
        (StepBegun(0, 0), [PLAIN, load(0, 0, 1, 2, purpose=Purpose.PREFETCH)]),
        (BatchArrived(10, 0, 0, 10), []),
        (event, [*commands]),
        (LayerDone(30, 0, ()), [load(1, 3, evicted=2)]),  # 2 leaves unused
        reached(40, 0, hits=1),  # a second use of 0 is not a second success
        (StepEnded(50, 0), []),
    )
    assert (found.prefetched, found.prefetched_used) == (3, 2)
    assert found.prefetch_precision == pytest.approx(2 / 3)


def test_recall_counts_needs_that_were_cold_when_their_step_began() -> None:
    found = fold(
        (StepBegun(0, 0), [PLAIN, load(0, 0, purpose=Purpose.PREFETCH)]),
        (BatchArrived(10, 0, 0, 10), []),
        reached(20, 0, 1, hits=1),  # both cold at the start, 0 prefetched since
        (StepEnded(30, 0), []),
        (StepBegun(30, 0), [PLAIN]),
        reached(40, 0, hits=1),  # there at the start: not asked
        (StepEnded(50, 0), []),
    )
    assert (found.cold_needs, found.cold_needs_prefetched, found.prefetch_recall) == (2, 1, 0.5)


def test_a_retried_batch_counts_once() -> None:
    first = load(0, 0, purpose=Purpose.PREFETCH)
    found = fold((StepBegun(0, 0), [PLAIN, first]), (StepBegun(0, 0), [first._replace(attempt=2)]))
    assert (found.loads, found.prefetched) == (1, 1)


def test_the_link_is_busy_only_in_decode_time() -> None:
    found = fold(
        (RequestBegun(0, 0), []),
        (StepBegun(0, 0), [PLAIN, load(0, 0), load(1, 1)]),
        (BatchArrived(40, 0, 10, 40), []),  # 30
        (StepEnded(50, 0), []),
        (StepBegun(50, 0), [PLAIN]),
        (StepEnded(60, 0), []),
        (RequestBegun(60, 1), []),
        (PrefillBegun(60, 5), []),
        (BatchArrived(70, 1, 40, 70), [load(2, 2)]),  # 20, up to the end of the request
        (PrefillEnded(100), []),
        (StepBegun(100, 0), [PLAIN]),
        (BatchArrived(115, 2, 70, 115), [load(3, 3)]),  # 15, from the end of the prompt
        (StepEnded(130, 0), []),
        (BatchArrived(190, 3, 120, 190), []),  # 10, up to the end of the run
    )
    assert found.link_busy_ns == 30 + 20 + 15 + 10
    assert found.decode_ns == 60 + 30


def test_link_time_is_counted_once_however_late_it_is_told() -> None:
    found = fold(
        (RequestBegun(0, 0), []),
        (StepBegun(0, 0), [PLAIN, load(0, 0), load(1, 1), load(2, 2)]),
        (StepEnded(50, 0), []),
        (StepBegun(50, 0), [PLAIN]),
        (BatchArrived(55, 0, 10, 30), []),  # 20, all in the step before
        (BatchArrived(55, 1, 30, 45), []),  # 15, in it too
        (StepEnded(60, 0), []),
        (RequestBegun(60, 1), []),
        (PrefillBegun(60, 5), [load(3, 3)]),
        (BatchArrived(80, 2, 48, 75), []),  # 2 of the first step, 10 of the second, none of the prompt
        (PrefillEnded(100), []),
        (StepBegun(100, 0), [PLAIN]),
        (BatchArrived(110, 3, 75, 90), []),  # 0: the prompt's, though told in a step
        (StepEnded(130, 0), []),
    )
    assert found.link_busy_ns == 20 + 15 + 2 + 10
