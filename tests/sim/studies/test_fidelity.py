"""The simulator against run files: errors and rankings by hand, files that do not belong together, both timelines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sim.__main__ import main
from sim.replay import replay
from sim.studies.fidelity import Compared, Fidelity, fidelity
from spmoe.errors import InputError
from spmoe.results.run import log_path
from tests.results.runfiles import BITS, GAMMA, SLOTS, make_run, write_run
from tests.sim.files import small_trace

NAMES = ("on-demand.lru", "spmoe.paper", "clairvoyant")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return small_trace(tmp_path)


def tpots(trace: Path) -> dict[str, float]:
    """What `sim replay` says of the same trace in the same setting."""
    found = replay(trace, NAMES, bits=BITS, slots=SLOTS, gamma=GAMMA)
    return {each.recipe.name: each.metrics.tpot_ms or 0.0 for each in found.results}


def compared(predicted: float, measured: float, spread: float = 0.0, run: str = "a") -> Compared:
    return Compared(run, f"{predicted}", predicted, measured, spread)


def test_it_simulates_what_replay_does(trace: Path, tmp_path: Path) -> None:
    """Measured half as fast, and exactly as predicted."""
    known = tpots(trace)
    measured = {name: [known[name] * (2 if name == "spmoe.paper" else 1)] for name in NAMES}
    found = fidelity([write_run(tmp_path / "run.json", make_run(trace, measured))])
    assert {each.policy: each.predicted_tpot_ms for each in found.policies} == known
    assert [each.error for each in found.policies] == pytest.approx([0, -0.5, 0])
    assert (found.median_error, found.max_error) == pytest.approx((0, 0.5))
    assert found.worst.policy == "spmoe.paper" and found.beyond == (found.worst,)
    assert not found.on_target


def test_of_a_trace_only_what_was_run_counts(trace: Path, tmp_path: Path) -> None:
    whole = fidelity([write_run(tmp_path / "whole.json", make_run(trace, {"on-demand.lru": [1]}))])
    part = fidelity([write_run(tmp_path / "part.json", make_run(trace, {"on-demand.lru": [1]}, tokens=12))])
    assert whole.policies[0].predicted_tpot_ms != part.policies[0].predicted_tpot_ms


@pytest.mark.parametrize(
    ("policies", "tau"),
    [
        ([compared(1, 10), compared(2, 20), compared(3, 30)], 1.0),
        ([compared(3, 10), compared(2, 20), compared(1, 30)], -1.0),
        # One of three pairs the other way round.
        ([compared(2, 10), compared(1, 20), compared(3, 30)], 1 / 3),
        # The pair that is the other way round differs by less than the spread of one of them.
        ([compared(2, 10), compared(1, 11, 0.1), compared(3, 30)], 1.0),
        # Alike when predicted and apart when measured is no agreement.
        ([compared(1, 10), compared(1, 20)], -1.0),
        # Runs are not compared with each other.
        ([compared(1, 10), compared(2, 20), compared(9, 5, run="b"), compared(10, 6, run="b")], 1.0),
        ([compared(1, 10), compared(2, 10.5, 0.1)], None),
        ([compared(1, 10)], None),
    ],
)
def test_the_ranking_by_hand(policies: list[Compared], tau: float | None) -> None:
    assert Fidelity(tuple(policies)).kendall_tau == (None if tau is None else pytest.approx(tau))


@pytest.mark.parametrize(
    ("policies", "on_target"),
    [
        ([compared(10.4, 10), compared(30, 30)], True),
        ([compared(10.6, 10), compared(31.8, 30)], False),  # 6 % in the median
        ([compared(10.6, 10, 0.035), compared(31.8, 30, 0.035)], True),
        ([compared(11.3, 10), compared(30, 30), compared(40, 40)], False),  # one is off by 13 %
        ([compared(11.3, 10, 0.05), compared(30, 30), compared(40, 40)], True),
        ([compared(9.6, 10), compared(9.7, 9.8)], False),  # close enough, in the wrong order
    ],
)
def test_what_is_asked_for_by_hand(policies: list[Compared], on_target: bool) -> None:
    assert Fidelity(tuple(policies)).on_target is on_target


def test_the_command_says_it_and_writes_it(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The trace lies beside one run file, and in the folder for traces for the other."""
    known = tpots(trace)
    one = write_run(tmp_path / "one.json", make_run(trace, {name: [known[name]] for name in NAMES}))
    (tmp_path / "elsewhere").mkdir()
    two = write_run(tmp_path / "elsewhere" / "two.json", make_run(trace, {NAMES[0]: [2 * known[NAMES[0]]]}))
    (tmp_path / "traces").mkdir()
    trace.rename(tmp_path / "traces" / trace.name)
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "fidelity.json"
    assert main(["fidelity", str(one), str(two), "--json", str(out)]) == 0
    shown = capsys.readouterr().out
    assert (
        "-50.0%" in shown and "all runs: median error 0.0%, largest 50.0% (on-demand.lru), Kendall's tau 1.000" in shown
    )
    document = json.loads(out.read_text())
    assert [each["run"] for each in document["policies"]] == ["one.json"] * 3 + ["two.json"]
    assert set(document["policies"][0]) == {
        "run",
        "policy",
        "predicted_tpot_ms",
        "measured_tpot_ms",
        "spread",
        "error",
    }
    assert document["max_error"] == pytest.approx(0.5) and document["kendall_tau"] == 1.0
    assert [each["on_target"] for each in document["runs"]] == [True, False]
    first = out.read_bytes()
    assert main(["fidelity", str(one), str(two), "--json", str(out)]) == 0
    assert out.read_bytes() == first


def test_both_timelines_in_one_chrome_trace(trace: Path, tmp_path: Path) -> None:
    """The log of the simulator's own run stands for the engine's."""
    run = write_run(tmp_path / "run.json", make_run(trace, {"clairvoyant": [1]}))
    logs = tmp_path / "logs"
    logs.mkdir()
    options = ["--bits", str(BITS), "--slots", str(SLOTS), "--gamma", str(GAMMA), "--policy", "clairvoyant"]
    assert main(["replay", str(trace), *options, "--log", str(log_path(logs, "clairvoyant"))]) == 0
    out = tmp_path / "timeline.json"
    assert main(["fidelity", str(run), "--timeline", str(out), "--logs", str(logs)]) == 0
    events = json.loads(out.read_text())["traceEvents"]
    names = {each["pid"]: each["args"]["name"] for each in events if each["name"] == "process_name"}
    assert names == {1: "clairvoyant, measured", 2: "clairvoyant, predicted"}
    spans = {pid: [{**each, "pid": 0} for each in events if each["pid"] == pid and each["ph"] == "X"] for pid in names}
    assert spans[1] == spans[2] and len(spans[1]) > 20


def test_what_does_not_belong_together(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run.json", make_run(trace, {"on-demand.lru": [1]}))
    (tmp_path / "other").mkdir()
    other = small_trace(tmp_path / "other", (5, 5))
    (tmp_path / "empty").mkdir()
    lost = write_run(tmp_path / "empty" / "run.json", make_run(trace, {"on-demand.lru": [1]}))
    timeline = str(tmp_path / "timeline.json")
    for arguments, complaint in (
        ([str(run), "--trace", str(other)], "expected the trace of"),
        ([str(lost)], "trace small.jsonl is neither beside it nor in traces; expected --trace FILE"),
        ([str(run), "--timeline", timeline], "timeline: expected a single run file, and the folder with its logs"),
        (
            [str(run), str(lost), "--timeline", timeline, "--logs", str(tmp_path)],
            "timeline: expected a single run file",
        ),
        ([str(run), "--timeline", timeline, "--logs", str(tmp_path / "no")], "cannot be read"),
        ([str(trace)], "expected JSON"),
        ([str(tmp_path / "nothing.json")], "cannot be read"),
    ):
        assert main(["fidelity", *arguments]) == 2
        error = capsys.readouterr().err
        assert complaint in error and error.count("\n") == 1
    assert not Path(timeline).exists()


def test_a_log_of_another_run_is_refused(trace: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run.json", make_run(trace, {"on-demand.lru": [1]}))
    options = ["--bits", str(BITS), "--slots", "8", "--gamma", str(GAMMA), "--policy", "on-demand.lru"]
    assert main(["replay", str(trace), *options, "--log", str(log_path(tmp_path, "on-demand.lru"))]) == 0
    assert main(["fidelity", str(run), "--timeline", str(tmp_path / "t.json"), "--logs", str(tmp_path)]) == 2


def test_nothing_to_compare() -> None:
    with pytest.raises(InputError, match="expected at least one run file"):
        fidelity([])
