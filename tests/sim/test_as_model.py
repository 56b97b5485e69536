"""A trace that is timed as another model of its shape: routing is the trace's, all else the other's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import sim
from sim.__main__ import main
from spmoe.errors import InputError
from spmoe.trace.reader import TraceFile
from spmoe.trace.schema import DraftShape, ModelShape
from spmoe.trace.writer import write_trace
from tests.paths import TRACES
from tests.sim.files import small_trace

MIXTRAL = TRACES / "mixtral.jsonl"


@pytest.fixture(scope="module")
def thin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first request of Mixtral's trace, as if a model of a thousandth of its size had been recorded."""
    trace = TraceFile(MIXTRAL)
    lines = [line for line in trace if line.request == 0]
    header = replace(
        trace.header,
        model=ModelShape("thin", 32, 8, 2, 1000, 1000, 16),
        draft=DraftShape("thin-draft", 2000, 2000, 16),
        tokens=len(lines) - 1,
    )
    path = tmp_path_factory.mktemp("thin") / "thin.jsonl"
    write_trace(path, header, lines)
    return path


@pytest.fixture(scope="module")
def whole(thin: Path) -> Path:
    """The same request, of Mixtral itself."""
    trace = TraceFile(thin)
    path = thin.with_name("whole.jsonl")
    write_trace(path, replace(TraceFile(MIXTRAL).header, tokens=trace.header.tokens), list(trace))
    return path


def test_it_costs_what_the_model_itself_would(thin: Path, whole: Path) -> None:
    policies = ["on-demand.lru", "spmoe.per-layer"]
    own = sim.replay(thin, policies, cache=0.5)
    stood_in = sim.replay(thin, policies, cache=0.5, as_model="mixtral-8x7b")
    real = sim.replay(whole, policies, cache=0.5)
    assert stood_in.to_json()["results"] == real.to_json()["results"]
    assert stood_in.bound.tpot_ms == real.bound.tpot_ms > own.bound.tpot_ms
    assert stood_in.setting.draft == real.setting.draft
    assert stood_in.to_json()["config"]["model"] == "mixtral-8x7b"
    assert stood_in.to_json()["trace"]["model"] == "thin"


def test_it_is_said(thin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["replay", str(thin), "--policy", "on-demand.lru"], ["forecasts", str(thin)]):
        assert main([*command, "--cache", "0.5", "--as-model", "mixtral-8x7b"]) == 0
        assert "timed as mixtral-8x7b, rtx-4090" in capsys.readouterr().out
        assert main([*command, "--cache", "0.5"]) == 0
        assert "timed as" not in capsys.readouterr().out


def test_lead_times_are_those_of_the_model(thin: Path, whole: Path) -> None:
    stood_in = sim.forecasts(thin, cache=0.5, as_model="mixtral-8x7b").to_json()["sources"]
    assert json.dumps(stood_in) == json.dumps(sim.forecasts(whole, cache=0.5).to_json()["sources"])


def test_a_model_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"as_model: expected a model of 3 MoE layers of 6 experts, top-2, as .* has"):
        sim.replay(small_trace(tmp_path), as_model="mixtral-8x7b")
    with pytest.raises(InputError, match="model 'mixtral' is unknown; expected one of"):
        sim.replay(small_trace(tmp_path), as_model="mixtral")
