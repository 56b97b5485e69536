"""The timeline says the same as the metrics, and a viewer can show it."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from sim import replay
from spmoe.results.timeline import ROWS, TimelineWriter
from spmoe.state.commands import Load, Purpose, Speculate, Submit
from spmoe.state.events import BatchArrived, LayerDone, LayerReached, StepBegun, TokenDrafted
from tests.conformance.cases import make_trace

Span = tuple[int, int]
"""From when to when, in ns."""


def spans(document: dict[str, Any]) -> dict[str, dict[str, list[Span]]]:
    """Of each process and row, by name."""
    processes: dict[int, str] = {}
    rows: dict[tuple[int, int], str] = {}
    found: dict[str, dict[str, list[Span]]] = defaultdict(lambda: defaultdict(list))
    for entry in document["traceEvents"]:
        if entry["ph"] == "M":
            name = entry["args"]["name"]
            if entry["name"] == "process_name":
                processes[entry["pid"]] = name
            else:
                rows[entry["pid"], entry["tid"]] = name
            continue
        assert entry["ph"] == "X"
        assert entry["name"]
        start = round(entry["ts"] * 1000)
        row = rows[entry["pid"], entry["tid"]]
        found[processes[entry["pid"]]][row].append((start, start + round(entry["dur"] * 1000)))
    return found


def total(row: list[Span]) -> int:
    return sum(end - start for start, end in row)


@pytest.mark.parametrize("prefills", [False, True])
def test_a_replay(prefills: bool, tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    trace = make_trace(3, 3, 6, 2, [12, 7, 9], prefills=prefills, agreement=0.8, empty=0)
    results = replay(trace, slots=9, timeline=path).results
    found = spans(json.loads(path.read_text()))
    assert list(found) == [result.recipe.name for result in results]
    for result in results:
        rows, metrics = found[result.recipe.name], result.metrics
        assert set(rows) <= set(ROWS)
        for name, row in rows.items():
            assert all(start < end for start, end in row)
            assert all(before[1] <= after[0] for before, after in pairwise(row)), name
        # The model drafts, computes or waits: one at a time, without a gap.
        model = sorted(rows["draft"] + rows["GPU"] + rows["wait"])
        assert model[0][0] == 0
        assert all(before[1] == after[0] for before, after in pairwise(model))
        assert model[-1][1] == metrics.decode_ns + metrics.prefill_ns
        if not prefills:
            if result.fetch_only:
                assert total(rows["GPU"]) == metrics.compute_ns
            if result.fetch_only:
                assert total(rows["wait"]) == metrics.stall_ns
            assert total(rows["CPU"]) >= metrics.host_busy_ns
            over = metrics.decode_ns  # Prefetches may still arrive after the last token.
            assert total([(start, min(end, over)) for start, end in rows["link"] if start < over]) == (
                metrics.link_busy_ns
            )


def test_spans_of_a_step() -> None:
    stream = io.StringIO()
    writer = TimelineWriter(stream)
    run = writer.run("a policy", experts=4)
    load = Submit(0, Purpose.DEMAND, (Load(5, 0, None), Load(6, 1, None)))
    run.observe(StepBegun(1_000, 1), (Speculate(1, 0, 1),))
    run.observe(TokenDrafted(3_000, 0, 42), ())
    run.observe(LayerReached(4_500, 1, (1, 2), (2, 1)), (load,))
    run.observe(BatchArrived(6_000, 0, 4_500, 5_500), ())  # told of half a microsecond later
    run.observe(LayerDone(7_000, 1, ((4_500, 6_000),)), ())
    writer.close()
    entries = json.loads(stream.getvalue())["traceEvents"]
    shown = [(ROWS[entry["tid"]], entry["name"], entry["ts"], entry["dur"]) for entry in entries if entry["ph"] == "X"]
    assert shown == [
        ("draft", "token 0", 1, 2),
        ("link", "demand", 4.5, 1),
        ("GPU", "attention 1", 3, 1.5),
        ("wait", "layer 1", 4.5, 1.5),
        ("GPU", "experts 1", 6, 1),
    ]
    link = next(entry for entry in entries if entry["name"] == "demand")
    assert link["args"] == {"batch": 0, "experts": [[1, 1], [1, 2]]}


def test_an_empty_timeline_is_a_document() -> None:
    stream = io.StringIO()
    TimelineWriter(stream).close()
    assert json.loads(stream.getvalue())["traceEvents"] == []
