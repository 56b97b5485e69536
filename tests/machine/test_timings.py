"""Measured durations: curves by hand, profiles that hold them, and the cost model that reckons with them."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spmoe.errors import InputError
from spmoe.machine.cost import CostModel
from spmoe.machine.geometry import draft_model, geometry
from spmoe.machine.hardware import load_hardware
from spmoe.machine.measured import MeasuredCost, cost_model
from spmoe.machine.timings import Curve, Timings
from tests.paths import PROFILES

PROFILE = PROFILES / "rtx-4090.json"
TIMINGS: dict[str, Any] = {
    "model": "mixtral-8x7b",
    "draft": "mistral-7b",
    "bits": 16,
    "layer": [{"tokens": 1, "us": 100}, {"tokens": 5, "us": 140.5}],
    "entry_us": 30,
    "expert": [{"tokens": 1, "us": 50}, {"tokens": 3, "us": 60}],
    "round": [{"tokens": 1, "us": 7}],
    "draft_token": [{"tokens": 1, "us": 3200}, {"tokens": 2, "us": 3600}],
    "forecast_us": 2.5,
    "landing_us": 1.5,
    "cold_us": 8,
    "draft_landing_us": 3,
    "result_us": 5,
    "notice_us": 0,
    "next_gate": [{"tokens": 1, "us": 4}, {"tokens": 5, "us": 12}],
    "gates": [{"tokens": 1, "us": 2}],
    "decisions_us": {"next-gate": 6},
    "host_expert": [{"tokens": 1, "us": 900}],
    "handover_us": 40,
    "transfer": 1,
    "jitter": 1,
}


def profile(folder: Path, **changed: Any) -> Path:
    """A profile with timings."""
    document = json.loads(PROFILE.read_text("utf-8"))
    document["timings"] = {**TIMINGS, **changed}
    path = folder / "mine.json"
    path.write_text(json.dumps(document))
    return path


def measured(folder: Path) -> CostModel:
    return cost_model(geometry("mixtral-8x7b"), load_hardware(profile(folder)), 16, draft_model("mistral-7b"))


def test_a_curve_by_hand() -> None:
    curve = Curve(((2, 100), (4, 101), (10, 41)))
    assert [curve.ns(count) for count in (1, 2, 3, 4, 5, 10, 12, 14, 20)] == [100, 100, 101, 101, 91, 41, 21, 1, 0]
    assert Curve(((3, 7),)).ns(1) == Curve(((3, 7),)).ns(100) == 7


points = st.lists(st.tuples(st.integers(1, 500), st.integers(0, 10**9)), min_size=1, unique_by=lambda point: point[0])


@given(points.map(sorted), st.integers(1, 1000))
def test_a_curve_is_linear_in_between_and_rounds_up(found: list[tuple[int, int]], count: int) -> None:
    value = Curve(tuple(found)).ns(count)
    pairs = list(itertools.pairwise(found))
    if count <= found[0][0] or not pairs:
        assert value == found[0][1]
        return
    (left, low), (right, high) = next((pair for pair in pairs if count <= pair[1][0]), pairs[-1])
    exact = low + Fraction(high - low) * (count - left) / (right - left)
    assert value == max(0, -(-exact.numerator // exact.denominator))


@pytest.mark.parametrize("found", [(), ((2, 1), (1, 1)), ((1, 1), (1, 2))])
def test_points_ascend(found: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ValueError, match="ascending"):
        Curve(found)


def test_the_cost_model_of_the_pair_that_was_timed(tmp_path: Path) -> None:
    cost = measured(tmp_path)
    assert isinstance(cost, MeasuredCost) and cost.blind
    assert [cost.layer_ns(tokens, 10**6) for tokens in (1, 3, 5)] == [100_000, 120_250, 140_500]
    assert cost.entry_ns() == 30_000
    assert [cost.expert_ns(tokens) for tokens in (0, 1, 2, 3, 5)] == [0, 50_000, 55_000, 60_000, 70_000]
    assert cost.expert_times([1, 0, 300]) == [50_000, 0, 50_000 + 5_000 * 299]
    assert cost.round_ns(9) == 7_000
    assert [cost.draft_token_ns(read) for read in (1, 2, 3)] == [3_200_000, 3_600_000, 4_000_000]
    assert cost.draft_layers_ns(0, 32, 2) == 3_600_000
    assert cost.draft_layers_ns(0, 8) == 800_000
    assert cost.forecast_ns(8) == 20_000
    assert (cost.landing_ns(3), cost.cold_ns()) == (4_500, 8_000)
    assert (cost.notice_ns(), cost.handover_ns()) == (0, 40_000)
    assert (cost.draft_landing_ns(2), cost.result_ns()) == (6_000, 5_000)
    assert [cost.gate_readback_ns(5, *asked) for asked in ((False, False), (True, False), (True, True))] == [
        0,
        12_000,
        14_000,
    ]
    assert cost.gate_readback_ns(1, True, False) == 4_000
    assert (cost.decision_ns("next-gate"), cost.decision_ns("on-demand.lru")) == (6_000, 0)
    assert cost.host_expert_ns(7) == 900_000
    assert cost.load_ns() == CostModel(cost.geometry, cost.hardware, 16, cost.draft).load_ns()


def test_work_takes_longer_on_average_than_in_the_median(tmp_path: Path) -> None:
    hardware = load_hardware(profile(tmp_path, jitter=1.05))
    cost = cost_model(geometry("mixtral-8x7b"), hardware, 16, draft_model("mistral-7b"))
    assert (cost.layer_ns(1, 0), cost.expert_ns(1), cost.draft_token_ns()) == (105_000, 52_500, 3_360_000)
    assert (cost.landing_ns(1), cost.cold_ns(), cost.host_expert_ns(1)) == (1_575, 8_400, 945_000)


def test_loads_take_longer_beside_a_run(tmp_path: Path) -> None:
    hardware = load_hardware(profile(tmp_path, transfer=1.25))
    cost = cost_model(geometry("mixtral-8x7b"), hardware, 16, draft_model("mistral-7b"))
    alone = CostModel(cost.geometry, hardware, 16, cost.draft)
    assert cost.transfer_ns(24_000_000) == 1_250_000 == alone.transfer_ns(30_000_000)
    assert cost.load_ns() == hardware.link.latency_ns + cost.transfer_ns(cost.geometry.expert_bytes(16))


def test_shares_of_a_draft_token_add_up(tmp_path: Path) -> None:
    cost = measured(tmp_path)
    for read in (1, 2, 7):
        assert sum(cost.draft_layers_ns(k, k + 1, read) for k in range(32)) == cost.draft_token_ns(read)


def test_other_models_and_widths_go_by_the_figures(tmp_path: Path) -> None:
    hardware = load_hardware(profile(tmp_path))
    mixtral, mistral = geometry("mixtral-8x7b"), draft_model("mistral-7b")
    for other in (
        cost_model(mixtral, hardware, 4.25, mistral),
        cost_model(geometry("mixtral-8x22b"), hardware, 16, mistral),
        cost_model(mixtral, hardware, 16, draft_model("qwen3-0.6b")),
    ):
        assert type(other) is CostModel and not other.blind
        assert (other.decision_ns("next-gate"), other.gate_readback_ns(3, True, True), other.draft_landing_ns(1)) == (
            0,
            0,
            0,
        )
        assert (other.entry_ns(), other.round_ns(5), other.forecast_ns(3), other.landing_ns(1)) == (0, 0, 0, 0)
    assert isinstance(cost_model(mixtral, hardware, 16, None), MeasuredCost)


def test_without_experts_on_the_cpu_its_figures_count(tmp_path: Path) -> None:
    hardware = load_hardware(profile(tmp_path, host_expert=None))
    assert hardware.timings is not None and hardware.timings.host_expert is None
    cost = cost_model(geometry("mixtral-8x7b"), hardware, 16, None)
    figures = CostModel(cost.geometry, replace(hardware, timings=None), 16, None)
    assert cost.host_expert_ns(2) == figures.host_expert_ns(2)


def test_every_item_is_explained(tmp_path: Path) -> None:
    items = measured(tmp_path).explain(5, 100, [1, 1, 3])
    assert [item.ns for item in items if item.name.startswith("layer")] == [140_500, 100_000, 60_000]
    assert {"draft token", "load of one expert", "each arrival of one expert"} <= {item.name for item in items}


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"layer": []}, "field timings.layer: expected points with ascending tokens, at least one"),
        ({"layer": 5}, "field timings.layer: expected a list of objects, got 5"),
        ({"expert": [{"tokens": 1}]}, "field timings.expert.0.us: expected a number from 0"),
        ({"expert": [{"tokens": 0, "us": 1}]}, "field timings.expert.0.tokens: expected a whole number above 0, got 0"),
        ({"expert": [{"tokens": 1, "us": 1, "ms": 1}]}, "field timings.expert.0.ms: unknown"),
        ({"notice_us": -1}, "field timings.notice_us: expected a number from 0"),
        ({"landing_us": []}, "field timings.landing_us: expected a number from 0"),
        ({"decisions_us": {"next-gate": -1}}, "field timings.decisions_us.next-gate: expected a number from 0"),
        ({"jitter": 0}, "field timings.jitter: expected a number above 0"),
        ({"surprise": 1}, "field timings.surprise: unknown"),
        ({"draft": 3}, "field timings.draft: expected a text, got 3"),
    ],
)
def test_bad_timings_are_told_in_one_line(tmp_path: Path, changed: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError) as caught:
        load_hardware(profile(tmp_path, **changed))
    assert complaint in str(caught.value) and "\n" not in str(caught.value)


def test_timings_of_a_run_without_a_draft(tmp_path: Path) -> None:
    document = {**TIMINGS, "draft": None}
    del document["draft_token"]
    path = tmp_path / "plain.json"
    path.write_text(json.dumps({**json.loads(PROFILE.read_text("utf-8")), "timings": document}))
    timings = load_hardware(path).timings
    assert isinstance(timings, Timings) and timings.draft_token is None
    assert timings.fit("mixtral-8x7b", None, 16) and not timings.fit("mixtral-8x7b", "mistral-7b", 16)
