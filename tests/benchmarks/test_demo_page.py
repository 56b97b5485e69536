"""The result files of the demo are what a replay gives."""

from __future__ import annotations

import json

import pytest

import sim
from benchmarks.files import read_json
from benchmarks.sim.demo import RESULT, RESULT_NO_CPU, TRACE, with_cpu, without_cpu


def test_rows_of_the_result_file_are_what_a_replay_gives() -> None:
    found = sim.replay(TRACE, ["on-demand.lru", "spmoe.paper"]).to_json()["results"]
    kept = {row["policy"]: row for row in read_json(RESULT)["results"]}
    assert found == [kept["on-demand.lru"], kept["spmoe.paper"]]


@pytest.mark.slow
def test_the_result_files_are_what_the_demo_gives() -> None:
    for replayed, path in ((with_cpu(), RESULT), (without_cpu(), RESULT_NO_CPU)):
        assert json.dumps(replayed, indent=2) + "\n" == path.read_text(encoding="utf-8")
