"""Run files: both ways, and what is wrong with others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spmoe.errors import InputError
from spmoe.results.run import fingerprint, read_run
from tests.results.runfiles import make_run, write_run
from tests.sim.files import small_trace

TPOTS = {"on-demand.lru": [2.0, 1.0, 3.0], "spmoe.paper": [1.5]}


@pytest.fixture
def document(tmp_path: Path) -> dict[str, Any]:
    return make_run(small_trace(tmp_path), TPOTS).to_json()


def test_there_and_back(tmp_path: Path) -> None:
    run = make_run(small_trace(tmp_path), TPOTS)
    again = read_run(write_run(tmp_path / "run.json", run))
    assert replace(again, profile=run.profile) == run
    assert json.dumps(replace(again, profile=run.profile).to_json()) == json.dumps(run.to_json())


def test_median_and_spread(tmp_path: Path) -> None:
    several, one = make_run(small_trace(tmp_path), TPOTS).policies
    assert (several.tpot_ms, several.spread) == (2.0, 0.5)
    assert (one.tpot_ms, one.spread) == (1.5, 0.0)


def test_a_fingerprint_is_that_of_the_bytes(tmp_path: Path) -> None:
    file = tmp_path / "abc"
    file.write_bytes(b"abc")
    assert fingerprint(file) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(InputError, match="cannot be read"):
        fingerprint(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("format", "spmoe-log", "field format: expected one of spmoe-run"),
        ("version", 2, "field version: expected 1, got 2"),
        ("machine", 3, "field machine: expected a text"),
        ("surprise", 3, "field surprise: unknown"),
        ("policies", [], "field policies: expected at least one"),
        ("policies.0.runs_ms", [], "field policies.0.runs_ms: expected a list of numbers above 0"),
        ("policies.0.runs_ms", [1, 0], "field policies.0.runs_ms: expected a list of numbers above 0"),
        ("policies.0.runs_ms", [True], "field policies.0.runs_ms: expected a list of numbers above 0"),
        ("policies.0.loads", -1, "field policies.0.loads: expected a whole number from 0"),
        ("policies.0.policy", "magic", "field policies.0.policy: expected one of"),
        (
            "policies.1.scheduler.slots",
            3,
            "field policies.1.scheduler: expected layers, experts, top_k, slots",
        ),
        ("policies.1.scheduler.layers", 0, "field policies.1.scheduler: layers must be at least 1"),
        ("policies.0.scheduler.pace.load_bytes", 0, "field policies.0.scheduler: times and sizes must be positive"),
        ("policies.0.scheduler.pace.surprise", 0, "field policies.0.scheduler.pace.surprise: unknown"),
        ("setting.bits", 3, "field setting.bits: expected 64, 32, 16, 8 or 4.25"),
        ("setting.link_gbps", -1, "field setting.link_gbps: expected a number above 0"),
        ("profile.link.latency_us", "no", "field profile.link.latency_us: expected a number above 0"),
        ("model.top_k", 99, "field model.top_k: expected at most the 6 experts, got 99"),
        ("skipped.adapmoe", 5, "field skipped.adapmoe: expected a text"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(
    tmp_path: Path, document: dict[str, Any], path: str, value: object, complaint: str
) -> None:
    *folders, name = path.split(".")
    place: Any = document
    for each in folders:
        place = place[int(each)] if isinstance(place, list) else place[each]
    place[name] = value
    file = tmp_path / "run.json"
    file.write_text(json.dumps(document))
    with pytest.raises(InputError) as caught:
        read_run(file)
    assert complaint in str(caught.value) and "\n" not in str(caught.value)
