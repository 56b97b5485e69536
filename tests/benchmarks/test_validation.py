"""The page of the validation quotes its result file, and the helpers of its checks are right."""

from __future__ import annotations

import json

import pytest

from benchmarks.validation.__main__ import PAGE, RESULTS, main
from benchmarks.validation.cascade import crossing, interpolated
from benchmarks.validation.hybrimoe import hit_rate
from benchmarks.validation.inputs import CONFIG
from benchmarks.validation.page import SECTIONS, page
from spmoe.policy.registry import RECIPES
from tests.sim.paper import token, trace


def test_the_page_is_that_of_the_result_file() -> None:
    assert page(json.loads(RESULTS.read_text(encoding="utf-8"))) == PAGE.read_text(encoding="utf-8")


def test_settings_name_policies_that_there_are() -> None:
    named = {
        *CONFIG["offloading"]["policies"].values(),
        *CONFIG["spmoe"]["cutoff"]["policies"],
        *CONFIG["spmoe"]["speedup"]["over"],
        *CONFIG["spmoe"]["prefetch"]["published"],
        *CONFIG["cascade"]["offloaded"]["policies"],
        CONFIG["machine"]["cached_policy"],
    }
    assert named <= RECIPES.keys()
    assert CONFIG.keys() == {"about", "routing", *SECTIONS}


def test_hit_rates_by_hand() -> None:
    lines = [token(0, (0, 1), (0, 1)), token(1, (2, 0), (0, 1)), token(2, (1, 2), (2, 0))]
    small = trace(lines, 2, 3, top_k=2)
    # Two slots per layer.  Layer 0: 0 1 | 2 misses, 0 hits; touched 0 2 or 2 0, both stay | 1 misses, 2 hits.
    # Layer 1: 0 1 | both hit | 2 misses, 0 hits: it is still there, the oldest.
    assert hit_rate(small, 4, per_layer=True, residents_first=True) == 5 / 12
    assert hit_rate(small, 4, per_layer=True, residents_first=False) == 5 / 12
    # Three slots for both layers: 01 of layer 0, then 01 of layer 1 leave one key of layer 0 behind, 1.
    assert hit_rate(small, 3, per_layer=False, residents_first=True) == pytest.approx(2 / 12)


def test_a_line_is_crossed_where_it_first_takes_a_value() -> None:
    points = [(0.0, -0.4), (0.2, -0.2), (0.4, 0.0)]
    assert crossing(points, -0.3) == pytest.approx(0.1)
    with pytest.raises(ValueError, match=r"never reach 1\.0"):
        crossing(points, 1.0)
    assert interpolated(points, 0.3) == pytest.approx(-0.1)
    with pytest.raises(ValueError, match="outside"):
        interpolated(points, 0.5)


def test_missing_data_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["validation", "--data", "nowhere", "--only", "offloading"])
    assert main() == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: nowhere/") and "cannot be read" in error
