from __future__ import annotations

from spmoe.trace.schema import PrefillLine, RejectedLine, TokenLine, TraceInMemory, TraceLine
from spmoe.trace.summary import ForecastSummary, TraceSummary, summarise
from tests.trace.conftest import make_header


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
