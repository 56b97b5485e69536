"""The result file of the demo is what a replay gives."""

from __future__ import annotations

import json

import pytest

import sim
from benchmarks.files import read_json
from benchmarks.sim.demo import POLICIES, RESULT, TRACE


def test_rows_of_the_result_file_are_what_a_replay_gives() -> None:
    found = sim.replay(TRACE, ["on-demand.lru", "spmoe.paper"]).to_json()["results"]
    kept = {row["policy"]: row for row in read_json(RESULT)["results"]}
    assert found == [kept["on-demand.lru"], kept["spmoe.paper"]]


@pytest.mark.slow
def test_the_result_file_is_what_the_demo_gives() -> None:
    replayed = sim.replay(TRACE, POLICIES).to_json()
    assert json.dumps(replayed, indent=2) + "\n" == RESULT.read_text(encoding="utf-8")
