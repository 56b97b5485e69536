from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spmoe.errors import InputError
from spmoe.trace.reader import TraceFile
from spmoe.trace.schema import (
    ONE,
    DraftShape,
    ForecastOrigin,
    Header,
    ModelShape,
    PrefillLine,
    RejectedLine,
    Source,
    TokenLine,
    TraceLine,
)
from spmoe.trace.writer import line_text, write_trace
from tests.trace.conftest import header_json, lines_json, make_header

shares = st.integers(0, ONE)


def _weighted(line: RejectedLine) -> st.SearchStrategy[RejectedLine]:
    """The line as it is, or with gate weights."""
    weights = st.tuples(*[st.tuples(*[shares] * len(cell)) for cell in line.routed])
    return st.just(line) | weights.map(lambda found: line._replace(weights=found))


@st.composite
def traces(draw: st.DrawFn) -> tuple[Header, list[TraceLine]]:
    experts = draw(st.integers(1, 5))
    top_k = draw(st.integers(1, experts))
    layers = draw(st.integers(1, 3))
    ids = st.integers(0, experts - 1)
    cell = st.lists(ids, max_size=top_k, unique=True).map(tuple)
    cells = st.tuples(*[cell] * layers)
    forecast = st.lists(st.tuples(ids, shares), unique_by=lambda pair: pair[0], max_size=experts).map(tuple)
    names = draw(st.sets(st.sampled_from(["draft", "next_gate"])))
    forecasts = st.fixed_dictionaries({}, optional={name: st.tuples(*[forecast] * layers) for name in sorted(names)})
    maybe_share = st.none() | shares
    rejected = st.lists(st.builds(RejectedLine, cells, forecasts, maybe_share, st.none()), max_size=2)
    gate = st.just(()) | st.tuples(*[shares] * experts)
    lines: list[TraceLine] = []
    for request in sorted(draw(st.sets(st.integers(0, 50), min_size=1, max_size=3))):
        if draw(st.booleans()):
            touched = tuple(tuple(sorted(draw(st.sets(ids)))) for _ in range(layers))
            prompt = draw(st.integers(1, 99))
            # Where all tokens go to the same top_k experts, every one of these has them all.
            every = tuple(cell if len(cell) == top_k else () for cell in touched)
            counts = tuple((prompt,) * len(cell) for cell in every)
            lines.append(PrefillLine(request, prompt, *((every, counts) if draw(st.booleans()) else (touched, None))))
        start = draw(st.integers(0, 9))
        for position in range(start, start + draw(st.integers(1, 3))):
            routed = draw(cells)
            weights = tuple(tuple(draw(shares) for _ in row) for row in routed) if draw(st.booleans()) else None
            gates = draw(st.none() | st.tuples(*[gate] * layers))
            behind = tuple(draw(_weighted(each)) for each in draw(rejected))
            line = TokenLine(request, position, routed, draw(st.booleans()), draw(maybe_share), weights)
            lines.append(line._replace(forecasts=draw(forecasts), rejected=behind, gate_probs=gates))
    tokens = [line for line in lines if isinstance(line, TokenLine)]
    rates = st.none() | st.floats(0, 1)
    text = st.text(st.characters(codec="utf-8"), max_size=5)
    header = Header(
        ModelShape("é\n", layers, experts, top_k, 7, 0, 0),
        draw(st.none() | st.just(DraftShape("d", 3, 2, 1))),
        Source("imported", draw(text), draw(text), draw(text), draw(rates), draw(st.none() | st.integers(0, 9))),
        len(tokens),
        {name: ForecastOrigin(draw(st.sampled_from(["recorded", "drawn"])), draw(rates)) for name in sorted(names)},
        sum(line.routed.count(()) for line in tokens),
        draw(st.none() | st.integers(1, 9)),
    )
    return header, lines


@settings(max_examples=60, deadline=None)
@given(trace=traces(), suffix=st.sampled_from(["", ".gz", ".zst"]))
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, trace: tuple[Header, list[TraceLine]], suffix: str
) -> None:
    if suffix == ".zst":
        pytest.importorskip("zstandard")
    header, lines = trace
    folder = tmp_path_factory.mktemp("trace")
    one, two = folder / f"one.jsonl{suffix}", folder / f"two.jsonl{suffix}"
    write_trace(one, header, iter(lines))
    read = TraceFile(one)
    assert read.header == header
    assert list(read) == lines
    write_trace(two, read.header, read)
    assert one.read_bytes() == two.read_bytes()


def test_every_probability_survives_in_five_digits(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    lines = [TokenLine(0, value, ((0,), (0,)), True, value) for value in range(ONE + 1)]
    write_trace(path, make_header(len(lines)), lines)
    assert list(TraceFile(path)) == lines
    texts = [line.rpartition(":")[2].rstrip("}\n") for line in path.read_text().splitlines()[1:]]
    assert texts[0] == "0" and texts[1] == "0.00002" and texts[ONE // 2] == "0.5" and texts[-1] == "1"
    assert max(map(len, texts)) == 7


def test_the_bytes_are_the_format(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in (header_json(), *lines_json())))
    written = tmp_path / "w.jsonl"
    trace = TraceFile(path)
    write_trace(written, trace.header, trace)
    found = written.read_text().splitlines()
    assert list(map(json.loads, found)) == [header_json(), *lines_json()]
    assert found[1] == '{"request":0,"prefill":{"tokens":7,"touched":[[0,1],[2]]}}'
    counted = PrefillLine(0, 7, ((0, 1), (1, 2, 3)), ((7, 7), (6, 7, 1)))
    assert line_text(counted) == (
        '{"request":0,"prefill":{"tokens":7,"touched":[[0,1],[1,2,3]],"counts":[[7,7],[6,7,1]]}}'
    )
    assert found[2] == (
        '{"request":0,"position":0,"routed":[[0,1],[3,2]],"agree":true,"draft_prob":1,"weights":[[0.75,0.25],[0.5,0.5]],'
        '"forecasts":{"draft":[[[1,0.5],[0,0.25]],[]],"next_gate":[[],[[3,1]]]}}'
    )


TOKEN = TokenLine(0, 0, ((0, 1), (2, 3)), True)


@pytest.mark.parametrize(
    ("header", "lines"),
    [
        (make_header(2), [TOKEN]),
        (make_header(1), [TOKEN, TOKEN]),
        (make_header(1, empty_cells=1), [TOKEN]),
        (make_header(1), [TOKEN._replace(routed=((), (0, 1)))]),
        (make_header(1), [TOKEN._replace(draft_prob=ONE + 1)]),
    ],
)
@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.jsonl.zst"])
def test_wrong_lines_leave_the_old_file(tmp_path: Path, header: Header, lines: list[Any], name: str) -> None:
    if name.endswith(".zst"):
        pytest.importorskip("zstandard")
    path = tmp_path / name
    path.write_text("old")
    with pytest.raises(ValueError, match=r"the header says|expected a probability"):
        write_trace(path, header, lines)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failing_source_leaves_nothing(tmp_path: Path) -> None:
    def lines() -> Iterator[TraceLine]:
        yield TOKEN
        raise InputError("source.jsonl:2: broken")

    with pytest.raises(InputError, match=r"source\.jsonl:2: broken"):
        write_trace(tmp_path / "t.jsonl", make_header(2), lines())
    assert list(tmp_path.iterdir()) == []


def test_zst_without_its_library_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    with pytest.raises(InputError, match=r"t\.zst: \.zst files need the zstandard library: pip install zstandard"):
        write_trace(tmp_path / "t.zst", make_header(1), [TOKEN])
    assert list(tmp_path.iterdir()) == []
