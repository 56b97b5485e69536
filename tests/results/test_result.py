"""Ratios of a result, and what there is to say where a trace leaves nothing to divide by."""

from __future__ import annotations

from dataclasses import replace

from spmoe.policy.registry import recipe
from spmoe.results.metrics import Metrics
from spmoe.results.metrics_fold import MetricsFold
from spmoe.results.result import Result

NOTHING = MetricsFold(4).result()
SOME: Metrics = replace(NOTHING, tokens=4, decode_ns=8_000_000, loads=6)


def test_ratios() -> None:
    result = Result(recipe("next-gate"), SOME, expert_bytes=100, cpu=True, on_demand_ms=3.0, bound_ms=1.0)
    assert result.metrics.tpot_ms == 2
    assert result.speedup == 1.5
    assert result.vs_bound == 2
    found = result.to_json()
    assert (found["loads_per_token"], found["bytes_per_token"]) == (1.5, 150)
    assert (found["fetch_only"], found["lossless"]) == (True, True)


def test_what_is_not_known_is_null() -> None:
    found = Result(recipe("next-gate"), NOTHING, expert_bytes=100, cpu=True).to_json()
    counted = {"tokens", "steps", "needs", "loads", "events"}
    assert all(found[name] == 0 for name in counted)
    named = {"policy", "fetch_only", "lossless", "speculates"}
    assert all(value is None for name, value in found.items() if name not in counted | named)
