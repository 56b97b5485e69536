"""Synthetic routing of every catalogued model, and how it compares with what is published."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.sim import trace_calibration as calibration
from benchmarks.sim.cache_loads import global_lru, lru_loads, min_loads
from benchmarks.sim.published_locality import PUBLISHED, published_figures
from spmoe.errors import InputError
from spmoe.machine.geometry import geometry, geometry_names
from spmoe.trace.reader import TraceFile
from spmoe.trace.schema import PrefillLine, TokenLine
from spmoe.trace.summary import summarise
from spmoe.trace.synthetic import RATES_FROM, main
from spmoe.trace.synthetic_models import RoutingFigures, load_figures, model_statistics
from spmoe.trace.synthetic_routing import SyntheticRouting
from spmoe.trace.synthetic_statistics import measure_statistics, mixtral_statistics
from tests.paths import ROOT, TRACES

FIGURES = ROOT / "spmoe" / "trace" / "synthetic_models.json"
SHIPPED = TRACES / "deepseek-v2-lite.jsonl"
POINTS = 3.5  # of percent: how far synthetic routing may be from published figures
GLOBAL_POINTS = 1.0  # the same for the figure that DeepSeek-V2-Lite is calibrated to
FITTED = ("lru/", "min/", "global-lru/", "reuse")


@pytest.fixture(scope="module")
def committed() -> dict[str, dict[str, dict[str, float]]]:
    results: dict[str, dict[str, dict[str, float]]] = json.loads(calibration.MODEL_RESULTS.read_text(encoding="utf-8"))[
        "models"
    ]
    return results


def figures(skew: float, persistence: float = 0.5) -> RoutingFigures:
    return RoutingFigures("a test", skew, persistence, 1.0, mixtral_statistics().fit)


# --- figures for all layers


def test_popularity_on_paper() -> None:
    # Four quantiles of a normal: 1/8, 3/8, 5/8, 7/8 are at -1.1503, -0.3186, 0.3186, 1.1503.
    found = figures(2.0).statistics(3, 4, 1).popularity
    weights = [math.exp(2 * z) for z in (-1.1503, -0.3186, 0.3186, 1.1503)]
    for row in found:
        assert sorted(row) == pytest.approx([weight / sum(weights) for weight in weights], abs=1e-4)
    assert figures(0.0).statistics(1, 4, 2).popularity == ((0.5,) * 4,)


def test_popular_experts_have_other_ids_in_each_layer() -> None:
    rows = figures(0.5).statistics(8, 64, 6).popularity
    assert len(set(rows)) == 8
    assert len({tuple(sorted(row)) for row in rows}) == 1


@pytest.mark.parametrize("name", geometry_names())
def test_every_model_has_statistics_of_its_shape(name: str) -> None:
    model = geometry(name)
    found = model_statistics(model)
    assert (found.layers, found.experts, found.top_k) == (model.layers, model.experts, model.top_k)


def test_every_figure_is_of_a_catalogued_model() -> None:
    assert {"mixtral-8x7b", *load_figures(FIGURES)} == set(geometry_names())
    assert model_statistics(geometry("mixtral-8x7b")) == mixtral_statistics()


@pytest.mark.parametrize("name", [name for name in geometry_names() if name != "mixtral-8x7b"])
def test_generated_routing_has_the_figures_asked_for(name: str) -> None:
    model, wanted = geometry(name), load_figures(FIGURES)[name]
    routing = SyntheticRouting(wanted.statistics(4, model.experts, model.top_k))
    requests = [(tokens.experts, tokens.weights) for tokens in routing.tokens([400] * 3, 3)]
    found = measure_statistics(requests, model.experts, "generated", wanted.fit)
    assert np.mean(found.persistence) == pytest.approx(wanted.persistence, abs=0.05)
    assert np.mean(found.sharpness) == pytest.approx(wanted.sharpness, rel=0.2)


# --- any model by the command line


@pytest.mark.parametrize("name", geometry_names())
def test_every_model_by_the_command_line(name: str, tmp_path: Path) -> None:
    for copy in ("a", "b"):
        assert main(["--model", name, "--tokens", "2", "--out", str(tmp_path / copy)]) == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    model, trace = geometry(name), TraceFile(tmp_path / "a")
    header, lines = trace.header, list(trace)
    assert header.model.name == name and header.draft is not None and header.draft.name == model.draft
    assert header.source.kind == "synthetic" and header.source.what == (
        f"generated, with statistics of: {model_statistics(model).source}"
    )
    assert [type(line) for line in lines] == [PrefillLine, TokenLine, TokenLine]
    token = lines[1]
    assert isinstance(token, TokenLine) and len(token.routed) == model.layers
    assert all(len(set(cell)) == model.top_k and max(cell) < model.experts for cell in token.routed)


def test_an_unknown_model_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "gpt-9", "--out", str(tmp_path / "x.jsonl")]) == 2
    assert capsys.readouterr().err == f"model 'gpt-9' is unknown; expected one of {', '.join(geometry_names())}\n"
    assert not list(tmp_path.iterdir())


def test_a_model_without_statistics() -> None:
    with pytest.raises(InputError, match="model 'mine' has no routing statistics; expected one of mixtral-8x7b, "):
        model_statistics(replace(geometry("olmoe-1b-7b"), name="mine"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"skew": -1}, "field skew: expected a number from 0 to inf, got -1"),
        ({"sharpness": "x"}, "field sharpness: expected a number"),
        ({"persistence": math.inf}, "field persistence: expected a number"),
        ({"colour": 1}, "field models.m.colour: unknown"),
        ({"fit": {}}, "field models.m.fit.vocabulary: missing"),
    ],
)
def test_bad_figures(change: dict[str, object], message: str, tmp_path: Path) -> None:
    good = json.loads(FIGURES.read_text(encoding="utf-8"))["models"]["olmoe-1b-7b"]
    path = tmp_path / "bad.json"
    path.write_text(json.dumps({"models": {"m": good | change}}), encoding="utf-8")
    with pytest.raises(InputError, match=r"bad\.json: " + message) as caught:
        load_figures(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "malformed JSON"), ("{}", "field models: missing"), ('{"models": 1}', "field models: ")]
)
def test_unreadable_figures(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        load_figures(tmp_path / "text.json")
    with pytest.raises(InputError, match="cannot be read: No such file"):
        load_figures(tmp_path / "none.json")


# --- the agreement with what is published


def test_what_is_not_counted() -> None:
    # As test_lru_and_min_on_paper: LRU loads 0 1, hits 0, loads 2 1 0; MIN loads 0 1, hits 0, loads 2, hits 1 and 0.
    needs = [(0,), (1,), (0,), (2,), (1,), (0,)]
    assert lru_loads(needs, 2, 3) == 3
    assert min_loads(needs, 2, 3) == 1


def test_published_hit_rates_on_paper() -> None:
    # 82.7 of 26 x 6 = 156 routings are read: 47.0 % hits.
    assert published_figures(geometry("deepseek-v2-lite"))["lru/0.25"] == pytest.approx(46.99, abs=0.01)


def test_the_committed_table_of_models(committed: dict[str, dict[str, dict[str, float]]]) -> None:
    assert list(committed) == list(PUBLISHED)
    for name, columns in committed.items():
        published = published_figures(geometry(name))
        assert columns["published"] == pytest.approx(published, abs=0.01)
        for figure, value in published.items():
            if figure.startswith(FITTED):
                assert columns["synthetic"][figure] == pytest.approx(value, abs=POINTS), (name, figure)
    found = committed["deepseek-v2-lite"]
    for column in ("published", "synthetic"):
        assert found[column]["global-lru/0.25"] == pytest.approx(47.7, abs=GLOBAL_POINTS)


def test_the_table_in_the_readme(committed: dict[str, dict[str, dict[str, float]]]) -> None:
    assert calibration.model_table(committed) in (TRACES / "README.md").read_text(encoding="utf-8")


def test_deepseek_hits_as_often_as_published() -> None:
    # The committed mean over 20 seeds is within 1 point; that of 2 has a standard deviation of 1.6 points.
    model = geometry("deepseek-v2-lite")
    routing = SyntheticRouting(model_statistics(model))
    rates = []
    for seed in range(2):
        requests = [tokens.experts.tolist() for tokens in routing.tokens(calibration.WARM_LENGTHS, seed)]
        rates.append(global_lru(requests, model.layers, model.experts, calibration.WARM_LENGTHS[0]))
    assert np.mean(rates) == pytest.approx(47.7, abs=3.0)


# --- the shipped trace


@pytest.mark.slow
def test_the_shipped_trace_is_made_by_its_command(tmp_path: Path) -> None:
    again = tmp_path / "again.jsonl"
    assert main(["--model", "deepseek-v2-lite", "--tokens", "1020", "--out", str(again)]) == 0
    new, old = again.read_bytes(), SHIPPED.read_bytes()
    for number, (made, kept) in enumerate(zip(new.splitlines(), old.splitlines(), strict=True), start=1):
        assert made == kept, f"line {number}"
    assert new == old


def test_the_shipped_trace_gives_its_figure(committed: dict[str, dict[str, dict[str, float]]]) -> None:
    found = global_lru(calibration.shipped_requests(SHIPPED), 26, 64, 0)
    assert committed["deepseek-v2-lite"]["shipped"] == pytest.approx({"global-lru/0.25": found}, abs=0.01)


def test_what_the_shipped_trace_holds() -> None:
    trace = TraceFile(SHIPPED)
    summary = summarise(trace)
    assert (summary.tokens, summary.requests, summary.prefills) == (1020, 5, 5)
    assert summary.agreement == pytest.approx(0.97, abs=0.01)
    assert summary.forecasts["draft"].first_rank_accuracy == pytest.approx(0.889, abs=0.01)
    assert summary.forecasts["next_gate"].first_rank_accuracy == pytest.approx(0.85, abs=0.01)
    header = trace.header
    assert header.source.kind == "synthetic" and RATES_FROM in header.source.how
    assert "HybriMoE, arXiv 2504.05897" in header.source.what
    assert header.draft is not None and header.draft.name == "deepseek-v2-lite-awq"
    assert SHIPPED.stat().st_size <= 8_000_000
