from __future__ import annotations

import re
from pathlib import Path

import pytest

from sim.prepared import Prepared
from spmoe.errors import InputError
from spmoe.run.options import RunOptions
from spmoe.trace.reader import TraceFile
from spmoe.trace.schema import PrefillLine, RejectedLine, TokenLine, TraceInMemory, TraceLine
from spmoe.trace.summary import ForecastSummary, TraceSummary, summarise
from spmoe.trace.writer import write_trace
from tests.trace.conftest import make_header

LONG: tuple[TraceLine, ...] = (
    PrefillLine(3, 10, ((0,), (1,))),
    TokenLine(3, 10, ((0, 1), (1, 2)), True),
    TokenLine(3, 11, ((0, 1), (1, 2)), True),
)


def test_a_trace_counted_by_hand() -> None:
    right, wrong = ((1, 9), (0, 9)), ((2, 9), (0, 9))
    lines: list[TraceLine] = [
        PrefillLine(0, 10, ((0,), (1,))),
        TokenLine(0, 0, ((0, 1), (1, 2)), True, forecasts={"draft": (right, wrong)}),
        TokenLine(0, 1, ((0, 1), ()), False, rejected=(RejectedLine(((0, 1), (1, 2))),)),
        TokenLine(4, 8, ((1, 0), (1, 2)), True, forecasts={"draft": (right, ())}),
    ]
    assert summarise(TraceInMemory(make_header(3, empty_cells=1), lines)) == TraceSummary(
        tokens=3,
        requests=2,
        prefills=1,
        longest_request=12,
        agreement=2 / 3,
        empty_cells=1,
        distinct_experts=2.0,
        forecasts={"draft": ForecastSummary(3 / 5, 1.0), "next_gate": ForecastSummary(0.0, None)},
        rejected_inputs=1,
    )


@pytest.mark.parametrize("context", [12, 40])
def test_what_the_header_says_of_the_longest_request_stands_in_for_it(context: int) -> None:
    assert summarise(TraceInMemory(make_header(2, context=context), LONG)).longest_request == context


def test_a_request_longer_than_the_header_says_is_refused(tmp_path: Path) -> None:
    trace = TraceInMemory(make_header(2, context=11), LONG)
    said = "field context: expected 11 tokens at most, as the header says, got 12 in request 3"
    with pytest.raises(InputError, match=f"^{said}$"):
        summarise(trace)
    path = tmp_path / "t.jsonl"
    write_trace(path, trace.header, trace)
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}: {said}$"):
        summarise(TraceFile(path))


def test_the_context_of_the_header_sets_the_memory_of_a_replay() -> None:
    # KV caches of 8 and 2 bytes per token (target and draft): 28 tokens more than the 12 there are.
    plain, set_up = (
        Prepared(TraceInMemory(make_header(2, context=context), LONG), RunOptions(slots=2)).setting.budget
        for context in (None, 40)
    )
    assert set_up.target_kv - plain.target_kv == 28 * 8
    assert set_up.draft_kv - plain.draft_kv == 28 * 2
