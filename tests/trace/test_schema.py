from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from spmoe.errors import InputError
from spmoe.trace.schema import ForecastOrigin, PrefillLine, Source, TokenLine, TraceInMemory, TraceLine
from tests.trace.conftest import DRAFT, MODEL, make_header


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        (MODEL, {"name": ""}, "field model.name: expected a non-empty text, got ''"),
        (MODEL, {"layers": 0}, "field model.layers: expected an integer of at least 1, got 0"),
        (MODEL, {"experts": True}, "field model.experts: expected an integer of at least 1, got True"),
        (MODEL, {"expert_params": 1.5}, "field model.expert_params: expected an integer of at least 1, got 1.5"),
        (
            MODEL,
            {"kv_bytes_per_token": -1},
            "field model.kv_bytes_per_token: expected an integer of at least 0, got -1",
        ),
        (MODEL, {"top_k": 5}, "field model.top_k: expected at most the 4 experts, got 5"),
        (DRAFT, {"active_params": 7}, "field draft.active_params: expected at most 6, got 7"),
    ],
)
def test_impossible_shapes_are_refused(part: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        replace(part, **change)
    assert str(caught.value) == message


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan"), float("inf"), True, "0.5"])
def test_rates_are_numbers_from_0_to_1(rate: Any) -> None:
    with pytest.raises(InputError, match=r"field forecasts\.accuracy: expected a number from 0 to 1"):
        ForecastOrigin("drawn", rate)
    with pytest.raises(InputError, match=r"field source\.agreement: expected a number from 0 to 1"):
        Source("synthetic", "", "", "", agreement=rate)


def test_kinds_and_forecast_names_are_closed_lists() -> None:
    with pytest.raises(InputError, match=r"field source\.kind: expected one of recorded, imported, synthetic"):
        Source("guessed", "", "", "")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="field forecasts: expected one of draft, next_gate, got 'oracle'"):
        make_header(1, forecasts={"oracle": ForecastOrigin("drawn", 1.0)})


def test_a_trace_in_memory_can_be_gone_through_again() -> None:
    lines: list[TraceLine] = [PrefillLine(0, 3, ((0,), (1, 2))), TokenLine(0, 0, ((0, 1), (2, 3)), True)]
    trace = TraceInMemory(make_header(1), iter(lines))
    assert list(trace) == lines
    assert list(trace) == lines
