"""Totals of the link, followed on paper.  An expert has 10 bytes."""

from __future__ import annotations

import random

import pytest

from spmoe.results.transfers import TransferFold, Transfers
from spmoe.state.commands import Command, LayerPlan, Load, Purpose, Speculate, Submit
from spmoe.state.events import BatchArrived, BatchFailed, Event, LayerDone, LayerReached, StepBegun, StepEnded

Entry = tuple[Event, tuple[Command, ...]]


def submit(batch: int, loads: int = 1, attempt: int = 1) -> Submit:
    return Submit(batch, Purpose.DEMAND, tuple(Load(key, key, None) for key in range(loads)), attempt)


def reached(time: int, *batches: Submit) -> Entry:
    return LayerReached(time, 0, (), (), ()), (*batches, LayerPlan(0, (), (), (), (), False, False))


def arrived(batch: int, started: int, ended: int, told: int | None = None) -> Entry:
    return BatchArrived(ended if told is None else told, batch, started, ended), ()


def done(time: int, *waits: tuple[int, int]) -> Entry:
    return LayerDone(time, 0, waits), ()


def fold(*entries: Entry) -> Transfers:
    folded = TransferFold(10)
    for event, commands in entries:
        folded.observe(event, commands)
    return folded.result()


def test_nothing_happened() -> None:
    nothing = fold()
    assert (nothing.bytes, nothing.busy_ns, nothing.stalled_ns) == (0, 0, 0)
    assert (nothing.hidden_share, nothing.bytes_per_s, nothing.acceptance) == (None, None, None)


def test_a_transfer_that_nobody_waits_for_is_hidden() -> None:
    found = fold(reached(0, submit(0, loads=3)), done(100), arrived(0, 10, 60, told=110), done(200, (150, 160)))
    assert (found.loads, found.bytes, found.busy_ns, found.stalled_ns) == (3, 30, 50, 0)
    assert found.hidden_share == 1.0
    assert found.bytes_per_s == 30 / 50e-9


def test_only_the_part_that_the_verifier_waits_through_is_not_hidden() -> None:
    found = fold(reached(0, submit(0)), arrived(0, 10, 60), done(100, (40, 60)))
    assert (found.busy_ns, found.stalled_ns) == (50, 20)
    assert found.hidden_share == pytest.approx(0.6)


def test_latency_that_is_waited_for_is_no_transfer() -> None:
    """The verifier waits from 0, the link works from 10."""
    assert fold(reached(0, submit(0)), arrived(0, 10, 60), done(100, (0, 60))).stalled_ns == 50


def test_a_transfer_overlaps_several_waits_and_a_wait_several_transfers() -> None:
    found = fold(
        reached(0, submit(0), submit(1)),
        arrived(0, 0, 30),
        arrived(1, 30, 100),
        done(120, (10, 40), (50, 60), (90, 100)),
    )
    assert (found.busy_ns, found.stalled_ns) == (100, 30 + 10 + 10)


def test_a_wait_counts_for_a_transfer_that_goes_on_behind_its_layer() -> None:
    """The layer waits for batch 0; batch 1 begins meanwhile, and ends when the layer is long done."""
    found = fold(
        reached(0, submit(0), submit(1)),
        arrived(0, 0, 40),
        done(70, (0, 50)),  # Until 50, say, for the CPU: batch 1 works from 40 on.
        reached(80),
        arrived(1, 40, 90),
        done(100),
    )
    assert (found.busy_ns, found.stalled_ns) == (90, 50)


def test_a_transfer_told_two_layers_later_still_knows_who_waited() -> None:
    found = fold(
        reached(0, submit(0)),
        done(50, (20, 30)),
        reached(60),
        done(90, (70, 80)),
        arrived(0, 10, 100),
        done(120),
    )
    assert (found.busy_ns, found.stalled_ns) == (90, 20)


def test_a_wait_is_not_counted_twice() -> None:
    folded = TransferFold(10)
    for event, commands in (reached(0, submit(0)), arrived(0, 10, 60), done(100, (40, 60))):
        folded.observe(event, commands)
    first = folded.result()
    assert folded.result() == first
    for event, commands in (reached(110, submit(1)), arrived(1, 110, 130), done(140)):
        folded.observe(event, commands)
    assert (folded.result().busy_ns, folded.result().stalled_ns) == (70, 20)


def test_a_batch_tried_again_counts_once() -> None:
    found = fold(
        reached(0, submit(0, loads=2)),
        (BatchFailed(30, 0), (submit(0, loads=2, attempt=2),)),
        arrived(0, 40, 60),
        done(70, (0, 60)),
    )
    assert (found.loads, found.busy_ns, found.stalled_ns) == (2, 20, 20)


def test_what_never_arrives_was_not_moved() -> None:
    assert fold(reached(0, submit(0, loads=2)), done(70, (0, 60))).bytes == 0


def test_drafted_and_accepted_tokens() -> None:
    found = fold(
        (StepBegun(0, 4), (Speculate(4, 0, 1),)),
        (StepEnded(10, 3), ()),
        (StepBegun(10, 2), (Speculate(2, 0, 1),)),
        (StepEnded(20, 0), ()),
    )
    assert (found.drafted, found.accepted, found.acceptance) == (6, 3, 0.5)


@pytest.mark.parametrize("seed", range(40))
def test_agrees_with_counting_nanosecond_by_nanosecond(seed: int) -> None:
    """Layers with waits drawn at random over transfers that follow each other, told late, as an engine does."""
    rng = random.Random(seed)
    entries: list[tuple[int, Entry]] = []
    link: set[int] = set()
    waited: set[int] = set()
    free = told = 0
    for batch in range(12):
        submitted = free - rng.randint(0, 30) if free > 30 else free
        started = max(free, submitted) + rng.randint(0, 20)
        free = started + rng.randint(1, 40)
        link.update(range(started, free))
        entries.append((submitted, reached(submitted, submit(batch))))
        told = max(told, free + rng.randint(0, 25))  # In order of submission, whenever somebody asks.
        entries.append((told, arrived(batch, started, free, told)))
    time = 0
    while time < free + 50:
        begin, length, rest = time + rng.randint(0, 20), rng.randint(0, 30), rng.randint(1, 10)
        waited.update(range(begin, begin + length))
        time = begin + length + rest
        entries.append((time, done(time, (begin, begin + length))))
    order = sorted(range(len(entries)), key=lambda n: entries[n][0])
    found = fold(*[entries[n][1] for n in order])
    assert found.busy_ns == len(link)
    assert found.stalled_ns == len(link & waited)
