"""Both clocks with a link and a CPU that are quickly made: who is told of what, in which order, and when."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import pytest

torch = pytest.importorskip("torch", reason="the engine needs torch")

import engine.execution.real_clock  # noqa: E402
from engine.execution.clock import Notice  # noqa: E402
from engine.execution.cpu_worker import HostResult  # noqa: E402
from engine.execution.real_clock import RealClock  # noqa: E402
from engine.execution.virtual_clock import VirtualClock  # noqa: E402
from engine.memory.link import Completion  # noqa: E402
from spmoe.machine.cost import CostModel  # noqa: E402
from spmoe.machine.hardware import load_hardware  # noqa: E402
from spmoe.policy.recipe import RouterSignals  # noqa: E402
from spmoe.state.commands import Load, Purpose, Submit  # noqa: E402
from spmoe.state.events import BatchArrived, BatchFailed, HostComputed  # noqa: E402
from tests.conformance.cases import named_cases  # noqa: E402
from tests.conformance.drivers import cost_of  # noqa: E402


class Link:
    """Has carried out whatever it is asked for; the batches of `failing` went wrong."""

    def __init__(self, failing: frozenset[int] = frozenset()) -> None:
        self._failing = failing
        self._submitted: list[int] = []

    @property
    def outstanding(self) -> int:
        return len(self._submitted)

    def submit(self, submit: Submit) -> None:
        self._submitted.append(submit.batch)

    def wait(self, timeout: float | None = None) -> Completion:
        batch = self._submitted.pop(0)
        return Completion(batch, 0, 0, OSError("a bad cable") if batch in self._failing else None)

    def completions(self) -> list[Completion]:
        return [self.wait() for _ in range(self.outstanding)]


class Host:
    """Has computed so many experts of `layer`, the last one first, down to `expert`."""

    def __init__(self, results: int = 0, layer: int = 0, expert: int = 0) -> None:
        self.outstanding = results
        self._layer = layer
        self._expert = expert

    def wait(self) -> HostResult:
        self.outstanding -= 1
        return HostResult(self._layer, self._expert + self.outstanding, 0, 0)

    def finished(self, most: int | None = None) -> list[HostResult]:
        return [self.wait() for _ in range(self.outstanding)][:most]


def submit(batch: int, loads: int = 1) -> Submit:
    return Submit(batch, Purpose.DEMAND, tuple(Load(7 * key, key, None) for key in range(loads)), 1)


def costs(latency: int = 10, bandwidth: int = 10**9) -> CostModel:
    """An expert of 8 MB takes 8 ms."""
    hardware = load_hardware("rtx-4090")
    cost = cost_of(next(case for _, case in named_cases()))
    return CostModel(
        cost.geometry,
        replace(hardware, link=replace(hardware.link, bandwidth=bandwidth, latency_ns=latency, copy_ns=0)),
        cost.bits,
        cost.draft,
    )


def virtual(link: Link | None = None, results: int = 0) -> VirtualClock:
    return VirtualClock(link or Link(), Host(results), costs(), "on-demand.lru", RouterSignals())  # type: ignore[arg-type]


def events(notices: Iterator[Notice]) -> list[object]:
    return [notice.event for notice in notices]


LOAD = 8_000_000


def test_batches_follow_each_other_at_the_times_of_the_cost_model() -> None:
    clock = virtual()
    clock.submit(submit(0, loads=2))
    clock.submit(submit(1))
    assert events(clock.poll()) == [] and clock.now == 0
    assert events(clock.wait()) == [BatchArrived(10 + 2 * LOAD, 0, 10, 10 + 2 * LOAD)]
    assert clock.now == clock.idle_ns == 10 + 2 * LOAD
    assert events(clock.wait()) == [BatchArrived(10 + 3 * LOAD, 1, 10 + 2 * LOAD, 10 + 3 * LOAD)]
    with pytest.raises(RuntimeError, match="nothing is left to happen"):
        next(clock.wait())


def test_what_is_due_while_something_takes_its_time_is_told_up_to_its_very_end() -> None:
    cost = costs()
    attention = cost.layer_ns(3, 20)
    # One batch ends just with attention, the other one a load later.
    exact = replace(cost.hardware.link, bandwidth=10**18, latency_ns=attention - 1, copy_ns=0)
    cost = CostModel(cost.geometry, replace(cost.hardware, link=exact), cost.bits, cost.draft)
    clock = VirtualClock(Link(), Host(), cost, "on-demand.lru", RouterSignals())  # type: ignore[arg-type]
    clock.submit(submit(0))
    clock.submit(submit(1))
    assert events(clock.attended(0, 3, 20)) == [BatchArrived(attention, 0, attention - 1, attention)]
    assert (clock.now, clock.idle_ns) == (attention, 0)
    assert events(clock.wait()) == [BatchArrived(attention + 1, 1, attention, attention + 1)]


def test_what_is_submitted_in_answer_may_arrive_before_the_end() -> None:
    cost = costs(latency=0, bandwidth=10**15)
    clock = VirtualClock(Link(), Host(), cost, "on-demand.lru", RouterSignals())  # type: ignore[arg-type]
    clock.submit(submit(0))
    told = []
    for notice in clock.attended(0, 1, 1):
        told.append(notice.event.time)
        assert clock.now == notice.event.time
        if len(told) < 4:
            clock.submit(submit(len(told)))
    assert told == [8, 16, 24, 32]
    assert clock.now == cost.layer_ns(1, 1)


def test_at_equal_times_arrivals_come_before_the_cpus_results() -> None:
    """Handed over later, but on the link for as long as the CPU takes."""
    cost = costs(latency=0)
    (_, ended), *_ = [(0, cost.host_expert_ns(1))]
    even = replace(cost.hardware.link, bandwidth=10**18, latency_ns=0, copy_ns=0)
    cost = CostModel(cost.geometry, replace(cost.hardware, link=even), cost.bits, cost.draft)
    clock = VirtualClock(Link(), Host(1, 2, 5), cost, "on-demand.lru", RouterSignals())  # type: ignore[arg-type]
    clock.hand_over(2, (5,), (1,))
    assert events(clock._pass(ended - 1)) == []
    clock.submit(submit(0))
    assert events(clock._pass(1)) == [
        BatchArrived(ended, 0, ended - 1, ended),
        HostComputed(ended, 2, 5, 0, ended),
    ]


def test_what_was_not_due_is_no_arrival() -> None:
    link = Link()
    clock = virtual(link)
    clock.submit(submit(0))
    link.submit(submit(1))
    link.wait()
    with pytest.raises(RuntimeError, match="batch 1 arrived, and not what was due"):
        next(iter(clock.wait()))
    clock = VirtualClock(Link(), Host(1, 2, 4), costs(), "on-demand.lru", RouterSignals())  # type: ignore[arg-type]
    clock.hand_over(2, (5,), (1,))
    with pytest.raises(RuntimeError, match=r"the CPU computed .*expert=4.* and not what was due"):
        next(iter(clock.wait()))


def test_a_failure_is_told_when_the_batch_would_have_arrived() -> None:
    clock = virtual(Link(frozenset({0})))
    clock.submit(submit(0))
    notice = next(clock.wait())
    assert notice.event == BatchFailed(10 + LOAD, 0)
    assert isinstance(notice.cause, OSError)


@pytest.mark.parametrize("results", [0, 1])
def test_no_real_wait_ends_later_than_the_clock_says(monkeypatch: pytest.MonkeyPatch, results: int) -> None:
    """Every look at the time takes a microsecond."""
    ticks = count(0, 1000)
    monkeypatch.setattr(engine.execution.real_clock.time, "perf_counter_ns", lambda: next(ticks))
    link = Link()
    clock = RealClock(link, Host(results), 0, torch.device("cpu"))  # type: ignore[arg-type]
    if not results:
        link.submit(submit(0))
    before = clock.now
    list(clock.wait())
    assert before < before + clock.idle_ns <= clock.now


def test_real_failures_bring_their_cause() -> None:
    link = Link(frozenset({1}))
    clock = RealClock(link, Host(), 0, torch.device("cpu"))  # type: ignore[arg-type]
    for batch in range(3):
        clock.submit(submit(batch))
    told = list(clock.attended(0, 1, 1))
    assert [(type(each.event), each.event.batch) for each in told] == [
        (BatchArrived, 0),
        (BatchFailed, 1),
        (BatchArrived, 2),
    ]
    assert [str(each.cause) for each in told] == ["None", "a bad cable", "None"]
    times = [each.event.time for each in told]
    assert times == sorted(times) and times[-1] <= clock.now
