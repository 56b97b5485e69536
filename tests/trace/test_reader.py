from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spmoe.errors import InputError
from spmoe.trace.reader import TraceFile
from spmoe.trace.schema import PrefillLine, RejectedLine, TokenLine
from spmoe.trace.writer import write_trace
from tests.trace.conftest import header_json, lines_json, make_header

WriteLines = Callable[..., Path]


def read_error(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        list(TraceFile(path))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


def test_every_field_is_read(write_lines: WriteLines) -> None:
    trace = TraceFile(write_lines(header_json(), *lines_json()))
    assert trace.header == make_header(3)
    expected = [
        PrefillLine(0, 7, ((0, 1), (2,))),
        TokenLine(
            0,
            0,
            ((0, 1), (3, 2)),
            True,
            draft_prob=65536,
            weights=((49152, 16384), (32768, 32768)),
            forecasts={"draft": (((1, 32768), (0, 16384)), ()), "next_gate": ((), ((3, 65536),))},
        ),
        TokenLine(
            0,
            1,
            ((0, 1), (3, 2)),
            False,
            rejected=(RejectedLine(((3,), (1, 2)), {"draft": (((3, 32768),), ())}, 16384, ((32768,), (49152, 16384))),),
        ),
        TokenLine(1, 5, ((2, 0), (1, 0)), True, gate_probs=((16384,) * 4, ())),
    ]
    assert list(trace) == expected
    assert list(trace) == expected


def test_how_many_tokens_of_a_prompt_went_to_each_expert_is_read(write_lines: WriteLines) -> None:
    lines = lines_json()
    lines[0]["prefill"] = {"tokens": 7, "touched": [[0, 1, 3], []], "counts": [[6, 1, 7], []]}
    first, *_ = TraceFile(write_lines(header_json(), *lines))
    assert first == PrefillLine(0, 7, ((0, 1, 3), ()), ((6, 1, 7), ()))


def test_the_longest_request_of_the_recorded_run_is_read(write_lines: WriteLines) -> None:
    assert TraceFile(write_lines(header_json() | {"context": 9}, *lines_json())).header == make_header(3, context=9)


def test_forecasts_that_are_not_wanted_are_left_out(write_lines: WriteLines) -> None:
    path = write_lines(header_json(), *lines_json())
    tokens = [line for line in TraceFile(path, forecasts=["next_gate"]) if isinstance(line, TokenLine)]
    assert [set(line.forecasts) for line in tokens] == [{"next_gate"}, set(), set()]
    with pytest.raises(InputError, match="expected some of draft, next_gate, got gate"):
        TraceFile(path, forecasts=["gate"])


BAD_TOKENS: list[tuple[dict[str, Any], str]] = [
    ({"routed": [[0, 1], [3, 4]]}, "field routed[1]: expert 4 is out of range 0..3"),
    ({"routed": [[0, -1], [3, 2]]}, "field routed[0]: expert -1 is out of range 0..3"),
    ({"routed": [[0, 0], [3, 2]]}, "field routed[0]: expert 0 is repeated; expected distinct experts"),
    ({"routed": [[0, 1], [3, 2, 1]]}, "field routed[1]: expected at most 2 experts, got 3"),
    ({"routed": [[0, True], [3, 2]]}, "field routed[0]: expected an integer expert id, got True"),
    ({"routed": [[0, 1.0], [3, 2]]}, "field routed[0]: expected an integer expert id, got 1.0"),
    ({"routed": [[0, "1"], [3, 2]]}, "field routed[0]: expected an integer expert id, got '1'"),
    ({"routed": [[0, 1]]}, "field routed: expected a list of 2 layers, got 1"),
    ({"routed": {"0": [0, 1]}}, "field routed: expected a list of 2 layers, got dict"),
    ({"routed": [[0, 1], 3]}, "field routed[1]: expected a list, got 3"),
    ({"routed": [[0, 1], None]}, "field routed[1]: expected a list, got None"),
    ({"request": True}, "field request: expected an integer from 0 up, got True"),
    ({"request": -1}, "field request: expected an integer from 0 up, got -1"),
    ({"position": 0.0}, "field position: expected an integer from 0 up, got 0.0"),
    ({"agree": 1}, "field agree: expected true or false, got 1"),
    ({"agree": None}, "field agree: expected true or false, got None"),
    ({"draft_prob": 1.01}, "field draft_prob: expected a probability from 0 to 1, got 1.01"),
    ({"draft_prob": True}, "field draft_prob: expected a probability from 0 to 1, got True"),
    ({"draft_prob": None}, "field draft_prob: expected a probability from 0 to 1, got None"),
    ({"weights": [[0.75, -0.25], [1, 0]]}, "field weights[0]: expected a probability from 0 to 1, got -0.25"),
    ({"weights": [[0.75], [1, 0]]}, "field weights[0]: expected 2 entries, got 1"),
    ({"weights": [[0.75, "x"], [1, 0]]}, "field weights[0]: expected a probability from 0 to 1, got 'x'"),
    ({"gate_probs": [[0.5, 0.5], []]}, "field gate_probs[0]: expected 4 entries, got 2"),
    ({"gate_probs": 1}, "field gate_probs: expected a list of 2 layers, got int"),
    ({"gate_probs": [[], 1]}, "field gate_probs[1]: expected a list, got 1"),
    ({"forecasts": []}, "field forecasts: expected a JSON object, got list"),
    (
        {"forecasts": {"oracle": [[], []]}},
        "field forecasts.oracle: expected a forecast that the header has (draft, next_gate)",
    ),
    ({"forecasts": {"draft": [[]]}}, "field forecasts.draft: expected a list of 2 layers, got 1"),
    ({"forecasts": {"draft": [[1], []]}}, "field forecasts.draft[0]: expected [expert, probability], got 1"),
    ({"forecasts": {"draft": [["ab"], []]}}, "field forecasts.draft[0]: expected [expert, probability], got 'ab'"),
    (
        {"forecasts": {"draft": [[{"a": 1, "b": 2}], []]}},
        "field forecasts.draft[0]: expected [expert, probability], got {'a': 1, 'b': 2}",
    ),
    ({"forecasts": {"draft": [[[1]], []]}}, "field forecasts.draft[0]: expected [expert, probability], got [1]"),
    ({"forecasts": {"draft": [[], [[4, 0.5]]]}}, "field forecasts.draft[1]: expert 4 is out of range 0..3"),
    (
        {"forecasts": {"draft": [[], [[1, 0.5], [1, 0.2]]]}},
        "field forecasts.draft[1]: expert 1 is repeated; expected distinct experts",
    ),
    (
        {"forecasts": {"draft": [[], [[1, 1.5]]]}},
        "field forecasts.draft[1]: expected a probability from 0 to 1, got 1.5",
    ),
    ({"rejected": {}}, "field rejected: expected a list of lines, got dict"),
    ({"rejected": [{"routed": [[0], [4]]}]}, "field rejected[0].routed[1]: expert 4 is out of range 0..3"),
    ({"rejected": [{}]}, "field rejected[0].routed: missing; expected routed"),
    (
        {"rejected": [{"routed": [[], []], "agree": True}]},
        "field rejected[0].agree: unknown; expected one of routed, forecasts, draft_prob, weights",
    ),
    (
        {"colour": 1},
        "field colour: unknown; expected one of request, position, routed, agree, draft_prob, weights, forecasts, "
        "rejected, gate_probs",
    ),
]


@pytest.mark.parametrize(("change", "message"), BAD_TOKENS)
def test_a_bad_token_line_is_named(write_lines: WriteLines, change: dict[str, Any], message: str) -> None:
    prefill, first, *others = lines_json()
    assert read_error(write_lines(header_json(), prefill, first | change, *others)) == f":3: {message}"


@pytest.mark.parametrize("field", ["request", "position", "routed", "agree"])
def test_a_missing_field_is_named(write_lines: WriteLines, field: str) -> None:
    lines = lines_json()
    del lines[3][field]
    expected = f":5: field {field}: missing; expected request, position, routed, agree"
    assert read_error(write_lines(header_json(), *lines)) == expected


def counted(counts: object) -> dict[str, Any]:
    return {"tokens": 7, "touched": [[0, 1], [1, 2, 3]], "counts": counts}


@pytest.mark.parametrize(
    ("prefill", "message"),
    [
        ({"tokens": 0, "touched": [[], []]}, "field prefill.tokens: expected an integer of at least 1, got 0"),
        ({"tokens": 7}, "field prefill.touched: missing; expected tokens, touched"),
        ({"tokens": 7, "touched": [[1, 0], []]}, "field prefill.touched[0]: expected ascending experts, got [1, 0]"),
        ({"tokens": 7, "touched": [[0], [9]]}, "field prefill.touched[1]: expert 9 is out of range 0..3"),
        (7, "field prefill: expected a JSON object, got int"),
        (
            {"tokens": 7, "touched": [[], []], "count": []},
            "field prefill.count: unknown; expected one of tokens, touched, counts",
        ),
        (counted(None), "field prefill.counts: expected a list of 2 layers, got NoneType"),
        (counted([[7, 7]]), "field prefill.counts: expected a list of 2 layers, got 1"),
        (counted([[7, 7], 14]), "field prefill.counts[1]: expected a list, got 14"),
        (counted([[7, 7], [7]]), "field prefill.counts[1]: expected 3 entries, got 1"),
        (
            counted([[7, 7], [7, 7, 0]]),
            "field prefill.counts[1]: expected integers from 1 to the prompt's 7 tokens, got 0",
        ),
        (
            counted([[8, 6], [7, 6, 1]]),
            "field prefill.counts[0]: expected integers from 1 to the prompt's 7 tokens, got 8",
        ),
        (
            counted([[7, True], [7, 6, 1]]),
            "field prefill.counts[0]: expected integers from 1 to the prompt's 7 tokens, got True",
        ),
        (
            counted([[7, 7], [7, 5, 1]]),
            "field prefill.counts[1]: expected a sum of 14, 2 experts for each of 7 tokens, got 13",
        ),
    ],
)
def test_a_bad_prefill_line_is_named(write_lines: WriteLines, prefill: object, message: str) -> None:
    lines = lines_json()
    lines[0]["prefill"] = prefill
    assert read_error(write_lines(header_json(), *lines)) == f":2: {message}"


def _changed(*path: Any) -> dict[str, Any]:
    """The header with the value at a path of keys replaced."""
    header = header_json()
    *keys, last, value = path
    part: Any = header
    for key in keys:
        part = part[key]
    part[last] = value
    return header


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": 1}, 'field format: expected the header line of a trace, "spmoe-trace", got None'),
        ([1], 'field format: expected the header line of a trace, "spmoe-trace", got [1]'),
        (_changed("version", 2), "field version: expected 1, got 2"),
        (_changed("version", True), "field version: expected 1, got True"),
        (_changed("tokens", 0), "field tokens: expected an integer of at least 1, got 0"),
        (_changed("tokens", 2.0), "field tokens: expected an integer of at least 1, got 2.0"),
        (_changed("model", None), "field model: expected a JSON object, got NoneType"),
        (_changed("model", "layers", -2), "field model.layers: expected an integer of at least 1, got -2"),
        (_changed("source", "kind", "x"), "field source.kind: expected one of recorded, imported, synthetic, got 'x'"),
        (_changed("source", "agreement", 1.5), "field source.agreement: expected a number from 0 to 1, got 1.5"),
        (_changed("forecasts", 1), "field forecasts: expected a JSON object, got 1"),
        (
            _changed("forecasts", "draft", "rate", 1),
            "field forecasts.draft.rate: unknown; expected one of kind, accuracy",
        ),
        (_changed("empty_cells", -1), "field empty_cells: expected an integer of at least 0, got -1"),
        (_changed("context", 0), "field context: expected an integer of at least 1, got 0"),
        (_changed("context", 8.0), "field context: expected an integer of at least 1, got 8.0"),
        (
            _changed("extra", 1),
            "field extra: unknown; expected one of format, version, tokens, model, draft, source, forecasts, "
            "empty_cells, context",
        ),
    ],
)
def test_a_bad_header_is_named(write_lines: WriteLines, header: object, message: str) -> None:
    assert read_error(write_lines(header, *lines_json())) == f":1: {message}"


def test_requests_and_positions_follow_each_other(write_lines: WriteLines) -> None:
    prefill, first, second, other = lines_json()
    swapped = write_lines(header_json(), other, first, second)
    assert read_error(swapped) == ":3: field request: expected requests in increasing order, got 0 after 1"
    gap = write_lines(header_json(), first, second | {"position": 2}, other)
    assert read_error(gap) == ":3: field position: expected 1, got 2"
    twice = write_lines(header_json(), first, second | {"position": 0}, other)
    assert read_error(twice) == ":3: field position: expected 1, got 0"
    late = write_lines(header_json(), first, prefill, second, other)
    assert read_error(late) == ":3: field prefill: expected only on the first line of request 0"
    double = write_lines(header_json(), prefill, prefill, first, second, other)
    assert read_error(double) == ":3: field prefill: expected only on the first line of request 0"
    alone = write_lines(header_json(1), prefill, other)
    assert len(list(TraceFile(alone))) == 2


def test_the_counts_of_the_header_hold(write_lines: WriteLines) -> None:
    prefill, first, second, other = lines_json()
    fewer = write_lines(header_json(), prefill, first, second)
    assert read_error(fewer) == ":4: field tokens: the header says 3 token lines; the file ends after 2"
    more = write_lines(header_json(2), prefill, first, second, other)
    assert read_error(more) == ":5: field tokens: the header says 2 token lines; there are more"
    none = write_lines(header_json())
    assert read_error(none) == ":1: field tokens: the header says 3 token lines; the file ends after 0"
    empty = write_lines(header_json(), first, second | {"routed": [[], [0]]}, other)
    assert read_error(empty) == ":4: field empty_cells: the header says 0; the lines have 1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"request": 0,', "malformed JSON: "),
        ("", "malformed JSON: Expecting value at column 1"),
        ("[" * 100_000, "malformed JSON: nested too deeply"),
        ("9" * 5000, "malformed JSON: Exceeds the limit"),
        ('{"request": 0, "request": 1}', "field request: given twice"),
        ('{"draft_prob": NaN}', "expected finite numbers, got NaN"),
        ('{"draft_prob": -Infinity}', "expected finite numbers, got -Infinity"),
        ("7", "expected a JSON object, got int"),
        (
            '{"request":0,"position":0,"routed":[[0],[0]],"agree":true,"a\\nb":1}',
            "field a b: unknown; expected one of ",
        ),
    ],
)
def test_malformed_json_is_named(write_lines: WriteLines, text: str, message: str) -> None:
    assert read_error(write_lines(header_json(), text)).startswith(f":2: {message}")


def test_what_cannot_be_read_is_one_line(tmp_path: Path, write_lines: WriteLines) -> None:
    assert read_error(tmp_path / "none.jsonl") == ": cannot be read: No such file or directory"
    assert read_error(tmp_path) == ": cannot be read: Is a directory"
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    assert read_error(empty) == ":1: the file is empty; expected the header line of a trace"
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(json.dumps(header_json()).encode() + b"\n" + b'{"a": "\xe9"}\n')
    assert read_error(latin) == ":2: not UTF-8 text: byte 0xe9 at column 8"


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_damaged_compressed_files_are_one_line(tmp_path: Path, suffix: str) -> None:
    text = "".join(json.dumps(value) + "\n" for value in (header_json(), *lines_json())).encode()
    if suffix == ".gz":
        packed = gzip.compress(text)
    else:
        packed = pytest.importorskip("zstandard").ZstdCompressor(write_checksum=True).compress(text)
    path = tmp_path / f"t.jsonl{suffix}"
    path.write_bytes(packed)
    assert len(list(TraceFile(path))) == 4
    for damaged in (packed[:-2], packed[: len(packed) // 2], b"not compressed at all\n"):
        path.write_bytes(damaged)
        assert read_error(path).startswith(": cannot be decompressed: ")


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 5) | st.floats(-0.5, 1.5) | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_value_anywhere_is_read_or_named(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    values: list[Any] = [header_json(), *lines_json()]
    part: Any = values
    while True:
        key = data.draw(st.sampled_from(list(part) if isinstance(part, dict) else range(len(part))))
        if not (isinstance(part[key], list | dict) and part[key] and data.draw(st.integers(0, 4))):
            break
        part = part[key]
    part[key] = data.draw(JUNK)
    path = tmp_path_factory.mktemp("junk") / "t.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    try:
        lines = list(TraceFile(path))
    except InputError as error:
        assert str(error).startswith(f"{path}:") and "\n" not in str(error)
    else:
        copy = path.with_name("copy.jsonl")
        write_trace(copy, TraceFile(path).header, lines)
        assert list(TraceFile(copy)) == lines


@settings(max_examples=100, deadline=None)
@given(place=st.floats(0, 0.999), value=st.integers(0, 255), suffix=st.sampled_from(["", ".gz", ".zst"]))
def test_any_damaged_byte_is_read_or_named(
    tmp_path_factory: pytest.TempPathFactory, place: float, value: int, suffix: str
) -> None:
    if suffix == ".zst":
        pytest.importorskip("zstandard")
    path = tmp_path_factory.mktemp("damage") / f"t.jsonl{suffix}"
    write_trace(path, make_header(200), (TokenLine(0, i, ((0, 1), (i % 2, 2)), True, i) for i in range(200)))
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] = value
    path.write_bytes(content)
    try:
        list(TraceFile(path))
    except InputError as error:
        assert str(error).startswith(f"{path}:") and "\n" not in str(error)


def test_a_trace_that_changes_between_passes_is_noticed(write_lines: WriteLines) -> None:
    trace = TraceFile(write_lines(header_json(), *lines_json()))
    write_lines(header_json(2), *lines_json()[:3])
    with pytest.raises(InputError, match="the header changed while the trace was in use"):
        list(trace)


def test_memory_does_not_grow_with_length(write_lines: WriteLines) -> None:
    tokens = 4000
    token = lines_json()[1]
    path = write_lines(header_json(tokens), *(token | {"position": position} for position in range(tokens)))
    trace = TraceFile(path)
    tracemalloc.start()
    assert sum(1 for _ in trace) == tokens
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 3  # the objects of all lines would take several times the file
