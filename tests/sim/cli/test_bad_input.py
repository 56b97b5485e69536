"""Bad input: one line on standard error that names the thing and what was expected, exit status 2, nothing written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sim.__main__ import main
from tests.paths import PROFILES, ROOT, TRACES
from tests.sim.files import small_trace

Refused = Callable[..., str]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return small_trace(tmp_path)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refused:
    """Runs a command that has to be refused and returns what it says."""

    def run(*arguments: object) -> str:
        before = sorted(tmp_path.iterdir())
        assert main([str(argument) for argument in arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1 and captured.err.endswith("\n")
        assert sorted(tmp_path.iterdir()) == before  # no output, no half of one
        return captured.err

    return run


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--policy", "on-demand.mru"], ["policy", "on-demand.mru", "on-demand.lru"]),
        (["--policy", "nobody.*"], ["called like", "nobody", "spmoe.paper"]),
        (["--policy"], ["--policy", "expected at least one"]),
        (["--hardware", "rtx-9999"], ["hardware", "rtx-9999", "rtx-4090"]),
        (["--hardware", "missing.json"], ["missing.json"]),
        (["--bits", "3"], ["bits", "4.25"]),
        (["--bits", "nan"], ["bits", "4.25"]),
        (["--bits", "x"], ["bits", "4.25"]),
        (["--gamma", "-1"], ["gamma", "0 to 1024", "-1"]),
        (["--gamma", "nan"], ["--gamma", "nan", "int"]),
        (["--gamma", "1.5"], ["--gamma", "1.5", "int"]),
        (["--cache", "nan"], ["cache", "share", "nan"]),
        (["--cache", "inf"], ["cache", "share", "inf"]),
        (["--cache", "0"], ["cache", "above 0"]),
        (["--cache", "-0.5"], ["cache", "above 0"]),
        (["--cache", "1.5"], ["cache", "up to 1"]),
        (["--cache", "0.01"], ["cache", "at least one of 18"]),
        (["--cache", "half"], ["--cache", "half", "float"]),
        (["--slots", "0"], ["slots", "1 to 18", "0"]),
        (["--slots", "-3"], ["slots", "1 to 18", "-3"]),
        (["--slots", "9999"], ["slots", "1 to 18", "9999"]),
        (["--slots", "many"], ["--slots", "many", "int"]),
        (["--vram", "0"], ["vram", "at least one byte"]),
        (["--vram", "-1GiB"], ["--vram", "expected one argument"]),
        (["--vram=-1GiB"], ["vram", "18GiB", "-1GiB"]),
        (["--vram", "abc"], ["vram", "18GiB", "abc"]),
        (["--vram", "nanGiB"], ["vram", "18GiB"]),
        (["--vram", "1GiB"], ["vram", "expected room for at least one expert"]),
        (["--cutoff", "-1"], ["cutoff", "0..3"]),
        (["--cutoff", "99"], ["cutoff", "0..3"]),
        (["--cutoff", "x"], ["cutoff", "best", "x"]),
        (["--vram", "1GiB", "--slots", "3"], ["--slots", "--vram", "not allowed"]),
        (["--cache", "0.5", "--slots", "3"], ["--slots", "--cache", "not allowed"]),
        (["--policy", "on-demand.lru", "next-gate", "--log", "log.jsonl"], ["log", "single policy"]),
        (["--log", "log.jsonl"], ["log", "single policy"]),
        (
            ["--slots", "2", "--policy", "spmoe.per-layer"],
            ["spmoe.per-layer", "at least 3 slots", "are 2"],
        ),
        (
            ["--no-cpu-experts", "--policy", "llamacpp.cpu-moe"],
            ["llamacpp.cpu-moe: needs the CPU, and --no-cpu-experts (cpu_experts=False) turns it off"],
        ),
        (["--frobnicate"], ["--frobnicate"]),
        (["--gamma"], ["--gamma", "expected one argument"]),
        (["another.jsonl"], ["another.jsonl"]),
    ],
)
def test_options(refused: Refused, trace: Path, options: list[str], words: list[str]) -> None:
    said = refused("replay", trace, *options)
    for word in words:
        assert word in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["COMMAND"]),
        (["reply"], ["reply", "replay"]),
        (["import", "x.jsonl"], ["--format", "--model", "--out"]),
        (["replay", "missing.jsonl"], ["missing.jsonl", "No such file"]),
        (["check", "missing.jsonl"], ["missing.jsonl", "No such file"]),
        (["cutoff", "missing.jsonl"], ["missing.jsonl", "No such file"]),
        (["cost", "missing.jsonl"], ["missing.jsonl", "No such file"]),
        (["replay", str(TRACES)], ["traces", "directory"]),
        (["check", str(ROOT / "pyproject.toml")], ["pyproject.toml:1", "malformed JSON"]),
    ],
)
def test_commands(refused: Refused, arguments: list[str], words: list[str]) -> None:
    said = refused(*arguments)
    for word in words:
        assert word in said


def importing(*changes: str) -> list[str]:
    known = {
        "--format": "vllm-jsonl",
        "--model": "mixtral-8x7b",
        "--agreement": "0.9",
        "--draft-accuracy": "0.8",
        "--out": "never-written.jsonl",
    }
    known |= dict(zip(changes[::2], changes[1::2], strict=True))
    return [word for pair in known.items() for word in pair]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--model", "mixtral-9x9b"], ["mixtral-9x9b", "mixtral-8x7b"]),
        (["--format", "csv"], ["--format", "csv", "vllm-jsonl"]),
        (["--agreement", "nan"], ["agreement", "0 to 1", "nan"]),
        (["--agreement", "1.01"], ["agreement", "0 to 1"]),
        (["--draft-accuracy", "-0.1"], ["draft_accuracy", "0 to 1"]),
        (["--next-gate-accuracy", "2"], ["next_gate_accuracy", "0 to 1"]),
        (["--confidence-auc", "0.3"], ["confidence_auc", "0.5"]),
        ([], ["source.jsonl", "No such file"]),
    ],
)
def test_imports(refused: Refused, changes: list[str], words: list[str]) -> None:
    said = refused("import", "source.jsonl", *importing(*changes))
    for word in words:
        assert word in said
    assert not Path("never-written.jsonl").exists()


Lines = list[dict[str, Any]]


def edit(path: Path, change: Callable[[Lines], object]) -> None:
    """Changes the JSON lines of a trace in place."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def last_token(lines: Lines) -> dict[str, Any]:
    return lines[-1]


BAD_TRACES: dict[str, tuple[Callable[[Lines], object], list[str]]] = {
    "a version to come": (lambda lines: lines[0].update(version=2), [":1:", "version", "expected 1"]),
    "another format": (lambda lines: lines[0].update(format="x"), [":1:", "format", "spmoe-trace"]),
    "an expert that is not there": (lambda lines: last_token(lines)["routed"].__setitem__(1, [6, 0]), ["routed", "5"]),
    "a negative expert": (lambda lines: last_token(lines)["routed"].__setitem__(0, [-1, 0]), ["routed", "5"]),
    "unsorted positions": (lambda lines: last_token(lines).update(position=0), ["position", "expected"]),
    "unsorted requests": (lambda lines: last_token(lines).update(request=0), ["request", "increasing"]),
    "fewer lines than promised": (lambda lines: lines[0].update(tokens=29), ["tokens", "29", "28"]),
    "more lines than promised": (lambda lines: lines[0].update(tokens=27), ["tokens", "27", "more"]),
    "no lines": (lambda lines: lines.__delitem__(slice(1, None)), ["tokens", "28", "0"]),
    "no layers": (lambda lines: lines[0]["model"].update(layers=0), [":1:", "model.layers", "at least 1"]),
    "an unknown field": (lambda lines: last_token(lines).update(colour=1), ["colour", "unknown"]),
    "NaN": (lambda lines: last_token(lines).update(draft_prob=float("nan")), ["finite", "NaN"]),
    "a probability above 1": (lambda lines: last_token(lines).update(draft_prob=1.5), ["draft_prob", "1.5"]),
}


@pytest.mark.parametrize("case", BAD_TRACES)
@pytest.mark.parametrize("command", ["replay", "check", "cutoff"])
def test_traces(refused: Refused, trace: Path, case: str, command: str) -> None:
    change, words = BAD_TRACES[case]
    edit(trace, change)
    said = refused(command, trace)
    for word in [f"{trace}:", *words]:
        assert word in said


def test_a_published_name_on_another_model(refused: Refused, trace: Path) -> None:
    edit(trace, lambda lines: lines[0]["model"].update(name="mixtral-8x7b"))
    said = refused("replay", trace)
    assert "model mixtral-8x7b: field layers: expected 32, the trace says 3" in said


def test_a_policy_that_the_trace_cannot_feed(refused: Refused, trace: Path) -> None:
    def forget(lines: Lines) -> None:
        lines[0]["forecasts"].clear()
        for line in lines[1:]:
            for one in [line, *line.get("rejected", [])]:
                one.pop("forecasts", None)

    edit(trace, forget)
    said = refused("replay", trace, "--policy", "spmoe.paper")
    assert "policy spmoe.paper: needs draft forecasts" in said and "; spmoe.popular does without" in said
    assert "policy next-gate: needs next_gate forecasts" in refused("replay", trace, "--policy", "next-gate")
    assert "policy spmoe.paper: needs draft forecasts" in refused("cutoff", trace)
    said = refused("cutoff", small_trace(trace.parent), "--policy", "next-gate")
    with_cutoff = "spmoe.paper, spmoe.per-layer, spmoe.refined"
    assert f"policy next-gate: has no cutoff layer; expected one of {with_cutoff}\n" in said + "\n"


def test_malformed_json_names_the_line(refused: Refused, trace: Path) -> None:
    with trace.open("a") as stream:
        stream.write("{\n")
    count = len(trace.read_text().splitlines())
    assert f"{trace}:{count}: malformed JSON" in refused("replay", trace)


def test_an_empty_file(refused: Refused, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    assert "empty.jsonl:1: the file is empty; expected the header" in refused("replay", empty)


def test_a_bad_line_late_in_a_file_leaves_no_output(refused: Refused, trace: Path, tmp_path: Path) -> None:
    edit(trace, lambda lines: last_token(lines).update(agree=1))
    targets = ["--json", tmp_path / "r.json", "--log", tmp_path / "l.jsonl", "--timeline", tmp_path / "t.json"]
    assert "agree" in refused("replay", trace, "--policy", "next-gate", "--slots", "9", *targets)


def test_a_refused_run_keeps_the_results_of_the_one_before(refused: Refused, trace: Path, tmp_path: Path) -> None:
    kept = tmp_path / "r.json"
    kept.write_text("kept")
    refused("replay", trace, "--slots", "0", "--json", kept)
    assert kept.read_text() == "kept"


@pytest.mark.parametrize("option", ["--json", "--log", "--timeline"])
@pytest.mark.parametrize("target", ["nowhere/out.json", "."])
def test_targets_that_cannot_be_written(
    refused: Refused, trace: Path, tmp_path: Path, option: str, target: str
) -> None:
    said = refused("replay", trace, "--policy", "next-gate", "--slots", "9", option, tmp_path / target)
    assert str(tmp_path / target) in said
    assert "cannot be written" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(refused: Refused, trace: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    assert "Permission denied" in refused("replay", trace, "--slots", "9", "--json", closed / "r.json")


def test_nothing_else_is_written_when_one_target_fails(refused: Refused, trace: Path, tmp_path: Path) -> None:
    log, timeline = tmp_path / "l.jsonl", tmp_path / "t.json"
    options = ["--policy", "next-gate", "--slots", "9", "--log", log, "--timeline", timeline]
    refused("replay", trace, *options, "--json", tmp_path / "nowhere" / "r.json")


@pytest.mark.parametrize(
    ("section", "field", "value", "words"),
    [
        ("link", "bandwidth_gb_per_s", float("nan"), ["link.bandwidth_gb_per_s", "NaN"]),
        ("link", "bandwidth_gb_per_s", 0, ["link.bandwidth_gb_per_s"]),
        ("link", "latency_us", -1, ["link.latency_us"]),
        ("gpu", "memory_gib", "24", ["gpu.memory_gib"]),
        ("gpu", "speed", 1, ["gpu.speed", "unknown"]),
        ("draft", "layers", 0, ["draft.layers"]),
    ],
)
def test_hardware_profiles(
    refused: Refused, trace: Path, tmp_path: Path, section: str, field: str, value: object, words: list[str]
) -> None:
    profile = json.loads((PROFILES / "rtx-4090.json").read_text())
    profile[section][field] = value
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(profile))
    said = refused("replay", trace, "--hardware", path)
    for word in [str(path), *words]:
        assert word in said


def test_a_process_ends_with_status_2_and_no_traceback(trace: Path) -> None:
    command = [sys.executable, "-m", "sim", "replay", str(trace), "--slots", "0"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr == "error: slots: expected 1 to 18 (3 layers x 6), got 0\n"


# What is unusual, but not wrong


def test_a_cache_smaller_than_a_window_runs_in_waves(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(trace), "--slots", "2"]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("warning: some layers need more experts at once than their cache has slots")
    assert "left out spmoe.per-layer: needs at least 3 slots, and there are 2" in captured.out


def test_a_hypothetical_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = tmp_path / "short.jsonl"
    with (TRACES / "mixtral.jsonl").open() as whole:
        header = json.loads(whole.readline())
        lines = [whole.readline() for _ in range(4)]
    assert "prefill" in lines[0]
    short.write_text(json.dumps({**header, "tokens": 3}) + "\n" + "".join(lines))
    result = tmp_path / "r.json"
    options = ["--vram", "80GiB", "--bits", "16", "--policy", "on-demand.lru", "--json", str(result)]
    assert main(["replay", str(short), *options]) == 0
    captured = capsys.readouterr()
    assert "hypothetical: needs " in captured.out and " GiB of 24" in captured.out
    assert captured.err == ""
    assert json.loads(result.read_text())["feasible"] is False


def test_a_trace_behind_the_policies_is_no_policy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", "--policy", "on-demand.lru", "mine.jsonl"]) == 2
    error = capsys.readouterr().err
    assert error == "error: --policy mine.jsonl: expected the name of a policy; TRACE goes before --policy\n"


@pytest.mark.parametrize("command", [["cost", "--cache", "7"], ["replay", "--policy", "nobody"]])
def test_bad_input_is_one_line_also_where_no_trace_is_named(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("place", [".", "/"])
def test_a_folder_is_no_table(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", place, "--x", "gamma"]) == 2
    expected = "expected the table that a sweep wrote, a .csv or .parquet file"
    assert capsys.readouterr().err == f"error: {place}: {expected}\n"
