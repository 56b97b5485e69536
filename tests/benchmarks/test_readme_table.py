"""The README quotes the result file, and the result file is what a replay gives."""

from __future__ import annotations

import json

import pytest

import sim
from benchmarks.pages.readme_table import POLICIES, README, RESULTS, embedded
from tests.paths import TRACES


def test_the_table_is_that_of_the_result_file() -> None:
    readme = README.read_text(encoding="utf-8")
    assert embedded(readme, json.loads(RESULTS.read_text(encoding="utf-8"))) == readme


def test_rows_of_the_result_file_are_what_a_replay_gives() -> None:
    found = sim.replay(TRACES / "mixtral.jsonl", ["on-demand.lru", "spmoe.paper"]).to_json()["results"]
    kept = {row["policy"]: row for row in json.loads(RESULTS.read_text(encoding="utf-8"))["results"]}
    assert found == [kept["on-demand.lru"], kept["spmoe.paper"]]


@pytest.mark.slow
def test_the_result_file_is_what_the_demo_gives() -> None:
    replayed = sim.replay(TRACES / "mixtral.jsonl", POLICIES).to_json()
    assert json.dumps(replayed, indent=2) + "\n" == RESULTS.read_text(encoding="utf-8")
