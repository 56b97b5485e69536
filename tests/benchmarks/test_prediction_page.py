"""The page on prediction quotes its result file, and that the pair and the traces that are there."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from benchmarks.files import ROOT
from benchmarks.pages.markers import updated
from benchmarks.pages.prediction import PAGE, blocks_of
from benchmarks.pages.reliability_plot import draw
from benchmarks.sim.prediction import (
    PAIR,
    REPLAYED,
    RESULT,
    SETTING,
    TRACES,
    digest,
    of_pair,
    of_trace,
    results,
)
from spmoe.trace.reader import TraceFile
from spmoe.trace.schema import TokenLine
from spmoe.trace.writer import write_trace

FOUND = json.loads(RESULT.read_text(encoding="utf-8"))


def test_the_result_file_is_that_of_the_pair() -> None:
    figures = of_pair(json.loads(PAIR.read_text(encoding="utf-8"))) if PAIR.is_file() else None
    assert FOUND["pair"] == figures


@pytest.mark.parametrize(("part", "name"), [*product(["traces"], TRACES), *product(["policies"], REPLAYED)])
def test_the_result_file_is_that_of_the_traces(part: str, name: str) -> None:
    path = ROOT / "traces" / f"{name}.jsonl"
    found = FOUND[part][name]
    assert (found and found["sha256"]) == (digest(path) if path.is_file() else None)


def test_what_is_not_there_gets_a_line(tmp_path: Path) -> None:
    found = results(tmp_path / "figures.json", tmp_path)
    assert found == {
        "pair": None,
        "measured": None,
        "traces": {"pico-32l": None, "pico": None},
        "policies": {"pico-32l": None, "mixtral": None, "deepseek-v2-lite": None},
    }
    page = updated(blocks_of(found))[PAGE]
    assert page.count("there is no `models/pico/figures.json`") == 4
    assert "there is no `traces/pico.jsonl`" in page


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is found of the beginnings of two requests of the Mixtral trace."""
    trace = TraceFile(ROOT / "traces" / "mixtral.jsonl")
    kept: list[TokenLine] = []
    for line in trace:
        if isinstance(line, TokenLine) and line.request < 2 and sum(each.request == line.request for each in kept) < 8:
            kept.append(line)
    path = tmp_path_factory.mktemp("short") / "short.jsonl"
    write_trace(path, replace(trace.header, tokens=len(kept)), kept)
    return of_trace(path, **SETTING)


def test_the_draft_speaks_loads_ahead_and_the_layer_before_less_than_one(short: dict[str, Any]) -> None:
    draft, gate = (short["sources"][name] for name in ("draft", "next_gate"))
    assert draft["layers"][31]["busy_lead_ms"] > draft["layers"][0]["busy_lead_ms"] > 0
    assert all(layer["lead_ms"] >= layer["busy_lead_ms"] for layer in draft["layers"])
    assert gate["layers"][0]["busy_lead_ms"] is None
    assert gate["summary"]["busy_lead_loads"] < 1 < draft["summary"]["busy_lead_loads"]


def test_the_table_of_a_trace(short: dict[str, Any]) -> None:
    found = {"pair": None, "measured": None, "traces": dict.fromkeys(TRACES, short), "policies": {}}
    page = updated(blocks_of(found))[PAGE]
    table = page[page.index("<!-- lead-pico:") : page.index("<!-- end of lead-pico -->")]
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 32 + 1
    assert len({line.count("|") for line in rows}) == 1
    assert rows[2].startswith("| 0 |") and rows[-1].startswith("| mean from layer 1 |")
    assert "**drawn**, right at a rate of 0.889" in table
    assert f"| {short['sources']['draft']['layers'][5]['busy_lead_ms']:.3g} |" in rows[2 + 5]


def test_the_same_figures_give_the_same_picture(tmp_path: Path) -> None:
    bins = [{"cells": 5, "mean": 0.1 * place, "first": 0.1 * place, "used": 0.9} for place in range(2, 9)]
    groups = [{"first_layer": 0, "last_layer": 0, "bins": bins[:3]}, {"first_layer": 1, "last_layer": 7, "bins": bins}]
    for name in ("one.svg", "two.svg"):
        draw(groups, tmp_path / name)
    picture = (tmp_path / "one.svg").read_bytes()
    assert picture == (tmp_path / "two.svg").read_bytes()
    assert b"layers 1 to 7" in picture
