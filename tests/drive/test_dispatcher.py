"""What all drivers keep: batches on the link, and what has landed for the open layer."""

from __future__ import annotations

import pytest

from spmoe.drive.dispatcher import Dispatcher
from spmoe.state.commands import Command, LayerPlan, Load, Purpose, Submit
from spmoe.state.events import BatchArrived, BatchFailed, Event, HostComputed, LayerReached, PrefillEnded

EXPERTS = 4


class Scheduler:
    """Answers with what a test puts here, and keeps the events."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.answer: tuple[Command, ...] = ()

    def handle(self, event: Event) -> tuple[Command, ...]:
        self.events.append(event)
        answer, self.answer = self.answer, ()
        return answer


class Setup:
    """A dispatcher with what it has seen."""

    def __init__(self) -> None:
        self.scheduler = Scheduler()
        self.submitted: list[tuple[Submit, int]] = []
        self.order: list[str] = []
        self.dispatcher = Dispatcher(self.scheduler.handle, EXPERTS, self._submit, (self._observe,))

    def submit(self, batch: int, *keys: int) -> None:
        """Has the scheduler submit a batch of these experts."""
        self.scheduler.answer = (batch_of(batch, *keys),)
        self.dispatcher.dispatch(PrefillEnded(7))

    def reach(self, layer: int) -> None:
        """A layer is reached."""
        self.dispatcher.dispatch(LayerReached(0, layer, (0,), (1,), ()))

    def _submit(self, batch: Submit, now: int) -> None:
        self.order.append("submit")
        self.submitted.append((batch, now))

    def _observe(self, event: Event, commands: tuple[Command, ...]) -> None:
        self.order.append("observe")


def batch_of(batch: int, *keys: int) -> Submit:
    return Submit(batch, Purpose.DEMAND, tuple(Load(key, slot, None) for slot, key in enumerate(keys)), 1)


@pytest.fixture
def setup() -> Setup:
    return Setup()


def test_submissions_go_to_the_link_and_the_reply_to_the_program(setup: Setup) -> None:
    plan, batch = LayerPlan(0, (), (), (0,), (), False, False), batch_of(0, 3)
    setup.scheduler.answer = (batch, plan)
    assert setup.dispatcher.dispatch(LayerReached(5, 0, (0,), (1,), ())) is plan
    assert setup.submitted == [(batch, 5)] and setup.dispatcher.on_link == {0: batch}
    assert setup.order == ["observe", "submit"]


def test_what_arrives_is_taken_once_in_order_of_arrival(setup: Setup) -> None:
    setup.reach(1)
    setup.submit(0, 6, 5)
    setup.submit(1, 4, 9)
    for batch in (0, 1):
        setup.dispatcher.deliver(BatchArrived(9, batch, 8, 9))
    assert not setup.dispatcher.on_link
    assert setup.dispatcher.take({0, 2}) == ([2, 0], [])
    assert setup.dispatcher.take({0, 1, 2}) == ([1], [])
    assert setup.dispatcher.take({0, 1, 2}) == ([], [])


def test_what_arrived_before_the_layer_was_reached_does_not_count(setup: Setup) -> None:
    setup.submit(0, 4)
    setup.dispatcher.deliver(BatchArrived(9, 0, 8, 9))
    setup.reach(1)
    assert setup.dispatcher.take({0}) == ([], [])


def test_an_expert_of_the_cpu_lands_with_its_result(setup: Setup) -> None:
    setup.reach(1)
    setup.dispatcher.assign_to_cpu((0, 2))
    setup.submit(0, 4, 5)
    setup.dispatcher.deliver(BatchArrived(9, 0, 8, 9))
    assert setup.dispatcher.take({0, 1, 2}) == ([1], [])
    setup.dispatcher.deliver(HostComputed(10, 1, 2, 9, 10))
    assert setup.dispatcher.take({0}) == ([], [])
    assert setup.dispatcher.take({0, 2}) == ([], [2])
    setup.reach(0)
    setup.submit(1, 2)
    setup.dispatcher.deliver(BatchArrived(11, 1, 10, 11))
    assert setup.dispatcher.take({2}) == ([2], [])  # Of another layer, which is not on the CPU.


def test_a_failed_batch_stays_on_the_link_until_its_second_attempt_arrives(setup: Setup) -> None:
    setup.reach(0)
    setup.submit(0, 1)
    again = batch_of(0, 1)._replace(attempt=2)
    setup.scheduler.answer = (again,)
    setup.dispatcher.deliver(BatchFailed(9, 0))
    assert setup.dispatcher.on_link == {0: again} and setup.dispatcher.take({1}) == ([], [])
    setup.dispatcher.deliver(BatchArrived(12, 0, 9, 12))
    assert setup.dispatcher.take({1}) == ([1], [])
