"""When link and CPU work on what, to the nanosecond, on machines of round numbers (see `tests.sim.paper`)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from spmoe.drive.schedules import CpuSchedule, LinkSchedule
from spmoe.errors import InputError
from spmoe.machine.cost import CostModel
from spmoe.machine.geometry import Geometry
from spmoe.machine.hardware import Hardware
from spmoe.policy.parts.runtime import NATIVE, Runtime
from spmoe.state.commands import Load, Purpose, Submit
from tests.sim.paper import BITS, EXPERT_BYTES, machine


def cost(hardware: Hardware) -> CostModel:
    model = Geometry(
        name="paper-moe",
        layers=2,
        experts=8,
        top_k=1,
        expert_params=EXPERT_BYTES * 8 // BITS,
        dense_params=1,
        hidden=1,
        kv_bytes_per_token=1,
        draft=None,
        source="a test",
    )
    return CostModel(model, hardware, BITS, None)


def link(runtime: Runtime = NATIVE, latency_ns: int = 30, copy_ns: int = 7) -> LinkSchedule:
    """A link on which a load takes 200 ns."""
    return LinkSchedule(cost(machine(2, latency_ns=latency_ns, copy_ns=copy_ns)), runtime)


def batch(*keys: int, purpose: Purpose = Purpose.DEMAND, evicting: int = 0) -> Submit:
    """Loads into slots 0, 1, ...; the first `evicting` of them overwrite somebody."""
    return Submit(0, purpose, tuple(Load(key, slot, 9 if slot < evicting else None) for slot, key in enumerate(keys)))


def test_latency_runs_while_earlier_batches_move() -> None:
    one = link()
    assert one.submit(batch(3), 100) == (130, 330)
    assert one.submit(batch(4), 110) == (330, 530)  # Its latency was over at 140.
    assert one.submit(batch(5), 520) == (550, 750)  # The link is free at 530, the latency over at 550.


@pytest.mark.parametrize(
    ("keys", "pieces", "duration"),
    [
        ((3, 4), 1, 400),  # Neighbours on both sides: one copy.
        ((3, 5, 6), 1, 607),  # Two runs.
        ((6, 5, 4), 1, 614),
        ((3,), 3, 214),
        ((3, 4), 3, 435),  # In pieces nothing merges: six copies.
    ],
)
def test_every_copy_but_the_first_costs_extra(keys: tuple[int, ...], pieces: int, duration: int) -> None:
    assert link(Runtime(copies_per_load=pieces)).submit(batch(*keys), 0) == (30, 30 + duration)


def test_write_backs_and_slow_submissions_keep_the_link_busy() -> None:
    assert link(Runtime(write_back=True)).submit(batch(3, 4, 5, evicting=2), 0) == (30, 30 + 5 * 200)
    assert link(Runtime(submission_ns=1000)).submit(batch(3, 4), 0) == (30, 1430)


def test_a_reservation_goes_behind_what_is_submitted_and_has_no_latency() -> None:
    one = link()
    assert one.reserve(10, 40) == 10
    assert one.submit(batch(3), 15) == (50, 250)
    assert one.reserve(100, 60) == 250
    assert one.submit(batch(4), 100) == (310, 510)


def test_only_prefetches_are_remembered() -> None:
    one = link()
    assert one.prefetched_at == 0
    one.submit(batch(3, purpose=Purpose.PREFETCH), 0)
    assert one.prefetched_at == 230
    one.submit(batch(4), 0)
    one.submit(batch(5, purpose=Purpose.PRELOAD), 0)
    assert one.prefetched_at == 230
    one.submit(batch(6, purpose=Purpose.PREFETCH), 0)
    assert one.prefetched_at == 830


def test_the_cpu_takes_one_expert_after_the_other() -> None:
    cpu = CpuSchedule(cost(machine(2, latency_ns=30, host_ns=100)))
    assert cpu.compute((2, 1), 50) == [(110, 310), (310, 410)]  # States go there and back: twice the latency.
    assert cpu.compute((), 60) == []
    assert cpu.compute((1,), 300) == [(410, 510)]
    assert cpu.compute((1,), 600) == [(660, 760)]


def test_a_machine_may_have_no_cpu_to_compute_on() -> None:
    with pytest.raises(InputError, match="expected a CPU"):
        CpuSchedule(cost(replace(machine(2), cpu=None))).compute((1,), 0)
