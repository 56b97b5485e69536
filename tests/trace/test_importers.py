from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spmoe.errors import InputError
from spmoe.trace.draws import Rates
from spmoe.trace.importers import IMPORT_FORMATS, import_trace
from spmoe.trace.reader import TraceFile
from spmoe.trace.schema import ForecastOrigin, ModelShape
from spmoe.trace.summary import summarise
from spmoe.trace.writer import write_trace
from tests.paths import RECORDED
from tests.trace.conftest import DRAFT, MODEL

MIXTRAL = ModelShape("mixtral-8x7b", 32, 8, 2, 176_160_768, 1_605_000_000, 131_072)
RATES = Rates(0.9, 0.8)


def routes(source: Path, format: str, model: ModelShape = MODEL) -> list[list[Any]]:
    """Per request, the routes of its tokens."""
    _, lines = import_trace(source, format, model, None, RATES, seed=1)
    found: dict[int, list[Any]] = {}
    for line in lines:
        assert line.position == len(found.setdefault(line.request, []))
        found[line.request].append(line.routed)
    assert list(found) == list(range(len(found)))
    return list(found.values())


def import_error(source: Path, format: str, model: ModelShape = MODEL) -> str:
    with pytest.raises(InputError) as caught:
        import_trace(source, format, model, None, RATES, seed=1)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(source))
    return message.removeprefix(str(source))


# --- vllm-jsonl


def vllm_line(token: int, layer: int, *experts: int, problem: Any = 0, **more: Any) -> dict[str, Any]:
    return {"dataset": "d", "problem_id": problem, "layer": layer, "token_idx": token, "experts": list(experts)} | more


LINES = [
    vllm_line(0, 0, 1, 0),
    vllm_line(0, 1, 2, 3),
    vllm_line(1, 1, 3, 0),
    vllm_line(0, 0, 3, 1, problem=10),
    vllm_line(0, 1, 0, 1, problem=10),
    vllm_line(0, 0, 0, 2, problem=9),
    vllm_line(0, 1, 2, 0, problem=9),
]


def test_vllm_lines_in_any_order(write_lines: Callable[..., Path]) -> None:
    expected = [[((1, 0), (2, 3)), ((), (3, 0))], [((0, 2), (2, 0))], [((3, 1), (0, 1))]]
    for seed in range(5):
        lines = random.Random(seed).sample(LINES, len(LINES))
        assert routes(write_lines(*lines), "vllm-jsonl") == expected


def test_vllm_gate_weights_are_kept(write_lines: Callable[..., Path]) -> None:
    path = write_lines(*(line | {"gating_probs": [0.75, 0.25]} for line in LINES))
    header, lines = import_trace(path, "vllm-jsonl", MODEL, DRAFT, Rates(0.9, 0.8, 0.7), seed=6, when="today")
    assert [line.weights for line in lines[:2]] == [((49152, 16384), (49152, 16384)), ((), (49152, 16384))]
    assert (header.tokens, header.empty_cells, header.draft) == (4, 1, DRAFT)
    assert header.forecasts == {"draft": ForecastOrigin("drawn", 0.8), "next_gate": ForecastOrigin("drawn", 0.7)}
    assert (header.source.kind, header.source.what) == ("imported", "vllm-jsonl t.jsonl")
    assert (header.source.when, header.source.agreement, header.source.seed) == ("today", 0.9, 6)
    assert header.source.how == (
        "routes from the source; drawn with seed 6: agree at 0.9, draft_prob at AUC 0.9, draft forecasts at accuracy "
        "0.8, next_gate forecasts at accuracy 0.7"
    )
    assert lines[1].forecasts["draft"][0] == ()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ([], "expected a JSON object, got list"),
        ("{", "malformed JSON: "),
        ({"layer": 0}, "field problem_id: missing"),
        (vllm_line(0, 0, 2, 3), "field token_idx: token 0 has a line for layer 0 already; expected one"),
        (vllm_line(0, 2, 2, 3), "field layer: 2 is out of range 0..1, the mixture-of-experts layers of tiny"),
        (vllm_line(1, 0, 2, 4), "field experts: expert 4 is out of range 0..3"),
        (vllm_line(1, 0, 2, 2), "field experts: expert 2 is repeated; expected distinct experts"),
        (vllm_line(1, 0, 2), "field experts: expected 2 expert ids, got [2]"),
        (vllm_line(1, 0, 2, True), "field experts: expected integer expert ids, got True"),
        (vllm_line(-1, 0, 2, 1), "field token_idx: expected an integer from 0 up, got -1"),
        (vllm_line(1, 0, 2, 1) | {"layer": "0"}, "field layer: expected an integer, got '0'"),
        (vllm_line(1, 0, 2, 1, gating_probs=[0.5, 0.5]), "field gating_probs: expected in all lines or in none"),
        (vllm_line(1, 0, 2, 1, gating_probs=[0.5]), "field gating_probs: expected 2 probabilities, got [0.5]"),
        (vllm_line(1, 0, 2, 1, gating_probs=[2, 0]), "field gating_probs: expected probabilities from 0 to 1, got 2"),
        (vllm_line(1, 0, 2, 1, gating_probs="NaN"), "field gating_probs: expected 2 probabilities, got 'NaN'"),
    ],
)
def test_a_bad_vllm_line_is_named(write_lines: Callable[..., Path], line: Any, message: str) -> None:
    assert import_error(write_lines(*LINES, line), "vllm-jsonl").startswith(f":8: {message}")


def test_a_vllm_file_without_a_token_is_named(write_lines: Callable[..., Path]) -> None:
    assert import_error(write_lines(*LINES, vllm_line(3, 0, 1, 2)), "vllm-jsonl") == (
        ": field token_idx: problem 0 has no line of token 2, but lines up to 3; expected no gaps"
    )
    assert import_error(write_lines(), "vllm-jsonl") == ": no lines; expected one per token and layer"


# --- vllm-npy


def test_arrays_and_folders_of_them(tmp_path: Path) -> None:
    first = np.array([[[0, 1], [2, 3]], [[3, 1], [-1, -1]]], dtype=np.int16)
    second = np.array([[[2, 1], [0, 3]]], dtype=np.uint8)
    np.save(tmp_path / "b.npy", second)
    np.save(tmp_path / "a.npy", first)
    (tmp_path / "notes.txt").touch()
    expected = [[((0, 1), (2, 3)), ((3, 1), ())], [((2, 1), (0, 3))]]
    assert routes(tmp_path, "vllm-npy") == expected
    assert routes(tmp_path / "a.npy", "vllm-npy") == expected[:1]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 2, 2)), ": expected a .npy array of integers, got float64"),
        (np.zeros((3, 2), int), ": expected shape [tokens, 2, 2] (tiny), got [3, 2]"),
        (np.zeros((3, 3, 2), int), ": expected shape [tokens, 2, 2] (tiny), got [3, 3, 2]"),
        (np.zeros((0, 2, 2), int), ": expected shape [tokens, 2, 2] (tiny), got [0, 2, 2]"),
        (np.array([[[0, 1], [2, 4]]]), ": token 0, layer 1: field experts: expert 4 is out of range 0..3"),
        (np.array([[[0, -1], [2, 3]]]), ": token 0, layer 0: field experts: expert -1 is out of range 0..3"),
        (
            np.array([[[0, 0], [2, 3]]]),
            ": token 0, layer 0: field experts: expert 0 is repeated; expected distinct experts",
        ),
        (
            np.array([{"a": 1}], dtype=object),
            ": expected a .npy array of integers, whole and without pickled objects",
        ),
    ],
)
def test_a_bad_array_is_named(tmp_path: Path, array: Any, message: str) -> None:
    path = tmp_path / "a.npy"
    np.save(path, array)
    assert import_error(path, "vllm-npy") == message


def test_what_is_no_array_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((30, 2, 2), np.int16))
    for content in (b"", b"text", path.read_bytes()[:-4]):
        path.write_bytes(content)
        message = ": expected a .npy array of integers, whole and without pickled objects"
        assert import_error(path, "vllm-npy") == message
    np.savez(tmp_path / "a.npz", np.zeros((1, 2, 2), int))
    assert import_error(tmp_path / "a.npz", "vllm-npy") == message
    assert import_error(tmp_path / "none.npy", "vllm-npy") == ": cannot be read: No such file or directory"
    folder = tmp_path / "folder"
    folder.mkdir()
    assert import_error(folder, "vllm-npy") == ": the folder has no .npy files; expected one per request"


# --- llamacpp-csv


def csv_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "x.csv"
    path.write_text(text.replace(" ", "\n") + "\n")
    return path


@pytest.mark.parametrize("head", ["", "layer,expert "])
def test_passes_of_one_and_of_several_tokens(tmp_path: Path, head: str) -> None:
    prompt = "0,0 0,1 0,2 0,3 1,1 1,2 1,3 1,0"  # two tokens, layer by layer
    path = csv_file(tmp_path, f"{head}{prompt} 0,3 0,2 1,0 1,1")
    assert routes(path, "llamacpp-csv") == [[((0, 1), (1, 2)), ((2, 3), (3, 0)), ((3, 2), (0, 1))]]


def test_the_last_layer_may_have_the_last_tokens_only(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "0,0 0,1 0,2 0,3 1,1 1,2 0,3 0,2 1,0 1,1")
    assert routes(path, "llamacpp-csv") == [[((0, 1), ()), ((2, 3), (1, 2)), ((3, 2), (0, 1))]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0,0 0,1 1,2 1,x", ":4: field expert: expected an integer, got 'x'"),
        ("0,0 0,1 1.0,2", ":3: field layer: expected an integer, got '1.0'"),
        ("0,0 0,1 1,2 1,4", ":4: field expert: expert 4 is out of range 0..3"),
        ("0,0 0,1 2,2 2,1", ":3: field layer: 2 is out of range 0..1, the mixture-of-experts layers of tiny"),
        ("0,0 0,1 -1,2", ":3: field layer: -1 is out of range 0..1, the mixture-of-experts layers of tiny"),
        ("0,0 0,1 1,2 1,2", ":3: field expert: expert 2 is repeated; expected distinct experts"),
        ("0,0 0,1 1,2,3", ":3: expected two values, layer,expert, got 3"),
        ("0,0 0,1 layer,expert", ":3: field layer: expected an integer, got 'layer'"),
        ("0,0 0,1 1,2", ":3: field expert: expected 2 rows per token and layer, got a run of 1"),
        ("1,0 1,1 0,2 0,1", ":1: field layer: expected layer 0, got 1"),
        ("0,0 0,1", ":1: the last pass ends before layer 1; expected 2 layers"),
        ("0,0 0,1 1,0 1,1 1,2 1,3", ":3: field layer: expected layer 1 for the 1 tokens of this pass, got it for 2"),
        ("layer,expert", ": no rows; expected layer,expert"),
        ("", ":1: expected two values, layer,expert, got 1"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, text: str, message: str) -> None:
    assert import_error(csv_file(tmp_path, text), "llamacpp-csv") == message


def test_a_middle_layer_must_have_all_tokens(tmp_path: Path) -> None:
    model = ModelShape("three", 3, 4, 2, 1, 0, 0)
    path = csv_file(tmp_path, "0,0 0,1 0,2 0,3 1,0 1,1 2,0 2,1")
    message = ":5: field layer: expected layer 1 for the 2 tokens of this pass, got it for 1"
    assert import_error(path, "llamacpp-csv", model) == message


# --- all of them


def test_unknown_formats_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"field format: expected one of {', '.join(IMPORT_FORMATS)}, got 'csv'"):
        import_trace(tmp_path, "csv", MODEL, None, RATES, seed=0)
    for format in IMPORT_FORMATS:
        assert import_error(tmp_path / "none", format) == ": cannot be read: No such file or directory"


def test_same_arguments_same_bytes(tmp_path: Path, write_lines: Callable[..., Path]) -> None:
    source = write_lines(*LINES, name="source.jsonl")
    for name in ("one.jsonl", "two.jsonl"):
        write_trace(tmp_path / name, *import_trace(source, "vllm-jsonl", MODEL, DRAFT, RATES, seed=3))
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()


@pytest.mark.skipif(not RECORDED.exists(), reason="the real routing data is not beside this checkout")
def test_the_real_routes_of_mixtral(tmp_path: Path) -> None:
    header, lines = import_trace(RECORDED, "vllm-jsonl", MIXTRAL, DRAFT, Rates(0.97, 0.889, 0.85), seed=1)
    assert (header.tokens, header.empty_cells) == (338, 37)
    assert header.tokens * MIXTRAL.layers == 10_816
    path = tmp_path / "mixtral.jsonl.gz"
    write_trace(path, header, lines)
    trace = TraceFile(path)
    assert list(trace) == lines
    summary = summarise(trace)
    assert (summary.tokens, summary.requests, summary.prefills, summary.longest_request) == (338, 2, 0, 255)
    assert (summary.empty_cells, summary.distinct_experts) == (37, 8.0)
    assert summary.agreement == pytest.approx(0.97, abs=0.03)
    draft, gate = summary.forecasts["draft"], summary.forecasts["next_gate"]
    assert draft.first_rank_accuracy == pytest.approx(0.889, abs=0.01)
    assert gate.first_rank_accuracy == pytest.approx(0.85, abs=0.01)
    assert draft.coverage == 1.0
    assert gate.coverage == pytest.approx(31 / 32, abs=0.001)
    with open(RECORDED) as stream:
        rows = [json.loads(line) for line in stream]
    by_place = {(row["problem_id"], row["token_idx"], row["layer"]): tuple(row["experts"]) for row in rows}
    for line in lines:
        for layer, cell in enumerate(line.routed):
            assert cell == by_place.get((line.request, line.position, layer), ())
