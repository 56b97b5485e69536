"""The same inputs give the same bytes, in any process; result files hold nothing of when or where they were made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sim import replay
from sim.__main__ import main
from tests.paths import ROOT
from tests.sim.files import small_trace

RESULT_FIELDS = {
    "policy": str,
    "fetch_only": bool,
    "lossless": bool,
    "speculates": bool,
    "drafted_per_step": float,
    "tpot_ms": float,
    "ttft_ms": float,
    "tokens": int,
    "steps": int,
    "needs": int,
    "loads": int,
    "loads_per_token": float,
    "bytes_per_token": float,
    "hit_rate": float,
    "late_rate": float,
    "prefetch_precision": float,
    "prefetch_recall": float,
    "stall_fraction": float,
    "link_utilisation": float,
    "host_per_token": float,
    "host_utilisation": float,
    "speedup_vs_on_demand": float,
    "vs_bound": float,
    "events": int,
}
MAY_BE_NULL = {"drafted_per_step", "ttft_ms", "prefetch_precision", "prefetch_recall"}


def outputs(folder: Path, trace: Path, seed: str) -> dict[str, bytes]:
    """What two runs write, in a process of its own with this hash seed."""
    folder.mkdir()
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
    for policies, extra in ((["all"], []), (["spmoe.paper"], ["--log", "log.jsonl"])):
        name = policies[0]
        command = [sys.executable, "-m", "sim", "replay", str(trace), "--policy", *policies, "--slots", "9", *extra]
        command += ["--json", f"{name}.json", "--timeline", f"{name}.timeline.json"]
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_process_writes_the_same_bytes(tmp_path: Path) -> None:
    trace = small_trace(tmp_path)
    first = outputs(tmp_path / "one", trace, "1")
    second = outputs(tmp_path / "two", trace, "4242")
    assert len(first) == 5
    assert first == second
    for name, content in first.items():
        # Only the trace's own name may tell where it was.
        assert str(tmp_path).encode() not in content, name
        assert str(Path.home()).encode() + b"/" not in content, name


def test_the_same_process_gives_the_same_results_twice(tmp_path: Path) -> None:
    trace = small_trace(tmp_path)
    assert replay(trace, slots=9).to_json() == replay(trace, slots=9).to_json()


def test_result_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = small_trace(tmp_path)
    assert main(["replay", str(trace), "--slots", "9", "--json", "-"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)  # nothing but JSON there: the table goes to standard error
    assert "on-demand.lru" in captured.err
    assert list(document) == ["schema", "trace", "config", "feasible", "bound", "results"]
    assert document["schema"] == "spmoe-result/1"
    assert document["feasible"] is True
    assert set(document["bound"]) == {"loads_per_token", "tpot_ms"}
    assert document["trace"]["name"] == "small.jsonl"
    assert document["config"]["slots"] == 9
    for result in document["results"]:
        assert list(result) == list(RESULT_FIELDS)
        for name, value in result.items():
            if value is None:
                assert name in MAY_BE_NULL, name
            else:
                assert type(value) is RESULT_FIELDS[name], name
        for name in ("hit_rate", "late_rate", "stall_fraction", "link_utilisation"):
            assert 0 <= result[name] <= 1, name


def test_the_table_has_the_columns_of_the_results(tmp_path: Path) -> None:
    found = replay(small_trace(tmp_path), ["on-demand.lru", "spmoe.paper"], slots=9)
    table = found.table()
    assert list(table.index) == ["on-demand.lru", "spmoe.paper"]
    assert [table.index.name, *table.columns] == list(RESULT_FIELDS)
    assert table.loads.tolist() == [result.metrics.loads for result in found.results]


def test_speed_up_needs_no_mention_of_the_baseline(tmp_path: Path) -> None:
    trace = small_trace(tmp_path)
    alone = replay(trace, "next-gate", slots=9).results[0]
    beside = replay(trace, ["on-demand.lru", "next-gate"], slots=9)
    assert alone.to_json() == beside.results[1].to_json()
    assert beside.results[0].speedup == 1
