"""The checker notices what breaks the contract: each test spoils one entry of a good run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from spmoe.policy.registry import recipe
from spmoe.state.commands import Command, LayerPlan, Purpose, Speculate, Submit
from spmoe.state.events import BatchArrived, BatchFailed, Computed, Event, LayerDone, LayerReached, StepEnded
from tests.conformance.cases import named_cases
from tests.conformance.checker import ContractChecker
from tests.conformance.drivers import Recording, simulate

Entries = list[tuple[Event, tuple[Command, ...]]]
_T = TypeVar("_T")


@pytest.fixture(scope="module")
def recording() -> Recording:
    return simulate(recipe("spmoe.paper"), dict(named_cases())["a window bigger than the cache"])


def check(recording: Recording, entries: Entries) -> None:
    checker = ContractChecker(recording.config)
    for event, commands in entries:
        checker.observe(event, commands)
    checker.finish()


def spoil_event(kind: type[_T], change: Callable[[_T], Any]) -> Callable[[Entries], None]:
    """Changes an event in the middle of the run; a change to a list replaces the event by several or none."""

    def spoil(entries: Entries) -> None:
        at = [number for number, (event, _) in enumerate(entries) if isinstance(event, kind)][20]
        event, commands = entries[at]
        changed = change(event)  # type: ignore[arg-type]
        entries[at : at + 1] = [(other, commands) for other in (changed if isinstance(changed, list) else [changed])]

    return spoil


def spoil_command(kind: type[_T], change: Callable[[_T], Any], when: Callable[[_T], bool]) -> Callable[[Entries], None]:
    """Changes the first command that fits; None leaves it out."""

    def spoil(entries: Entries) -> None:
        for number, (event, commands) in enumerate(entries):
            for at, command in enumerate(commands):
                if isinstance(command, kind) and when(command):
                    changed = change(command)
                    entries[number] = (
                        event,
                        commands[:at] + (() if changed is None else (changed,)) + commands[at + 1 :],
                    )
                    return
        raise AssertionError("nothing to spoil")

    return spoil


def with_load(**changes: Any) -> Callable[[Submit], Submit]:
    return lambda submit: submit._replace(loads=(submit.loads[0]._replace(**changes), *submit.loads[1:]))


def done_at_once(event: LayerReached) -> LayerDone:
    return LayerDone(event.time, event.layer, ())


def evicting(submit: Submit) -> bool:
    return submit.loads[0].evicted is not None


SPOILED: dict[str, Callable[[Entries], None]] = {
    "an arrival is lost": spoil_event(BatchArrived, lambda event: []),
    "an arrival is told twice": spoil_event(BatchArrived, lambda event: [event, event]),
    "arrivals out of order": spoil_event(BatchArrived, lambda event: event._replace(batch=event.batch + 1)),
    "a transfer begins before it was submitted": spoil_event(BatchArrived, lambda event: event._replace(started=0)),
    "a transfer ends before it began": spoil_event(BatchArrived, lambda event: event._replace(ended=event.started - 1)),
    "a transfer is told of before it ends": spoil_event(
        BatchArrived, lambda event: event._replace(ended=event.time + 1)
    ),
    "a failure is not retried": spoil_event(BatchArrived, lambda event: BatchFailed(event.time, event.batch)),
    "experts of a wave are never computed": spoil_event(Computed, lambda event: []),
    "experts of a wave are computed twice": spoil_event(Computed, lambda event: [event, event]),
    "other experts are computed": spoil_event(Computed, lambda event: event._replace(experts=(0, 1, 2, 3, 4, 5, 6, 7))),
    "a layer is never done": spoil_event(LayerDone, lambda event: []),
    "a layer is done before its experts are there": spoil_event(
        LayerReached, lambda event: [event, done_at_once(event)]
    ),
    "a wait outside of the layer": spoil_event(LayerDone, lambda event: event._replace(waits=((0, 1),))),
    "a layer is left out": spoil_event(LayerReached, lambda event: []),
    "a layer of another number": spoil_event(LayerReached, lambda event: event._replace(layer=(event.layer + 1) % 4)),
    "time runs backwards": spoil_event(LayerReached, lambda event: event._replace(time=0)),
    "more tokens accepted than drafted": spoil_event(StepEnded, lambda event: event._replace(accepted=5)),
    "more tokens to draft than asked for": spoil_command(
        Speculate, lambda reply: reply._replace(gamma=5), lambda reply: True
    ),
    "a hit that is none": spoil_command(
        LayerPlan,
        lambda plan: plan._replace(hits=plan.hits + plan.misses, misses=()),
        lambda plan: bool(plan.misses),
    ),
    "a need forgotten": spoil_command(LayerPlan, lambda plan: plan._replace(misses=()), lambda plan: bool(plan.misses)),
    "waves denied": spoil_command(LayerPlan, lambda plan: plan._replace(waves=False), lambda plan: plan.waves),
    "a load into a slot that is taken": spoil_command(Submit, with_load(evicted=None), evicting),
    "a slot that does not exist": spoil_command(Submit, with_load(slot=6), evicting),
    "another is evicted": spoil_command(Submit, with_load(evicted=31), evicting),
    "loaded twice": spoil_command(
        Submit, lambda submit: submit._replace(loads=submit.loads * 2), lambda submit: len(submit.loads) == 1
    ),
    "a demand load called a prefetch": spoil_command(
        Submit,
        lambda submit: submit._replace(purpose=Purpose.PREFETCH),
        lambda submit: submit.purpose is Purpose.DEMAND,
    ),
    "a batch left out": spoil_command(Submit, lambda submit: None, lambda submit: True),
    "a retry out of nowhere": spoil_command(Submit, lambda submit: submit._replace(attempt=2), lambda submit: True),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_notices(recording: Recording, spoil: Callable[[Entries], None]) -> None:
    entries = list(recording.entries)
    spoil(entries)
    with pytest.raises(AssertionError):
        check(recording, entries)


def test_notices_a_miss_that_is_none() -> None:
    recording = simulate(recipe("spmoe.paper"), dict(named_cases())["half the experts"])
    entries = list(recording.entries)
    spoil_command(
        LayerPlan,
        lambda plan: plan._replace(hits=plan.hits[1:], late=plan.hits[:1] + plan.late),
        lambda plan: bool(plan.hits),
    )(entries)
    with pytest.raises(AssertionError):
        check(recording, entries)


def test_accepts_the_run_itself(recording: Recording) -> None:
    check(recording, list(recording.entries))


def test_a_run_that_stops_inside_a_layer_is_not_finished(recording: Recording) -> None:
    reached = [number for number, (event, _) in enumerate(recording.entries) if isinstance(event, LayerReached)]
    with pytest.raises(AssertionError):
        check(recording, list(recording.entries[: reached[-1] + 1]))
