"""The generator, the shipped trace, and how both compare with real routing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.sim import trace_calibration as calibration
from benchmarks.sim.cache_loads import lru_loads, min_loads, visits
from spmoe.errors import InputError
from spmoe.machine.geometry import geometry
from spmoe.trace.reader import TraceFile
from spmoe.trace.schema import PrefillLine, TokenLine
from spmoe.trace.summary import summarise
from spmoe.trace.synthetic import RATES, RequestLength, main, model_shape, request_lengths, synthetic_trace
from spmoe.trace.synthetic_routing import SyntheticRouting
from spmoe.trace.synthetic_statistics import (
    RoutingStatistics,
    load_statistics,
    measure_statistics,
    mixtral_statistics,
)
from spmoe.trace.vllm import read_jsonl
from tests.paths import RECORDED, ROOT, TRACES

SHIPPED = TRACES / "mixtral.jsonl"
POINTS = 2.0  # of hit rate: how far synthetic routing may be from real routing


@pytest.fixture(scope="module")
def committed() -> dict[str, dict[str, float]]:
    results: dict[str, dict[str, float]] = json.loads(calibration.RESULTS.read_text(encoding="utf-8"))
    return results


def even_statistics(layers: int, experts: int, top_k: int) -> RoutingStatistics:
    """A model of any shape whose experts are equally popular."""
    return RoutingStatistics(
        source="a test",
        top_k=top_k,
        popularity=((top_k / experts,) * experts,) * layers,
        persistence=(0.5,) * layers,
        sharpness=(1.0,) * layers,
        fit=mixtral_statistics().fit,
    )


# --- the counts that the comparison rests on


def test_lru_and_min_on_paper() -> None:
    # One layer, keys 0..2, two slots.  LRU: 0 1 load, 0 hits, 2 evicts 1, 1 evicts 0, 0 evicts 2.  MIN lets 2 pass by.
    needs = [(0,), (1,), (0,), (2,), (1,), (0,)]
    assert lru_loads(needs, 2) == 5
    assert min_loads(needs, 2) == 3


def test_windows_are_cut_inside_requests() -> None:
    request = [[[0, 1], [1, 0]], [[1, 2], [1, 2]], [[3, 0], []]]
    assert visits([request, request[:1]], 2, 4) == [(0, 1, 2), (5, 4, 6), (3, 0), (), (0, 1), (5, 4)]


def test_the_real_columns_are_what_the_data_gives(committed: dict[str, dict[str, float]]) -> None:
    if not RECORDED.exists():
        pytest.skip("the real routing is not in the repository")
    model = model_shape(geometry("mixtral-8x7b"))
    requests = [request.routed for request in read_jsonl(RECORDED, model)]
    found = {}
    for window in calibration.WINDOWS:
        needs = visits(requests, window, model.experts)
        found[window] = [sum(map(len, needs)), *[min_loads(needs, slots) for slots in (32, 64, 128, 192)]]
    assert found == {
        1: [21558, 12680, 8222, 3890, 1438],
        5: [11638, 9494, 7351, 3579, 1370],
        17: [4864, 4256, 3648, 2432, 1216],
    }
    assert calibration.hit_rates(requests) == pytest.approx(committed["real"], abs=0.001)
    assert calibration.derived_statistics(RECORDED, model) == mixtral_statistics()


# --- the agreement with real routing


def test_the_committed_table_is_within_two_points(committed: dict[str, dict[str, float]]) -> None:
    for column in ("synthetic", "shipped"):
        differences = {name: rate - committed["real"][name] for name, rate in committed[column].items()}
        assert max(map(abs, differences.values())) <= POINTS, (column, differences)
    assert len(committed["real"]) == 18


def test_the_generator_is_within_two_points(committed: dict[str, dict[str, float]]) -> None:
    mean, _ = calibration.synthetic_rates(6)
    for name, real in committed["real"].items():
        assert mean[name] == pytest.approx(real, abs=POINTS), name


def test_the_shipped_trace_gives_its_column(committed: dict[str, dict[str, float]]) -> None:
    assert calibration.shipped_rates() == pytest.approx(committed["shipped"], abs=0.001)


# --- the shipped trace


@pytest.mark.slow
def test_the_shipped_trace_is_made_by_its_command(tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path / "again.jsonl")]) == 0
    again, shipped = (tmp_path / "again.jsonl").read_bytes(), SHIPPED.read_bytes()
    for number, (new, old) in enumerate(zip(again.splitlines(), shipped.splitlines(), strict=True), start=1):
        assert new == old, f"line {number}"
    assert again == shipped


def test_what_the_shipped_trace_holds() -> None:
    trace = TraceFile(SHIPPED)
    summary = summarise(trace)
    assert summary.tokens >= 2000 and summary.requests == summary.prefills == 8
    assert summary.agreement == pytest.approx(0.97, abs=0.01)
    assert summary.forecasts["draft"].first_rank_accuracy == pytest.approx(0.889, abs=0.01)
    assert summary.forecasts["next_gate"].first_rank_accuracy == pytest.approx(0.85, abs=0.01)
    assert trace.header.source.kind == "synthetic" and trace.header.source.agreement == 0.97
    assert {name: origin.accuracy for name, origin in trace.header.forecasts.items()} == {
        "draft": 0.889,
        "next_gate": 0.85,
    }
    assert trace.header.draft is not None and trace.header.draft.name == "mistral-7b"
    assert SHIPPED.stat().st_size <= 5_000_000


# --- the generator


def test_a_prefix_does_not_depend_on_what_follows() -> None:
    routing = SyntheticRouting(mixtral_statistics())
    short, long = routing.tokens([30, 20], 5), routing.tokens([30, 40, 10], 5)
    assert np.array_equal(short[0].experts, long[0].experts)
    assert np.array_equal(short[1].experts, long[1].experts[:20])
    assert not np.array_equal(short[0].experts, routing.tokens([30], 6)[0].experts)


@pytest.mark.parametrize(("layers", "experts", "top_k"), [(32, 8, 2), (3, 64, 6), (2, 128, 8), (4, 16, 1)])
def test_any_geometry(layers: int, experts: int, top_k: int) -> None:
    routed, weights = SyntheticRouting(even_statistics(layers, experts, top_k)).tokens([50], 0)[0]
    assert routed.shape == weights.shape == (50, layers, top_k)
    assert routed.min() >= 0 and routed.max() < experts
    assert all(len(set(cell)) == top_k for cell in routed.reshape(-1, top_k).tolist())
    assert np.allclose(weights.sum(axis=2), 1)
    assert (np.diff(weights, axis=2) <= 0).all()


def test_generated_routing_has_the_statistics_asked_for() -> None:
    wanted = mixtral_statistics()
    requests = [(tokens.experts, tokens.weights) for tokens in SyntheticRouting(wanted).tokens([400] * 6, 3)]
    found = measure_statistics(requests, wanted.experts, "generated", wanted.fit)
    assert np.mean(found.persistence) == pytest.approx(np.mean(wanted.persistence), abs=0.02)
    assert np.corrcoef(found.persistence, wanted.persistence)[0, 1] > 0.9
    assert np.mean(found.sharpness) == pytest.approx(np.mean(wanted.sharpness), rel=0.1)
    assert np.corrcoef(np.ravel(found.popularity), np.ravel(wanted.popularity))[0, 1] > 0.6


def test_statistics_on_paper() -> None:
    # Two tokens and a missing one, one layer, top-2 of 3 experts; gate weights 3 : 1.
    routed = np.array([[[0, 1]], [[1, 2]], [[-1, -1]]])
    weights = np.full((3, 1, 2), [0.75, 0.25])
    found = measure_statistics([(routed, weights)], 3, "paper", mixtral_statistics().fit)
    assert found.popularity == ((0.5, 1.0, 0.5),)
    assert found.persistence == (0.5,)
    assert found.sharpness == (1.0986,)


def test_prefill_is_what_the_prompt_touched() -> None:
    shape = replace(model_shape(geometry("mixtral-8x7b")), name="small", layers=2)
    routing = SyntheticRouting(even_statistics(2, 8, 2))
    header, lines = synthetic_trace(shape, None, routing, [RequestLength(3, 2), RequestLength(4, 1)], RATES, 9)
    trace = list(lines)
    whole = routing.tokens([5, 5], 9)
    assert header.tokens == 3 and header.draft is None
    assert [type(line) for line in trace] == [PrefillLine, TokenLine, TokenLine, PrefillLine, TokenLine]
    first, token = trace[0], trace[1]
    assert isinstance(first, PrefillLine) and isinstance(token, TokenLine)
    assert first.prompt_tokens == token.position == 3
    assert first.touched[1] == tuple(sorted(set(whole[0].experts[:3, 1].ravel().tolist())))
    assert token.routed == tuple(map(tuple, whole[0].experts[3].tolist()))


def test_lengths_repeat_until_there_are_enough_tokens() -> None:
    assert request_lengths(300) == [RequestLength(120, 255), RequestLength(64, 45)]
    assert sum(length.output for length in request_lengths(5000)) == 5000


# --- bad input: one line, exit status 2, no file


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", "0"], "field tokens: expected at least 1, got 0"),
        (["--seed", "-1"], "field seed: expected an integer from 0 up, got -1"),
    ],
)
def test_bad_options(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path / "x.jsonl"), *arguments]) == 2
    assert capsys.readouterr().err == message + "\n"
    assert not list(tmp_path.iterdir())


def test_statistics_must_fit_the_model() -> None:
    shape = model_shape(geometry("mixtral-8x22b"))
    with pytest.raises(InputError, match="expected statistics of 56 layers, 8 experts, top-2, got 32, 8, top-2"):
        synthetic_trace(shape, None, SyntheticRouting(mixtral_statistics()), [RequestLength(1, 1)], RATES, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": 8}, "field top_k: expected 1 to 7"),
        ({"popularity": [[0.25] * 8, [0.25] * 7]}, r"field popularity\[1\]: expected 8 experts, got 7"),
        ({"popularity": [[0.5] * 8, [0.25] * 8]}, r"field popularity\[0\]: expected a sum of 2, got 4.0000"),
        ({"popularity": 3}, "field popularity: expected a list of lists of numbers"),
        ({"persistence": [0.5]}, "field persistence: expected 2 layers, got 1"),
        ({"persistence": [0.5, "x"]}, "field persistence: expected a number from 0 to 1"),
        ({"sharpness": [-1, 1]}, "field sharpness: expected a number from 0 to inf"),
        ({"colour": 1}, "field colour: unknown"),
        ({"fit": {}}, "field fit.vocabulary: missing"),
    ],
)
def test_bad_statistics(change: dict[str, object], message: str, tmp_path: Path) -> None:
    value = json.loads((ROOT / "spmoe" / "trace" / "synthetic_mixtral.json").read_text(encoding="utf-8"))
    value |= {"popularity": [[0.25] * 8] * 2, "persistence": [0.5] * 2, "sharpness": [1] * 2} | change
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(InputError, match=r"bad\.json: " + message) as caught:
        load_statistics(path)
    assert "\n" not in str(caught.value)


def test_unreadable_statistics(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        load_statistics(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="malformed JSON"):
        load_statistics(tmp_path / "text.json")
