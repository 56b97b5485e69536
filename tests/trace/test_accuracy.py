"""Rating forecasts: a trace of five inputs that can be counted by hand."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from spmoe.trace.accuracy import Accuracy, ForecastAccuracy, measure_accuracy, rated_layers
from spmoe.trace.reliability import ReliabilityFold
from spmoe.trace.schema import ONE, Cell, Forecast, Forecasts, Header, RejectedLine, TokenLine, TraceInMemory
from tests.trace.conftest import make_header

NONE = (None,) * 6


def forecast(*experts: int, sure: float = 0.5) -> Forecast:
    """The first expert at probability `sure`, the others at less."""
    return tuple((expert, int(ONE * sure) >> rank) for rank, expert in enumerate(experts))


def line(
    request: int,
    position: int,
    routed: tuple[Cell, Cell],
    forecasts: Mapping[str, tuple[Forecast, Forecast]],
    rejected: tuple[RejectedLine, ...] = (),
) -> TokenLine:
    return TokenLine(request, position, routed, not rejected, forecasts=forecasts, rejected=rejected)


def draft(first: Forecast, second: Forecast, gate: Forecast = ()) -> Forecasts:
    return {"draft": (first, second), "next_gate": ((), gate)}


REJECTED = RejectedLine(((3, 0), (1, 0)), draft(forecast(3, 0), forecast(0, 1), forecast(1)))
LINES = (
    line(0, 0, ((0, 1), (2, 3)), draft(forecast(0, 1), forecast(3, 2, 0), forecast(2))),
    line(0, 1, ((1, 2), (2, 0)), draft(forecast(2, 3), forecast(1, 2, 0, sure=0.25), forecast(0)), (REJECTED,)),
    line(0, 2, ((0, 1), (3, 2)), {}),
    line(1, 0, ((2, 3), (0, 1)), {"draft": (forecast(0), forecast(0, 1, sure=1.0))}),
)


def header(tokens: int) -> Header:
    return make_header(tokens)


@pytest.fixture(scope="module")
def found() -> ForecastAccuracy:
    return measure_accuracy(TraceInMemory(header(len(LINES)), LINES), gamma=2)


def test_the_inputs_and_windows(found: ForecastAccuracy) -> None:
    # Four lines and the rejected input.  The windows at line 2 and of request 1 hold one input, so nothing is drafted.
    assert (found.inputs, found.windows, found.stand_ins) == (5, 1, 0)
    assert list(found.layers) == ["draft", "next_gate", "popularity", "token_before"]


def test_the_draft(found: ForecastAccuracy) -> None:
    # Layer 0: 0 of (0, 1), 2 of (1, 2), 3 of (3, 0), and 0 for (2, 3).  The window of lines 0, 1 and the rejected input
    # needs all four experts; lines 0 and 1 name 0 and 2 first, and 1 and 3 second.
    assert found.layers["draft"][0] == Accuracy(4, 4 / 5, 3 / 4, 2 / 4, 5 / 8, None, 2 / 4, 4 / 4)
    # Layer 1: 3 for (2, 3), 1 for (2, 0), 0 for (1, 0), 0 for (0, 1).  Two cells have a third expert: 0, which the
    # second needs.  The window needs all four: named first are 3 and 1, among the first two also 2.
    assert found.layers["draft"][1] == Accuracy(4, 4 / 5, 3 / 4, 1 / 4, 7 / 8, 4 / 4, 2 / 4, 3 / 4)


def test_the_gate_forecasts_for_the_last_input_of_a_window_too(found: ForecastAccuracy) -> None:
    assert found.layers["next_gate"][0] == Accuracy(0, 0.0, *NONE)
    # 2 for (2, 3), 0 for (2, 0), 1 for (1, 0): one expert named in each.
    assert found.layers["next_gate"][1] == Accuracy(3, 3 / 5, 3 / 3, 2 / 3, 3 / 6, None, 3 / 4, 3 / 4)


def test_what_the_other_requests_use_most(found: ForecastAccuracy) -> None:
    # Layer 1.  Request 0 is told 0, 1, 2, 3 (request 1 used 0 and 1), request 1 is told 2, 3, 0, 1.
    assert found.layers["popularity"][1] == Accuracy(5, 1.0, 2 / 5, 0.0, 3 / 10, 7 / 10, 1 / 4, 2 / 4)


def test_what_the_token_before_used(found: ForecastAccuracy) -> None:
    # Layer 1.  (2, 3) for (2, 0); (2, 0) for the rejected (1, 0) and, for line 2 follows line 1, for (3, 2).
    assert found.layers["token_before"][1] == Accuracy(3, 3 / 5, 2 / 3, 1 / 3, 3 / 6, None, None, None)


def test_a_window_is_told_the_last_token_before_it() -> None:
    lines = [line(0, at, ((at % 4, 3), (at % 4, 3)), {}) for at in range(3)]
    lines.insert(0, line(0, 0, ((0, 1), (1, 0)), {}, (RejectedLine(((2,), (2,))),)))
    lines = [each._replace(position=at) for at, each in enumerate(lines)]
    found = measure_accuracy(TraceInMemory(header(4), lines), gamma=1)
    # Windows: line 0 and its rejected input; lines 1 and 2, which need (0, 3) and (1, 3), told (1, 0); line 3 is alone.
    assert found.windows == 2
    assert found.layers["token_before"][1].window_top1 == 1 / 3
    assert found.layers["token_before"][1].window_topk == 2 / 3
    assert "popularity" not in found.layers  # There is no other request.


def test_without_speculation_there_are_no_windows() -> None:
    found = measure_accuracy(TraceInMemory(header(len(LINES)), LINES), gamma=0)
    assert (found.inputs, found.windows) == (5, 0)
    assert {row.window_topk for rows in found.layers.values() for row in rows} == {None}


def test_tokens_that_stand_in_are_counted() -> None:
    lines = [line(0, at, ((0,), (0,)), {})._replace(agree=at > 0) for at in range(4)]
    found = measure_accuracy(TraceInMemory(header(4), lines), gamma=3)
    assert (found.windows, found.stand_ins) == (2, 3)


def test_reliability_leaves_layer_0_out(found: ForecastAccuracy) -> None:
    bins = {at: (each.cells, each.used) for at, each in enumerate(found.reliability["draft"].bins) if each.cells}
    assert bins == {2: (1, 0), 5: (2, 2), 9: (1, 1)}
    # |2 - 2 x 0.5| and |0 - 0.25| and |1 - 1|, over four.
    assert found.reliability["draft"].used_error == 1.25 / 4
    assert list(rated_layers(3)) == [1, 2] and list(rated_layers(1)) == [0]


def test_bins() -> None:
    fold = ReliabilityFold()
    assert fold.result().used_error is fold.result().first_error is None and fold.result().to_json()["bins"] == []
    told = ((0, False, False), (6553, False, True), (6554, True, True), (ONE // 2, False, False), (ONE, True, True))
    for each in told:
        fold.add(*each)
    found = fold.result()
    assert [each.cells for each in found.bins] == [2, 1, 0, 0, 0, 1, 0, 0, 0, 1]
    document = found.to_json()
    assert [each["low"] for each in document["bins"]] == [0, 0.1, 0.5, 0.9]
    assert [each["high"] for each in document["bins"]] == [0.1, 0.2, 0.6, 1]
    assert [each["used"] for each in document["bins"]] == [0.5, 1, 0, 1]
    assert [each["first"] for each in document["bins"]] == [0, 1, 0, 1]
    assert document["bins"][2]["mean"] == 0.5
    low = abs(1 - 6553 / ONE) + abs(1 - 6554 / ONE)
    assert document["used_error"] == pytest.approx((low + 0.5) / 5)
    assert found.plus(found).used_error == pytest.approx(document["used_error"])
    assert found.plus(found).cells == 10
