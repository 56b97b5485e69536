"""The exact counts that everyone has to get from the recorded Mixtral routing, and the means over random imports.

At agreement 1.0 nothing about windows is random: 338 tokens in windows of gamma + 1.  The recording is not part of the
repository.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import repeat
from statistics import mean

import pytest

from sim import replay
from spmoe.machine.geometry import draft_model, geometry
from spmoe.results.bound import bound
from spmoe.run.options import RunOptions
from spmoe.run.setting import resolve_setting
from spmoe.trace.draws import Rates, draw
from spmoe.trace.importers import import_trace
from spmoe.trace.schema import TokenLine, TraceInMemory
from spmoe.trace.synthetic import draft_shape, model_shape
from spmoe.trace.windows import fixed_windows, requests
from tests.paths import RECORDED

LAYERS, EXPERTS = 32, 8
SLOTS = (32, 64, 128, 192)

pytestmark = pytest.mark.skipif(not RECORDED.exists(), reason="the recorded Mixtral routing is not in ../shared/data")


@cache
def recorded() -> TraceInMemory:
    model, draft = model_shape(geometry("mixtral-8x7b")), draft_shape(draft_model("mistral-7b"))
    return TraceInMemory(*import_trace(RECORDED, "vllm-jsonl", model, draft, Rates(1.0, None), seed=0))


def visits(trace: TraceInMemory, gamma: int) -> Iterator[list[int]]:
    """The keys that every layer of every window needs, in routing order."""
    for request in requests(trace):
        for window in fixed_windows(request, gamma):
            for layer, routing in enumerate(window.routing()):
                yield [layer * EXPERTS + expert for expert in routing.experts]


def lru_loads(needs: Iterator[list[int]], slots: int) -> int:
    """LRU as the design words it, in its own few lines: residents are touched first, then misses."""
    cache: OrderedDict[int, None] = OrderedDict()
    loads = 0
    for keys in needs:
        misses = [key for key in keys if key not in cache]
        for key in keys:
            if key in cache:
                cache.move_to_end(key)
        loads += len(misses)
        for key in misses:
            if len(cache) == slots:
                # What the layer still needs is among the most recent, for the cache is larger than a layer.
                cache.popitem(last=False)
            cache[key] = None
    return loads


def min_loads(trace: TraceInMemory, gamma: int, slots: int) -> int:
    """L of the bound."""
    cost = resolve_setting(trace.header, longest_request=338, options=RunOptions(slots=slots, gamma=gamma)).cost
    return bound(lambda: requests(trace), cost, repeat(gamma), slots).loads


def test_the_recording_is_read_whole() -> None:
    trace = recorded()
    assert trace.header.tokens == 338
    assert trace.header.empty_cells == 37
    assert all(line.agree for line in trace if isinstance(line, TokenLine))


@pytest.mark.parametrize(("gamma", "needs"), [(0, 21_558), (4, 11_638)])
def test_needs(gamma: int, needs: int) -> None:
    assert sum(map(len, visits(recorded(), gamma))) == needs


@pytest.mark.parametrize(
    ("gamma", "loads"),
    [(0, (12_680, 8_222, 3_890, 1_438)), (4, (9_494, 7_351, 3_579, 1_370)), (16, (4_256, 3_648, 2_432, 1_216))],
)
def test_loads_of_min(gamma: int, loads: Sequence[int]) -> None:
    assert [min_loads(recorded(), gamma, slots) for slots in SLOTS] == list(loads)


@pytest.mark.parametrize("gamma", [0, 4])
@pytest.mark.parametrize("slots", SLOTS)
def test_the_simulator_loads_what_lru_loads(gamma: int, slots: int) -> None:
    found = replay(recorded(), "on-demand.lru", "rtx-4090", slots=slots, gamma=gamma)
    metrics = found.results[0].metrics
    assert metrics.loads == lru_loads(visits(recorded(), gamma), slots)
    assert metrics.tokens == 338
    if gamma == 4:
        assert metrics.loads == dict(zip(SLOTS, (11_638, 11_638, 11_519, 3_485), strict=True))[slots]


def at_agreement(rate: float, seed: int) -> TraceInMemory:
    """The recording with `agree` drawn anew, as an import with this seed has it."""
    whole = recorded()
    lines = [line for line in whole if isinstance(line, TokenLine)]
    agree = draw([line.routed for line in lines], EXPERTS, Rates(rate, None), seed).agree
    redrawn = [line._replace(agree=agrees) for line, agrees in zip(lines, agree, strict=True)]
    return TraceInMemory(replace(whole.header), redrawn)


def test_what_speculation_does_to_lru_and_min() -> None:
    """Half of all experts have slots; loads per output token, as in the design's table.

    Without speculation nothing is random, but the table has one decimal, and the order in which a layer touches its
    experts is worth 0.02.  With it, seeds scatter by 0.9 (LRU) and 0.3 (MIN), so means over 20 of them by 0.2 and 0.06:
    two such means agree within three times the root of 2 of that, barring one case in 400.
    """
    tokens, slots = 338, 128
    assert lru_loads(visits(recorded(), 0), slots) / tokens == pytest.approx(27.4, abs=0.1)
    assert min_loads(recorded(), 0, slots) / tokens == pytest.approx(11.5, abs=0.1)
    traces = [at_agreement(0.97, seed) for seed in range(20)]
    assert mean(lru_loads(visits(trace, 4), slots) / tokens for trace in traces) == pytest.approx(36.0, abs=0.85)
    assert mean(min_loads(trace, 4, slots) / tokens for trace in traces) == pytest.approx(11.1, abs=0.25)
