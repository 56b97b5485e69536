"""Pages and the README quote the result files, and those are what the simulator says of the run files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.engine import order as engine_order
from benchmarks.engine.fidelity import CACHES, PAGE, RATIOS, README, RESULT, TRACE, known, page, run_file, sentence
from benchmarks.pages.markers import embedded
from sim.studies.fidelity import fidelity

FILES = [run_file(ratio, cache) for ratio in RATIOS for cache in CACHES]


def test_the_page_is_that_of_the_result_file() -> None:
    text = PAGE.read_text("utf-8")
    assert embedded(text, "fidelity", page(known(), FILES), "engine/fidelity") == text


def test_so_is_the_readme() -> None:
    text = README.read_text("utf-8")
    assert embedded(text, "fidelity summary", sentence(known()), "engine/fidelity") == text


def test_so_is_the_order_of_foresights_rows() -> None:
    text = engine_order.PAGE.read_text("utf-8")
    found = json.loads(engine_order.RESULT.read_text("utf-8"))
    assert embedded(text, "order", engine_order.page(found), "engine/order") == text


@pytest.mark.parametrize("file", [run_file(1.0, 0.5), run_file(3.0, 0.25)], ids=lambda file: file.stem)
def test_the_simulator_says_the_same_again(file: Path) -> None:
    document = json.loads(RESULT.read_text("utf-8"))
    expected = [each for each in document["policies"] if each["run"] == file.name]
    assert len(expected) > 20
    assert fidelity([file], TRACE).to_json()["policies"] == expected
