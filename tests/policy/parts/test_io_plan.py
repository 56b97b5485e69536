"""Batches: how many loads fit both budgets, and how many copies they take."""

from __future__ import annotations

import pytest

from spmoe.policy.parts.io_plan import AllAtOnce, Batched, IOPlan, OneByOne, copies
from spmoe.policy.parts.pace import Pace
from spmoe.state.commands import Load

PACE = Pace(load_bytes=10, latency_ns=2, transfer_ns=5, draft_ns=0, layer_ns=0)


@pytest.mark.parametrize(
    ("io", "most"),
    [
        (OneByOne(), 1),
        (Batched(max_bytes=39, max_ns=1000), 3),
        (Batched(max_bytes=1000, max_ns=21), 3),  # 2 + 3 * 5 is 17, and 2 + 4 * 5 is 22.
        (Batched(max_bytes=1, max_ns=1), 1),  # At least one, whatever the budgets.
    ],
)
def test_loads_per_batch(io: IOPlan, most: int) -> None:
    assert io.loads_per_batch(PACE) == most
    assert io.batches == (io != OneByOne())


def test_all_at_once_has_no_limit_that_matters() -> None:
    assert AllAtOnce().batches and AllAtOnce().loads_per_batch(PACE) > 10**6


@pytest.mark.parametrize(
    ("loads", "expected"),
    [
        ([(3, 0)], 1),
        ([(3, 0), (4, 1)], 1),
        ([(3, 0), (4, 1), (5, 2), (7, 3)], 2),
        ([(3, 1), (4, 0)], 2),
        ([(3, 0), (5, 1)], 2),
    ],
)
def test_copies(loads: list[tuple[int, int]], expected: int) -> None:
    assert copies(tuple(Load(key, slot, None) for key, slot in loads)) == expected


def test_budgets_must_be_positive() -> None:
    for budgets in ({"max_bytes": 0}, {"max_ns": 0}):
        with pytest.raises(ValueError, match="must be positive"):
            Batched(**budgets)
