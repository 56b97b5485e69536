"""MIN with bypass against brute force over all that a cache may hold, and what knowing the future costs in memory."""

from __future__ import annotations

from itertools import combinations, repeat

import pytest
from hypothesis import given, settings

from spmoe.machine.cost import CostModel
from spmoe.machine.geometry import geometry
from spmoe.machine.hardware import load_hardware
from spmoe.policy.parts.future import Future
from spmoe.results.bound import Bound, bound
from spmoe.trace.draws import Rates
from spmoe.trace.importers import import_trace
from spmoe.trace.schema import TokenLine, TraceInMemory
from spmoe.trace.synthetic import model_shape
from spmoe.trace.windows import fixed_windows, requests
from tests.conformance.cases import Case, cases, make_trace
from tests.conformance.drivers import cost_of
from tests.paths import RECORDED

COUNTS = {
    (0, 32): 12_680, (0, 64): 8_222, (0, 128): 3_890, (0, 192): 1_438,
    (4, 32): 9_494, (4, 64): 7_351, (4, 128): 3_579, (4, 192): 1_370,
    (16, 32): 4_256, (16, 64): 3_648, (16, 128): 2_432, (16, 192): 1_216,
}  # fmt: skip


def solve(case: Case) -> Bound:
    return bound(lambda: requests(case.trace), cost_of(case), repeat(case.gamma), case.slots)


def counts(found: Bound) -> tuple[int, int, int, int]:
    return found.loads, found.needs, found.tokens, found.steps


def fewest_loads(case: Case) -> int:
    """Tries everything: for every cache that can be there before a visit, the fewest loads that lead to it."""
    fewest = {frozenset[int](): 0}
    universe = range(case.layers * case.experts)
    for request in requests(case.trace):
        if request.prefill is not None:
            # For nothing, any set that fits; so nobody remembers how many loads led to another.
            least = min(fewest.values())
            fewest = {kept: least for kept in subsets(frozenset(universe), case.slots)}
        for window in fixed_windows(request, case.gamma):
            for layer, routing in enumerate(window.routing()):
                needed = frozenset(layer * case.experts + expert for expert in routing.experts)
                after: dict[frozenset[int], int] = {}
                for cache, loads in fewest.items():
                    total = loads + len(needed - cache)
                    for kept in subsets(cache | needed, case.slots):
                        after[kept] = min(total, after.get(kept, total))
                fewest = after
    return min(fewest.values())


def subsets(keys: frozenset[int], slots: int) -> list[frozenset[int]]:
    """All fullest ones: keeping more never costs a load."""
    return [frozenset(chosen) for chosen in combinations(sorted(keys), min(slots, len(keys)))]


def test_by_hand() -> None:
    # One layer, one expert per token: 0 1 2 0 1 2 with two slots.  Belady keeps 0 and 1 past 2, which passes by.
    header = make_trace(0, 1, 3, 1, [6]).header
    trace = TraceInMemory(header, [TokenLine(0, n, ((n % 3,),), agree=True) for n in range(6)])
    case = Case(trace, slots=2, gamma=0, cutoff=0, bandwidth=1)
    assert counts(solve(case)) == (4, 6, 6, 6)
    # Windows of three tokens need all three: of the second window, two are there.
    assert counts(solve(Case(trace, slots=2, gamma=2, cutoff=0, bandwidth=1))) == (4, 6, 6, 2)


@settings(max_examples=60, deadline=None)
@given(cases(max_layers=2, max_lines=5).filter(lambda case: case.layers * case.experts <= 8))
def test_no_schedule_loads_less(case: Case) -> None:
    assert solve(case).loads == fewest_loads(case)


@given(cases())
@settings(max_examples=40, deadline=None)
def test_counts_and_limits(case: Case) -> None:
    found = solve(case)
    windows = [window for request in requests(case.trace) for window in fixed_windows(request, case.gamma)]
    assert found.steps == len(windows)
    assert found.tokens == case.trace.header.tokens
    assert found.needs == sum(len(routing.experts) for window in windows for routing in window.routing())
    everything = Case(case.trace, case.layers * case.experts, case.gamma, 0, 1)
    assert solve(everything).loads <= found.loads <= found.needs


@given(cases())
@settings(max_examples=40, deadline=None)
def test_the_future_takes_two_bytes_per_need(case: Case) -> None:
    future = Future(lambda: requests(case.trace), case.gamma)
    visits = [
        routing.experts
        for request in requests(case.trace)
        for window in fixed_windows(request, case.gamma)
        for routing in window.routing()
    ]
    assert future.words.itemsize == 2
    assert len(future.words) == sum(len(needs) or 1 for needs in visits)


@pytest.mark.skipif(not RECORDED.exists(), reason="the recorded Mixtral routing is not part of the repository")
def test_the_counts_of_the_real_trace() -> None:
    mixtral = model_shape(geometry("mixtral-8x7b"))
    _, lines = import_trace(RECORDED, "vllm-jsonl", mixtral, None, Rates(1.0, 1.0, 1.0), seed=0)
    cost = CostModel(geometry("mixtral-8x7b"), load_hardware("rtx-4090"), 16, None)
    found = {(gamma, slots): bound(lambda: requests(lines), cost, repeat(gamma), slots) for gamma, slots in COUNTS}
    assert {key: each.loads for key, each in found.items()} == COUNTS
    assert (found[0, 32].needs, found[4, 32].needs) == (21_558, 11_638)
