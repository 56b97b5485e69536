"""What a user meets at the edges of the command line: narrow terminals, closed streams, files that collide."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import pytest

import sim
from sim.__main__ import main
from sim.cli.console import console
from sim.cli.replay_table import HEADINGS, show_replay
from sim.prepared import Replay
from sim.replay import replay
from spmoe.errors import InputError
from spmoe.policy.registry import RECIPES
from spmoe.trace.bundled import bundled_trace
from spmoe.trace.reader import TraceFile
from tests.golden.runs import golden_trace
from tests.paths import ROOT, TRACES
from tests.sim.files import small_trace


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return small_trace(tmp_path)


@pytest.fixture(scope="module")
def replayed() -> Replay:
    return replay(TRACES / "mixtral.jsonl", ["on-demand.lru", "on-demand.lru-per-layer"])


@pytest.mark.parametrize(("width", "columns"), [(60, 5), (80, 6), (100, 6), (132, 11)])
def test_a_narrow_terminal_gets_fewer_columns(replayed: Replay, width: int, columns: int) -> None:
    out = console(StringIO())
    out.width = width
    show_replay(replayed, out)
    assert isinstance(out.file, StringIO)
    lines = out.file.getvalue().splitlines()
    header = lines[1].rstrip()
    for name in ("on-demand.lru", "on-demand.lru-per-layer", "bound"):
        assert any(line.split()[0] == name for line in lines)
    assert header.split() == " ".join(HEADINGS[:columns]).split()
    assert len(header) <= width


def test_where_the_output_is_no_terminal_there_is_room_for_the_longest_name(tmp_path: Path) -> None:
    longest = max(RECIPES, key=len)
    out = console(StringIO())
    show_replay(replay(golden_trace(), longest, slots=30), out)
    assert isinstance(out.file, StringIO)
    header = out.file.getvalue().splitlines()[1]
    assert header.split() == " ".join(HEADINGS).split() and longest in out.file.getvalue()


@pytest.mark.parametrize(
    "options",
    [("--json", "small.jsonl"), ("--timeline", "small.jsonl"), ("--json", "out", "--timeline", "out")],
)
def test_no_output_overwrites_the_trace_or_another_output(
    trace: Path, options: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trace.parent)
    before = trace.read_bytes()
    assert main(["replay", "small.jsonl", *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and "a file of its own" in captured.err
    assert trace.read_bytes() == before and [path.name for path in trace.parent.iterdir()] == ["small.jsonl"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"slots": 2.5},
        {"slots": "5"},
        {"gamma": 2.5},
        {"gamma": "4"},
        {"gamma": 10**9},
        {"cache": "0.5"},
        {"vram": 24.0},
        {"cutoff": "x"},
        {"cutoff": -1},
        {"cutoff": 99, "policies": "on-demand.lru"},
    ],
)
def test_wrong_arguments_from_python_are_input_errors(trace: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        sim.replay(trace, **wrong)  # type: ignore[arg-type]


def test_all_may_be_given_as_a_list(trace: Path) -> None:
    whole = sim.replay(trace, ["all"])
    assert [result.recipe.name for result in whole.results] == [
        result.recipe.name for result in sim.replay(trace, "all").results
    ]


def test_a_published_name_needs_the_published_shape(tmp_path: Path) -> None:
    source = TraceFile(TRACES / "mixtral.jsonl")
    lines = source.path.read_text(encoding="utf-8").splitlines(keepends=True)
    bent = tmp_path / "bent.jsonl"
    bent.write_text(lines[0].replace('"dense_params":1605636096', '"dense_params":5') + "".join(lines[1:]), "utf-8")
    with pytest.raises(InputError, match="model mixtral-8x7b: field dense_params: expected 1605636096"):
        sim.replay(bent, "on-demand.lru")


def run(words: list[str], **options: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "sim", *words], cwd=ROOT, **options)  # type: ignore[call-overload, no-any-return]


def test_a_full_disk_behind_standard_output_is_one_line(trace: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "w") as full:
        started = run(["check", str(trace)], stdout=full, stderr=subprocess.PIPE)
        _, said = started.communicate(timeout=60)
    assert started.returncode == 2 and said.count(b"\n") == 1 and b"Traceback" not in said


def test_a_closed_standard_output_is_no_crash(trace: Path) -> None:
    shell = f"exec {sys.executable} -m sim check {trace} >&-"
    done = subprocess.run(["sh", "-c", shell], cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0 and done.stderr == b""


def test_a_reader_that_goes_away_is_no_error(trace: Path) -> None:
    read, written = os.pipe()
    os.close(read)
    started = run(["check", str(trace)], stdout=written, stderr=subprocess.PIPE)
    os.close(written)
    _, said = started.communicate(timeout=60)
    assert (started.returncode, said) == (0, b"")


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_leaves_nothing_behind(tmp_path: Path, stop: signal.Signals) -> None:
    words = ["replay", "traces/mixtral.jsonl", "--cutoff", "best", "--json", str(tmp_path / "result.json")]
    started = run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list(tmp_path.iterdir()):  # Its output file is open: the run has begun.
        assert time.monotonic() < deadline and started.poll() is None
        time.sleep(0.05)
    started.send_signal(stop)
    _, said = started.communicate(timeout=60)
    assert started.returncode == 128 + stop and b"Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_layers_of_a_small_share_run_in_waves_with_one_warning(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["replay", str(TRACES / "mixtral.jsonl"), "--slots", "64", "--policy", "on-demand.lru-per-layer"]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "waves" in captured.err


def test_without_experts_on_the_cpu(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {}
    for name, options in (("with", []), ("without", ["--no-cpu-experts"])):
        out = tmp_path / f"{name}.json"
        command = ["replay", str(trace), "--policy", "spmoe.foresight*", "fiddle*", "--cache", "0.5", *options]
        assert main([*command, "--json", str(out)]) == 0
        document = json.loads(out.read_text("utf-8"))
        assert document["config"]["cpu_experts"] is (name == "with")
        found[name] = {row["policy"]: row for row in document["results"]}, document["config"]["skipped"]
    capsys.readouterr()
    rows, skipped = found["without"]
    why = "needs the CPU, and --no-cpu-experts (cpu_experts=False) turns it off"
    assert "fiddler.spec" not in rows and skipped["fiddler.spec"] == why
    assert all(row["fetch_only"] and not row["host_per_token"] for row in rows.values())
    assert rows["spmoe.foresight.split"]["tpot_ms"] == rows["spmoe.foresight.prefetch"]["tpot_ms"]
    rows, _ = found["with"]
    assert not rows["spmoe.foresight"]["fetch_only"] and rows["spmoe.foresight"]["host_per_token"] > 0
    assert rows["spmoe.foresight.prefetch"]["fetch_only"]


def test_a_named_policy_that_does_not_apply_is_left_out_with_a_reason(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    command = ["replay", str(trace), "--slots", "2", "--policy", "spmoe.per-layer", "--policy", "adapmoe.gated"]
    assert main([*command, "--policy", "on-demand.lru", "--json", str(out)]) == 0
    document = json.loads(out.read_text("utf-8"))
    assert [row["policy"] for row in document["results"]] == ["on-demand.lru"]
    skipped = {
        "spmoe.per-layer": "needs at least 3 slots, and there are 2",
        "adapmoe.gated": "changes the model's output; --lossy (lossy=True) allows it",
    }
    assert document["config"]["skipped"] == skipped
    said = capsys.readouterr().out
    assert all(f"left out {name}: {why}" in said for name, why in skipped.items())


def test_no_policy_that_applies_is_an_error_with_every_reason(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    names = ["spmoe.per-layer", "adapmoe.gated", "on-demand.lru-per-layer"]
    assert main(["replay", str(trace), "--slots", "2", "--policy", *names, "--json", str(out)]) == 2
    assert capsys.readouterr().err == (
        "error: policies: none of these 3 applies: spmoe.per-layer, on-demand.lru-per-layer: needs at least 3 slots, "
        "and there are 2; adapmoe.gated: changes the model's output; --lossy (lossy=True) allows it\n"
    )
    assert not out.exists()


@pytest.mark.parametrize("command", ["replay", "cost", "check"])
def test_without_a_trace_the_bundled_one_is_taken(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [command, *(["--policy", "on-demand.lru"] if command == "replay" else [])]
    assert main(words) == 0
    unnamed = capsys.readouterr()
    assert main([words[0], str(bundled_trace()), *words[1:]]) == 0
    named = capsys.readouterr()
    assert unnamed.out == named.out and not named.err
    assert unnamed.err == f"note: no TRACE given, so this is the bundled {bundled_trace().name}\n"
